"""Stop a run or a group, and leave no process of it; or say that a run's host will not come back."""

import socket
from concurrent.futures import ThreadPoolExecutor

from orchestrator.errors import PrerequisiteError
from orchestrator.lifecycle import local, slurm_jobs
from orchestrator.runs.groups import Group, members, remaining
from orchestrator.runs.owner import lock_run
from orchestrator.runs.record import RunRecord
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.state import current


def stop_run(run: RunDir, grace_s: float) -> list[str]:
    """Stop a run: after the grace its processes get SIGKILL; what came of it, in lines.

    Raises PrerequisiteError: another host's or user's; StageError: a process cannot be ended, or Slurm does not answer.
    """
    if _record_stopped(run, "before it had begun", only_planned=True):
        return [f"{run.id} is stopped: it had not begun"]
    record = current(run)
    if not record.is_active():
        ended = local.end_orphans(run, grace_s) if record.is_here() else ""
        orphans = [f"its owner had left running, now ended: {ended}", *_kept(run)] if ended else []
        return [f"{run.id} is not running: {record.status}", *orphans]
    if record.job is not None and record.job.id:
        why, line = slurm_jobs.stop(run, record, record.job, grace_s), f"Slurm job {record.job.id} is over"
    else:
        why, line = local.stop(run, record, grace_s), "no process of it is left"
    _record_stopped(run, why)
    after = current(run)
    reason = f": {after.error.splitlines()[0]}" if after.error else ""
    return [f"{run.id} is {after.status}{reason}", *_kept(run), line]


def stop_group(folder: GroupDir, grace_s: float) -> list[str]:
    """Stop what is under way of a group, all at once, and begin no other of its runs; what came of it, in lines.

    Raises PrerequisiteError, StageError: a run could not be stopped; the others were.
    """
    group = Group.load(folder)
    planned = [each.run for each in members(folder, group) if each.status == "planned"]
    cancelled = sum(_record_stopped(run, "before it had begun", only_planned=True) for run in planned)
    active = [each.run for each in members(folder, group) if each.is_active()]
    if not active and not cancelled:
        lines = [f"{folder.id} is not under way"]
    else:
        lines = [f"{cancelled} runs had not begun, and are stopped"] if cancelled else []
    with ThreadPoolExecutor(32) as pool:
        for stopped in [pool.submit(stop_run, run, grace_s) for run in active]:
            lines += stopped.result()
    return [*lines, *filter(None, [remaining(folder, group)])]


def assume_host_lost(run: RunDir) -> str:
    """Mark a run interrupted whose host will not come back, so that it can be resumed here; a line for the user.

    Raises PrerequisiteError: it is this host's, or a job of Slurm, which says itself what became of it.
    """
    record = current(run)
    if not record.is_active():
        return f"{run.id} is not running: {record.status}"
    if record.is_here() or (record.job is not None and record.job.id):
        where = f"Slurm job {record.job.id}" if record.job is not None else f"of this host, {record.host}"
        raise PrerequisiteError(f"run {run.id} is {where}", f"orchestrator stop {run.id}")
    lost, here = record.host, socket.gethostname()
    record.update(run, host=here, error=f"its host, {lost}, was given up on {here}")
    return f"{run.id} was on {lost} and is marked interrupted"


def _record_stopped(run: RunDir, why: str, *, only_planned: bool = False) -> bool:
    """Write that a run was stopped, where nobody owns it and its record does not say how it ended; whether so."""
    if (only_planned and RunRecord.load(run).status != "planned") or (owned := lock_run(run)) is None:
        return False
    with owned:
        record = RunRecord.load(run)
        is_open = record.status == "planned" if only_planned else record.is_active()
        if is_open:
            record.update(run, stop_requested=True)
            record.end(run, "stopped", why)
        return is_open


def _kept(run: RunDir) -> list[str]:
    complete = next((each for each in usable_checkpoints(run) if each.complete), None)
    if complete is None:
        return ["there is no complete checkpoint"] if run.output.is_dir() else []
    return [f"the newest complete checkpoint: {complete.label}"]
