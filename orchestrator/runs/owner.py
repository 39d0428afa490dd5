"""Who owns a run: the process that holds the lock on RUN/.owner.lock, which the kernel frees with it.

The lock goes to the supervisor of a detached run as an open file, so there is no moment without an owner.
"""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from orchestrator.errors import PrerequisiteError
from orchestrator.runs import slurm
from orchestrator.runs.record import RunRecord, lock_error
from orchestrator.runs.rundir import RunDir

PATIENCE_S = 0.5  # for a process that only looks whether somebody holds the lock
JOB_PATIENCE_S = 120  # for the process that submitted the job, and writes its id into the record

Liveness = Literal["alive", "waiting", "ended", "unknown"]
"""What is known of that which carries a run out. `unknown` (another host, a Slurm that does not answer) changes
nothing."""


@dataclass(frozen=True)
class OwnedRun:
    """A run that this process owns until `release`, or until it ends."""

    run: RunDir
    file: int
    """The locked file's descriptor; a child that gets it owns the run too."""

    def release(self) -> None:
        os.close(self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def lock_file(run: RunDir) -> Path:
    return run.path / ".owner.lock"


def lock_run(run: RunDir, patience_s: float = PATIENCE_S) -> OwnedRun | None:
    """Take the lock of a run; None where another process holds it.

    Raises:
        PrerequisiteError: the file system has no locks.
    """
    file = os.open(lock_file(run), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    deadline = time.monotonic() + patience_s
    while not _lock(file, fcntl.LOCK_EX, lock_file(run)):
        if time.monotonic() > deadline:
            os.close(file)
            return None
        time.sleep(0.02)
    return OwnedRun(run, file)


def inherited(run: RunDir, file: int) -> OwnedRun:
    """The run whose locked file this process was started with."""
    if not os.path.samestat(os.fstat(file), lock_file(run).stat()):
        raise ValueError(f"file {file} is not the lock of {run.id}")
    os.set_inheritable(file, False)
    return OwnedRun(run, file)


def is_owned(run: RunDir) -> bool:
    """Whether some process, this one among them, holds the lock."""
    try:
        file = os.open(lock_file(run), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # none was ever made, or a link lies there
        return False
    try:
        return not _lock(file, fcntl.LOCK_SH, lock_file(run))
    finally:
        os.close(file)


def liveness(run: RunDir, record: RunRecord, *, max_age_s: float | None = None) -> Liveness:
    """Whether that which carries a run out is still there.

    Args:
        run: the run.
        record: its record, which is active.
        max_age_s: how old an answer of Slurm may be; None: some seconds.
    """
    return "alive" if is_owned(run) else liveness_without_owner(record, max_age_s=max_age_s)


def liveness_without_owner(record: RunRecord, *, max_age_s: float | None = None) -> Liveness:
    """The same of a run whose lock nobody holds."""
    if record.job is None or not record.job.id:
        return "ended" if record.is_here() else "unknown"
    found = slurm.job_state(record.job.id, record.job.uid, max_age_s=max_age_s)
    if found is None:
        return "unknown"
    return "ended" if found.has_ended else "waiting" if found.waits else "alive"


def acquire(run: RunDir, job: str = "") -> OwnedRun:
    """Become the owner of a run that nothing carries out.

    Args:
        run: the run.
        job: the Slurm job that this process is; '': none.

    Raises:
        PrerequisiteError: the run has an owner, or it cannot be known whether it has; or its record is damaged.
    """
    owned = lock_run(run, JOB_PATIENCE_S if job else PATIENCE_S)
    record = RunRecord.load(run)
    if owned is None:
        raise in_use(record)
    is_this_job = job and record.job is not None and record.job.id in ("", job)
    problem = None
    if job and record.stop_requested:
        problem = PrerequisiteError(f"run {run.id} was stopped before Slurm job {job} began")
    elif record.is_active() and not is_this_job and liveness_without_owner(record, max_age_s=1) != "ended":
        problem = in_use(record)
    if problem is not None:
        owned.release()
        raise problem
    return owned


def in_use(record: RunRecord) -> PrerequisiteError:
    """The error for what only one process may do at a time."""
    where = "" if record.is_here() else f" on {record.host}"
    owner = f"Slurm job {record.job.id}" if record.job and record.job.id else f"process {record.pid}{where}"
    return PrerequisiteError(f"run {record.id} is {record.status}: {owner} owns it", f"orchestrator stop {record.id}")


def _lock(file: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise lock_error(path, error) from error
    return True
