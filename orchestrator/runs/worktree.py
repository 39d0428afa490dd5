"""The workspace's git: its commit, what was changed since, and which new files are in no commit.

No program that the repository's own configuration names is run (fsmonitor, hooks, filters, external diffs): a
workspace may come from somebody else.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.files import atomic_write
from orchestrator.processes.process import run_short
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir

MAX_BYTES = 1_000_000
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
    """For `git apply` on that commit, with the names of new specs, entries and templates as comments."""

    @property
    def patch_sha256(self) -> str | None:
        return hashlib.sha256(self.patch).hexdigest() if self.patch else None


def read_worktree(root: Path) -> Worktree:
    """What git tells of a workspace."""
    git = ["git", "--literal-pathspecs", "-C", str(root)]
    listed = [*git, "ls-files", "-z", "--others", "--exclude-standard", "--", "runs", "dataset_info", "templates"]
    try:
        safe = _without_programs(git)
        commit = run_short([*git, "rev-parse", "HEAD"], environment=safe).strip()
        text = run_short([*git, *_DIFF, *_PREFIXES], environment=safe, errors="surrogateescape")
        new = run_short(listed, environment=safe).split("\0")[:-1]
    except (PrerequisiteError, StageError):  # no git, no repository, no commit yet, or a git that is too slow
        return Worktree()
    patch = text.encode(errors="surrogateescape")
    if len(patch) > MAX_BYTES:
        note = f"\n# cut here: {len(patch):,} bytes in all, sha256 {hashlib.sha256(patch).hexdigest()}\n"
        patch = patch[:MAX_BYTES] + note.encode()
    names = [name for name in new if name.endswith((".yaml", ".yml", ".j2"))]
    return Worktree(commit, bool(text), patch + "".join(f"# new, in no commit: {name!a}\n" for name in names).encode())


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
    try:
        names = run_short([*git, "config", "-z", "--name-only", "--get-regexp", r"^filter\."]).split("\0")[:-1]
    except StageError:  # there are none
        names = []
    settings = {"core.fsmonitor": "false", "core.hooksPath": "/dev/null", **dict.fromkeys(names, "")}
    variables = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (name, value) in enumerate(settings.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return variables
