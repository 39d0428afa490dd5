"""What the hidden command `supervise FOLDER` does: carry a run or a group out, as its record says."""

import os
from pathlib import Path

from orchestrator.lifecycle.new_run import RunOptions
from orchestrator.lifecycle.pipeline import carry_out
from orchestrator.lifecycle.scheduler import run_group
from orchestrator.planning.session import Session
from orchestrator.runs import slurm
from orchestrator.runs.owner import acquire, inherited
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import GroupDir, RunDir


def supervise(folder: Path, workspace: Path | None, lock: int | None) -> None:
    """Carry a run or a group out.

    `lock` is the open file that the run's owner started this process with; None: a group, or a job of Slurm.
    """
    if GroupDir(folder).file.is_file():
        run_group(Session.open(workspace), GroupDir(folder))
        return
    run = RunDir(folder)
    job = slurm.own_job() if lock is None else ""
    owned = acquire(run, job) if lock is None else inherited(run, lock)
    record = RunRecord.load(run)
    if job and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # its own checkpoints are newer
        record.update(run, request=record.request.model_copy(update={"checkpoint": None}))
    archives = record.request.archives
    session = Session.open(workspace, Path(archives) if archives is not None else None)
    carry_out(session, owned, RunOptions(job=job))
