"""Tar archives of data sets: found or fetched, verified by sha256, and read without being unpacked to disk."""

import hashlib
import logging
import lzma
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write, cache_folder, expanded, sha256_file

MAX_BYTES = 256 << 20
"""Most that a member may have: it is held in memory."""
_TIMEOUT_S = 60.0
log = logging.getLogger("orchestrator")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Archive(BaseModel):
    """A tar archive on the web, plain or packed by gzip, bzip2 or xz. No more than its size is downloaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://[!-.0-~]+/[!-~]+$")
    sha256: Sha256
    size_bytes: int = Field(gt=0)


@dataclass(frozen=True)
class ArchiveStore:
    """Archives by name, each verified before it is used."""

    from_folder: Path | None = None
    """A folder of the user's with archives in it, looked at first."""
    cache: Path = field(default_factory=lambda: cache_folder() / "archives")
    """Where downloads are kept, by checksum."""

    @classmethod
    def from_environment(cls, from_folder: Path | None = None) -> "ArchiveStore":
        """The store of `--from DIR`, else of $ORCHESTRATOR_ARCHIVES, with the default cache."""
        given = os.environ.get("ORCHESTRATOR_ARCHIVES")
        return cls(from_folder or (expanded(given) if given else None))

    def path(self, name: str, archive: Archive) -> Path:
        """A verified archive, fetched into the cache where it is not on this machine.

        Raises:
            PrerequisiteError: it cannot be fetched or read, or it is another file.
        """
        remedy = f"put {name} into a folder and name it: --from DIR, or ORCHESTRATOR_ARCHIVES=DIR in the environment"
        path = self.cache / archive.sha256 / name
        if self.from_folder is not None and (given := self.from_folder / name).exists():
            path = given
        try:
            if not path.exists():
                _fetch(name, archive, path)
            found = sha256_file(path)
        except (OSError, ValueError) as error:
            raise PrerequisiteError(
                f"{path} is not there and cannot be had from {archive.url}: {error}", remedy
            ) from error
        if found != archive.sha256:
            what = f"{path} is not the archive that the entry means: its sha256 is {found}, not {archive.sha256}"
            raise PrerequisiteError(what, f"rm '{path}' to have it fetched, or put the right one there")
        return path


def read_members(path: Path, names: Sequence[str], max_bytes: int = MAX_BYTES) -> list[bytes]:
    """The content of members of a tar archive, by name with or without './' before it. Nothing is written to disk.

    Raises:
        SpecError: it is no tar archive, damaged, or lacks such a member; or the member is no plain file or too large.
    """
    contents = []
    try:
        with tarfile.open(path) as tar:
            members = {member.name.removeprefix("./"): member for member in tar}
            for name in (name.removeprefix("./") for name in names):
                if name not in members:
                    has = ", ".join(repr(each) for each in list(members)[:12])
                    raise SpecError(f"{path} has no member {name!r}{did_you_mean(name, members)}", f"it has {has}")
                member = members[name]
                stream = tar.extractfile(member) if member.isreg() else None  # a link would be followed
                if stream is None or member.size > max_bytes:
                    raise SpecError(f"{path}: {name!r} is no plain file of at most {max_bytes} bytes")
                contents.append(stream.read())
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError) as error:
        raise SpecError(f"{path} cannot be read as a tar archive: {error}") from error
    return contents


def _fetch(name: str, archive: Archive, target: Path) -> None:
    from http.client import HTTPException  # here: seldom needed, and slow to import
    from urllib.error import HTTPError
    from urllib.request import urlopen

    log.info("fetching %s (%.1f MB) from %s", name, archive.size_bytes / 1e6, archive.url)
    try:
        with urlopen(archive.url, timeout=_TIMEOUT_S) as answer:
            data = answer.read(archive.size_bytes + 1)
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
    except HTTPException as error:
        raise ValueError(str(error)) from error
    if (found := hashlib.sha256(data).hexdigest()) != archive.sha256:
        raise ValueError(
            f"it is another file, of sha256 {found}, not {archive.sha256}; expected {archive.size_bytes} bytes"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, data)
