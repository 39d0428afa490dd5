"""What `rm` and `gc` take out of run folders: moved to the trash by renames, put back from it, deleted for good.

runs/.trash/<run id>/ holds parts of the run folder by their names (output, output-N, data, export, logs), checkpoints
(checkpoint-5), and the entire folder as `run`; NAME~2 where the name is taken. Only these names are put back, each to
its own place. Links are moved as links, never followed.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import lock
from orchestrator.runs.in_use import RunProcess, process_users, refuse_if_in_use
from orchestrator.runs.run_checkpoints import best_and_last
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.workspace import Workspace, spec_name

_PART = re.compile(r"output(-[0-9]+)?|data|export|logs")
_ITEM = re.compile(rf"(run|checkpoint-[0-9]+|{_PART.pattern})(~[0-9]+)?")
_ENTIRE = "run"


@dataclass(frozen=True)
class Moved:
    """What was taken from a run, put back, or deleted; with a dry run, what would be."""

    run: str
    what: list[str]
    """Paths in the run folder; ["."]: the folder itself."""
    bytes: int
    """Sum of the files' sizes; links are not followed."""
    left: list[str]
    """What could not be moved, with the reason."""


@dataclass(frozen=True)
class Item:
    """Something in the trash."""

    path: Path
    run: str
    what: str
    """Its path in the run folder; ".": the folder itself."""
    moved_at: datetime
    """When something of the run was last moved to the trash."""


def remove(workspace: Workspace, runs: Sequence[RunDir], *, with_record: bool, dry_run: bool = False) -> list[Moved]:
    """Move runs to the trash: what is large (weights, data, logs), or the entire run folder.

    Without `with_record` the spec, record, notes and benchmarks stay: the run is listed, and can be run again.
    Raises PrerequisiteError: a run is in use, or is no folder of this workspace; then nothing was moved.
    """
    users = process_users()
    for run in runs:  # all are checked before one is moved
        _refuse_links(workspace, run)
        refuse_if_in_use(run, users, damaged_too=with_record)

    def parts(run: RunDir) -> list[str]:
        return ["."] if with_record else sorted(path.name for path in run.path.iterdir() if _PART.fullmatch(path.name))

    return [_take(workspace, run, parts, dry_run, damaged_too=with_record) for run in runs]


def take_checkpoints(
    workspace: Workspace, run: RunDir, users: Iterable[RunProcess], *, keep_last: int, dry_run: bool = False
) -> Moved:
    """Move a run's old checkpoints to the trash; the best and the newest complete one stay, and the keep_last newest.

    Raises PrerequisiteError: the run is in use, its record is damaged, or it is no folder of this workspace.
    """

    def old(run: RunDir) -> list[str]:
        found = [path.name for path in run.checkpoints()]
        kept = {*best_and_last(run), *found[-keep_last:]} if found else set()
        return [f"{run.output.name}/{name}" for name in found if name not in kept]

    _refuse_links(workspace, run)
    refuse_if_in_use(run, users)
    if run.output.is_symlink():
        return Moved(run.id, [], 0, [f"output/ is a link to {run.output.readlink()}: links are not followed"])
    return _take(workspace, run, old, dry_run)


def restore(workspace: Workspace, word: str, *, dry_run: bool = False) -> Moved:
    """Put back all that the trash holds of a run, the latest first. What the run has again by now stays in the trash.

    Raises SpecError: the trash holds nothing of it; PrerequisiteError: the run is in use.
    """
    run = _trashed(workspace, word)
    if os.path.lexists(run.path):
        _refuse_links(workspace, run)
        refuse_if_in_use(run, process_users(), damaged_too=True)
    moved: list[str] = []
    left: list[str] = []
    place, size = run.path, 0  # where what is back lies: with a dry run, maybe in the trash
    for item in sorted(in_trash(workspace, run.id), key=lambda item: item.what):  # "." first, output/ before its parts
        name = "the run folder" if item.what == "." else item.what
        if item.what in moved or os.path.lexists(place / item.what):
            left.append(f"{name}: {item.run} has one again")
        elif item.what != "." and not place.is_dir():
            left.append(f"{name}: the run folder of {item.run} is gone")
        elif item.what != "." and (place / item.what).parent.is_symlink():
            left.append(f"{name}: its folder is a link, and links are not followed")
        else:
            moved.append(item.what)
            size += size_of(item.path)
            if not dry_run:
                (run.path / item.what).parent.mkdir(exist_ok=True)  # output/ of a checkpoint
                _rename(item.path, run.path / item.what)
            elif item.what == ".":
                place = item.path
    _remove_if_empty(workspace.trash / run.id)
    return Moved(run.id, moved, size, left)


def empty(
    workspace: Workspace, *, before: datetime | None = None, words: Sequence[str] = (), dry_run: bool = False
) -> list[Moved]:
    """Delete what is in the trash, for good: of all runs or of some, and only where nothing was added since `before`.

    Raises SpecError: the trash holds nothing of such a run.
    """
    items = [item for item in in_trash(workspace) if before is None or item.moved_at < before]
    ids = list(dict.fromkeys(_trashed(workspace, word).id for word in words)) or sorted({item.run for item in items})
    deleted = []
    for name in ids:
        own = [item for item in items if item.run == name]
        if own:
            size = sum(size_of(item.path) for item in own)
            deleted.append(Moved(name, sorted({item.what for item in own}), size, []))
        for item in own if not dry_run else ():
            if item.path.is_dir() and not item.path.is_symlink():
                shutil.rmtree(item.path)  # never follows a link
            else:
                item.path.unlink(missing_ok=True)
        _remove_if_empty(workspace.trash / name)
    return deleted


def in_trash(workspace: Workspace, run_id: str | None = None) -> list[Item]:
    """What the trash holds, of a run or of all; of several of one name the latest first. Other files are left alone."""
    if workspace.trash.is_symlink():
        raise PrerequisiteError(f"{workspace.trash} is a link: the trash would be elsewhere", "remove the link")
    items = []
    for path in sorted(workspace.trash.glob("*/*"), key=lambda path: (len(path.name), path.name), reverse=True):
        match, folder = _ITEM.fullmatch(path.name), path.parent
        if match and not folder.is_symlink() and "~" not in folder.name and run_id in (None, folder.name):
            name = match[1]
            what = "." if name == _ENTIRE else f"output/{name}" if name.startswith("checkpoint-") else name
            items.append(Item(path, folder.name, what, datetime.fromtimestamp(folder.stat().st_mtime, UTC)))
    return items


def size_of(path: Path) -> int:
    """Sum of the sizes of all files in a folder, or of a file; one with several names counts once, a link nothing."""
    sizes: dict[tuple[int, int], int] = {}
    waiting = [path]
    while waiting:
        here = waiting.pop()
        with suppress(FileNotFoundError):
            found = here.lstat()
            if stat.S_ISDIR(found.st_mode):
                waiting += here.iterdir()
            elif stat.S_ISREG(found.st_mode):
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def _take(
    workspace: Workspace,
    run: RunDir,
    choose: Callable[[RunDir], list[str]],
    dry_run: bool,
    *,
    damaged_too: bool = False,
) -> Moved:
    with nullcontext() if dry_run else lock(run.record_lock):  # a resume that comes now waits, and finds what is left
        if not dry_run:
            refuse_if_in_use(run, (), damaged_too=damaged_too)
        what = choose(run)
        size = sum(size_of(run.path / name) for name in what)
        for name in what if not dry_run else ():
            target = workspace.trash / run.id / (_ENTIRE if name == "." else Path(name).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            others = (target.with_name(f"{target.name}~{number}") for number in range(2, 10_000))
            _rename(run.path / name, next(path for path in (target, *others) if not os.path.lexists(path)))
    return Moved(run.id, what, size, [])


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)  # of a link: the link itself
    except OSError as error:
        raise PrerequisiteError(
            f"{source} cannot be moved to {target}: {error.strerror}", "what was moved before stays so"
        ) from error


def _trashed(workspace: Workspace, word: str) -> RunDir:
    ids = sorted({item.run for item in in_trash(workspace)})
    named = [each for each in ids if word in (each, spec_name(each))]
    if named:
        return RunDir(workspace.runs / (word if word in named else named[-1]))
    run = workspace.lookup_run(word)
    if run is None or run.id not in ids:
        raise SpecError(
            f"the trash holds nothing of {word!r}{did_you_mean(word, ids)}",
            "orchestrator gc --trash --dry-run shows what it holds",
        )
    return run


def _refuse_links(workspace: Workspace, run: RunDir) -> None:
    in_trash(workspace, run.id)  # refuses a trash that is a link
    if run.path.is_symlink():
        raise PrerequisiteError(
            f"{run.path} is a link to {run.path.readlink()}: links are not followed", "remove it by hand"
        )
    if run.path.parent != workspace.runs or run.id.startswith("."):
        raise PrerequisiteError(
            f"{run.path} is no run folder of {workspace.root}", f"--workspace {run.path.parent.parent}"
        )


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
