"""record.json: what ran, when, where, with which versions and hashes, and what came of it.

Covered: the record's shape; reading and writing it; `interrupted`, found when the owner is gone without a word.
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

from orchestrator.errors import PrerequisiteError
from orchestrator.process import identity
from orchestrator.rundir import RunDir, atomic_write
from orchestrator.score import Score

Status = Literal[
    "created", "preparing", "running", "trained", "benchmarking", "done", "failed", "stopped", "interrupted"
]
ACTIVE = ("created", "preparing", "running", "trained", "benchmarking")
SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="allow",  # a later version's field is kept
        ser_json_inf_nan="strings",  # a loss can be NaN; null would not be read back as a number
        use_attribute_docstrings=True,
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
    faults: dict[str, int | None] = {}
    """Answers that are no translation, by fault; None: not known."""


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
    process_started_at: float | None = Field(default_factory=lambda: identity(os.getpid()))
    """When the owning process started: a pid alone is used again."""
    spec_file: str | None = None
    """The spec that was launched, as named on the command line."""
    spec_sha256: str
    overrides: list[str] = []
    """--set KEY=VALUE, in order."""
    rerun_of: str | None = None
    drift: list[str] = []
    """What differed from the run that this one repeats, before it started."""
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
        # A run that was to be trained only ends as `trained`: then it has an end.
        if record.status in ACTIVE and record.ended_at is None and not record.owner_lives():
            record.status = "interrupted"
        return record

    def as_json(self) -> dict[str, Any]:
        """What record.json holds, as plain JSON values."""
        value: dict[str, Any] = json.loads(self.model_dump_json())
        return value

    def owner_lives(self) -> bool:
        """Whether the process that owns the run still runs. On another host that can't be known: taken as alive."""
        if self.host != socket.gethostname():
            return True
        started = identity(self.pid) if self.boot_id == _boot_id() else None
        return (
            started is not None and self.process_started_at is not None and abs(started - self.process_started_at) < 1
        )

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
    """
    with (run.path / f".{what}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _boot_id() -> str:
    """Changes at each boot, so that a pid of before the last boot is no running process (Linux; else '')."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
