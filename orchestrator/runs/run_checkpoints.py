"""A run's checkpoints: which one to resume from, what changed since, which ones a clean-up keeps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import json_mapping
from orchestrator.models.checkpoints import (
    CHECKPOINT_LABEL,
    Inspected,
    can_be_served,
    inspect,
)
from orchestrator.runs.drift import Severity, drifts
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.compute_spec import ComputeSpec
from orchestrator.specs.spec import RunSpec


@dataclass(frozen=True)
class Problem:
    """Something that changed since a checkpoint was saved."""

    severity: Severity
    """error: the training would go on as another one, or not at all."""
    message: str


def usable_checkpoints(run: RunDir, world_size: int | None = None, ranks: range | None = None) -> list[Inspected]:
    """Every checkpoint of a run, the newest first, whole or not."""
    return [inspect(folder, world_size=world_size, ranks=ranks) for folder in _folders(run)]


def choose_checkpoint(
    run: RunDir, label: str | None = None, world_size: int | None = None, ranks: range | None = None
) -> tuple[Inspected | None, list[str]]:
    """The checkpoint to resume from, and in lines why newer ones are passed over.

    Args:
        run: the run.
        label: checkpoint-N, that one and no other. None: the newest whole one.
        world_size: how many processes would go on with it. None: as many as saved it.
        ranks: of several machines, the processes on this one.

    Returns:
        None instead of a checkpoint where none is whole.

    Raises:
        SpecError: there is none of that label.
        PrerequisiteError: the one of that label is not whole.
    """
    if label is not None:
        return _named_checkpoint(run, label, world_size, ranks), []
    passed_over: list[str] = []
    for folder in _folders(run):
        found = inspect(folder, world_size=world_size, ranks=ranks)
        if found.whole:
            return found, passed_over
        passed_over.append(f"{found.label} is passed over: {'; '.join(found.problems)}")
    return None, passed_over


def planned_world_size(compute: ComputeSpec, facts: Facts) -> int | None:
    """How many processes a training has, as far as its spec tells. None: LLaMA-Factory decides by the devices it sees.

    Without nproc_per_node that is one for each device that the spec names, on a machine with GPUs. Of several machines
    it is not known either: each may keep the states of its own processes alone.
    """
    nodes = compute.slurm.nodes if compute.slurm is not None else compute.nnodes
    if nodes not in (None, 1):
        return None
    if compute.nproc_per_node is not None:
        return compute.nproc_per_node
    devices = [each for each in (compute.devices or "").split(",") if each.strip()]
    return len(devices) if devices and facts.gpus else None


def resume_problems(spec_then: RunSpec, spec_now: RunSpec, then: Facts, now: Facts) -> list[Problem]:
    """What changed since the run began that bears on going on with it, the worst first.

    A checkpoint holds the state of the optimizer and the schedule, and how far into the data it was. Other examples,
    other steps or other weights under it make a training that neither spec describes, mostly without a word.
    """
    problems = [
        Problem(severity, each.line() + _what_comes_of(each.name))
        for each in drifts(spec_then, then, spec_now, now)
        if (severity := _resume_severity(each.kind, each.name, each.effect, each.severity)) is not None
    ]
    sizes = [planned_world_size(spec.compute, facts) for spec, facts in ((spec_then, then), (spec_now, now))]
    if None not in sizes and sizes[0] != sizes[1]:
        problems.append(
            Problem("error", f"processes: {sizes[0]} then, {sizes[1]} now: a step is another set of examples")
        )
    return sorted(problems, key=lambda problem: ("error", "warning", "note").index(problem.severity))


def best_and_last(run: RunDir) -> set[str]:
    """The labels of the checkpoints that a clean-up has to keep.

    The newest whole one, or where none is, the newest whose weights are; the one that trainer_state.json names as the
    best, or the one of the lowest eval_loss; the best by each metric of each of our own benchmarks, and the chosen one.

    Raises:
        PrerequisiteError: the run's record is damaged.
    """
    found = usable_checkpoints(run)
    labels = {each.label for each in found}
    last = [each.label for each in found if each.whole] or [each.label for each in found if can_be_served(each)]
    state = next((state for each in found if (state := json_mapping(each.folder / "trainer_state.json"))), {})
    record = RunRecord.load(run)
    chosen = {record.chosen_checkpoint or ""} & labels
    return {*last[:1], *(_best_by_trainer(state, labels) & labels), *_best_by_benchmarks(record, labels), *chosen}


def _named_checkpoint(run: RunDir, label: str, world_size: int | None, ranks: range | None) -> Inspected:
    folders = {folder.name: folder for folder in _folders(run)}
    if label not in folders:
        have = f"it has: {', '.join(folders)}" if folders else "it has none"
        raise SpecError(f"run {run.id} has no {label}{did_you_mean(label, folders)}; {have}")
    found = inspect(folders[label], world_size=world_size, ranks=ranks)
    if found.whole:
        return found
    other, _ = choose_checkpoint(run, None, world_size, ranks)
    remedy = f"the newest whole one is {other.label}" if other else "no checkpoint of the run is whole"
    raise PrerequisiteError(f"{label} of {run.id} can't be resumed from: {'; '.join(found.problems)}", remedy)


def _folders(run: RunDir) -> list[Path]:
    """output/checkpoint-N, the newest first."""
    return [path for path in reversed(run.checkpoints()) if CHECKPOINT_LABEL.fullmatch(path.name) and path.is_dir()]


def _resume_severity(kind: str, name: str, effect: str, severity: Severity) -> Severity | None:
    if kind in ("data", "model", "adapter"):
        return severity if effect == "course" else "note"
    if kind == "spec":
        if name.startswith(("train.deepspeed", "train.fsdp")):
            return "error"  # the state is in another form
        return {"course": "error", "rounding": "warning"}.get(effect)  # type: ignore[return-value]
    return "warning" if effect == "rounding" else None


def _what_comes_of(name: str) -> str:
    """For the changes that are made in good faith."""
    if name in ("train.num_train_epochs", "train.max_steps"):
        return ": the schedule would jump to where it would have been"
    if name == "train.learning_rate":
        return ": the checkpoint's own would be taken all the same"
    if name in ("train.per_device_train_batch_size", "train.gradient_accumulation_steps"):
        return ": a step is another set of examples"
    return ""


def _best_by_trainer(state: dict[str, Any], labels: set[str]) -> set[str]:
    named = state.get("best_model_checkpoint")
    if isinstance(named, str):
        return {Path(named).name}
    history = state.get("log_history")
    losses = {
        f"checkpoint-{event.get('step')}": float(event["eval_loss"])
        for event in (history if isinstance(history, list) else [])
        if isinstance(event, dict) and isinstance(event.get("eval_loss"), int | float)
    }
    saved = {label: loss for label, loss in losses.items() if label in labels and loss == loss}  # NaN is none
    return {min(saved, key=lambda label: saved[label])} if saved else set()


def _best_by_benchmarks(record: RunRecord, labels: set[str]) -> set[str]:
    """The best of each group of scores that may be compared; of equal ones, the later benchmark's."""
    best: dict[tuple[object, ...], tuple[float, str]] = {}
    for each in record.benchmarks:
        if each.of not in labels or each.status != "complete":
            continue
        for score in each.scores:
            group = (each.testset, each.split, each.n_segments, score.metric, score.signature)
            worth = -score.score if score.metric == "ter" else score.score
            if group not in best or worth >= best[group][0]:
                best[group] = (worth, each.of)
    return {label for _, label in best.values()}
