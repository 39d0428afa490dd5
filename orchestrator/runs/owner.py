"""Who owns a run: the process that holds the lock on RUN/.owner.lock, which the kernel frees with it.

The lock goes to the supervisor of a detached run as an open file, so there is no moment without an owner.
"""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import PrerequisiteError
from orchestrator.files import try_lock
from orchestrator.processes.process_tree import wait_until
from orchestrator.runs import slurm
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir

PATIENCE_S = 0.5  # for a process that only looks whether somebody holds the lock
JOB_PATIENCE_S = 120  # for the process that submitted the job, and writes its id into the record

Liveness = Literal["alive", "waiting", "ended", "unknown"]
"""What is known of that which carries a run out. `unknown` (another host, no answer of Slurm) changes nothing."""


@dataclass(frozen=True)
class OwnedRun(AbstractContextManager["OwnedRun"]):
    """A run that this process owns until `release`, or until it ends."""

    run: RunDir
    file: int  # the locked file's descriptor; a child that gets it owns the run too

    def release(self) -> None:
        os.close(self.file)

    def __exit__(self, *error: object) -> None:
        self.release()


def lock_run(run: RunDir, patience_s: float = PATIENCE_S) -> OwnedRun | None:
    """Take the lock of a run; None where another process holds it."""
    file = os.open(run.owner_lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    if wait_until(lambda: try_lock(file, run.owner_lock), patience_s, 0.02):
        return OwnedRun(run, file)
    os.close(file)
    return None


def inherited(run: RunDir, file: int) -> OwnedRun:
    """The run whose locked file this process was started with."""
    if not os.path.samestat(os.fstat(file), run.owner_lock.stat()):
        raise ValueError(f"file {file} is not the lock of {run.id}")
    os.set_inheritable(file, False)
    return OwnedRun(run, file)


def is_owned(run: RunDir) -> bool:
    """Whether some process, this one among them, holds the lock."""
    try:
        file = os.open(run.owner_lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # none was ever made, or a link lies there
        return False
    try:
        return not try_lock(file, shared=True)
    finally:
        os.close(file)


def liveness(run: RunDir, record: RunRecord, *, max_age_s: float = slurm.MAX_AGE_S) -> Liveness:
    """Whether that which carries an active run out is still there; max_age_s: how old an answer of Slurm may be."""
    return "alive" if is_owned(run) else _liveness_without_owner(record, max_age_s)


def acquire(run: RunDir, job: str = "") -> OwnedRun:
    """Become the owner of a run, as the Slurm job `job`, if any; PrerequisiteError where it may have another."""
    owned = lock_run(run, JOB_PATIENCE_S if job else PATIENCE_S)
    record = RunRecord.load(run)
    if owned is None:
        raise in_use(record)
    is_this_job = job and record.job is not None and record.job.id in ("", job)
    try:
        if job and record.stop_requested:
            raise PrerequisiteError(f"run {run.id} was stopped before Slurm job {job} began")
        if record.is_active() and not is_this_job and _liveness_without_owner(record, 1) != "ended":
            raise in_use(record)
    except PrerequisiteError:
        owned.release()
        raise
    return owned


def in_use(record: RunRecord) -> PrerequisiteError:
    """The error for what only one process may do at a time."""
    where = "" if record.is_here() else f" on {record.host}"
    owner = f"Slurm job {record.job.id}" if record.job and record.job.id else f"process {record.pid}{where}"
    return PrerequisiteError(f"run {record.id} is {record.status}: {owner} owns it", f"orchestrator stop {record.id}")


def _liveness_without_owner(record: RunRecord, max_age_s: float) -> Liveness:
    if record.job is None or not record.job.id:
        return "ended" if record.is_here() else "unknown"
    found = slurm.job_state(record.job.id, record.job.uid, max_age_s=max_age_s)
    if found is None:
        return "unknown"
    return "ended" if found.has_ended else "waiting" if found.waits else "alive"
