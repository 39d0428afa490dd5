"""What `rm` and `gc` take out of run folders: into the trash first, back from it, and out of it for good.

Covered: moves by rename, each atomic and without need of space; nothing is taken from a run that is at work; links are
moved as links, never followed; what was moved can be put back.
    runs/.trash/<run id>/<YYYYMMDD-HHMMSS>Z/    the parts under their own names, output/ or output/checkpoint-5/;
                                                or the whole run folder, with its record.json
The layout says all that a restore needs, so a kill between two renames loses nothing, and a full disk hinders none.
Not covered: a trash on another file system; programs of others that read a run's files.
"""

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.in_use import User, process_users, refuse_if_in_use
from orchestrator.record import locked, now
from orchestrator.rundir import RunDir, Workspace

_PARTS = ("output", "data", "export", "logs")
_SET_ASIDE = re.compile(r"output-[0-9]+")  # what resumed trainings had in their way
_STAMP = re.compile(r"([0-9]{8}-[0-9]{6})Z(-[0-9]+)?")
_DOOMED = ".doomed-"  # an entry that is being deleted: no restore takes half of one


@dataclass(frozen=True)
class Moved:
    """What was taken from a run, put back, or deleted; with a dry run, what would be."""

    run: str
    what: list[str]
    """Paths in the run folder; ["."]: all of it."""
    bytes: int
    """Sum of the files' sizes; links are not followed."""
    left: list[str]
    """What could not be moved, with the reason."""


def remove(workspace: Workspace, runs: Sequence[RunDir], *, whole: bool, dry_run: bool = False) -> list[Moved]:
    """Move runs to the trash: what is large (weights, data, logs), or the whole run folder.

    Without `whole` the spec, the record, the notes and the benchmarks stay: the run is listed, and can be run again.

    Raises:
        PrerequisiteError: a run is at work, or is not a folder of this workspace; then nothing was moved.
    """
    users = process_users()
    for run in runs:  # all are looked at before one is moved
        _refuse_links(workspace, run)
        refuse_if_in_use(run, users, damaged_too=whole)
    return [_take(run, (lambda each: ["."]) if whole else parts, dry_run, damaged_too=whole) for run in runs]


def take_checkpoints(
    workspace: Workspace, run: RunDir, users: Iterable[User], *, keep_last: int, dry_run: bool = False
) -> Moved:
    """Move a run's old checkpoints to the trash; the best and the last stay.

    Args:
        workspace: where.
        run: one that has ended, in whatever way.
        users: process_users().
        keep_last: how many of the newest stay, whole or not, beside the best and the newest whole one.
        dry_run: only say what would be moved.

    Raises:
        PrerequisiteError: the run is at work, its record is damaged, or it is not a folder of this workspace.
    """
    from orchestrator.checkpoints import best_and_last

    def old(run: RunDir) -> list[str]:
        found = [path.name for path in run.checkpoints()]
        kept = {*best_and_last(run), *found[-keep_last:]}
        return [f"{run.output.name}/{name}" for name in found if name not in kept]

    _refuse_links(workspace, run)
    refuse_if_in_use(run, users)
    if run.output.is_symlink():
        return Moved(run.id, [], 0, [f"output/ is a link to {run.output.readlink()}: links are not followed"])
    return _take(run, old, dry_run)


def parts(run: RunDir) -> list[str]:
    """What of a run folder is large and can be made again."""
    try:
        names = sorted(path.name for path in run.path.iterdir())
    except FileNotFoundError:
        return []
    return [name for name in names if name in _PARTS or _SET_ASIDE.fullmatch(name)]


def restore(workspace: Workspace, word: str, *, dry_run: bool = False) -> Moved:
    """Put back all that the trash holds of a run, the latest first. What the run has again by now stays in the trash.

    Args:
        workspace: where.
        word: as for any command, or the id or the spec's name of a run that was removed as a whole.
        dry_run: only say what would be put back.

    Raises:
        SpecError: the trash holds nothing of it.
    """
    _refuse_linked_trash(workspace)
    run = _trashed(workspace, word)
    if not os.path.lexists(run.path):
        return _put_back(run, dry_run)
    _refuse_links(workspace, run)
    refuse_if_in_use(run, process_users(), damaged_too=True)
    if dry_run:
        return _put_back(run, dry_run)
    with _locked(run):
        return _put_back(run, dry_run)


def empty(
    workspace: Workspace, *, before: datetime | None = None, words: Sequence[str] = (), dry_run: bool = False
) -> list[Moved]:
    """Delete what is in the trash, for good.

    Args:
        workspace: where.
        before: only what was moved there before this time. None: all.
        words: only these runs', by id or spec's name. None: all.
        dry_run: only say what would be deleted.

    Raises:
        SpecError: the trash holds nothing of such a run.
    """
    _refuse_linked_trash(workspace)
    runs = [_trashed(workspace, word) for word in words] or [RunDir(workspace.runs / name) for name in _ids(workspace)]
    deleted = []
    for run in runs:
        entries = [entry for entry in _entries(run) if before is None or _moved_at(entry) < before]
        if entries:
            what = sorted({name for entry in entries for name in _contents(entry)})
            deleted.append(Moved(run.id, what, sum(map(size_of, entries)), []))
        if not dry_run:
            for entry in entries:
                _doom(entry, workspace.trash)
            _clear_empty(run.trash())
    if not dry_run:
        for folder in [path for path in _folders(workspace.trash) if path.name.startswith(_DOOMED)]:
            shutil.rmtree(folder, onerror=_gone_is_fine)  # never follows a link
        _clear_empty(workspace.trash)
    return deleted


def size_of(path: Path) -> int:
    """Sum of the sizes of all files in a folder, or of a file; one with several names counts once, a link nothing."""
    seen: set[tuple[int, int]] = set()
    total = 0
    waiting = [path]
    while waiting:
        here = waiting.pop()
        try:
            found = here.lstat()
            if stat.S_ISDIR(found.st_mode):
                waiting += [Path(entry.path) for entry in os.scandir(here)]
            elif stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_size
        except FileNotFoundError:
            continue
    return total


def _take(run: RunDir, choose: Callable[[RunDir], list[str]], dry_run: bool, *, damaged_too: bool = False) -> Moved:
    if dry_run:
        what = choose(run)
        return Moved(run.id, what, sum(size_of(run.path / name) for name in what), [])
    with _locked(run):  # a resume that comes now waits, and finds what is left
        refuse_if_in_use(run, (), damaged_too=damaged_too)
        what = choose(run)
        size = sum(size_of(run.path / name) for name in what)
        if what:
            entry = _new_entry(run, sorted({str(Path(name).parent) for name in what}))
            for name in what:
                _rename(run.path / name, entry / name)
    return Moved(run.id, what, size, [])


@contextmanager
def _locked(run: RunDir) -> Iterator[None]:
    try:
        with locked(run, "record"):
            yield
    except FileNotFoundError as error:
        raise PrerequisiteError(
            f"{error.filename} is gone: another command moves files of {run.id} too", "try again"
        ) from error


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)  # of a link: the link itself
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EBUSY):
            raise PrerequisiteError(
                f"{source} cannot be moved to {target}: it is, or lies on, another file system",
                "what was moved before stays so; move or delete this by hand",
            ) from error
        error.filename = str(source)
        raise


def _new_entry(run: RunDir, folders: Sequence[str]) -> Path:
    """A new folder in the trash for what is moved now, with folders in it."""
    place = run.trash()
    for each in (place.parent, place):
        if each.is_symlink():
            raise PrerequisiteError(f"{each} is a link: the trash would be elsewhere", "remove the link")
    try:
        path = _new_stamp(place)
        for name in folders:
            (path / name).mkdir(exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PrerequisiteError(
            f"{place}: {error.strerror}: there is no room even for a folder",
            "orchestrator gc --trash deletes what is in the trash; or delete a file by hand, such as a log",
        ) from error
    return path


def _new_stamp(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    stamp = f"{now():%Y%m%d-%H%M%S}Z"
    for number in range(1, 10_000):
        path = place / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise PrerequisiteError(f"{place} has 10,000 entries of one second", "orchestrator gc --trash empties it")


def _put_back(run: RunDir, dry_run: bool) -> Moved:
    what: list[str] = []
    left: list[str] = []
    size = 0
    for entry in reversed(_entries(run)):
        if (entry / "record.json").is_file() and not os.path.lexists(run.path) and "." not in what:
            moves, taken = [(entry, run.path)], list[str]()
        else:
            moves, taken = _moves(entry, run.path)
        left += [f"{name}: {run.id} has one again" for name in taken]
        what += [str(target.relative_to(run.path)) for _, target in moves]
        for source, target in moves:
            size += size_of(source)
            if not dry_run:
                _rename(source, target)
        if not dry_run:
            _clear_empty(entry)
    if not dry_run:
        _clear_empty(run.trash())
    return Moved(run.id, what, size, left)


def _ids(workspace: Workspace) -> list[str]:
    """The runs that the trash holds something of."""
    found = [path.name for path in _folders(workspace.trash) if not path.name.startswith(_DOOMED)]
    return sorted(name for name in found if _entries(RunDir(workspace.runs / name)))


def _trashed(workspace: Workspace, word: str) -> RunDir:
    """The run that a word means, of those that the trash holds something of."""
    ids = _ids(workspace)
    named = [each for each in ids if re.fullmatch(re.escape(word) + r"(-[0-9]{8}-[0-9]{6}(-[0-9]+)?)?", each)]
    if not named:
        run = workspace.lookup_run(word)
        if run is None or run.id not in ids:
            raise SpecError(
                f"the trash holds nothing of {word!r}{did_you_mean(word, ids)}",
                "orchestrator gc --trash --dry-run shows what it holds",
            )
        return run
    return RunDir(workspace.runs / (word if word in named else named[-1]))


def _refuse_links(workspace: Workspace, run: RunDir) -> None:
    _refuse_linked_trash(workspace)
    if run.path.is_symlink():
        raise PrerequisiteError(
            f"{run.path} is a link to {run.path.readlink()}: links are not followed", "remove it by hand"
        )
    if run.path.parent != workspace.runs:
        raise PrerequisiteError(
            f"{run.path} is no run folder of {workspace.root}", f"--workspace {run.path.parent.parent}"
        )


def _refuse_linked_trash(workspace: Workspace) -> None:
    if workspace.trash.is_symlink():
        raise PrerequisiteError(f"{workspace.trash} is a link: the trash would be elsewhere", "remove the link")


def _folders(parent: Path) -> list[Path]:
    """Folders within a folder that may not be there; links are none."""
    try:
        with os.scandir(parent) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entries(run: RunDir) -> list[Path]:
    """What was moved to the trash, the oldest first."""
    if run.trash().is_symlink():
        return []
    found = [path for path in _folders(run.trash()) if _STAMP.fullmatch(path.name)]
    return sorted(found, key=lambda path: (path.name[:16], int(path.name[17:] or 1)))


def _moved_at(entry: Path) -> datetime:
    return datetime.strptime(entry.name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)


def _contents(entry: Path) -> list[str]:
    """The paths in the run folder that an entry holds."""
    if (entry / "record.json").is_file():
        return ["."]
    names = []
    for path in _listed(entry):
        names += [f"output/{each.name}" for each in _listed(path)] if _is_of_gc(path) else [path.name]
    return names


def _moves(source: Path, target: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """The renames that put an entry back, and what is there already."""
    moves: list[tuple[Path, Path]] = []
    taken: list[str] = []
    for path in _listed(source):
        goal = target / path.name
        if not os.path.lexists(goal):
            moves.append((path, goal))
        elif _is_of_gc(path) and goal.is_dir() and not goal.is_symlink():
            more, more_taken = _moves(path, goal)
            moves += more
            taken += [f"{path.name}/{name}" for name in more_taken]
        else:
            taken.append(path.name)
    return moves, taken


def _is_of_gc(path: Path) -> bool:
    """Whether this is checkpoints of an output folder, not all of one: two trainings' outputs are never mixed."""
    if path.name != "output" or path.is_symlink() or not path.is_dir():
        return False
    return all(each.name.startswith("checkpoint-") for each in _listed(path))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:  # another `gc` was there first
        return []


def _clear_empty(folder: Path) -> None:
    """Remove a folder where nothing is left in it but empty folders."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in _folders(folder):
        _clear_empty(path)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _doom(entry: Path, trash: Path) -> None:
    try:
        entry.rename(trash / f"{_DOOMED}{entry.parent.name}-{entry.name}")
    except FileNotFoundError:  # another `gc` was there first
        return


def _gone_is_fine(function: object, path: object, found: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(found[1], FileNotFoundError):
        raise found[1]
