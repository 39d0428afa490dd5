"""A run folder with train.yaml in, a trained checkpoint in output/ out: `llamafactory-cli train` as a child.

Covered: progress from trainer_log.jsonl; success judged from the files that LLaMA-Factory leaves, not by the exit
status alone; a clean stop that leaves a checkpoint; this machine's part of a training on several, whose results the
main process of rank 0 alone writes.
Not covered: which checkpoint a training goes on from (resume.py); how the machines meet (torchrun).
Leaves logs/train.log and output/.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import Interrupted, StageError
from orchestrator.models.checkpoints import SENTINEL
from orchestrator.models.model_files import weight_problems
from orchestrator.processes.family import RUN_ENV
from orchestrator.processes.interruptible import uninterrupted
from orchestrator.processes.process import Child, by_hand, child_environment, start
from orchestrator.runs.nodes import Machine
from orchestrator.runs.record_parts import Training
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trainer_log import (
    Event,
    StepBar,
    TrainerLog,
    close_torn_line,
    logged_losses,
)
from orchestrator.upstream.installation import Installation

log = logging.getLogger("orchestrator")

GRACE_S = 90  # transformers' JIT checkpoint waits 3 s, then writes; a 7B model's optimizer state takes longer
QUIET_S = 15  # a stopped training that has saved, and has written nothing since, waits for a process that is gone
POLL_S = 0.3
_Json = Mapping[str, Any]
# Of torch.distributed and of NCCL, where the other end of a connection is gone.
_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "remote process exited", "remote worker crashing"),
    *("RendezvousConnectionError", "RendezvousTimeoutError", "DistStoreError", "DistNetworkError", "ncclRemoteError"),
)
TRAIN_ARGV = ("train", "train.yaml")  # relative: under torchrun LLaMA-Factory splits its arguments at spaces


def train(
    run: RunDir,
    installation: Installation,
    environment: Mapping[str, str],
    resumed_at: Sequence[int] = (),
    *,
    on_event: Callable[[Event], None] | None = None,
    on_look: Callable[[Child], None] | None = None,
    held: Sequence[int] = (),
    machine: Machine | None = None,
    prefix: Sequence[str] = (),
) -> Training | str:
    """Train as the run folder's train.yaml says.

    Args:
        run: its folder.
        installation: LLaMA-Factory.
        environment: variables that decide devices and processes.
        resumed_at: the steps of the checkpoints that this training and those before it went on from, in order.
        on_event: told what the training logs, as it comes.
        on_look: called with the training's first process several times a second; it may raise, which ends it.
        held: locks that stay locked until the last process of the training is gone, even if we are killed.
        machine: which of several machines this is. None: the only one.
        prefix: words before llamafactory-cli: what starts it on each node.

    Returns:
        Its figures; of a part that went well without any, where they are.

    Raises:
        StageError: LLaMA-Factory ended without a whole result; with the log's last lines.
        Interrupted: asked to stop; the checkpoint that was saved is named.
    """
    argv = [*prefix, str(installation.cli), *TRAIN_ARGV]
    step = resumed_at[-1] if resumed_at else 0
    offset = close_torn_line(run.trainer_log)
    started = time.time()
    child = None
    try:
        with uninterrupted():
            child = start(
                argv,
                log=run.train_log,
                cwd=run.path,
                env=child_environment(installation.cli, {**environment, RUN_ENV: str(run.path)}),
                death_signal=signal.SIGTERM,
                watched=True,
                held=held,
            )
        with StepBar(TrainerLog(run.trainer_log, offset), step, on_event) as bar:
            _follow(child, bar, on_look)
        child.stop(GRACE_S)  # where the launcher was killed, what it had started goes on
    except BaseException as error:
        if child is not None:
            _stop(child, Settled(run))
        if isinstance(error, KeyboardInterrupt | Interrupted):
            raise _stopped(run, machine) from error
        raise
    again = by_hand(run.path, argv, environment)
    if machine is not None and not machine.is_main and _is_elsewhere(run, child, machine, again):
        return f"this machine is {machine.name}: the results are on the one with rank 0, {machine.meeting}"
    return _result(run, child, started, resumed_at, again, machine)


def finished(run: RunDir, resumed_at: Sequence[int] = ()) -> Training | None:
    """The figures of a training that came to its end, whether or not its owner was there to see it; else None."""
    state, results = _read_json(run.output / "trainer_state.json"), _read_json(run.output / "train_results.json")
    if state is None or results is None or _ended_early(state) or weight_problems(run.output):
        return None
    return _training(run, state, results, resumed_at)


def _follow(child: Child, bar: StepBar, on_look: Callable[[Child], None] | None) -> None:
    while True:
        ended = child.poll() is not None  # before the log is read: what is written until the end is seen
        bar.update()
        if ended:
            return
        if on_look is not None:
            on_look(child)
        child.wait(POLL_S)


def _is_elsewhere(run: RunDir, child: Child, machine: Machine, by_hand: str) -> bool:
    """Whether this machine's part went well, and the results are on another one.

    LLaMA-Factory writes them on the machine with rank 0, which an elastic training gives to any of them. Of a stop
    from outside nothing else tells here than the line of transformers' JIT checkpoint: the status is 0 all the same.
    """
    if (run.output / "train_results.json").is_file():
        return False
    if child.poll() == 0 and child.log_holds("Saving JIT checkpoint at step"):
        raise StageError("the training was told to stop, from outside: it is not at its end", by_hand)
    if child.poll() == 0:
        return True
    raise _failure(run, child, [f"llamafactory-cli ended with status {child.poll()}"], by_hand, machine)


def _failure(run: RunDir, child: Child, faults: Sequence[str], by_hand: str, machine: Machine | None) -> StageError:
    said = "; ".join(faults)
    if machine is not None and child.log_holds(*_LOST):
        said += f". It lost the connection to another machine, whose part had ended: this one is {machine.name}, and "
        said += "what happened is in the other's log"
        by_hand = "look there: show RUN, logs RUN; then resume on each machine, from the same checkpoint"
    return StageError(f"the training failed: {said}. Last lines of {run.train_log}:\n{child.log_tail()}", by_hand)


def _result(
    run: RunDir, child: Child, started: float, resumed_at: Sequence[int], by_hand: str, machine: Machine | None
) -> Training:
    """The training's figures, once all that a whole result needs is there."""
    faults = []
    if child.poll() != 0:
        faults.append(f"llamafactory-cli ended with status {child.poll()}")
    results = _read_json(run.output / "train_results.json")
    state = _read_json(run.output / "trainer_state.json")
    if results is None or (run.output / "train_results.json").stat().st_mtime < started - 1:
        faults.append("it left no train_results.json")
    if state is None:
        faults.append("it left no trainer_state.json")
    elif _ended_early(state):
        faults.append(f"it ended at step {state.get('global_step')} of {state.get('max_steps')}")
    faults += weight_problems(run.output)
    if faults or results is None or state is None:
        raise _failure(run, child, faults, by_hand, machine)
    return _training(run, state, results, resumed_at)


def _training(run: RunDir, state: _Json, results: _Json, resumed_at: Sequence[int]) -> Training:
    tokens = results.get("num_input_tokens_seen")
    return Training(
        steps=int(state.get("global_step", 0)),
        total_steps=int(state.get("max_steps", 0)),
        train_loss=None if resumed_at and resumed_at[-1] else results.get("train_loss"),
        train_runtime_s=results.get("train_runtime"),
        tokens_seen=tokens if isinstance(tokens, int) else None,
        logged_losses=logged_losses(run.trainer_log),
    )


def _ended_early(state: _Json) -> bool:
    """Whether the training was told to stop from outside: by a SIGTERM it ends in order, files, status 0 and all."""
    step, last = state.get("global_step"), state.get("max_steps")
    is_short = isinstance(step, int) and isinstance(last, int) and step < last
    return is_short and not _lost_patience(state)


def _lost_patience(state: _Json) -> bool:
    """Whether it stopped by itself: early_stopping_steps, as transformers' EarlyStoppingCallback keeps its count."""
    try:
        callback = state["stateful_callbacks"]["EarlyStoppingCallback"]
        patience, counter = callback["args"]["early_stopping_patience"], callback["attributes"]
        return bool(counter["early_stopping_patience_counter"] >= patience)
    except (KeyError, TypeError):
        return False


class Settled:
    """Whether a training that was told to stop has saved its checkpoint, and writes nothing more.

    Each process stops by its own clock: one that has left the step in which another waits for it never comes to its
    end, and neither does one whose partner on another machine was not told. Nothing is gained by waiting then.
    """

    def __init__(self, run: RunDir, quiet_s: float = QUIET_S) -> None:
        self._run = run
        self._quiet_s = quiet_s
        self._before = self._saved()
        self._seen: dict[Path, tuple[int, int]] = {}
        self._since = self._looked = time.monotonic()

    def __call__(self) -> bool:
        moment = time.monotonic()
        if moment - self._looked < 1:
            return False
        self._looked = moment
        seen = {path: (stat.st_size, stat.st_mtime_ns) for path in self._files() if (stat := _stat(path)) is not None}
        if seen != self._seen:
            self._seen, self._since = seen, moment
        return moment - self._since >= self._quiet_s and bool(self._saved() - self._before)

    def _files(self) -> list[Path]:
        return [path for folder in (self._run.output, *self._run.checkpoints()) for path in folder.glob("*")]

    def _saved(self) -> set[Path]:
        """The checkpoints that hold the state of a process of this machine, which is saved after all else."""
        folders = self._run.checkpoints()
        return {each for each in folders if any(each.glob("rng_state*")) and not (each / SENTINEL).exists()}


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # gone by now: save_total_limit
        return None


def _stop(child: Child, settled: Settled) -> None:
    try:
        log.warning("stopping: the training saves a checkpoint first; Ctrl-C again ends it without")
        child.stop(GRACE_S, settled)
    except BaseException:
        child.stop(0)
        raise


def _stopped(run: RunDir, machine: Machine | None) -> Interrupted:
    saved = [path.name for path in run.checkpoints() if (path / "trainer_state.json").is_file()]
    if machine is not None and not saved and not machine.is_main:
        said = f"the training was stopped here, on the machine that is {machine.name}; checkpoints are at rank 0"
        return Interrupted(said, "the others' parts end too: each goes on with resume RUN --from checkpoint-N")
    if not saved:
        said = "the training was stopped; it had not come to a checkpoint"
        return Interrupted(said, f"to begin again: orchestrator resume {run.id}")
    remedy = f"orchestrator resume {run.id} goes on; orchestrator benchmark {run.id} takes it as it is"
    return Interrupted(f"the training was stopped; kept: {saved[-1]}", remedy)


def _read_json(path: Path) -> _Json | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None
