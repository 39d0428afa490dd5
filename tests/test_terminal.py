"""What is printed: only what can be compared in one column, and strangers' text as text."""

import logging
import re
import sys

import pytest
from rich.cells import cell_len

from orchestrator.__main__ import _Escaping
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.registry import change_tags, read_rows
from orchestrator.scoring.metrics import Score
from orchestrator.views.terminal import run_table, score_tables, show, table
from tests.runs_on_disk import new_run, new_workspace


@pytest.fixture
def shown(capsys):
    """What is printed: as a pipe gets it, unless `on_terminal` comes first."""

    def call(*parts):
        show(None, *parts)
        return capsys.readouterr().out

    return call


@pytest.fixture
def on_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return lambda: monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def score(metric, value, signature="v:2.6", ci95=None):
    return Score(metric=metric, score=value, ci95=ci95, signature=f"{metric}|{signature}", n_segments=100)


def summary(of, *scores, **changes):
    fields = {"testset": "toy", "split": "test", "status": "complete", "n_segments": 100, "llamafactory_bleu4": 31.41}
    return BenchmarkSummary(id=of, of=of, scores=list(scores), mean_sentence_bleu=7.26, **{**fields, **changes})


def test_base_and_fine_tuned_stand_in_one_table_with_intervals_and_signatures(shown):
    base = summary("base", score("bleu", 0.41, ci95=(0.2, 0.6)), score("chrf", 16.14, ci95=(15.04, 17.24)))
    tuned = summary("output", score("bleu", 4.84, ci95=(4.0, 5.7)), score("chrf", 26.7), llamafactory_bleu4=None)
    assert shown(score_tables([base, tuned])).splitlines() == [
        "toy test, 100 segments, with 95 % intervals:",
        "        BLEU            chrF2              mean sentence BLEU  character BLEU-4 (LLaMA-Factory)",
        "base    0.4 [0.2, 0.6]  16.1 [15.0, 17.2]  7.3                 31.4",
        "output  4.8 [4.0, 5.7]  26.7               7.3",
        "BLEU: bleu|v:2.6",
        "chrF2: chrf|v:2.6",
    ]


@pytest.mark.parametrize(
    "change",
    [{"testset": "other"}, {"split": "valid"}, {"n_segments": 99}, {"prompts_sha256": "1"}, {"text_sha256": "1"}, {}],
)
def test_what_cannot_be_compared_is_in_a_table_of_its_own(change, shown):
    other = summary("b", score("bleu", 2.0, signature="v:2.6" if change else "v:2.5"), **change)
    assert shown(score_tables([summary("a", score("bleu", 1.0)), other])).count("BLEU: bleu|") == 2


def test_incomplete_answers_and_issues_stand_under_a_score(shown):
    issues = {"empty": 2, "cut_off": None, "repetition": 1}
    item = summary("output", score("bleu", 4.8), status="incomplete", n_asked=120, faults=issues)
    assert shown(score_tables([item])).splitlines()[-2:] == [
        "output: incomplete, 100 of 120 sentences were answered",
        "output: hypotheses with issues: 2 empty, 1 repetition",
    ]


def test_a_run_is_a_line_and_on_a_terminal_no_wider_than_that(shown, on_terminal, tmp_path):
    place = new_workspace(tmp_path)
    new_run(place, "toy-20261124-101500")
    heading, line = shown(run_table(read_rows(place)[0])).splitlines()
    assert heading.split() == ["run", "status", "created", "trained", "on", "steps", "last", "benchmark"]
    assert line.startswith("toy-20261124-101500  done ")
    assert line.endswith("captions    50/50  BLEU 8.0, chrF2 16.0, TER 92.0 (output: captions test, 40 segments)"), line
    long = new_run(place, "multi30k-en-de-20261124-101500-2", status="failed", training=None, group="sweep-1")
    change_tags(long, ["baseline"], [])
    assert " group " in shown(run_table(read_rows(place)[0]))
    on_terminal()
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown(run_table(read_rows(place)[0])))
    assert max(map(cell_len, text.splitlines())) <= 80 and "multi30k-en-de-20261124-101500-2 " in text


def test_text_of_strangers_is_neither_markup_nor_obeyed_nor_cut(shown):
    rows = [["[red]a[/red]"], ["\x1b[31mb\x07\udcff"], [":smile:"], ["日本語 😀"], ["x" * 500]]
    text = shown(table(["[bold]x[/b]"], rows), "[i]line[/b] \x1b]52;c;x\x07 " + "y" * 500)
    for expected in ("[bold]x[/b]\n", "[red]a[/red]\n", "\\x1b[31mb\\x07\\udcff\n", ":smile:\n", "日本語 😀\n"):
        assert expected in text
    assert "x" * 500 + "\n[i]line[/b] \\x1b]52;c;x\\x07 " + "y" * 500 + "\n" in text


def test_no_line_ends_in_blanks_in_a_pipe_and_a_heading_is_bold_on_a_terminal_alone(shown, on_terminal):
    lines = shown(table(["first", "a longer heading"], [["a", ""], ["word " * 12, "b"]])).splitlines()
    assert lines == [line.rstrip() for line in lines] and "\x1b" not in "".join(lines)
    on_terminal()
    assert "\x1b[1m" in shown(table(["first"], [["a"]]))


def test_a_log_line_shows_a_strangers_control_characters():
    record = logging.LogRecord("orchestrator", logging.INFO, "", 0, "model %s\nnext", ("\x1b[31mEVIL",), None)
    assert _Escaping("%(message)s").format(record) == "model \\x1b[31mEVIL\nnext"
