"""Which runs are at work: what is moved away under a training, a server or an export is lost to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import PrerequisiteError
from orchestrator.processes.process_tree import FOLDERS_ENV, RUN_ENV, environments, name_of
from orchestrator.runs.owner import in_use, is_owned
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current


@dataclass(frozen=True)
class RunProcess:
    """A process that works on a run."""

    pid: int
    name: str
    folders: tuple[Path, ...]
    """The folder of the run that it is a part of, and those that it reads or writes; without links."""


def process_users() -> list[RunProcess]:
    """Every process of ours that trains, serves or exports some run. Another user's can't be seen."""
    found = []
    for process, environment in environments():
        folders = [*filter(None, [environment.get(RUN_ENV)]), *_listed(environment.get(FOLDERS_ENV, "[]"))]
        if folders:
            found.append(RunProcess(process.pid, name_of(process), tuple(Path(each).resolve() for each in folders)))
    return found


def refuse_if_in_use(run: RunDir, users: Iterable[RunProcess], *, damaged_too: bool = False) -> None:
    """PrerequisiteError where a run's owner lives, a process works on it, or, unless damaged_too, none can tell."""
    try:
        record = current(run)
    except PrerequisiteError as error:
        if not damaged_too:
            raise PrerequisiteError(error.message, f"to remove all of it: orchestrator rm --all {run.id}") from error
    else:
        if record.is_active() or is_owned(run):
            raise in_use(record)
    for user in users:
        if any(folder.is_relative_to(run.path.resolve()) for folder in user.folders):
            raise PrerequisiteError(f"run {run.id} is in use: process {user.pid} ({user.name})", "end that first")


def _listed(text: str) -> list[str]:
    """The folders of FOLDERS_ENV; none where somebody else wrote it."""
    try:
        return TypeAdapter(list[str]).validate_json(text)
    except ValidationError:
        return []
