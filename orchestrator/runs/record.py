"""record.json: what ran, when, where, with which versions and hashes, and what came of it, as it was written last."""

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

MAX_RECORD_BYTES = 32 << 20
ACTIVE: tuple[Status, ...] = ("queued", "preparing", "running", "trained", "benchmarking")
TRANSITIONS: dict[Status, tuple[Status, ...]] = {
    "planned": ("failed", "stopped"),
    "queued": ("failed", "stopped"),
    "preparing": ("running", "trained", "benchmarking", "done", "failed", "stopped"),
    "running": ("trained", "failed", "stopped"),
    "trained": ("benchmarking", "done", "failed", "stopped"),
    "benchmarking": ("done", "failed", "stopped"),
}
"""What may follow each status, beside a new attempt (preparing, queued): its owner may have been killed at any. No one
writes `interrupted`: a run reads so whose owner is gone."""


class RunRecord(BaseModel):
    """The state of a run and its history."""

    model_config = STORED

    schema_version: int = 1
    id: str
    name: str
    status: Status = "preparing"
    error: str | None = None
    created_at: datetime
    ended_at: datetime | None = None
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)  # of the owner; it is alive only while the run's lock is held
    attempts: list[Attempt] = []
    request: Request = Request()  # what is left to do, and how: that of the launch, or of the last resume
    with_benchmarks: bool = True
    group: str | None = None
    values: list[str] = []  # its values of the sweep's axes, in their order
    job: Job | None = None  # the Slurm job that carries it out, or did so last; None: a process of its own does
    stop_requested: bool = False  # by `stop`: no job and no sweep resumes it by itself
    waits_for: str | None = None
    model: str | None = None
    datasets: list[str] = []
    spec_file: str | None = None
    spec_sha256: str
    overrides: list[str] = []
    rerun_of: str | None = None
    drift: list[str] = []  # of a rerun: what differed from the run that it repeats, before it started
    verdict: str | None = None
    commands: dict[str, list[str]] = {}  # stage -> the command line that was run for it, in the run folder
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
        return self.status in ACTIVE

    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def is_resumed(self) -> bool:
        """Whether the training went on from a checkpoint when it was last begun."""
        steps = [each.from_step for each in self.attempts if each.from_step is not None]
        return bool(steps and steps[-1])

    def as_json(self) -> dict[str, Any]:
        """What record.json holds, as plain JSON values."""
        return dict(json.loads(self.model_dump_json()))

    def save(self, run: RunDir) -> None:
        atomic_write(run.record, self.model_dump_json(indent=2) + "\n")

    @contextmanager
    def changing(self, run: RunDir, **changes: Any) -> Iterator[Self]:
        """Gives the stored record, with some fields set, under a lock; ValueError where its status may not follow."""
        with lock(run.record_lock):
            stored = self.load(run)
            before = stored.status
            for name, value in changes.items():
                setattr(stored, name, value)
            yield stored
            if stored.status not in (before, "preparing", "queued", *TRANSITIONS.get(before, ())):
                raise ValueError(f"a run that is {before} cannot become {stored.status}")
            stored.save(run)
        for name in type(self).model_fields:
            setattr(self, name, getattr(stored, name))

    def update(self, run: RunDir, **changes: Any) -> None:
        with self.changing(run, **changes):
            pass

    def begin_attempt(self, run: RunDir, job: str = "") -> None:
        """Say that this process, which holds the run's lock and may be a Slurm job, makes a new attempt at it."""
        with self.changing(run, status="preparing", **_owned_by_us(), waits_for=None) as stored:
            if stored.attempts and stored.attempts[-1].ended_at is None:
                stored.attempts[-1].status = "interrupted"
            if not job:
                stored.job = None
            elif stored.job is None or stored.job.id != job:
                stored.job = Job(id=job, uid=os.getuid(), submitted_at=now())
            stored.attempts.append(Attempt(started_at=now(), status="preparing", pid=stored.pid, host=stored.host))
            for unfinished in run.path.glob(f".{run.record.name}.*"):  # of a writer that was killed: we have the lock
                unfinished.unlink()

    def note_attempt(self, run: RunDir, **changes: Any) -> None:
        """Set fields of the attempt that is under way."""
        with self.changing(run) as stored:
            stored.attempts[-1] = stored.attempts[-1].model_copy(update=changes)

    def end(self, run: RunDir, status: Status, error: str | None = None) -> None:
        """Say how the run ended, and with it the attempt."""
        with self.changing(run, status=status, error=error, ended_at=now(), waits_for=None) as stored:
            stored._end_attempt(status)

    def hand_to_job(self, run: RunDir, job: Job) -> None:
        """End the attempt as stopped, but not the run: the job resumes it later."""
        with self.changing(run, status="queued", job=job, waits_for=None) as stored:
            stored._end_attempt("stopped")

    def submit_to_job(self, run: RunDir) -> None:
        """Say that this process, which holds the run's lock, submits a job for it."""
        self.update(run, status="queued", **_owned_by_us(), job=Job(uid=os.getuid(), submitted_at=now()))

    def add_benchmark(self, run: RunDir, summary: BenchmarkSummary) -> None:
        """Append a benchmark; one that was continued takes the place of what it had come to before."""
        with self.changing(run) as stored:
            stored.benchmarks = [*(item for item in stored.benchmarks if item.id != summary.id), summary]

    def add_command(self, run: RunDir, stage: str, argv: list[str], environment: dict[str, str] | None = None) -> None:
        with self.changing(run) as stored:
            stored.commands = {**stored.commands, stage: argv}
            if environment is not None:
                stored.environment = {**stored.environment, stage: environment}

    def _end_attempt(self, status: Status) -> None:
        for last in self.attempts[-1:]:
            if last.ended_at is None:
                last.status, last.ended_at = status, now()


def _owned_by_us() -> dict[str, Any]:
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    return {**here, "error": None, "ended_at": None, "stop_requested": False}


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
