"""Workspaces and run folders: made, listed, found. Run: pytest tests/test_workspace.py."""

import re
import threading
from datetime import datetime
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.workspace import Workspace, find_workspace, spec_name

NOW = datetime(2026, 11, 24, 10, 15, 0)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "it's a; work space"
    (root / "dataset_info").mkdir(parents=True)
    (root / "runs").mkdir()
    return Workspace(root)


def made(workspace: Workspace, *ids: str, file: str = "record.json", hour: int = 0) -> None:
    """Runs, or groups, each made a second after the one before."""
    for second, name in enumerate(ids):
        (workspace.runs / name).mkdir(parents=True)
        text = f'{{\n  "id": "{name}",\n  "created_at": "2026-11-24T{hour:02}:00:{second:02}Z"\n}}'
        (workspace.runs / name / file).write_text(text)


# Run folders


def test_two_runs_in_the_same_second_get_two_folders(workspace):
    ids = ["toy-20261124-101500", "toy-20261124-101500-2", "toy-20261124-101500-3"]
    assert [workspace.new_run("toy", NOW).id for _ in range(3)] == ids
    assert {spec_name(each) for each in ids} == {"toy"}
    run = RunDir(workspace.runs / ids[0])
    assert [run.new_benchmark("base-t").name for _ in range(2)] == ["base-t", "base-t-2"]
    assert [run.new_set_aside().name for _ in range(2)] == ["output-1", "output-2"]


def test_many_launches_at_once_get_a_folder_each(workspace):
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(workspace.new_run("toy", NOW).id)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 16
    assert sorted(found) == sorted(path.name for path in workspace.runs.iterdir())


def test_checkpoints_are_ordered_by_step_and_other_folders_are_none(tmp_path):
    run = RunDir(tmp_path)
    assert run.checkpoints() == []
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3", "checkpoint-", "checkpoint-x", "runs"):
        (run.output / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


@pytest.mark.parametrize("kind", [RunDir, GroupDir])
def test_every_file_lies_in_its_folder(kind, tmp_path):
    names = [name for name, value in vars(kind).items() if hasattr(value, "__get__") and hasattr(value, "name")]
    paths = [getattr(kind(tmp_path), name) for name in names]
    assert len(set(paths)) == len(paths) >= 2
    assert all(tmp_path in path.parents for path in paths)


# Finding runs

IDS = [
    "en-de-2-20261101-000000",
    "toy-20261124-101500",
    "other-20261124-101501",
    "toy-20261124-091502",  # made in another time zone
    "tiny-20261124-101500-20261125-101500",
]


def test_runs_are_listed_oldest_first_by_their_records(workspace):
    made(workspace, *IDS)
    (workspace.runs / "no-record-20261124-101500").mkdir()
    (workspace.runs / "spec.yaml").write_text("")
    (workspace.trash / "x").mkdir(parents=True)
    (workspace.trash / "record.json").write_text("{}")
    assert [run.id for run in workspace.all_runs()] == IDS


def test_of_one_second_the_number_counts(workspace):
    for number in ("-10", "-2", ""):
        made(workspace, f"toy-20261124-101500{number}")
        (workspace.runs / f"toy-20261124-101500{number}" / "record.json").write_text(
            '{"created_at": "2026-11-24T10:15:00Z"}'
        )
    assert [run.id[19:] for run in workspace.all_runs()] == ["", "-2", "-10"]
    assert workspace.find_run("toy").id.endswith("-10")


def test_a_record_that_does_not_say_when_it_was_made_counts_by_its_folder(workspace):
    made(workspace, *IDS)
    (workspace.runs / "old").mkdir()
    (workspace.runs / "old" / "record.json").write_text("{")
    assert workspace.find_run("latest").id == "old"


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("toy-20261124-101500", "toy-20261124-101500"),
        ("toy", "toy-20261124-091502"),
        ("other", "other-20261124-101501"),
        ("en-de-2", "en-de-2-20261101-000000"),
        ("tiny-20261124-101500", "tiny-20261124-101500-20261125-101500"),
        ("latest", "tiny-20261124-101500-20261125-101500"),
        ("runs/toy-20261124-101500", "toy-20261124-101500"),
        ("runs/toy-20261124-101500/", "toy-20261124-101500"),
    ],
)
def test_a_run_is_found_by_id_by_name_by_folder_and_as_the_latest(word, found, workspace):
    made(workspace, *IDS)
    assert workspace.find_run(word).id == found
    assert workspace.find_run(word).path.is_absolute()


def test_a_run_is_found_by_its_folder_from_anywhere(workspace, monkeypatch, tmp_path):
    made(workspace, *IDS)
    monkeypatch.chdir(workspace.runs)
    assert workspace.find_run("./toy-20261124-101500").id == "toy-20261124-101500"
    monkeypatch.chdir(tmp_path)
    elsewhere = Workspace(tmp_path / "elsewhere")
    assert elsewhere.find_run(str(workspace.runs / IDS[0])).id == IDS[0]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("tou", "; did you mean 'toy'?"),
        ("en-de", "; did you mean 'en-de-2'?"),
        ("othr-20261124-101501", "; did you mean 'other-20261124-101501'?"),
        *((word, "") for word in ("zzzz", "", "x" * 5000, "a\0b", "toy-20261124")),
    ],
)
def test_what_is_no_run_is_refused_with_a_suggestion(word, hint, workspace):
    made(workspace, *IDS)
    with pytest.raises(SpecError, match=rf"^no run {re.escape(repr(word))} in ") as error:
        workspace.find_run(word)
    assert hint in str(error.value)
    assert error.value.remedy == "orchestrator list shows the runs"


def test_a_group_is_found_by_id_and_name_and_is_no_run(workspace):
    made(workspace, *IDS)
    made(workspace, "toy-sweep-20261124-101600", "toy-sweep-20261124-101500", file="group.json")
    for word in ("toy-sweep", "toy-sweep-20261124-101500", "runs/toy-sweep-20261124-101500"):
        assert workspace.lookup_group(word) == GroupDir(workspace.runs / "toy-sweep-20261124-101500")
        with pytest.raises(SpecError, match="is a group of runs, toy-sweep-20261124-101500"):
            workspace.find_run(word)
    assert workspace.lookup_group("toy") is None
    made(workspace, "toy-sweep-20261125-101500")
    with pytest.raises(SpecError, match=r"is the newest run toy-sweep-20261125-101500, but also a group"):
        workspace.find_run("toy-sweep")


# Finding the workspace


def test_the_workspace_is_the_nearest_folder_upwards(workspace, monkeypatch):
    monkeypatch.delenv("ORCHESTRATOR_WORKSPACE", raising=False)
    deep = workspace.runs / "a" / "b"
    deep.mkdir(parents=True)
    assert find_workspace(start=deep) == find_workspace(start=workspace.root) == Workspace(workspace.root.resolve())
    monkeypatch.chdir(deep)
    assert find_workspace().root == workspace.root.resolve()


def test_the_option_goes_before_the_environment_and_that_before_the_folder(workspace, monkeypatch, tmp_path):
    other = tmp_path / "other"
    for name in ("runs", "dataset_info"):
        (other / name).mkdir(parents=True)
    monkeypatch.setenv("ORCHESTRATOR_WORKSPACE", str(other))
    assert find_workspace(start=workspace.root).root == other.resolve()
    assert find_workspace(workspace.root, start=other).root == workspace.root.resolve()
    monkeypatch.setenv("ORCHESTRATOR_WORKSPACE", "")
    assert find_workspace(start=workspace.root).root == workspace.root.resolve()


@pytest.mark.parametrize("by", ["option", "environment", "folder"])
def test_no_workspace_is_an_error_that_says_how_to_make_one(by, monkeypatch, tmp_path):
    monkeypatch.delenv("ORCHESTRATOR_WORKSPACE", raising=False)
    (tmp_path / "runs").mkdir()
    if by == "environment":
        monkeypatch.setenv("ORCHESTRATOR_WORKSPACE", str(tmp_path))
    with pytest.raises(SpecError, match="no workspace") as error:
        find_workspace(tmp_path if by == "option" else None, start=tmp_path)
    assert "orchestrator init" in error.value.remedy
