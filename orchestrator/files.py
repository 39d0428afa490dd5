"""Files: paths as a user wrote them, writing one atomically, the cache folder, what ships with the package."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 100_000_000


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename, fsync of the folder.

    A full disk, a kill or a power cut leaves the old file as it was.

    Raises:
        OSError: it could not be written; the old file is whole.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        error.filename = str(path)  # not the temporary file's: nobody knows that
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes files that only their owner reads
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk is found by write(), which knows no name
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def shipped(name: str) -> Path:
    """A folder that ships with the project (templates, dataset_info): in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def docs_folder() -> Path:
    """The pages of the documentation; they lie within the package."""
    return Path(__file__).resolve().parent / "docs"


def cache_folder() -> Path:
    """What can be made or fetched again: $ORCHESTRATOR_CACHE, or the user's cache folder."""
    import platformdirs

    given = os.environ.get("ORCHESTRATOR_CACHE")
    return expanded(given) if given else platformdirs.user_cache_path("orchestrator")


def expanded(path: str | Path) -> Path:
    """A path with ~ and ~user written out; one whose user is not known stays as it is, and there is no such file."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError


def resolved(path: Path) -> Path:
    """The path without links, absolute; a link that leads to itself stays as it is, and there is no such file."""
    return Path(os.path.realpath(path))


def json_mapping(path: Path) -> dict[str, Any] | None:
    """A file's JSON mapping; None where it is no such thing."""
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return None
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
