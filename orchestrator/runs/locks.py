"""One training or server of ours at a time on each device of a machine: a lock per device.

A training's watcher holds its locks on after a kill. A device is an entry of CUDA_VISIBLE_DEVICES, by number where
nvidia-smi knows it. The files are in /tmp/orchestrator-<uid>/ or $ORCHESTRATOR_LOCKS, not in $XDG_RUNTIME_DIR: that is
emptied when the user logs out, while detached runs continue.
"""

import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import PrerequisiteError
from orchestrator.files import expanded, try_lock
from orchestrator.runs.gpus import gpu_numbers
from orchestrator.runs.rundir import RunDir

PATIENCE_S = 2.0  # for a run that has recorded its end, and is about to exit
POLL_S = 0.5
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC


def devices_of(named: Sequence[str | None], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The devices that a run uses, by CUDA_VISIBLE_DEVICES of each part of it; None: as in the environment, or all."""
    found: set[str] = set()
    for each in named:
        value = each if each is not None else environment.get("CUDA_VISIBLE_DEVICES")
        entries = list(gpu_numbers().values()) if value is None else [entry.strip() for entry in value.split(",")]
        for entry in entries:
            if entry in ("", "-1"):  # CUDA sees none from there on
                break
            numbers = gpu_numbers().items() if entry.startswith("GPU-") else ()  # a UUID, or the beginning of one
            found.add(next((number for uuid, number in numbers if uuid.startswith(entry)), entry))
    return sorted(found)


@contextmanager
def hold_devices(
    devices: Sequence[str], run: RunDir | None, *, on_wait: Callable[[str], None] | None = None
) -> Iterator[list[int]]:
    """Hold some devices, all or none, for the length of the block; gives the open files, which a child may hold on.

    run: named to others; None: only to see whether the devices are free. on_wait: wait as long as it takes, and call
    this with what holds them; None: don't wait. Raises PrerequisiteError: another run holds one; or the folder of the
    locks is not ours alone, or has no locks.
    """
    if not devices:
        yield []
        return
    with folder_open() as folder:
        files = _lock_all(folder, [_lock_name(device) for device in devices], on_wait)
        try:
            for file in files if run is not None else []:
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps({"run": str(run.path) if run else "", "pid": os.getpid()}).encode(), 0)
            yield [folder, *files]
        finally:
            _close(files)


def is_free(device: str) -> bool:
    """Whether nobody holds a device at this moment."""
    return not busy_devices([_lock_name(device)])


def busy_devices(names: Sequence[str] | None = None) -> list[str]:
    """Each device that is held, and by which run: 'device 0 (run RUN of WORKSPACE, process 123)'."""
    found = []
    with folder_open() as folder:
        for name in sorted(path.name for path in lock_folder().glob("gpu-*.lock")) if names is None else names:
            files, taken = _try_all(folder, [name])
            _close(files)
            found += [] if taken is None else [_holder(folder, taken)]
    return found


@contextmanager
def folder_open() -> Iterator[int]:
    """The folder of the locks; PrerequisiteError where others may write there: /tmp is everybody's."""
    path = lock_folder()
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    folder = -1
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _OPEN)
        found = os.fstat(folder)
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise _unusable("others may write there")
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # systemd-tmpfiles clears /tmp of what is not locked
    except OSError as error:
        raise _unusable(error.strerror) from error
    try:
        yield folder
    finally:
        os.close(folder)


def lock_folder() -> Path:
    given = os.environ.get("ORCHESTRATOR_LOCKS")
    return expanded(given) if given else Path(f"/tmp/orchestrator-{os.getuid()}")


def _unusable(reason: str | None) -> PrerequisiteError:
    remedy = "remove it, or name another folder, on a local disk, in ORCHESTRATOR_LOCKS"
    return PrerequisiteError(f"{lock_folder()} cannot be the folder of the locks: {reason}", remedy)


def _lock_name(device: str) -> str:
    return f"gpu-{_UNSAFE.sub('-', device)[:80]}.lock"


def _lock_all(folder: int, names: Sequence[str], on_wait: Callable[[str], None] | None) -> list[int]:
    """All the locks or none, so that no two runs wait for each other's."""
    deadline = time.monotonic() + PATIENCE_S
    waits_for = ""
    while True:
        files, taken = _try_all(folder, names)
        if taken is None:
            return files
        holder = _holder(folder, taken)
        if on_wait is not None and holder != waits_for:
            on_wait(holder)
            waits_for = holder
        elif on_wait is None and time.monotonic() > deadline:
            raise PrerequisiteError(
                f"{holder} is in use",
                "wait for its end with --wait; end it with orchestrator stop; or take another device: "
                """--set 'compute.devices="N"'""",
            )
        time.sleep(POLL_S)


def _try_all(folder: int, names: Sequence[str]) -> tuple[list[int], str | None]:
    files: list[int] = []
    try:
        for name in names:
            files.append(os.open(name, os.O_RDWR | os.O_CREAT | _OPEN, 0o600, dir_fd=folder))
            if not try_lock(files[-1]):
                _close(files)
                return [], name
    except (OSError, PrerequisiteError) as error:
        _close(files)
        raise _unusable(str(error)) from error
    return files, None


def _holder(folder: int, name: str) -> str:
    device = name.removeprefix("gpu-").removesuffix(".lock")
    try:
        with os.fdopen(os.open(name, os.O_RDONLY | _OPEN, dir_fd=folder), "rb") as stream:
            owner = json.loads(stream.read(10_000))
        path = Path(owner["run"])
        return f"device {device} (run {path.name} of {path.parent.parent}, process {int(owner['pid'])})"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written
        return f"device {device}"


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
