"""Where a training is to run: devices, torchrun, several machines, Slurm, as far as this machine can tell."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import Finding
from orchestrator.runs import slurm
from orchestrator.runs.machine import this_machine
from orchestrator.specs.render import train_environment
from orchestrator.specs.spec import RunSpec

# GPUs and other accelerators as Linux shows them: NVIDIA, NVIDIA under WSL, AMD, Ascend.
_ACCELERATORS = ("nvidia[0-9]*", "dxg", "kfd", "davinci[0-9]*")


def is_enabled(environment: Mapping[str, str], name: str) -> bool:
    """As LLaMA-Factory's is_env_enabled: 0, no, on and yes are all off."""
    return environment.get(name, "").lower() in ("true", "y", "1")


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
    """What is wrong with where a training is to run. What a job asks of Slurm, sbatch itself refuses at once."""
    if spec.compute.slurm is not None and not slurm.own_job():
        what, remedy = "sbatch is not here: Slurm's programs are not installed", "--set compute.slurm=null runs it here"
        return [] if shutil.which("sbatch") else [Finding("error", "missing", "compute.slurm", what, remedy)]
    return [*_devices(spec, spec.train.arguments()), *_several_machines(spec)] if spec.train is not None else []


def _devices(spec: RunSpec, arguments: Mapping[str, object]) -> list[Finding]:
    visible = spec.compute.devices if spec.compute.devices is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    is_hidden = visible is not None and visible.strip() in ("", "-1")
    has_gpu = sys.platform != "linux" or any(any(Path("/dev").glob(pattern)) for pattern in _ACCELERATORS)
    if arguments.get("use_cpu") is True or (has_gpu and not is_hidden):
        return []
    refused = [name for name in ("bf16", "fp16", "pure_bf16", "tf32") if arguments.get(name) is True]
    what = "no GPU is seen here: this trains on the CPU"
    if not refused:
        return [Finding("note", "missing", "train", what)]
    what += f", and LLaMA-Factory refuses {refused[0]} there: write use_cpu: true in its place"
    return [Finding("warning", "missing", f"train.{refused[0]}", what)]


def _several_machines(spec: RunSpec) -> list[Finding]:
    machine = this_machine(spec.compute, os.environ)
    if machine is None:
        return []
    findings = []
    for field in ("master_addr", "master_port"):
        if getattr(spec.compute, field) is None:
            what = f"not given, and there are {machine.count} machines: each would wait for the others somewhere else"
            findings.append(Finding("error", "spec", f"compute.{field}", what, f"the same on each: {field}: ..."))
    if machine.rank is None:
        what = f"which of the {machine.count} machines is this? Two with rank 0 wait for each other for ever"
        remedy = "NODE_RANK=0 orchestrator launch SPEC on the first, NODE_RANK=1 on the second; or compute.node_rank"
        findings.append(Finding("error", "spec", "compute.node_rank", what, remedy))
    return findings
