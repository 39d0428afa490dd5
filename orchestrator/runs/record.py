"""record.json: what ran, when, where, with which versions and hashes, and what came of it.

Reading it asks nobody: whether the owner of an unfinished run is still there is told by state.py.
"""

import json
import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from orchestrator.errors import PrerequisiteError
from orchestrator.files import atomic_write, lock, read_file
from orchestrator.runs.record_parts import STORED, Attempt, BenchmarkSummary, Facts, Request, Status, Training, damage
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.slurm import Job

SCHEMA_VERSION = 1
MAX_RECORD_BYTES = 32 << 20
ACTIVE: tuple[Status, ...] = ("queued", "preparing", "running", "trained", "benchmarking")
_ENDS: tuple[Status, ...] = ("failed", "stopped")
_BEGIN: tuple[Status, ...] = ("preparing", "queued")
TRANSITIONS: dict[Status, tuple[Status, ...]] = {
    "planned": (*_BEGIN, *_ENDS),
    "queued": (*_BEGIN, *_ENDS),
    "preparing": (*_BEGIN, "running", "trained", "benchmarking", "done", *_ENDS),
    "running": (*_BEGIN, "trained", *_ENDS),
    "trained": (*_BEGIN, "benchmarking", "done", *_ENDS),
    "benchmarking": (*_BEGIN, "done", *_ENDS),
    "done": _BEGIN,
    "failed": _BEGIN,
    "stopped": _BEGIN,
    "interrupted": _BEGIN,  # written by earlier versions
}
"""What may follow each status: a new attempt follows any, since its owner may have been killed. `interrupted` is never
written: a run reads so whose owner is gone."""


class RunRecord(BaseModel):
    """The state of a run and its history."""

    model_config = STORED

    schema_version: int = SCHEMA_VERSION
    id: str
    name: str
    status: Status = "preparing"
    error: str | None = None
    """Why it failed or stopped."""
    created_at: datetime
    ended_at: datetime | None = None
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    """Of the owner; it is alive only while the run's lock is held."""
    attempts: list[Attempt] = []
    """Each launch and resume, in order."""
    request: Request = Request()
    """What is left to do, and how: that of the launch, or of the last resume."""
    with_benchmarks: bool = True
    """Whether the spec's benchmarks belong to the run."""
    group: str | None = None
    """The id of the sweep that it belongs to."""
    values: list[str] = []
    """Its values of the sweep's axes, in their order."""
    job: Job | None = None
    """The Slurm job that carries it out, or did so last; None: a process of its own does."""
    benchmark_job: Job | None = None
    """The job that is to benchmark what this one trains."""
    stop_requested: bool = False
    """Whether `stop` was called: no job and no sweep resumes it by itself."""
    waits_for: str | None = None
    """What holds the devices that the run waits for."""
    model: str | None = None
    """The spec's model.name_or_path. None: it asks a server; or a record of an earlier version."""
    datasets: list[str] = []
    """Those that it trains on."""
    spec_file: str | None = None
    """The spec that was launched, as named on the command line."""
    spec_sha256: str
    overrides: list[str] = []
    """--set KEY=VALUE, in order."""
    rerun_of: str | None = None
    drift: list[str] = []
    """What differed from the run that this one repeats, before it started."""
    changed: list[str] = []
    """Of a rerun: data, model and versions that were changed by others while it ran."""
    verdict: str | None = None
    """Of a rerun: whether its losses are those of the run that it repeats, and the likely cause where not."""
    commands: dict[str, list[str]] = {}
    """Stage -> the command line that was run for it, in the run folder."""
    environment: dict[str, dict[str, str]] = {}
    """Stage -> the environment variables that we set for it; secrets left out."""
    seed: int
    facts: Facts = Facts()
    training: Training | None = None
    results_elsewhere: str | None = None
    """Of a training on several machines: which of them this is, and where its results are. None: here."""
    benchmarks: list[BenchmarkSummary] = []
    chosen_checkpoint: str | None = None
    """The label that the scores on a validation set speak for (curve.json). None: none was chosen."""

    @model_validator(mode="before")
    @classmethod
    def _as_now(cls, value: Any) -> Any:
        """A record of an earlier version, in today's statuses."""
        if not isinstance(value, dict):
            return value
        found = {"request": {"with_benchmarks": value.get("with_benchmarks", True)}, **value}
        if found.get("status") == "created":
            found["status"] = "planned" if found.get("awaits_turn") else "preparing"
        if found.get("status") == "trained" and found.get("ended_at") is not None:
            found["status"] = "done"
        attempts = found.get("attempts")
        for each in attempts if isinstance(attempts, list) else ():
            if isinstance(each, dict) and each.get("status") == "created":
                each["status"] = "preparing"
        return found

    @classmethod
    def load(cls, run: RunDir) -> Self:
        """Read a run's record, as it was written last; PrerequisiteError where there is none, or it is damaged."""
        try:
            return cls.model_validate_json(read_file(run.record, MAX_RECORD_BYTES))
        except (OSError, PrerequisiteError, ValidationError) as error:
            remedy = f"move it away; its spec can be run again then: orchestrator rerun {shlex.quote(str(run.spec))}"
            raise PrerequisiteError(f"{run.record} cannot be read: {damage(error)}", remedy) from error

    def is_active(self) -> bool:
        """Whether it was begun, and has not said how it ended."""
        return self.status in ACTIVE

    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def is_resumed(self) -> bool:
        """Whether the training went on from a checkpoint when it was last begun."""
        steps = [each.from_step for each in self.attempts if each.from_step is not None]
        return bool(steps and steps[-1])

    def as_json(self) -> dict[str, Any]:
        """What record.json holds, as plain JSON values."""
        value: dict[str, Any] = json.loads(self.model_dump_json())
        return value

    def save(self, run: RunDir) -> None:
        atomic_write(run.record, self.model_dump_json(indent=2) + "\n")

    @contextmanager
    def changing(self, run: RunDir) -> Iterator[Self]:
        """Gives the stored record to be changed, under a lock, and saves it: what other processes wrote stays.

        Raises ValueError: the new status may not follow the stored one; nothing is saved.
        """
        with lock(run.record_lock):
            stored = self.load(run)
            before = stored.status
            yield stored
            if stored.status not in (before, *TRANSITIONS.get(before, ())):
                raise ValueError(f"a run that is {before} cannot become {stored.status}")
            stored.save(run)
        for name in type(self).model_fields:
            setattr(self, name, getattr(stored, name))

    def update(self, run: RunDir, **changes: Any) -> None:
        """Set fields, then save."""
        with self.changing(run) as stored:
            for name, value in changes.items():
                setattr(stored, name, value)

    def begin_attempt(self, run: RunDir, job: str = "") -> None:
        """Say that this process, which holds the run's lock and may be a Slurm job, makes a new attempt at it."""
        with self.changing(run) as stored:
            if stored.attempts and stored.attempts[-1].ended_at is None:
                stored.attempts[-1].status = "interrupted"
            stored.host, stored.pid = socket.gethostname(), os.getpid()
            attempt = Attempt(started_at=now(), status="preparing", pid=stored.pid, host=stored.host)
            stored.attempts.append(attempt)
            if not job:
                stored.job = stored.benchmark_job = None
            elif stored.job is None or stored.job.id != job:
                stored.job = Job(id=job, uid=os.getuid(), submitted_at=now())
            stored.status, stored.error, stored.ended_at = "preparing", None, None
            stored.stop_requested, stored.waits_for = False, None
            for unfinished in run.path.glob(f".{run.record.name}.*"):  # of a writer that was killed: we have the lock
                unfinished.unlink()

    def note_attempt(self, run: RunDir, **changes: Any) -> None:
        """Set fields of the attempt that is under way, then save."""
        with self.changing(run) as stored:
            stored.attempts[-1] = stored.attempts[-1].model_copy(update=changes)

    def end(self, run: RunDir, status: Status, error: str | None = None) -> None:
        """Say how the run ended, and with it the attempt."""
        with self.changing(run) as stored:
            stored.status, stored.error, stored.ended_at, stored.waits_for = status, error, now(), None
            stored._end_attempt(status)

    def hand_to_job(self, run: RunDir, job: Job, status: Status) -> None:
        """End the attempt, but not the run: a job resumes it later."""
        with self.changing(run) as stored:
            if job == stored.benchmark_job:
                stored.benchmark_job = None
            stored.status, stored.job, stored.waits_for = "queued", job, None
            stored._end_attempt(status)

    def submit_to_job(self, run: RunDir) -> None:
        """Say that this process, which holds the run's lock, submits a job for it."""
        with self.changing(run) as stored:
            stored.host, stored.pid = socket.gethostname(), os.getpid()
            stored.job, stored.benchmark_job = Job(uid=os.getuid(), submitted_at=now()), None
            stored.status, stored.error, stored.ended_at, stored.stop_requested = "queued", None, None, False

    def add_benchmark(self, run: RunDir, summary: BenchmarkSummary) -> None:
        """Append a benchmark; one that was continued takes the place of what it had come to before."""
        with self.changing(run) as stored:
            stored.benchmarks = [*(item for item in stored.benchmarks if item.id != summary.id), summary]

    def add_command(self, run: RunDir, stage: str, argv: list[str], environment: dict[str, str] | None = None) -> None:
        """Note what was run for a stage."""
        with self.changing(run) as stored:
            stored.commands = {**stored.commands, stage: argv}
            if environment is not None:
                stored.environment = {**stored.environment, stage: environment}

    def _end_attempt(self, status: Status) -> None:
        for last in self.attempts[-1:]:
            if last.ended_at is None:
                last.status, last.ended_at = status, now()


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
