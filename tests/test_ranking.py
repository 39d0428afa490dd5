"""The order of runs, and which scores are ranked against each other. Run: pytest tests/test_ranking.py."""

import pytest

from orchestrator.errors import SpecError
from orchestrator.runs.ranking import put_in_order
from orchestrator.runs.registry import read_rows
from tests.runs_on_disk import SIGNATURES, benchmark, new_run, new_workspace


@pytest.fixture
def order(tmp_path):
    """The order of some runs, by their names; each is given by its benchmarks, or by fields of its record."""

    def put(word: str, runs: dict, limit: int | None = None) -> tuple[str, list[str]]:
        workspace = new_workspace(tmp_path / "w")
        for number, (name, given) in enumerate(runs.items()):
            fields = given if isinstance(given, dict) else {"benchmarks": given}
            created = f"2026-11-24T10:15:{number:02d}Z"
            new_run(workspace, f"{name}-20261124-1015{number:02d}", **{"name": name, "created_at": created, **fields})
        rows, _ = read_rows(workspace, tmp_path / "cache")
        found = put_in_order(rows, word, limit)
        put.last = {row.name: row.last for row in found.rows}
        return " ".join(row.name for row in found.rows), found.notes

    return put


def test_by_time_the_oldest_first_and_a_limit_keeps_the_newest(order):
    assert order("created", {"c": {}, "a": {}, "b": {}}, 2)[0] == "a b"


def test_of_one_second_the_numbers_count(tmp_path):
    workspace = new_workspace(tmp_path / "w")
    for number in (10, 2, 9):
        new_run(workspace, f"toy-20261124-101500-{number}")
    rows, _ = read_rows(workspace, tmp_path / "cache")
    assert [row.id.rpartition("-")[2] for row in put_in_order(rows, "created").rows] == ["2", "9", "10"]


def test_by_end_what_has_none_last(order):
    ended = {name: {"ended_at": f"2026-11-25T0{hour}:00:00Z"} for name, hour in (("a", 3), ("b", 1), ("c", 2))}
    assert order("ended", {"d": {"ended_at": None}, **ended})[0] == "b c a d"


@pytest.mark.parametrize(("metric", "expected"), [("bleu", "b c a"), ("chrf", "b c a"), ("ter", "b c a")])
def test_by_a_score_the_best_first_which_for_ter_is_the_lowest(order, metric, expected):
    found, notes = order(metric, {"a": [benchmark(1)], "b": [benchmark(3)], "c": [benchmark(2)]})
    assert found == expected
    assert len(notes) == 1 and f"on captions test, 40 segments, {SIGNATURES[metric]}" in notes[0]
    assert notes[0].endswith("(lower is better)") is (metric == "ter")


def test_a_limit_keeps_the_best(order):
    assert order("bleu", {"a": [benchmark(1)], "b": [benchmark(3)], "c": [benchmark(2)]}, 2)[0] == "b c"


@pytest.mark.parametrize(
    "other",
    [
        [],
        [benchmark(9, testset="other")],
        [benchmark(9, split="valid")],
        [benchmark(9, n_segments=39)],
        [benchmark(9, signatures={"bleu": "tok:zh"})],
        [benchmark(9, status="incomplete", scores=[])],
        {"benchmarks": [benchmark(9)], "facts": {"data": [
            {"dataset": "captions", "split": "test", "pairs": 1, "blank_pairs": 0, "sha256": "changed"}]}},
    ],
    ids=["none", "test set", "split", "segments", "signature", "incomplete", "text"],
)  # fmt: skip
def test_what_cannot_be_compared_stands_at_the_end_and_that_is_said(order, other):
    found, notes = order("bleu", {"x": other, "a": [benchmark(1)], "b": [benchmark(2)]})
    assert found == "b a x"
    elsewhere = int(not (other == [] or (isinstance(other, list) and other[0]["status"] == "incomplete")))
    assert notes[1].startswith(f"at the end, not ranked: 1 of 3 runs; {elsewhere} of them have BLEU on other")


def test_a_test_set_can_be_named(order):
    runs = {
        "a": [benchmark(1), benchmark(2, testset="other")],
        "b": [benchmark(3)],
        "c": [benchmark(1, testset="other")],
    }
    found, notes = order("bleu:other", runs)
    assert found == "a c b" and "on other test" in notes[0]


def test_where_the_record_does_not_tell_the_text_it_is_taken_for_the_same(order):
    found, notes = order("bleu", {"a": [benchmark(1)], "b": {"benchmarks": [benchmark(2)], "facts": {}}})
    assert found == "b a" and len(notes) == 1


@pytest.mark.parametrize(
    ("benchmarks", "shown"),
    [
        ([benchmark(9, "base"), benchmark(2)], "BLEU 2.0 (output:"),
        ([benchmark(2), benchmark(9, "base")], "BLEU 2.0 (output:"),
        ([benchmark(2), benchmark(9, "checkpoint-5")], "BLEU 2.0 (output:"),
        ([benchmark(2), benchmark(3)], "BLEU 3.0 (output:"),
        ([benchmark(9, "base"), benchmark(2, "checkpoint-5")], "BLEU 2.0 (checkpoint-5:"),
        ([benchmark(9, "base")], "BLEU 9.0 (base:"),
    ],
)
def test_a_run_stands_where_what_it_trained_stands(order, benchmarks, shown):
    order("bleu", {"a": benchmarks})
    assert order.last["a"].startswith(shown)


@pytest.mark.parametrize("word", ["blue", "", "bleu2", "created:captions", "mean_sentence_bleu", ":x"])
def test_what_is_no_order_is_refused(word):
    with pytest.raises(SpecError, match="no order"):
        put_in_order([], word)


def test_a_test_set_without_scores_gets_a_hint(order):
    with pytest.raises(SpecError, match="none of 1 runs has a complete BLEU on 'captoins'; did you mean 'captions'"):
        order("bleu:captoins", {"a": [benchmark(1)]})


def test_no_runs_are_in_any_order():
    assert put_in_order([], "bleu") == ([], [])


def test_scores_that_are_no_numbers_do_not_upset_the_order(order):
    found, _ = order("bleu", {"a": [benchmark(1)], "b": [benchmark(float("nan"))], "c": [benchmark(2)]})
    assert found == "c a b"
