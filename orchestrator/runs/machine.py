"""What of a machine can change a run: its processor, its NVIDIA GPUs, their driver.

Covered: what /proc and nvidia-smi tell.
Not covered: GPUs of other makers; what LLaMA-Factory's torch sees of them.
Writes nothing.
"""

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


def gpus() -> list[str]:
    """Name and driver of each NVIDIA GPU."""
    answer = _nvidia_smi("--query-gpu=name,driver_version", "--format=csv,noheader")
    return [line.strip() for line in answer.splitlines() if line.strip()]


def driver_cuda() -> str | None:
    """The newest CUDA that the driver takes."""
    found = re.search(r"CUDA Version\s*:\s*([\d.]+)", _nvidia_smi())  # in the heading; no query has it
    return found[1] if found else None


def _nvidia_smi(*words: str) -> str:
    try:
        return run_short(["nvidia-smi", *words])
    except (PrerequisiteError, StageError):  # no NVIDIA driver on this machine
        return ""
