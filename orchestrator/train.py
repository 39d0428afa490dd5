"""A run folder with train.yaml in, a trained checkpoint in output/ out: `llamafactory-cli train` as a child.

Covered: progress from trainer_log.jsonl; success judged from the files that LLaMA-Factory leaves, not by the exit
status alone; a clean stop that leaves a checkpoint.
Not covered: several nodes, resuming.
Leaves logs/train.log and output/.
"""

import json
import logging
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import Interrupted, StageError
from orchestrator.installation import Installation
from orchestrator.model_files import weight_problems
from orchestrator.process import Child, by_hand, child_environment, start, visible
from orchestrator.progress import Progress
from orchestrator.record import Training
from orchestrator.rundir import RunDir

log = logging.getLogger("orchestrator")

GRACE_S = 90  # transformers' JIT checkpoint waits 3 s, then writes; a 7B model's optimizer state takes longer
POLL_S = 0.3
TRAIN_ARGV = ("train", "train.yaml")  # relative: under torchrun LLaMA-Factory splits its arguments at spaces


def train(
    run: RunDir,
    installation: Installation,
    environment: Mapping[str, str],
    on_start: Callable[[Child], None] = lambda child: None,
) -> Training:
    """Train as the run folder's train.yaml says.

    Raises:
        StageError: LLaMA-Factory ended without a whole result; with the log's last lines.
        Interrupted: asked to stop; the checkpoint that was saved is named.
    """
    argv = [str(installation.cli), *TRAIN_ARGV]
    child = start(
        argv,
        log=run.train_log,
        cwd=run.path,
        env=child_environment(installation.cli, environment),
        death_signal=signal.SIGTERM,
        watched=True,
    )
    started = time.time()
    try:
        on_start(child)
        _follow(child, run)
        child.stop(GRACE_S)  # where the launcher was killed, what it had started goes on
    except BaseException as error:
        _stop(child)
        if isinstance(error, KeyboardInterrupt | Interrupted):
            raise _stopped(run) from error
        raise
    return _result(run, child, started, by_hand(run.path, argv, environment))


class TrainerLog:
    """LLaMA-Factory's trainer_log.jsonl, read as it grows. A torn last line is read when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new_events(self) -> list[dict[str, Any]]:
        """Events since the last call: current_steps, total_steps, loss, lr, remaining_time, ..., any may be missing."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line that a killed writer tore, and a later one went on from
            if isinstance(event, dict):
                events.append(event)
        return events


def logged_losses(run: RunDir, first: int = 10) -> list[float]:
    """The first losses that a training logged."""
    losses = [event.get("loss") for event in TrainerLog(run.trainer_log).new_events()]
    return [float(loss) for loss in losses if isinstance(loss, int | float)][:first]


def _follow(child: Child, run: RunDir) -> None:
    log = TrainerLog(run.trainer_log)
    with Progress(None, "train", "steps") as progress:
        while True:
            ended = child.poll() is not None  # before the log is read: what is written until the end is seen
            for event in log.new_events():
                _show(progress, event)
            if ended:
                return
            time.sleep(POLL_S)


def _show(progress: Progress, event: Mapping[str, Any]) -> None:
    shown = {
        "loss": event.get("loss"),
        "lr": event.get("lr"),
        "tokens/s": event.get("throughput"),
        "left": event.get("remaining_time"),
    }
    postfix = {
        key: f"{value:.4g}" if isinstance(value, float) else visible(str(value))
        for key, value in shown.items()
        if value is not None
    }
    step, total = event.get("current_steps"), event.get("total_steps")
    if isinstance(step, int) and isinstance(total, int):
        progress.total = total
        progress.update(step - progress.count, **postfix)


def _result(run: RunDir, child: Child, started: float, by_hand: str) -> Training:
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
    tokens = results.get("num_input_tokens_seen")
    return Training(
        steps=int(state.get("global_step", 0)),
        total_steps=int(state.get("max_steps", 0)),
        train_loss=results.get("train_loss"),
        train_runtime_s=results.get("train_runtime"),
        tokens_seen=tokens if isinstance(tokens, int) else None,
        logged_losses=logged_losses(run),
    )


def _ended_early(state: Mapping[str, Any]) -> bool:
    """Whether the training was told to stop from outside: by a SIGTERM it ends in order, files, status 0 and all."""
    step, last = state.get("global_step"), state.get("max_steps")
    is_short = isinstance(step, int) and isinstance(last, int) and step < last
    return is_short and "EarlyStoppingCallback" not in state.get("stateful_callbacks", {})  # early_stopping_steps


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
        return Interrupted(said, f"to start again: orchestrator rerun {run.id}")
    return Interrupted(f"the training was stopped; kept: {saved[-1]}", f"orchestrator benchmark {run.id}")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None
