"""Archives of data sets: found or fetched, verified, and read without being unpacked to disk.

Covered: a folder of the user's, a cache by checksum, the web (http and https only); nothing is used whose sha256
is another one; limits on what is fetched and unpacked, so that a hostile archive costs an error and no more.
Not covered: other containers than tar; resuming a download.
Leaves verified archives in the cache.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import cache_folder, expanded
from orchestrator.processes.progress import Progress

MAX_BYTES = 256 << 20
"""Most that an archive may unpack to: what is read is held in memory."""
_MAX_MEMBERS = 10_000
_CHUNK_BYTES = 1 << 20
_NETWORK_TIMEOUT_S = 60.0
_COMPRESSIONS: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\x00", lzma))

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Archive(BaseModel):
    """A tar archive on the web, plain or packed by gzip, bzip2 or xz."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://[!-.0-~]+/[!-~]+$")
    """Where it can be had."""
    sha256: Sha256
    """What it must hash to."""
    size_bytes: int = Field(gt=0)
    """Its size; a download stops when it is larger."""


def default_cache() -> Path:
    """Where downloaded archives go: $ORCHESTRATOR_CACHE/archives, or the user's cache folder."""
    return cache_folder() / "archives"


@dataclass(frozen=True)
class ArchiveStore:
    """Archives by name, each verified before it is used."""

    from_folder: Path | None = None
    """A folder of the user's with archives in it, looked at first."""
    cache: Path = field(default_factory=default_cache)
    """Where downloads are kept, by checksum."""

    @classmethod
    def from_environment(cls, from_folder: Path | None = None) -> "ArchiveStore":
        """The store of `--from DIR`, else of $ORCHESTRATOR_ARCHIVES, with the default cache."""
        given = os.environ.get("ORCHESTRATOR_ARCHIVES")
        return cls(from_folder or (expanded(given) if given else None))

    def find(self, name: str, archive: Archive) -> Path | None:
        """A verified archive on this machine, or None.

        Raises:
            PrerequisiteError: the folder given does not exist, or the file found is another one.
        """
        if self.from_folder is not None:
            if not self.from_folder.is_dir():
                # Not passed over: whoever names a folder of archives means to use it.
                raise PrerequisiteError(f"the folder of archives {self.from_folder} does not exist", _remedy(name))
            given = self.from_folder / name
            if given.exists():
                _verify(given, archive, str(given), f"put the right {name} there, or take it away to have it fetched")
                return given
        cached = self._cached(name, archive)
        if cached.exists():
            _verify(cached, archive, str(cached), f"rm '{cached}' and try again: it is fetched anew")
            return cached
        return None

    def path(self, name: str, archive: Archive) -> Path:
        """A verified archive, fetched into the cache where it is not on this machine.

        Raises:
            PrerequisiteError: as find, or it cannot be fetched, or what is fetched is another file.
        """
        return self.find(name, archive) or self._fetched(name, archive)

    def _cached(self, name: str, archive: Archive) -> Path:
        return self.cache / archive.sha256 / name

    def _fetched(self, name: str, archive: Archive) -> Path:
        import http.client  # here, as in _download: seldom needed, and it costs time at each start

        target = self._cached(name, archive)
        temporary = target.with_name(f".{name}.{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    _download(archive, name, file)
                    file.flush()
                    os.fsync(file.fileno())
                _verify(temporary, archive, archive.url, _remedy(name))
                temporary.replace(target)  # two fetches at once: both are right, the last one stays
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError, time-outs, a full disk: OSErrors
            what = f"{name} is not on this machine and cannot be fetched"
            raise PrerequisiteError(f"{what} from {archive.url} into {self.cache}: {error}", _remedy(name)) from error
        return target


def read_members(path: Path, names: Sequence[str], max_bytes: int = MAX_BYTES) -> list[bytes]:
    """The content of members of a tar archive, by exact name or './' and the name. Nothing is written to disk.

    Args:
        path: the archive.
        names: its members to read: regular files.
        max_bytes: the most that the archive may unpack to.

    Raises:
        SpecError: it is no tar archive, damaged, too large, or lacks such a member.
    """
    try:
        # Unpacked first, within the limit: whatever a header claims, tarfile cannot read more than there is.
        with tarfile.open(fileobj=_unpacked(path, max_bytes), mode="r:") as tar:
            members: list[tarfile.TarInfo] = []
            for member in tar:
                members.append(member)
                if len(members) > _MAX_MEMBERS:
                    raise SpecError(f"{path} has more than {_MAX_MEMBERS} members")
            return [_content(path, tar, members, name) for name in names]
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError) as error:
        raise SpecError(f"{path} cannot be read as a tar archive: {error}") from error


def _verify(path: Path, archive: Archive, shown: str, remedy: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
    except OSError as error:
        raise PrerequisiteError(f"{shown} cannot be read: {error.strerror}", remedy) from error
    if found != archive.sha256:
        sizes = f"{size_bytes} bytes, expected {archive.size_bytes}"
        what = f"{shown} is not the archive that the entry means: its sha256 is {found}, not {archive.sha256} ({sizes})"
        raise PrerequisiteError(what, remedy)


def _download(archive: Archive, name: str, file: BinaryIO) -> None:
    import urllib.error
    import urllib.request as web

    # Not build_opener: its handlers would follow a redirect to ftp://.
    opener = web.OpenerDirector()
    for handler in (
        web.ProxyHandler,
        web.HTTPHandler,
        web.HTTPSHandler,
        web.HTTPRedirectHandler,
        web.HTTPErrorProcessor,
        web.HTTPDefaultErrorHandler,
        web.UnknownHandler,
    ):
        opener.add_handler(handler())
    try:
        answer = opener.open(archive.url, timeout=_NETWORK_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise
    with answer, Progress(archive.size_bytes, f"fetching {name}", "bytes") as bar:
        read_bytes = 0
        while chunk := answer.read(_CHUNK_BYTES):
            read_bytes += len(chunk)
            if read_bytes > archive.size_bytes:
                what = f"{archive.url} is larger than the {archive.size_bytes} bytes that the entry says"
                raise PrerequisiteError(what, _remedy(name))
            file.write(chunk)
            bar.update(len(chunk))


def _remedy(name: str) -> str:
    return f"put {name} into a folder and name it: --from DIR, or ORCHESTRATOR_ARCHIVES=DIR in the environment"


def _unpacked(path: Path, max_bytes: int) -> io.BytesIO:
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        module = next((module for magic, module in _COMPRESSIONS if head.startswith(magic)), None)
        buffer = io.BytesIO()
        with module.open(file) if module else file as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                buffer.write(chunk)
                if buffer.tell() > max_bytes:
                    raise SpecError(f"{path} unpacks to more than the {max_bytes} bytes that are read")
    buffer.seek(0)
    return buffer


def _content(path: Path, tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo], name: str) -> bytes:
    found = [member for member in members if member.name in (name, f"./{name}")]
    if len(found) != 1:
        names = ", ".join(repr(member.name) for member in members[:12])
        how = f"has {len(found)} members" if found else "has no member"
        raise SpecError(f"{path} {how} {name!r}{did_you_mean(name, [m.name for m in members])}", f"it has {names}")
    # A sparse member is a regular file to tarfile, and may claim any size.
    stream = tar.extractfile(found[0]) if found[0].isreg() and not found[0].issparse() else None
    if stream is None:
        raise SpecError(f"{path}: {name!r} is not a plain file")
    return stream.read()
