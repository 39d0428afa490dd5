"""Tables: text only, and only what can be compared in one column. Run: pytest tests/test_terminal.py."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from orchestrator.record import BenchmarkSummary, DataFacts, Facts, RunRecord, Training
from orchestrator.score import Score
from orchestrator.terminal import console, run_table, score_tables, table


def shown(what) -> str:
    """As a file or a pipe gets it."""
    target = io.StringIO()
    Console(file=target, width=240, highlight=False).print(what)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


def score(metric: str, value: float, signature: str = "v:2.6", ci95=None) -> Score:
    return Score(metric=metric, score=value, ci95=ci95, signature=f"{metric}|{signature}", n_segments=100)


def summary(
    of: str, *scores: Score, testset: str = "toy", split: str = "test", n_segments: int = 100
) -> BenchmarkSummary:
    return BenchmarkSummary(
        id=f"{of}-{testset}", of=of, testset=testset, split=split, status="complete", n_segments=n_segments,
        scores=list(scores), mean_sentence_bleu=7.26, llamafactory_bleu4=31.41,
    )  # fmt: skip


def record(**changes: object) -> RunRecord:
    fields = {"id": "toy-20261124-101500", "name": "toy", "spec_sha256": "0", "seed": 1}
    return RunRecord(created_at=datetime(2026, 11, 24, 10, 15, tzinfo=UTC), **{**fields, **changes})


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
        "output: answers with a fault: 2 empty, 1 repetition",
    ]


def test_a_benchmark_of_an_older_record_has_what_it_has():
    older = BenchmarkSummary.model_validate_json(
        '{"id": "x", "of": "output", "testset": "toy", "split": "test", "status": "complete", "n_segments": 3,'
        ' "scores": [{"metric": "bleu", "score": 1.5, "signature": "s", "n_segments": 3}], "mean_sentence_bleu": 2.0}'
    )
    assert shown(score_tables([older])).splitlines()[2:] == ["output  1.5   2.0", "BLEU: s"]


def test_no_benchmark_is_no_table():
    assert shown(score_tables([])) == ""


def test_a_run_is_a_line_with_its_last_scores():
    done = record(
        status="done",
        training=Training(steps=50, total_steps=50),
        facts=Facts(data=[DataFacts(dataset=d, split=s, pairs=1, blank_pairs=0, sha256="x") for d, s in
                          (("captions", "train"), ("captions", "test"))]),
        benchmarks=[summary("output", score("bleu", 4.84), score("chrf", 26.7)), summary("base")],
    )  # fmt: skip
    heading, line = shown(run_table([done])).splitlines()
    assert heading.split() == ["run", "status", "created", "trained", "on", "steps", "last", "benchmark"]
    assert line.startswith("toy-20261124-101500  done ")
    assert line.endswith("captions    50/50  BLEU 4.8, chrF2 26.7 (output: toy test, 100 segments)")


def test_a_run_that_has_nothing_yet_is_a_line_too():
    line = shown(run_table([record()])).splitlines()[1]
    assert line.split()[:2] == ["toy-20261124-101500", "created"]


def test_text_of_strangers_is_neither_markup_nor_obeyed():
    said = shown(table(["[bold]x[/bold]"], [["[red]a[/red]"], ["\x1b[31mb\x07"], [":smile:"], ["日本語 😀"]]))
    assert "[red]a[/red]" in said
    assert "\\x1b[31mb\\x07" in said
    assert ":smile:" in said
    assert "日本語 😀" in said


def test_nothing_is_cut_where_the_output_is_a_pipe(capsys):
    console().print(table(["a", "b"], [["x" * 100, "y" * 100]]))
    assert f"{'x' * 100}  {'y' * 100}" in capsys.readouterr().out
