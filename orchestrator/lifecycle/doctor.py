"""What is wrong with the installation, the machine and the workspace, each with the next step; and how to clean up."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from orchestrator.errors import OrchestratorError, PrerequisiteError
from orchestrator.processes.process_tree import RUN_ENV, environments, is_of_a_command, name_of
from orchestrator.runs import machine
from orchestrator.runs.owner import is_owned
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.runs.state import current
from orchestrator.text import size
from orchestrator.upstream.installation import Installation, find_installation


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at."""

    area: Literal["installation", "machine", "workspace"]
    severity: Literal["ok", "note", "warning", "error"]
    message: str
    remedy: str = ""


def diagnose(workspace: Workspace | None) -> Iterator[Diagnosis]:
    """Everything, in order; of the workspace where there is one."""
    installation = None
    try:
        installation = find_installation()
        yield from _installation(installation)
    except PrerequisiteError as error:
        yield Diagnosis("installation", "error", error.message, error.remedy)
    yield from _machine(installation)
    if workspace is None:
        yield Diagnosis("workspace", "note", "no workspace here", "orchestrator init makes one")
    else:
        yield from _workspace(workspace)


def orphans(workspace: Workspace) -> dict[str, list[psutil.Process]]:
    """Processes that nobody waits for, by the id of their run, also of a run whose folder is gone."""
    found: dict[str, list[psutil.Process]] = defaultdict(list)
    for process, environment in environments():
        run = RunDir(Path(environment.get(RUN_ENV, "/")))
        if run.path.parent == workspace.runs and _is_orphan(process, run):
            found[run.id].append(process)
    return dict(sorted(found.items()))


def _installation(found: Installation) -> Iterator[Diagnosis]:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    yield Diagnosis("installation", "ok", f"{found.cli}, Python {found.python_version}; {versions}")
    if found.package is None or "llamafactory" not in found.versions:
        missing = f"{found.python} has no package llamafactory"
        yield Diagnosis("installation", "error", missing, 'pip install "llamafactory>=0.9.5"')
    if found.note:
        yield Diagnosis("installation", "warning", found.note)


def _machine(found: Installation | None) -> Iterator[Diagnosis]:
    memory = psutil.virtual_memory()
    sizes = f"{size(memory.total)} of memory, {size(memory.available)} of it free"
    yield Diagnosis("machine", "ok", f"{machine.processor()}; {sizes}")
    names = machine.gpu_names()
    if not names:
        yield Diagnosis("machine", "note", "no NVIDIA GPU: nvidia-smi lists none, or there is none")
        return
    takes = machine.driver_cuda() or ""
    cuda = f"; its driver takes CUDA up to {takes}" if takes else ""
    yield Diagnosis("machine", "ok", f"GPUs: {'; '.join(names)}{cuda}")
    has_torch = found is not None and "torch" in found.versions
    built = found.cuda.get("torch's CUDA", "") if found is not None else ""
    if has_torch and (not built or (takes and int(built.partition(".")[0]) > int(takes.partition(".")[0]))):
        remedy = "install the torch that is built for the driver's CUDA: https://pytorch.org/get-started/locally"
        message = f"torch is built for CUDA {built or '(none)'}: it sees no GPU with this driver"
        yield Diagnosis("machine", "error", message, remedy)
    try:
        busy = machine.busy_devices()
    except PrerequisiteError as error:
        yield Diagnosis("machine", "error", error.message, error.remedy)
    except OSError as error:
        message = f"the folder of the devices' locks cannot be used: {error.filename}: {error.strerror}"
        yield Diagnosis("machine", "error", message, "name another folder, on a local disk, in ORCHESTRATOR_LOCKS")
    else:
        yield from (Diagnosis("machine", "note", f"{held_by} is in use") for held_by in busy)


def _workspace(workspace: Workspace) -> Iterator[Diagnosis]:
    runs = workspace.all_runs()
    yield Diagnosis("workspace", "ok", f"{workspace.root}, with {len(runs)} runs")
    for run in runs:
        try:
            record = current(run)
        except OrchestratorError as error:
            remedy = f"to remove all of it: orchestrator rm --all {run.id}"
            yield Diagnosis("workspace", "error", error.message, remedy)
            continue
        if record.status == "interrupted":
            message = f"{run.id} was interrupted"
            yield Diagnosis("workspace", "note", message, f"to continue: orchestrator resume {run.id}")
    for id, left in orphans(workspace).items():
        message = f"{id} has no owner, and left running: {names(left)}"
        yield Diagnosis("workspace", "warning", message, "orchestrator doctor --clean ends that")


def names(processes: list[psutil.Process]) -> str:
    return ", ".join(f"{process.pid} ({name_of(process)})" for process in processes)


def _is_orphan(process: psutil.Process, run: RunDir) -> bool:
    with suppress(PrerequisiteError):  # the folder is gone, or its record is damaged: by its commands alone
        if is_owned(run) or current(run).is_active():
            return False
    return not is_of_a_command(process)
