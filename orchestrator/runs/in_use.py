"""Which runs are at work: what is moved away under a training, or under a server, is lost to it.

Covered: a run's owner; trainers and servers of a run whose owner is gone; servers that `serve` and `benchmark` started.
Not covered: other users' processes, whose environment cannot be read; programs of others that read a run's files.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import PrerequisiteError
from orchestrator.processes.family import FOLDERS_ENV, RUN_ENV
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir


@dataclass(frozen=True)
class User:
    """A process that works on a run."""

    pid: int
    name: str
    folders: tuple[Path, ...]
    """The folder of the run that it is a part of, and those that it serves from or writes to; without links."""


def process_users() -> list[User]:
    """Every process of ours that trains or serves some run. Another user's can't be seen."""
    found = []
    for process in psutil.process_iter():
        try:
            environment, name = process.environ(), process.name()
        except (psutil.Error, OSError):
            continue
        folders = (*filter(None, [environment.get(RUN_ENV)]), *_listed(environment.get(FOLDERS_ENV, "[]")))
        if folders and process.pid != os.getpid():
            found.append(User(process.pid, name, tuple(Path(each).resolve() for each in folders)))
    return found


def refuse_if_in_use(run: RunDir, users: Iterable[User], *, damaged_too: bool = False) -> None:
    """PrerequisiteError where a run's owner lives, a process works on it, or, unless damaged_too, none can tell."""
    try:
        record = RunRecord.load(run)
    except PrerequisiteError as error:
        if not damaged_too:
            raise PrerequisiteError(
                error.message, f"to remove it as a whole: orchestrator rm --all {run.id}"
            ) from error
    else:
        if record.is_active():  # not one that load() found interrupted
            raise record.in_use()
    place = run.path.resolve()
    for user in users:
        if any(folder.is_relative_to(place) for folder in user.folders):
            raise PrerequisiteError(f"run {run.id} is in use: process {user.pid} ({user.name})", "end that first")


def _listed(text: str) -> list[str]:
    """The folders of FOLDERS_ENV; none where somebody else wrote it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
