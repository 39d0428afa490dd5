"""Where a training is to run: devices, torchrun, several machines, Slurm, as far as this machine can tell."""

import os
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from orchestrator.errors import Finding, OrchestratorError, did_you_mean, from_error
from orchestrator.runs import slurm
from orchestrator.runs.machine import this_machine
from orchestrator.specs.compute_spec import SlurmSpec, parse_slurm_time
from orchestrator.specs.render import train_environment
from orchestrator.specs.spec import RunSpec

# GPUs and other accelerators as Linux shows them: NVIDIA, NVIDIA under WSL, AMD, Ascend.
_ACCELERATORS = ("nvidia[0-9]*", "dxg", "kfd", "davinci[0-9]*")


def is_enabled(environment: Mapping[str, str], name: str) -> bool:
    """As LLaMA-Factory's is_env_enabled: 0, no, on and yes are all off."""
    return environment.get(name, "").lower() in ("true", "y", "1")


def has_accelerator(devices: str | None) -> bool:
    """Whether a program with these CUDA_VISIBLE_DEVICES (None: ours) sees a GPU on this machine."""
    visible = devices if devices is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    return sys.platform != "linux" or any(any(Path("/dev").glob(pattern)) for pattern in _ACCELERATORS)


def uses_torchrun(spec: RunSpec) -> bool | None:
    """Whether LLaMA-Factory's launcher starts the training by torchrun; None where only a node of Slurm could tell."""
    environment = {**os.environ, **train_environment(spec)}
    if is_enabled(environment, "FORCE_TORCHRUN"):
        return True
    if spec.compute.slurm is not None and not slurm.own_job():
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")]) > 1
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) > 1


def check_compute(spec: RunSpec) -> list[Finding]:
    """What is wrong with where a training is to run."""
    if spec.compute.slurm is not None and not slurm.own_job():
        return _slurm(spec.compute.slurm)
    if spec.train is None:
        return []
    return [*_devices(spec, spec.train.arguments()), *_inherited_cluster(spec), *_several_machines(spec)]


def _devices(spec: RunSpec, arguments: Mapping[str, object]) -> list[Finding]:
    """LLaMA-Factory ends at once with these where it sees no GPU; with two of them on the CPU too."""
    on_cpu = arguments.get("use_cpu") is True
    names = ("pure_bf16", "tf32") if on_cpu else ("pure_bf16", "tf32", "bf16", "fp16")
    given = next((name for name in names if arguments.get(name) is True), None)
    if has_accelerator(spec.compute.devices) or (on_cpu and given is None):
        return []
    if given is None:
        return [Finding("note", "missing", "train", "no GPU is seen here: this trains on the CPU")]
    what = f"no GPU is seen here: LLaMA-Factory ends at once with {given}"
    if given in ("pure_bf16", "tf32"):
        return [Finding("error", "missing", f"train.{given}", what, f"leave {given} out")]
    return [Finding("warning", "missing", f"train.{given}", f"{what}, unless you add train.use_cpu: true")]


def _inherited_cluster(spec: RunSpec) -> list[Finding]:
    """NNODES of the environment, which makes one of several machines of this one where torchrun is started."""
    nodes = os.environ.get("NNODES", "1")
    if spec.compute.slurm is not None or spec.compute.nnodes is not None or nodes == "1":
        return []
    is_sure = is_enabled({**os.environ, **train_environment(spec)}, "FORCE_TORCHRUN")
    severity: Literal["error", "warning"] = "error" if is_sure else "warning"
    what = f"not given, and NNODES={nodes} in the environment makes LLaMA-Factory wait for other machines"
    return [Finding(severity, "spec", "compute.nnodes", what, f"nnodes: {nodes}; or unset NNODES to train here alone")]


def _several_machines(spec: RunSpec) -> list[Finding]:
    compute, machine = spec.compute, this_machine(spec.compute, os.environ)
    if machine is None:
        return []
    findings = []
    for field in ("master_addr", "master_port"):
        if getattr(compute, field) is None:
            what = f"not given, and there are {machine.count} machines: each would wait for the others somewhere else"
            findings.append(Finding("error", "spec", f"compute.{field}", what, f"the same on each: {field}: ..."))
    if machine.rank is None:
        what = f"which of the {machine.count} machines is this? Two with rank 0 wait for each other for ever"
        remedy = "NODE_RANK=0 orchestrator launch SPEC on the first, NODE_RANK=1 on the second; or compute.node_rank"
        findings.append(Finding("error", "spec", "compute.node_rank", what, remedy))
    elif machine.rank >= (compute.nnodes or 1):
        what = f"{machine.rank}, and {machine.count} machines have the ranks 0 to {(compute.nnodes or 1) - 1}"
        findings.append(Finding("error", "spec", "compute.node_rank", what))
    if compute.master_addr is not None:
        try:
            socket.getaddrinfo(compute.master_addr, compute.master_port)
        except OSError as error:
            what = f"{compute.master_addr} cannot be found from here: {error.strerror}"
            remedy = "a name or address that each machine knows"
            findings.append(Finding("error", "missing", "compute.master_addr", what, remedy))
    return findings


def _slurm(job: SlurmSpec) -> list[Finding]:
    """Whether Slurm would take a job, as far as sinfo shows."""
    field = "compute.slurm"
    if shutil.which("sbatch") is None:
        remedy = "on a login node of the cluster; or run it here: --set compute.slurm=null"
        return [Finding("error", "missing", field, "sbatch is not here: Slurm's programs are not installed", remedy)]
    try:
        partitions = slurm.partitions()
    except OrchestratorError as error:
        return [from_error(field, error)]
    findings = []
    for name in (job.partition or "").split(","):
        if name and name not in partitions:
            what = f"there is no partition {name!r}{did_you_mean(name, partitions)}; there are: {', '.join(partitions)}"
            findings.append(Finding("error", "spec", f"{field}.partition", what))
        limit = parse_slurm_time(partitions.get(name, ""))
        if limit is not None and job.time_limit_s is not None and job.time_limit_s > limit:
            what = f"{job.time} is longer than partition {name} allows: {partitions[name]}"
            findings.append(Finding("error", "spec", f"{field}.time", what))
    return findings
