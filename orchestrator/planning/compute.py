"""What a training on several machines, or under Ray, needs before it can start.

Covered: that the machines can meet and know their ranks; that each will hold what a resume needs; that Ray can ever
give what LLaMA-Factory asks it for, on this machine or on a cluster that runs, and that it does so in time.
Not covered: whether the other machines are there; what is free in a cluster just now.
"""

import errno
import ipaddress
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from orchestrator.errors import Finding, OrchestratorError, StageError
from orchestrator.processes.process import Child, run_short
from orchestrator.runs.nodes import this_machine
from orchestrator.specs.render import train_environment
from orchestrator.specs.spec import RunSpec
from orchestrator.upstream.installation import Installation

CPUS_PER_DEVICE = 10  # llamafactory/train/trainer_utils.py, get_placement_group
_LONG_S = 24 * 3600
# Of LLaMA-Factory once Ray has given it what it asked for, and of Ray before each line of a worker.
_PLACED = ("Create placement group with", "(Worker pid=", "(pid=")
# In LLaMA-Factory's Python: the resources of each machine of the cluster that ray.init() would join; null: of none.
# `device` is what LLaMA-Factory would ask for: its get_device_name.
_ASK_RAY = """
import json, sys
import ray
given = json.loads(sys.argv[1])
address = given.pop("address", None)
answer = {"nodes": None, "error": None}
try:
    ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    answer["nodes"] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    ray.shutdown()
except Exception as error:
    if address not in (None, "local") or not isinstance(error, ConnectionError):
        answer["error"] = f"{type(error).__name__}: {error}"
import torch
kinds = {"GPU": torch.cuda, "NPU": getattr(torch, "npu", None), "XPU": getattr(torch, "xpu", None)}
found = {name: kind.device_count() for name, kind in kinds.items() if kind is not None and kind.is_available()}
answer["device"], answer["count"] = next(iter(found.items()), ("CPU", 0))
print()
print(json.dumps(answer))
"""


def check_compute(spec: RunSpec, installation: Installation | OrchestratorError | None) -> list[Finding]:
    """What is wrong with where a training is to run, as far as this machine can tell."""
    if spec.train is None:
        return []
    findings = [*_unsaid(spec, os.environ), *_meeting(spec, os.environ)]
    if spec.compute.ray:
        findings += _ray(spec, installation if isinstance(installation, Installation) else None)
    return findings


def _unsaid(spec: RunSpec, environment: Mapping[str, str]) -> list[Finding]:
    """Variables of a cluster's that would make one of several machines of this one, and the spec knows of none.

    LLaMA-Factory's launcher takes them where it starts torchrun: with several devices, or FORCE_TORCHRUN.
    """
    compute = spec.compute
    if compute.ray or compute.slurm is not None:
        return []
    fields = {"NNODES": compute.nnodes, "RDZV_ID": compute.rdzv_id}
    taken = [name for name, field in fields.items() if field is None and environment.get(name, "1") != "1"]
    is_sure = "FORCE_TORCHRUN" in {**environment, **train_environment(spec)}
    severity: Literal["error", "warning"] = "error" if is_sure else "warning"
    return [
        Finding(
            severity,
            "spec",
            f"compute.{name.lower()}",
            f"not given, and {name}={environment[name]} in the environment makes LLaMA-Factory wait for other machines",
            f"compute: {{{name.lower()}: {environment[name]}, ...}}; where it is to train alone: unset {name}",
        )
        for name in taken
    ]


def _meeting(spec: RunSpec, environment: Mapping[str, str]) -> list[Finding]:
    """Of several machines that the same spec is launched on."""
    compute, arguments = spec.compute, spec.train.arguments() if spec.train else {}
    machine = this_machine(compute, environment)
    if machine is None:
        return []
    findings = []
    for field in ("master_addr", "master_port"):
        if getattr(compute, field) is None:
            what = f"not given, and there are {machine.count} machines: each would wait for the others somewhere else"
            findings.append(Finding("error", "spec", f"compute.{field}", what, f"the same on each: {field}: ..."))
    if compute.rdzv_id is None:
        if machine.rank is None:
            what = f"which of the {machine.count} machines is this? Two with rank 0 wait for each other for ever"
            remedy = (
                "NODE_RANK=0 orchestrator launch SPEC on the first, NODE_RANK=1 on the second; or compute.node_rank"
            )
            findings.append(Finding("error", "spec", "compute.node_rank", what, remedy))
        elif machine.rank >= (compute.nnodes or 1):
            what = f"{machine.rank}, and {machine.count} machines have the ranks 0 to {(compute.nnodes or 1) - 1}"
            findings.append(Finding("error", "spec", "compute.node_rank", what))
    else:
        findings += _elastic(compute.max_restarts, shares=arguments.get("save_on_each_node") is not True)
    if compute.master_addr is not None and compute.master_port is not None:
        findings += _address(compute.master_addr, compute.master_port, is_main=machine.is_main)
    if compute.rdzv_id is None and arguments.get("save_on_each_node") is not True:
        what = "not on: rank 0 alone keeps checkpoints, and a stopped training goes on only where each machine has them"
        findings.append(Finding("note", "spec", "train.save_on_each_node", what))
    timeout_s = arguments.get("ddp_timeout")
    if isinstance(timeout_s, int | float) and timeout_s > _LONG_S:
        what = f"{timeout_s:g} s: where a machine goes without a word, the others may wait for it as long"
        findings.append(Finding("note", "spec", "train.ddp_timeout", what))
    return findings


def _elastic(max_restarts: int | None, *, shares: bool) -> list[Finding]:
    """Of a training that torchrun starts again as machines come and go."""
    what = "elastic: the machines share the checkpoints of one run, whose folder all of them have to see"
    remedy = "launch it on one of them, and orchestrator join RUN on each other"
    findings = [Finding("note", "spec", "compute.rdzv_id", what, remedy)]
    if not max_restarts:
        what = (
            "0: a process that fails, or a machine that goes, ends the training on all; a machine may join all the same"
        )
        findings.append(Finding("note", "spec", "compute.max_restarts", what, "max_restarts: 3"))
    if not shares:
        what = "each machine would write the same files into the output/ that they share (orchestrator join)"
        findings.append(Finding("warning", "spec", "train.save_on_each_node", what, "leave it out"))
    return findings


def _address(address: str, port: int, *, is_main: bool) -> list[Finding]:
    try:
        found = {each[4][0] for each in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        what = f"{address} cannot be found from here: {error.strerror}"
        return [Finding("error", "missing", "compute.master_addr", what, "a name or address that each machine knows")]
    if not is_main and all(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in map(str, found)):
        what = f"{address} is this machine itself, and rank 0 is another: right only where both are one"
        return [Finding("warning", "spec", "compute.master_addr", what)]
    if is_main and _is_taken(address, port):
        what = f"{port} is in use on this machine, where rank 0 would listen"
        return [Finding("error", "missing", "compute.master_port", what, "another one, the same on each machine")]
    return []


def _is_taken(address: str, port: int) -> bool:
    """Whether another program listens on the port. torch does so on all addresses of rank 0's machine."""
    try:
        family, kind, protocol, _, own = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        for where in (own, ("", port)):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does: TIME_WAIT is no hindrance
                probe.bind(where)
    except OSError as error:
        return error.errno == errno.EADDRINUSE  # else it is no address of this machine: the spec is checked elsewhere
    return False


def _ray(spec: RunSpec, installation: Installation | None) -> list[Finding]:
    """Whether Ray can ever place what LLaMA-Factory asks for: for all devices of the cluster, whatever it uses.

    It waits without end for what cannot be.
    """
    if installation is None or installation.package is None:
        return []  # said elsewhere
    if "ray" not in installation.versions:
        what = "the package ray is not installed beside LLaMA-Factory"
        return [Finding("error", "missing", "compute.ray", what, f"{installation.python} -m pip install ray")]
    arguments = spec.train.arguments() if spec.train else {}
    workers = arguments.get("ray_num_workers", 1)
    given = init_kwargs(arguments)
    if "address" not in given and os.environ.get("RAY_ADDRESS"):
        given["address"] = os.environ["RAY_ADDRESS"]
    try:
        said = run_short([str(installation.python), "-c", _ASK_RAY, json.dumps({"address": given.get("address")})],
                         timeout_s=90)  # fmt: skip
        answer = json.loads(said.strip().rpartition("\n")[2])
    except (OrchestratorError, ValueError) as error:
        return [Finding("warning", "missing", "compute.ray", f"Ray cannot be asked what it has: {error}")]
    if answer["error"]:
        what = f"the cluster at {given.get('address')} cannot be asked: {answer['error'].splitlines()[0]}"
        return [Finding("error", "missing", "train.ray_init_kwargs", what, "ray status, on a machine of the cluster")]
    where = "the cluster" if answer["nodes"] is not None else "this machine, where Ray would start a cluster"
    nodes = answer["nodes"] if answer["nodes"] is not None else [_local(given, answer["device"], answer["count"])]
    what = cannot_place(nodes, answer["device"], workers)
    return [Finding("error", "missing", "compute.ray", f"{where}: {what}", _RAY_REMEDY)] if what else []


_RAY_REMEDY = (
    f"machines with {CPUS_PER_DEVICE} CPUs for each GPU; or, without Ray, compute.nproc_per_node on one machine and "
    "compute.nnodes on several"
)


class Placement:
    """A look at a training now and then, that ends it where Ray has not placed its processes in time."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline: float | None = time.monotonic() + timeout_s

    def look(self, child: Child) -> None:
        """Look once.

        Raises:
            StageError: the time is over, and the training has said nothing that it says once it is placed.
        """
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        if not child.log_holds(*_PLACED):
            raise StageError(
                f"Ray has not placed the training within {self._timeout_s:g} s. LLaMA-Factory asks for "
                f"{CPUS_PER_DEVICE} CPUs and 1 GPU for each device of the cluster, those that it does not use too, and "
                f"waits without end. Last lines of {child.log}:\n{child.log_tail()}",
                "what the cluster has, and what others use of it: ray status. Longer: compute.ray_timeout_s",
            )
        self._deadline = None


def init_kwargs(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """ray_init_kwargs, which may be written as a mapping or as the JSON of one."""
    given = arguments.get("ray_init_kwargs")
    if isinstance(given, str) and given.startswith("{"):
        given = json.loads(given)
    return dict(given) if isinstance(given, Mapping) else {}


def cannot_place(nodes: Sequence[Mapping[str, float]], device: str, workers: int) -> str:
    """Why what LLaMA-Factory asks Ray for can never be placed; '' where it can.

    It asks for a bundle of 10 CPUs and a device for every device of the cluster, not only for those that it uses
    (get_placement_group), and a bundle lies on one machine.

    Args:
        nodes: the resources of each machine, by Ray's names.
        device: GPU, NPU, XPU or CPU, as LLaMA-Factory sees it on the machine that starts the training.
        workers: ray_num_workers.
    """
    if device == "CPU":
        return (
            f"no GPU is seen here, and LLaMA-Factory then asks for {CPUS_PER_DEVICE} CPUs for each CPU that there is, "
            "which no cluster has: it would wait for ever"
        )
    total = sum(int(each.get(device, 0)) for each in nodes)
    if workers > total:
        return f"ray_num_workers is {workers}, and there are {total} {device}s"
    room = sum(min(int(each.get(device, 0)), int(each.get("CPU", 0) // CPUS_PER_DEVICE)) for each in nodes)
    if room < total:
        has = "; ".join(f"{each.get('CPU', 0):g} CPUs and {each.get(device, 0):g} {device}s" for each in nodes)
        return (
            f"LLaMA-Factory asks for {CPUS_PER_DEVICE} CPUs and 1 {device} for each of the {total} {device}s, on the "
            f"machine that has it, and would wait for ever: there is room for {room} ({has})"
        )
    return ""


def _local(given: Mapping[str, Any], device: str, count: int) -> dict[str, float]:
    """What ray.init() would say that this machine has."""
    cpus = given.get("num_cpus", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    return {"CPU": float(cpus or 0), device: float(given.get("num_gpus", count) if device == "GPU" else count)}
