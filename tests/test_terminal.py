"""Tables: text only, and only what can be compared in one column. Run: pytest tests/test_terminal.py."""

import io
import re
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len
from rich.console import Console

from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.registry import Row
from orchestrator.scoring.metrics import Score
from orchestrator.views.terminal import console, run_table, score_tables, table


def shown(what) -> str:
    """As a file or a pipe gets it."""
    target = io.StringIO()
    Console(file=target, width=240, highlight=False).print(what)
    return target.getvalue().removesuffix("\n")


def score(metric: str, value: float, signature: str = "v:2.6", ci95=None) -> Score:
    return Score(metric=metric, score=value, ci95=ci95, signature=f"{metric}|{signature}", n_segments=100)


def summary(
    of: str, *scores: Score, testset: str = "toy", split: str = "test", n_segments: int = 100
) -> BenchmarkSummary:
    return BenchmarkSummary(
        id=f"{of}-{testset}", of=of, testset=testset, split=split, status="complete", n_segments=n_segments,
        scores=list(scores), mean_sentence_bleu=7.26, llamafactory_bleu4=31.41,
    )  # fmt: skip


def row(**changes: object) -> Row:
    fields = {
        "id": "toy-20261124-101500", "status": "created", "created": datetime.fromtimestamp(1795515300.0, UTC),
        "ended": None, "name": "toy", "model": "models/tiny", "datasets": ["captions"], "steps": "", "last": "",
        "results": [], "tags": [], "removed": False, "group": "",
    }  # fmt: skip
    return Row(**{**fields, **changes})


def test_base_and_fine_tuned_stand_in_one_table_with_intervals_and_signatures():
    base = summary("base", score("bleu", 0.41, ci95=(0.2, 0.6)), score("chrf", 16.14, ci95=(15.04, 17.24)))
    tuned = summary("output", score("bleu", 4.84, ci95=(4.0, 5.7)), score("chrf", 26.7, ci95=(24.1, 29.3)))
    assert shown(score_tables([base, tuned])).splitlines() == [
        "toy test, 100 segments, with 95 % intervals:",
        "        BLEU            chrF2              mean sentence BLEU  character BLEU-4 (LLaMA-Factory)",
        "base    0.4 [0.2, 0.6]  16.1 [15.0, 17.2]  7.3                 31.4",
        "output  4.8 [4.0, 5.7]  26.7 [24.1, 29.3]  7.3                 31.4",
        "BLEU: bleu|v:2.6",
        "chrF2: chrf|v:2.6",
    ]


@pytest.mark.parametrize(
    "other",
    [
        summary("b", score("bleu", 2.0), testset="other"),
        summary("b", score("bleu", 2.0), split="valid"),
        summary("b", score("bleu", 2.0), n_segments=99),
        summary("b", score("bleu", 2.0, signature="v:2.5")),
        summary("b", score("bleu", 2.0), score("ter", 3.0)),
    ],
    ids=["test set", "split", "segments", "signature", "metrics"],
)
def test_what_cannot_be_compared_is_in_a_table_of_its_own(other):
    said = shown(score_tables([summary("a", score("bleu", 1.0)), other]))
    assert said.count("segments, with 95 % intervals") == 2
    assert said.count("BLEU: bleu|") == 2


def test_what_a_score_does_not_tell_stands_under_it():
    item = summary("output", score("bleu", 4.8)).model_copy(
        update={"status": "incomplete", "n_asked": 120, "faults": {"empty": 2, "cut_off": None, "repetition": 1}}
    )
    assert shown(score_tables([item, summary("base", score("bleu", 1.0))])).splitlines()[-2:] == [
        "output: incomplete, 100 of 120 sentences were answered",
        "output: hypotheses with issues: 2 empty, 1 repetition",
    ]


def test_a_benchmark_of_an_older_record_has_what_it_has():
    older = BenchmarkSummary.model_validate_json(
        '{"id": "x", "of": "output", "testset": "toy", "split": "test", "status": "complete", "n_segments": 3,'
        ' "scores": [{"metric": "bleu", "score": 1.5, "signature": "s", "n_segments": 3}], "mean_sentence_bleu": 2.0}'
    )
    assert shown(score_tables([older])).splitlines()[2:] == ["output  1.5   2.0", "BLEU: s"]


def test_no_benchmark_is_no_table():
    assert shown(score_tables([])) == ""


LAST = "BLEU 4.8, chrF2 26.7 (output: toy test, 100 segments)"


def test_a_run_is_a_line_with_its_last_scores():
    heading, line = run_table([row(status="done", steps="50/50", last=LAST)])
    assert heading.split() == ["run", "status", "created", "trained", "on", "steps", "last", "benchmark"]
    assert line.startswith("toy-20261124-101500  done ")
    assert line.endswith(f"captions    50/50  {LAST}")


def test_a_run_that_has_nothing_yet_is_a_line_too():
    line = run_table([row(datasets=[])])[1]
    assert line.split()[:2] == ["toy-20261124-101500", "created"]
    assert line.split()[-1] == "-"


def test_tags_have_a_column_where_a_run_has_some_and_what_was_removed_is_said():
    heading, first, second = run_table([row(tags=["baseline", "paper"]), row(status="done", removed=True)])
    assert "tags" in heading.split() and "baseline, paper" in first
    assert "  done, removed  " in second


LONG = row(
    id="multi30k-en-de-20261124-101500-2", status="interrupted", steps="1000/5437", tags=["baseline", "paper"],
    datasets=["multi30k_en_de", "captions_en_de"],
    last="BLEU 41.8, chrF2 66.7, TER 44.0 (output: multi30k_en_de test, 1000 segments)",
)  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("rows", [[LONG], [row(last=LAST), LONG], [row(id="日本語-20261124-101500" * 3)]])
def test_on_a_terminal_no_line_is_wider_than_it(rows, width):
    assert max(cell_len(line) for line in run_table(rows, width)) <= width


def test_at_80_columns_run_status_and_scores_are_whole_and_what_there_is_room_for():
    lines = run_table([row(status="done", last=LAST), LONG], 80)
    assert lines[0].split()[:2] == ["run", "status"] and "steps" not in lines[0]
    words = " ".join(lines).split()
    assert {"toy-20261124-101500", "interrupted", "41.8,", "66.7,", "44.0", "1000"} <= set(words)
    roomy = run_table([row(status="done", last="BLEU 4.8")], 80)
    assert roomy[0].split() == ["run", "status", "created", "trained", "on", "steps", "last", "benchmark"]


def test_a_wide_terminal_shows_what_a_pipe_gets():
    rows = [row(last=LAST), LONG]
    assert run_table(rows, 240) == run_table(rows)


def test_what_strangers_named_is_shown_not_obeyed():
    line = run_table([row(id="a\x1b[31m\udcff", tags=["\x07"], datasets=["b\tc"], last="d\r", removed=True)])[1]
    assert "a\\x1b[31m\\udcff" in line and "\\x07" in line and "b c" in line and "d\\x0d" in line


def test_text_of_strangers_is_neither_markup_nor_obeyed():
    said = shown(table(["[bold]x[/bold]"], [["[red]a[/red]"], ["\x1b[31mb\x07"], [":smile:"], ["日本語 😀"]]))
    assert "[red]a[/red]" in said
    assert "\\x1b[31mb\\x07" in said
    assert ":smile:" in said
    assert "日本語 😀" in said


@pytest.mark.parametrize("width", [40, 240])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_line_of_a_table_ends_in_blanks(is_terminal, width):
    target = io.StringIO()
    rows = [["a", ""], ["", "x" * 60], ["word " * 12, "b"], ["", ""]]
    screen = Console(file=target, width=width, highlight=False, color_system="standard" if is_terminal else None)
    screen.print(table(["first", "a longer heading"], rows))
    said = target.getvalue()
    assert ("\x1b[1m" in said) is is_terminal and "x" * 10 in said
    assert not [line for line in said.splitlines() if re.search(r" (\x1b\[[0-9;]*m)*$", line)]


def test_nothing_is_cut_where_the_output_is_a_pipe(capsys):
    console().print(table(["a", "b"], [["x" * 100, "y" * 100]]))
    assert f"{'x' * 100}  {'y' * 100}" in capsys.readouterr().out
