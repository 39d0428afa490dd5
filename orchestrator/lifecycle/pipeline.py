"""The order of the stages: the one module that knows it.

    spec -> check -> inputs and facts -> run folder -> train -> serve -> evaluate -> record

Covered: launch, rerun, going on with a run; what each does to the record, on every way out.
Not covered: making its folder (new_run.py); benchmark and export of what was trained (targets.py); printing. Progress
and warnings go to the log "orchestrator".
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.benchmark.run import run_benchmarks
from orchestrator.errors import Interrupted, OrchestratorError
from orchestrator.lifecycle.cross_workspace import take_along
from orchestrator.lifecycle.jobs import goes_on_later
from orchestrator.lifecycle.new_run import How, Origin, devices_needed, new_run
from orchestrator.lifecycle.rerun import Repeat, drift_from, say_drift
from orchestrator.lifecycle.resume import end_left_over, heed_changes
from orchestrator.lifecycle.train_stage import train_run
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.locks import held
from orchestrator.runs.metering import timed
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Status
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.spec import RunSpec

log = logging.getLogger("orchestrator")


def launch(session: Session, plan: Plan, origin: Origin, how: How) -> RunDir:
    """Run what a plan says, in a new run folder, whose record tells how it went, however it ends."""
    run = new_run(session, plan, origin, how)
    carry_out(session, run, how, plan)
    return run


def carry_out(session: Session, run: RunDir, how: How, plan: Plan | None = None) -> None:
    """Do what is left to do of a run, as its owner. What is whole already is not done again.

    Args:
        session: the workspace and its tools.
        run: its folder, new or of a run that ended before it was done.
        how: what of it, and from where.
        plan: what its spec.yaml says, where that was just read.

    Raises:
        PrerequisiteError: another process owns the run, or its devices; or what it was made with has changed.
    """
    record = RunRecord.load(run)
    record.take_over(run, how.job)
    with recorded(run, record, how.job):
        end_left_over(run)
        plan = plan or plan_run(session, session.load_spec(run.spec))
        spec = plan.spec
        changes = heed_changes(run, record, spec, plan.facts)
        for line in changes:
            log.warning("since the run began: %s", line)
        if changes:
            record.note_attempt(run, drift=changes)
        if how.job and len(record.attempts) == 1:
            record.update(run, facts=plan.facts)  # the machine that submitted it is another
        with held(devices_needed(spec, how), run, on_wait=_waiting(run, record) if how.wait else None) as locks:
            record.update(run, status="preparing", waits_for=None)
            repeat = _repeat(session, record, spec)
            if spec.train is not None:
                train_run(session, plan, run, record, how, repeat, locks)
            if how.with_benchmarks and spec.benchmark and record.results_elsewhere is None:
                options = how.evaluation if record.rerun_of is None else replace(how.evaluation, reuse_cache=False)
                with timed(run, record, "benchmark"):
                    run_benchmarks(session, plan, run, record, options)
            if repeat is not None:
                record.update(run, changed=repeat.changed())
                repeat.scored(record.benchmarks)
            status: Status = "done" if how.with_benchmarks or spec.train is None else "trained"
            if how.job and record.benchmark_job is not None:
                record.leave_to(run, record.benchmark_job, status, benchmark_job=None)
            else:
                record.end(run, status)


def plan_rerun(session: Session, past: RunDir | Path, overrides: Sequence[str], *, strict: bool) -> tuple[Plan, Origin]:
    """What would run a past run's saved spec again; what differs now is said.

    Args:
        session: the workspace and its tools.
        past: the run that is repeated; a spec.yaml without a record has nothing to be compared with.
        overrides: --set KEY=VALUE, in order.
        strict: whether other data or another model end it.

    Raises:
        PrerequisiteError: strict, and data or model differ.
    """
    file, folder = (past.spec, past.path) if isinstance(past, RunDir) else (past, past.resolve().parent)
    overrides = [*take_along(folder, session.load_spec(file), session), *overrides]
    if not isinstance(past, RunDir):
        log.warning("%s has no record beside it: there is nothing to compare with", past)
        return plan_run(session, session.load_spec(past, overrides)), Origin(str(past), overrides)
    plan = plan_run(session, session.load_spec(past.spec, overrides))
    found = drift_from(session, past, plan.spec, plan.facts, overrides)
    say_drift(past, found, strict=strict)
    name = past.id if past.path.parent == session.workspace.runs else str(past.path)
    return plan, Origin(str(past.spec), overrides, name, [each.line() for each in found])


def _repeat(session: Session, record: RunRecord, spec: RunSpec) -> Repeat | None:
    """The comparison with the run that this one repeats, where that is still there."""
    past = session.workspace.lookup_run(record.rerun_of) if record.rerun_of else None
    return None if past is None else Repeat(session, past, spec, record)


@contextmanager
def recorded(run: RunDir, record: RunRecord, job: str = "") -> Iterator[None]:
    """Whatever ends the block is in the record before it goes on its way."""
    try:
        yield
    except BaseException as error:
        if record.is_active():  # else a signal came just after it had said how it ended
            _end(run, record, error, job)
        raise


def _end(run: RunDir, record: RunRecord, error: BaseException, job: str) -> None:
    if isinstance(error, KeyboardInterrupt | Interrupted):
        why = goes_on_later(run, record) if job else ""
        if why is not None:
            record.end(run, "stopped", "; ".join(filter(None, [str(error) or "Ctrl-C", why])))
    elif isinstance(error, OrchestratorError):
        record.end(run, "failed", error.message)
    else:
        record.end(run, "failed", f"{type(error).__name__}: {error}")


def _waiting(run: RunDir, record: RunRecord) -> Callable[[str], None]:
    def on_wait(what: str) -> None:
        log.info("waiting for %s; Ctrl-C gives it up", what)
        record.update(run, waits_for=what)

    return on_wait
