"""The workspace's git: its commit, and what was changed since and is in no commit.

Covered: changes of files that git tracks, as a patch; specs, dataset entries and templates that it does not track yet,
as new files in the same patch. Of a patch that is too large the beginning is kept, and it says so.
Not covered: other files that git does not track; submodules' own changes.
Leaves workspace.diff in a run folder.
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
MAX_NEW_FILE_BYTES = 64_000
_OURS = ("runs", "dataset_info", "templates")
_SUFFIXES = (".yaml", ".yml", ".j2")


@dataclass(frozen=True)
class Worktree:
    """Of a workspace in git; without git, or without a commit yet, nothing is known."""

    commit: str | None = None
    dirty: bool | None = None
    """Whether files that git tracks differ from that commit."""
    patch: bytes = b""
    """For `git apply` on that commit; b'' where nothing differs."""


def read_worktree(root: Path) -> Worktree:
    """What git says of a workspace."""
    git = ["git", "-C", str(root)]
    try:
        commit = run_short([*git, "rev-parse", "HEAD"]).strip()
        # Whatever the user has set: no colours, no program of theirs, paths from the top.
        how = ["--no-color", "--no-ext-diff", "--no-textconv", "--binary", "--src-prefix=a/", "--dst-prefix=b/"]
        tracked = run_short([*git, "diff", "HEAD", *how], errors="surrogateescape").encode(errors="surrogateescape")
        top = Path(run_short([*git, "rev-parse", "--show-toplevel"]).rstrip("\n"))
        listed = run_short([*git, "ls-files", "-z", "--others", "--exclude-standard", "--full-name", "--", *_OURS])
    except (PrerequisiteError, StageError):  # no git, no repository, no commit yet, or a git that is too slow
        return Worktree()
    added = [_as_new(top, name) for name in sorted(listed.split("\0")) if name.endswith(_SUFFIXES)]
    return Worktree(commit, bool(tracked), _cut(tracked + "".join(added).encode("utf-8", "surrogateescape")))


def patch_sha256(worktree: Worktree) -> str | None:
    return hashlib.sha256(worktree.patch).hexdigest() if worktree.patch else None


def keep_patch(run: RunDir, root: Path, facts: Facts) -> Facts:
    """Write workspace.diff where anything differs; the facts with what stands there."""
    if facts.git_commit is None:
        return facts
    found = read_worktree(root)
    if found.patch:
        atomic_write(run.workspace_diff, found.patch)
    known = {"git_commit": found.commit, "git_dirty": found.dirty, "git_diff_sha256": patch_sha256(found)}
    return facts.model_copy(update=known)


def _as_new(top: Path, name: str) -> str:
    """A file as one that a patch adds; only named where it is large, no text, or of a name that git would quote."""
    path = top / name
    try:
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b"\0"
    except OSError as error:
        return f"# new, not kept ({error.strerror}): {name!a}\n"
    if b"\0" in content or len(content) > MAX_NEW_FILE_BYTES or not name.isprintable() or set('"\\') & set(name):
        return f"# new, not kept: {name!a}\n"
    begin = f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
    if not content:
        return begin
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    ends_with_newline = lines[-1] == ""
    lines = lines[:-1] if ends_with_newline else lines
    text = "".join(f"+{line}\n" for line in lines)
    tab = "\t" if " " in name else ""  # as git marks the end of such a name
    end = "" if ends_with_newline else "\\ No newline at end of file\n"
    return f"{begin}--- /dev/null\n+++ b/{name}{tab}\n@@ -0,0 +1,{len(lines)} @@\n{text}{end}"


def _cut(patch: bytes) -> bytes:
    if len(patch) <= MAX_BYTES:
        return patch
    whole = hashlib.sha256(patch).hexdigest()
    said = f"\n# cut here: {len(patch):,} bytes in all, sha256 {whole}\n"
    return patch[:MAX_BYTES] + said.encode()
