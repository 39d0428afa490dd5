"""A run as a job of Slurm: submitted, signalled before its time limit, put back into the queue, stopped.

Covered: one job for a run, or a second one for its benchmarks; several runs as one array; what a job decides when it is
told to end; a training across the job's nodes.
Not covered: what Slurm's programs are asked (slurm.py); the script (specs/sbatch.py).
Leaves sbatch.sh, and sbatch-benchmark.sh, in the run folder.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.errors import OrchestratorError, SpecError, StageError
from orchestrator.files import atomic_write
from orchestrator.planning.session import Session
from orchestrator.processes.interruptible import uninterrupted
from orchestrator.runs import slurm
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.slurm import Job
from orchestrator.specs.sbatch import sbatch_script
from orchestrator.specs.slurm_spec import SlurmSpec, seconds_of
from orchestrator.specs.spec import RunSpec
from orchestrator.specs.spec_file import load_spec

log = logging.getLogger("orchestrator")

EARLY_S = 90  # a signal comes up to 60 s earlier than asked (sbatch --signal), and up to 30 s are rounding
KILL_WAIT_S = 60  # until what was cancelled is gone; Slurm's KillWait is 30 s
POLL_S = 0.5


def submit(session: Session, run: RunDir, spec: RunSpec, words: Sequence[str], *, with_benchmarks: bool) -> RunRecord:
    """Submit a run that this process has just made, or that has no owner.

    Args:
        session: the workspace.
        run: the run.
        spec: what it does, with a slurm section.
        words: options of the hidden command `supervise`.
        with_benchmarks: whether the spec's benchmarks belong to it.

    Raises:
        PrerequisiteError: another process owns the run, or there is no sbatch.
        StageError: Slurm refuses it.
    """
    asked = _asked_for(spec)
    after = asked.benchmark is not None and with_benchmarks and bool(spec.benchmark) and spec.train is not None
    before = RunRecord.load(run)
    record = before.model_copy()
    record.hand_over(run)
    with uninterrupted():  # a job that was submitted is in the record
        job = ""
        try:
            own = [*words, *(["--no-benchmark"] if after and "--no-benchmark" not in words else [])]
            job = _submit(session, asked, [run], own, run.sbatch, name=run.id)
            record.update(run, job=_job(job))
            if after:
                second = _submit(
                    session, asked.for_benchmark(), [run], words, run.sbatch_benchmark, name=run.id, after=job
                )
                record.update(run, benchmark_job=_job(second))
        except OrchestratorError as error:
            _take_back(run, record, before, job, error)
            raise
    return record


def submit_array(
    session: Session, runs: Sequence[RunDir], spec: RunSpec, words: Sequence[str], *, name: str, at_once: int | None
) -> str:
    """Submit runs that this process has just made as the tasks of one job; the job's id.

    Args:
        session: the workspace.
        runs: the runs, whose specs ask Slurm for the same.
        spec: that of one of them.
        words: options of the hidden command `supervise`.
        name: the job's name.
        at_once: how many may run at once; None: as many as there is room for.

    Raises:
        PrerequisiteError: another process owns one, or there is no sbatch.
        StageError: Slurm refuses it.
    """
    before = [RunRecord.load(run) for run in runs]
    records = [each.model_copy() for each in before]
    for run, record in zip(runs, records, strict=True):
        record.hand_over(run)
    with uninterrupted():
        try:
            job = _submit(session, _asked_for(spec), runs, words, runs[0].sbatch, name=name, at_once=at_once)
        except OrchestratorError as error:
            for run, record, past in zip(runs, records, before, strict=True):
                _take_back(run, record, past, "", error)
            raise
        for task, (run, record) in enumerate(zip(runs, records, strict=True)):
            record.update(run, job=_job(f"{job}_{task}" if len(runs) > 1 else job))
    return job


def goes_on_later(run: RunDir, record: RunRecord) -> str | None:
    """What is to be done by a job that was told to end: None where it goes on later, which the record then says.

    Called once the training is stopped, with its checkpoint. Where Slurm itself is ending the job (a preemption, a
    cancellation) what becomes of it is Slurm's to say. Where its time limit is near it goes back into the queue.

    Returns:
        Why it goes on never: '' where it was told so, else a sentence.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm tells those whom it puts back into the queue to end
    job = record.job
    if job is None or RunRecord.load(run).stop_requested:
        return ""
    spec = load_spec(run.spec)
    found, asked = slurm.job_state(job.id, job.uid, max_age_s=0), _asked_for(spec)
    if found is None:
        return "Slurm could not be asked whether that was the time limit"
    if found.state != "RUNNING":
        log.warning("%s: Slurm ends it, or has it wait", found.words())
        record.leave_to(run, job, "stopped")
        return None
    left = seconds_of(found.time_left)
    if left is None or left > asked.signal_s + EARLY_S:
        return ""
    if reason := _why_not_again(run, record, job, spec):
        return f"the time limit of Slurm job {job.id} came, and it is not queued again: {reason}"
    record.leave_to(run, job.model_copy(update={"requeues": job.requeues + 1}), "stopped")
    try:
        slurm.requeue(job.id)
    except OrchestratorError as error:
        return f"the time limit of Slurm job {job.id} came, and it could not be queued again: {error.message}"
    log.warning("the time limit is near: Slurm job %s is queued again, and goes on from its checkpoint", job.id)
    return None


def stop_job(run: RunDir, record: RunRecord, grace_s: float) -> list[str]:
    """Stop a run that a job carries out, or is to; what came of it, in lines.

    Args:
        run: the run.
        record: its record, which is active.
        grace_s: how long the job may take to save a checkpoint; 0: none is saved.

    Raises:
        PrerequisiteError, StageError: Slurm cannot be told, or the job does not end.
    """
    record.update(run, stop_requested=True)  # first: from here on nothing is queued again
    jobs = [job for job in (record.benchmark_job, record.job) if job is not None and job.id]
    for job in jobs[:-1]:
        slurm.cancel(job.id)
    job = jobs[-1]
    found = slurm.job_state(job.id, job.uid, max_age_s=0)
    if found is not None and found.state == "RUNNING" and grace_s > 0:
        slurm.ask_to_end(job.id)
        _wait(lambda: not _is_under_way(job), grace_s)
    forced = _is_under_way(job)
    if forced or (found is not None and found.waits):
        slurm.cancel(job.id, at_once=forced)
    if not _wait(lambda: not _is_under_way(job), KILL_WAIT_S):
        raise StageError(
            f"Slurm job {job.id} of {run.id} has not ended: {slurm.last_words(job.id, job.uid)}",
            f"its processes may wait for a file system: scontrol show job {job.id}",
        )
    after = RunRecord.load(run)
    if after.is_active() or after.status == "interrupted":
        why = f"cancelled: it had not stopped within {grace_s:g} s" if forced else "cancelled before it ran"
        after.end(run, "stopped", f"Slurm job {job.id} was {why}" if after.attempts or not forced else why)
    return [f"Slurm job {job.id} is over"]


def across_nodes(spec: RunSpec, run: RunDir) -> tuple[list[str], dict[str, str]]:
    """How a job starts the training on each of its nodes: the words before llamafactory-cli, and variables.

    Nothing of either where it has one node.
    """
    asked = spec.compute.slurm
    if asked is None or asked.nodes == 1:
        return [], {}
    nodes, package = asked.nodes, Path(__file__).resolve().parent.parent
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    words += [f"--cpus-per-task={asked.cpus_per_task}"] * (asked.cpus_per_task is not None)  # not inherited since 22.05
    words += [f"--chdir={package.parent}", sys.executable, "-m", f"{package.name}.processes.node", str(run.path)]
    first = os.environ.get("SLURMD_NODENAME", "")
    port = spec.compute.master_port or 20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10_000
    variables = {"MASTER_ADDR": slurm.node_address(first), "MASTER_PORT": str(port), "NNODES": str(nodes)}
    return words, {"FORCE_TORCHRUN": "1", **variables}


def _asked_for(spec: RunSpec) -> SlurmSpec:
    if spec.compute.slurm is None:
        raise SpecError(f"{spec.name} has no compute.slurm: it is no job of Slurm")
    return spec.compute.slurm


def _submit(
    session: Session,
    asked: SlurmSpec,
    runs: Sequence[RunDir],
    words: Sequence[str],
    script: Path,
    *,
    name: str,
    after: str = "",
    at_once: int | None = None,
) -> str:
    folders = [run.path for run in runs]
    text = sbatch_script(session.renderer, asked, folders, words, name=name, after=after, at_once=at_once)
    for run in runs:
        run.supervisor_log.parent.mkdir(exist_ok=True)
    atomic_write(script, text)
    try:
        return slurm.submit(script)
    except StageError as error:
        raise StageError(f"Slurm does not take the job: {error.message}", f"sbatch {script} says it again") from error


def _job(job: str) -> Job:
    return Job(id=job, uid=os.getuid(), submitted_at=now())


def _take_back(run: RunDir, record: RunRecord, before: RunRecord, job: str, error: OrchestratorError) -> None:
    """The run is as it was before; one that was new has failed."""
    if job:
        slurm.cancel(job)
    status = "failed" if before.is_active() else before.status
    ended_at = None if before.awaits_turn else before.ended_at or now()
    record.update(
        run, status=status, error=error.message, ended_at=ended_at, job=before.job, awaits_turn=before.awaits_turn
    )


def _why_not_again(run: RunDir, record: RunRecord, job: Job, spec: RunSpec) -> str:
    asked = _asked_for(spec)
    if not asked.requeue:
        return "requeue is false"
    if job.requeues >= asked.max_requeues:
        return f"it was {job.requeues} times, and max_requeues is {asked.max_requeues}"
    begun = record.attempts[-1].from_step
    if record.training is not None or spec.train is None:  # the benchmarks go on answer by answer
        return ""
    step = next((each.step for each in usable_checkpoints(run) if each.whole), 0)
    return "" if begun is not None and step > begun else f"it came to no checkpoint beyond step {begun or 0}"


def _is_under_way(job: Job) -> bool:
    found = slurm.job_state(job.id, job.uid, max_age_s=0)
    return found is not None and not found.has_ended


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return bool(true)
