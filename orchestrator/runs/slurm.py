"""Slurm's programs: squeue, sbatch, scancel, scontrol, sinfo."""

import math
import os
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import OrchestratorError, StageError
from orchestrator.processes.process import run_short

# squeue(1), JOB STATE CODES; any other is of a job that has its nodes.
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
MAX_AGE_S = 10.0
"""One squeue call answers for all jobs of a user, and is kept for as long: a list of many runs asks once."""
_answers: "dict[int, tuple[float, dict[str, JobState] | None]]" = {}  # by user: when squeue was called, its answer


class Job(BaseModel):
    """A job that carries a run out, as the run's record keeps it."""

    model_config = ConfigDict(extra="allow")

    id: str = Field("", pattern=r"^([0-9]+(_[0-9]+)?)?$")  # a word of scancel's command line
    """ARRAY_TASK for a task of an array; '': it is being submitted."""
    uid: int
    submitted_at: datetime
    requeues: int = 0  # how often its time limit has put it back into the queue


@dataclass(frozen=True)
class JobState:
    """A job as Slurm sees it."""

    id: str
    state: str  # PENDING, RUNNING, TIMEOUT, ...
    reason: str = ""  # why it waits or failed, in Slurm's word
    time_left: str = ""
    start: str = ""  # when it started, or is expected to
    nodes: str = ""

    @property
    def waits(self) -> bool:
        return self.state in _WAITING

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    def words(self) -> str:
        """'Slurm job 12 is PENDING (Priority), expected to start 2026-11-25T01:02:03'."""
        reason = f" ({self.reason})" if self.reason else ""
        expected = f", expected to start {self.start}" if self.waits and self.start else ""
        there = f" on {self.nodes}" if self.nodes and not self.waits and not self.has_ended else ""
        held = f"; scontrol release {self.id} lets it begin" if self.waits and "held" in self.reason.lower() else ""
        return f"Slurm job {self.id} is {self.state}{reason}{there}{expected}{held}"


def job_state(job: str, uid: int, *, max_age_s: float = MAX_AGE_S) -> JobState | None:
    """The state of a job, at most max_age_s old; one that Slurm forgot has ended. None: Slurm does not answer."""
    for age in (max_age_s, 1.0):  # it may have been submitted since
        asked_at, jobs = _answers.get(uid, (-math.inf, None))
        if time.monotonic() - asked_at > age:
            jobs = _squeue(uid)
            _answers[uid] = (time.monotonic(), jobs)
        if jobs is None or job in jobs:
            break
    return None if jobs is None else jobs.get(job) or JobState(job, "COMPLETED", "or Slurm knows it no more")


def final_state(job: str, uid: int) -> str:
    """What became of a job that has ended, as a part of a sentence."""
    found = job_state(job, uid)
    return found.words() if found is not None else f"Slurm job {job}, of which Slurm says nothing here"


def submit(script: Path) -> str:
    """Submit a script; the job's id. PrerequisiteError: sbatch is not there; StageError: it refuses it."""
    answer = run_short(["sbatch", "--parsable", str(script)], timeout_s=120).strip()
    _answers.clear()
    job = answer.splitlines()[-1].partition(";")[0] if answer else ""  # id;cluster
    if not job.isdecimal():
        raise StageError(f"sbatch gave no id of a job: {answer[:200]!r}")
    return job


def signal_term(job: str) -> None:
    """Send SIGTERM to the job's first process alone, which ends the others."""
    run_short(["scancel", "--batch", "--signal=TERM", job])


def cancel(job: str, *, kill: bool = False) -> None:
    """End a job: SIGTERM to all its processes, and after the cluster's KillWait SIGKILL; or that at once."""
    if kill:
        run_short(["scancel", "--full", "--signal=KILL", job])
    run_short(["scancel", job])
    _answers.clear()


def requeue(job: str) -> None:
    """Put a job back into the queue; its processes are ended."""
    run_short(["scontrol", "requeue", job])
    _answers.clear()


def node_address(node: str) -> str:
    """The address that Slurm itself reaches a node at."""
    lines = run_short(["sinfo", "--noheader", f"--nodes={node}", "--format=%o"]).split()
    return lines[0] if lines else node


def own_job() -> str:
    """The job that this process is in; '' outside Slurm."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _squeue(uid: int) -> dict[str, JobState] | None:
    format_ = "%i|%T|%L|%S|%N|%r"  # %r last: a reason may hold anything
    try:
        text = run_short(["squeue", "--noheader", "--array", "--states=all", f"--user={uid}", f"--format={format_}"])
    except OrchestratorError:
        return None
    found = {}
    for parts in (line.split("|", 5) for line in text.splitlines()):
        if len(parts) == 6:
            job, state, left, start, nodes, reason = (part.strip() for part in parts)
            shown = ("" if each in ("None", "N/A", "(null)") else each for each in (reason, left, start, nodes))
            found[job] = JobState(job, state, *shown)
    return found
