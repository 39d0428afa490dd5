"""Runs as rows: what is read, remembered, found anew, and filtered. Run: pytest tests/test_registry.py."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.errors import SpecError
from orchestrator.runs.notes import Notes, change_tags
from orchestrator.runs.record import RunRecord
from orchestrator.runs.registry import Filters, Row, read_json, read_rows, run_json, since
from orchestrator.runs.rundir import RunDir
from tests.runs_on_disk import benchmark, new_run, new_workspace, owned_by_another, quiet, record_json, running


@pytest.fixture
def workspace(tmp_path):
    return new_workspace(tmp_path / 'it\'s my "work"')


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def read(workspace, cache):
    """The rows by run id; nothing is damaged."""

    def rows() -> dict[str, Row]:
        found, problems = read_rows(workspace, cache)
        assert problems == []
        return {row.id: row for row in found}

    return rows


def change(run: RunDir, **changes: object) -> None:
    run.record.write_text(json.dumps({**json.loads(run.record.read_bytes()), **changes}))


def test_a_row_tells_what_record_notes_and_spec_say(workspace, read):
    run = new_run(workspace, "toy-20261124-101500", model="Qwen/Qwen2.5-7B", dataset="pairs")
    change_tags(run, ["b", "a"])
    row = read()[run.id]
    assert (row.status, row.name, row.model) == ("done", "toy", "Qwen/Qwen2.5-7B")
    assert (row.steps, row.tags) == ("50/50", "b\na")
    assert row.datasets.split("\n") == ["pairs", "captions"]
    assert row.created == datetime(2026, 11, 24, 10, 15, tzinfo=UTC).timestamp()
    assert row.last == "BLEU 8.0, chrF2 16.0, TER 92.0 (output: captions test, 40 segments)"
    assert not row.removed


@pytest.mark.parametrize(
    ("text", "model", "datasets"),
    [
        ("dataset: [a, b]\nmodel: {name_or_path: x/y}\n", "x/y", "a\nb"),
        ("dataset: null\nmodel: {name_or_path: x, deep: {name_or_path: y}}\n", "x", ""),
        ("{name: a", "", ""),
        ("[" * 100_000, "", ""),
        ("a: &a [x]\ndataset: *a\n", "", ""),
        ("\x00", "", ""),
        ("", "", ""),
    ],
)
def test_whatever_stands_in_a_spec_the_run_is_listed(workspace, read, text, model, datasets):
    run = new_run(workspace, "toy-20261124-101500", facts={})
    run.spec.write_text(text)
    assert (read()[run.id].model, read()[run.id].datasets) == (model, datasets)


def test_a_run_without_spec_or_notes_is_listed(workspace, read):
    run = new_run(workspace, "toy-20261124-101500")
    run.spec.unlink()
    assert read()[run.id].model == ""


# What is remembered, and what is read again


def remembered(workspace, cache) -> RunDir:
    """A run whose row is remembered."""
    run = new_run(workspace, "toy-20261124-101500")
    quiet(run.path)
    read_rows(workspace, cache)
    return run


def secretly(run: RunDir, old: bytes, new: bytes) -> None:
    """Change the record but neither its size nor any time nor the inode."""
    times = [(path, path.stat()) for path in (run.record, run.path)]
    with run.record.open("r+b") as file:
        data = file.read()
        assert old in data and len(old) == len(new)
        file.seek(0)
        file.write(data.replace(old, new))
    for path, found in times:
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_a_file_that_did_not_change_is_not_read_again(workspace, cache, read):
    run = remembered(workspace, cache)
    secretly(run, b'"done"', b'"oops"')
    assert read()[run.id].status == "done"


def test_a_change_within_a_tick_of_the_clock_is_seen(workspace, read):
    """Rows of files that were written just now are not remembered."""
    run = new_run(workspace, "toy-20261124-101500")
    assert read()[run.id].name == "toy"
    secretly(run, b'"name": "toy"', b'"name": "yot"')
    assert read()[run.id].name == "yot"


@pytest.mark.parametrize(
    ("action", "field", "value"),
    [
        (lambda run: change(run, status="failed"), "status", "failed"),
        (lambda run: RunRecord.load(run).update(run, status="queued", host="x"), "status", "queued"),
        (lambda run: change_tags(run, ["new"]), "tags", "new"),
        (lambda run: run.output.rename(run.path / "gone"), "removed", 1),
        (lambda run: run.spec.write_text("model: {name_or_path: other}"), "model", "other"),
    ],
    ids=["in place", "by rename", "tag", "removed", "spec"],
)
def test_what_changed_is_seen_at_once(workspace, cache, read, action, field, value):
    run = remembered(workspace, cache)
    action(run)
    assert getattr(read()[run.id], field) == value


def test_a_run_that_is_gone_is_gone_and_a_new_one_of_its_name_is_read(workspace, cache, read):
    run = remembered(workspace, cache)
    run.path.rename(workspace.root / "elsewhere")
    assert read() == {}
    assert new_run(workspace, run.id, status="failed").id in read()
    assert read()[run.id].status == "failed"


def test_nothing_is_written_into_the_workspace(workspace, cache):
    run = remembered(workspace, cache)
    assert sorted(path.name for path in workspace.runs.iterdir()) == [run.id]


# Whether the owner lives


def test_a_run_whose_owner_lives_is_what_it_says_and_interrupted_when_it_is_gone(workspace, read):
    run = new_run(workspace, "toy-20261124-101500")
    with owned_by_another(run) as end:
        assert read()[run.id].status == "running"
        end()
        assert read()[run.id].status == "interrupted"
        assert read()[run.id].status == "interrupted"


def test_a_run_that_goes_on_shows_how_far_it_is(workspace, read):
    run = new_run(workspace, "toy-20261124-101500")
    attempts = [{"started_at": "2026-11-24T10:15:00Z", "status": "running", "pid": 1, "host": "x"}]
    running(run, training=None, attempts=attempts)
    for step in (3, 4):
        run.trainer_log.write_text(json.dumps({"current_steps": step, "total_steps": 50, "loss": 2.0}) + "\n")
        assert read()[run.id].steps == f"{step}/50"


# Rubbish


def test_of_rubbish_in_runs_only_runs_are_listed_and_what_is_damaged_is_named(workspace, cache, tmp_path):
    good = new_run(workspace, "toy-20261124-101500")
    outside = new_workspace(tmp_path / "other")
    linked = new_run(outside, "linked-20261124-101501")
    (workspace.runs / "linked-20261124-101501").symlink_to(linked.path)
    (workspace.runs / "dangling").symlink_to(tmp_path / "nowhere")
    (workspace.runs / "loop").symlink_to(workspace.runs / "loop")
    (workspace.runs / "file").write_text("x")
    (workspace.runs / "record.json").write_text(json.dumps(record_json("record.json")))
    (workspace.runs / "empty").mkdir()
    (workspace.runs / "fifo").mkdir()
    os.mkfifo(workspace.runs / "fifo" / "record.json")
    (workspace.runs / "folder" / "record.json").mkdir(parents=True)
    trashed = workspace.trash / "20261124-101500.000000Z~toy-20261124-101499~run"
    trashed.mkdir(parents=True)
    (trashed / "record.json").write_text(json.dumps(record_json("trashed")))
    (workspace.trash / "record.json").write_text(json.dumps(record_json("trash")))
    damaged = {
        "cut": b'{"id": "cu',
        "text": b"text",
        "list": b"[]",
        "none": b"",
        "binary": b"\xff\0",
        "deep": b"[" * 100_000,
    }
    for name, content in damaged.items():
        (workspace.runs / name).mkdir()
        (workspace.runs / name / "record.json").write_bytes(content)
    huge = workspace.runs / "huge" / "record.json"
    huge.parent.mkdir()
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    for _ in range(2):
        rows, problems = read_rows(workspace, cache)
        assert {row.id for row in rows} == {good.id, "linked-20261124-101501"}
        named = {name for name in [*damaged, "huge"] if any(f"/{name}/record.json" in line for line in problems)}
        assert named == {*damaged, "huge"} and len(problems) == len(named)


def test_damaged_notes_do_not_hide_the_run_and_are_named_each_time(workspace, cache):
    run = new_run(workspace, "toy-20261124-101500")
    run.notes.write_text("{")
    quiet(run.path)
    for _ in range(2):
        rows, problems = read_rows(workspace, cache)
        assert [row.tags for row in rows] == [""]
        assert len(problems) == 1 and "notes.json" in problems[0]
    assert [each["tags"] for each in read_json(workspace, rows)] == [[]]


def test_pipes_in_the_place_of_files_are_not_waited_for(workspace, cache):
    run = new_run(workspace, "toy-20261124-101500")
    run.spec.unlink()
    for path in (run.spec, run.notes):
        os.mkfifo(path)
    rows, problems = read_rows(workspace, cache)
    assert [row.model for row in rows] == [""]
    assert len(problems) == 1 and "notes.json is no file" in problems[0]


def test_a_folder_whose_name_is_no_text_is_listed(workspace, read):
    name = os.fsdecode(b"toy-\xff")
    run = new_run(workspace, "toy-20261124-101500")
    run.path.rename(workspace.runs / name)
    quiet(workspace.runs / name)
    assert list(read()) == list(read()) == [name]


def test_no_runs_folder_is_no_run(tmp_path, cache):
    assert read_rows(new_workspace(tmp_path / "w"), cache) == ([], [])


# JSON


def test_json_is_the_record_with_what_people_say(workspace):
    run = new_run(workspace, "toy-20261124-101500")
    change_tags(run, ["a"])
    record = RunRecord.load(run)
    assert run_json(run, record, Notes.load(run)) == {**record.as_json(), "tags": ["a"], "notes": [], "removed": False}


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
    run = new_run(workspace, "toy-20261124-101500", **changes)
    for name in gone:
        (run.path / name).rename(workspace.root / name)
    assert bool(read()[run.id].removed) is removed


# Filters


@pytest.fixture
def three(workspace, read):
    """Two of one kind and another, by id."""
    new_run(workspace, "a-20261124-101500", name="a", model="/models/Qwen2.5-7B/", dataset="pairs")
    new_run(workspace, "a-20261125-101500", name="a", status="failed", created_at="2026-11-25T10:15:00Z", model="x/y")
    change_tags(new_run(workspace, "b-20261126-101500", name="b", created_at="2026-11-26T10:15:00Z"), ["one", "two"])
    return read()


DAY = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ["a-24", "a-25", "b-26"]),
        ({"statuses": ["failed"]}, ["a-25"]),
        ({"statuses": ["failed", "done"]}, ["a-24", "a-25", "b-26"]),
        ({"name": "a"}, ["a-24", "a-25"]),
        ({"name": "?"}, ["a-24", "a-25", "b-26"]),
        ({"dataset": "pairs"}, ["a-24"]),
        ({"dataset": "capt*"}, ["a-24", "a-25", "b-26"]),
        ({"dataset": "pair"}, []),
        ({"model": "Qwen2.5-7B"}, ["a-24"]),
        ({"model": "*Qwen*"}, ["a-24"]),
        ({"model": "x/y"}, ["a-25"]),
        ({"model": "qwen2.5-7b"}, []),
        ({"tags": ["one"]}, ["b-26"]),
        ({"tags": ["one", "two"]}, ["b-26"]),
        ({"tags": ["one", "three"]}, []),
        ({"since": DAY}, ["a-25", "b-26"]),
        ({"since": DAY, "name": "a"}, ["a-25"]),
    ],
)
def test_every_filter_that_is_given_holds(three, given, found):
    kept = [row.id for row in three.values() if Filters(**given).hold(row)]
    assert sorted(f"{name[0]}-{name[8:10]}" for name in kept) == found


def test_a_status_that_there_is_not_gets_a_hint():
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
        ("0d", NOW),
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


def test_benchmarks_without_scores_count_for_nothing(workspace, read):
    run = new_run(
        workspace, "toy-20261124-101500", benchmarks=[benchmark(5.0), benchmark(0.0, status="incomplete", scores=[])]
    )
    assert read()[run.id].last.startswith("BLEU 5.0")
