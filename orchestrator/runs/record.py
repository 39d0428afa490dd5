"""record.json: what ran, when, where, with which versions and hashes, and what came of it.

Covered: the record's shape; reading and writing it; who owns a run, and that there is one owner; `interrupted`, found
when the owner is gone without a word.
Not covered: how the facts are found (facts.py).
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.benchmark.score import Score
from orchestrator.errors import PrerequisiteError
from orchestrator.processes.family import start_ticks, start_time
from orchestrator.runs.rundir import RunDir, atomic_write

Status = Literal[
    "created", "preparing", "running", "trained", "benchmarking", "done", "failed", "stopped", "interrupted"
]
ACTIVE = ("created", "preparing", "running", "trained", "benchmarking")
SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="allow",  # a later version's field is kept
        ser_json_inf_nan="strings",  # a loss can be NaN; null would not be read back as a number
    )


class DataFacts(_Part):
    """One split of a dataset, as it was read."""

    dataset: str
    split: str
    use: str = ""
    """train, eval or benchmark; '' in records of earlier versions."""
    pairs: int | None
    """Pairs after blank ones were dropped; in LLaMA-Factory's own formats, records. None: not counted."""
    blank_pairs: int = 0
    sha256: str | None
    """Hash of the text, or of the files. None: they are not on this machine."""
    origin: str | None = None
    """Where LLaMA-Factory takes data from that are not here: the hub's id, say."""


class Facts(_Part):
    """What decides a run's outcome beside its spec. A rerun compares these."""

    versions: dict[str, str] = {}
    """Packages that compute, in LLaMA-Factory's environment; python, and orchestrator, which is ours."""
    platform: str = ""
    gpus: list[str] = []
    """Name and driver of each NVIDIA GPU."""
    git_commit: str | None = None
    """Of the workspace; None outside git."""
    git_dirty: bool | None = None
    """Whether files that git tracks differed from that commit."""
    data: list[DataFacts] = []
    model_sha256: str | None = None
    """Configuration, tokenizer, code, and the weights' headers, sizes and samples; None: not on this machine."""
    adapter_sha256: str | None = None
    """Of the adapter that training started from."""


class Training(_Part):
    """What llamafactory-cli train left."""

    steps: int
    total_steps: int
    train_loss: float | None = None
    train_runtime_s: float | None = None
    tokens_seen: int | None = None
    """Input tokens, where include_num_input_tokens_seen counted them."""
    logged_losses: list[float] = []
    """The first ten losses that were logged: a rerun shows the same."""


class BenchmarkSummary(_Part):
    """One finished benchmark; the whole of it is in benchmarks/<id>/."""

    id: str
    of: str
    """What was benchmarked: output, checkpoint-N, base, or the target's own name."""
    testset: str
    split: str
    status: Literal["complete", "incomplete"]
    n_segments: int
    """Sentences that were answered, and scored where there are scores."""
    n_asked: int | None = None
    """Sentences that were asked; more than n_segments in an incomplete benchmark. None: an older record."""
    scores: list[Score] = []
    mean_sentence_bleu: float | None = None
    llamafactory_bleu4: float | None = None
    comet: list[Score] = []
    """By COMET's models, where that was asked for."""
    faults: dict[str, int | None] = {}
    """Answers that are no translation, by fault; None: not known."""


class Attempt(_Part):
    """One launch or resume of a run."""

    started_at: datetime
    ended_at: datetime | None = None
    """None: it is under way, or its process was gone before it could say so."""
    status: Status
    """How it ended, or what it is at."""
    from_checkpoint: str | None = None
    """The checkpoint that the training went on from; None: it began at step 0, or there was nothing left to train."""
    from_step: int | None = None
    """The step that the training began at; None: it did not begin."""
    log_start_bytes: int = 0
    """Where this attempt's lines begin in trainer_log.jsonl."""
    drift: list[str] = []
    """What differed from the run's facts when it was resumed."""
    pid: int
    host: str


class RunRecord(_Part):
    """The state of a run and its history."""

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
    verdict: str | None = None
    """Of a rerun: whether its losses are those of the run that it repeats, and the likely cause where not."""
    commands: dict[str, list[str]] = {}
    """Stage -> the command line that was run for it, in the run folder."""
    environment: dict[str, dict[str, str]] = {}
    """Stage -> the environment variables that we set for it; secrets left out."""
    seed: int
    facts: Facts = Facts()
    training: Training | None = None
    benchmarks: list[BenchmarkSummary] = []

    @classmethod
    def load(cls, run: RunDir) -> Self:
        """Read a run's record; one whose owner is gone without having said so reads as `interrupted`.

        Raises:
            PrerequisiteError: there is none, or it is damaged.
        """
        try:
            record = cls.model_validate_json(run.record.read_bytes())
        except (OSError, ValidationError) as error:
            reason = "; ".join(str(error).splitlines()[:3])
            raise PrerequisiteError(f"{run.record} cannot be read: {reason}") from error
        if record.is_active() and not record.owner_lives():
            record.status = "interrupted"
        return record

    def is_active(self) -> bool:
        """Whether it has not said how it ended. A run that was to be trained only ends as `trained`, at a time."""
        return self.status in ACTIVE and self.ended_at is None

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

    def take_over(self, run: RunDir) -> None:
        """Make this process the owner of a run that has none, for a new attempt at it.

        The command that starts a supervisor owns the run until that takes it over.

        Raises:
            PrerequisiteError: another process owns it.
        """
        with locked(run, "record"):
            stored = type(self).model_validate_json(run.record.read_bytes())
            ours = stored.is_here() and stored.pid in (os.getpid(), os.getppid())
            if stored.is_active() and not ours and stored.owner_lives():
                raise stored.in_use()
            past = stored.attempts or _attempt_of_before(stored)
            if past and past[-1].ended_at is None:
                past = [*past[:-1], past[-1].model_copy(update={"status": "interrupted"})]
            stored.attempts = [*past, _new_attempt()]
            for name, value in _owner().items():
                setattr(stored, name, value)
            stored.status, stored.error, stored.ended_at = "created", None, None
            for unfinished in run.path.glob(f".{run.record.name}.*"):  # of a writer that was killed: we have the lock
                unfinished.unlink()
            self._take(stored, run)

    def resumed_at(self) -> list[int]:
        """The steps at which the training was resumed since it last began at step 0, in order."""
        steps = [each.from_step for each in self.attempts if each.from_step is not None]
        anew = max((place for place, step in enumerate(steps) if step == 0), default=-1)
        return steps[anew + 1 :]

    def in_use(self) -> PrerequisiteError:
        """The error for what only one process may do at a time."""
        where = "" if self.is_here() else f" on {self.host}"
        return PrerequisiteError(
            f"run {self.id} is {self.status}: process {self.pid}{where} owns it", f"orchestrator stop {self.id}"
        )

    def note_attempt(self, run: RunDir, **changes: Any) -> None:
        """Set fields of the attempt that is under way, then save."""
        self.update(run, attempts=[*self.attempts[:-1], self.attempts[-1].model_copy(update=changes)])

    def end(self, run: RunDir, status: Status, error: str | None = None) -> None:
        """Say how the run ended, and with it the attempt."""
        moment = now()
        attempts = [each.model_copy(update={"status": status, "ended_at": moment}) for each in self.attempts[-1:]]
        self.update(
            run, status=status, error=error, ended_at=moment, waits_for=None, attempts=[*self.attempts[:-1], *attempts]
        )

    def add_benchmark(self, run: RunDir, summary: BenchmarkSummary) -> None:
        """Append a benchmark to the stored record; one that went on takes the place of what it had come to before."""
        with locked(run, "record"):
            stored = type(self).model_validate_json(run.record.read_bytes())
            stored.benchmarks = [*(item for item in stored.benchmarks if item.id != summary.id), summary]
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
    if record.status == "created":
        return []
    times = {"started_at": record.created_at, "ended_at": record.ended_at}
    return [Attempt(**times, status=record.status, pid=record.pid, host=record.host)]


def _boot_id() -> str:
    """Changes at each boot, so that a pid of before the last boot is no running process (Linux; else '')."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
