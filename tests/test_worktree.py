"""What of a workspace is in no commit, kept with a run. Run: pytest tests/test_worktree.py."""

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.runs import worktree
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.worktree import Worktree, keep_patch, read_worktree


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(["git", "-C", root, *identity, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace in a folder of a repository, as often."""
    git(tmp_path, "init", "-q")
    folder = tmp_path / "it's work"
    for name in ("runs", "dataset_info", "templates"):
        (folder / name).mkdir(parents=True)
    (folder / "runs" / "toy.yaml").write_bytes("name: toy\nnote: Grüße\n".encode("latin-1"))
    (tmp_path / "beside.txt").write_text("beside\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return folder


def test_a_clean_workspace_has_no_patch(root):
    found = read_worktree(root)
    assert (found.dirty, found.patch) == (False, b"")
    assert found.commit == git(root, "rev-parse", "HEAD").strip()


def test_outside_git_or_without_a_commit_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert read_worktree(tmp_path) == Worktree()
    git(tmp_path, "init", "-q")
    assert read_worktree(tmp_path) == Worktree()


@pytest.mark.parametrize("setting", ["color.ui=always", "diff.noprefix=true", "diff.external=false"])
def test_the_patch_makes_the_commit_what_the_workspace_was(root, tmp_path, setting):
    """Changed files byte by byte, whatever the user's git is set to."""
    changed = {"runs/toy.yaml": "name: toy\nnote: Grüße, Grüße".encode("latin-1"), "runs/staged.yaml": b"\xff\xfe\n"}
    for name, content in changed.items():
        (root / name).write_bytes(content)
    git(root, "add", "runs/staged.yaml")
    git(root, "config", *setting.split("="))
    found = read_worktree(root)
    assert found.dirty
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(tmp_path), str(clone))
    (tmp_path / "a.diff").write_bytes(found.patch)
    git(clone, "apply", str(tmp_path / "a.diff"))
    assert {name: (clone / root.name / name).read_bytes() for name in changed} == changed


def test_new_specs_entries_and_templates_are_named_and_other_files_left_out(root):
    for name in ("runs/weights.bin", "notes.yaml", "runs/ignored.yaml", "runs/new: *.yaml", "templates/train.yaml.j2"):
        (root / name).write_text("x")
    (root / os.fsdecode(b"runs/no text \xff.yaml")).write_text("x")
    (root / ".gitignore").write_text("ignored.yaml\n")
    found = read_worktree(root)
    names = [line for line in found.patch.decode().splitlines() if "no text" not in line]
    assert found.dirty is False
    assert names == [f"# new, in no commit: {name!r}" for name in ("runs/new: *.yaml", "templates/train.yaml.j2")]


def test_nothing_that_a_stranger_s_repository_names_is_run(root, tmp_path):
    """core.fsmonitor, hooks, filters and diff programs of a workspace from somebody else."""
    mark, program = tmp_path / "was run", tmp_path / "evil"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\ncat\n")
    program.chmod(0o755)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-index-change").symlink_to(program)
    (root / ".gitattributes").write_text("*.yaml filter=a=b diff=evil\n")
    settings = {"core.fsmonitor": program, "core.hooksPath": hooks, "diff.external": program}
    settings |= {"diff.evil.command": program, "diff.evil.textconv": program}
    settings |= {f"filter.a=b.{kind}": program for kind in ("clean", "smudge", "process")} | {
        "filter.a=b.required": "true"
    }
    for name, value in settings.items():
        git(root, "config", name, str(value))
    (root / "runs" / "toy.yaml").write_text("name: changed\n")
    (root / "runs" / "new.yaml").write_text("name: new\n")
    patch = read_worktree(root).patch
    assert b"+name: changed" in patch and b"new.yaml" in patch
    assert not mark.exists()


def test_of_a_large_patch_the_beginning_is_kept_and_it_says_so(root, monkeypatch):
    monkeypatch.setattr(worktree, "MAX_BYTES", 300)
    (root / "runs" / "toy.yaml").write_text("".join(f"line {number}\n" for number in range(100)))
    patch = read_worktree(root).patch
    assert len(patch) < 500
    assert b"\n# cut here: " in patch and patch.startswith(b"diff --git")
    (root / "runs" / "toy.yaml").write_text("".join(f"line {number}\n" for number in range(101)))
    assert read_worktree(root).patch != patch  # by the hash of the whole


def test_the_patch_is_kept_in_the_run_folder_and_the_facts_say_what_it_is(root, tmp_path):
    folder = root / "runs" / "toy-20261124-101500"
    folder.mkdir()
    run, facts = RunDir(folder), Facts(git_commit="a" * 40)
    kept = keep_patch(run, root, facts)
    assert (kept.git_dirty, kept.git_diff_sha256, run.workspace_diff.exists()) == (False, None, False)
    (root / "runs" / "toy.yaml").write_text("name: other\n")
    kept = keep_patch(run, root, facts)
    assert kept.git_dirty and kept.git_diff_sha256
    assert b"+name: other" in run.workspace_diff.read_bytes()
    assert keep_patch(run, root, Facts()) == Facts()
