"""What a command prints: one JSON document, or tables and lines for a person, and files as they are.

Every text may be a stranger's: control characters are made visible, nothing is markup. A pipe gets lines of any length.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.benchmark.compare import Comparison, Sentences
from orchestrator.benchmark.selection import Curve
from orchestrator.errors import SpecError, did_you_mean
from orchestrator.runs import groups
from orchestrator.runs.differences import Side, differences
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.registry import Notes, Row
from orchestrator.runs.rundir import GroupDir, RunDir, Workspace
from orchestrator.runs.state import current, lines, usage_lines
from orchestrator.runs.trash import in_trash
from orchestrator.scoring.diagnostics import describe
from orchestrator.scoring.metrics import HEADINGS, higher_is_better
from orchestrator.scoring.significance import PairedTest
from orchestrator.text import escape_controls

_OTHER_NUMBERS = ("mean_sentence_bleu", "llamafactory_bleu4")  # also called BLEU elsewhere, and other numbers
_PIPE_COLUMNS = 100_000
_TEST_COLUMNS = ["", "metric", "difference", "95 % interval", "p", "p (Holm)", "p (bootstrap)", "MDE"]


def show(document: Any, *parts: RenderableType, as_json: bool = False) -> None:
    """Print one JSON document, or its parts for a person: tables, and texts of one line each."""
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return
    is_terminal = sys.stdout.isatty()
    screen = Console(highlight=False, width=None if is_terminal else _PIPE_COLUMNS)
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


def print_file(files: Mapping[str, str | Path], name: str, of: str) -> None:
    """Print one of some files, which are texts or paths, by name. SpecError where there is none of that name."""
    if name not in files:
        raise SpecError(f"{of} has no file {name!r}{did_you_mean(name, files)}; it has: {', '.join(files)}")
    found = files[name]
    print_text(found if isinstance(found, str) else found.read_bytes())


def score_tables(items: Sequence[BenchmarkSummary]) -> RenderableType:
    """A table for each test set, prompt and set of signatures, which stand under it."""
    tables: dict[tuple[str, str, str, str, int, tuple[str, ...]], list[BenchmarkSummary]] = {}
    for item in items:
        signatures = tuple(score.signature for score in item.scores)
        about = (item.testset, item.split, item.text_sha256, item.prompts_sha256, item.n_segments, signatures)
        tables.setdefault(about, []).append(item)
    parts: list[RenderableType] = []
    for (testset, split, _, prompts, n_segments, signatures), members in tables.items():
        others = {each[3] for each in tables if each[:2] == (testset, split)}
        which = f" of prompts {prompts[:8] or 'unknown'}" if len(others) > 1 else ""
        metrics = [score.metric for score in members[0].scores]
        columns = ["", *(HEADINGS[name] for name in [*metrics, *_OTHER_NUMBERS])]
        parts += [
            line(f"{testset} {split}, {n_segments} segments{which}, with 95 % intervals:"),
            table(columns, [[item.of, *_cells(item)] for item in members]),
            *(line(f"{HEADINGS[name]}: {signature}") for name, signature in zip(metrics, signatures, strict=True)),
            *(line(remark) for item in members for remark in _remarks(item)),
            Text(),
        ]
    return Group(*parts[:-1])


def _cells(item: BenchmarkSummary) -> list[str]:
    others = (getattr(item, name) for name in _OTHER_NUMBERS)
    scores = [f"{score.score:.1f}{_interval(score.ci95)}" for score in item.scores]
    return [*scores, *("" if number is None else f"{number:.1f}" for number in others)]


def _interval(ci95: tuple[float, float] | None, digits: int = 1) -> str:
    return f" [{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}]" if ci95 else ""


def _remarks(item: BenchmarkSummary) -> list[str]:
    """COMET's scores, which share no scale with the others, and what a score does not tell."""
    found = [f"{item.of}: COMET {each.score:.4f}{_interval(each.ci95, 4)}, {each.signature}" for each in item.comet]
    if item.status == "incomplete" and item.n_asked is not None:
        found.append(f"{item.of}: incomplete, {item.n_segments} of {item.n_asked} sentences were answered")
    if faults := describe(item.faults):
        found.append(f"{item.of}: hypotheses with issues: {faults}")
    return found


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
    made.columns[0].no_wrap = made.columns[1].no_wrap = True  # an id is copied, a status one word
    return made


def curve_parts(curve: Curve) -> list[RenderableType]:
    """A run's checkpoints by step, and the one that was chosen."""
    heading = HEADINGS[curve.metric]
    rows = []
    for point in filter(None, [curve.base, *curve.points]):
        score = next(each for each in point.scores if each.metric == curve.metric)
        remarks = ["before training"] if point is curve.base else ["chosen"] if point.label == curve.chosen else []
        step, label = "?" if point.step is None else str(point.step), " = ".join([point.label, *point.same_as])
        test = "" if point.test is None else f"{point.test.difference:+.1f}, p = {point.test.p_holm:.2g}"
        words = ", ".join([*remarks, *["worse"] * point.worse])
        rows.append([step, label, f"{score.score:.1f}{_interval(score.ci95)}", test, words])
    return [
        f"{curve.testset} {curve.split}, {curve.n_segments} segments, with 95 % intervals:",
        table(["step", "checkpoint", heading, "against the best", ""], rows),
        f"{heading}: {curve.signature}",
        *(f"{label} is left out: {reason}" for label, reason in curve.left_out.items()),
        curve.words(),
        *(["", score_tables(curve.test)] if curve.test else []),
    ]


def show_differences(one: Side, other: Side, as_json: bool) -> None:
    """What differs between two specs or runs, a line each."""
    found = differences(one, other)
    if not found and not as_json:
        sys.stderr.write("nothing differs\n")
        return
    document = {"one": one.name, "other": other.name, "differences": [each.as_json() for each in found]}
    arrows = (each.arrow() for each in found)
    show(document, f"--- {one.name}", f"+++ {other.name}", *arrows, as_json=as_json)


def show_run(run: RunDir, as_json: bool) -> None:
    """A run: its line, what it is at, why it ended, its notes, its benchmarks, what it took, its folder."""
    record, notes = current(run), Notes.load(run)
    row = Row(run, record, notes)
    parts: list[RenderableType] = [run_table([row]), *(part for each in lines(run, record) for part in ("", each))]
    error = record.error and f"{record.status}: {record.error.splitlines()[0]}"
    parts += [part for each in (error, record.results_elsewhere) if each for part in ("", each)]
    if row.is_removed:
        held = in_trash(Workspace(run.path.parent.parent), run.id)
        back = f"back with: orchestrator rm --restore {run.id}" if held else "for good"
        parts += [f"removed: weights and logs, {back}"]
    parts += note_lines(notes)
    if record.benchmarks:
        parts += ["", score_tables(record.benchmarks)]
    if record.chosen_checkpoint:
        parts += ["", f"chosen checkpoint: {record.chosen_checkpoint}, by {run.curve}"]
    if took := usage_lines(record):
        parts += ["", *took]
    show(row.as_json(), *parts, "", str(run.path), as_json=as_json)


def note_lines(notes: Notes) -> list[str]:
    return [
        f"{f'{note.at.astimezone():%Y-%m-%d %H:%M}' if number == 0 else '':16}  {text}"
        for note in notes.notes
        for number, text in enumerate(note.text.splitlines() or [""])
    ]


def show_group(folder: GroupDir, as_json: bool) -> None:
    """A group's runs with the swept values of each, how many are done, and what is left to do."""
    group = groups.Group.load(folder)
    found = groups.members(folder, group)
    rows = []
    for each in found:
        row = each.record and Row(each.run, each.record, Notes())
        error = shorten(((each.record and each.record.error) or "").partition("\n")[0], 80, placeholder=" ...")
        steps, last = (row.steps, row.last_benchmark or error) if row else ("", "")
        rows.append([*each.point.values, each.status, steps, each.run.id, last])
    columns = [*groups.short_keys(group.axes), "status", "steps", "run", "last benchmark, or error"]
    done = sum(each.is_finished() for each in found)
    ends = [f"{len(rows)} runs, {done} done: {folder.path}", *filter(None, [groups.remaining(folder, group)])]
    show(groups.group_json(folder, group), table(columns, rows), "", *ends, as_json=as_json)


def comparison_text(comparison: Comparison) -> RenderableType:
    title = f"{comparison.testset} {comparison.split}, {comparison.n_segments} segments; against {comparison.baseline}:"
    systems = comparison.systems
    verdicts = [*comparison.verdicts, *(f"note: {each}" for each in comparison.notes)]
    parts: list[RenderableType] = [line(title), *(line(f"  {each}") for each in verdicts)]
    scores = [[each.name, *(f"{score:.2f}" for score in each.scores.values()), each.target] for each in systems]
    parts += [Text(), table(["", *(HEADINGS[metric] for metric in comparison.signatures), "of"], scores)]
    parts += [Text(), table(_TEST_COLUMNS, map(_test_row, comparison.tests)), *map(line, _small_print(comparison))]
    faults = {each.name: describe(each.issues) for each in systems}
    parts += [line(f"{name}: hypotheses with issues: {found}") for name, found in faults.items() if found]
    for each in comparison.sentences:
        parts += [Text(), *map(line, _sentences(each, comparison.baseline))]
    return Group(*parts)


def _test_row(test: PairedTest) -> list[str]:
    interval = "" if test.ci95 is None else f"[{test.ci95[0]:+.2f}, {test.ci95[1]:+.2f}]"
    p_values = (f"{p:.4f}" for p in (test.p_value, test.p_holm, test.p_bootstrap))
    mde = "" if test.mde is None else f"{test.mde:.2f}"
    return [test.system, HEADINGS[test.metric], f"{test.difference:+.2f}", interval, *p_values, mde]


def _small_print(about: Comparison) -> list[str]:
    lines = [
        f"p: paired approximate randomization, {about.n_randomizations} trials of seed {about.seed}, ties against it",
        f"p (Holm): corrected within each metric; its comparisons: {about.n_comparisons}",
        f"95 % interval, p (bootstrap): paired bootstrap, {about.n_bootstrap} resamples, p as in sacrebleu",
        f"MDE: {about.mde}",
    ]
    for metric, signature in about.signatures.items():
        lines.append(f"{HEADINGS[metric]}: {signature}{'' if higher_is_better(metric) else ' (lower is better)'}")
    return lines


def _sentences(sentences: Sentences, baseline: str) -> list[str]:
    counts = f"higher in {sentences.better}, lower in {sentences.worse}, the same in {sentences.equal}"
    found = [f"{sentences.system} against {baseline}, sentence by sentence, by chrF2: {counts}"]
    names = ("source", "reference", baseline, sentences.system)
    for each in sentences.examples:
        texts = zip(names, [each.source, each.reference, *each.hypotheses], strict=True)
        found.append(f"  {each.index}: chrF2 {each.chrf[0]:.1f} -> {each.chrf[1]:.1f}")
        found += [f"    {name:{max(map(len, names))}}  {text}" for name, text in texts]
    return found
