"""record.json: what ran, when, where, with which versions and hashes, and what came of it.

Covered: the record as a whole; reading and writing it; who owns a run, and that there is one owner; `interrupted`,
found when the owner is gone without a word.
Not covered: what its parts hold (record_parts.py); how the facts are found (facts.py).
"""

import fcntl
import json
import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError

from orchestrator.errors import PrerequisiteError
from orchestrator.files import atomic_write
from orchestrator.processes.family import start_ticks, start_time
from orchestrator.runs import slurm
from orchestrator.runs.record_parts import ACTIVE, STORED, Attempt, BenchmarkSummary, Facts, Status, Training, damage
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.slurm import Job

SCHEMA_VERSION = 1


class RunRecord(BaseModel):
    """The state of a run and its history."""

    model_config = STORED

    schema_version: int = SCHEMA_VERSION
    id: str
    name: str
    status: Status = "created"
    error: str | None = None
    """Why it failed or stopped."""
    created_at: datetime
    ended_at: datetime | None = None
    host: str = Field(default_factory=socket.gethostname)
    boot_id: str = Field(default_factory=lambda: _boot_id())
    pid: int = Field(default_factory=os.getpid)
    process_started_at: float | None = Field(default_factory=lambda: start_time(os.getpid()))
    """When the owning process started, for people, and for records without the next field."""
    process_start_ticks: int | None = None
    """The same in clock ticks since the machine's start: a pid alone is used again, and clocks are set."""
    attempts: list[Attempt] = []
    """Each launch and resume, in order. Empty in records of before."""
    with_benchmarks: bool = True
    """Whether the spec's benchmarks follow the training."""
    group: str | None = None
    """The group that it belongs to: the id of a sweep."""
    awaits_turn: bool = False
    """Made, but not begun: it has no owner, and waits for its turn in its group."""
    job: Job | None = None
    """The job that carries it out, or did so last. None: it never was one of Slurm's."""
    benchmark_job: Job | None = None
    """The job that is to benchmark what this one trains."""
    stop_requested: bool = False
    """Whether `stop` was told, so that no job goes on with it."""
    waits_for: str | None = None
    """What holds the devices that the run waits for."""
    prepared_sha256: str | None = None
    """Of the prepared data and dataset_info.json, once they were written whole."""
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

    @classmethod
    def load(cls, run: RunDir) -> Self:
        """Read a run's record; one whose owner is gone without having said so reads as `interrupted`.

        Of one that a job of Slurm carries out Slurm knows more: it reads as `queued` while that waits.

        Raises:
            PrerequisiteError: there is none, or it is damaged.
        """
        try:
            record = cls.model_validate_json(run.record.read_bytes())
        except (OSError, ValidationError) as error:
            remedy = f"move it away; its spec can be run again then: orchestrator rerun {shlex.quote(str(run.spec))}"
            raise PrerequisiteError(f"{run.record} cannot be read: {damage(error)}", remedy) from error
        if record.is_active():
            record.status = record._status_now()
        return record

    def is_active(self) -> bool:
        """Whether it has not said how it ended. A run that was to be trained only ends as `trained`, at a time."""
        return self.status in ACTIVE and self.ended_at is None and not self.awaits_turn

    def as_json(self) -> dict[str, Any]:
        """What record.json holds, as plain JSON values."""
        value: dict[str, Any] = json.loads(self.model_dump_json())
        return value

    def owner_lives(self) -> bool:
        """Whether the process that owns the run still runs. On another host that can't be known: taken as alive."""
        if not self.is_here():
            return True
        if self.boot_id != _boot_id():
            return False
        if self.process_start_ticks is not None:
            return start_ticks(self.pid) == self.process_start_ticks
        started = start_time(self.pid)
        return (
            started is not None and self.process_started_at is not None and abs(started - self.process_started_at) < 1
        )

    def _status_now(self) -> Status:
        is_seen = self.is_here() and self.owner_lives()
        if self.job is None or not self.job.id or (is_seen and self.status != "queued"):
            return self.status if self.owner_lives() else "interrupted"
        found = slurm.job_state(self.job.id, self.job.uid)
        if found is None:  # it can't be known: taken as it is written
            return self.status
        return "interrupted" if found.has_ended else "queued" if found.waits else self.status

    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def save(self, run: RunDir) -> None:
        """Write record.json whole or not at all."""
        atomic_write(run.record, self.model_dump_json(indent=2) + "\n")

    def update(self, run: RunDir, **changes: Any) -> None:
        """Set fields, then save. What another process wrote into the other fields since we read them stays."""
        with locked(run, "record"):
            stored = type(self).model_validate_json(run.record.read_bytes())
            for name, value in changes.items():
                setattr(stored, name, value)
            self._take(stored, run)

    def take_over(self, run: RunDir, job: str = "") -> None:
        """Make this process the owner of a run that has none, for a new attempt at it.

        The command that starts a supervisor or submits a job owns the run until that takes it over.

        Args:
            run: its folder.
            job: the job of Slurm that this process is; '': none.

        Raises:
            PrerequisiteError: another process owns it.
        """
        with locked(run, "record"):
            stored = type(self).model_validate_json(run.record.read_bytes())
            ours = stored.is_here() and stored.pid in (os.getpid(), os.getppid())
            ours = ours or bool(job and stored.job is not None and stored.job.id in ("", job))
            if not ours:
                stored.refuse_if_owned()
            past = stored.attempts or _attempt_of_before(stored)
            if past and past[-1].ended_at is None:
                past = [*past[:-1], past[-1].model_copy(update={"status": "interrupted"})]
            stored.attempts = [*past, _new_attempt()]
            for name, value in _owner().items():
                setattr(stored, name, value)
            if job and not (stored.job and stored.job.id == job):
                stored.job = Job(id=job, uid=os.getuid(), submitted_at=now())
            stored.status, stored.error, stored.ended_at, stored.awaits_turn = "created", None, None, False
            for unfinished in run.path.glob(f".{run.record.name}.*"):  # of a writer that was killed: we have the lock
                unfinished.unlink()
            self._take(stored, run)

    def withdraw(self, run: RunDir, status: Status, error: str) -> bool:
        """End a run that has not begun; whether it had not."""
        with locked(run, "record"):
            stored = type(self).model_validate_json(run.record.read_bytes())
            had_not = stored.awaits_turn
            if had_not:
                stored.awaits_turn, stored.status, stored.error, stored.ended_at = False, status, error, now()
                stored.save(run)
            return had_not

    def hand_over(self, run: RunDir) -> None:
        """Put a run that has no owner, or that this process has just made, into the hands of jobs to be submitted.

        Raises:
            PrerequisiteError: another process owns it.
        """
        with locked(run, "record"):
            stored = type(self).model_validate_json(run.record.read_bytes())
            if not (stored.is_here() and stored.pid == os.getpid()):
                stored.refuse_if_owned()
            for name, value in _owner().items():
                setattr(stored, name, value)
            stored.job, stored.benchmark_job = Job(uid=os.getuid(), submitted_at=now()), None
            stored.status, stored.error, stored.ended_at, stored.stop_requested = "queued", None, None, False
            stored.awaits_turn = False
            self._take(stored, run)

    def refuse_if_owned(self) -> None:
        """PrerequisiteError where a process or a job owns the run."""
        if self.is_active() and self._status_now() != "interrupted":
            raise self.in_use()

    def resumed_at(self) -> list[int]:
        """The steps at which the training was resumed since it last began at step 0, in order."""
        steps = [each.from_step for each in self.attempts if each.from_step is not None]
        anew = max((place for place, step in enumerate(steps) if step == 0), default=-1)
        return steps[anew + 1 :]

    def in_use(self) -> PrerequisiteError:
        """The error for what only one process may do at a time."""
        where = "" if self.is_here() else f" on {self.host}"
        owner = f"Slurm job {self.job.id}" if self.job and self.job.id else f"process {self.pid}{where}"
        return PrerequisiteError(f"run {self.id} is {self.status}: {owner} owns it", f"orchestrator stop {self.id}")

    def note_attempt(self, run: RunDir, **changes: Any) -> None:
        """Set fields of the attempt that is under way, then save."""
        self.update(run, attempts=[*self.attempts[:-1], self.attempts[-1].model_copy(update=changes)])

    def end(self, run: RunDir, status: Status, error: str | None = None) -> None:
        """Say how the run ended, and with it the attempt."""
        moment = now()
        self.update(
            run, status=status, error=error, ended_at=moment, waits_for=None, attempts=self._ended(status, moment)
        )

    def leave_to(self, run: RunDir, job: Job, status: Status, **changes: Any) -> None:
        """End the attempt, but not the run: a job goes on with it later."""
        self.update(run, status="queued", job=job, waits_for=None, attempts=self._ended(status, now()), **changes)

    def _ended(self, status: Status, moment: datetime) -> list[Attempt]:
        last = [each.model_copy(update={"status": status, "ended_at": moment}) for each in self.attempts[-1:]]
        return [*self.attempts[:-1], *last]

    def add_benchmark(self, run: RunDir, summary: BenchmarkSummary) -> None:
        """Append a benchmark to the stored record; one that went on takes the place of what it had come to before."""
        with locked(run, "record"):
            stored = type(self).model_validate_json(run.record.read_bytes())
            stored.benchmarks = [*(item for item in stored.benchmarks if item.id != summary.id), summary]
            self._take(stored, run)

    def add_command(self, run: RunDir, stage: str, argv: list[str], environment: dict[str, str] | None = None) -> None:
        """Note what was run for a stage; what another process noted of other stages stays."""
        with locked(run, "record"):
            stored = type(self).model_validate_json(run.record.read_bytes())
            stored.commands = {**stored.commands, stage: argv}
            if environment is not None:
                stored.environment = {**stored.environment, stage: environment}
            self._take(stored, run)

    def _take(self, stored: Self, run: RunDir) -> None:
        stored.save(run)
        for name in type(self).model_fields:
            setattr(self, name, getattr(stored, name))


@contextmanager
def locked(run: RunDir, what: str) -> Iterator[None]:
    """One at a time: a benchmark writes into the record of a run that still trains, say. Others wait.

    Freed with its owner, however that ends.

    Raises:
        PrerequisiteError: the file system of runs/ has no locks.
    """
    with (run.path / f".{what}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise PrerequisiteError(
                f"{file.name} cannot be locked: {error.strerror}. Without locks two processes would write into one run",
                "put the workspace on a file system with locks: a local disk, or NFS mounted without nolock",
            ) from error
        yield


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _owner() -> dict[str, Any]:
    """This process, as what owns a run."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": pid,
        "process_started_at": start_time(pid),
        "process_start_ticks": start_ticks(pid),
    }


def _new_attempt() -> Attempt:
    return Attempt(started_at=now(), status="created", pid=os.getpid(), host=socket.gethostname())


def _attempt_of_before(record: RunRecord) -> list[Attempt]:
    """The first attempt of a run that kept none; none for a run that has just been made."""
    if record.status in ("created", "queued"):
        return []
    times = {"started_at": record.created_at, "ended_at": record.ended_at}
    return [Attempt(**times, status=record.status, pid=record.pid, host=record.host)]


def _boot_id() -> str:
    """Changes at each boot, so that a pid of before the last boot is no running process (Linux; else '')."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
