"""The order of the stages: check -> inputs and facts -> run folder -> train -> serve -> evaluate -> record."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from orchestrator.benchmark.run import run_benchmarks
from orchestrator.errors import Interrupted, OrchestratorError
from orchestrator.lifecycle.local import end_orphans
from orchestrator.lifecycle.new_run import RunOptions, devices_needed
from orchestrator.lifecycle.rerun import compare_trainings
from orchestrator.lifecycle.resume import check_unchanged
from orchestrator.lifecycle.slurm_jobs import requeue_or_reason
from orchestrator.lifecycle.train import train_run
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.differences import compare_scores
from orchestrator.runs.facts import keep_patch
from orchestrator.runs.machine import hold_devices
from orchestrator.runs.owner import OwnedRun
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import timed

log = logging.getLogger("orchestrator")


def carry_out(session: Session, owned: OwnedRun, options: RunOptions, plan: Plan | None = None) -> None:
    """Do what is left to do of a run, as the request in its record says. The ownership ends with it.

    `plan`: of its spec.yaml. Raises PrerequisiteError: another run holds its devices; what it began with has changed.
    """
    run = owned.run
    with owned:
        record = RunRecord.load(run)
        record.begin_attempt(run, options.job)
        with recorded(run, record, options.job):
            if ended := end_orphans(run):
                log.warning("processes of %s were still there, and are ended: %s", run.id, ended)
            plan = plan or plan_run(session, session.load_spec(run.spec))
            if options.job and len(record.attempts) == 1:  # the machine that submitted it is another
                record.update(run, facts=keep_patch(run, session.workspace.root, plan.facts))
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
    past = session.workspace.lookup_run(record.rerun_of) if record.rerun_of else None
    train_run(session, plan, run, record, locks, options.job)
    if past is not None:
        with _only_warned(past):
            record.update(run, verdict=compare_trainings(session, past, spec, record))
    if record.request.with_benchmarks and spec.benchmark and record.results_elsewhere is None:
        is_rerun = record.rerun_of is not None
        evaluation = replace(options.evaluation, reuse_cache=False) if is_rerun else options.evaluation
        with timed(run, record, "benchmark"):
            run_benchmarks(session, plan, run, record, evaluation)
        if past is not None:
            with _only_warned(past):
                for line in compare_scores(RunRecord.load(past).benchmarks, record.benchmarks):
                    log.info("%s: %s", past.id, line)
    record.end(run, "done")


@contextmanager
def _only_warned(past: RunDir) -> Iterator[None]:
    """A rerun has its results, whether or not the run that it repeats can still be read."""
    try:
        yield
    except OrchestratorError as error:
        log.warning("%s cannot be compared with: %s", past.id, error.message)


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
