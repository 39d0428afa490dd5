"""A run is made: its folder, its spec.yaml and its first record."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime

from orchestrator.benchmark.evaluate import EvalOptions
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import atomic_write
from orchestrator.planning.plan import Plan
from orchestrator.planning.session import Session
from orchestrator.runs.facts import keep_patch
from orchestrator.runs.machine import devices_of, hold_devices
from orchestrator.runs.owner import OwnedRun, lock_run
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.record_parts import Request, Status
from orchestrator.serving.checkpoints import serving_devices
from orchestrator.specs.render import spec_yaml
from orchestrator.specs.spec import RunSpec, spec_sha256

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class Provenance:
    """Where a run's spec comes from; kept in its record."""

    spec_file: str | None = None
    overrides: Sequence[str] = ()
    rerun_of: str | None = None
    drift: Sequence[str] = ()
    group: str | None = None
    values: Sequence[str] = ()


@dataclass(frozen=True)
class RunOptions:
    """How a process carries a run out, beside what the run's request says."""

    exclusive: bool = True  # whether its devices are held, so that no other launch gets them
    job: str = ""  # the Slurm job that the process is; '': none
    evaluation: EvalOptions = field(default_factory=EvalOptions)


def new_run(
    session: Session, plan: Plan, provenance: Provenance, request: Request, *, exclusive: bool = True
) -> OwnedRun:
    """A new run folder with all that carry_out needs; this process owns it.

    Raises SpecError: there is nothing to run; PrerequisiteError: its devices are in use, and it would not wait.
    """
    spec = plan.spec
    if spec.train is None and not spec.benchmark:
        raise SpecError(f"{spec.name} neither trains nor benchmarks", "serve, chat and export take it")
    if exclusive and not request.wait:
        with hold_devices(devices_needed(spec, request), None):
            pass
    owned = make_run(session, plan, provenance, request)
    log.info("run %s", owned.run.id)
    return owned


def make_run(
    session: Session, plan: Plan, provenance: Provenance, request: Request, *, status: Status = "preparing"
) -> OwnedRun:
    """A new run folder with spec.yaml and record.json; this process owns it. On an error nothing of it stays."""
    run = session.workspace.new_run(plan.spec.name, datetime.now())
    try:
        owned = lock_run(run)
        if owned is None:
            raise PrerequisiteError(f"{run.path} was taken by another process as it was made", "launch it again")
        spec = plan.spec
        atomic_write(run.spec, spec_yaml(spec, plan.found))
        RunRecord(
            id=run.id,
            name=spec.name,
            status=status,
            created_at=now(),
            spec_sha256=spec_sha256(spec),
            model=spec.model.name_or_path if spec.model else None,
            datasets=list(spec.datasets),
            request=request,
            with_benchmarks=request.with_benchmarks,
            seed=spec.seed,
            facts=keep_patch(run, session.workspace.root, plan.facts),
            **asdict(provenance),
        ).save(run)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return owned


def devices_needed(spec: RunSpec, request: Request, *, exclusive: bool = True) -> list[str]:
    """The devices that the run uses, or none where others may have them too."""
    if not exclusive or spec.compute.slurm is not None:  # Slurm gives each job its own
        return []
    named = [] if spec.train is None else [spec.compute.devices]
    is_served = request.with_benchmarks and spec.benchmark and spec.serve.url is None
    return devices_of([*named, *([serving_devices(spec.serve, spec)] if is_served else [])])
