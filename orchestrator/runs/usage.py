"""What a run takes: time by stage, and of a training the peak memory of its processes and GPUs, by samples."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

from orchestrator.processes.process import Child
from orchestrator.runs.gpus import gpu_memory_mib
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Usage
from orchestrator.runs.rundir import RunDir
from orchestrator.text import duration, size

EVERY_S = 2.0
GPUS_EVERY_S = 30.0  # nvidia-smi takes a second where no other program keeps the driver loaded


class Meter:
    """The peak memory of a child and its descendants, and of some GPUs, whoever uses these."""

    def __init__(self, devices: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        """Measure nothing yet. Devices are GPUs as nvidia-smi names them; without any no GPU is looked at."""
        self._devices, self._clock = list(devices), clock
        self._due = self._gpus_due = 0.0
        self.usage = Usage(every_s=EVERY_S)

    def sample(self, child: Child) -> None:
        """Look once, unless that was done just now."""
        if self._clock() >= self._due:
            self._due = self._clock() + EVERY_S
            resident = sum(_resident_bytes(child.pid))
            self.usage.peak_rss_bytes = max(self.usage.peak_rss_bytes or 0, resident) or None
        if self._devices and self._clock() >= self._gpus_due:
            found = gpu_memory_mib(self._devices)
            self._gpus_due = self._clock() + GPUS_EVERY_S
            _raise_to(self.usage.gpu_peak_memory_mib, found)
            if not found:
                self._devices = []  # no NVIDIA driver, or one that does not tell


@contextmanager
def timed(run: RunDir, record: RunRecord, stage: str) -> Iterator[None]:
    """Record how long a stage of the current attempt takes, however it ends."""
    began = time.monotonic()
    try:
        yield
    finally:
        taken_s = round(time.monotonic() - began, 3)
        record.note_attempt(run, stages_s={**record.attempts[-1].stages_s, stage: taken_s})


@contextmanager
def metered(run: RunDir, record: RunRecord, devices: Sequence[str]) -> Iterator[Meter]:
    """Record the memory of a training, sampled by the block, however it ends."""
    meter = Meter(devices)
    try:
        yield meter
    finally:
        record.note_attempt(run, usage=meter.usage)


def usage_lines(record: RunRecord) -> list[str]:
    """What the attempts that have ended took together; nothing where none has."""
    return [line for line in (_times(record), _training(record)) if line]


def _times(record: RunRecord) -> str:
    ended = [(each.started_at, each.ended_at) for each in record.attempts if each.ended_at is not None]
    stages: dict[str, float] = {}
    for each in record.attempts:
        for stage, seconds in each.stages_s.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    if not ended:
        return ""
    total_s = max(sum((end - start).total_seconds() for start, end in ended), sum(stages.values()))  # ended_at is cut
    attempts = f" in {len(ended)} attempts" if len(ended) > 1 else ""
    parts = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in stages.items())
    return f"took {duration(total_s)}{attempts}" + (f": {parts}" if parts else "")


def _training(record: RunRecord) -> str:
    trained = [each for each in record.attempts if each.from_step is not None]
    usages = [each.usage for each in trained if each.usage is not None]
    parts = []
    if record.training is not None and record.training.tokens_seen is not None:
        parts.append(f"{record.training.tokens_seen} input tokens")
    if peak_bytes := max((usage.peak_rss_bytes or 0 for usage in usages), default=0):
        parts.append(f"peak memory {size(peak_bytes)}")
    gpus: dict[str, int] = {}
    for usage in usages:
        _raise_to(gpus, usage.gpu_peak_memory_mib)
    parts += [f"GPU {number} {size(mib << 20)}" for number, mib in gpus.items()]
    under_way = record.attempts[-1:] if record.is_active() else []
    unknown = [each for each in trained if each.usage is None and each not in under_way]
    if usages and unknown:
        parts.append(f"not measured in {len(unknown)} of {len(trained)} attempts")
    return f"training: {', '.join(parts)}" if parts else ""


def _raise_to(peaks: dict[str, int], found: dict[str, int]) -> None:
    peaks.update({name: max(peaks.get(name, 0), value) for name, value in found.items()})


def _resident_bytes(pid: int) -> Iterator[int]:
    try:
        process = psutil.Process(pid)
        processes = [process, *process.children(recursive=True)]
    except psutil.Error:  # it ended
        return
    for process in processes:
        with suppress(psutil.Error):
            yield process.memory_info().rss
