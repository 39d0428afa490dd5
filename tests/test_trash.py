"""What is moved to the trash, put back, and deleted, and what is never touched. Run: pytest tests/test_trash.py."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.processes.family import FOLDERS_ENV, RUN_ENV
from orchestrator.runs.in_use import process_users
from orchestrator.runs.notes import change_tags
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trash import Moved, empty, in_trash, remove, restore, size_of, take_checkpoints
from orchestrator.runs.workspace import Workspace
from tests.runs_on_disk import benchmark, checkpoint, new_run, new_workspace, owned_by_another, record_json, running

ID = "toy-20261124-101500"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def workspace(tmp_path):
    return new_workspace(tmp_path / 'it\'s my "work"')


@pytest.fixture
def run(workspace):
    made = new_run(workspace, ID)
    change_tags(made, ["kept"])
    return made


def tree(folder: Path) -> dict[str, bytes]:
    """Every file with its content, lock files left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def top(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def held(workspace: Workspace) -> set[str]:
    """What the trash holds of the run."""
    return {item.what for item in in_trash(workspace, ID)}


def moved(workspace: Workspace, *runs: RunDir, **changes: bool) -> list[Moved]:
    return remove(workspace, runs, **{"whole": False, **changes})


# rm and back


def test_what_is_large_goes_and_what_tells_of_the_run_stays(workspace, run):
    size = sum(size_of(run.path / name) for name in ("output", "data", "logs"))
    (found,) = moved(workspace, run)
    assert (found.what, found.bytes, found.left) == (["data", "logs", "output"], size, [])
    assert top(run.path) == {"record.json", "spec.yaml", "notes.json", "benchmarks"}
    assert held(workspace) == {"data", "logs", "output"}


def test_what_a_resume_set_aside_and_an_exported_model_go_too_but_no_folder_of_another_name(workspace, run):
    for name in ("output-1", "export", "output-notes", "mine"):
        (run.path / name).mkdir()
    (found,) = moved(workspace, run)
    assert found.what == ["data", "export", "logs", "output", "output-1"]
    assert {"output-notes", "mine"} < top(run.path)


def test_what_was_removed_comes_back_as_it_was(workspace, run):
    before = tree(run.path)
    moved(workspace, run)
    found = restore(workspace, ID)
    assert tree(run.path) == before
    assert sorted(found.what) == ["data", "logs", "output"] and found.left == []
    assert list(workspace.trash.iterdir()) == []


def test_a_whole_run_goes_and_comes_back_by_its_name(workspace, run):
    before = tree(run.path)
    (found,) = moved(workspace, run, whole=True)
    assert found.what == ["."] and not run.path.exists() and workspace.all_runs() == []
    assert restore(workspace, "toy").what == ["."]
    assert tree(run.path) == before


def test_what_was_removed_bit_by_bit_comes_back_at_once(workspace, run):
    before = tree(run.path)
    take_checkpoints(workspace, run, [], keep_last=1)
    moved(workspace, run)
    moved(workspace, run, whole=True)
    restore(workspace, ID)
    assert tree(run.path) == before


def test_what_the_run_has_again_is_not_written_over_nor_mixed(workspace, run):
    moved(workspace, run)
    (run.output / "new").mkdir(parents=True)
    found = restore(workspace, ID)
    assert found.left == [f"output: {ID} has one again"] and sorted(found.what) == ["data", "logs"]
    assert top(run.output) == {"new"} and held(workspace) == {"output"}


def test_of_what_was_removed_twice_the_latest_comes_back(workspace, run):
    for number in range(11):
        run.output.mkdir(exist_ok=True)
        (run.output / f"made-{number}").touch()
        moved(workspace, run)
    told = restore(workspace, ID, dry_run=True)
    assert restore(workspace, ID) == told
    assert told.left == [f"output: {ID} has one again"] * 10 and top(run.output) == {"made-10"}


def test_a_part_that_the_entire_run_has_too_stays_in_the_trash(workspace, run):
    moved(workspace, run)
    (run.output / "second").mkdir(parents=True)
    moved(workspace, run, whole=True)
    told = restore(workspace, ID, dry_run=True)
    assert restore(workspace, ID) == told
    assert told.left == [f"output: {ID} has one again"] and top(run.output) == {"second"}


def test_parts_of_a_run_that_is_gone_stay_in_the_trash(workspace, run):
    moved(workspace, run)
    run.path.rename(workspace.root / "elsewhere")
    found = restore(workspace, ID)
    assert found.what == [] and set(found.left) == {
        f"{name}: the run folder of {ID} is gone" for name in ("output", "data", "logs")
    }


def test_removing_twice_moves_nothing_the_second_time(workspace, run):
    moved(workspace, run)
    (found,) = moved(workspace, run)
    assert (found.what, found.bytes) == ([], 0)
    assert len(in_trash(workspace)) == 3


def test_a_dry_run_tells_the_same_and_does_nothing(workspace, run):
    before = tree(workspace.root)
    (told,) = moved(workspace, run, dry_run=True)
    assert tree(workspace.root) == before and not workspace.trash.exists()
    assert [told] == moved(workspace, run)
    there = tree(workspace.root)
    told_back = restore(workspace, ID, dry_run=True)
    told_deleted = empty(workspace, dry_run=True)
    assert tree(workspace.root) == there
    assert told_back == restore(workspace, ID)
    moved(workspace, run)
    assert told_deleted == empty(workspace)


def test_what_the_trash_does_not_hold_gets_a_hint(workspace, run):
    moved(workspace, run, whole=True)
    for action in (
        lambda: restore(workspace, "tooy-20261124-101500"),
        lambda: empty(workspace, words=["tooy-20261124-101500"]),
    ):
        with pytest.raises(SpecError, match=f"did you mean '{ID}'"):
            action()


def test_of_several_runs_of_a_name_the_newest_comes_back(workspace):
    runs = [new_run(workspace, f"toy-2026112{day}-101500") for day in (4, 5)]
    moved(workspace, *runs, whole=True)
    assert restore(workspace, "toy").run == runs[1].id
    assert restore(workspace, "toy").run == runs[0].id


@pytest.mark.parametrize(
    "name", ["+etc+passwd", "record.json", "checkpoint-x", "output~", "..", "data~2~3", "notes.json", "runs"]
)
def test_of_a_stranger_s_trash_only_parts_of_a_run_are_put_back(workspace, run, name):
    before = tree(run.path)
    (workspace.trash / ID).mkdir(parents=True)
    with suppress(FileExistsError):
        (workspace.trash / ID / name).mkdir()
    with pytest.raises(SpecError, match="holds nothing"):
        restore(workspace, ID)
    assert tree(run.path) == before and empty(workspace) == []


# What is refused


def refused(workspace: Workspace, run: RunDir, match: str, **changes: bool) -> None:
    before = tree(workspace.root)
    with pytest.raises(PrerequisiteError, match=match):
        moved(workspace, run, **changes)
    assert tree(workspace.root) == before and not workspace.trash.exists()


@pytest.mark.parametrize("whole", [False, True])
def test_a_run_whose_owner_lives_is_left_alone_and_one_whose_owner_is_gone_is_not(workspace, run, whole):
    with owned_by_another(run) as end:
        refused(workspace, run, f"run {ID} is running", whole=whole)
        with pytest.raises(PrerequisiteError, match="is running"):
            take_checkpoints(workspace, run, [], keep_last=1)
        end()
        assert moved(workspace, run, whole=whole)[0].what


def test_of_several_runs_none_is_moved_where_one_is_at_work(workspace, run):
    other = new_run(workspace, "other-20261124-101500")
    running(other)
    before = tree(workspace.root)
    with pytest.raises(PrerequisiteError, match="other-20261124-101500 is running"):
        moved(workspace, run, other)
    assert tree(workspace.root) == before


@pytest.mark.parametrize(
    "served", ["output/checkpoint-5", "output", None], ids=["a checkpoint's server", "a server", "a trainer"]
)
def test_a_run_that_a_process_works_on_is_left_alone(workspace, run, served):
    """A server of it, or a rank that was left when its owner was killed."""
    folders = {FOLDERS_ENV: json.dumps(["/a/base/model", str(run.path / (served or ""))])}
    own = {RUN_ENV: str(run.path)} if served is None else folders
    with subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env={**os.environ, **own}) as worker:  # fmt: skip
        worker.stdout.readline()
        refused(workspace, run, f"is in use: process {worker.pid}")
        with pytest.raises(PrerequisiteError, match="is in use"):
            take_checkpoints(workspace, run, process_users(), keep_last=1)
        namesake = new_run(workspace, f"{ID}-2")
        assert moved(workspace, namesake)[0].what
        worker.communicate(b"\n")
    assert moved(workspace, run)[0].what


def test_a_run_with_a_damaged_record_goes_as_a_whole_only(workspace, run):
    run.record.write_text('{"id": "to')
    refused(workspace, run, r"record\.json cannot be read")
    assert moved(workspace, run, whole=True)[0].what == ["."]
    assert restore(workspace, ID).what == ["."]


def test_links_are_not_followed(workspace, run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights").write_text("x" * 5000)
    before = size_of(run.path / "data") + size_of(run.path / "logs") + size_of(run.output)
    (run.output / "link").symlink_to(outside)
    (run.path / "export").symlink_to(outside)
    (found,) = moved(workspace, run)
    assert found.bytes == before
    empty(workspace)
    assert (outside / "weights").read_text() == "x" * 5000


def test_a_run_folder_that_is_a_link_or_lies_elsewhere_is_refused(workspace, tmp_path):
    elsewhere = new_run(new_workspace(tmp_path / "other"), ID)
    refused(workspace, elsewhere, "is no run folder of")
    (workspace.runs / ID).symlink_to(elsewhere.path)
    refused(workspace, RunDir(workspace.runs / ID), "is a link to")
    with pytest.raises(PrerequisiteError, match="is a link to"):
        take_checkpoints(workspace, RunDir(workspace.runs / ID), [], keep_last=1)
    assert len(elsewhere.checkpoints()) == 3


def test_a_trash_that_is_a_link_is_refused(workspace, run, tmp_path):
    target = tmp_path / "elsewhere" / ID / "output"
    target.mkdir(parents=True)
    workspace.trash.symlink_to(tmp_path / "elsewhere")
    actions = (lambda: moved(workspace, run), lambda: empty(workspace), lambda: restore(workspace, ID))
    for action in (*actions, lambda: take_checkpoints(workspace, run, [], keep_last=1)):
        with pytest.raises(PrerequisiteError, match="is a link"):
            action()
    assert top(target.parent) == {target.name} and len(run.checkpoints()) == 3


def test_a_link_in_the_trash_is_put_back_or_deleted_as_a_link(workspace, run, tmp_path):
    (tmp_path / "mine").write_text("x")
    for _ in range(2):
        (run.path / "export").symlink_to(tmp_path)
        moved(workspace, run)
        restore(workspace, ID)
        assert (run.path / "export").is_symlink()
        moved(workspace, run)
        empty(workspace)
    assert (tmp_path / "mine").exists() and in_trash(workspace) == []


# gc


def labels(run: RunDir) -> list[str]:
    return [path.name for path in run.checkpoints()]


def change(run: RunDir, **fields: object) -> None:
    run.record.write_text(json.dumps(record_json(ID, **fields)))


def test_old_checkpoints_go_and_the_best_and_the_last_stay(workspace, run):
    checkpoint(run, 20)
    change(
        run,
        benchmarks=[benchmark(5.0, "checkpoint-5"), benchmark(9.0, "checkpoint-10"), benchmark(7.0, "checkpoint-20")],
    )
    size = sum(size_of(run.output / f"checkpoint-{step}") for step in (5, 15))
    found = take_checkpoints(workspace, run, [], keep_last=1)
    assert (found.what, found.bytes) == (["output/checkpoint-5", "output/checkpoint-15"], size)
    assert labels(run) == ["checkpoint-10", "checkpoint-20"]
    assert (run.output / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(("keep_last", "kept"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_as_many_of_the_last_stay_as_is_said(workspace, run, keep_last, kept):
    take_checkpoints(workspace, run, [], keep_last=keep_last)
    assert labels(run) == ["checkpoint-5", "checkpoint-10", "checkpoint-15"][-kept:]


@pytest.mark.parametrize("status", ["interrupted", "stopped", "failed"])
def test_the_newest_whole_checkpoint_stays_for_a_resume(workspace, run, status):
    """Not the newest of all, which the end tore, alone."""
    torn = checkpoint(run, 20)
    (torn / "trainer_state.json").unlink()
    (torn / "adapter_model.safetensors").write_bytes(b"torn")
    change(run, status=status, training=None, benchmarks=[])
    take_checkpoints(workspace, run, [], keep_last=1)
    assert {"checkpoint-15", "checkpoint-20"} == set(labels(run))


def test_checkpoints_come_back(workspace, run):
    before = tree(run.path)
    take_checkpoints(workspace, run, [], keep_last=1)
    found = restore(workspace, ID)
    assert sorted(found.what) == ["output/checkpoint-10", "output/checkpoint-5"]
    assert tree(run.path) == before


def test_an_output_folder_that_is_a_link_is_left_alone(workspace, run, tmp_path):
    run.output.rename(tmp_path / "big disk")
    run.output.symlink_to(tmp_path / "big disk")
    found = take_checkpoints(workspace, run, [], keep_last=1)
    assert found.what == [] and "is a link to" in found.left[0]
    assert in_trash(workspace) == []
    assert len(run.checkpoints()) == 3


# The trash


def test_the_trash_is_emptied_for_good(workspace, run):
    other = new_run(workspace, "other-20261124-101500")
    take_checkpoints(workspace, run, [], keep_last=1)
    moved(workspace, other, whole=True)
    size = size_of(workspace.trash)
    found = empty(workspace)
    assert [(each.run, each.what) for each in found] == [
        ("other-20261124-101500", ["."]),
        (ID, ["output/checkpoint-10", "output/checkpoint-5"]),
    ]
    assert sum(each.bytes for each in found) == size
    assert list(workspace.trash.iterdir()) == [] and empty(workspace) == []
    assert labels(run) == ["checkpoint-15"]


def test_only_what_is_old_enough_or_of_the_runs_named_goes(workspace, run):
    other = new_run(workspace, "other-20261124-101500")
    take_checkpoints(workspace, run, [], keep_last=1)
    moved(workspace, other)
    old = time.time() - 8 * 24 * 3600
    os.utime(workspace.trash / ID, (old, old))
    week = datetime.now(UTC) - timedelta(days=7)
    assert [(each.run, each.what) for each in empty(workspace, before=week)] == [
        (ID, ["output/checkpoint-10", "output/checkpoint-5"])
    ]
    moved(workspace, run)
    assert [each.run for each in empty(workspace, words=["other"])] == [other.id]
    assert held(workspace) == {"data", "logs", "output"}


def test_what_is_not_of_a_run_stays_in_the_trash(workspace, run):
    moved(workspace, run)
    for name in ("mine", f"20261124-101500.000000Z~{ID}~output/checkpoint-5"):
        (workspace.trash / name).mkdir(parents=True)
    (workspace.trash / "file").write_text("x")
    empty(workspace)
    assert len(list(workspace.trash.iterdir())) == 3


# At the same time, without room, without rights

CONTENDER = """
import sys
from pathlib import Path
from orchestrator.errors import OrchestratorError
from orchestrator.runs.workspace import Workspace
from orchestrator.runs.trash import empty, remove, restore

workspace = Workspace(Path(sys.argv[1]))
for number in range(10):
    try:
        if sys.argv[2] == "rm":
            remove(workspace, [workspace.find_run("toy")], whole=number % 2 == 1)
        elif sys.argv[2] == "gc":
            empty(workspace, dry_run=number % 2 == 1)
        else:
            restore(workspace, "toy")
    except (OrchestratorError, FileNotFoundError):
        pass
"""


@pytest.mark.parametrize("kinds", [("rm", "restore"), ("gc", "gc")])
def test_two_at_once_trip_over_nothing(workspace, run, kinds):
    before = tree(run.path)
    if "rm" not in kinds:
        moved(workspace, run)
    under_way = [
        subprocess.Popen([sys.executable, "-c", CONTENDER, workspace.root, kind], stderr=subprocess.PIPE, cwd=ROOT)
        for kind in kinds
    ]
    for process in under_way:
        assert process.communicate(timeout=60) == (None, b"")
    if "gc" not in kinds:
        while in_trash(workspace):
            restore(workspace, "toy")
        assert tree(run.path) == before


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, small, as a workspace."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(options, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount")
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield new_workspace(folder / "w")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_what_can_only_be_read_stays_as_it_is_and_is_told(disk):
    run = new_run(disk, ID)
    moved(disk, run)
    before = tree(disk.root)
    folder = str(disk.root.parent)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        for action in (lambda: moved(disk, run), lambda: restore(disk, ID), lambda: empty(disk)):
            with pytest.raises((OSError, PrerequisiteError), match="Read-only file system"):
                action()
        assert moved(disk, run, dry_run=True)[0].what == [] and restore(disk, ID, dry_run=True).what
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    assert tree(disk.root) == before


def test_what_lies_on_another_disk_is_told(disk, tmp_path):
    """The trash is beside the runs; a part that is a disk of its own can't be renamed into it."""
    run = new_run(disk, ID)
    (run.path / "export").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(run.path / "export")], check=True)
    try:
        with pytest.raises(PrerequisiteError, match=r"cannot be moved to .*: Device or resource busy"):
            moved(disk, run)
    finally:
        subprocess.run(["umount", str(run.path / "export")], check=True)
    assert restore(disk, ID).what


def test_a_file_with_several_names_counts_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a" / "one", tmp_path / "a" / "two")
    assert size_of(tmp_path / "a") == 1000
