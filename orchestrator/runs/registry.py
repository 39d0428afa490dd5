"""The runs of a workspace as rows: read and filtered.

Covered: a row for each run, from its record, its notes and its spec, or remembered from an earlier reading of the very
same files; `interrupted` found anew each time; filters.
Not covered: their order (ranking.py); tables (terminal.py).
Writes nothing in the workspace.
"""

import json
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import cache_folder
from orchestrator.runs.index import Index, Stored
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.scoring.metrics import HEADINGS

# The record's models take as long to import as 10,000 remembered rows to read.
if TYPE_CHECKING:
    from orchestrator.runs.notes import Notes
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.record_parts import BenchmarkSummary

_VERSION = 2  # of what the fields of Row hold, and of the stamps
_MAX_RECORD_BYTES = 32 << 20
_MAX_SPEC_BYTES = 1 << 20
# A file that changes twice within a tick of the file system's clock looks the same afterwards: rows are remembered
# only of files that have been quiet for longer.
_QUIET_NS = 2_000_000_000
_AGE = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Row(NamedTuple):
    """What a list tells of a run; plain values, as the index keeps them."""

    id: str
    status: str
    created: float
    """Seconds since the epoch."""
    ended: float | None
    name: str
    model: str
    datasets: str
    """What it trains on, a line each."""
    steps: str
    last: str
    """The last complete benchmark in words."""
    bleu: str
    """Its Results, as JSON; '' for none."""
    chrf: str
    ter: str
    tags: str
    """A line each."""
    removed: int
    """1: its weights and logs were taken out."""
    group: str
    """The group that it belongs to; '' for none."""


class Result(NamedTuple):
    """A run's score on a test set."""

    testset: str
    split: str
    n_segments: int
    signature: str
    text_sha256: str
    """Of the test set's text, where the record tells; else ''."""
    of: str
    score: float


@dataclass(frozen=True)
class Filters:
    """Which runs; every one that is given must hold, all tags too, and one of the statuses."""

    statuses: Sequence[str] = ()
    name: str | None = None
    dataset: str | None = None
    model: str | None = None
    tags: Sequence[str] = ()
    since: datetime | None = None
    group: str | None = None

    def check(self) -> None:
        """SpecError for a status that there is not."""
        from orchestrator.runs.record_parts import Status

        known = get_args(Status)
        for status in self.statuses:
            if status not in known:
                raise SpecError(f"no status {status!r}{did_you_mean(status, known)}; there are: {', '.join(known)}")

    def hold(self, row: Row) -> bool:
        return (
            (not self.statuses or row.status in self.statuses)
            and (self.since is None or row.created >= self.since.timestamp())
            and (self.group is None or row.group == self.group)
            and (self.name is None or fnmatchcase(row.name, self.name))
            and (self.dataset is None or any(fnmatchcase(each, self.dataset) for each in row.datasets.split("\n")))
            and (self.model is None or _is_model(row.model, self.model))
            and (not self.tags or set(self.tags) <= set(row.tags.split("\n")))
        )


def read_rows(workspace: Workspace, cache: Path | None = None) -> tuple[list[Row], list[str]]:
    """A row for each run, in no order, and what is damaged, in lines.

    Args:
        workspace: whose runs.
        cache: where rows are remembered. None: the user's cache folder.
    """
    version = zlib.crc32(repr((_VERSION, Row._fields)).encode()) >> 1
    index = Index(cache or cache_folder(), workspace.runs, version, len(Row._fields))
    known = index.read()
    found = _stamps(workspace.runs)
    rows: list[Row] = []
    fresh: dict[str, Stored] = {}
    problems: list[str] = []
    for name, (stamp, is_quiet) in found.items():
        stored = known.get(name)
        if stored is not None and stored[0] == stamp:
            rows.append(Row._make(stored[1]))
            continue
        try:
            row, is_final, trouble = _read_row(RunDir(workspace.runs / name))
        except PrerequisiteError as error:
            problems.append(error.message)
            continue
        problems += trouble
        rows.append(row)
        if is_final and is_quiet and not trouble and _is_text(name, row):
            fresh[name] = (stamp, tuple(row))
    gone = [name for name in known if name not in found]
    if fresh or gone:
        index.write(fresh, gone)
    return rows, problems


def row_of(run: RunDir, record: "RunRecord", notes: "Notes") -> Row:
    """What a list tells of a run."""
    hashes = {(data.dataset, data.split): data.sha256 or "" for data in record.facts.data}
    complete = [each for each in record.benchmarks if each.scores]
    model, datasets = _spec_facts(run.spec)
    trained_on = (data.dataset for data in record.facts.data if (data.use or data.split) == "train")
    datasets += [name for name in trained_on if name not in datasets]
    training = record.training
    return Row(
        id=run.id,
        status=record.status,
        created=record.created_at.timestamp(),
        ended=record.ended_at.timestamp() if record.ended_at else None,
        name=record.name,
        model=model,
        datasets="\n".join(datasets),
        steps=f"{training.steps}/{training.total_steps}" if training else _steps_so_far(run, record),
        last=_words(complete[-1]) if complete else "",
        bleu=_results("bleu", complete, hashes),
        chrf=_results("chrf", complete, hashes),
        ter=_results("ter", complete, hashes),
        tags="\n".join(notes.tags),
        removed=int(is_removed(run, record)),
        group=record.group or "",
    )


def run_json(run: RunDir, record: "RunRecord", notes: "Notes") -> dict[str, Any]:
    """A run's record with its tags, its notes, and whether its weights and logs were removed."""
    said = notes.model_dump(mode="json")
    removed = is_removed(run, record)
    return {**record.as_json(), "tags": said["tags"], "notes": said["notes"], "removed": removed}


def read_json(workspace: Workspace, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """The records of some rows, with what people say of the runs. One that went meanwhile is left out."""
    from orchestrator.runs.notes import Notes
    from orchestrator.runs.state import current

    for row in rows:
        run = RunDir(workspace.runs / row.id)
        try:
            record = current(run)
        except PrerequisiteError:
            continue
        try:
            notes = Notes.load(run)
        except PrerequisiteError:  # read_rows has said so
            notes = Notes()
        yield run_json(run, record, notes)


def is_removed(run: RunDir, record: "RunRecord") -> bool:
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


def _stamps(runs: Path) -> dict[str, tuple[str, bool]]:
    """By run id: what tells whether any file of its row was changed, and whether that was a while ago.

    The folder's own time tells of files that were replaced, made or taken away in it: atomic_write, `rm`.
    """
    found: dict[str, tuple[str, bool]] = {}
    try:
        folder = os.open(runs, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return found
    quiet_until = time.time_ns() - _QUIET_NS
    try:
        for name in os.listdir(folder):  # noqa: PTH208 - 10,000 paths take as long as all the rest
            if name.startswith("."):  # the trash
                continue
            try:
                record = os.stat(f"{name}/record.json", dir_fd=folder)
                parent = os.stat(name, dir_fd=folder)
            except OSError:  # a spec, a stray file, a link that leads nowhere
                continue
            if not stat.S_ISREG(record.st_mode):
                continue
            stamp = f"{record.st_mtime_ns} {record.st_size} {record.st_ino} {parent.st_mtime_ns}"
            newest = max(record.st_mtime_ns, parent.st_mtime_ns)
            for other in ("notes.json", "spec.yaml"):
                try:
                    found_there = os.stat(f"{name}/{other}", dir_fd=folder)
                except OSError:
                    stamp += " -"
                    continue
                stamp += f" {found_there.st_mtime_ns} {found_there.st_size}"
                newest = max(newest, found_there.st_mtime_ns)
            found[name] = (stamp, newest < quiet_until)
    finally:
        os.close(folder)
    return found


def _read_row(run: RunDir) -> tuple[Row, bool, list[str]]:
    """A row, whether it stays as it is while the files do, and what is damaged but the record."""
    from orchestrator.runs.notes import Notes
    from orchestrator.runs.state import current

    if run.record.stat().st_size > _MAX_RECORD_BYTES:
        raise PrerequisiteError(f"{run.record} is no record: it is larger than {_MAX_RECORD_BYTES} bytes")
    record = current(run)
    trouble = []
    try:
        notes = Notes.load(run)
    except PrerequisiteError as error:
        trouble.append(error.message)
        notes = Notes()
    # A run without an end is another one when its owner is gone, whatever the files say.
    return row_of(run, record, notes), record.ended_at is not None, trouble


def _is_text(name: str, row: Row) -> bool:
    """Whether SQLite can keep it: a file's name may be no UTF-8."""
    try:
        "".join([name, *(value for value in row if isinstance(value, str))]).encode()
    except UnicodeEncodeError:
        return False
    return True


def _steps_so_far(run: RunDir, record: "RunRecord") -> str:
    """How far the training is, or came before it ended too early."""
    from orchestrator.runs.trainer_log import TrainerLog, latest, step_of

    if record.status not in ("running", "stopped", "failed", "interrupted") or not record.attempts:
        return ""
    event = latest(TrainerLog(run.trainer_log, record.attempts[-1].log_start_bytes).new_events())
    return f"{step_of(event)}/{event.get('total_steps', '?')}" if event else ""


def _words(benchmark: "BenchmarkSummary") -> str:
    said = ", ".join(f"{HEADINGS.get(each.metric, each.metric)} {each.score:.1f}" for each in benchmark.scores)
    return f"{said} ({benchmark.of}: {benchmark.testset} {benchmark.split}, {benchmark.n_segments} segments)"


def _results(metric: str, benchmarks: Sequence["BenchmarkSummary"], hashes: Mapping[tuple[str, str], str]) -> str:
    """The benchmarks that stand for a run, one for each set of scores that may be compared.

    Of what the training left, where that was benchmarked; else the latest; the model before training only if alone.
    """
    found: dict[tuple[str, str, int, str], Result] = {}
    for each in benchmarks:
        for score in each.scores:
            key = (each.testset, each.split, each.n_segments, score.signature)
            if score.metric != metric or isnan(score.score):
                continue
            if key not in found or _weight(each.of) >= _weight(found[key].of):
                found[key] = Result(*key, hashes.get(key[:2], ""), each.of, score.score)
    return json.dumps(list(found.values())) if found else ""


def _weight(of: str) -> int:
    return {"output": 2, "base": 0}.get(of, 1)


def _spec_facts(path: Path) -> tuple[str, list[str]]:
    """model.name_or_path and the dataset or datasets of a spec.yaml; nothing where it can't be read.

    By events: neither an alias nor a depth of a stranger's file costs anything.
    """
    import yaml

    model, datasets = "", list[str]()
    try:
        if not path.is_file():  # a pipe would be waited for
            return model, datasets
        with path.open("rb") as file:
            data = file.read(_MAX_SPEC_BYTES)
        for keys, value in _scalars(yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
            if keys == ("model", "name_or_path"):
                model = value
            elif keys == ("dataset",) and value != "null":
                datasets += [name.strip() for name in value.split(",")]
    except (OSError, yaml.YAMLError, UnicodeError):
        return model, datasets
    return model, datasets


def _scalars(events: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """The values of a YAML document that are no collections, each with the keys that lead to it."""
    keys: list[str | None] = []  # of each open collection; a list has none
    is_mapping: list[bool] = []
    for event in events:
        kind = type(event).__name__
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            keys.append(None)
            is_mapping.append(kind == "MappingStartEvent")
            continue
        if kind in ("MappingEndEvent", "SequenceEndEvent"):
            keys.pop()
            is_mapping.pop()
        elif kind in ("ScalarEvent", "AliasEvent"):
            value = event.value if kind == "ScalarEvent" else ""
            if is_mapping and is_mapping[-1] and keys[-1] is None:
                keys[-1] = value
                continue
            yield tuple(key for key in keys if key is not None), value
        else:
            continue
        if is_mapping and is_mapping[-1]:
            keys[-1] = None  # the value is over


def _is_model(model: str, pattern: str) -> bool:
    """By the whole of a folder or hub id, or by its last part."""
    return fnmatchcase(model, pattern) or fnmatchcase(model.rstrip("/").rpartition("/")[2], pattern)
