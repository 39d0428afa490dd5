"""What is moved to the trash, put back, and deleted, and what is never touched. Run: pytest tests/test_trash.py."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.processes.process_tree import FOLDERS_ENV, RUN_ENV
from orchestrator.runs.in_use import process_users
from orchestrator.runs.notes import change_tags
from orchestrator.runs.record import locked
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.runs.trash import Moved, empty, in_trash, remove, restore, size_of, take_checkpoints
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
    moved(workspace, run)
    run.output.mkdir()
    (run.output / "second").touch()
    moved(workspace, run)
    told = restore(workspace, ID, dry_run=True)
    assert restore(workspace, ID) == told
    assert told.left == [f"output: {ID} has one again"] and top(run.output) == {"second"}


def test_a_part_that_the_whole_run_has_too_stays_in_the_trash(workspace, run):
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


def test_a_kill_between_two_moves_loses_nothing(workspace, run):
    """As it looks then: a part in the trash, the others not."""
    before = tree(run.path)
    moved(workspace, run)
    (logs,) = [item.path for item in in_trash(workspace) if item.what == "logs"]
    logs.rename(run.path / "logs")
    (found,) = moved(workspace, run)
    assert found.what == ["logs"]
    restore(workspace, ID)
    assert tree(run.path) == before


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
    target = tmp_path / "elsewhere" / f"20261124-101500.000000Z~{ID}~output"
    target.mkdir(parents=True)
    workspace.trash.symlink_to(target.parent)
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


def aged(workspace: Workspace, days: int) -> None:
    """All in the trash, as if it had been there longer."""
    for item in in_trash(workspace):
        moment = item.moved_at - timedelta(days=days)
        item.path.rename(workspace.trash / f"{moment:%Y%m%d-%H%M%S}{item.path.name[15:]}")


def test_only_what_is_old_enough_or_of_the_runs_named_goes(workspace, run):
    other = new_run(workspace, "other-20261124-101500")
    take_checkpoints(workspace, run, [], keep_last=1)
    aged(workspace, 8)
    moved(workspace, run, other)
    week = datetime.now(UTC) - timedelta(days=7)
    assert [(each.run, each.what) for each in empty(workspace, before=week)] == [
        (ID, ["output/checkpoint-10", "output/checkpoint-5"])
    ]
    assert [each.run for each in empty(workspace, words=["other"])] == [other.id]
    assert sorted(restore(workspace, ID).what) == ["data", "logs", "output"]


def test_strange_things_in_the_trash_are_left_alone(workspace, run):
    moved(workspace, run)
    stamps = ("20261124-101500Z", "20261324-101500.000000Z", "20261124-101500.000000Z~x")
    strange = {"notes.txt", "mine", f"{ID}~output", *(f"{stamp}~{ID}.." for stamp in stamps)}
    for name in strange:
        (workspace.trash / name).mkdir()
    before = top(workspace.trash) - {item.path.name for item in in_trash(workspace)}
    restore(workspace, ID)
    empty(workspace)
    assert top(workspace.trash) == before and len(before) == len(strange)


def test_an_item_that_was_being_deleted_is_not_put_back_and_goes_the_next_time(workspace, run):
    moved(workspace, run)
    for item in in_trash(workspace):
        item.path.rename(workspace.trash / f".doomed-{item.what}")
    with pytest.raises(SpecError, match="holds nothing of"):
        restore(workspace, ID)
    empty(workspace)
    assert list(workspace.trash.iterdir()) == []


# At the same time, without room, without rights

CONTENDER = """
import sys
from pathlib import Path
from orchestrator.errors import OrchestratorError
from orchestrator.runs.record import locked
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.runs.trash import empty, remove, restore

workspace = Workspace(Path(sys.argv[1]))
for number in range(20):
    try:
        if sys.argv[2] == "rm":
            remove(workspace, [workspace.find_run("toy")], whole=number % 2 == 1)
        elif sys.argv[2] == "gc":
            empty(workspace, dry_run=number % 2 == 1)
        else:
            restore(workspace, "toy")
    except OrchestratorError:
        pass
"""


@pytest.mark.parametrize("kinds", [("rm", "rm"), ("rm", "restore"), ("restore", "restore"), ("gc", "gc"), ("rm", "gc")])
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


def fill(folder: Path) -> None:
    with (folder / "full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 512)


def test_a_full_disk_can_be_cleared(disk):
    run = new_run(disk, ID)
    fill(disk.root)
    moved(disk, run)
    restore(disk, ID)
    moved(disk, run, whole=True)
    empty(disk)
    assert disk.all_runs() == []


def test_a_disk_without_a_free_block_can_be_cleared(tmp_path):
    """Of a file system on which a folder takes room; the trash is there since the run was made."""
    image, folder = tmp_path / "image", tmp_path / "ext4"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(4 << 20)
    for command in (["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(folder)]):
        if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip(f"{command[0]} does not work here")
    try:
        disk = new_workspace(folder / "w")
        run = new_run(disk, disk.new_run("toy", datetime.now()).id)
        with locked(run, "record"):
            fill(disk.root)
        with pytest.raises(OSError, match="No space left"):
            (folder / "one more").mkdir()
        moved(disk, run)
        restore(disk, run.id)
        take_checkpoints(disk, run, [], keep_last=1)
        moved(disk, run, whole=True)
        empty(disk)
        assert disk.all_runs() == []
        (folder / "one more").mkdir()
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
            with pytest.raises(OSError, match="Read-only file system"):
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
        with pytest.raises(PrerequisiteError, match="another file system"):
            moved(disk, run)
    finally:
        subprocess.run(["umount", str(run.path / "export")], check=True)
    assert restore(disk, ID).what


def test_a_file_with_several_names_counts_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a" / "one", tmp_path / "a" / "two")
    assert size_of(tmp_path / "a") == 1000
