"""The processor, and the NVIDIA GPUs of this machine by nvidia-smi; a machine without it has none."""

import os
import platform
import re
from pathlib import Path

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.processes.process import run_short


def processor() -> str:
    """'Intel(R) Xeon(R) Platinum 8481C, 2 threads': its name, and the threads that we may use."""
    name = platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
        name = found[1].strip() if found else name
    except OSError:  # no Linux
        pass
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {threads} threads"


def gpu_names() -> list[str]:
    """Name and driver of each GPU: 'NVIDIA H100 80GB HBM3, 550.54'."""
    return _query("name,driver_version")


def gpu_numbers() -> dict[str, str]:
    """UUID -> number of each GPU."""
    return dict(_pair(line) for line in _query("uuid,index"))


def gpu_memory_mib(devices: list[str]) -> dict[str, int]:
    """Number -> memory in use, in MiB, of some GPUs; whoever uses it. Those that do not tell are left out."""
    pairs = [_pair(line) for line in _query("index,memory.used", f"--id={','.join(devices)}")] if devices else []
    return {number: int(used) for number, used in pairs if used.isdecimal()}


def driver_cuda() -> str | None:
    """The newest CUDA that the driver supports."""
    found = re.search(r"CUDA Version\s*:\s*([\d.]+)", _nvidia_smi())  # in the heading; no query has it
    return found[1] if found else None


def _query(columns: str, *options: str) -> list[str]:
    output = _nvidia_smi(f"--query-gpu={columns}", "--format=csv,noheader,nounits", *options)
    return [line.strip() for line in output.splitlines() if line.strip()]


def _pair(line: str) -> tuple[str, str]:
    first, _, second = line.partition(",")
    return first.strip(), second.strip()


def _nvidia_smi(*options: str) -> str:
    try:
        return run_short(["nvidia-smi", *options])
    except (PrerequisiteError, StageError):  # no NVIDIA driver on this machine
        return ""
