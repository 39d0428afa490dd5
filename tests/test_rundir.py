"""Workspaces, run folders and files that are written whole or not at all. Run: pytest tests/test_rundir.py."""

import os
import re
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.files import atomic_write, shipped
from orchestrator.runs.rundir import RunDir, Workspace, find_workspace

NOW = datetime(2026, 11, 24, 10, 15, 0)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "it's a; work space"
    (root / "dataset_info").mkdir(parents=True)
    (root / "runs").mkdir()
    return Workspace(root)


def made(workspace: Workspace, *ids: str) -> None:
    for name in ids:
        (workspace.runs / name).mkdir(parents=True)
        (workspace.runs / name / "record.json").write_text("{}")


# Writing


@pytest.mark.parametrize("content", ["", "ä😀\r\n", b"\0\xff"])
def test_what_is_written_is_what_is_read(content, tmp_path):
    path = tmp_path / "file"
    atomic_write(path, "old")
    atomic_write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_rights_that_the_umask_leaves(tmp_path):
    """mkstemp's would keep a group that shares the workspace out."""
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


LIMITED = """
import resource, signal, sys
from pathlib import Path
from orchestrator.files import atomic_write

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    atomic_write(Path(sys.argv[1]), "x" * 100_000)
except OSError as error:
    print(error.strerror)
"""


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    """The limit on a file's size ends the write half way, as a full disk does."""
    path = tmp_path / "record.json"
    atomic_write(path, "the old one")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "File too large\n", done.stderr
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(options, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount")
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_file_and_no_other(small_disk):
    path = small_disk / "record.json"
    atomic_write(path, "the old one")
    with pytest.raises(OSError, match="No space left on device"):
        atomic_write(path, "x" * 100_000)
    assert path.read_text() == "the old one"
    assert list(small_disk.iterdir()) == [path]
    atomic_write(path, "x" * 1000)  # there is room for it


def test_what_cannot_be_encoded_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_or_the_new_one_never_a_part(tmp_path):
    path = tmp_path / "file"
    texts = {letter * 200_000 for letter in "ab"}
    atomic_write(path, "a" * 200_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for text in texts:
                atomic_write(path, text)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {path.read_text() for _ in range(200)}
    finally:
        stop.set()
        writer.join()
    assert seen <= texts


# Run folders


def test_two_runs_in_the_same_second_get_two_folders(workspace):
    assert [workspace.new_run("toy", NOW).id for _ in range(3)] == [
        "toy-20261124-101500",
        "toy-20261124-101500-2",
        "toy-20261124-101500-3",
    ]


def test_many_launches_at_once_get_a_folder_each(workspace):
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(workspace.new_run("toy", NOW).id)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 16
    assert sorted([*found, ".trash"]) == sorted(path.name for path in workspace.runs.iterdir())


def test_benchmarks_of_one_name_are_numbered(tmp_path):
    run = RunDir(tmp_path)
    assert [run.new_benchmark("base-t-test").name for _ in range(2)] == ["base-t-test", "base-t-test-2"]


def test_checkpoints_are_ordered_by_step_and_other_folders_are_none(tmp_path):
    run = RunDir(tmp_path)
    assert run.checkpoints() == []
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3", "checkpoint-", "checkpoint-x", "runs"):
        (run.output / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


def test_every_file_of_a_run_lies_in_its_folder(tmp_path):
    run = RunDir(tmp_path)
    names = [name for name, value in vars(RunDir).items() if isinstance(value, property) and name != "id"]
    paths = [getattr(run, name) for name in names]
    assert len(set(paths)) == len(paths) > 10
    assert all(tmp_path in path.parents for path in paths)


# Finding runs

IDS = [
    "toy-20261124-101500",
    "other-20261124-101501",
    "toy-20261124-101502",
    "toy-20261124-101502-2",
    "toy-20261124-101502-10",
    "en-de-2-20261101-000000",
    "tiny-20261124-101500-20261125-101500",
]


def test_runs_are_listed_oldest_first(workspace):
    made(workspace, *reversed(IDS))
    (workspace.runs / "no-record-20261124-101500").mkdir()
    (workspace.runs / "spec.yaml").write_text("")
    assert [run.id for run in workspace.all_runs()] == [
        "en-de-2-20261101-000000",
        "toy-20261124-101500",
        "other-20261124-101501",
        "toy-20261124-101502",
        "toy-20261124-101502-2",
        "toy-20261124-101502-10",
        "tiny-20261124-101500-20261125-101500",
    ]


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("toy-20261124-101500", "toy-20261124-101500"),
        ("toy-20261124-101502-2", "toy-20261124-101502-2"),
        ("toy", "toy-20261124-101502-10"),
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
        ("zzzz", ""),
        ("", ""),
        ("x" * 5000, ""),
        ("a\0b", ""),
        ("toy-20261124", ""),
    ],
)
def test_what_is_no_run_is_refused_with_a_suggestion(word, hint, workspace):
    made(workspace, *IDS)
    with pytest.raises(SpecError, match=rf"^no run {re.escape(repr(word))} in ") as error:
        workspace.find_run(word)
    assert hint in str(error.value)
    assert error.value.remedy == "orchestrator list shows the runs"


def test_without_runs_there_is_no_latest(workspace):
    assert workspace.all_runs() == []
    assert workspace.lookup_run("latest") is None
    assert Workspace(workspace.root / "nowhere").all_runs() == []


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


def test_templates_and_datasets_ship():
    assert (shipped("templates") / "train.yaml.j2").is_file()
    assert list(shipped("dataset_info").glob("*.yaml"))
