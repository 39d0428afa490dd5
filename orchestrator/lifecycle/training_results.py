"""What a training left in output/, and whether that is the result of a training that came to its end."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import json_mapping
from orchestrator.models.checkpoints import Inspected
from orchestrator.models.model_files import weight_problems
from orchestrator.runs.record_parts import Training
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trainer_log import logged_losses
from orchestrator.specs.spec import TrainSpec

log = logging.getLogger("orchestrator")

# In a checkpoint, but not in what LLaMA-Factory saves at the end: what only a resumed training reads.
_RESUME_ONLY = ("optimizer", "scheduler", "rng_state", "scaler", "latest", "zero_to_fp32", "pytorch_model_fsdp")


def problems(run: RunDir) -> list[str]:
    """Why output/ does not hold the complete result of a training; none where it does."""
    found = []
    if json_mapping(run.output / "train_results.json") is None:
        found.append("it left no train_results.json")
    state = json_mapping(run.output / "trainer_state.json")
    if state is None:
        found.append("it left no trainer_state.json")
    elif not _has_ended(state):
        found.append(f"it ended at step {state.get('global_step')} of {state.get('max_steps')}")
    return found + weight_problems(run.output)


def training_of(run: RunDir, *, resumed: bool) -> Training:
    """The figures of a training that came to its end."""
    results = json_mapping(run.output / "train_results.json") or {}
    state = json_mapping(run.output / "trainer_state.json") or {}
    tokens = results.get("num_input_tokens_seen", state.get("num_input_tokens_seen"))
    return Training(
        steps=int(state.get("global_step", 0)),
        total_steps=int(state.get("max_steps", 0)),
        train_loss=None if resumed else results.get("train_loss"),
        train_runtime_s=results.get("train_runtime"),
        tokens_seen=tokens if isinstance(tokens, int) and tokens else None,
        logged_losses=logged_losses(run.trainer_log),
    )


def is_complete(run: RunDir, label: str | None = None) -> bool:
    """Whether nothing is left to train of a run; `label` is a checkpoint that it is to be resumed from all the same.

    Raises SpecError: the result is there already, so nothing is resumed from a checkpoint.
    """
    if run.output.is_dir() and not problems(run):
        if label is not None:
            raise SpecError(f"the training of {run.id} is finished: nothing resumes from {label}", "leave --from out")
        return True
    last = _last_checkpoint(run)
    return last is not None and label in (None, last.label)


def completed_training(run: RunDir, train: TrainSpec, label: str | None, *, resumed: bool) -> Training | None:
    """The figures of a training that came to its end, else None. The last checkpoint becomes a result that is missing.

    Raises SpecError: as is_complete; PrerequisiteError: its weights are in DeepSpeed's or FSDP's own files alone.
    """
    if not is_complete(run, label):
        return None
    if problems(run) and (last := _last_checkpoint(run)) is not None:
        _take_weights(run, last, train)
    return training_of(run, resumed=resumed)


def _last_checkpoint(run: RunDir) -> Inspected | None:
    """The checkpoint of the last step, if it was saved: transformers, resumed from it, would take one step more."""
    newest = next((each for each in usable_checkpoints(run) if each.is_saved), None)
    state = json_mapping(newest.folder / "trainer_state.json") if newest is not None else None
    return newest if state is not None and _has_ended(state) else None


def _take_weights(run: RunDir, last: Inspected, train: TrainSpec) -> None:
    state = json_mapping(last.folder / "trainer_state.json") or {}
    source, best = last.folder, state.get("best_model_checkpoint")
    if train.extra_arguments().get("load_best_model_at_end") and isinstance(best, str):
        source = run.output / Path(best).name
    if not source.is_dir() or weight_problems(source):
        raise PrerequisiteError(
            f"{source.name} of {run.id} is of the last step, but holds no weights that can be taken as the result",
            f"to train the last steps again: orchestrator resume {run.id} --from an earlier checkpoint",
        )
    log.warning("the training was ended before it saved its result: the weights of %s are taken as that", source.name)
    names = [path.name for path in source.iterdir() if path.is_file() and not path.name.startswith(_RESUME_ONLY)]
    for name in sorted(names, key=lambda name: name == "trainer_state.json"):
        unfinished = run.output / f".{name}.unfinished"
        shutil.copy2((last.folder if name == "trainer_state.json" else source) / name, unfinished)
        unfinished.replace(run.output / name)


def _has_ended(state: Mapping[str, Any]) -> bool:
    """Whether the last step was taken, or early_stopping_steps ended it: after SIGTERM too it ends with status 0."""
    step, last = state.get("global_step"), state.get("max_steps")
    if not isinstance(step, int) or not isinstance(last, int):
        return False
    if step >= last:
        return step == last
    try:  # as transformers keeps the count
        callback = state["stateful_callbacks"]["EarlyStoppingCallback"]
        patience, counter = callback["args"]["early_stopping_patience"], callback["attributes"]
        return bool(counter["early_stopping_patience_counter"] >= patience)
    except (KeyError, TypeError):
        return False
