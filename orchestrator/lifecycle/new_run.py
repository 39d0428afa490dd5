"""A run is made: its folder, its spec.yaml and its first record.

Covered: where its spec comes from, how it is to be carried out, the devices that it needs; what refuses it before there
is a folder.
Not covered: carrying it out (pipeline.py); the runs of a group (sweep.py).
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.benchmark.evaluate import EvalOptions
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import atomic_write
from orchestrator.planning.plan import Plan
from orchestrator.planning.session import Session
from orchestrator.processes.family import start_ticks
from orchestrator.runs.locks import devices_of, held
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.storage import storage_problem
from orchestrator.runs.worktree import keep_patch
from orchestrator.serving.checkpoints import serving_devices
from orchestrator.specs.render import spec_yaml
from orchestrator.specs.spec import RunSpec, spec_sha256

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class Origin:
    """Where a run's spec comes from; kept in its record."""

    spec_file: str | None = None
    overrides: Sequence[str] = ()
    rerun_of: str | None = None
    drift: Sequence[str] = ()
    group: str | None = None


@dataclass(frozen=True)
class How:
    """How a run is carried out."""

    with_benchmarks: bool = True
    exclusive: bool = True
    """Whether its devices are held, so that no other launch gets them."""
    wait: bool = False
    """Whether it waits for its devices."""
    job: str = ""
    """The job of Slurm that does it; '': none."""
    checkpoint: str | None = None
    """checkpoint-N to go on from; None: the newest whole one."""
    evaluation: EvalOptions = field(default_factory=EvalOptions)
    """Whether answers of before are used, and whether a part is scored."""


def new_run(session: Session, plan: Plan, origin: Origin, how: How) -> RunDir:
    """A new run folder with all that carry_out needs. The calling process owns it.

    Raises:
        PrerequisiteError: its devices are in use, and it would not wait; or the file system can keep no runs.
    """
    spec = plan.spec
    if spec.train is None and not spec.benchmark:
        raise SpecError(f"{spec.name} neither trains nor benchmarks", "serve, chat and export take it")
    if problem := storage_problem(session.workspace.runs):
        raise PrerequisiteError(
            f"runs cannot be kept in {session.workspace.runs}: {problem}",
            "put the workspace on a file system with locks: a local disk, or NFS mounted without nolock",
        )
    if how.exclusive and not how.wait:
        with held(devices_needed(spec, how), None):
            pass
    return new_folder(session, plan, origin, with_benchmarks=how.with_benchmarks)


def reserve_run(session: Session, plan: Plan) -> RunDir:
    """A new folder with spec.yaml in it; first_record makes a run of it."""
    run = session.workspace.new_run(plan.spec.name, datetime.now())
    atomic_write(run.spec, spec_yaml(plan.spec, plan.found))
    return run


def first_record(
    session: Session, run: RunDir, plan: Plan, origin: Origin, *, with_benchmarks: bool, queued: bool = False
) -> None:
    """Write the record of a folder that has its spec: with it the folder is a run.

    Args:
        session: the workspace and its tools.
        run: the folder.
        plan: what its spec says.
        origin: where that is from.
        with_benchmarks: whether they follow the training.
        queued: whether it waits to be begun by anybody; else the calling process owns it.
    """
    RunRecord(
        id=run.id,
        name=plan.spec.name,
        created_at=now(),
        process_start_ticks=start_ticks(os.getpid()),
        spec_file=origin.spec_file,
        spec_sha256=spec_sha256(plan.spec),
        overrides=list(origin.overrides),
        rerun_of=origin.rerun_of,
        drift=list(origin.drift),
        group=origin.group,
        awaits_turn=queued,
        with_benchmarks=with_benchmarks,
        seed=plan.spec.seed,
        facts=keep_patch(run, session.workspace.root, plan.facts),
    ).save(run)


def new_folder(session: Session, plan: Plan, origin: Origin, *, with_benchmarks: bool = False) -> RunDir:
    """A new run folder with spec.yaml and record.json. The calling process owns it."""
    run = reserve_run(session, plan)
    first_record(session, run, plan, origin, with_benchmarks=with_benchmarks)
    log.info("run %s", run.id)
    return run


def devices_needed(spec: RunSpec, how: How) -> list[str]:
    """The devices that the run uses, or none where others may have them too."""
    if not how.exclusive or spec.compute.slurm is not None:  # Slurm gives each job its own
        return []
    named = [] if spec.train is None else [spec.compute.devices]
    served = how.with_benchmarks and spec.benchmark and spec.serve.url is None
    return devices_of([*named, *([serving_devices(spec.serve, spec)] if served else [])])
