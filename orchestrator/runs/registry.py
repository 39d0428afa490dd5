"""The runs of a workspace as rows, filtered and in order; tags and notes, which notes.json keeps beside the record."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Self, get_args

from pydantic import BaseModel, ValidationError

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write, lock, read_file
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import STORED, Status, damage
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.runs.state import current, latest_event
from orchestrator.runs.trainer_log import step_of
from orchestrator.scoring.metrics import HEADINGS

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Note(BaseModel):
    model_config = STORED

    at: datetime
    text: str


class Notes(BaseModel):
    """notes.json."""

    model_config = STORED

    tags: list[str] = []
    notes: list[Note] = []

    @classmethod
    def load(cls, run: RunDir) -> Self:
        """Those of a run; none where there is no file. PrerequisiteError where it is damaged."""
        try:
            return cls.model_validate_json(read_file(run.notes))
        except FileNotFoundError:
            return cls()
        except (PrerequisiteError, ValidationError) as error:
            reason = f"{run.notes} cannot be read: {damage(error)}"
            raise PrerequisiteError(reason, f"move it away; its tags and notes are text: {run.notes}") from error


@dataclass
class Row:
    """A run, and what a list shows of it."""

    run: RunDir
    record: RunRecord  # with the status that the run has now
    notes: Notes

    @property
    def created(self) -> datetime:
        """In this machine's time."""
        try:
            return self.record.created_at.astimezone()
        except (OverflowError, ValueError):  # of the year 1, say
            return self.record.created_at.replace(tzinfo=UTC)

    @property
    def datasets(self) -> list[str]:
        trained_on = [data.dataset for data in self.record.facts.data if data.is_trained_on]
        return list(dict.fromkeys([*self.record.datasets, *trained_on]))

    @property
    def steps(self) -> str:
        """'50/100': how far the training is, or came; '' where it has logged nothing."""
        if training := self.record.training:
            return f"{training.steps}/{training.total_steps}"
        is_known = self.record.status in ("running", "stopped", "failed", "interrupted")
        event = latest_event(self.run, self.record) if is_known else None
        return f"{step_of(event)}/{event.get('total_steps', '?')}" if event else ""

    @property
    def last_benchmark(self) -> str:
        found = next((each for each in reversed(self.record.benchmarks) if each.scores), None)
        if found is None:
            return ""
        scores = ", ".join(f"{HEADINGS.get(each.metric, each.metric)} {each.score:.1f}" for each in found.scores)
        return f"{scores} ({found.of}: {found.testset} {found.split}, {found.n_segments} segments)"

    @property
    def is_removed(self) -> bool:
        """Whether a run was trained, and what that left is gone."""
        return self.record.training is not None and not self.run.output.is_dir()

    def as_json(self) -> dict[str, Any]:
        written = self.notes.model_dump(mode="json", include={"tags", "notes"})
        return {**self.record.as_json(), **written, "removed": self.is_removed}


@dataclass(frozen=True)
class Filters:
    """Which runs: all that are given must match, all tags, one of the statuses; SpecError for an unknown one."""

    statuses: Sequence[str] = ()
    name: str | None = None
    dataset: str | None = None
    model: str | None = None
    tags: Sequence[str] = ()
    since: datetime | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        known = get_args(Status)
        for status in self.statuses:
            if status not in known:
                raise SpecError(f"no status {status!r}{did_you_mean(status, known)}; there are: {', '.join(known)}")

    def matches(self, row: Row) -> bool:
        model = row.record.model or ""
        models = (model, model.rstrip("/").rpartition("/")[2])  # all of a folder or hub id, or its last part
        patterns = ((self.name, (row.record.name,)), (self.dataset, row.datasets), (self.model, models))
        return (
            (not self.statuses or row.record.status in self.statuses)
            and (self.since is None or row.created >= self.since)
            and self.group in (None, row.record.group)
            and all(given is None or any(fnmatchcase(each, given) for each in of) for given, of in patterns)
            and set(self.tags) <= set(row.notes.tags)
        )


def read_rows(workspace: Workspace) -> tuple[list[Row], list[str]]:
    """A row for each run, oldest first, and what is damaged, in lines."""
    rows: list[Row] = []
    problems: list[str] = []
    for run in workspace.all_runs():
        try:
            rows.append(Row(run, current(run), Notes()))
            rows[-1].notes = Notes.load(run)
        except PrerequisiteError as error:
            problems.append(error.message)
    return rows, problems


def sort_rows(rows: Sequence[Row], order: str) -> list[Row]:
    """Rows, given oldest first, by created, ended (what has not ended comes last) or name; SpecError for others."""
    keys: dict[str, Callable[[Row], Any]] = {
        "created": lambda row: 0,  # as they come
        "ended": lambda row: (row.record.ended_at is None, row.record.ended_at or row.created),
        "name": lambda row: row.record.name,
    }
    if order not in keys:
        raise SpecError(f"no order {order!r}{did_you_mean(order, keys)}", f"--sort {'|'.join(keys)}")
    return sorted(rows, key=keys[order])


def since(text: str, now: datetime | None = None) -> datetime:
    """The time that a date, a date with a time, or an age such as 7d, 12h, 30m or 2w means; SpecError for others."""
    with suppress(ValueError, OverflowError):
        if match := re.fullmatch("([0-9]{1,6})([mhdw])", text):
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        return datetime.fromisoformat(text).astimezone()  # one without a zone is this machine's time
    raise SpecError(f"{text!r} is no time: a date such as 2026-11-24, or an age such as 7d, 12h or 30m")


def change_tags(run: RunDir, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Notes:
    """Give a run tags and take some from it; SpecError where a word is no tag, or the run has not the one to remove."""
    for tag in add:
        if not re.fullmatch(r"[^\W_][\w.+-]{0,31}", tag):
            rule = "one word of at most 32 letters, digits, . _ + or -, beginning with a letter or digit"
            raise SpecError(f"{tag!r} is no tag: {rule}", "for a sentence: orchestrator note RUN TEXT")
    with _changing(run) as stored:
        for word in remove:
            if word not in stored.tags:
                have = ", ".join(stored.tags) or "none"
                raise SpecError(f"{run.id} has no tag {word!r}{did_you_mean(word, stored.tags)}; it has: {have}")
        stored.tags = list(dict.fromkeys([*(tag for tag in stored.tags if tag not in remove), *add]))
    return stored


def add_note(run: RunDir, text: str) -> Notes:
    """Append a note with the time; SpecError where it is blank."""
    text = text.strip().encode("utf-8", "replace").decode()  # an argument may be no UTF-8
    if not text:
        raise SpecError("the note is blank")
    with _changing(run) as stored:
        stored.notes.append(Note(at=datetime.now(UTC).replace(microsecond=0), text=text))
    return stored


@contextmanager
def _changing(run: RunDir) -> Iterator[Notes]:
    with lock(run.notes_lock):
        stored = Notes.load(run)
        yield stored
        atomic_write(run.notes, stored.model_dump_json(indent=2) + "\n")
