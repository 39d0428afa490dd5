"""What is wrong with the installation, the machine and the workspace, each with the next step. Changes nothing."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from orchestrator.errors import OrchestratorError, PrerequisiteError, StageError, did_you_mean
from orchestrator.files import cache_folder, expanded, storage_problem
from orchestrator.lifecycle.orphans import orphans, unfinished_files
from orchestrator.models.model_files import hub_cache
from orchestrator.processes.process import run_short
from orchestrator.runs import machine
from orchestrator.runs.rundir import Workspace
from orchestrator.runs.state import current
from orchestrator.text import size
from orchestrator.upstream.installation import Installation, find_installation

ROOM_BYTES = 20 << 30
"""Of free space on a disk; with less, a checkpoint of a 7B model does not fit."""
VARIABLES = {
    "ORCHESTRATOR_LLAMAFACTORY": "the environment that trains and serves",
    "ORCHESTRATOR_WORKSPACE": "the folder with runs/ and dataset_info/",
    "ORCHESTRATOR_ARCHIVES": "a folder of archives",
    "ORCHESTRATOR_CACHE": "what can be made or fetched again",
    "ORCHESTRATOR_LOCKS": "the locks of devices",
    "ORCHESTRATOR_API_KEY": "the key of a server",
    "ORCHESTRATOR_VLLM": "the environment of vLLM",
    "ORCHESTRATOR_COMET": "the environment of COMET",
}
_PREFIX = "ORCHESTRATOR_"
_TORCH = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
_TORCH_S = 120.0
Severity = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at."""

    area: Literal["installation", "machine", "settings", "workspace"]
    severity: Severity
    message: str
    remedy: str = ""


def diagnose(workspace: Workspace | None) -> Iterator[Diagnosis]:
    """Everything, in order; of the workspace where there is one."""
    installation: Installation | None = None
    try:
        installation = find_installation()
    except PrerequisiteError as error:
        yield Diagnosis("installation", "error", error.message, error.remedy)
    if installation is not None:
        yield from _installation(installation)
    yield from _machine(installation)
    yield from _settings(os.environ)
    if workspace is None:
        yield Diagnosis("workspace", "note", "no workspace here", "orchestrator init makes one")
    else:
        yield from _workspace(workspace)


def _installation(found: Installation) -> Iterator[Diagnosis]:
    yield Diagnosis("installation", "ok", f"{found.cli}, Python {found.python_version}")
    if found.package is None or "llamafactory" not in found.versions:
        missing = f"{found.python} has no package llamafactory"
        yield Diagnosis("installation", "error", missing, 'pip install "llamafactory>=0.9.5"')
    if found.versions:
        versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
        yield Diagnosis("installation", "ok", versions)
    if found.note:
        yield Diagnosis("installation", "warning", found.note)


def _machine(found: Installation | None) -> Iterator[Diagnosis]:
    memory = psutil.virtual_memory()
    sizes = f"{size(memory.total)} of memory, {size(memory.available)} of it free"
    yield Diagnosis("machine", "ok", f"{machine.processor()}; {sizes}")
    names = machine.gpu_names()
    if names:
        cuda = f"; its driver takes CUDA up to {version}" if (version := machine.driver_cuda()) else ""
        yield Diagnosis("machine", "ok", f"GPUs: {'; '.join(names)}{cuda}")
        if found is not None and "torch" in found.versions:
            yield _torch(found, len(names))
    else:
        yield Diagnosis("machine", "note", "no NVIDIA GPU: nvidia-smi lists none, or there is none")
    try:
        folder = machine.lock_folder()
    except PrerequisiteError as error:
        yield Diagnosis("machine", "error", error.message, error.remedy)
        return
    remedy = "ORCHESTRATOR_LOCKS names a folder on a local disk"
    yield Diagnosis("machine", *_storage("locks of devices", str(folder), storage_problem(folder), remedy))
    for held_by in machine.busy_devices():
        yield Diagnosis("machine", "note", f"{held_by} is in use")


def _torch(found: Installation, count: int) -> Diagnosis:
    """Whether torch sees the GPUs that the driver lists. Its build may be for another CUDA, or for none."""
    argv = [str(found.python), "-c", _TORCH]
    try:  # in its own folder: Python takes a torch.py of the current one first
        seen = int(run_short(argv, timeout_s=_TORCH_S, cwd=found.python.parent).strip().rpartition("\n")[2])
    except (StageError, PrerequisiteError, ValueError) as error:
        return Diagnosis("machine", "error", f"torch cannot be asked for GPUs: {error}", "reinstall torch")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    built = found.cuda.get("torch's CUDA", "no CUDA")
    message = f"torch, built for {built}, sees {seen} of {count} GPUs"
    if seen == count or (seen and hidden is not None):
        return Diagnosis("machine", "ok", message)
    severity: Severity = "error" if seen == 0 and hidden is None else "warning"
    shown = f"; CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else ""
    remedy = "install the torch that is built for the driver's CUDA: https://pytorch.org/get-started/locally"
    return Diagnosis("machine", severity, f"{message}{shown}", remedy)


def _settings(environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    for name in sorted(name for name in environment if name.startswith(_PREFIX)):
        if name in ("ORCHESTRATOR_RUN", "ORCHESTRATOR_CHILD"):  # a command within a run
            continue
        if name not in VARIABLES:
            hint = did_you_mean(name.removeprefix(_PREFIX), [each.removeprefix(_PREFIX) for each in VARIABLES])
            yield Diagnosis("settings", "warning" if hint else "note", f"nothing reads {name}{hint}", f"unset {name}")
            continue
        value = "is set" if name.endswith("KEY") else f"= {environment[name]}"
        path = expanded(environment[name])
        is_made = name.endswith(("KEY", "CACHE", "LOCKS", "LLAMAFACTORY"))
        missing = "" if is_made or path.exists() else f"{path} does not exist: correct it, or unset {name}"
        yield Diagnosis("settings", "error" if missing else "ok", f"{name} {value} ({VARIABLES[name]})", missing)


def _workspace(workspace: Workspace) -> Iterator[Diagnosis]:
    remedy = "move it to a local disk, or to NFS that is mounted without nolock"
    yield Diagnosis("workspace", *_storage("runs", str(workspace.runs), storage_problem(workspace.runs), remedy))
    for what, folder in (("runs", workspace.runs), ("the cache", cache_folder()), ("models of the hub", hub_cache())):
        yield _room(what, folder)
    yield from _runs(workspace)
    for left in orphans(workspace):
        message = f"{left.run.id} has no owner, and left running: {left.names()}"
        yield Diagnosis("workspace", "warning", message, "orchestrator doctor --clean ends that")
    if files := unfinished_files(workspace, cache_folder()):
        shown = ", ".join(str(path) for path in files[:3]) + (", ..." if files[3:] else "")
        message = f"files of writers that were killed, {len(files)} of them: {shown}"
        yield Diagnosis("workspace", "warning", message, "orchestrator doctor --clean removes them")


def _runs(workspace: Workspace) -> Iterator[Diagnosis]:
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
            remedy = f"to continue: orchestrator resume {run.id}"
            yield Diagnosis("workspace", "note", f"{run.id} was interrupted", remedy)
        elif record.is_active() and not record.is_here():
            message = f"{run.id} is {record.status} on {record.host}, which cannot be seen from here"
            remedy = f"where that is gone for good: orchestrator stop {run.id} --host-is-gone"
            yield Diagnosis("workspace", "note", message, remedy)


def _room(what: str, folder: Path) -> Diagnosis:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    message = f"room for {what}, {folder}: {size(free)}"
    if free >= ROOM_BYTES:
        return Diagnosis("workspace", "ok", message)
    remedy = "orchestrator gc --keep-last 1 moves old checkpoints to the trash; orchestrator gc --trash empties that"
    return Diagnosis("workspace", "warning", message, remedy)


def _storage(what: str, place: str, problem: str | None, remedy: str) -> tuple[Severity, str, str]:
    if problem is None:
        return "ok", f"{what}: locks and renames work in {place}", ""
    return "error", f"{what} cannot be kept in {place}: {problem}", remedy
