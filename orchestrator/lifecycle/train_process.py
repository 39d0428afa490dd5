"""A run folder with train.yaml in, a trained checkpoint in output/ out: `llamafactory-cli train` as a child.

Success is judged from the files that LLaMA-Factory leaves: its exit status is 0 after a SIGTERM too.
"""

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import Interrupted, StageError
from orchestrator.lifecycle.training_results import problems, training_of
from orchestrator.models.checkpoints import SENTINEL
from orchestrator.processes.interruptible import defer_signals
from orchestrator.processes.process import Child, child_environment, repro_command, start
from orchestrator.processes.process_tree import GRACE_S, RUN_ENV
from orchestrator.runs.machine import Machine
from orchestrator.runs.record_parts import Training
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trainer_log import StepBar, TrainerLog, close_torn_line
from orchestrator.upstream.installation import Installation

log = logging.getLogger("orchestrator")

QUIET_S = 15  # a stopped training that has saved, and has written nothing since, waits for a process that is gone
POLL_S = 0.3
TRAIN_ARGV = ("train", "train.yaml")  # relative: under torchrun LLaMA-Factory splits its arguments at spaces


def train(
    run: RunDir,
    installation: Installation,
    environment: Mapping[str, str],
    from_step: int = 0,
    *,
    locks: Sequence[int] = (),
    machine: Machine | None = None,
    prefix: Sequence[str] = (),
) -> Training | str:
    """Train as the run folder's train.yaml says, from step 0 or that of the checkpoint that it is resumed from.

    locks: files that stay locked until the last process of the training is gone, even if we are killed. machine: which
    of several machines this is; None: the only one. prefix: what starts llamafactory-cli on each node.
    Returns its figures; of a part that went well without any, where they are. Raises StageError: LLaMA-Factory ended
    without a complete result; Interrupted: a signal came; the checkpoint that was saved is named.
    """
    argv = [*prefix, str(installation.cli), *TRAIN_ARGV]
    offset = close_torn_line(run.trainer_log)
    child = None
    try:
        with defer_signals():
            child = start(
                argv,
                log=run.train_log,
                cwd=run.path,
                env=child_environment(installation.cli, {**environment, RUN_ENV: str(run.path)}),
                death_signal=signal.SIGTERM,
                watched=True,
                locks=locks,
            )
        with StepBar(TrainerLog(run.trainer_log, offset), from_step) as bar:
            _follow(child, bar)
        child.stop(GRACE_S)  # where the launcher was killed, what it had started is still running
    except BaseException as error:
        if child is not None:
            log.warning("stopping: the training saves a checkpoint first; Ctrl-C again ends it without")
            try:
                child.stop(GRACE_S, CheckpointWait(run))
            except BaseException:
                child.stop(0)
                raise
        if isinstance(error, KeyboardInterrupt | Interrupted):
            raise _interrupted(run, machine) from error
        raise
    repro = repro_command(run.path, argv, environment)
    found = [f"llamafactory-cli ended with status {child.poll()}"] if child.poll() != 0 else []
    if machine is not None and not machine.is_main and not (run.output / "train_results.json").is_file():
        # LLaMA-Factory writes the results on the machine with rank 0. Of a stop from outside nothing else tells here
        # than the line of transformers' JIT checkpoint: the status is 0 all the same.
        if not found and child.log_holds("Saving JIT checkpoint at step"):
            raise StageError("the training was stopped from outside, before its last step", repro)
        if not found:
            return f"this machine is {machine.name}: the results are on the one with rank 0, {machine.rendezvous}"
    else:
        found += problems(run)
    if found:
        if machine is not None:
            found.append(f"this machine is {machine.name}, and the cause may be in the log of another one")
        why = f"{'; '.join(found)}. Last lines of {run.train_log}:\n{child.log_tail()}"
        raise StageError(f"the training failed: {why}", repro)
    return training_of(run, resumed=from_step > 0)


def _follow(child: Child, bar: StepBar) -> None:
    while True:
        ended = child.poll() is not None  # before the log is read: what is written until the end is seen
        bar.update()
        if ended:
            return
        child.wait(POLL_S)


class CheckpointWait:
    """Whether a training that is being stopped has saved its checkpoint, and writes nothing more.

    Each process stops by its own clock: one that has left the step in which another waits for it never comes to its
    end, and neither does one whose partner on another machine got no signal. Nothing is gained by waiting then.
    """

    def __init__(self, run: RunDir, quiet_s: float = QUIET_S) -> None:
        self._run, self._quiet_s = run, quiet_s
        self._before = self._saved()
        self._newest = 0
        self._since = time.monotonic()

    def __call__(self) -> bool:
        newest = self._newest
        for path in (each for folder in (self._run.output, *self._run.checkpoints()) for each in folder.glob("*")):
            with suppress(OSError):  # gone by now: save_total_limit
                newest = max(newest, path.stat().st_mtime_ns)
        if newest != self._newest:
            self._newest, self._since = newest, time.monotonic()
        return time.monotonic() - self._since >= self._quiet_s and bool(self._saved() - self._before)

    def _saved(self) -> set[Path]:
        """The checkpoints that hold the state of a process of this machine, which is saved after all else."""
        folders = self._run.checkpoints()
        return {each for each in folders if any(each.glob("rng_state*")) and not (each / SENTINEL).exists()}


def _interrupted(run: RunDir, machine: Machine | None) -> Interrupted:
    saved = [path.name for path in run.checkpoints() if (path / "trainer_state.json").is_file()]
    if machine is not None and not saved and not machine.is_main:
        message = f"the training was stopped here, on the machine that is {machine.name}; checkpoints are at rank 0"
        return Interrupted(message, "the others' parts end too: resume each with resume RUN --from checkpoint-N")
    if not saved:
        message = "the training was stopped; it had not come to a checkpoint"
        return Interrupted(message, f"to begin again: orchestrator resume {run.id}")
    remedy = f"orchestrator resume {run.id} continues it; orchestrator benchmark {run.id} takes it as it is"
    return Interrupted(f"the training was stopped; kept: {saved[-1]}", remedy)
