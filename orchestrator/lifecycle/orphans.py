"""What killed processes have left in a workspace: processes that are still running, files that were being written."""

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
from orchestrator.processes.process_tree import RUN_ENV, alive, command_line, environments, name_of, terminate_run
from orchestrator.runs.owner import is_owned
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.runs.state import current

QUIET_S = 60
"""How long a temporary file must have been left alone: one that is written now is somebody's."""
_TEMPORARY = re.compile(r"\.[A-Za-z0-9_.+-]+\.(json|jsonl|yaml|txt|diff|html|sh|j2)\.[a-z0-9_]{8}")  # atomic_write's


@dataclass(frozen=True)
class Orphans:
    """Processes of a run that nobody waits for."""

    run: RunDir
    processes: list[psutil.Process]

    def names(self) -> str:
        return ", ".join(f"{process.pid} ({name_of(process)})" for process in self.processes)

    def end(self, grace_s: float) -> bool:
        """End them; whether all are gone. What belongs to a run that is owned again by now is left alone."""
        terminate_run(lambda: [each for each in self.processes if alive(each) and _is_orphan(each, self.run)], grace_s)
        return not any(map(alive, self.processes))


def orphans(workspace: Workspace) -> list[Orphans]:
    """By run, also of a run whose folder is gone."""
    found: dict[Path, list[psutil.Process]] = defaultdict(list)
    for process, environment in environments():
        folder = Path(environment.get(RUN_ENV, "/"))
        if folder.parent == workspace.runs and _is_orphan(process, RunDir(folder)):
            found[folder].append(process)
    return [Orphans(RunDir(folder), processes) for folder, processes in sorted(found.items())]


def unfinished_files(workspace: Workspace, cache: Path) -> list[Path]:
    """What writers that were killed had not finished, and the folders in which they tried out the file system."""
    places = [workspace.runs, workspace.root, cache / "hashes"]
    for run in workspace.all_runs():
        places += [run.path, run.data, *(path for path in _listed(run.benchmarks) if not path.is_symlink())]
    found = [path for place in places for path in _listed(place) if _TEMPORARY.fullmatch(path.name)]
    found += [path for path in _listed(workspace.runs) if path.name.startswith(PROBE)]
    return [path for path in found if _is_old(path)]


def remove(path: Path) -> None:
    """Remove what unfinished_files found; it may be gone by now."""
    with suppress(FileNotFoundError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_orphan(process: psutil.Process, run: RunDir) -> bool:
    """Whether the run has no owner, and no living command of ours started the process."""
    with suppress(PrerequisiteError):  # the folder is gone, or its record is damaged: by its commands alone
        if is_owned(run) or current(run).is_active():
            return False
    try:
        return not any(map(_is_command, [process, *process.parents()]))
    except psutil.Error:
        return True


def _is_command(process: psutil.Process) -> bool:
    """A command of ours: `python -P -m orchestrator ...`, or the script `orchestrator`."""
    argv = command_line(process)
    is_module = argv[1:3] == ["-m", "orchestrator"] or argv[2:4] == ["-m", "orchestrator"]
    return is_module or any(Path(word).name == "orchestrator" for word in argv[:2])


def _is_old(path: Path) -> bool:
    stat = path.lstat()
    return not path.is_symlink() and stat.st_uid == os.getuid() and time.time() - stat.st_mtime > QUIET_S


def _listed(path: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(path.iterdir())
