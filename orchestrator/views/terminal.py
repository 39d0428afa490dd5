"""What a command prints: one JSON document, or tables and lines for a person, and files as they are.

Every text may be a stranger's: control characters are made visible, nothing is markup. A pipe gets lines of any length.
"""

import json
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.runs.registry import Row
from orchestrator.runs.rundir import GroupDir, RunDir, Workspace
from orchestrator.scoring.metrics import HEADINGS
from orchestrator.text import escape_controls

# What these take to import, a list of runs takes to print.
if TYPE_CHECKING:
    from orchestrator.benchmark.selection import Curve
    from orchestrator.runs.differences import Side
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.record_parts import BenchmarkSummary
    from orchestrator.runs.registry import Notes

_OTHER_NUMBERS = ("mean_sentence_bleu", "llamafactory_bleu4")
"""Also called BLEU elsewhere, and other numbers."""
_PIPE_COLUMNS = 100_000


def show(document: Any, *parts: RenderableType, as_json: bool = False) -> None:
    """Print one JSON document, or its parts for a person: tables, and texts of one line each."""
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return
    is_terminal = sys.stdout.isatty()
    screen = Console(highlight=False) if is_terminal else Console(highlight=False, width=_PIPE_COLUMNS)
    with screen.capture() as captured:
        for part in parts:
            what = line(part) if isinstance(part, str) else part
            screen.print(what, soft_wrap=isinstance(what, Text))
    text = captured.get()
    sys.stdout.write(text if is_terminal else re.sub(" +$", "", text, flags=re.MULTILINE))
    sys.stdout.flush()


def line(text: str) -> Text:
    """A text as one line that is neither markup nor obeyed by a terminal."""
    return Text(escape_controls(text))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table of such texts."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(line(column), overflow="fold")
    for row in rows:
        made.add_row(*map(line, row))
    return made


def print_text(text: str | bytes) -> None:
    """Print a file as it is, whatever its bytes; on a terminal with control characters made visible."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
    if sys.stdout.isatty():
        sys.stdout.write("\n".join(map(escape_controls, data.decode("utf-8", "replace").split("\n"))))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def file_of(folder: Path, name: str, of: str) -> bytes:
    """One of a folder's files. SpecError where there is none of that name."""
    # What begins with a dot is a lock, or a file that is being written.
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return (folder / checked_name(name, names, of)).read_bytes()


def checked_name(name: str, names: Collection[str], of: str) -> str:
    """The name of a file; SpecError where it is none of these."""
    if name not in names:
        raise SpecError(f"{of} has no file {name!r}{did_you_mean(name, names)}; it has: {', '.join(names)}")
    return name


def score_tables(items: Sequence["BenchmarkSummary"]) -> RenderableType:
    """A table for each test set and set of signatures, which stand under it."""
    groups: dict[tuple[str, str, int, tuple[str, ...]], list[BenchmarkSummary]] = {}
    for item in items:
        signatures = tuple(score.signature for score in item.scores)
        groups.setdefault((item.testset, item.split, item.n_segments, signatures), []).append(item)
    parts: list[RenderableType] = []
    for (testset, split, n_segments, signatures), members in groups.items():
        metrics = [score.metric for score in members[0].scores]
        columns = ["", *(HEADINGS[name] for name in [*metrics, *_OTHER_NUMBERS])]
        parts += [
            line(f"{testset} {split}, {n_segments} segments, with 95 % intervals:"),
            table(columns, [[item.of, *_cells(item)] for item in members]),
            *(line(f"{HEADINGS[name]}: {signature}") for name, signature in zip(metrics, signatures, strict=True)),
            *_comet_tables(members),
            *(line(remark) for item in members for remark in _remarks(item)),
            Text(),
        ]
    return Group(*parts[:-1])


def _cells(item: "BenchmarkSummary") -> list[str]:
    others = (getattr(item, name) for name in _OTHER_NUMBERS)
    scores = [f"{score.score:.1f}{_interval(score.ci95)}" for score in item.scores]
    return [*scores, *("" if number is None else f"{number:.1f}" for number in others)]


def _interval(ci95: tuple[float, float] | None, digits: int = 1) -> str:
    return f" [{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}]" if ci95 else ""


def _comet_tables(members: Sequence["BenchmarkSummary"]) -> list[RenderableType]:
    """A table for each model of COMET: they share no scale, neither with BLEU nor among themselves."""
    by_signature: dict[str, list[list[str]]] = {}
    for item in members:
        for score in item.comet:
            cells = [item.of, f"{score.score:.4f}{_interval(score.ci95, 4)}"]
            by_signature.setdefault(score.signature, []).append(cells)
    return [
        part
        for signature, rows in by_signature.items()
        for part in (table(["", HEADINGS["comet"]], rows), line(f"{HEADINGS['comet']}: {signature}"))
    ]


def _remarks(item: "BenchmarkSummary") -> list[str]:
    """What a score does not tell."""
    from orchestrator.scoring.diagnostics import describe

    lines = []
    if item.status == "incomplete" and item.n_asked is not None:
        lines.append(f"{item.of}: incomplete, {item.n_segments} of {item.n_asked} sentences were answered")
    if faults := describe(item.faults):
        lines.append(f"{item.of}: hypotheses with issues: {faults}")
    return lines


def run_table(rows: Sequence[Row]) -> Table:
    """Runs; without the columns group and tags where they are empty."""
    columns = {
        "run": [row.run.id for row in rows],
        "status": [row.record.status + (", removed" if row.is_removed else "") for row in rows],
        "created": [f"{row.created:%Y-%m-%d %H:%M}" for row in rows],
        "trained on": [", ".join(row.datasets) or "-" for row in rows],
        "steps": [row.steps for row in rows],
        "group": [row.record.group or "" for row in rows],
        "tags": [", ".join(row.notes.tags) for row in rows],
        "last benchmark": [row.last_benchmark for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells) or name not in ("group", "tags")}
    made = table(list(shown), zip(*shown.values(), strict=True))
    made.columns[0].no_wrap = True  # an id is copied
    return made


def curve_parts(curve: "Curve") -> list[RenderableType]:
    """A run's checkpoints by step, and the one that was chosen."""
    heading = HEADINGS[curve.metric]
    rows = []
    for point in [*([curve.base] if curve.base else []), *curve.points]:
        score = next(each for each in point.scores if each.metric == curve.metric)
        remarks = ["before training"] if point is curve.base else ["chosen"] if point.label == curve.chosen else []
        rows.append([
            "?" if point.step is None else str(point.step),
            " = ".join([point.label, *point.same_as]),
            f"{score.score:.1f}{_interval(score.ci95)}",
            "" if point.test is None else f"{point.test.difference:+.1f}, p = {point.test.p_holm:.2g}",
            ", ".join([*remarks, *["worse"] * point.worse]),
        ])  # fmt: skip
    return [
        f"{curve.testset} {curve.split}, {curve.n_segments} segments, with 95 % intervals:",
        table(["step", "checkpoint", heading, "against the best", ""], rows),
        f"{heading}: {curve.signature}",
        *(f"{label} is left out: {reason}" for label, reason in curve.left_out.items()),
        curve.words(),
        *(["", score_tables(curve.test)] if curve.test else []),
    ]


def show_differences(one: "Side", other: "Side", as_json: bool) -> None:
    """What differs between two specs or runs, a line each."""
    from orchestrator.runs.differences import differences

    found = differences(one, other)
    if not found and not as_json:
        sys.stderr.write("nothing differs\n")
        return
    document = {"one": one.name, "other": other.name, "differences": [each.as_json() for each in found]}
    arrows = (each.arrow() for each in found)
    show(document, f"--- {one.name}", f"+++ {other.name}", *arrows, as_json=as_json)


def run_parts(record: "RunRecord", path: Path, now: Sequence[str] = ()) -> list[RenderableType]:
    """A run: its line, what it is at, why it ended, its notes, its benchmarks, what it took, its folder."""
    from orchestrator.runs.registry import Notes
    from orchestrator.runs.state import usage_lines
    from orchestrator.runs.trash import in_trash

    run = RunDir(path)
    notes = Notes.load(run)
    row = Row(run, record, notes)
    parts: list[RenderableType] = [run_table([row]), *(part for each in now for part in ("", each))]
    if record.error:
        parts += ["", f"{record.status}: {record.error.splitlines()[0]}"]
    if record.results_elsewhere:
        parts += ["", record.results_elsewhere]
    if row.is_removed:
        held = in_trash(Workspace(path.parent.parent), run.id)
        parts += [
            f"removed: weights and logs, {f'back with: orchestrator rm --restore {run.id}' if held else 'for good'}"
        ]
    parts += note_lines(notes)
    if record.benchmarks:
        parts += ["", score_tables(record.benchmarks)]
    if record.chosen_checkpoint:
        parts += ["", f"chosen checkpoint: {record.chosen_checkpoint}, by {run.curve}"]
    if took := usage_lines(record):
        parts += ["", *took]
    return [*parts, "", str(path)]


def note_lines(notes: "Notes") -> list[str]:
    """Notes with their times."""
    return [
        f"{f'{note.at.astimezone():%Y-%m-%d %H:%M}' if number == 0 else '':16}  {text}"
        for note in notes.notes
        for number, text in enumerate(note.text.splitlines() or [""])
    ]


def group_parts(folder: GroupDir) -> list[RenderableType]:
    """A group's runs with the swept values of each, and how many are done."""
    from orchestrator.runs.groups import Group as RunGroup
    from orchestrator.runs.groups import members, short_keys
    from orchestrator.runs.registry import Notes

    group = RunGroup.load(folder)
    found = members(folder, group)
    rows = []
    for each in found:
        row = Row(each.run, each.record, Notes()) if each.record is not None else None
        error = each.record.error if each.record is not None else None
        last = (
            row.last_benchmark
            if row and row.last_benchmark
            else shorten((error or "").partition("\n")[0], 80, placeholder=" ...")
        )
        rows.append([*each.point.values, each.status, row.steps if row else "", each.run.id, last])
    columns = [*short_keys(group.axes), "status", "steps", "run", "last benchmark, or error"]
    done = sum(each.is_finished() for each in found)
    return [table(columns, rows), "", f"{len(rows)} runs, {done} done: {folder.path}"]
