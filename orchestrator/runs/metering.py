"""What a stage takes: time; and a training of the machine: memory of its processes, memory and energy of its GPUs.

Covered: resident memory of the child and all its descendants; NVIDIA GPUs by nvidia-smi's own samples.
Not covered: what comes and goes between two samples; whose memory on a GPU it is (in a container that cannot be told);
energy of anything but GPUs; GPUs of other makers.
Leaves logs/gpu.csv where there are GPUs.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from orchestrator.errors import PrerequisiteError
from orchestrator.processes.process import Child, child_environment, start
from orchestrator.processes.process_tree import RUN_ENV
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Usage
from orchestrator.runs.rundir import RunDir

EVERY_S = 2.0
_COLUMNS = "timestamp,index,memory.used,power.draw"
_LONGEST_GAP_S = 30.0  # between two samples; a longer one is a clock that was set, or a machine that slept


class Meter:
    """Measures for the length of a block; call `sample` with the child now and then."""

    def __init__(
        self, run: RunDir, devices: Sequence[str], *, every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Measure nothing yet.

        Args:
            run: where the GPUs' samples go.
            devices: the GPUs, as nvidia-smi names them; none: no GPU is looked at.
            every_s: seconds between two samples.
            clock: seconds.
        """
        self._run, self._devices, self._every_s, self._clock = run, devices, every_s, clock
        self._due = 0.0
        self._peak_rss_bytes: int | None = None
        self._gpus: Child | None = None

    def __enter__(self) -> Self:
        if self._devices:
            query = [f"--query-gpu={_COLUMNS}", "--format=csv,noheader,nounits", f"--id={','.join(self._devices)}"]
            with suppress(PrerequisiteError):  # no nvidia-smi: no NVIDIA driver
                self._gpus = start(
                    ["nvidia-smi", *query, f"--loop-ms={round(self._every_s * 1000)}"],
                    log=self._run.gpu_log,
                    cwd=self._run.path,
                    env=child_environment(Path("nvidia-smi"), {RUN_ENV: str(self._run.path)}),
                    death_signal=signal.SIGKILL,
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gpus is not None:
            self._gpus.stop(1)

    def sample(self, child: Child) -> None:
        """Take the memory of a child and of all that it has started, unless that was done just now."""
        if self._clock() < self._due:
            return
        self._due = self._clock() + self._every_s
        found = sum(_resident_bytes(child.pid))
        self._peak_rss_bytes = max(self._peak_rss_bytes or 0, found) or None

    def usage(self) -> Usage:
        """What was measured so far."""
        peaks, energy_j = ({}, None) if self._gpus is None else read_samples(_since(self._gpus))
        return Usage(
            every_s=self._every_s,
            peak_rss_bytes=self._peak_rss_bytes,
            gpu_peak_memory_mib=peaks,
            gpu_energy_j=energy_j,
        )


@contextmanager
def timed(run: RunDir, record: RunRecord, stage: str) -> Iterator[None]:
    """How long a stage takes, however it ends, in the record of the attempt."""
    began = time.monotonic()
    try:
        yield
    finally:
        taken_s = round(time.monotonic() - began, 3)
        record.note_attempt(run, stages_s={**record.attempts[-1].stages_s, stage: taken_s})


@contextmanager
def metered(run: RunDir, record: RunRecord, devices: Sequence[str]) -> Iterator[Meter]:
    """What a training takes of the machine, and of these GPUs, likewise."""
    with Meter(run, devices) as meter:
        try:
            yield meter
        finally:
            record.note_attempt(run, usage=meter.usage())


def read_samples(lines: Sequence[str]) -> tuple[dict[str, int], float | None]:
    """Peak memory of each GPU in MiB, and the energy of all together in joules, from nvidia-smi's lines.

    Energy is the mean power of two neighbouring samples over the time between them.
    """
    peaks: dict[str, int] = {}
    last: dict[str, tuple[datetime, float]] = {}
    energy_j: float | None = None
    for line in lines:
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 4 or not cells[1].isdecimal():
            continue  # a word of nvidia-smi's, or the line that it was writing when it was ended
        moment_text, gpu, memory, power_text = cells
        if memory.isdecimal():
            peaks[gpu] = max(peaks.get(gpu, 0), int(memory))
        try:
            moment, power_w = datetime.strptime(moment_text, "%Y/%m/%d %H:%M:%S.%f"), float(power_text)
        except ValueError:  # [N/A]: a GPU that does not tell its power
            continue
        if gpu in last:
            gap_s = (moment - last[gpu][0]).total_seconds()
            if 0 <= gap_s <= _LONGEST_GAP_S:
                energy_j = (energy_j or 0.0) + gap_s * (last[gpu][1] + power_w) / 2
        last[gpu] = moment, power_w
    return peaks, energy_j


def _since(child: Child) -> list[str]:
    """What a child has written."""
    with child.log.open("rb") as file:
        file.seek(child.log_start_bytes)
        return file.read().decode("utf-8", "replace").splitlines()


def _resident_bytes(pid: int) -> Iterator[int]:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:  # it ended
        return
    for process in family:
        with suppress(psutil.Error):
            yield process.memory_info().rss
