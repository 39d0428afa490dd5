"""What a command prints: tables for a person, files, one JSON document. Text only: what is shown was decided elsewhere.

Covered: control characters of strangers' text made visible; width and colour only on a terminal (NO_COLOR is
rich's); nothing is cut where the output is a file or a pipe. Scores stand in one column only where test set,
segments and signature are the same.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.diff import Side, differences
from orchestrator.errors import SpecError, did_you_mean
from orchestrator.process import visible
from orchestrator.record import BenchmarkSummary, RunRecord

HEADINGS = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich would end the program with status 1, which is a bug's


def console() -> Console:
    """stdout; wide where it is no terminal, so that a pipe gets whole lines."""
    return _Console(highlight=False) if sys.stdout.isatty() else _Console(width=240, highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table; cells are text, never markup."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(visible(cell)) for cell in row))
    return made


def score_tables(items: Sequence[BenchmarkSummary]) -> RenderableType:
    """A table for each test set, with the signatures under it."""
    groups: dict[tuple[str, str, int, tuple[str, ...]], list[BenchmarkSummary]] = {}
    for item in items:
        signatures = tuple(score.signature for score in item.scores)
        groups.setdefault((item.testset, item.split, item.n_segments, signatures), []).append(item)
    parts: list[RenderableType] = []
    for (testset, split, n_segments, signatures), members in groups.items():
        metrics = [score.metric for score in members[0].scores]
        columns = ["", *(HEADINGS[name] for name in metrics), "mean sentence BLEU"]
        parts += [
            Text(f"{testset} {split}, {n_segments} segments, with 95 % intervals:"),
            table(columns, [[item.of, *_cells(item)] for item in members]),
            *(Text(f"{HEADINGS[name]}: {signature}") for name, signature in zip(metrics, signatures, strict=True)),
            Text(""),
        ]
    return Group(*parts[:-1])


def run_table(records: Iterable[RunRecord]) -> Table:
    """Runs, a line each, with the last complete benchmark in words."""
    rows = []
    for record in records:
        last = next((item for item in reversed(record.benchmarks) if item.scores), None)
        said = ", ".join(f"{HEADINGS[score.metric]} {score.score:.1f}" for score in last.scores) if last else ""
        steps = f"{record.training.steps}/{record.training.total_steps}" if record.training else ""
        trained_on = ", ".join(data.dataset for data in record.facts.data if data.split == "train") or "-"
        of = f" ({last.of}: {last.testset} {last.split}, {last.n_segments} segments)" if last else ""
        when = f"{record.created_at.astimezone():%Y-%m-%d %H:%M}"
        rows.append([record.id, record.status, when, trained_on, steps, said + of])
    return table(["run", "status", "created", "trained on", "steps", "last benchmark"], rows)


def _cells(item: BenchmarkSummary) -> list[str]:
    intervals = [f" [{score.ci95[0]:.1f}, {score.ci95[1]:.1f}]" if score.ci95 else "" for score in item.scores]
    cells = [f"{score.score:.1f}{interval}" for score, interval in zip(item.scores, intervals, strict=True)]
    return [*cells, "" if item.mean_sentence_bleu is None else f"{item.mean_sentence_bleu:.1f}"]


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_file(files: Mapping[str, str], name: str, of: str) -> None:
    """One of some texts, as it is. SpecError where there is none of that name."""
    if name not in files:
        raise SpecError(f"{of} has no {name}{did_you_mean(name, files)}; it has: {', '.join(files)}")
    sys.stdout.write(files[name])


def print_scores(items: Sequence[BenchmarkSummary]) -> None:
    """The tables of some benchmarks; nothing for none."""
    if items:
        console().print(Group(Text(), score_tables(items)))


def print_differences(one: Side, other: Side, as_json: bool) -> None:
    """What differs between two specs or runs, a line each; a note where changed defaults cannot be known."""
    found = differences(one, other)
    for side in (one, other):
        if side.defaults is None and one.versions != other.versions:
            sys.stderr.write(f"note: {side.name} kept no defaults: whether they changed since cannot be told\n")
    if as_json:
        print_json({"one": one.name, "other": other.name, "differences": [asdict(each) for each in found]})
    elif found:
        lines = [f"--- {visible(one.heading())}", f"+++ {visible(other.heading())}", *(each.line() for each in found)]
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        sys.stderr.write("nothing differs\n")


def print_run(record: RunRecord, path: Path, now: Sequence[str] = ()) -> None:
    """A run: its line, what it is at, why it ended, its benchmarks, its folder."""
    console().print(run_table([record]))
    sys.stdout.write("".join(f"\n{visible(line)}\n" for line in now))
    if record.error:
        sys.stdout.write(f"\n{record.status}: {visible(record.error.splitlines()[0])}\n")
    print_scores(record.benchmarks)
    sys.stdout.write(f"\n{path}\n")
