"""Whether a file system keeps what runs depend on. Run: pytest tests/test_storage.py."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.lifecycle.new_run import How, Origin, new_run
from orchestrator.planning.plan import plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.storage import file_system, storage_problem


def test_a_disk_with_locks_is_fit_for_runs_and_nothing_is_left_there(tmp_path):
    assert storage_problem(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def without_locks(file, operation):
    """An NFS mount whose server has no lock daemon."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def of_no_effect(file, operation):
    """A FUSE file system that says yes to everything."""


@pytest.mark.parametrize(
    ("flock", "problem"),
    [(without_locks, "it has no locks: No locks available"), (of_no_effect, "its locks do not exclude")],
)
def test_locks_that_fail_or_do_not_exclude_are_a_problem(tmp_path, monkeypatch, flock, problem):
    monkeypatch.setattr(fcntl, "flock", flock)
    assert (storage_problem(tmp_path) or "").startswith(problem)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_replaces_no_files_is_a_problem(tmp_path, monkeypatch):
    def replace(self, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "replace", replace)
    assert storage_problem(tmp_path) == "a file cannot be replaced as a whole there: Invalid cross-device link"


def test_a_folder_that_cannot_be_written_to_is_a_problem(tmp_path):
    assert storage_problem(tmp_path / "none") == "it cannot be written to: No such file or directory"


def test_the_file_system_is_that_of_the_nearest_mount():
    assert file_system(Path("/proc/self"))[0] == "proc"
    assert file_system(Path("/"))[0]


def test_a_launch_into_a_workspace_without_locks_is_refused_with_the_reason(workshop, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_LLAMAFACTORY", str(workshop.cli))
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(workshop.root.parent / "cache"))
    session = Session.open(workshop.root)
    plan = plan_run(session, session.load_spec(workshop.spec()))
    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.raises(PrerequisiteError, match=r"cannot be kept in .*: it has no locks: No locks available") as error:
        new_run(session, plan, Origin(), How())
    assert "NFS" in error.value.remedy
    assert workshop.run_folders() == []
