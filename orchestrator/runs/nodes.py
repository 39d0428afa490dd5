"""Which machine this is, where a training is launched on several of them: the same spec on each.

Covered: what the spec and the environment say of it; whose the results are.
Not covered: how the machines meet and what they send each other (torchrun); one owner for all of them (Slurm).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.specs.compute_spec import ComputeSpec


@dataclass(frozen=True)
class Machine:
    """One of several machines that train together."""

    rank: int | None
    """From 0. None: nothing says it."""
    count: str
    """How many there are, as text."""
    meeting: str
    """Where they meet: ADDRESS:PORT."""

    @property
    def is_main(self) -> bool:
        """Whether this is surely the machine with rank 0, whose main process writes the results."""
        return self.rank == 0

    @property
    def name(self) -> str:
        return f"one of {self.count}" if self.rank is None else f"rank {self.rank} of {self.count}"


def this_machine(compute: ComputeSpec, environment: Mapping[str, str]) -> Machine | None:
    """This machine among those of a training; None where it trains alone.

    Args:
        compute: the compute section.
        environment: ours: NODE_RANK of it counts where the spec says none, as for LLaMA-Factory.
    """
    count = str(compute.nnodes or 1)
    if count == "1":
        return None
    rank = compute.node_rank
    if rank is None and environment.get("NODE_RANK", "").isdecimal():
        rank = int(environment["NODE_RANK"])
    return Machine(rank, count, f"{compute.master_addr}:{compute.master_port}")


def own_ranks(compute: ComputeSpec, machine: Machine | None) -> range | None:
    """The processes of a training that run on this one of its machines; None where that is not known."""
    if machine is None or machine.rank is None or compute.nproc_per_node is None:
        return None
    return range(machine.rank * compute.nproc_per_node, (machine.rank + 1) * compute.nproc_per_node)
