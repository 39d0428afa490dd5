"""Runs as jobs of Slurm: submitted, signalled before their time limit, put back into the queue, stopped."""

import logging
import os
import signal
from collections.abc import Sequence

from orchestrator.errors import OrchestratorError, SpecError, StageError
from orchestrator.files import atomic_write
from orchestrator.planning.session import Session
from orchestrator.processes.interruptible import defer_signals
from orchestrator.processes.process import own_argv
from orchestrator.processes.process_tree import wait_until
from orchestrator.runs import slurm
from orchestrator.runs.owner import OwnedRun
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.slurm import Job
from orchestrator.specs.compute_spec import SlurmSpec, parse_slurm_time
from orchestrator.specs.spec import RunSpec
from orchestrator.specs.spec_file import load_spec

log = logging.getLogger("orchestrator")

EARLY_S = 90  # a signal comes up to 60 s earlier than wished for (sbatch --signal), and up to 30 s are rounding
KILL_WAIT_S = 60  # until what was cancelled is gone; Slurm's KillWait is 30 s
POLL_S = 0.5


def submit(session: Session, runs: Sequence[OwnedRun], spec: RunSpec, name: str) -> None:
    """Submit runs as one job, several as the tasks of an array; this process owns them until then.

    `spec`: of one of them, they need the same of Slurm. Raises StageError: Slurm refuses it; the records say `failed`.
    """
    records = [(owned.run, RunRecord.load(owned.run)) for owned in runs]
    with defer_signals():  # a job that was submitted is in the record
        try:
            for run, record in records:
                record.submit_to_job(run)
            id = _submit(session, _slurm_of(spec), [owned.run for owned in runs], name)
            for task, (run, record) in enumerate(records):
                own = f"{id}_{task}" if len(runs) > 1 else id
                record.update(run, job=Job(id=own, uid=os.getuid(), submitted_at=now()))
        except OrchestratorError as error:
            for run, record in records:
                record.update(run, job=None)
                record.end(run, "failed", error.message)
            raise
        finally:
            for owned in runs:
                owned.release()


def stop(run: RunDir, record: RunRecord, job: Job, grace_s: float) -> str:
    """End the job that carries a run out, or is to; with a grace of 0 no checkpoint is saved. Why, if it was cancelled.

    Raises StageError: Slurm does not answer, so nothing was changed; or the job does not end.
    """
    found = slurm.job_state(job.id, job.uid, max_age_s=0)
    if found is None:
        raise StageError(
            f"Slurm does not say whether job {job.id} of {run.id} is under way: nothing was changed",
            "squeue says why; then try again",
        )
    record.update(run, stop_requested=True)  # first: from here on nothing is queued again

    def has_ended() -> bool:  # no answer is none
        now_is = slurm.job_state(job.id, job.uid, max_age_s=0)
        return now_is is not None and now_is.has_ended

    if found.state == "RUNNING" and grace_s > 0:
        slurm.signal_term(job.id)
        wait_until(has_ended, grace_s, POLL_S)
    is_forced = not found.waits and not has_ended()
    if is_forced or found.waits:
        slurm.cancel(job.id, kill=is_forced)
    if not wait_until(has_ended, KILL_WAIT_S, POLL_S):
        raise StageError(
            f"Slurm job {job.id} of {run.id} has not ended: {slurm.final_state(job.id, job.uid)}",
            f"its processes may wait for a file system: scontrol show job {job.id}",
        )
    why = f"it had not stopped within {grace_s:g} s" if is_forced else "before it ran"
    return f"Slurm job {job.id} was cancelled: {why}"


def requeue_or_reason(run: RunDir, record: RunRecord) -> str | None:
    """Put a job that got SIGTERM, and has saved a checkpoint, back into the queue where its time limit is near.

    None: it is resumed later, by Slurm itself where it preempts it. Else why not: '' where a user stopped it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it to those whom it puts back into the queue
    job = record.job
    if job is None or RunRecord.load(run).stop_requested:
        return ""
    spec = load_spec(run.spec)
    found, wanted = slurm.job_state(job.id, job.uid, max_age_s=0), _slurm_of(spec)
    if found is None:
        return "Slurm does not say whether that was the time limit"
    if found.state != "RUNNING":
        log.warning("%s: Slurm ends it, or has it wait", found.words())
        record.hand_to_job(run, job)
        return None
    left = parse_slurm_time(found.time_left)
    if left is None or left > wanted.signal_s + EARLY_S:
        return ""
    if reason := _why_not_again(run, record, job, spec):
        return f"the time limit of Slurm job {job.id} came, and it is not queued again: {reason}"
    record.hand_to_job(run, job.model_copy(update={"requeues": job.requeues + 1}))
    try:
        slurm.requeue(job.id)
    except OrchestratorError as error:
        return f"the time limit of Slurm job {job.id} came, and it could not be queued again: {error.message}"
    log.warning("the time limit is near: Slurm job %s is queued again, and resumes from its checkpoint", job.id)
    return None


def across_nodes(spec: RunSpec, run: RunDir) -> tuple[list[str], dict[str, str]]:
    """How a job starts the training on each of several nodes: the words before llamafactory-cli, and variables."""
    wanted = _slurm_of(spec)
    nodes = wanted.nodes
    if nodes == 1:
        return [], {}
    argv = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    if wanted.cpus_per_task is not None:  # not inherited since 22.05
        argv.append(f"--cpus-per-task={wanted.cpus_per_task}")
    argv += own_argv(str(run.path), module="processes.node")
    first = os.environ.get("SLURMD_NODENAME", "")
    port = spec.compute.master_port or 20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10_000
    variables = {"MASTER_ADDR": slurm.node_address(first), "MASTER_PORT": str(port), "NNODES": str(nodes)}
    return argv, {"FORCE_TORCHRUN": "1", **variables}


def _slurm_of(spec: RunSpec) -> SlurmSpec:
    if spec.compute.slurm is None:
        raise SpecError(f"{spec.name} has no compute.slurm: it is no job of Slurm")
    return spec.compute.slurm


def _submit(session: Session, wanted: SlurmSpec, runs: Sequence[RunDir], name: str) -> str:
    script, folders = runs[0].sbatch, [run.path for run in runs]
    for run in runs:
        run.supervisor_log.parent.mkdir(exist_ok=True)
    atomic_write(script, session.renderer.sbatch(wanted, folders, workspace=session.workspace.root, name=name))
    try:
        return slurm.submit(script)
    except StageError as error:
        raise StageError(f"Slurm refuses the job: {error.message}", f"sbatch {script} says it again") from error


def _why_not_again(run: RunDir, record: RunRecord, job: Job, spec: RunSpec) -> str:
    wanted = _slurm_of(spec)
    if not wanted.requeue:
        return "requeue is false"
    if job.requeues >= wanted.max_requeues:
        return f"it was {job.requeues} times, and max_requeues is {wanted.max_requeues}"
    begun = record.attempts[-1].from_step
    if record.training is not None or spec.train is None:  # the benchmarks continue answer by answer
        return ""
    step = next((each.step for each in usable_checkpoints(run) if each.complete), 0)
    return "" if begun is not None and step > begun else f"it came to no checkpoint beyond step {begun or 0}"
