"""Workspaces and run folders: made, listed, found. Run: pytest tests/test_workspace.py."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from orchestrator.errors import SpecError
from orchestrator.runs.rundir import GroupDir, RunDir, Workspace, find_workspace, spec_name
from orchestrator.serving.target import resolve_target
from tests.runs_on_disk import new_workspace

NOW = datetime(2026, 11, 24, 10, 15, 0)


def made(workspace: Workspace, *ids: str, file: str = "record.json") -> None:
    """Runs, or groups, by the last made first in the alphabet: only created_at has their order."""
    for number, name in enumerate(ids):
        (workspace.runs / name).mkdir(parents=True)
        created = NOW + timedelta(hours=max(number - 2, 0))  # the first three in one second
        (workspace.runs / name / file).write_text(json.dumps({"created_at": f"{created.isoformat()}Z"}))


def test_two_runs_in_the_same_second_get_two_folders(workspace):
    ids = ["toy-20261124-101500", "toy-20261124-101500-2", "toy-20261124-101500-3"]
    assert [workspace.new_run("toy", NOW).id for _ in range(3)] == ids
    assert {spec_name(each) for each in ids} == {"toy"}
    run = RunDir(workspace.runs / ids[0])
    assert [run.new_benchmark("base-t").name for _ in range(2)] == ["base-t", "base-t-2"]
    assert [run.new_set_aside().name for _ in range(2)] == ["output-1", "output-2"]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: workspace.new_run("toy", NOW).id, range(16)))
    assert len({*ids, *found}) == 19


# in the order that they were made; the ids have local times, of a laptop that travelled
IDS = [
    "en-de-2-20261124-101500",
    "toy-20261124-101500-2",
    "toy-20261124-101500-10",
    "tiny-20261124-101500-20261125-101500",
    "toy-20261124-101500",
    "other-20261101-101501",
    "toy-20261124-091502",
]


def test_runs_are_listed_oldest_first_by_their_record_whatever_their_ids_say(workspace):
    made(workspace, *IDS)
    (workspace.runs / "no-record-20261124-101500").mkdir()
    workspace.trash.mkdir()
    (workspace.trash / "record.json").write_text("{}")
    assert [run.id for run in workspace.all_runs()] == IDS
    (workspace.runs / "damaged").mkdir()  # counts by its folder's time, which is now
    (workspace.runs / "damaged" / "record.json").write_text("{")
    os.utime(workspace.runs / "damaged", (4e9, 4e9))
    assert workspace.find_run("latest").id == "damaged"


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("toy-20261124-101500", "toy-20261124-101500"),
        ("toy", "toy-20261124-091502"),
        ("en-de-2", "en-de-2-20261124-101500"),
        ("tiny-20261124-101500", "tiny-20261124-101500-20261125-101500"),
        ("latest", "toy-20261124-091502"),
        ("runs/toy-20261124-101500/", "toy-20261124-101500"),
    ],
)
def test_a_run_is_found_by_id_by_name_by_folder_and_as_the_latest(word, found, workspace):
    made(workspace, *IDS)
    assert workspace.find_run(word).id == found
    assert workspace.find_run(word).path.is_absolute()


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("tou", "; did you mean 'toy'?"),
        ("othr-20261101-101501", "; did you mean 'other-20261101-101501'?"),
        *((word, "") for word in ("zzzz", "", "x" * 5000, "a\0b", "toy-20261124")),
    ],
)
def test_what_is_no_run_is_refused_with_a_suggestion(word, hint, workspace):
    made(workspace, *IDS)
    with pytest.raises(SpecError, match=rf"^no run {re.escape(repr(word))} in .*{re.escape(hint)}$"):
        workspace.find_run(word)


def test_a_group_is_found_by_id_and_name_and_is_no_run(workspace):
    made(workspace, *IDS)
    made(workspace, "x-sweep", "y", "toy-sweep-20261124-111600", "toy-sweep-20261124-101500", file="group.json")
    for word in ("toy-sweep", "toy-sweep-20261124-101500", "runs/toy-sweep-20261124-101500"):
        assert workspace.find_group(word) == GroupDir(workspace.runs / "toy-sweep-20261124-101500")
        for find in (workspace.find_run, lambda each: resolve_target(each, workspace)):
            with pytest.raises(SpecError, match="is a group of runs, toy-sweep-20261124-101500"):
                find(word)
    made(workspace, "toy-sweep-20261124-121500")
    with pytest.raises(SpecError, match="'toy-sweep' is a run, toy-sweep-20261124-121500, and a group, toy-sweep-"):
        workspace.find_run("toy-sweep")
    assert workspace.find_run("toy-sweep-20261124-121500").id == "toy-sweep-20261124-121500"
    with pytest.raises(SpecError, match="no group 'toy'"):
        workspace.find_group("toy")


def test_the_workspace_is_by_option_by_environment_or_the_nearest_upwards(workspace, monkeypatch, tmp_path):
    monkeypatch.delenv("ORCHESTRATOR_WORKSPACE", raising=False)
    (workspace.runs / "a" / "b").mkdir(parents=True)
    for folder in (workspace.runs / "a" / "b", workspace.root):
        monkeypatch.chdir(folder)
        assert find_workspace() == workspace
    other = new_workspace(tmp_path / "other")
    monkeypatch.setenv("ORCHESTRATOR_WORKSPACE", str(other.root))
    assert find_workspace() == other
    assert find_workspace(workspace.root) == workspace
    monkeypatch.setenv("ORCHESTRATOR_WORKSPACE", "")
    assert find_workspace() == workspace
