"""What `rm` and `gc` take out of run folders: renamed into runs/.trash and back, or deleted for good.

runs/.trash/<run id>/ holds parts of the run folder by their names (output, output-N, data, export, logs), checkpoints
(checkpoint-5), and the entire folder as `run`. Links are moved as links, never followed.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import lock
from orchestrator.processes.process_tree import run_processes
from orchestrator.runs.owner import in_use, is_owned
from orchestrator.runs.record import RunRecord
from orchestrator.runs.run_checkpoints import best_and_last
from orchestrator.runs.rundir import RunDir, Workspace, spec_name
from orchestrator.runs.state import current, pids

_PART = re.compile(r"output(-[0-9]+)?|data|export|logs")
_ITEM = re.compile(rf"run|checkpoint-[0-9]+|{_PART.pattern}")


@dataclass(frozen=True)
class Moved:
    """What was taken from a run, put back, or deleted; with a dry run, what would be."""

    run: str
    what: list[str]  # paths in the run folder; ["."]: the folder itself
    bytes: int  # sum of the files' sizes; links are not followed


def remove(workspace: Workspace, runs: Sequence[RunDir], *, with_record: bool, dry_run: bool = False) -> list[Moved]:
    """Move what is large of runs (weights, data, logs), or with_record all; PrerequisiteError where one is in use."""
    for run in runs:  # all are checked before one is moved
        _refuse_if_in_use(workspace, run, damaged_too=with_record)
    return [_take(workspace, run, ["."] if with_record else _parts(run), dry_run) for run in runs]


def take_checkpoints(workspace: Workspace, run: RunDir, *, keep_last: int, dry_run: bool = False) -> Moved:
    """Move a run's old checkpoints to the trash; best_and_last and the keep_last newest stay. Raises as `remove`."""
    _refuse_if_in_use(workspace, run)
    _refuse_linked_output(run.output)
    found = [path.name for path in run.checkpoints()]
    kept = {*best_and_last(run), *found[-keep_last:]} if found else set()
    return _take(workspace, run, [f"output/{name}" for name in found if name not in kept], dry_run)


def restore(workspace: Workspace, word: str, *, dry_run: bool = False) -> Moved:
    """Put back what the trash holds of a run; SpecError: nothing; PrerequisiteError: it is in use, or has it again."""
    run = _trashed(workspace, word)
    if os.path.lexists(run.path):
        _refuse_if_in_use(workspace, run, damaged_too=True)
    renames = {_place(path): path for path in sorted(in_trash(workspace, run.id), key=_place)}  # output, then its parts
    folder = renames.get(".", run.path)  # where the rest of it is now
    for what, path in renames.items():
        if os.path.lexists(target := run.path if what == "." else folder / what):
            raise PrerequisiteError(f"{path} cannot be put back: {target} is there", "move one of the two away")
    if not folder.is_dir():
        raise PrerequisiteError(f"{run.path} is gone: nothing can be put back into it")
    if any(what.startswith("output/") for what in renames):
        _refuse_linked_output(renames.get("output", folder / "output"))
    moved = Moved(run.id, [*renames], sum(map(size_of, renames.values())))
    for what, path in renames.items() if not dry_run else ():
        (run.path / what).parent.mkdir(exist_ok=True)  # output/ of a checkpoint
        path.rename(run.path / what)
    with suppress(OSError):  # not empty
        (workspace.trash / run.id).rmdir()
    return moved


def empty(workspace: Workspace, *, words: Sequence[str] = (), dry_run: bool = False) -> list[Moved]:
    """Delete the trash for good: of all runs or of those that `words` name."""
    ids = [_trashed(workspace, word).id for word in words] or sorted({path.parent.name for path in in_trash(workspace)})
    deleted = []
    for name in dict.fromkeys(ids):
        folder, items = workspace.trash / name, in_trash(workspace, name)
        deleted.append(Moved(name, sorted(map(_place, items)), sum(map(size_of, items))))
        for path in items if not dry_run else ():
            path.unlink() if path.is_symlink() else shutil.rmtree(path)  # which never follows a link
        with suppress(OSError):  # not empty
            folder.rmdir()
    return deleted


def in_trash(workspace: Workspace, run_id: str | None = None) -> list[Path]:
    """What the trash holds, of a run or of all. Other files are left alone."""
    if workspace.trash.is_symlink():
        raise PrerequisiteError(f"{workspace.trash} is a link: the trash would be elsewhere", "remove the link")
    found = [path for path in workspace.trash.glob("*/*") if not path.parent.is_symlink()]
    return sorted(path for path in found if _ITEM.fullmatch(path.name) and run_id in (None, path.parent.name))


def size_of(path: Path) -> int:
    """Sum of the sizes of all files in a folder, in bytes; one with several names counts once, a link nothing."""
    inside = path.rglob("*") if not path.is_symlink() else ()
    files = [each.lstat() for each in inside if each.is_file() and not each.is_symlink()]
    return sum({(each.st_dev, each.st_ino): each.st_size for each in files}.values())


def _parts(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.path.iterdir() if _PART.fullmatch(path.name))


def _place(item: Path) -> str:
    """Where something in the trash belongs in the run folder."""
    return "." if item.name == "run" else f"output/{item.name}" if item.name.startswith("checkpoint-") else item.name


def _take(workspace: Workspace, run: RunDir, what: Sequence[str], dry_run: bool) -> Moved:
    in_trash(workspace)
    renames = {name: workspace.trash / run.id / ("run" if name == "." else Path(name).name) for name in what}
    if taken := next(filter(os.path.lexists, renames.values()), None):
        remedy = f"orchestrator rm --restore {run.id}, or orchestrator gc --trash {run.id}"
        raise PrerequisiteError(f"{taken} is in the trash already", remedy)
    moved = Moved(run.id, [*renames], sum(size_of(run.path / name) for name in renames))
    if renames and not dry_run:
        with lock(run.record_lock):  # a resume that comes now waits, and finds what is left
            if is_owned(run):  # one that came before the lock was ours
                raise in_use(RunRecord.load(run))
            (workspace.trash / run.id).mkdir(parents=True, exist_ok=True)
            for name, target in renames.items():
                (run.path / name).rename(target)  # of a link: the link itself
    return moved


def _trashed(workspace: Workspace, word: str) -> RunDir:
    """The run of an id, or the newest of a spec's name, of which the trash holds something."""
    ids = sorted({path.parent.name for path in in_trash(workspace)})
    named = [each for each in ids if word in (each, spec_name(each))]
    if not named:
        remedy = "orchestrator gc --trash --dry-run shows what it holds"
        raise SpecError(f"the trash holds nothing of {word!r}{did_you_mean(word, ids)}", remedy)
    return RunDir(workspace.runs / (word if word in named else named[-1]))


def _refuse_linked_output(output: Path) -> None:
    if output.is_symlink():
        raise PrerequisiteError(f"{output} is a link: its checkpoints are elsewhere", "move them by hand")


def _refuse_if_in_use(workspace: Workspace, run: RunDir, *, damaged_too: bool = False) -> None:
    if run.path.is_symlink() or run.path.parent != workspace.runs:
        raise PrerequisiteError(f"{run.path} is no run folder of {workspace.root}, or a link", "remove it by hand")
    try:
        record = current(run)
    except PrerequisiteError as error:
        if not damaged_too:
            raise PrerequisiteError(error.message, f"to remove all of it: orchestrator rm --all {run.id}") from error
    else:
        if record.is_active() or is_owned(run):
            raise in_use(record)
    if left := run_processes(run.path):
        raise PrerequisiteError(f"run {run.id} is in use: process {pids(left)}", f"orchestrator stop {run.id}")
