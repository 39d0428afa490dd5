"""Runs carried out by processes of this machine: supervisors, which outlive the terminal that they were started on."""

import os
import signal
import time
from contextlib import suppress

import psutil

from orchestrator.errors import Interrupted, OrchestratorError, PrerequisiteError, SpecError, StageError
from orchestrator.planning.session import Session
from orchestrator.processes.interruptible import defer_signals
from orchestrator.processes.process import Child, own_argv, start
from orchestrator.processes.process_tree import (
    GRACE_S,
    RUN_ENV,
    has_open,
    is_of_a_command,
    run_processes,
    send,
    terminate_run,
    wait_until,
    wait_until_gone,
)
from orchestrator.runs.owner import OwnedRun, is_owned
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.state import pids

POLL_S = 0.05
SETTLE_S = 0.5  # for an owner to hear that it is to stop before its children are ended: it would call that a failure
OWNER_EXIT_S = 10  # for an owner to write its record once its children are gone
STOP_GRACE_S = GRACE_S + OWNER_EXIT_S  # of `stop`: the owner's own, and that
_KINDS: dict[int, type[OrchestratorError | Interrupted]] = {
    kind.exit_code: kind for kind in (SpecError, PrerequisiteError, Interrupted)
}


def submit(session: Session, owned: OwnedRun) -> None:
    """Start a supervisor for a run, and wait until it has begun, or waits for its devices; an error if it ends."""
    child = start_supervisor(session, owned.run, owned)
    try:
        _wait_until_begun(owned.run, child)
    except BaseException:
        if child.poll() is None:  # we were stopped before it had begun
            child.stop(5)
        raise


def start_supervisor(
    session: Session, of: RunDir | GroupDir, owned: OwnedRun | None, death_signal: int | None = None
) -> Child:
    """Start `supervise` for a run, which this process owns no longer then, or for a group (`owned` is None)."""
    locks = [] if owned is None else [owned.file]
    words = ["--workspace", str(session.workspace.root), *(f"--lock={file}" for file in locks)]
    env = {**os.environ, **({} if owned is None else {RUN_ENV: str(of.path)})}
    argv, log = own_argv("supervise", str(of.path), *words), of.supervisor_log
    with defer_signals():
        try:
            return start(argv, log=log, cwd=None, env=env, death_signal=death_signal, pass_fds=locks)
        finally:
            if owned is not None:
                owned.release()


def supervisor_error(what: str, child: Child, status: int, error: str | None = None) -> OrchestratorError | Interrupted:
    """The error of a supervisor that ended before it had begun to carry out 'run demo-20261124-101500', say."""
    why = error or f"last lines of {child.log}:\n{child.log_tail()}"
    return _KINDS.get(status, StageError)(f"{what} did not start: {why}", f"its log: {child.log}")


def stop(run: RunDir, record: RunRecord, grace_s: float) -> str:
    """End a run: its owner gets SIGTERM and the grace, then SIGKILL as all its processes; why, if it was killed.

    Raises PrerequisiteError: on another host, or no owner is found; StageError: a process cannot be ended.
    """
    if not record.is_here():
        raise PrerequisiteError(
            f"run {record.id} is {record.status} on {record.host}, which cannot be reached from here",
            f"there: orchestrator stop {record.id}; or, where it is gone for good, here: "
            f"orchestrator stop {record.id} --host-is-gone",
        )
    owner = _owner(run)
    if owner is not None:
        record.update(run, stop_requested=True)
        send([owner], signal.SIGTERM)
        if not wait_until(lambda: not is_owned(run) and not run_processes(run.path), max(grace_s, SETTLE_S), 0.1):
            _kill(run, owner)
    end_orphans(run, grace_s if owner is None else 0)
    return f"killed: it had not stopped within {grace_s:g} s"


def end_orphans(run: RunDir, grace_s: float = GRACE_S) -> str:
    """End what an owner that is gone left running: it may still write into output/. Their pids, '' where none was left.

    Raises StageError: one cannot be ended.
    """

    def orphans() -> list[psutil.Process]:  # an export, say, that a command still waits for, is none
        return [process for process in run_processes(run.path) if not is_of_a_command(process)]

    found = orphans()
    if found:
        terminate_run(orphans, grace_s)
    if left := orphans():
        raise StageError(
            f"processes of {run.id} cannot be ended: {pids(left)}",
            "they wait for a device or a file system, or are another user's: ps -o pid,stat,wchan,cmd -p PID",
        )
    return pids(found)


def _wait_until_begun(run: RunDir, child: Child) -> None:
    while True:
        status = child.poll()  # before the record is read: what it wrote last is seen
        record = RunRecord.load(run)
        is_its = bool(record.attempts) and record.attempts[-1].pid == child.pid
        if is_its and (record.waits_for or record.attempts[-1].status in ("running", "done")):
            return
        if status is not None:
            raise supervisor_error(f"run {run.id}", child, status, record.error if is_its else None)
        time.sleep(POLL_S)


def _owner(run: RunDir) -> psutil.Process | None:
    """The process that holds the run's lock and is named in its record; None where nobody holds it."""
    for _ in range(400):  # one that has just become the owner is not in the record yet
        if not is_owned(run):
            return None
        pid = RunRecord.load(run).pid
        with suppress(psutil.NoSuchProcess):
            if has_open(process := psutil.Process(pid), run.owner_lock):
                return process
        time.sleep(POLL_S)
    raise PrerequisiteError(
        f"run {run.id} has an owner, but process {pid} is not it, or is another user's",
        f"fuser {run.owner_lock} lists who holds its lock",
    )


def _kill(run: RunDir, owner: psutil.Process) -> None:
    """The owner last: it writes into the record how the run ended."""
    send([process for process in run_processes(run.path) if process != owner], signal.SIGKILL)
    wait_until(lambda: not is_owned(run), OWNER_EXIT_S)
    left = [*([owner] if is_owned(run) else []), *run_processes(run.path)]
    send(left, signal.SIGKILL)
    wait_until_gone(left)
