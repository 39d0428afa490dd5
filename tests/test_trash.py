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
from orchestrator.processes.process_tree import FOLDERS_ENV, RUN_ENV
from orchestrator.runs.in_use import process_users
from orchestrator.runs.notes import change_tags
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trash import Moved, empty, in_trash, remove, restore, size_of, take_checkpoints
from orchestrator.runs.workspace import Workspace
from tests.runs_on_disk import benchmark, checkpoint, new_run, new_workspace, owned_by_another, record_json

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


def held(workspace: Workspace) -> list[str]:
    """What the trash holds of the run."""
    return sorted(item.what for item in in_trash(workspace, ID))


def moved(workspace: Workspace, run: RunDir, **changes: bool) -> Moved:
    (found,) = remove(workspace, [run], **{"with_record": False, **changes})
    return found


def second_output(run: RunDir, name: str = "second") -> None:
    run.output.mkdir(exist_ok=True)
    (run.output / name).mkdir()


# rm and back


def test_what_is_large_goes_and_comes_back_and_what_tells_of_the_run_stays(workspace, run):
    for name in ("output-1", "export", "output-notes", "mine"):
        (run.path / name).mkdir()
    before, parts = tree(run.path), ["data", "export", "logs", "output", "output-1"]
    found = moved(workspace, run)
    size = sum(len(before[name]) for name in before if name.partition("/")[0] in parts)
    assert found == Moved(ID, parts, size, []) and held(workspace) == parts
    assert top(run.path) == {"record.json", "spec.yaml", "notes.json", "benchmarks", "output-notes", "mine"}
    assert moved(workspace, run) == Moved(ID, [], 0, [])
    back = restore(workspace, ID)
    assert (sorted(back.what), back.bytes, back.left) == (parts, size, [])
    assert tree(run.path) == before and list(workspace.trash.iterdir()) == []


def test_what_was_removed_bit_by_bit_comes_back_at_once_by_the_spec_s_name(workspace, run):
    before = tree(run.path)
    take_checkpoints(workspace, run, [], keep_last=1)
    moved(workspace, run)
    assert moved(workspace, run, with_record=True).what == ["."]
    assert not run.path.exists() and workspace.all_runs() == []
    assert restore(workspace, "toy").what[0] == "."
    assert tree(run.path) == before


def several(workspace: Workspace, run: RunDir) -> None:
    for number in range(11):
        second_output(run, f"made-{number}")
        moved(workspace, run)


def again(workspace: Workspace, run: RunDir) -> None:
    moved(workspace, run)
    second_output(run)


def also_entirely(workspace: Workspace, run: RunDir) -> None:
    again(workspace, run)
    moved(workspace, run, with_record=True)


@pytest.mark.parametrize(
    ("removed", "left", "there"),
    [(several, 10, {"made-10"}), (again, 1, {"second"}), (also_entirely, 1, {"second"})],
)
def test_nothing_is_written_over_and_of_several_the_latest_comes_back(workspace, run, removed, left, there):
    removed(workspace, run)
    promised = restore(workspace, ID, dry_run=True)
    assert restore(workspace, ID) == promised
    assert promised.left == [f"output: {ID} has one again"] * left
    assert top(run.output) == there and held(workspace) == ["output"] * left


def test_parts_of_a_run_that_is_gone_stay_in_the_trash(workspace, run):
    moved(workspace, run)
    run.path.rename(workspace.root / "elsewhere")
    found = restore(workspace, ID)
    assert found.what == [] and f"output: the run folder of {ID} is gone" in found.left and len(found.left) == 3


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


def test_of_several_runs_of_a_name_the_newest_comes_back_and_what_is_not_there_gets_a_hint(workspace):
    runs = [new_run(workspace, f"toy-2026112{day}-101500") for day in (4, 5)]
    remove(workspace, runs, with_record=True)
    for action in (lambda word: restore(workspace, word), lambda word: empty(workspace, words=[word])):
        with pytest.raises(SpecError, match=f"the trash holds nothing of .*; did you mean '{runs[0].id}'"):
            action(f"t{runs[0].id}")
    assert [restore(workspace, "toy").run for _ in runs] == [runs[1].id, runs[0].id]


@pytest.mark.parametrize("name", ["+etc+passwd", "record.json", "checkpoint-x", "output~", "data~2~3", "runs"])
def test_of_a_stranger_s_trash_only_parts_of_a_run_are_put_back(workspace, run, name):
    (workspace.trash / ID / name).mkdir(parents=True)
    with pytest.raises(SpecError, match="holds nothing"):
        restore(workspace, ID)
    assert empty(workspace) == [] and (workspace.trash / ID / name).is_dir()


# What is refused


def refused(workspace: Workspace, run: RunDir, match: str, *others: RunDir, **changes: bool) -> None:
    before = tree(workspace.root)
    with pytest.raises(PrerequisiteError, match=match):
        remove(workspace, [*others, run], **{"with_record": False, **changes})
    if not changes:
        with pytest.raises(PrerequisiteError, match=match):
            take_checkpoints(workspace, run, process_users(), keep_last=1)
    assert tree(workspace.root) == before and not workspace.trash.exists()


def test_a_run_whose_owner_lives_is_left_alone_with_all_others_of_the_command(workspace, run):
    other = new_run(workspace, "other-20261124-101500")
    with owned_by_another(run) as end:
        refused(workspace, run, f"run {ID} is running", other)
        refused(workspace, run, f"run {ID} is running", with_record=True)
        end()
        assert moved(workspace, run, with_record=True).what


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
        namesake = new_run(workspace, f"{ID}-2")
        assert moved(workspace, namesake).what
        worker.communicate(b"\n")
    assert moved(workspace, run).what


def test_a_run_with_a_damaged_record_goes_entirely_only(workspace, run):
    run.record.write_text('{"id": "to')
    refused(workspace, run, r"record\.json cannot be read")
    assert moved(workspace, run, with_record=True).what == restore(workspace, ID).what == ["."]


def test_links_are_moved_as_links_and_what_is_elsewhere_is_refused(workspace, run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights").write_text("x" * 5000)
    (run.output / "link").symlink_to(outside)
    (run.path / "export").symlink_to(outside)
    assert moved(workspace, run).bytes < 5000
    restore(workspace, ID)
    assert (run.path / "export").is_symlink()
    run.output.rename(tmp_path / "big disk")
    run.output.symlink_to(tmp_path / "big disk")
    found = take_checkpoints(workspace, run, [], keep_last=1)
    assert found.what == [] and "is a link to" in found.left[0] and len(run.checkpoints()) == 3
    moved(workspace, run)
    empty(workspace)
    assert (outside / "weights").read_text() == "x" * 5000 and (tmp_path / "big disk").is_dir()


def test_a_run_folder_that_is_a_link_or_lies_elsewhere_is_refused(workspace, tmp_path):
    elsewhere = new_run(new_workspace(tmp_path / "other"), ID)
    refused(workspace, elsewhere, "is no run folder of")
    (workspace.runs / ID).symlink_to(elsewhere.path)
    refused(workspace, RunDir(workspace.runs / ID), "is a link to")
    assert len(elsewhere.checkpoints()) == 3


def test_a_trash_that_is_a_link_is_refused(workspace, run, tmp_path):
    (tmp_path / "elsewhere" / ID / "output").mkdir(parents=True)
    workspace.trash.symlink_to(tmp_path / "elsewhere")
    actions = (lambda: moved(workspace, run), lambda: empty(workspace), lambda: restore(workspace, ID))
    for action in (*actions, lambda: take_checkpoints(workspace, run, [], keep_last=1)):
        with pytest.raises(PrerequisiteError, match="is a link"):
            action()
    assert (tmp_path / "elsewhere" / ID / "output").is_dir() and len(run.checkpoints()) == 3


# gc


def labels(run: RunDir) -> list[str]:
    return [path.name for path in run.checkpoints()]


def change(run: RunDir, **fields: object) -> None:
    run.record.write_text(json.dumps(record_json(ID, **fields)))


def test_old_checkpoints_go_and_come_back_and_the_best_and_the_last_stay(workspace, run):
    checkpoint(run, 20)
    scores = {"checkpoint-5": 5.0, "checkpoint-10": 9.0, "checkpoint-20": 7.0}
    change(run, benchmarks=[benchmark(score, label) for label, score in scores.items()])
    before = tree(run.path)
    size = sum(size_of(run.output / f"checkpoint-{step}") for step in (5, 15))
    found = take_checkpoints(workspace, run, [], keep_last=1)
    assert (found.what, found.bytes) == (["output/checkpoint-5", "output/checkpoint-15"], size)
    assert labels(run) == ["checkpoint-10", "checkpoint-20"]
    assert (run.output / "adapter_model.safetensors").exists()
    assert sorted(restore(workspace, ID).what) == ["output/checkpoint-15", "output/checkpoint-5"]
    assert tree(run.path) == before


@pytest.mark.parametrize(("keep_last", "kept"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_as_many_of_the_last_stay_as_is_said(workspace, run, keep_last, kept):
    take_checkpoints(workspace, run, [], keep_last=keep_last)
    assert labels(run) == ["checkpoint-5", "checkpoint-10", "checkpoint-15"][-kept:]


@pytest.mark.parametrize("status", ["interrupted", "stopped", "failed"])
def test_the_newest_complete_checkpoint_stays_for_a_resume(workspace, run, status):
    """Not the newest of all, which the end tore, alone."""
    torn = checkpoint(run, 20)
    (torn / "trainer_state.json").unlink()
    (torn / "adapter_model.safetensors").write_bytes(b"torn")
    change(run, status=status, training=None, benchmarks=[])
    take_checkpoints(workspace, run, [], keep_last=1)
    assert {"checkpoint-15", "checkpoint-20"} == set(labels(run))


# The trash


def test_only_what_is_old_enough_or_of_the_runs_named_is_deleted(workspace, run):
    other = new_run(workspace, "other-20261124-101500")
    take_checkpoints(workspace, run, [], keep_last=1)
    moved(workspace, other)
    old = time.time() - 8 * 24 * 3600
    os.utime(workspace.trash / ID, (old, old))
    week = datetime.now(UTC) - timedelta(days=7)
    (found,) = empty(workspace, before=week)
    assert (found.run, found.what) == (ID, ["output/checkpoint-10", "output/checkpoint-5"])
    moved(workspace, run)
    assert [each.run for each in empty(workspace, words=["other"])] == [other.id]
    assert held(workspace) == ["data", "logs", "output"]
    for name in ("mine", f"20261124-101500.000000Z~{ID}~output/checkpoint-5"):
        (workspace.trash / name).mkdir(parents=True)
    size = size_of(workspace.trash)
    assert [(each.run, each.bytes) for each in empty(workspace)] == [(ID, size)]
    assert len(list(workspace.trash.iterdir())) == 2 and empty(workspace) == []  # what is not of a run stays


CONTENDER = """
import sys
from contextlib import suppress
from pathlib import Path
from orchestrator.errors import OrchestratorError
from orchestrator.runs.trash import empty, remove, restore
from orchestrator.runs.workspace import Workspace

workspace = Workspace(Path(sys.argv[1]))
for number in range(10):
    with suppress(OrchestratorError, FileNotFoundError):
        if sys.argv[2] == "rm":
            remove(workspace, [workspace.find_run("toy")], with_record=number % 2 == 1)
        elif sys.argv[2] == "gc":
            empty(workspace)
        else:
            restore(workspace, "toy")
"""


@pytest.mark.parametrize("kinds", [("rm", "restore"), ("gc", "gc")])
def test_two_at_once_lose_nothing(workspace, run, kinds):
    before = tree(run.path)
    if "rm" not in kinds:
        moved(workspace, run)
    argv = [sys.executable, "-c", CONTENDER, str(workspace.root)]
    started = [subprocess.Popen([*argv, kind], stderr=subprocess.PIPE, cwd=ROOT) for kind in kinds]
    for process in started:
        assert process.communicate(timeout=60) == (None, b"")
    if "gc" not in kinds:
        with suppress(SpecError):
            restore(workspace, "toy")
        assert tree(run.path) == before
    else:  # what was in the trash is deleted once, and nothing else
        assert list(workspace.trash.iterdir()) == [] and run.spec.is_file()


@pytest.fixture
def disk(tmp_path):
    """A disk of its own as a workspace."""
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
        subprocess.run(["umount", "--recursive", str(folder)], check=True)


def test_what_can_only_be_read_or_is_a_disk_of_its_own_stays_and_is_named(disk):
    run = new_run(disk, ID)
    moved(disk, run)
    before, folder = tree(disk.root), str(disk.root.parent)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    for action in (lambda: moved(disk, run), lambda: restore(disk, ID), lambda: empty(disk)):
        with pytest.raises((OSError, PrerequisiteError), match="Read-only file system"):
            action()
    assert restore(disk, ID, dry_run=True).what
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    assert tree(disk.root) == before
    (run.path / "export").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(run.path / "export")], check=True)
    with pytest.raises(PrerequisiteError, match=r"export cannot be moved to .*: Device or resource busy"):
        moved(disk, run)


def test_a_file_with_several_names_counts_once(tmp_path):
    (tmp_path / "one").write_bytes(b"x" * 1000)
    os.link(tmp_path / "one", tmp_path / "two")
    assert size_of(tmp_path) == 1000
