"""The order of the stages: the one module that knows it.

    spec -> check -> inputs and facts -> run folder -> train -> serve -> evaluate -> record

Progress and warnings go to the log "orchestrator".
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.benchmark.run import run_benchmarks
from orchestrator.errors import Interrupted, OrchestratorError
from orchestrator.lifecycle.cross_workspace import dependencies
from orchestrator.lifecycle.executors.slurm import requeue_or_reason
from orchestrator.lifecycle.new_run import Provenance, RunOptions, devices_needed, new_run
from orchestrator.lifecycle.rerun import RerunComparison, drift_from, log_differences
from orchestrator.lifecycle.resume import check_unchanged, terminate_orphans
from orchestrator.lifecycle.train_stage import train_run
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.machine import hold_devices
from orchestrator.runs.owner import OwnedRun
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Request
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import timed

log = logging.getLogger("orchestrator")


def launch(session: Session, plan: Plan, provenance: Provenance, request: Request, options: RunOptions) -> RunDir:
    """Run what a plan says, in a new run folder, whose record tells how it went, however it ends."""
    owned = new_run(session, plan, provenance, request, exclusive=options.exclusive)
    carry_out(session, owned, options, plan)
    return owned.run


def carry_out(session: Session, owned: OwnedRun, options: RunOptions, plan: Plan | None = None) -> None:
    """Do what is left to do of a run; stages that are complete are skipped. The ownership ends with it.

    The run's record holds the request. `plan` is what its spec.yaml says, where that was just read. Raises
    PrerequisiteError: another run holds its devices; or what it was made with has changed.
    """
    run = owned.run
    with owned:
        record = RunRecord.load(run)
        record.begin_attempt(run, options.job)
        with recorded(run, record, options.job):
            terminate_orphans(run)
            plan = plan or plan_run(session, session.load_spec(run.spec))
            if options.job and len(record.attempts) == 1:
                record.update(run, facts=plan.facts)  # the machine that submitted it is another
            changes = check_unchanged(run, record, plan.spec, plan.facts)
            for line in changes:
                log.warning("since the run began: %s", line)

            def on_wait(what: str) -> None:
                log.info("waiting for %s; Ctrl-C gives it up", what)
                record.update(run, waits_for=what)

            needed = devices_needed(plan.spec, record.request, exclusive=options.exclusive)
            with hold_devices(needed, run, on_wait=on_wait if record.request.wait else None) as locks:
                record.update(run, waits_for=None)
                record.note_attempt(run, status="running", drift=changes)
                _stages(session, plan, run, record, options, locks)


def _stages(
    session: Session, plan: Plan, run: RunDir, record: RunRecord, options: RunOptions, locks: Sequence[int]
) -> None:
    spec = plan.spec
    benchmark_job = record.benchmark_job if options.job else None
    past = session.workspace.lookup_run(record.rerun_of) if record.rerun_of else None
    comparison = RerunComparison(session, past, spec, record) if past is not None else None
    if spec.train is not None:
        train_run(session, plan, run, record, comparison, locks, job=options.job)
    is_benchmarked = record.request.with_benchmarks and spec.benchmark and record.results_elsewhere is None
    if is_benchmarked and benchmark_job is None:
        is_rerun = record.rerun_of is not None
        evaluation = replace(options.evaluation, reuse_cache=False) if is_rerun else options.evaluation
        with timed(run, record, "benchmark"):
            run_benchmarks(session, plan, run, record, evaluation)
    if comparison is not None:
        record.update(run, changed=comparison.changed())
        comparison.scored(record.benchmarks)
    if benchmark_job is not None:
        record.hand_to_job(run, benchmark_job, "trained")
    else:
        record.end(run, "done")


def plan_rerun(
    session: Session, past: RunDir | Path, overrides: Sequence[str], *, strict: bool
) -> tuple[Plan, Provenance]:
    """What would run a past run's saved spec again; what differs now is logged.

    A spec.yaml without a record has nothing to be compared with. Raises PrerequisiteError: strict, and data or model
    differ.
    """
    file, folder = (past.spec, past.path) if isinstance(past, RunDir) else (past, past.resolve().parent)
    needed = dependencies(folder, session.load_spec(file), session)
    overrides = [*needed.overrides, *overrides]
    plan = plan_run(needed.session, session.load_spec(file, overrides), ask=True)
    if not isinstance(past, RunDir):
        log.warning("%s has no record beside it: there is nothing to compare with", past)
        needed.copy()
        return plan, Provenance(str(past), overrides)
    found = drift_from(needed.session, past, plan.spec, plan.facts, overrides)
    log_differences(past, found, strict=strict)
    needed.copy()
    name = past.id if past.path.parent == session.workspace.runs else str(past.path)
    return plan, Provenance(str(past.spec), overrides, name, [each.line() for each in found])


@contextmanager
def recorded(run: RunDir, record: RunRecord, job: str = "") -> Iterator[None]:
    """Whatever ends the block is in the record before it goes on its way."""
    try:
        yield
    except BaseException as error:
        if not record.is_active():  # a signal came just after it had said how it ended
            raise
        if isinstance(error, KeyboardInterrupt | Interrupted):
            why = requeue_or_reason(run, record) if job else ""
            if why is not None:
                record.end(run, "stopped", "; ".join(filter(None, [str(error) or "Ctrl-C", why])))
        else:
            is_ours = isinstance(error, OrchestratorError)
            record.end(run, "failed", str(error) if is_ours else f"{type(error).__name__}: {error}")
        raise
