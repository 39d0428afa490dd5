"""A run folder with train.yaml in, a trained checkpoint in output/ out: `llamafactory-cli train` as a child.

Covered: progress from trainer_log.jsonl; success judged from the files that LLaMA-Factory leaves, not by the exit
status alone; a clean stop that leaves a checkpoint.
Not covered: several nodes; which checkpoint a training goes on from (resume.py).
Leaves logs/train.log and output/.
"""

import json
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import Interrupted, StageError
from orchestrator.models.model_files import weight_problems
from orchestrator.processes.family import RUN_ENV
from orchestrator.processes.interruptible import uninterrupted
from orchestrator.processes.process import Child, by_hand, child_environment, start
from orchestrator.runs.record import Training
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trainer_log import (
    Event,
    StepBar,
    TrainerLog,
    close_torn_line,
    curve,
    logged_losses,
    step_of,
)
from orchestrator.upstream.installation import Installation

log = logging.getLogger("orchestrator")

GRACE_S = 90  # transformers' JIT checkpoint waits 3 s, then writes; a 7B model's optimizer state takes longer
POLL_S = 0.3
_Json = Mapping[str, Any]
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
    prefix: Sequence[str] = (),
) -> Training:
    """Train as the run folder's train.yaml says.

    Args:
        run: its folder.
        installation: LLaMA-Factory.
        environment: variables that decide devices and processes.
        resumed_at: the steps of the checkpoints that this training and those before it went on from, in order.
        on_event: told what the training logs, as it comes.
        on_look: called with the training's first process several times a second.
        held: locks that stay locked until the last process of the training is gone, even if we are killed.
        prefix: words before llamafactory-cli: what starts it on each node.

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
            _stop(child)
        if isinstance(error, KeyboardInterrupt | Interrupted):
            raise _stopped(run) from error
        raise
    return _result(run, child, started, resumed_at, by_hand(run.path, argv, environment))


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


def _result(run: RunDir, child: Child, started: float, resumed_at: Sequence[int], by_hand: str) -> Training:
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
        raise StageError(
            f"the training failed: {'; '.join(faults)}. Last lines of {run.train_log}:\n{child.log_tail()}",
            by_hand,
        )
    return _training(run, state, results, resumed_at)


def _training(run: RunDir, state: _Json, results: _Json, resumed_at: Sequence[int]) -> Training:
    tokens = results.get("num_input_tokens_seen")
    return Training(
        steps=int(state.get("global_step", 0)),
        total_steps=int(state.get("max_steps", 0)),
        train_loss=_train_loss(run, state, results, resumed_at),
        train_runtime_s=results.get("train_runtime"),
        tokens_seen=tokens if isinstance(tokens, int) else None,
        logged_losses=logged_losses(run.trainer_log),
    )


def _train_loss(run: RunDir, state: _Json, results: _Json, resumed_at: Sequence[int]) -> float | None:
    """The mean loss over all steps.

    transformers sums up the losses since the last resume and divides by all steps. What came before is taken from
    trainer_log.jsonl: the log within a checkpoint that was saved because of a stop lacks the step that it stopped at.
    Steps between the last line of a log and the checkpoint count nowhere.
    """
    loss, steps = results.get("train_loss"), state.get("global_step")
    if not isinstance(loss, int | float) or not isinstance(steps, int) or not resumed_at or not resumed_at[-1]:
        return loss
    resumed = resumed_at[-1]
    total, counted, last = loss * steps, steps - resumed, 0
    for event in curve(run.trainer_log):
        step = step_of(event)
        if isinstance(event.get("loss"), int | float) and step <= resumed:
            since = max([last, *(at for at in resumed_at if at < step)])
            total, counted, last = total + event["loss"] * (step - since), counted + step - since, step
    return float(total / counted) if counted else None


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


def _stop(child: Child) -> None:
    try:
        log.warning("stopping: the training saves a checkpoint first; Ctrl-C again ends it without")
        child.stop(GRACE_S)
    except BaseException:
        child.stop(0)
        raise


def _stopped(run: RunDir) -> Interrupted:
    saved = [path.name for path in run.checkpoints() if (path / "trainer_state.json").is_file()]
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
