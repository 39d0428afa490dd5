"""What a training on several machines, or under Ray, needs before it can start.

Covered: that the machines can meet and know their ranks; that each will hold what a resume needs; that Ray can ever
give what LLaMA-Factory asks it for, on this machine or on a cluster that runs, and that it does so in time.
Not covered: whether the other machines are there; what is free in a cluster just now.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Mapping
from typing import Literal

from orchestrator.errors import Finding
from orchestrator.runs.nodes import this_machine
from orchestrator.specs.render import train_environment
from orchestrator.specs.spec import RunSpec

_LONG_S = 24 * 3600


def check_compute(spec: RunSpec) -> list[Finding]:
    """What is wrong with where a training is to run, as far as this machine can tell."""
    if spec.train is None:
        return []
    return [*_unsaid(spec, os.environ), *_meeting(spec, os.environ)]


def _unsaid(spec: RunSpec, environment: Mapping[str, str]) -> list[Finding]:
    """Variables of a cluster's that would make one of several machines of this one, and the spec knows of none.

    LLaMA-Factory's launcher takes them where it starts torchrun: with several devices, or FORCE_TORCHRUN.
    """
    compute = spec.compute
    if compute.slurm is not None:
        return []
    taken = ["NNODES"] if compute.nnodes is None and environment.get("NNODES", "1") != "1" else []
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
    if machine.rank is None:
        what = f"which of the {machine.count} machines is this? Two with rank 0 wait for each other for ever"
        remedy = "NODE_RANK=0 orchestrator launch SPEC on the first, NODE_RANK=1 on the second; or compute.node_rank"
        findings.append(Finding("error", "spec", "compute.node_rank", what, remedy))
    elif machine.rank >= (compute.nnodes or 1):
        what = f"{machine.rank}, and {machine.count} machines have the ranks 0 to {(compute.nnodes or 1) - 1}"
        findings.append(Finding("error", "spec", "compute.node_rank", what))
    if compute.master_addr is not None and compute.master_port is not None:
        findings += _address(compute.master_addr, compute.master_port, is_main=machine.is_main)
    if arguments.get("save_on_each_node") is not True:
        what = "not on: rank 0 alone keeps checkpoints, and a stopped training goes on only where each machine has them"
        findings.append(Finding("note", "spec", "train.save_on_each_node", what))
    timeout_s = arguments.get("ddp_timeout")
    if isinstance(timeout_s, int | float) and timeout_s > _LONG_S:
        what = f"{timeout_s:g} s: where a machine goes without a word, the others may wait for it as long"
        findings.append(Finding("note", "spec", "train.ddp_timeout", what))
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
