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
    return _nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader").splitlines()


def gpu_numbers() -> dict[str, str]:
    """UUID -> number of each GPU."""
    lines = _nvidia_smi("--query-gpu=uuid,index", "--format=csv,noheader").splitlines()
    return {uuid.strip(): number.strip() for uuid, _, number in (line.partition(",") for line in lines)}


def driver_cuda() -> str | None:
    """The newest CUDA that the driver supports."""
    found = re.search(r"CUDA Version\s*:\s*([\d.]+)", _nvidia_smi())  # in the heading; no query has it
    return found[1] if found else None


def _nvidia_smi(*options: str) -> str:
    try:
        return run_short(["nvidia-smi", *options]).strip()
    except (PrerequisiteError, StageError):  # no NVIDIA driver on this machine
        return ""
