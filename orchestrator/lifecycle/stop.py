"""Stop a run or a group, and leave no process of it; or say that a run's host will not come back."""

import os
import socket
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from orchestrator.errors import OrchestratorError, PrerequisiteError
from orchestrator.lifecycle.executors import local, slurm
from orchestrator.runs.groups import Group, members, remaining
from orchestrator.runs.owner import liveness, lock_run
from orchestrator.runs.record import RunRecord
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.state import current

QUIET_S = 120
"""For how long a run's folder must have been left alone before its host is believed to be gone."""
_AT_ONCE = 32


def stop_run(run: RunDir, grace_s: float) -> list[str]:
    """Stop a run; what came of it, in lines. It has the grace to stop by itself, then its processes get SIGKILL.

    Raises PrerequisiteError: it runs on another host, or it is another user's; StageError: a process of it cannot be
    ended, or Slurm does not answer.
    """
    if _cancel_planned(run):
        return [f"{run.id} is stopped: it had not begun"]
    record = current(run)
    if not record.is_active():
        ended = local.stop_orphans(run, grace_s) if record.is_here() else []
        return [f"{run.id} is not running: {record.status}", *ended, *(_kept(run) if ended else [])]
    executor = slurm if record.job is not None and record.job.id else local
    lines = executor.stop(run, record, grace_s)
    after = current(run)
    why = f": {after.error.splitlines()[0]}" if after.error else ""
    return [f"{run.id} is {after.status}{why}", *_kept(run), *lines]


def stop_group(folder: GroupDir, grace_s: float) -> list[str]:
    """Stop what is under way of a group, all at once, and begin no other of its runs; what came of it, in lines.

    Raises PrerequisiteError, StageError: a run could not be stopped; the others were.
    """
    group = Group.load(folder)
    cancelled = sum(_cancel_planned(each.run) for each in members(folder, group) if each.status == "planned")
    active = [each.run for each in members(folder, group) if each.is_active()]
    lines = [f"{cancelled} runs had not begun, and are stopped"] if cancelled else []
    if not active and not cancelled:
        lines = [f"{folder.id} is not under way"]

    def stopped(run: RunDir) -> Sequence[str] | OrchestratorError:
        try:
            return stop_run(run, grace_s)
        except OrchestratorError as error:
            return error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for found in list(pool.map(stopped, active)):
            if isinstance(found, OrchestratorError):
                raise found
            lines += found
    return [*lines, *filter(None, [remaining(folder, group)])]


def assume_host_lost(run: RunDir) -> list[str]:
    """Mark a run interrupted whose host will not come back, so that it can be resumed here; in lines what was done.

    Raises PrerequisiteError: it is this host's or under way, or something still writes into its folder; StageError:
    Slurm does not say whether its job is under way.
    """
    record = current(run)
    if not record.is_active():
        return [f"{run.id} is not running: {record.status}"]
    if record.is_here():
        raise PrerequisiteError(f"run {run.id} is of this host, {record.host}", f"orchestrator stop {run.id}")
    if record.job is not None and record.job.id:
        if liveness(run, record, max_age_s=0) == "unknown":
            raise slurm.no_answer(run, record.job)
        raise PrerequisiteError(f"Slurm job {record.job.id} of {run.id} is not over", f"orchestrator stop {run.id}")
    newest = max((path for path in run.path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryFile(dir=run.path) as probe:  # by the clock of the file system
        age_s = os.fstat(probe.fileno()).st_mtime - newest.stat().st_mtime
    if age_s < QUIET_S:
        raise PrerequisiteError(
            f"{record.host} is not gone: {newest} was written {max(age_s, 0):.0f} s ago",
            f"there: orchestrator stop {run.id}; or try again once nothing was written for {QUIET_S} s",
        )
    lost, here = record.host, socket.gethostname()
    record.update(run, host=here, error=f"its host, {lost}, was given up on {here}")
    return [f"{run.id} was on {lost} and is marked interrupted"]


def _cancel_planned(run: RunDir) -> bool:
    """Stop a run that has not begun; whether it had not. One that is being begun just now is locked."""
    if RunRecord.load(run).status != "planned" or (owned := lock_run(run)) is None:
        return False
    with owned:
        record = RunRecord.load(run)
        if record.status != "planned":
            return False
        record.update(run, stop_requested=True)
        record.end(run, "stopped", "before it had begun")
        return True


def _kept(run: RunDir) -> list[str]:
    complete = next((each for each in usable_checkpoints(run) if each.complete), None)
    if complete is None:
        return ["there is no complete checkpoint"] if run.output.is_dir() else []
    return [f"the newest complete checkpoint: {complete.label}"]
