"""Runs as rows: read, filtered, in order. Run: pytest tests/test_registry.py."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.errors import SpecError
from orchestrator.runs.notes import change_tags
from orchestrator.runs.registry import Filters, Row, read_rows, rows_json, since, sort_rows
from tests.runs_on_disk import SIGNATURES, benchmark, new_run, new_workspace, owned_by_another, record_json, running

ID = "toy-20261124-101500"


@pytest.fixture
def workspace(tmp_path):
    return new_workspace(tmp_path / 'it\'s my "work"')


@pytest.fixture
def read(workspace):
    """The rows by run id; nothing is damaged."""

    def rows() -> dict[str, Row]:
        found, problems = read_rows(workspace)
        assert problems == []
        return {row.id: row for row in found}

    return rows


def test_a_row_says_what_record_and_notes_say(workspace, read):
    empty = benchmark(0.0, status="incomplete", scores=[])
    run = new_run(
        workspace, ID, model="Qwen/Qwen2.5-7B", datasets=["pairs", "captions"], benchmarks=[benchmark(8.0), empty]
    )
    change_tags(run, ["b", "a"])
    row = read()[ID]
    assert (row.status, row.name, row.model) == ("done", "toy", "Qwen/Qwen2.5-7B")
    assert (row.steps, row.tags, row.removed) == ("50/50", ["b", "a"], False)
    assert row.datasets == ["pairs", "captions"]
    assert row.created == datetime(2026, 11, 24, 10, 15, tzinfo=UTC)
    assert row.last == "BLEU 8.0, chrF2 16.0, TER 92.0 (output: captions test, 40 segments)"


def test_a_run_whose_owner_lives_is_what_it_says_and_interrupted_when_it_is_gone(workspace, read):
    run = new_run(workspace, ID)
    with owned_by_another(run) as end:
        assert read()[ID].status == "running"
        end()
        assert read()[ID].status == "interrupted"


def test_a_run_that_trains_shows_how_far_it_is(workspace, read):
    run = new_run(workspace, ID)
    attempts = [{"started_at": "2026-11-24T10:15:00Z", "status": "running", "pid": 1, "host": "x"}]
    running(run, training=None, attempts=attempts)
    run.trainer_log.write_text(json.dumps({"current_steps": 4, "total_steps": 50, "loss": 2.0}) + "\n")
    assert read()[ID].steps == "4/50"


@pytest.mark.parametrize(
    ("changes", "gone", "removed"),
    [
        ({}, [], False),
        ({}, ["output"], True),
        ({"training": None, "status": "failed"}, ["output"], False),
        ({"training": None, "status": "stopped"}, ["output", "logs"], True),
        ({"training": None, "commands": {}}, ["output", "logs"], False),
    ],
    ids=["there", "weights gone", "failed before it had any", "stopped, then removed", "a benchmark"],
)
def test_removed_is_what_was_trained_and_is_gone(workspace, read, changes, gone, removed):
    run = new_run(workspace, ID, **changes)
    for name in gone:
        (run.path / name).rename(workspace.root / name)
    assert read()[ID].removed is removed


def test_of_rubbish_in_runs_only_runs_are_listed_and_what_is_damaged_is_named(workspace, tmp_path):
    good = new_run(workspace, ID)
    good.notes.write_text("{")
    outside = new_workspace(tmp_path / "other")
    linked = new_run(outside, "linked-20261124-101501")
    (workspace.runs / linked.id).symlink_to(linked.path)
    (workspace.runs / "loop").symlink_to(workspace.runs / "loop")
    (workspace.runs / "file").write_text("x")
    (workspace.runs / "empty").mkdir()
    (workspace.runs / "fifo").mkdir()
    os.mkfifo(workspace.runs / "fifo" / "record.json")
    (workspace.runs / "folder" / "record.json").mkdir(parents=True)
    no_text = os.fsdecode(b"toy-\xff")
    new_run(workspace, "toy-x").path.rename(workspace.runs / no_text)
    (workspace.trash / "toy" / "run").mkdir(parents=True)
    (workspace.trash / "toy" / "run" / "record.json").write_text(json.dumps(record_json("trashed")))
    damaged = {
        "cut": b'{"id": "cu',
        "list": b"[]",
        "none": b"",
        "binary": b"\xff\0",
        "deep": b"[" * 100_000,
        "huge": b"",
    }
    for name, content in damaged.items():
        (workspace.runs / name).mkdir()
        (workspace.runs / name / "record.json").write_bytes(content)
    os.truncate(workspace.runs / "huge" / "record.json", 1 << 40)
    rows, problems = read_rows(workspace)
    assert {row.id for row in rows} == {good.id, linked.id, no_text}
    named = {name for name in damaged if any(f"/{name}/record.json cannot be read" in line for line in problems)}
    assert named == {*damaged} and len(problems) == len(named) + 1
    assert any(str(good.notes) in line for line in problems)
    assert [each["tags"] for each in rows_json(workspace, rows)] == [[], [], []]


# Filters


@pytest.fixture
def three(workspace, read):
    """Two of one kind and another, by id."""
    new_run(workspace, "a-20261124-101500", name="a", model="/models/Qwen2.5-7B/", datasets=["pairs"])
    new_run(workspace, "a-20261125-101500", name="a", status="failed", created_at="2026-11-25T10:15:00Z", model="x/y")
    change_tags(new_run(workspace, "b-20261126-101500", name="b", created_at="2026-11-26T10:15:00Z"), ["one", "two"])
    return read()


DAY = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ["a-24", "a-25", "b-26"]),
        ({"statuses": ["failed", "done"]}, ["a-24", "a-25", "b-26"]),
        ({"name": "a"}, ["a-24", "a-25"]),
        ({"dataset": "pairs"}, ["a-24"]),
        ({"dataset": "capt*"}, ["a-24", "a-25", "b-26"]),
        ({"dataset": "pair"}, []),
        ({"model": "Qwen2.5-7B"}, ["a-24"]),
        ({"model": "*Qwen*"}, ["a-24"]),
        ({"model": "x/y"}, ["a-25"]),
        ({"model": "qwen2.5-7b"}, []),
        ({"tags": ["one", "two"]}, ["b-26"]),
        ({"tags": ["one", "three"]}, []),
        ({"since": DAY + timedelta(hours=10, minutes=15)}, ["a-25", "b-26"]),
        ({"since": DAY, "name": "a", "statuses": ["failed"]}, ["a-25"]),
    ],
)
def test_every_filter_that_is_given_matches(three, given, found):
    kept = [row.id for row in three.values() if Filters(**given).matches(row)]
    assert [f"{name[0]}-{name[8:10]}" for name in kept] == found


def test_an_unknown_status_gets_a_hint():
    with pytest.raises(SpecError, match="no status 'runing'; did you mean 'running'"):
        Filters(statuses=["done", "runing"]).check()


NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", NOW - timedelta(days=7)),
        ("12h", NOW - timedelta(hours=12)),
        ("30m", NOW - timedelta(minutes=30)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-11-20T10:00:00+02:00", datetime(2026, 11, 20, 8, tzinfo=UTC)),
        ("2026-11-20", datetime(2026, 11, 20).astimezone()),
    ],
)
def test_a_time_is_a_date_or_an_age(text, moment):
    assert since(text, NOW) == moment


@pytest.mark.parametrize(
    "text", ["", "7", "d", "-1d", "7y", "tomorrow", "2026-13-01", "999999w", "1 d", "0001-01-01T00:00:00+14:00"]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(SpecError, match="is no time"):
        since(text, NOW)


# Order


@pytest.fixture
def order(tmp_path):
    """The order of some runs, by their names; each is given by its benchmarks, or by fields of its record."""

    def put(word: str, runs: dict, limit: int | None = None) -> tuple[str, list[str]]:
        workspace = new_workspace(tmp_path / "w")
        for number, (name, given) in enumerate(runs.items()):
            fields = given if isinstance(given, dict) else {"benchmarks": given}
            created = f"2026-11-24T10:15:{number:02d}Z"
            new_run(workspace, f"{name}-20261124-1015{number:02d}", **{"name": name, "created_at": created, **fields})
        found = sort_rows(read_rows(workspace)[0], word, limit)
        put.last = {row.name: row.last for row in found.rows}
        return " ".join(row.name for row in found.rows), found.notes

    return put


def test_by_time_the_oldest_first_and_a_limit_keeps_the_newest(order):
    assert order("created", {"c": {}, "a": {}, "b": {}}, 2)[0] == "a b"


def test_by_end_what_has_none_last(order):
    ended = {name: {"ended_at": f"2026-11-25T0{hour}:00:00Z"} for name, hour in (("a", 3), ("b", 1), ("c", 2))}
    assert order("ended", {"d": {"ended_at": None}, **ended})[0] == "b c a d"


@pytest.mark.parametrize(("metric", "limit"), [("bleu", None), ("chrf", 2), ("ter", None)])
def test_by_a_score_the_best_first_which_for_ter_is_the_lowest(order, metric, limit):
    found, notes = order(metric, {"a": [benchmark(1)], "b": [benchmark(3)], "c": [benchmark(2)]}, limit)
    assert found == ("b c" if limit else "b c a")
    assert len(notes) == 1 and f"on captions test, 40 segments, {SIGNATURES[metric]}" in notes[0]
    assert notes[0].endswith("(lower is better)") is (metric == "ter")


@pytest.mark.parametrize(
    ("other", "elsewhere"),
    [
        ([], 0),
        ([benchmark(9, testset="other")], 1),
        ([benchmark(9, split="valid")], 1),
        ([benchmark(9, n_segments=39)], 1),
        ([benchmark(9, signatures={"bleu": "tok:zh"})], 1),
        ([benchmark(9, status="incomplete", scores=[])], 0),
        ({"benchmarks": [benchmark(9)], "facts": {"data": [
            {"dataset": "captions", "split": "test", "pairs": 1, "blank_pairs": 0, "sha256": "changed"}]}}, 1),
    ],
    ids=["none", "test set", "split", "segments", "signature", "incomplete", "text"],
)  # fmt: skip
def test_what_cannot_be_compared_stands_at_the_end_and_that_is_said(order, other, elsewhere):
    found, notes = order("bleu", {"x": other, "a": [benchmark(1)], "b": [benchmark(2)]})
    assert found == "b a x"
    assert notes[1].startswith(f"at the end, not ranked: 1 of 3 runs; {elsewhere} of them have BLEU on other")


def test_a_test_set_can_be_named(order):
    runs = {
        "a": [benchmark(1), benchmark(2, testset="other")],
        "b": [benchmark(3)],
        "c": [benchmark(1, testset="other")],
    }
    found, notes = order("bleu:other", runs)
    assert found == "a c b" and "on other test" in notes[0]


def test_where_the_record_does_not_say_the_text_it_is_taken_for_the_same(order):
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


@pytest.mark.parametrize("word", ["blue", "", "created:captions", ":x"])
def test_what_is_no_order_is_refused(word):
    with pytest.raises(SpecError, match="no order"):
        sort_rows([], word)
    assert sort_rows([], "bleu") == ([], [])


def test_scores_that_are_no_numbers_do_not_upset_the_order(order):
    found, _ = order("bleu", {"a": [benchmark(1)], "b": [benchmark(float("nan"))], "c": [benchmark(2)]})
    assert found == "c a b"
