"""The runs of a workspace as rows: read from record and notes, filtered, in order of time or of comparable scores."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from math import isnan
from typing import Any, NamedTuple, get_args

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import read_file
from orchestrator.runs.notes import Notes
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import BenchmarkSummary, Status
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current
from orchestrator.runs.trainer_log import TrainerLog, latest, step_of
from orchestrator.runs.workspace import Workspace
from orchestrator.scoring.metrics import HEADINGS, RANKED

ORDERS = ("created", "ended", *RANKED)
_AGE = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MAX_SPEC_BYTES = 1 << 20
# spec.yaml as it is written by us, for records of earlier versions, which do not name the model.
_MODEL = re.compile(rb'^model:\n(?:  .*\n)*?  name_or_path: "(.*)"$', re.MULTILINE)


class Group(NamedTuple):
    """Scores that may be compared: of one test set, by one signature."""

    metric: str
    testset: str
    split: str
    n_segments: int
    signature: str


class Result(NamedTuple):
    """A run's score on a test set."""

    group: Group
    text_sha256: str
    """Of the test set's text; '' where the record does not tell."""
    of: str
    score: float


@dataclass(frozen=True)
class Row:
    """What a list shows of a run."""

    id: str
    status: str
    created: datetime
    ended: datetime | None
    name: str
    model: str
    datasets: list[str]
    """What it trains on."""
    steps: str
    last: str
    """The last complete benchmark in words."""
    results: list[Result]
    tags: list[str]
    removed: bool
    """Whether its weights and logs were taken out."""
    group: str
    """The group that it belongs to; '' for none."""


@dataclass(frozen=True)
class Filters:
    """Which runs: all that are given must match, all tags too, and one of the statuses."""

    statuses: Sequence[str] = ()
    name: str | None = None
    dataset: str | None = None
    model: str | None = None
    tags: Sequence[str] = ()
    since: datetime | None = None
    group: str | None = None

    def check(self) -> None:
        """SpecError for an unknown status."""
        known = get_args(Status)
        for status in self.statuses:
            if status not in known:
                raise SpecError(f"no status {status!r}{did_you_mean(status, known)}; there are: {', '.join(known)}")

    def matches(self, row: Row) -> bool:
        return (
            (not self.statuses or row.status in self.statuses)
            and (self.since is None or row.created >= self.since)
            and (self.group is None or row.group == self.group)
            and (self.name is None or fnmatchcase(row.name, self.name))
            and (self.dataset is None or any(fnmatchcase(each, self.dataset) for each in row.datasets))
            and (self.model is None or _is_model(row.model, self.model))
            and set(self.tags) <= set(row.tags)
        )


class Sorted(NamedTuple):
    """Rows in order, and notes about it."""

    rows: list[Row]
    notes: list[str]


def read_rows(workspace: Workspace) -> tuple[list[Row], list[str]]:
    """A row for each run, oldest first, and what is damaged, in lines."""
    rows: list[Row] = []
    problems: list[str] = []
    for run in workspace.all_runs():
        try:
            record = RunRecord.load(run)
        except PrerequisiteError as error:
            problems.append(error.message)
            continue
        notes, damaged = _notes(run)
        problems += damaged
        rows.append(row_of(run, record, notes))
    return rows, problems


def row_of(run: RunDir, record: RunRecord, notes: Notes) -> Row:
    """What a list shows of a run."""
    complete = [each for each in record.benchmarks if each.scores]
    training = record.training
    trained_on = [data.dataset for data in record.facts.data if data.is_trained_on]
    return Row(
        id=run.id,
        status=record.status,
        created=_local(record.created_at),
        ended=_local(record.ended_at) if record.ended_at else None,
        name=record.name,
        model=record.model or _model_in_spec(run),
        datasets=list(dict.fromkeys([*record.datasets, *trained_on])),
        steps=f"{training.steps}/{training.total_steps}" if training else _steps_so_far(run, record),
        last=_words(complete[-1]) if complete else "",
        results=_results(record, complete),
        tags=notes.tags,
        removed=is_removed(run, record),
        group=record.group or "",
    )


def run_json(run: RunDir, record: RunRecord, notes: Notes) -> dict[str, Any]:
    """A run's record with its tags, its notes, and whether its weights and logs were removed."""
    written = notes.model_dump(mode="json")
    removed = is_removed(run, record)
    return {**record.as_json(), "tags": written["tags"], "notes": written["notes"], "removed": removed}


def rows_json(workspace: Workspace, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """run_json of some rows. A run that is gone by now is left out."""
    for row in rows:
        run = RunDir(workspace.runs / row.id)
        try:
            record = current(run)
        except PrerequisiteError:
            continue
        yield run_json(run, record, _notes(run)[0])


def is_removed(run: RunDir, record: RunRecord) -> bool:
    """Whether a run was trained, or began to be, and what that left is gone."""
    if run.output.is_dir():
        return False
    return record.training is not None or ("train" in record.commands and not run.train_log.parent.is_dir())


def since(text: str, now: datetime | None = None) -> datetime:
    """The time that a date, a date with a time, or an age such as 7d, 12h, 30m or 2w means.

    Raises:
        SpecError: none of these.
    """
    moment = now or datetime.now(UTC)
    try:
        if match := _AGE.fullmatch(text):
            return moment - timedelta(**{_UNITS[match[2]]: int(match[1])})
        return datetime.fromisoformat(text).astimezone()  # one without a zone is this machine's time
    except (ValueError, OverflowError) as error:
        raise SpecError(f"{text!r} is no time: a date such as 2026-11-24, or an age such as 7d, 12h or 30m") from error


def sort_rows(rows: Sequence[Row], order: str, limit: int | None = None) -> Sorted:
    """Rows, given oldest first, by `created`, `ended`, or by a score, the best first: METRIC, or METRIC:TESTSET.

    Only scores of one metric, test set, split, number of segments, text and signature are ranked: those that most of
    the runs have. Runs without such a score stand at the end. `limit` keeps the last, or in an order by a score the
    first.

    Raises:
        SpecError: no such order, or no run has a score on that test set.
    """
    metric, _, testset = order.partition(":")
    if metric not in ORDERS or (testset and metric not in RANKED):
        raise SpecError(
            f"no order {order!r}{did_you_mean(metric, ORDERS)}",
            f"--sort {'|'.join(ORDERS)}, a score also as bleu:TESTSET",
        )
    if metric == "created":
        return Sorted(list(rows[-(limit or 0) :]), [])
    if metric == "ended":
        ordered = sorted(rows, key=lambda row: (row.ended is None, row.ended or row.created))
        return Sorted(ordered[-(limit or 0) :], [])
    if not rows:
        return Sorted([], [])
    ranked = _by_score(rows, metric, testset)
    return ranked._replace(rows=ranked.rows[:limit])


def _notes(run: RunDir) -> tuple[Notes, list[str]]:
    """The notes of a run, or none and how they are damaged."""
    try:
        return Notes.load(run), []
    except PrerequisiteError as error:
        return Notes(), [error.message]


def _by_score(rows: Sequence[Row], metric: str, testset: str) -> Sorted:
    own = {row.id: [each for each in row.results if each.group.metric == metric] for row in rows}
    counted = Counter(each.group for results in own.values() for each in results)
    known = {group: count for group, count in counted.items() if not testset or group.testset == testset}
    if not known:
        testsets = sorted({group.testset for group in counted})
        where = f" on {testset!r}{did_you_mean(testset, testsets)}" if testset else ""
        raise SpecError(
            f"none of {len(rows)} runs has a complete {HEADINGS[metric]}{where}; there are scores on: "
            f"{', '.join(testsets) or 'nothing'}"
        )
    group = max(known, key=lambda each: known[each])
    members = {name: each for name, results in own.items() for each in results if each.group == group}
    texts = Counter(each.text_sha256 for each in members.values() if each.text_sha256)
    same_text = {"", *(text for text, _ in texts.most_common(1))}  # '': the record does not tell
    members = {name: each for name, each in members.items() if each.text_sha256 in same_text}
    ranked = [row for row in rows if row.id in members]
    ranked.sort(key=lambda row: members[row.id].score, reverse=metric != "ter")
    others = [row for row in rows if row.id not in members]
    lower = " (lower is better)" if metric == "ter" else ""
    on = f"{group.testset} {group.split}, {group.n_segments} segments"
    notes = [f"sorted by {HEADINGS[metric]} on {on}, {group.signature}{lower}"]
    if others:
        elsewhere = sum(1 for row in others if own[row.id])
        notes.append(
            f"at the end, not ranked: {len(others)} of {len(rows)} runs; {elsewhere} of them have {HEADINGS[metric]} "
            "on other segments or texts, or by another signature"
        )
    shown = [
        replace(row, last=f"{HEADINGS[metric]} {members[row.id].score:.1f} ({members[row.id].of}: {on})")
        for row in ranked
    ]
    return Sorted(shown + others, notes)


def _results(record: RunRecord, benchmarks: Sequence[BenchmarkSummary]) -> list[Result]:
    """The scores that stand for a run, one for each group that may be compared.

    Of what the training left, where that was benchmarked; else the latest; the model before training only if alone.
    """
    hashes = {(data.dataset, data.split): data.sha256 or "" for data in record.facts.data}
    found: dict[Group, Result] = {}
    for each in benchmarks:
        text = hashes.get((each.testset, each.split), "")
        for score in each.scores:
            group = Group(score.metric, each.testset, each.split, each.n_segments, score.signature)
            if not isnan(score.score) and (group not in found or _weight(each.of) >= _weight(found[group].of)):
                found[group] = Result(group, text, each.of, score.score)
    return list(found.values())


def _local(moment: datetime) -> datetime:
    try:
        return moment.astimezone()
    except OverflowError:  # of a record that somebody made up: the year 9999
        return moment.replace(tzinfo=UTC)


def _weight(of: str) -> int:
    return {"output": 2, "base": 0}.get(of, 1)


def _steps_so_far(run: RunDir, record: RunRecord) -> str:
    """How far the training is, or came before it ended too early."""
    if record.status not in ("running", "stopped", "failed", "interrupted") or not record.attempts:
        return ""
    event = latest(TrainerLog(run.trainer_log, record.attempts[-1].log_start_bytes).new_events())
    return f"{step_of(event)}/{event.get('total_steps', '?')}" if event else ""


def _words(benchmark: BenchmarkSummary) -> str:
    scores = ", ".join(f"{HEADINGS.get(each.metric, each.metric)} {each.score:.1f}" for each in benchmark.scores)
    return f"{scores} ({benchmark.of}: {benchmark.testset} {benchmark.split}, {benchmark.n_segments} segments)"


def _model_in_spec(run: RunDir) -> str:
    try:
        found = _MODEL.search(read_file(run.spec, _MAX_SPEC_BYTES))
    except (FileNotFoundError, PrerequisiteError):
        return ""
    return found[1].decode("utf-8", "replace") if found else ""


def _is_model(model: str, pattern: str) -> bool:
    """By all of a folder or hub id, or by its last part."""
    return fnmatchcase(model, pattern) or fnmatchcase(model.rstrip("/").rpartition("/")[2], pattern)
