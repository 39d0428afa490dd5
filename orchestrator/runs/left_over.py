"""What runs have left behind whose owner was killed: processes that go on, files that were being written.

Covered: processes of runs of one workspace, by their environment, that no living command of ours started; temporary
files of atomic_write in run folders and in the cache; trials of the file system.
Not covered: other workspaces, other users' processes, other hosts; what a training itself leaves in output/.
Removes and ends nothing unless it is told to, and then only what it had found.
"""

import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import PrerequisiteError
from orchestrator.files import PROBE
from orchestrator.processes.family import RUN_ENV, alive, end_run
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.workspace import Workspace

QUIET_S = 60
"""How long a temporary file must have been left alone: one that is written now is somebody's."""
_TEMPORARY = re.compile(r"\.[A-Za-z0-9_.+-]+\.(json|jsonl|yaml|txt|diff|html|sh|j2)\.[a-z0-9_]{8}")  # atomic_write's
_FETCHED = re.compile(r"\..+\.[0-9a-f]{32}")  # data/archives.py's
_FETCH_S = 24 * 3600


@dataclass(frozen=True)
class LeftOver:
    """Processes of a run that nobody waits for."""

    run: RunDir
    processes: list[psutil.Process]

    def names(self) -> str:
        return ", ".join(f"{process.pid} ({_name(process)})" for process in self.processes)

    def end(self, grace_s: float) -> bool:
        """End them; whether all are gone. What belongs to a run that is owned again by now is left alone."""
        end_run(lambda: [each for each in self.processes if alive(each) and _is_left_over(each, self.run)], grace_s)
        return not any(alive(each) for each in self.processes)


def left_over_processes(workspace: Workspace) -> list[LeftOver]:
    """By run, also of a run whose folder is gone."""
    found: dict[Path, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        folder = _run_of(process)
        if folder is not None and folder.parent == workspace.runs and _is_left_over(process, RunDir(folder)):
            found[folder].append(process)
    return [LeftOver(RunDir(folder), processes) for folder, processes in sorted(found.items())]


def temporary_files(workspace: Workspace, cache: Path) -> list[Path]:
    """What writers that were killed had not finished; a folder, where one tried out the file system."""
    now = time.time()
    places = [workspace.runs, workspace.root, cache / "hashes"]
    for run in workspace.all_runs():
        places += [run.path, run.data, *_folders(run.benchmarks)]
    found = [path for place in places for path in _listed(place) if _TEMPORARY.fullmatch(path.name)]
    found += [path for path in _listed(workspace.runs) if path.name.startswith(PROBE)]
    quiet = [path for path in found if _is_ours(path) and now - path.lstat().st_mtime > QUIET_S]
    fetched = [path for place in _folders(cache) for path in _listed(place) if _FETCHED.fullmatch(path.name)]
    return quiet + [path for path in fetched if _is_ours(path) and now - path.lstat().st_mtime > _FETCH_S]


def remove(path: Path) -> None:
    """Remove what temporary_files found; it may be gone by now."""
    with suppress(FileNotFoundError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_left_over(process: psutil.Process, run: RunDir) -> bool:
    """Whether the run has no owner that lives, and no living command of ours started the process."""
    try:
        record = RunRecord.load(run)
    except PrerequisiteError:  # the folder is gone, or its record is damaged: by its commands alone
        record = None
    if record is not None and record.is_active():  # load() made interrupted of one whose owner is gone
        return False
    return not any(map(_is_command, _with_ancestors(process)))


def _run_of(process: psutil.Process) -> Path | None:
    try:
        folder = process.environ().get(RUN_ENV)
        return Path(folder) if folder and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, OSError):  # gone, or another user's
        return None


def _with_ancestors(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.parents()]
    except psutil.Error:
        return [process]


def _is_command(process: psutil.Process) -> bool:
    """A command of ours: `python -m orchestrator ...`, or the script `orchestrator`."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return words[1:3] == ["-m", "orchestrator"] or any(Path(word).name == "orchestrator" for word in words[:2])


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "gone"


def _folders(path: Path) -> list[Path]:
    return [each for each in _listed(path) if each.is_dir() and not each.is_symlink()]


def _listed(path: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(path.iterdir())


def _is_ours(path: Path) -> bool:
    return not path.is_symlink() and path.lstat().st_uid == os.getuid()
