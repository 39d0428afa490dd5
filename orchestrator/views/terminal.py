"""What a command prints: tables for a person, files, one JSON document. Text only: what is shown was decided elsewhere.

Covered: control characters of strangers' text made visible; width and colour only on a terminal (NO_COLOR is
rich's); nothing is cut where the output is a file or a pipe. Scores stand in one column only where test set,
segments and signature are the same.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.runs.registry import Row, row_of
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.workspace import Workspace
from orchestrator.scoring.metrics import HEADINGS
from orchestrator.text import escape_controls

# What these take to import, a list of 10,000 runs takes to print.
if TYPE_CHECKING:
    from orchestrator.benchmark.selection import Curve
    from orchestrator.runs.differences import Side
    from orchestrator.runs.notes import Notes
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.record_parts import BenchmarkSummary

_OTHER_NUMBERS = ("mean_sentence_bleu", "llamafactory_bleu4")
"""Also called BLEU elsewhere, and other numbers."""
# Columns of a narrow terminal that cells are not folded under, where possible; and in any case.
_MIN_BENCHMARK, _MIN_RUN, _LEAST = 30, 20, 10


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich would end the program with status 1, which is a bug's


class _Table(Table):
    """Without the blanks by which rich fills each line up."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        segments = (each for each in super().__rich_console__(console, options) if isinstance(each, Segment))
        for line in Segment.split_lines(segments):
            while line and not line[-1].text.strip(" "):
                line.pop()
            if line:
                text, style, control = line[-1]
                line[-1] = Segment(text.rstrip(" "), style, control)
            yield from line
            yield Segment.line()


def console() -> Console:
    """stdout; wide where it is no terminal, so that a pipe gets whole lines."""
    return _Console(highlight=False) if sys.stdout.isatty() else _Console(width=240, highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table; cells are text, never markup."""
    made = _Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(Text(escape_controls(column)), overflow="fold")
    for row in rows:
        made.add_row(*(Text(escape_controls(cell)) for cell in row))
    return made


def score_tables(items: Sequence["BenchmarkSummary"]) -> RenderableType:
    """A table for each test set, with the signatures under it."""
    groups: dict[tuple[str, str, int, tuple[str, ...]], list[BenchmarkSummary]] = {}
    for item in items:
        signatures = tuple(score.signature for score in item.scores)
        groups.setdefault((item.testset, item.split, item.n_segments, signatures), []).append(item)
    parts: list[RenderableType] = []
    for (testset, split, n_segments, signatures), members in groups.items():
        metrics = [score.metric for score in members[0].scores]
        columns = ["", *(HEADINGS[name] for name in [*metrics, *_OTHER_NUMBERS])]
        parts += [
            Text(escape_controls(f"{testset} {split}, {n_segments} segments, with 95 % intervals:")),
            table(columns, [[item.of, *_cells(item)] for item in members]),
            *(
                Text(escape_controls(f"{HEADINGS[name]}: {signature}"))
                for name, signature in zip(metrics, signatures, strict=True)
            ),
            *_comet_tables(members),
            *(Text(escape_controls(line)) for item in members for line in _remarks(item)),
            Text(""),
        ]
    return Group(*parts[:-1])


def run_table(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """The lines of a table of runs, the heading first; one line a run where there is room.

    Args:
        rows: the runs.
        width: of the terminal. Where it is too narrow for all columns, some are left out, and others' cells take
            several lines. None: as wide as need be.
    """
    # Not by rich: it takes 3 s for 10,000 rows.
    columns = {
        "run": [visible_line(row.id) for row in rows],
        "status": [f"{row.status}, removed" if row.removed else row.status for row in rows],
        "created": [f"{row.created:%Y-%m-%d %H:%M}" for row in rows],
        "trained on": [visible_line(", ".join(row.datasets)) or "-" for row in rows],
        "steps": [visible_line(row.steps) for row in rows],
        "group": [visible_line(row.group) for row in rows],
        "tags": [visible_line(", ".join(row.tags)) for row in rows],
        "last benchmark": [visible_line(row.last) for row in rows],
    }
    for name in ("group", "tags"):
        if not any(columns[name]):
            del columns[name]
    widths = {name: max(map(_width, [name, *cells])) for name, cells in columns.items()}
    if width is not None:
        widths = _fit(widths, width)
    shown = [(name, *columns[name]) for name in widths]
    lines = []
    for cells in zip(*shown, strict=True):
        if all(_width(cell) <= widths[name] for cell, name in zip(cells, widths, strict=True)):
            lines.append(_line(cells, widths.values()))
            continue
        folded = [_fold(cell, widths[name]) for cell, name in zip(cells, widths, strict=True)]
        for number in range(max(map(len, folded))):
            parts = [part[number] if number < len(part) else "" for part in folded]
            lines.append(_line(parts, widths.values()))
    return lines


def visible_line(text: str) -> str:
    """The same as escape_controls(), at once for what has nothing to hide."""
    return text if text.isprintable() else escape_controls(text).replace("\t", " ")


def _fit(natural: Mapping[str, int], width: int) -> dict[str, int]:
    """Columns and their widths for a terminal: run, status and benchmark always, others while there is room."""
    widths = dict(natural)
    widths["last benchmark"] = min(natural["last benchmark"], _MIN_BENCHMARK)
    must = ("run", "status", "last benchmark")
    widths["run"] = min(natural["run"], max(_MIN_RUN, width - widths["status"] - widths["last benchmark"] - 4))
    left = width - widths["status"] - widths["run"] - 4
    widths["last benchmark"] = max(_LEAST, min(widths["last benchmark"], left))
    room = width - sum(widths[name] + 2 for name in must) + 2
    kept = set(must)
    for name in ("tags", "created", "trained on", "steps", "group"):
        if name in widths and widths[name] + 2 <= room:
            kept.add(name)
            room -= widths[name] + 2
    widths["last benchmark"] = min(natural["last benchmark"], widths["last benchmark"] + max(room, 0))
    return {name: size for name, size in widths.items() if name in kept}


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    padded = [cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(padded).rstrip()


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _fold(text: str, width: int) -> list[str]:
    """Lines of at most this width, broken at blanks where there are any."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if _width(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for char in word if _width(word) > width else (word,):
            if lines[-1] and _width(lines[-1] + char) > width:
                lines.append("")
            lines[-1] += char
    return [line for line in lines if line] or [""]


def _cells(item: "BenchmarkSummary") -> list[str]:
    intervals = [f" [{score.ci95[0]:.1f}, {score.ci95[1]:.1f}]" if score.ci95 else "" for score in item.scores]
    cells = [f"{score.score:.1f}{interval}" for score, interval in zip(item.scores, intervals, strict=True)]
    others = (getattr(item, name) for name in _OTHER_NUMBERS)
    return [*cells, *("" if number is None else f"{number:.1f}" for number in others)]


def _comet_tables(members: Sequence["BenchmarkSummary"]) -> list[RenderableType]:
    """A table for each model of COMET: they share no scale, neither with BLEU nor among themselves."""
    by_signature: dict[str, list[list[str]]] = {}
    for item in members:
        for score in item.comet:
            interval = f" [{score.ci95[0]:.4f}, {score.ci95[1]:.4f}]" if score.ci95 else ""
            by_signature.setdefault(score.signature, []).append([item.of, f"{score.score:.4f}{interval}"])
    return [
        part
        for signature, rows in by_signature.items()
        for part in (table(["", HEADINGS["comet"]], rows), Text(escape_controls(f"{HEADINGS['comet']}: {signature}")))
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


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_file(files: Mapping[str, str], name: str, of: str) -> None:
    """One of some texts, as it is. SpecError where there is none of that name."""
    if name not in files:
        raise _no_file(name, files, of)
    sys.stdout.write(files[name])


def print_file_of(folder: Path, name: str, of: str) -> None:
    """One of a folder's files, as it is, whatever the bytes. SpecError where there is none of that name."""
    # What begins with a dot is a lock, or a file that is being written.
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if name not in names:
        raise _no_file(name, names, of)
    sys.stdout.flush()
    sys.stdout.buffer.write((folder / name).read_bytes())
    sys.stdout.buffer.flush()


def _no_file(name: str, names: Iterable[str], of: str) -> SpecError:
    return SpecError(f"{of} has no file {name!r}{did_you_mean(name, names)}; it has: {', '.join(names)}")


def print_scores(items: Sequence["BenchmarkSummary"]) -> None:
    """The tables of some benchmarks; nothing for none."""
    if items:
        console().print(Group(Text(), score_tables(items)))


def print_curve(curve: "Curve") -> None:
    """A run's checkpoints by step, and the one that was chosen."""
    heading = HEADINGS[curve.metric]
    rows = []
    for point in [*([curve.base] if curve.base else []), *curve.points]:
        score = next(each for each in point.scores if each.metric == curve.metric)
        interval = f" [{score.ci95[0]:.1f}, {score.ci95[1]:.1f}]" if score.ci95 else ""
        difference = "" if point.test is None else f"{point.test.difference:+.1f}, p = {point.test.p_holm:.2g}"
        remarks = ["before training"] if point is curve.base else ["chosen"] if point.label == curve.chosen else []
        rows.append((
            "?" if point.step is None else str(point.step),
            " = ".join([point.label, *point.same_as]),
            f"{score.score:.1f}{interval}",
            difference,
            ", ".join([*remarks, *["worse"] * point.worse]),
        ))  # fmt: skip
    parts: list[RenderableType] = [
        Text(escape_controls(f"{curve.testset} {curve.split}, {curve.n_segments} segments, with 95 % intervals:")),
        table(["step", "checkpoint", heading, "against the best", ""], rows),
        Text(f"{heading}: {curve.signature}"),
    ]
    parts += [Text(escape_controls(f"{label} is left out: {reason}")) for label, reason in curve.left_out.items()]
    console().print(Group(*parts, Text(escape_controls(curve.words()))))


def print_differences(one: "Side", other: "Side", as_json: bool) -> None:
    """What differs between two specs or runs, a line each; a note where changed defaults cannot be known."""
    from orchestrator.runs.differences import differences

    found = differences(one, other)
    for side in (one, other):
        if side.defaults is None and one.versions != other.versions:
            sys.stderr.write(f"note: {side.name} kept no defaults: whether they changed since cannot be told\n")
    if as_json:
        print_json({"one": one.name, "other": other.name, "differences": [each.as_json() for each in found]})
    elif found:
        lines = [
            f"--- {escape_controls(one.heading())}",
            f"+++ {escape_controls(other.heading())}",
            *(each.arrow() for each in found),
        ]
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        sys.stderr.write("nothing differs\n")


def print_runs(rows: Sequence[Row]) -> None:
    """Runs, a line each where there is room."""
    screen = console()
    heading, *lines = run_table(rows, screen.width if sys.stdout.isatty() else None)
    screen.print(Text(heading, style="bold"), soft_wrap=True)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def print_run(record: "RunRecord", path: Path, now: Sequence[str] = ()) -> None:
    """A run: its line, what it is at, why it ended, what people say of it, its benchmarks, what it took, its folder."""
    from orchestrator.runs.notes import Notes
    from orchestrator.runs.trash import in_trash
    from orchestrator.runs.usage import usage_lines

    run = RunDir(path)
    notes = Notes.load(run)
    row = row_of(run, record, notes)
    print_runs([row])
    sys.stdout.write("".join(f"\n{escape_controls(line)}\n" for line in now))
    if record.error:
        sys.stdout.write(f"\n{record.status}: {escape_controls(record.error.splitlines()[0])}\n")
    if record.results_elsewhere:
        sys.stdout.write(f"\n{escape_controls(record.results_elsewhere)}\n")
    if row.removed:
        held = in_trash(Workspace(path.parent.parent), run.id)
        remedy = f"back with: orchestrator rm --restore {run.id}" if held else "for good"
        sys.stdout.write(escape_controls(f"removed: weights and logs, {remedy}") + "\n")
    print_notes(notes)
    print_scores(record.benchmarks)
    if record.chosen_checkpoint:
        sys.stdout.write(
            "\n" + escape_controls(f"chosen checkpoint: {record.chosen_checkpoint}, by {run.curve}") + "\n"
        )
    if took := usage_lines(record):
        sys.stdout.write("\n" + "".join(f"{escape_controls(line)}\n" for line in took))
    sys.stdout.write(f"\n{escape_controls(str(path))}\n")


def print_notes(notes: "Notes") -> None:
    """Notes with their times; nothing for none."""
    for note in notes.notes:
        first, *more = note.text.splitlines() or [""]
        sys.stdout.write(f"{note.at.astimezone():%Y-%m-%d %H:%M}  {escape_controls(first)}\n")
        sys.stdout.writelines(f"                  {escape_controls(line)}\n" for line in more)
