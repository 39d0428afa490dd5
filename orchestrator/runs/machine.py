"""This machine: its processor, its NVIDIA GPUs with a lock on each, and its rank where several train together.

The locks are in /tmp/orchestrator-<uid>/ or $ORCHESTRATOR_LOCKS, not in $XDG_RUNTIME_DIR: that is emptied when the
user logs out, while detached runs continue. A training's watcher holds its locks on after a kill.
"""

import json
import logging
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.files import expanded, try_lock
from orchestrator.processes.process import run_short
from orchestrator.runs.record_parts import PeakMemory
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.compute_spec import ComputeSpec

log = logging.getLogger("orchestrator")

PATIENCE_S = 2.0  # for a run that has recorded its end, and is about to exit
POLL_S = 0.5
_broken: set[str] = set()  # an nvidia-smi that failed is left alone: a training calls it every few seconds


@dataclass(frozen=True)
class Machine:
    """One of several nodes that train together, each launched by hand; rank 0 writes the results."""

    rank: int | None  # None: neither the spec nor NODE_RANK says it
    count: str
    rendezvous: str  # ADDRESS:PORT

    @property
    def name(self) -> str:
        return f"one of {self.count}" if self.rank is None else f"rank {self.rank} of {self.count}"


def this_machine(compute: ComputeSpec, environment: Mapping[str, str]) -> Machine | None:
    """This node among those of a training, by the spec or else NODE_RANK; None where it trains alone."""
    count = str(compute.nnodes or 1)
    if count == "1":
        return None
    rank = compute.node_rank
    if rank is None and environment.get("NODE_RANK", "").isdecimal():
        rank = int(environment["NODE_RANK"])
    return Machine(rank, count, f"{compute.master_addr}:{compute.master_port}")


def own_ranks(compute: ComputeSpec, machine: Machine | None) -> range | None:
    """The processes of a training that run on this one of its nodes; None where that is not known."""
    size = compute.nproc_per_node
    if machine is None or machine.rank is None or size is None:
        return None
    return range(machine.rank * size, (machine.rank + 1) * size)


def processor() -> str:
    """'Intel(R) Xeon(R) Platinum 8481C, 2 threads': its name, and the threads that we may use."""
    found = None
    with suppress(OSError):  # no Linux
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{found[1].strip() if found else platform.machine()}, {threads} threads"


def gpu_names() -> list[str]:
    """Name and driver of each GPU: 'NVIDIA H100 80GB HBM3, 550.54'."""
    return _nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader").splitlines()


def peak_memory(before: PeakMemory, pid: int, environment: Mapping[str, str]) -> PeakMemory:
    """The peaks of a training, which is process `pid` and what that has started, with what it uses now."""
    now = before.model_copy(deep=True)
    with suppress(psutil.Error):  # one of them has just ended
        leader = psutil.Process(pid)
        resident = sum(each.memory_info().rss for each in [leader, *leader.children(recursive=True)])
        now.peak_rss_bytes = max(now.peak_rss_bytes or 0, resident)
    lines = _nvidia_smi("--query-gpu=index,memory.used", "--format=csv,noheader,nounits").splitlines()
    shown = devices_of([None], environment) if lines else ()
    for number, _, used in (line.replace(" ", "").partition(",") for line in lines):
        if number in shown and used.isdecimal():
            now.gpu_peak_memory_mib[number] = max(now.gpu_peak_memory_mib.get(number, 0), int(used))
    return now


def driver_cuda() -> str | None:
    """The newest CUDA that the driver supports."""
    found = re.search(r"CUDA Version\s*:\s*([\d.]+)", _nvidia_smi())  # in the heading; no query has it
    return found[1] if found else None


def devices_of(named: Sequence[str | None], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The devices that a run uses, by CUDA_VISIBLE_DEVICES of each part of it; None: as in the environment, or all."""
    values = [each if each is not None else environment.get("CUDA_VISIBLE_DEVICES") for each in named]
    numbers: dict[str, str] = {}  # UUID -> number
    if any(value is None or "GPU-" in value for value in values):
        lines = _nvidia_smi("--query-gpu=uuid,index", "--format=csv,noheader").splitlines()
        numbers = {uuid.strip(): number.strip() for uuid, _, number in (line.partition(",") for line in lines)}
    found: set[str] = set()
    for value in values:
        for entry in numbers.values() if value is None else map(str.strip, value.split(",")):
            if entry in ("", "-1"):  # CUDA sees none from there on
                break
            is_uuid = entry.startswith("GPU-")  # or the beginning of one
            found.add(next((numbers[uuid] for uuid in numbers if is_uuid and uuid.startswith(entry)), entry))
    return sorted(found)


@contextmanager
def hold_devices(
    devices: Sequence[str], run: RunDir | None, *, on_wait: Callable[[str], None] | None = None
) -> Iterator[list[int]]:
    """Hold some devices, all or none, for the length of the block; gives the open files, which a child may hold on.

    run: named to others; None: only to see whether the devices are free. on_wait: wait as long as it takes, and call
    this with what holds them. Raises PrerequisiteError: another run holds one, or others may write to the locks.
    """
    if not devices:
        yield []
        return
    files = [os.open(lock_folder(), os.O_RDONLY)]
    try:
        try_lock(files[0], shared=True)  # systemd-tmpfiles clears /tmp of what is not locked
        files += _lock_all([_lock_file(device) for device in devices], on_wait)
        for file in files[1:] if run is not None else []:
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({"run": str(run.path) if run else "", "pid": os.getpid()}).encode(), 0)
        yield files
    finally:
        for file in files:
            os.close(file)


def is_free(device: str) -> bool:
    if (file := _lock(_lock_file(device))) is not None:
        os.close(file)
    return file is not None


def busy_devices() -> list[str]:
    """Each device that is held, and by which run: 'device 0 (run RUN of WORKSPACE, process 123)'."""
    found = sorted(lock_folder().glob("gpu-*.lock"))
    return [_holder(path) for path in found if not is_free(path.stem.removeprefix("gpu-"))]


def lock_folder() -> Path:
    """The folder of the locks, made if need be; PrerequisiteError where others may write there: /tmp is everybody's."""
    given = os.environ.get("ORCHESTRATOR_LOCKS")
    path = expanded(given) if given else Path(f"/tmp/orchestrator-{os.getuid()}")
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        remedy = "remove it, or name another folder, on a local disk, in ORCHESTRATOR_LOCKS"
        raise PrerequisiteError(f"{path} cannot be the folder of the locks: others may write there", remedy)
    return path


def _lock_file(device: str) -> Path:
    return lock_folder() / f"gpu-{re.sub('[^A-Za-z0-9._-]', '-', device)[:80]}.lock"


def _lock_all(paths: Sequence[Path], on_wait: Callable[[str], None] | None) -> list[int]:
    """All the locks or none, so that no two runs wait for each other's."""
    deadline = time.monotonic() + PATIENCE_S
    waits_for = ""
    while True:
        files = [_lock(path) for path in paths]
        held = [file for file in files if file is not None]
        if len(held) == len(paths):
            return held
        for file in held:
            os.close(file)
        holder = _holder(paths[files.index(None)])
        if on_wait is not None and holder != waits_for:
            on_wait(holder)
            waits_for = holder
        elif on_wait is None and time.monotonic() > deadline:
            remedy = "wait for it with --wait; end it with orchestrator stop; or take another: "
            raise PrerequisiteError(f"{holder} is in use", remedy + """--set 'compute.devices="N"'""")
        time.sleep(POLL_S)


def _lock(path: Path) -> int | None:
    """The locked file; None where another process holds it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if try_lock(file, path):
        return file
    os.close(file)
    return None


def _holder(path: Path) -> str:
    device = path.stem.removeprefix("gpu-")
    try:
        owner = json.loads(path.read_bytes())
        run = Path(owner["run"])
        return f"device {device} (run {run.name} of {run.parent.parent}, process {int(owner['pid'])})"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written
        return f"device {device}"


def _nvidia_smi(*options: str) -> str:
    program = shutil.which("nvidia-smi") or ""
    if program in _broken:
        return ""
    try:
        return run_short(["nvidia-smi", *options]).strip()
    except PrerequisiteError:  # no NVIDIA driver on this machine
        return ""
    except StageError as error:
        log.warning("nvidia-smi fails, so no GPU is known: %s", error.message)
        _broken.add(program)
        return ""
