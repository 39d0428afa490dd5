"""The workspace's git: its commit, and what was changed since and is in no commit.

No program that the repository's own configuration names is run (fsmonitor, hooks, filters, external diffs): a
workspace may come from somebody else. Other new files, and changes within submodules, are left out.
"""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.files import atomic_write
from orchestrator.processes.process import run_short
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir

MAX_BYTES = 1_000_000
MAX_NEW_FILE_BYTES = 64_000
# Specs, dataset entries and templates that git does not track yet are kept as new files.
_FOLDERS, _SUFFIXES = ("runs", "dataset_info", "templates"), (".yaml", ".yml", ".j2")
# Whatever the user has configured: no colours, paths from the top, nobody else's programs.
_DIFF = ("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--binary", "--ignore-submodules=dirty")
_PREFIXES = ("--src-prefix=a/", "--dst-prefix=b/")


@dataclass(frozen=True)
class Worktree:
    """Of a workspace in git; without git, or without a commit yet, nothing is known."""

    commit: str | None = None
    dirty: bool | None = None
    """Whether files that git tracks differ from that commit."""
    patch: bytes = b""
    """For `git apply` on that commit; b'' where nothing differs. One that is too large is cut, and says so."""

    @property
    def patch_sha256(self) -> str | None:
        return hashlib.sha256(self.patch).hexdigest() if self.patch else None


def read_worktree(root: Path) -> Worktree:
    """What git tells of a workspace."""
    git = ["git", "--literal-pathspecs", "-C", str(root)]
    try:
        safe = _without_programs(git)
        commit = run_short([*git, "rev-parse", "HEAD"], environment=safe).strip()
        patch = _diff(git, safe)
        dirty = bool(patch)
        others = [*git, "ls-files", "-z", "--others", "--exclude-standard", "--", *_FOLDERS]
        listed = run_short(others, environment=safe).split("\0")
        new = [name for name in listed if name.endswith(_SUFFIXES) and "\N{REPLACEMENT CHARACTER}" not in name]
        large = [name for name in new if (root / name).lstat().st_size > MAX_NEW_FILE_BYTES]
        if small := [name for name in new if name not in large]:
            index = root / run_short([*git, "rev-parse", "--git-path", "index"], environment=safe).rstrip("\n")
            with tempfile.TemporaryDirectory() as folder:
                own = {**safe, "GIT_INDEX_FILE": str(shutil.copy(index, folder))}
                add = [*git, "add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul"]
                run_short(add, input_text="\0".join(small), environment=own)
                patch = _diff(git, own)
    except (PrerequisiteError, StageError, OSError):  # no git, no repository, no commit yet, or a git that is too slow
        return Worktree()
    notes = "".join(f"# new, not kept, over {MAX_NEW_FILE_BYTES:,} bytes: {name!a}\n" for name in large)
    return Worktree(commit, dirty, _cut(patch + notes.encode()))


def keep_patch(run: RunDir, root: Path, facts: Facts) -> Facts:
    """Write workspace.diff where anything differs; the facts with what it holds."""
    if facts.git_commit is None:
        return facts
    found = read_worktree(root)
    if found.patch:
        atomic_write(run.workspace_diff, found.patch)
    known = {"git_commit": found.commit, "git_dirty": found.dirty, "git_diff_sha256": found.patch_sha256}
    return facts.model_copy(update=known)


def _without_programs(git: list[str]) -> dict[str, str]:
    """Variables by which git runs nothing that a repository's configuration names."""
    filters = [*git, "config", "-z", "--name-only", "--get-regexp", r"^filter\."]
    try:
        names = run_short(filters).split("\0")[:-1]
    except StageError:  # there are none
        names = []
    settings = {"core.fsmonitor": "false", "core.hooksPath": "/dev/null", **dict.fromkeys(names, "")}
    variables = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (name, value) in enumerate(settings.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _diff(git: list[str], environment: dict[str, str]) -> bytes:
    text = run_short([*git, *_DIFF, *_PREFIXES], environment=environment, errors="surrogateescape")
    return text.encode(errors="surrogateescape")


def _cut(patch: bytes) -> bytes:
    if len(patch) <= MAX_BYTES:
        return patch
    note = f"\n# cut here: {len(patch):,} bytes in all, sha256 {hashlib.sha256(patch).hexdigest()}\n"
    return patch[:MAX_BYTES] + note.encode()
