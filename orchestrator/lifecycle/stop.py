"""Stop a run, and leave no process of it: its owner is asked, waited for, and ended with all that is left of it.

Covered: owners in the foreground and supervisors; what an owner that was killed left running; runs on other hosts,
which are named; what the run kept.
Not covered: how a training is stopped with a checkpoint (train.py, in the owner).
"""

import os
import signal
import socket
import tempfile
import time
from pathlib import Path

import psutil

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.lifecycle.jobs import stop_job
from orchestrator.lifecycle.train_process import GRACE_S
from orchestrator.processes.family import alive, end_run, run_family, send, wait_until_gone
from orchestrator.runs.record import RunRecord
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import left_running, pids

POLL_S = 0.1
SETTLE_S = 0.5
"""For an owner to hear that it is to stop before its children are ended: it would take their end for a failure."""
FAREWELL_S = 10
"""For an owner to write its record once its children are gone."""
QUIET_S = 120
"""For how long a run's folder must have been left alone before its host is believed to be gone."""
DEFAULT_GRACE_S = GRACE_S + 10  # the owner's own, and the time that it takes to say so


def stop_run(run: RunDir, grace_s: float) -> list[str]:
    """Stop a run; what came of it, in lines.

    Args:
        run: the run.
        grace_s: how long it may take to stop by itself; then all its processes get SIGKILL.

    Raises:
        PrerequisiteError: it runs on another host, or it is another user's.
        StageError: a process of it cannot be ended.
    """
    record = RunRecord.load(run)
    if record.awaits_turn and record.withdraw(run, "stopped", "before it had begun"):
        return [f"{run.id} is stopped: it had not begun"]
    if record.job is not None and record.job.id and record.is_active():  # without an id it is being submitted
        return [*stop_job(run, record, grace_s), _how_it_ended(run), *_kept(run)]
    owner = _owner(record)
    if owner is None:
        return _stop_without_owner(run, record, grace_s)
    try:
        send(owner, signal.SIGTERM)
    except psutil.AccessDenied as error:
        raise PrerequisiteError(f"process {owner.pid}, which owns {run.id}, is another user's") from error
    if not _wait_for_end(run, owner, max(grace_s, SETTLE_S)):
        _end_by_force(run, owner)
    _verify_none_left(run)
    after = RunRecord.load(run)
    if after.status == "interrupted":
        after.end(run, "stopped", f"ended by force: it had not stopped within {grace_s:g} s")
    return [_how_it_ended(run), *_kept(run), "no process of it is left"]


def host_is_gone(run: RunDir) -> list[str]:
    """Take a run for interrupted whose host will not come back, so that it can be gone on with here; said in lines.

    Raises:
        PrerequisiteError: it is this host's, or something still writes into its folder.
    """
    record = RunRecord.load(run)
    if not record.is_active():
        return [f"{run.id} is not running: {record.status}"]
    if record.is_here():
        raise PrerequisiteError(f"run {run.id} is of this host, {record.host}", f"orchestrator stop {run.id}")
    written, age_s = _last_written(run)
    if age_s < QUIET_S:
        raise PrerequisiteError(
            f"{record.host} is not gone: {written} was written {max(age_s, 0):.0f} s ago",
            f"there: orchestrator stop {run.id}; or try again once {QUIET_S} s have passed without a word of it",
        )
    record.end(run, "interrupted", f"its host, {record.host}, is gone, as was said on {socket.gethostname()}")
    return [f"{run.id} was {record.host}'s and is taken for interrupted"]


def _last_written(run: RunDir) -> tuple[Path, float]:
    """The file of a run that was written to last, and how many seconds ago, by the clock of the file system."""
    newest = max((path for path in run.path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryFile(dir=run.path) as probe:
        return newest, os.fstat(probe.fileno()).st_mtime - newest.stat().st_mtime


def _stop_without_owner(run: RunDir, record: RunRecord, grace_s: float) -> list[str]:
    left = left_running(run, record)
    said = f"{run.id} is not running: {record.status}"
    if not left:
        return [said]
    end_run(lambda: run_family(run.path), grace_s)
    _verify_none_left(run)
    return [f"{said}; its owner had left running, now ended: {pids(left)}", *_kept(run), "no process of it is left"]


def _owner(record: RunRecord) -> psutil.Process | None:
    """The process that owns the run, if that runs; psutil leaves a later one of that pid alone."""
    if not record.is_active():
        return None
    if not record.is_here():
        raise PrerequisiteError(
            f"run {record.id} is {record.status} on {record.host}, which cannot be reached from here",
            f"there: orchestrator stop {record.id}; if it is gone for good: orchestrator stop {record.id} "
            "--host-is-gone",
        )
    try:
        owner = psutil.Process(record.pid)
    except psutil.NoSuchProcess:
        return None
    return owner if record.owner_lives() else None


def _wait_for_end(run: RunDir, owner: psutil.Process, grace_s: float) -> bool:
    """Whether the owner, and then all that it had started, ended in time."""
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        if not alive(owner) and not run_family(run.path):
            return True
        time.sleep(POLL_S)
    return False


def _end_by_force(run: RunDir, owner: psutil.Process) -> None:
    """The owner last: it says in the record how the run ended."""
    children = [process for process in run_family(run.path) if process != owner]
    for process in children:
        send(process, signal.SIGKILL)
    wait_until_gone([owner, *children], FAREWELL_S)
    left = [owner, *run_family(run.path)]
    for process in left:
        send(process, signal.SIGKILL)
    wait_until_gone(left)


def _verify_none_left(run: RunDir) -> None:
    left = run_family(run.path)
    if left:
        raise StageError(
            f"processes of {run.id} cannot be ended: {pids(left)}",
            "they wait for a device or a file system, or are another user's: ps -o pid,stat,wchan,cmd -p PID",
        )


def _how_it_ended(run: RunDir) -> str:
    record = RunRecord.load(run)
    why = f": {record.error.splitlines()[0]}" if record.error else ""
    return f"{run.id} is {record.status}{why}"


def _kept(run: RunDir) -> list[str]:
    whole = next((each for each in usable_checkpoints(run) if each.whole), None)
    if whole is None:
        return ["there is no whole checkpoint"] if run.output.is_dir() else []
    return [f"the newest whole checkpoint: {whole.label}"]
