"""The hash of every byte of a model's weights, which for large ones takes a while: so what was hashed is kept.

Covered: a file that has the path, size, time of change and inode that it had is not read again.
Not covered: files that were changed and given their old time back; configuration and tokenizer (model_files.py).
Leaves hashes/ in the cache.
"""

import hashlib
import json
from pathlib import Path

from orchestrator.errors import PrerequisiteError
from orchestrator.files import atomic_write, cache_folder
from orchestrator.models.model_files import weight_files
from orchestrator.processes.progress import Progress

_CHUNK_BYTES = 1 << 22


def model_full_sha256(folder: Path) -> str:
    """Hash of the weights that transformers would load, by name.

    Raises:
        PrerequisiteError: one cannot be read.
    """
    parts = {path.name: _file_sha256(path) for path in weight_files(folder)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    try:
        path = path.resolve(strict=True)  # in the hub's cache a link to what has its hash as its name
        found = path.stat()
        state = [str(path), found.st_size, found.st_mtime_ns, found.st_ino]
        kept = (
            cache_folder() / "hashes" / f"{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()}.json"
        )
        if (known := _kept(kept, state)) is not None:
            return known
        digest = _digest(path, found.st_size)
        again = path.stat()
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error
    if (again.st_size, again.st_mtime_ns, again.st_ino) != (found.st_size, found.st_mtime_ns, found.st_ino):
        raise PrerequisiteError(f"{path} was written to while it was read", "wait until that has ended")
    kept.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(kept, json.dumps({"state": state, "sha256": digest}))
    return digest


def _digest(path: Path, size_bytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, Progress(size_bytes >> 20, f"hashing {path.name}", "MiB") as bar:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update((file.tell() >> 20) - bar.count)
    return digest.hexdigest()


def _kept(path: Path, state: list[object]) -> str | None:
    try:
        found = json.loads(path.read_bytes())
        return str(found["sha256"]) if found["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or a torn one: read the file again
        return None
