"""Which executor a run has; nobody else asks whether it is Slurm's. Whether a run is alive is told by runs/owner.py."""

from collections.abc import Sequence
from typing import Protocol

from orchestrator.lifecycle.executors import local, slurm
from orchestrator.planning.session import Session
from orchestrator.runs.owner import OwnedRun
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.spec import RunSpec


class Executor(Protocol):
    """What a module of this folder has."""

    def submit(self, session: Session, runs: Sequence[OwnedRun], spec: RunSpec, name: str) -> None:
        """Hand runs over that this process owns; it owns them no longer then, also where that fails."""
        ...

    def stop(self, run: RunDir, record: RunRecord, grace_s: float) -> list[str]:
        """Stop an active run; what came of it, in lines."""
        ...


def executor_for(spec: RunSpec) -> Executor:
    return slurm if spec.compute.slurm is not None else local


def executor_of(record: RunRecord) -> Executor:
    return slurm if record.job is not None and record.job.id else local
