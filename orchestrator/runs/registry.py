"""The runs of a workspace as rows: read from record and notes, filtered, in order of time or of comparable scores."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from math import isnan
from typing import Any, NamedTuple, get_args

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.runs.notes import Notes
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import BenchmarkSummary, Status
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current, latest_event
from orchestrator.runs.trainer_log import step_of
from orchestrator.runs.workspace import Workspace
from orchestrator.scoring.metrics import HEADINGS, RANKED, higher_is_better

ORDERS = ("created", "ended", *RANKED)
_AGE = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


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
        models = (row.model, row.model.rstrip("/").rpartition("/")[2])  # all of a folder or hub id, or its last part
        patterns = ((self.name, (row.name,)), (self.dataset, row.datasets), (self.model, models))
        return (
            (not self.statuses or row.status in self.statuses)
            and (self.since is None or row.created >= self.since)
            and self.group in (None, row.group)
            and all(given is None or any(fnmatchcase(each, given) for each in of) for given, of in patterns)
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
            record = current(run)
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
        model=record.model or "",
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
    written = notes.model_dump(mode="json", include={"tags", "notes"})
    return {**record.as_json(), **written, "removed": is_removed(run, record)}


def rows_json(workspace: Workspace, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """run_json of some rows. A run that is gone by now is left out."""
    for row in rows:
        run = RunDir(workspace.runs / row.id)
        with suppress(PrerequisiteError):
            yield run_json(run, current(run), _notes(run)[0])


def is_removed(run: RunDir, record: RunRecord) -> bool:
    """Whether a run was trained, or began to be, and what that left is gone."""
    if run.output.is_dir():
        return False
    return record.training is not None or ("train" in record.commands and not run.train_log.parent.is_dir())


def since(text: str, now: datetime | None = None) -> datetime:
    """The time that a date, a date with a time, or an age such as 7d, 12h, 30m or 2w means; SpecError for others."""
    try:
        if match := _AGE.fullmatch(text):
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        return datetime.fromisoformat(text).astimezone()  # one without a zone is this machine's time
    except (ValueError, OverflowError) as error:
        raise SpecError(f"{text!r} is no time: a date such as 2026-11-24, or an age such as 7d, 12h or 30m") from error


def sort_rows(rows: Sequence[Row], order: str, limit: int | None = None) -> Sorted:
    """Rows, given oldest first, by `created`, `ended`, or by a score, the best first: METRIC, or METRIC:TESTSET.

    Only scores of one metric, test set, split, number of segments, text and signature are ranked: those that most of
    the runs have. Runs without such a score stand at the end. `limit` keeps the last, or in an order by a score the
    first. Raises SpecError: no such order, or no run has a score on that test set.
    """
    metric, _, testset = order.partition(":")
    if metric not in ORDERS or (testset and metric not in RANKED):
        raise SpecError(
            f"no order {order!r}{did_you_mean(metric, ORDERS)}",
            f"--sort {'|'.join(ORDERS)}, a score also as bleu:TESTSET",
        )
    if metric in RANKED and rows:
        ranked = _by_score(rows, metric, testset)
        return ranked._replace(rows=ranked.rows[:limit])
    if metric == "ended":
        rows = sorted(rows, key=lambda row: (row.ended is None, row.ended or row.created))
    return Sorted(list(rows[-(limit or 0) :]), [])


def _notes(run: RunDir) -> tuple[Notes, list[str]]:
    try:
        return Notes.load(run), []
    except PrerequisiteError as error:
        return Notes(), [error.message]


def _by_score(rows: Sequence[Row], metric: str, testset: str) -> Sorted:
    own = {row.id: [each for each in row.results if each.group.metric == metric] for row in rows}
    counted = Counter(each.group for results in own.values() for each in results)
    known = {group: count for group, count in counted.items() if testset in ("", group.testset)}
    title = HEADINGS[metric]
    if not known:
        testsets = sorted({group.testset for group in counted})
        where = f" on {testset!r}{did_you_mean(testset, testsets)}" if testset else ""
        there = f"there are scores on: {', '.join(testsets) or 'nothing'}"
        raise SpecError(f"none of {len(rows)} runs has a complete {title}{where}; {there}")
    group = max(known, key=lambda each: known[each])
    members = {name: each for name, results in own.items() for each in results if each.group == group}
    texts = Counter(each.text_sha256 for each in members.values() if each.text_sha256)
    same_text = {"", *(text for text, _ in texts.most_common(1))}  # '': the record does not tell
    scores = {name: each for name, each in members.items() if each.text_sha256 in same_text}
    ranked = [row for row in rows if row.id in scores]
    ranked.sort(key=lambda row: scores[row.id].score, reverse=higher_is_better(metric))
    others = [row for row in rows if row.id not in scores]
    on = f"{group.testset} {group.split}, {group.n_segments} segments"
    notes = [f"sorted by {title} on {on}, {group.signature}{'' if higher_is_better(metric) else ' (lower is better)'}"]
    if others:
        elsewhere = sum(1 for row in others if own[row.id])
        notes.append(
            f"at the end, not ranked: {len(others)} of {len(rows)} runs; {elsewhere} of them have {title} on other "
            "segments or texts, or by another signature"
        )
    shown = [replace(row, last=f"{title} {scores[row.id].score:.1f} ({scores[row.id].of}: {on})") for row in ranked]
    return Sorted(shown + others, notes)


def _results(record: RunRecord, benchmarks: Sequence[BenchmarkSummary]) -> list[Result]:
    """The scores that stand for a run, one for each group that may be compared.

    Of what the training left, where that was benchmarked; else the latest; the model before training only if alone.
    """
    weight = {"output": 2, "base": 0}
    hashes = {(data.dataset, data.split): data.sha256 or "" for data in record.facts.data}
    found: dict[Group, Result] = {}
    for each in benchmarks:
        for score in each.scores:
            group = Group(score.metric, each.testset, each.split, each.n_segments, score.signature)
            least = weight.get(found[group].of, 1) if group in found else 0
            if not isnan(score.score) and weight.get(each.of, 1) >= least:
                found[group] = Result(group, hashes.get((each.testset, each.split), ""), each.of, score.score)
    return list(found.values())


def _local(moment: datetime) -> datetime:
    try:
        return moment.astimezone()
    except OverflowError:  # of a record that somebody made up: the year 9999
        return moment.replace(tzinfo=UTC)


def _steps_so_far(run: RunDir, record: RunRecord) -> str:
    """How far the training is, or came before it ended too early."""
    is_known = record.status in ("running", "stopped", "failed", "interrupted")
    event = latest_event(run, record) if is_known else None
    return f"{step_of(event)}/{event.get('total_steps', '?')}" if event else ""


def _words(benchmark: BenchmarkSummary) -> str:
    scores = ", ".join(f"{HEADINGS.get(each.metric, each.metric)} {each.score:.1f}" for each in benchmark.scores)
    return f"{scores} ({benchmark.of}: {benchmark.testset} {benchmark.split}, {benchmark.n_segments} segments)"
