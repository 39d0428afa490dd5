"""Files: paths as a user wrote them, atomic writes, bounded reads, locks, hashes, the cache folder, shipped files."""

import fcntl
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError

MAX_JSON_BYTES = 100_000_000


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step; a full disk (OSError), a kill or a power cut leaves the old one as it was."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk has no name, and the temporary one means nothing to a user
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_file(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file that may come from somebody else.

    Raises FileNotFoundError; PrerequisiteError: no regular file (a pipe would block), too large, or unreadable.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise PrerequisiteError(f"{path} cannot be read: it is no regular file")
        if found.st_size > max_bytes:
            raise PrerequisiteError(f"{path} cannot be read: it has {found.st_size:,} bytes, over {max_bytes:,}")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """A file's JSON value. Raises as read_file; PrerequisiteError where it is no JSON."""
    try:
        return json.loads(read_file(path, max_bytes))
    except (ValueError, RecursionError) as error:
        raise PrerequisiteError(f"{path} cannot be read: no JSON: {error}") from error


def json_mapping(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
    """A file's JSON mapping; None where there is no such file or it holds something else."""
    try:
        value = read_json(path, max_bytes)
    except (OSError, PrerequisiteError):
        return None
    return value if isinstance(value, dict) else None


def try_lock(descriptor: int, path: Path | str = "a file", *, wait: bool = False, shared: bool = False) -> bool:
    """Lock an open file (flock) until the last process that has it open ends; False where another one holds the lock.

    Raises PrerequisiteError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise PrerequisiteError(
            f"{path} cannot be locked: {error.strerror}. Without locks two processes would write into one run",
            "put the workspace on a file system with locks: a local disk, or NFS mounted without nolock",
        ) from error
    return True


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file, made where there is none, for the length of the block; waits for other holders."""
    with path.open("a") as file:
        try_lock(file.fileno(), path, wait=True)
        yield


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes, in hex; OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of plain JSON values, in hex; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def shipped(name: str) -> Path:
    """A folder that ships with the project (templates, dataset_info, docs): in the package, or beside it."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parent / name


def cache_folder() -> Path:
    """What can be made or fetched again: $ORCHESTRATOR_CACHE, or the user's cache folder."""
    import platformdirs

    given = os.environ.get("ORCHESTRATOR_CACHE")
    return expanded(given) if given else platformdirs.user_cache_path("orchestrator")


def expanded(path: str | Path) -> Path:
    """A path with ~ and ~user written out; that of an unknown user stays as it is, and no file has it."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError


def resolved(path: Path) -> Path:
    """The absolute path without links; a link to itself stays as it is, and no file has it."""
    return Path(os.path.realpath(path))
