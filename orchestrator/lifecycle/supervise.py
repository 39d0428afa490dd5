"""A run that is carried out by a process of its own, a supervisor, which outlives the terminal it was started on.

Covered: starting the supervisor, and waiting until it owns the run and is past its checks, or why it is not.
Not covered: what the supervisor does (pipeline.carry_out).
Leaves logs/supervisor.log.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import Interrupted, OrchestratorError, PrerequisiteError, SpecError, StageError
from orchestrator.processes.family import RUN_ENV
from orchestrator.processes.process import Child, start
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir

POLL_S = 0.05
_KINDS: dict[int, type[OrchestratorError]] = {kind.exit_code: kind for kind in (SpecError, PrerequisiteError)}


def detach(run: RunDir, words: Sequence[str]) -> RunRecord:
    """Start the supervisor of a run.

    Args:
        run: a run without an owner, or one that this process owns and has just made.
        words: options of the hidden command `supervise`.

    Returns:
        The record, once the supervisor owns the run and has begun, waits for its devices, or is through with it.

    Raises:
        SpecError, PrerequisiteError, StageError: the supervisor ended before, and why.
    """
    child = start_supervisor(run.path, run.supervisor_log, words, {RUN_ENV: str(run.path)})
    try:
        return _wait_until_under_way(run, child)
    except BaseException:
        if child.poll() is None:  # we were told to stop before it had begun
            child.stop(5)
        raise


def start_supervisor(
    folder: Path, log: Path, words: Sequence[str], environment: Mapping[str, str], death_signal: int | None = None
) -> Child:
    """Start `supervise` for a run's or a group's folder.

    Args:
        folder: what it carries out.
        log: what it says goes there.
        words: its options.
        environment: variables that it has besides ours.
        death_signal: what it gets when we die; None: it is meant to outlive us.
    """
    package = Path(__file__).resolve().parent.parent
    # Started in the package's folder: elsewhere Python would take the first `orchestrator` that lies there.
    argv = [sys.executable, "-m", package.name, "supervise", str(folder), "--cwd", _working_folder(folder), *words]
    return start(argv, log=log, cwd=package.parent, env={**os.environ, **environment}, death_signal=death_signal)


def _wait_until_under_way(run: RunDir, child: Child) -> RunRecord:
    while True:
        status = child.poll()  # before the record is read: what it wrote last is seen
        record = RunRecord.load(run)
        is_its = record.pid == child.pid
        if is_its and (record.status not in ("created", "interrupted", "failed", "stopped") or record.waits_for):
            return record
        if status is not None and not is_its and record.is_active():
            raise record.in_use()  # another was quicker, and ended this one as something that was left over
        if status is not None:
            raise why_not(f"run {run.id}", child, record.error if is_its else None, status)
        time.sleep(POLL_S)


def why_not(what: str, child: Child, error: str | None, status: int) -> OrchestratorError | Interrupted:
    """The error of a supervisor that ended before it had begun.

    Args:
        what: what it was to carry out: 'run demo-20261124-101500'.
        child: the supervisor.
        error: what it said, where that is known.
        status: its exit status.
    """
    said = error or f"last lines of {child.log}:\n{child.log_tail()}"
    if status == Interrupted.exit_code:
        return Interrupted(f"{what} was stopped: {said}")
    return _KINDS.get(status, StageError)(f"{what} did not come to run: {said}", f"its log: {child.log}")


def _working_folder(folder: Path) -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return str(folder)
