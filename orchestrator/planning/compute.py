"""Where a training is to run: devices, torchrun, ports, several machines. Whether the other machines are there is not
known.
"""

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from orchestrator.errors import Finding
from orchestrator.runs.nodes import this_machine
from orchestrator.runs.slurm import own_job
from orchestrator.specs.render import train_environment
from orchestrator.specs.spec import RunSpec

_LONG_S = 24 * 3600
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
    if spec.compute.slurm is not None and not own_job():
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")]) > 1
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) > 1


def check_compute(spec: RunSpec) -> list[Finding]:
    """What is wrong with where a training is to run, as far as this machine can tell."""
    if spec.train is None:
        return []
    return [*_devices(spec), *_inherited_cluster(spec, os.environ), *_several_machines(spec, os.environ)]


def _devices(spec: RunSpec) -> list[Finding]:
    if spec.train is None or has_accelerator(spec.compute.devices):
        return []
    arguments, findings = spec.train.arguments(), []
    given = [name for name in ("bf16", "fp16", "pure_bf16", "tf32") if arguments.get(name) is True]
    if given and given[0] in ("pure_bf16", "tf32"):
        what = f"no GPU is seen here: LLaMA-Factory ends at once with {given[0]}"
        findings.append(Finding("error", "missing", f"train.{given[0]}", what, f"leave {given[0]} out"))
    elif arguments.get("use_cpu") is not True and given:
        what = f"no GPU is seen here: LLaMA-Factory ends at once with {given[0]} and without use_cpu"
        findings.append(Finding("warning", "missing", f"train.{given[0]}", what, "add train.use_cpu: true"))
    elif arguments.get("use_cpu") is not True:
        findings.append(Finding("note", "missing", "train", "no GPU is seen here: this trains on the CPU"))
    environment = {**os.environ, **train_environment(spec)}
    if is_enabled(environment, "FORCE_TORCHRUN") and "NPROC_PER_NODE" not in environment and not spec.compute.slurm:
        what = "not given: LLaMA-Factory has torchrun start a process for each device, and no GPU is seen here"
        findings.append(Finding("error", "missing", "compute.nproc_per_node", what, "nproc_per_node: 2, say"))
    return findings


def _inherited_cluster(spec: RunSpec, environment: Mapping[str, str]) -> list[Finding]:
    """NNODES of the environment, which makes one of several machines of this one where torchrun is started."""
    nodes = environment.get("NNODES", "1")
    if spec.compute.slurm is not None or spec.compute.nnodes is not None or nodes == "1":
        return []
    is_sure = is_enabled({**environment, **train_environment(spec)}, "FORCE_TORCHRUN")
    severity: Literal["error", "warning"] = "error" if is_sure else "warning"
    what = f"not given, and NNODES={nodes} in the environment makes LLaMA-Factory wait for other machines"
    remedy = f"compute: {{nnodes: {nodes}, ...}}; to train on this machine alone: unset NNODES"
    return [Finding(severity, "spec", "compute.nnodes", what, remedy)]


def _several_machines(spec: RunSpec, environment: Mapping[str, str]) -> list[Finding]:
    compute, arguments = spec.compute, spec.train.arguments() if spec.train else {}
    machine = this_machine(compute, environment)
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
    if compute.master_addr is not None and compute.master_port is not None:
        findings += _rendezvous(compute.master_addr, compute.master_port, is_main=machine.is_main)
    if arguments.get("save_on_each_node") is not True:
        what = "not on: rank 0 alone keeps checkpoints, and a stopped training resumes only where each machine has them"
        findings.append(Finding("note", "spec", "train.save_on_each_node", what))
    timeout_s = arguments.get("ddp_timeout")
    if isinstance(timeout_s, int | float) and timeout_s > _LONG_S:
        what = f"{timeout_s:g} s: where a machine ends without a word, the others may wait for it as long"
        findings.append(Finding("note", "spec", "train.ddp_timeout", what))
    return findings


def _rendezvous(address: str, port: int, *, is_main: bool) -> list[Finding]:
    try:
        found = {each[4][0] for each in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        what = f"{address} cannot be found from here: {error.strerror}"
        return [Finding("error", "missing", "compute.master_addr", what, "a name or address that each machine knows")]
    if not is_main and all(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in map(str, found)):
        what = f"{address} is this machine itself, and rank 0 is another: right only where both are one"
        return [Finding("warning", "spec", "compute.master_addr", what)]
    # torch listens on all addresses of rank 0's machine.
    if is_main and any(port_problem(host, port) == IN_USE for host in (address, "")):
        what = f"{port} is in use on this machine, where rank 0 would listen"
        return [Finding("error", "missing", "compute.master_port", what, "another one, the same on each machine")]
    return []


IN_USE = "is in use"


def port_problem(host: str, port: int) -> str:
    """Why no server of ours could listen there; '' where it could. Host '': on all addresses."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn and torch: TIME_WAIT is free
            probe.bind(address)
    except OSError as error:
        return IN_USE if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror}"
    return ""
