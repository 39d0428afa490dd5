"""Tar archives of data sets: found or fetched, verified by sha256, and read without being unpacked to disk."""

import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import cache_folder, expanded
from orchestrator.processes.progress import Progress

MAX_BYTES = 256 << 20
"""Most that a member may have: it is held in memory."""
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60.0

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
            PrerequisiteError: the folder given does not exist, the archive cannot be fetched, or it is another file.
        """
        remedy = f"put {name} into a folder and name it: --from DIR, or ORCHESTRATOR_ARCHIVES=DIR in the environment"
        if self.from_folder is not None:
            if not self.from_folder.is_dir():
                raise PrerequisiteError(f"the folder of archives {self.from_folder} does not exist", remedy)
            if (given := self.from_folder / name).exists():
                _verify(given, archive, str(given), f"put the right {name} there, or remove it to have it fetched")
                return given
        cached = self.cache / archive.sha256 / name
        if cached.exists():
            _verify(cached, archive, str(cached), f"rm '{cached}' and try again: it is fetched anew")
        else:
            _fetch(name, archive, cached, remedy)
        return cached


def read_members(path: Path, names: Sequence[str], max_bytes: int = MAX_BYTES) -> list[bytes]:
    """The content of members of a tar archive, by name with or without './' before it. Nothing is written to disk.

    Raises:
        SpecError: it is no tar archive, damaged, or lacks such a member; or the member is no plain file or too large.
    """
    try:
        with tarfile.open(path) as tar:
            members = {member.name.removeprefix("./"): member for member in tar}
            return [_content(path, tar, members, name.removeprefix("./"), max_bytes) for name in names]
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError) as error:
        raise SpecError(f"{path} cannot be read as a tar archive: {error}") from error


def _content(
    path: Path, tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str, max_bytes: int
) -> bytes:
    if name not in members:
        has = ", ".join(repr(each) for each in list(members)[:12])
        raise SpecError(f"{path} has no member {name!r}{did_you_mean(name, members)}", f"it has {has}")
    member = members[name]
    if member.size > max_bytes:
        raise SpecError(f"{path}: {name!r} has {member.size} bytes, more than the {max_bytes} that are read")
    stream = tar.extractfile(member) if member.isreg() else None  # a link would be followed
    if stream is None:
        raise SpecError(f"{path}: {name!r} is not a plain file")
    return stream.read()


def _verify(path: Path, archive: Archive, shown: str, remedy: str) -> None:
    try:
        with path.open("rb") as file:
            found, size_bytes = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise PrerequisiteError(f"{shown} cannot be read: {error.strerror}", remedy) from error
    if found != archive.sha256:
        what = f"{shown} is not the archive that the entry means: its sha256 is {found}, not {archive.sha256}"
        raise PrerequisiteError(f"{what} ({size_bytes} bytes, expected {archive.size_bytes})", remedy)


def _fetch(name: str, archive: Archive, target: Path, remedy: str) -> None:
    from http.client import HTTPException  # here: seldom needed, and slow to import
    from urllib.error import HTTPError
    from urllib.request import urlopen

    temporary = target.with_name(f".{name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            temporary.open("wb") as file,
            urlopen(archive.url, timeout=_TIMEOUT_S) as answer,
            Progress(archive.size_bytes, f"fetching {name}", "bytes") as bar,
        ):
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > archive.size_bytes:
                    raise OSError(f"it is larger than the {archive.size_bytes} bytes that the entry says")
        _verify(temporary, archive, archive.url, remedy)
        temporary.replace(target)
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        what = f"{name} is not on this machine and cannot be fetched from {archive.url} into {target.parent}: {error}"
        raise PrerequisiteError(what, remedy) from error
    finally:
        if target.parent.is_dir():
            temporary.unlink(missing_ok=True)
