"""What is moved to the trash, put back, and deleted, and what is never touched. Run: pytest tests/test_trash.py."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.processes.process_tree import RUN_ENV
from orchestrator.runs.registry import change_tags
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.runs.trash import Moved, empty, in_trash, remove, restore, size_of, take_checkpoints
from tests.runs_on_disk import benchmark, checkpoint, new_run, record_json, running

ID = "toy-20261124-101500"


@pytest.fixture
def run(workspace):
    made = new_run(workspace, ID)
    change_tags(made, ["kept"])
    return made


def tree(folder: Path) -> dict[str, bytes]:
    """Every file with its content, lock files left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def held(workspace: Workspace) -> list[str]:
    return [path.name for path in in_trash(workspace, ID)]


def moved(workspace: Workspace, run: RunDir, *, with_record: bool = False, dry_run: bool = False) -> Moved:
    return remove(workspace, [run], with_record=with_record, dry_run=dry_run)[0]


def test_what_is_large_goes_and_comes_back_and_what_tells_of_the_run_stays(workspace, run):
    for name in ("output-1", "export", "output-notes", "mine"):
        (run.path / name).mkdir()
    os.link(run.train_log, run.path / "logs" / "again")  # one file, that counts once
    before, parts = tree(run.path), ["data", "export", "logs", "output", "output-1"]
    found = moved(workspace, run)
    size = sum(len(before[name]) for name in before if name.partition("/")[0] in parts and name != "logs/again")
    assert found == Moved(ID, parts, size) and held(workspace) == parts
    left = {path.name for path in run.path.iterdir() if not path.name.endswith(".lock")}
    assert left == {"record.json", "spec.yaml", "notes.json", "benchmarks", "output-notes", "mine"}
    assert moved(workspace, run) == Moved(ID, [], 0)
    assert restore(workspace, ID) == found
    assert tree(run.path) == before and list(workspace.trash.iterdir()) == []


def test_what_was_removed_bit_by_bit_comes_back_at_once_by_the_spec_s_name(workspace, run):
    before = tree(run.path)
    take_checkpoints(workspace, run, keep_last=1)
    moved(workspace, run)
    assert moved(workspace, run, with_record=True).what == ["."] and not run.path.exists()
    assert restore(workspace, "toy").what[0] == "."
    assert tree(run.path) == before


def test_nothing_is_written_over_in_the_trash_or_in_the_run(workspace, run):
    moved(workspace, run)
    (run.output / "second").mkdir(parents=True)
    before = tree(workspace.root)
    with pytest.raises(PrerequisiteError, match="output is in the trash already"):
        moved(workspace, run)
    with pytest.raises(PrerequisiteError, match=r"output cannot be put back: .* is there"):
        restore(workspace, ID)
    assert tree(workspace.root) == before and held(workspace) == ["data", "logs", "output"]
    run.path.rename(workspace.root / "elsewhere")
    with pytest.raises(PrerequisiteError, match="is gone"):
        restore(workspace, ID)


def test_a_dry_run_tells_the_same_and_does_nothing(workspace, run):
    for action in (
        lambda **how: moved(workspace, run, **how),
        lambda **how: restore(workspace, ID, **how),
        lambda **how: moved(workspace, run, with_record=True, **how),
        lambda **how: empty(workspace, **how),
    ):
        before = tree(workspace.root)
        promised = action(dry_run=True)
        assert tree(workspace.root) == before
        assert action() == promised


@pytest.mark.parametrize("name", ["+etc+passwd", "record.json", "checkpoint-x", "output~2"])
def test_of_a_stranger_s_trash_only_parts_of_a_run_are_put_back_or_deleted(workspace, run, name):
    (workspace.trash / ID / name).mkdir(parents=True)
    with pytest.raises(SpecError, match="holds nothing"):
        restore(workspace, ID)
    assert empty(workspace) == [] and (workspace.trash / ID / name).is_dir()


def refused(workspace: Workspace, run: RunDir, match: str, *others: RunDir, with_record: bool = False) -> None:
    before = tree(workspace.root)
    with pytest.raises(PrerequisiteError, match=match):
        remove(workspace, [*others, run], with_record=with_record)
    if not with_record:
        with pytest.raises(PrerequisiteError, match=match):
            take_checkpoints(workspace, run, keep_last=1)
    assert tree(workspace.root) == before and not workspace.trash.exists()


def test_a_run_whose_owner_lives_is_left_alone_with_all_others_of_the_command(workspace, run):
    other = new_run(workspace, "other-20261124-101500")
    running(run)
    refused(workspace, run, f"run {ID} is running", other)
    refused(workspace, run, f"run {ID} is running", with_record=True)


def test_a_run_with_a_damaged_record_goes_entirely_only_and_one_that_is_a_link_is_refused(workspace, run, tmp_path):
    run.record.write_text('{"id": "to')
    refused(workspace, run, r"record\.json cannot be read")
    assert moved(workspace, run, with_record=True).what == restore(workspace, ID).what == ["."]
    run.path.rename(tmp_path / ID)
    run.path.symlink_to(tmp_path / ID)
    with pytest.raises(PrerequisiteError, match="or a link"):
        moved(workspace, run)


def test_a_run_that_a_process_works_on_is_left_alone(workspace, run):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, env={**os.environ, RUN_ENV: str(run.path)}) as worker:
        refused(workspace, run, f"is in use: process {worker.pid}")
        worker.communicate(b"")
    assert moved(workspace, run).what


def test_links_are_moved_as_links(workspace, run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights").write_text("x" * 5000)
    (outside / "data").mkdir()
    workspace.trash.mkdir()
    for link in (run.output / "link", run.path / "export", workspace.trash / "linked"):
        link.symlink_to(outside)
    assert moved(workspace, run).bytes < 5000
    restore(workspace, ID)
    assert (run.path / "export").is_symlink()
    moved(workspace, run)
    empty(workspace)
    assert (outside / "weights").is_file() and (outside / "data").is_dir()


def test_old_checkpoints_go_and_come_back_and_the_best_and_the_last_stay(workspace, run):
    checkpoint(run, 20)
    scores = {"checkpoint-5": 5.0, "checkpoint-10": 9.0, "checkpoint-20": 7.0}
    benchmarks = [benchmark(score, label) for label, score in scores.items()]
    run.record.write_text(json.dumps(record_json(ID, benchmarks=benchmarks)))
    before = tree(run.path)
    size = sum(size_of(run.output / f"checkpoint-{step}") for step in (5, 15))
    found = take_checkpoints(workspace, run, keep_last=1)
    assert (found.what, found.bytes) == (["output/checkpoint-5", "output/checkpoint-15"], size)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-10", "checkpoint-20"]
    restore(workspace, ID)
    assert tree(run.path) == before
