"""Runs as rows: read, filtered, in order. Run: pytest tests/test_registry.py."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.errors import SpecError
from orchestrator.runs.registry import Filters, Row, change_tags, read_rows, since, sort_rows
from tests.runs_on_disk import benchmark, new_run, new_workspace

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
        return {row.run.id: row for row in found}

    return rows


def test_a_row_says_what_record_and_notes_say(workspace, read):
    empty = benchmark(0.0, status="incomplete", scores=[])
    run = new_run(
        workspace, ID, datasets=["pairs", "captions"], benchmarks=[benchmark(7.0, "base"), benchmark(8.0), empty]
    )
    change_tags(run, ["b", "a"])
    row = read()[ID]
    assert (row.record.status, row.steps, row.notes.tags, row.is_removed) == ("done", "50/50", ["b", "a"], False)
    assert row.datasets == ["pairs", "captions"]
    assert row.created == datetime(2026, 11, 24, 10, 15, tzinfo=UTC)
    assert row.last_benchmark == "BLEU 8.0, chrF2 16.0, TER 92.0 (output: captions test, 40 segments)"
    document = row.as_json()
    assert (document["id"], document["tags"], document["notes"], document["removed"]) == (ID, ["b", "a"], [], False)


@pytest.mark.parametrize(
    ("changes", "gone", "removed"),
    [({}, False, False), ({}, True, True), ({"training": None, "status": "failed"}, True, False)],
)
def test_removed_is_what_was_trained_and_is_gone(workspace, read, changes, gone, removed):
    run = new_run(workspace, ID, **changes)
    if gone:
        run.output.rename(workspace.root / "output")
    assert read()[ID].is_removed is removed


def test_of_rubbish_in_runs_only_runs_are_listed_and_what_is_damaged_is_named(workspace):
    good = new_run(workspace, ID)
    good.notes.write_text("{")
    (workspace.runs / "loop").symlink_to(workspace.runs / "loop")
    (workspace.runs / "fifo").mkdir()
    os.mkfifo(workspace.runs / "fifo" / "record.json")
    damaged = {"cut": b'{"id": "cu', "list": b"[]", "binary": b"\xff\0", "deep": b"[" * 100_000}
    for name, content in damaged.items():
        (workspace.runs / name).mkdir()
        (workspace.runs / name / "record.json").write_bytes(content)
    rows, problems = read_rows(workspace)
    assert {row.run.id for row in rows} == {good.id}
    named = {name for name in damaged if any(f"/{name}/record.json cannot be read" in line for line in problems)}
    assert named == {*damaged} and len(problems) == len(named) + 1
    assert any(str(good.notes) in line for line in problems)


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
        ({"model": "x/y"}, ["a-25"]),
        ({"tags": ["one", "two"]}, ["b-26"]),
        ({"tags": ["one", "three"]}, []),
        ({"group": "g"}, []),
        ({"since": DAY + timedelta(hours=10, minutes=15)}, ["a-25", "b-26"]),
        ({"since": DAY, "name": "a", "statuses": ["failed"]}, ["a-25"]),
    ],
)
def test_every_filter_that_is_given_matches(three, given, found):
    kept = [row.run.id for row in three.values() if Filters(**given).matches(row)]
    assert [f"{name[0]}-{name[8:10]}" for name in kept] == found


NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", NOW - timedelta(days=7)),
        ("30m", NOW - timedelta(minutes=30)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-11-20T10:00:00+02:00", datetime(2026, 11, 20, 8, tzinfo=UTC)),
        ("2026-11-20", datetime(2026, 11, 20).astimezone()),
    ],
)
def test_a_time_is_a_date_or_an_age(text, moment):
    assert since(text, NOW) == moment


@pytest.mark.parametrize("text", ["7", "-1d", "7y", "2026-13-01", "999999w", "1 d", "0001-01-01T00:00:00+14:00"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(SpecError, match="is no time"):
        since(text, NOW)


# Order


def test_rows_are_sorted_by_creation_end_or_name(workspace, read):
    ends = {"c": None, "a": "2026-11-25T03:00:00Z", "b": "2026-11-25T02:00:00Z"}
    for number, (name, end) in enumerate(ends.items()):
        fields = {"name": name, "ended_at": end, "created_at": f"2026-11-24T10:15:{number:02d}Z"}
        new_run(workspace, f"{name}-20261124-1015{number:02d}", **fields)
    rows = list(read().values())
    found = {
        order: "".join(row.record.name for row in sort_rows(rows, order)) for order in ("created", "ended", "name")
    }
    assert found == {"created": "cab", "ended": "bac", "name": "abc"}
    with pytest.raises(SpecError, match="no order 'nam'; did you mean 'name'"):
        sort_rows(rows, "nam")
