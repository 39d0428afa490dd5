"""Whether a file system keeps what runs depend on: locks that exclude, files that are replaced whole.

Covered: tried out, in a folder of its own that is gone again; what kind of file system it is.
Not covered: other hosts. On NFS that is mounted with nolock or local_lock, locks exclude on one host only.
"""

import fcntl
import os
import tempfile
from pathlib import Path

import psutil

from orchestrator.files import atomic_write

PROBE = ".probe-"


def storage_problem(folder: Path) -> str | None:
    """Why runs cannot be kept in a folder, in a sentence; None where they can."""
    try:
        with tempfile.TemporaryDirectory(prefix=PROBE, dir=folder) as name:
            return _rename_problem(Path(name) / "file") or _lock_problem(Path(name) / "lock")
    except OSError as error:
        return f"it cannot be written to: {error.strerror}"


def file_system(folder: Path) -> tuple[str, str]:
    """Its type and the options it was mounted with: ('ext4', 'rw,relatime'); ('', '') where that cannot be told."""
    path = folder.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    found = max(mounts, key=lambda part: len(part.mountpoint), default=None)
    return (found.fstype, found.opts) if found else ("", "")


def _rename_problem(path: Path) -> str | None:
    try:
        for content in ("old", "new"):
            atomic_write(path, content)
    except OSError as error:
        return f"a file cannot be replaced as a whole there: {error.strerror}"
    return None if path.read_text() == "new" else "a file that was replaced is the old one still"


def _lock_problem(path: Path) -> str | None:
    files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o600) for _ in range(2)]
    try:
        fcntl.flock(files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(files[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        return f"it has no locks: {error.strerror}"
    finally:
        for file in files:
            os.close(file)
    return "its locks do not exclude: two have one at the same time"
