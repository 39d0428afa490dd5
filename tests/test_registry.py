"""Runs as rows: read, filtered, in order; their tags and notes. Run: pytest tests/test_registry.py."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.registry import Filters, Row, add_note, change_tags, read_rows, since, sort_rows
from orchestrator.runs.rundir import Workspace
from tests.runs_on_disk import benchmark, new_run

ID = "toy-20261124-101500"


def read(workspace: Workspace) -> dict[str, Row]:
    found, problems = read_rows(workspace)
    assert problems == []
    return {row.run.id: row for row in found}


def test_a_row_says_what_record_and_notes_say(workspace):
    empty = benchmark(0.0, status="incomplete", scores=[])
    benchmarks = [benchmark(7.0, "base"), benchmark(8.0), empty]
    change_tags(new_run(workspace, ID, datasets=["pairs", "captions"], benchmarks=benchmarks), ["b", "a"])
    row = read(workspace)[ID]
    assert (row.record.status, row.steps, row.notes.tags, row.is_removed) == ("done", "50/50", ["b", "a"], False)
    assert row.datasets == ["pairs", "captions"]
    assert row.created == datetime(2026, 11, 24, 10, 15, tzinfo=UTC)
    assert row.last_benchmark == "BLEU 8.0, chrF2 16.0, TER 92.0 (output: captions test, 40 segments)"
    document = row.as_json()
    assert (document["id"], document["tags"], document["notes"], document["removed"]) == (ID, ["b", "a"], [], False)


def test_removed_is_what_was_trained_and_is_gone(workspace):
    runs = [new_run(workspace, ID), new_run(workspace, f"{ID}-2"), new_run(workspace, f"{ID}-3", training=None)]
    for run in runs[1:]:
        run.output.rename(run.path / "elsewhere")
    assert [row.is_removed for row in read(workspace).values()] == [False, True, False]


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


@pytest.fixture
def three(workspace):
    new_run(workspace, "a-20261124-101500", name="a", model="/models/Qwen2.5-7B/", datasets=["pairs"])
    new_run(workspace, "a-20261125-101500", name="a", status="failed", created_at="2026-11-25T10:15:00Z", model="x/y")
    change_tags(new_run(workspace, "b-20261126-101500", name="b", created_at="2026-11-26T10:15:00Z"), ["one", "two"])
    return read(workspace)


DAY, NOW = (datetime(2026, 11, day, hour, tzinfo=UTC) for day, hour in ((25, 0), (24, 12)))


@pytest.mark.parametrize(
    ("given", "found"),
    [
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


def test_rows_are_sorted_by_creation_end_or_name(workspace):
    ends = {"c": None, "a": "2026-11-25T03:00:00Z", "b": "2026-11-25T02:00:00Z"}
    for number, (name, end) in enumerate(ends.items()):
        fields = {"name": name, "ended_at": end, "created_at": f"2026-11-24T10:15:{number:02d}Z"}
        new_run(workspace, f"{name}-20261124-1015{number:02d}", **fields)
    rows = list(read(workspace).values())
    for order, expected in {"created": "cab", "ended": "bac", "name": "abc"}.items():
        assert "".join(row.record.name for row in sort_rows(rows, order)) == expected
    with pytest.raises(SpecError, match="no order 'nam'; did you mean 'name'"):
        sort_rows(rows, "nam")


def test_tags_are_there_once_and_none_changes_where_one_is_wrong(run):
    assert change_tags(run, ["baseline", "lora-16", "baseline"]).tags == ["baseline", "lora-16"]
    assert change_tags(run, ["paper", "基线"], ["baseline"]).tags == ["lora-16", "paper", "基线"]
    before = run.notes.read_bytes()
    with pytest.raises(SpecError, match="has no tag 'lora'; did you mean 'lora-16'\\?"):
        change_tags(run, ["other"], ["lora"])
    assert run.notes.read_bytes() == before


@pytest.mark.parametrize("word", ["", "two words", "-x", "a" * 33, "a/b", "a\n", "\x1b[31m", "."])
def test_what_is_no_short_word_is_no_tag(word, run):
    with pytest.raises(SpecError, match="is no tag"):
        change_tags(run, [word])
    assert not run.notes.exists()


@pytest.mark.parametrize("content", [b"{", b'{"tags": 1}', b"\xff"])
def test_damaged_notes_are_named_and_not_written_over(content, run):
    run.notes.write_bytes(content)
    for action in (lambda: change_tags(run, ["a"]), lambda: add_note(run, "b")):
        with pytest.raises(PrerequisiteError, match=r"notes\.json cannot be read: "):
            action()
    assert run.notes.read_bytes() == content


def test_what_a_later_version_wrote_is_kept(run):
    note = '{"at": "2026-11-24T10:15:00Z", "text": "a", "by": "me"}'
    run.notes.write_text(f'{{"colour": "red", "notes": [{note}]}}')
    change_tags(run, ["b"])
    kept = json.loads(run.notes.read_bytes())
    assert (kept["colour"], kept["notes"][0]["by"], kept["tags"]) == ("red", "me", ["b"])
