"""What `rm` and `gc` take out of run folders: into the trash first, back from it, and out of it for good.

Covered: moves by rename, each atomic; nothing is taken from a run that is at work; links are moved as links, never
followed; what was moved can be put back.
    runs/.trash/20261124-101500.123456Z~<run id>~output                  when, of which run, what
    runs/.trash/20261124-101500.123456Z~<run id>~output+checkpoint-5
    runs/.trash/20261124-101500.123456Z~<run id>~run                     the whole run folder
The names say all that a restore needs, so a kill between two moves loses nothing; and as no folder is made for them, a
disk without a free block can be cleared.
Not covered: a trash on another file system; programs of others that read a run's files.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.runs.in_use import RunProcess, process_users, refuse_if_in_use
from orchestrator.runs.record import locked
from orchestrator.runs.rundir import RunDir, Workspace

_PARTS = ("output", "data", "export", "logs")
_SET_ASIDE = re.compile(r"output-[0-9]+")  # what resumed trainings had in their way
_NAME = re.compile(r"([0-9]{8}-[0-9]{6}\.[0-9]{6})Z~(.+)~([A-Za-z0-9+-]+)", re.DOTALL)
_TIME = "%Y%m%d-%H%M%S.%f"
_WHOLE = "run"
_DOOMED = ".doomed-"  # an item that is being deleted: no restore takes half of one


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


@dataclass(frozen=True)
class Item:
    """Something in the trash."""

    path: Path
    run: str
    what: str
    """Its path in the run folder; ".": the folder itself."""
    moved_at: datetime


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
    choose = (lambda run: ["."]) if whole else _parts
    return [_take(workspace, run, choose, dry_run, damaged_too=whole) for run in runs]


def take_checkpoints(
    workspace: Workspace, run: RunDir, users: Iterable[RunProcess], *, keep_last: int, dry_run: bool = False
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
    from orchestrator.runs.run_checkpoints import best_and_last

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

    Args:
        workspace: where.
        word: as for any command, or the id or the spec's name of a run that was removed as a whole.
        dry_run: only say what would be put back.

    Raises:
        SpecError: the trash holds nothing of it.
        PrerequisiteError: the run is at work.
    """
    run = _trashed(workspace, word)
    if os.path.lexists(run.path):
        _refuse_links(workspace, run)
        refuse_if_in_use(run, process_users(), damaged_too=True)
    what: list[str] = []
    left: list[str] = []
    size = 0
    place = run.path  # where what was put back would be found: with a dry run, maybe in the trash
    with _locked(run, dry_run or not run.path.is_dir()):
        for item in reversed(in_trash(workspace, run.id)):
            if (reason := _in_the_way(run, item, place, what)) is not None:
                left.append(reason)
                continue
            what.append(item.what)
            size += size_of(item.path)
            if dry_run and item.what == ".":
                place = item.path
            if not dry_run:
                with suppress(FileExistsError):
                    (run.path / item.what).parent.mkdir()  # output/ of a checkpoint
                _rename(item.path, run.path / item.what)
    return Moved(run.id, what, size, left)


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
    ids = list(dict.fromkeys(_trashed(workspace, word).id for word in words)) or _ids(workspace)
    deleted = []
    for name in ids:
        items = [item for item in in_trash(workspace, name) if before is None or item.moved_at < before]
        if items:
            size = sum(size_of(item.path) for item in items)
            deleted.append(Moved(name, list(dict.fromkeys(item.what for item in items)), size, []))
        for item in items if not dry_run else ():
            with suppress(FileNotFoundError):  # another `gc` was there first
                name_of_it = hashlib.sha256(os.fsencode(item.path.name)).hexdigest()[:32]
                item.path.rename(workspace.trash / f"{_DOOMED}{name_of_it}")
    for path in _listed(workspace.trash) if not dry_run else ():
        if path.name.startswith(_DOOMED):
            _delete(path)
    return deleted


def in_trash(workspace: Workspace, run_id: str | None = None) -> list[Item]:
    """What the trash holds, of a run or of all, the oldest first. Anything else that lies there is nobody's."""
    if workspace.trash.is_symlink():
        raise PrerequisiteError(f"{workspace.trash} is a link: the trash would be elsewhere", "remove the link")
    items = []
    for path in _listed(workspace.trash):
        match = _NAME.fullmatch(path.name)
        if match and run_id in (None, match[2]) and (moment := _time(match[1])) is not None:
            what = "." if match[3] == _WHOLE else match[3].replace("+", "/")
            items.append(Item(path, match[2], what, moment))
    return sorted(items, key=lambda item: (item.moved_at, item.what))


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


def _parts(run: RunDir) -> list[str]:
    """What of a run folder is large and can be made again."""
    return [path.name for path in _listed(run.path) if path.name in _PARTS or _SET_ASIDE.fullmatch(path.name)]


def _take(
    workspace: Workspace,
    run: RunDir,
    choose: Callable[[RunDir], list[str]],
    dry_run: bool,
    *,
    damaged_too: bool = False,
) -> Moved:
    with _locked(run, dry_run):  # a resume that comes now waits, and finds what is left
        if not dry_run:
            refuse_if_in_use(run, (), damaged_too=damaged_too)
        what = choose(run)
        size = sum(size_of(run.path / name) for name in what)
        if what and not dry_run:
            _make_trash(workspace)
            begin = f"{datetime.now(UTC):{_TIME}}Z~{run.id}"
            for name in what:
                word = _WHOLE if name == "." else name.replace("/", "+")
                _rename(run.path / name, workspace.trash / f"{begin}~{word}")
    return Moved(run.id, what, size, [])


@contextmanager
def _locked(run: RunDir, not_needed: bool) -> Iterator[None]:
    """One at a time with whatever changes the run's record: a resume, a second `rm`."""
    try:
        if not_needed:
            yield
        else:
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
        if error.errno in (errno.EXDEV, errno.EBUSY, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EEXIST):
            is_elsewhere = error.errno in (errno.EXDEV, errno.EBUSY)
            reason = "it is, or lies on, another file system" if is_elsewhere else error.strerror
            raise PrerequisiteError(
                f"{source} cannot be moved to {target}: {reason}",
                "what was moved before stays so; move or delete this by hand",
            ) from error
        error.filename = str(source)
        raise


def _make_trash(workspace: Workspace) -> None:
    """It is there since the first run was made, unless somebody took it away."""
    try:
        workspace.trash.mkdir(exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PrerequisiteError(
            f"{workspace.trash}: {error.strerror}: there is no room even for a folder",
            "delete a file by hand, such as a log",
        ) from error


def _in_the_way(run: RunDir, item: Item, place: Path, back: Sequence[str]) -> str | None:
    """Why an item can't be put back into the run folder, which is at `place`, after others; or None."""
    name = "the run folder" if item.what == "." else item.what
    if item.what in back or os.path.lexists(place / item.what):
        return f"{name}: {run.id} has one again"
    if item.what == ".":
        return None
    if not place.is_dir():
        return f"{name}: the run folder of {run.id} is gone"
    if (place / item.what).parent.is_symlink():
        return f"{name}: its folder is a link, and links are not followed"
    return None


def _time(stamp: str) -> datetime | None:
    try:
        return datetime.strptime(stamp, _TIME).replace(tzinfo=UTC)
    except ValueError:  # a 13th month
        return None


def _ids(workspace: Workspace) -> list[str]:
    """The runs that the trash holds something of."""
    return sorted({item.run for item in in_trash(workspace)})


def _trashed(workspace: Workspace, word: str) -> RunDir:
    """The run that a word means, of those that the trash holds something of."""
    ids = _ids(workspace)
    named = [each for each in ids if re.fullmatch(re.escape(word) + r"(-[0-9]{8}-[0-9]{6}(-[0-9]+)?)?", each)]
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
    if workspace.trash.is_symlink():
        raise PrerequisiteError(f"{workspace.trash} is a link: the trash would be elsewhere", "remove the link")
    if run.path.is_symlink():
        raise PrerequisiteError(
            f"{run.path} is a link to {run.path.readlink()}: links are not followed", "remove it by hand"
        )
    if run.path.parent != workspace.runs or run.id.startswith("."):
        raise PrerequisiteError(
            f"{run.path} is no run folder of {workspace.root}", f"--workspace {run.path.parent.parent}"
        )


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_gone_is_fine)  # never follows a link
    else:
        path.unlink(missing_ok=True)


def _gone_is_fine(function: object, path: object, found: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(found[1], FileNotFoundError):
        raise found[1]
