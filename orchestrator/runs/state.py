"""What a run is at now, in words: how far its training is, what it waits for, what a killed owner left running.

Covered: runs that go on, that wait, that were interrupted.
Not covered: what came of a run that ended (record.py has it).
"""

import psutil

from orchestrator.processes.family import run_family
from orchestrator.runs import slurm
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trainer_log import Event, TrainerLog, latest, step_of
from orchestrator.text import escape_controls


def latest_event(run: RunDir, record: RunRecord) -> Event | None:
    """What the training that goes on now has logged last; None where none does, or it has logged nothing yet."""
    if record.status != "running" or not record.attempts:
        return None
    return latest(TrainerLog(run.trainer_log, record.attempts[-1].log_start_bytes).new_events())


def progress(run: RunDir, record: RunRecord) -> str:
    """How far the training is that goes on now: 'step 12 of 100, loss 2.31, left 0:03:10'; '' where none does."""
    if record.status != "running" or not record.attempts:
        return ""
    event = latest_event(run, record)
    if event is None:
        return f"step {record.attempts[-1].from_step or 0}"
    loss, left = event.get("loss"), event.get("remaining_time")
    parts = [f"step {step_of(event)} of {escape_controls(str(event.get('total_steps', '?')))}"]
    parts += [f"loss {loss:.4g}"] if isinstance(loss, int | float) else []
    parts += [f"left {escape_controls(str(left))}"] if left else []
    return ", ".join(parts)


def lines(run: RunDir, record: RunRecord) -> list[str]:
    """What there is to say of a run that has not ended in order; nothing of others."""
    if record.status == "interrupted":
        return [_after_interruption(run, record)]
    if record.awaits_turn:
        return [f"not begun: it waits for its turn in {record.group}; to begin it now: orchestrator resume {run.id}"]
    if not record.is_active():
        return []
    if record.status == "queued" and record.job is not None:
        found = slurm.job_state(record.job.id, record.job.uid) if record.job.id else None
        return [f"queued: {found.words() if found else f'Slurm job {record.job.id}'}"]
    where = "" if record.is_here() else f" on {record.host}"
    where += f", Slurm job {record.job.id}" if record.job is not None else ""
    said = f"waits for {record.waits_for}" if record.waits_for else progress(run, record)
    return [f"{record.status}, in process {record.pid}{where}{f': {said}' if said else ''}"]


def left_running(run: RunDir, record: RunRecord) -> list[psutil.Process]:
    """What an owner that is gone left running."""
    return run_family(run.path) if record.is_here() and not (record.is_active() and record.owner_lives()) else []


def pids(processes: list[psutil.Process]) -> str:
    return ", ".join(str(process.pid) for process in processes)


def _after_interruption(run: RunDir, record: RunRecord) -> str:
    said = f"interrupted: its process {record.pid} is gone without a word"
    if record.job is not None and record.job.id:
        said = f"interrupted: {slurm.last_words(record.job.id, record.job.uid)}"
    if left := left_running(run, record):
        return f"{said}; left running: {pids(left)}. To end that: orchestrator stop {run.id}"
    return f"{said}; nothing of it is left running. To go on: orchestrator resume {run.id}"
