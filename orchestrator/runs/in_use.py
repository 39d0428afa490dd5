"""Which runs are at work: what is moved away under a training, or under a server, is lost to it.

Covered: a run's owner; trainers and servers of a run whose owner is gone; servers that `serve` and `benchmark` started.
Not covered: other users' processes, whose environment cannot be read; programs of others that read a run's files.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from orchestrator.errors import PrerequisiteError
from orchestrator.processes.family import RUN_ENV
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir


@dataclass(frozen=True)
class User:
    """A process that works on a run."""

    pid: int
    name: str
    run: str
    """Its RUN_ENV: the run's folder."""
    model_name: str
    """Its API_MODEL_NAME, <run id>[@label]:hash."""


def process_users() -> list[User]:
    """Every process of ours that trains or serves some run. Another user's can't be seen."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            user = User(
                process.pid, process.name(), environment.get(RUN_ENV, ""), environment.get("API_MODEL_NAME", "")
            )
        except (psutil.Error, OSError):
            continue
        if (user.run or user.model_name) and process.pid != os.getpid():
            found.append(user)
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
    for user in users:
        serves = user.model_name.startswith((f"{run.id}@", f"{run.id}:"))
        if serves or user.run == str(run.path):
            raise PrerequisiteError(f"run {run.id} is in use: process {user.pid} ({user.name})", "end that first")
