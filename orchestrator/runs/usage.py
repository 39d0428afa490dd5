"""What a run takes: time by stage, and of a training the peak memory of its processes, by samples."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from orchestrator.processes.process import Child
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Usage
from orchestrator.runs.rundir import RunDir
from orchestrator.text import duration, size

EVERY_S = 2.0


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
def metered(run: RunDir, record: RunRecord) -> Iterator[Callable[[Child], None]]:
    """Record the peak memory of a child and its descendants, however it ends; gives what the block calls to sample."""
    usage, due = Usage(every_s=EVERY_S), 0.0

    def sample(child: Child) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + EVERY_S
            usage.peak_rss_bytes = max(usage.peak_rss_bytes or 0, _resident_bytes(child.pid)) or None

    try:
        yield sample
    finally:
        record.note_attempt(run, usage=usage)


def usage_lines(record: RunRecord) -> list[str]:
    """What the attempts that have ended took together; nothing where none has."""
    ended = [(each.started_at, each.ended_at) for each in record.attempts if each.ended_at is not None]
    stages: dict[str, float] = {}
    for each in record.attempts:
        stages |= {stage: stages.get(stage, 0.0) + seconds for stage, seconds in each.stages_s.items()}
    lines = []
    if ended:
        # ended_at is cut to seconds
        total_s = max(sum((end - start).total_seconds() for start, end in ended), sum(stages.values()))
        attempts = f" in {len(ended)} attempts" if len(ended) > 1 else ""
        parts = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in stages.items())
        lines.append(f"took {duration(total_s)}{attempts}" + (f": {parts}" if parts else ""))
    tokens = record.training.tokens_seen if record.training is not None else None
    peak_bytes = max((each.usage.peak_rss_bytes or 0 for each in record.attempts if each.usage), default=0)
    known = [f"{tokens} input tokens"] if tokens is not None else []
    known += [f"peak memory {size(peak_bytes)}"] if peak_bytes else []
    return [*lines, f"training: {', '.join(known)}"] if known else lines


def _resident_bytes(pid: int) -> int:
    total = 0
    with suppress(psutil.Error):  # it ended
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += each.memory_info().rss
    return total
