"""One training or server of ours at a time on each device of a machine.

Covered: a lock per device, which the kernel frees with the last process that holds it, however that ends; who holds
one, told to those who want it too; waiting. A device is an entry of CUDA_VISIBLE_DEVICES, by number where nvidia-smi
knows it; where nothing names devices, all that nvidia-smi lists. On a machine without any nothing is locked.
Not covered: programs of others, other users' runs, other machines.
Leaves lock files in /tmp/orchestrator-<uid>/, or in $ORCHESTRATOR_LOCKS. Not in $XDG_RUNTIME_DIR: that is emptied when
the user logs out, while detached runs go on.
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

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.files import expanded
from orchestrator.processes.process import run_short
from orchestrator.runs.rundir import RunDir

PATIENCE_S = 2.0  # for a run that has just said that it ended, and is about to
POLL_S = 0.5
_WORD = re.compile(r"[^A-Za-z0-9._-]")


def devices_of(named: Sequence[str | None], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The devices that a run uses.

    Args:
        named: CUDA_VISIBLE_DEVICES of each part of it; None: as in the environment.
        environment: ours.
    """
    found: set[str] = set()
    for each in named:
        value = each if each is not None else environment.get("CUDA_VISIBLE_DEVICES")
        entries = _listed() if value is None else [word.strip() for word in value.split(",")]
        for entry in entries:
            if entry in ("", "-1"):  # CUDA sees none from there on
                break
            found.add(_number(entry))
    return sorted(found)


@contextmanager
def held(
    devices: Sequence[str], run: RunDir | None, *, on_wait: Callable[[str], None] | None = None
) -> Iterator[list[int]]:
    """Hold some devices for the length of the block; gives the open files, which a child may hold on.

    Args:
        devices: as devices_of gives them.
        run: the run that they are for, named to others; None: only to see whether they are free.
        on_wait: wait for as long as it takes, and tell this what for; None: don't.

    Raises:
        PrerequisiteError: another run holds one; or the folder of the locks is not ours alone, or has no locks.
    """
    if not devices:
        yield []
        return
    files: list[int] = []
    try:
        folder = _open_folder(lock_folder())
        files.append(folder)
        locked = _lock_all(folder, [_lock_name(device) for device in devices], on_wait)
        files += locked
        for file in locked if run is not None else []:
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({"run": str(run.path) if run else "", "pid": os.getpid()}).encode(), 0)
        yield files
    finally:
        for file in files:
            os.close(file)


def is_free(device: str) -> bool:
    """Whether nobody holds a device at this moment.

    Raises:
        PrerequisiteError: as `held`.
    """
    with folder_open() as folder:
        locked, taken = _try_all(folder, [_lock_name(device)])
        for file in locked:
            os.close(file)
        return taken is None


def held_now() -> list[str]:
    """Each device that is held, and by which run: 'device 0 (run RUN of WORKSPACE, process 123)'."""
    found = []
    with folder_open() as folder:
        for path in sorted(lock_folder().glob("gpu-*.lock")):
            files, taken = _try_all(folder, [path.name])
            for file in files:
                os.close(file)
            found += [] if taken is None else [_said_in(folder, taken)]
    return found


@contextmanager
def folder_open() -> Iterator[int]:
    """The folder of the locks, made where there is none.

    Raises:
        PrerequisiteError: it is not ours alone.
    """
    folder = _open_folder(lock_folder())
    try:
        yield folder
    finally:
        os.close(folder)


def lock_folder() -> Path:
    given = os.environ.get("ORCHESTRATOR_LOCKS")
    return expanded(given) if given else Path(f"/tmp/orchestrator-{os.getuid()}")


def _lock_name(device: str) -> str:
    return f"gpu-{_WORD.sub('-', device)[:80]}.lock"


def _open_folder(path: Path) -> int:
    """The folder, made by us and for us alone: /tmp is everybody's, and a lock of another's making is none."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    remedy = "remove it, or name another folder in ORCHESTRATOR_LOCKS"
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be the folder of the locks: {error.strerror}", remedy) from error
    found = os.fstat(folder)
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        os.close(folder)
        raise PrerequisiteError(f"{path} cannot be the folder of the locks: others may write there", remedy)
    with suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # systemd-tmpfiles clears /tmp, but not what is locked
    return folder


def _lock_all(folder: int, names: Sequence[str], on_wait: Callable[[str], None] | None) -> list[int]:
    """All the locks or none, so that two that wait for each other's cannot be."""
    deadline = time.monotonic() + PATIENCE_S
    said = ""
    while True:
        locked, taken = _try_all(folder, names)
        if taken is None:
            return locked
        who = _said_in(folder, taken)
        if on_wait is not None and who != said:
            on_wait(who)
            said = who
        elif on_wait is None and time.monotonic() > deadline:
            raise PrerequisiteError(
                f"{who} is in use",
                "wait for its end with --wait; end it with orchestrator stop; or take another device: "
                """--set 'compute.devices="N"'""",
            )
        time.sleep(POLL_S)


def _try_all(folder: int, names: Sequence[str]) -> tuple[list[int], str | None]:
    """The locks, or none and the name of one that is taken."""
    locked: list[int] = []
    try:
        for name in names:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            locked.append(os.open(name, flags, 0o600, dir_fd=folder))
            fcntl.flock(locked[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        for file in locked:
            os.close(file)
        return [], names[len(locked) - 1]
    except OSError as error:
        for file in locked:
            os.close(file)
        raise PrerequisiteError(
            f"{lock_folder()} cannot hold a lock: {error.strerror}",
            "ORCHESTRATOR_LOCKS names a folder on a local disk",
        ) from error
    return locked, None


def _said_in(folder: int, name: str) -> str:
    """'device 0 (run RUN of WORKSPACE, process 123)'."""
    device = name.removeprefix("gpu-").removesuffix(".lock")
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(file, "rb") as stream:
            said = json.loads(stream.read(10_000))
        path = Path(said["run"])
        return f"device {device} (run {path.name} of {path.parent.parent}, process {int(said['pid'])})"
    except (OSError, ValueError, KeyError, TypeError):  # it is written just now
        return f"device {device}"


def _listed() -> list[str]:
    """The devices of this machine, by number."""
    return list(_numbers().values())


def _number(entry: str) -> str:
    """A device's number where it was named by its UUID, or by the beginning of that."""
    if not entry.startswith("GPU-"):
        return entry
    return next((number for uuid, number in _numbers().items() if uuid.startswith(entry)), entry)


def _numbers() -> dict[str, str]:
    """UUID -> number."""
    try:
        answer = run_short(["nvidia-smi", "--query-gpu=uuid,index", "--format=csv,noheader"])
    except (PrerequisiteError, StageError):  # no NVIDIA driver on this machine
        return {}
    pairs = [line.split(",") for line in answer.splitlines()]
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
