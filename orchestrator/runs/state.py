"""What a run is at now: its status where its owner may be gone, how far its training is, what it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from orchestrator.processes.process_tree import run_processes
from orchestrator.runs import slurm
from orchestrator.runs.owner import is_owned, liveness
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trainer_log import Event, TrainerLog, latest, step_of
from orchestrator.text import duration


def current(run: RunDir) -> RunRecord:
    """A run's record with its status now: `interrupted` where its owner is gone, `queued` where its Slurm job waits.

    Where that cannot be known the written status holds. PrerequisiteError as RunRecord.load.
    """
    record = RunRecord.load(run)
    if not record.is_active():
        return record
    found = liveness(run, record)
    if found == "waiting":
        record.status = "queued"
    elif found == "ended":
        record = RunRecord.load(run)  # it may just have written how it ended, and let go of the lock
        if record.is_active() and not is_owned(run):
            record.status = "interrupted"
    return record


def latest_event(run: RunDir, record: RunRecord) -> Event | None:
    """What the training of the last attempt has logged last; None where it has logged nothing yet."""
    if not record.attempts:
        return None
    return latest(TrainerLog(run.trainer_log, record.attempts[-1].log_start_bytes).new_events())


def lines(run: RunDir, record: RunRecord) -> list[str]:
    """What there is to say of a run that has not ended in order, by its record as `current` gives it."""
    if record.status == "interrupted":
        return [_after_interruption(run, record)]
    if record.status == "planned":
        return [f"planned: it waits for its turn in {record.group}; to begin it now: orchestrator resume {run.id}"]
    if not record.is_active():
        return []
    if record.status == "queued" and record.job is not None:
        found = slurm.job_state(record.job.id, record.job.uid) if record.job.id else None
        return [f"queued: {found.words() if found else f'Slurm job {record.job.id}'}"]
    where = "" if record.is_here() else f" on {record.host}"
    where += f", Slurm job {record.job.id}" if record.job is not None else ""
    doing = f"waits for {record.waits_for}" if record.waits_for else _progress(run, record)
    return [f"{record.status}, in process {record.pid}{where}{f': {doing}' if doing else ''}"]


def pids(processes: list[psutil.Process]) -> str:
    return ", ".join(str(process.pid) for process in processes)


@contextmanager
def timed(run: RunDir, record: RunRecord, stage: str) -> Iterator[None]:
    """Record how long a stage takes, however it ends."""
    began = time.monotonic()
    try:
        yield
    finally:
        taken_s = round(time.monotonic() - began, 3)
        record.note_attempt(run, stages_s={**record.attempts[-1].stages_s, stage: taken_s})


def usage_lines(record: RunRecord) -> list[str]:
    """What the attempts that have ended took together; nothing where none has."""
    ended_s = [(each.ended_at - each.started_at).total_seconds() for each in record.attempts if each.ended_at]
    stages: dict[str, float] = {}
    for each in record.attempts:
        stages |= {stage: stages.get(stage, 0.0) + seconds for stage, seconds in each.stages_s.items()}
    lines = []
    if ended_s:
        total_s = max(sum(ended_s), sum(stages.values()))  # ended_at is cut to seconds
        attempts = f" in {len(ended_s)} attempts" if len(ended_s) > 1 else ""
        parts = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in stages.items())
        lines.append(f"took {duration(total_s)}{attempts}" + (f": {parts}" if parts else ""))
    if record.training is not None and record.training.tokens_seen is not None:
        lines.append(f"training: {record.training.tokens_seen} input tokens")
    return lines


def _progress(run: RunDir, record: RunRecord) -> str:
    """How far the training is that is under way: 'step 12 of 100, loss 2.31, left 0:03:10'; '' where none is."""
    if record.status != "running" or not record.attempts:
        return ""
    if (event := latest_event(run, record)) is None:
        return f"step {record.attempts[-1].from_step or 0}"
    loss, left = event.get("loss"), event.get("remaining_time")
    shown = f", loss {loss:.4g}" if isinstance(loss, int | float) else ""
    return f"step {step_of(event)} of {event.get('total_steps', '?')}{shown}" + (f", left {left}" if left else "")


def _after_interruption(run: RunDir, record: RunRecord) -> str:
    why = f"its process {record.pid} has exited without recording a result"
    if record.job is not None and record.job.id:
        why = slurm.final_state(record.job.id, record.job.uid)
    if record.is_here() and not is_owned(run) and (left := run_processes(run.path)):
        return f"interrupted: {why}; still running: {pids(left)}. To end that: orchestrator stop {run.id}"
    return f"interrupted: {why}; nothing of it is still running. To continue: orchestrator resume {run.id}"
