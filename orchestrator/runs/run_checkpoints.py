"""A run's checkpoints: which one to resume from, what changed since, which ones a clean-up keeps."""

from pathlib import Path
from typing import get_args

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import json_mapping
from orchestrator.models.checkpoints import CHECKPOINT_LABEL, Inspected, inspect
from orchestrator.models.model_files import weight_problems
from orchestrator.runs.differences import Difference, Severity, Side, differences
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import higher_is_better
from orchestrator.specs.compute_spec import ComputeSpec
from orchestrator.specs.spec import RunSpec


def usable_checkpoints(run: RunDir, ranks: range | None = None) -> list[Inspected]:
    """Every checkpoint of a run, inspected, the newest first, complete or not."""
    folders = [path for path in reversed(run.checkpoints()) if CHECKPOINT_LABEL.fullmatch(path.name) and path.is_dir()]
    return [inspect(folder, ranks=ranks) for folder in folders]


def choose_checkpoint(
    run: RunDir, label: str | None = None, world_size: int | None = None, ranks: range | None = None
) -> tuple[Inspected | None, list[str]]:
    """The checkpoint to resume from (None where none is complete), and in lines why newer ones are skipped.

    label: that one and no other. world_size: how many processes would resume it, if known. ranks: of several nodes, the
    processes on this one. Raises SpecError: there is none of that label; PrerequisiteError: that is incomplete, or the
    chosen one was saved by another number of processes.
    """
    found = usable_checkpoints(run, ranks)
    chosen = _named(run, label, found) if label is not None else next((each for each in found if each.complete), None)
    newer = found[: found.index(chosen)] if chosen in found else found
    skipped = [f"{each.label} is skipped: {'; '.join(each.problems)}" for each in newer if label is None]
    if chosen is not None and world_size is not None and ranks is None:
        states = len([*chosen.folder.glob("rng_state_*.pth")])  # one for each process, or one without a number
        processes = states or int((chosen.folder / "rng_state.pth").is_file()) or None
        # to skip a complete checkpoint for a fault of the plan would throw the training away
        if processes not in (None, world_size):
            raise PrerequisiteError(
                f"{chosen.label} of {run.id} was saved by {processes} process{'es' * (processes != 1)}, and "
                f"{world_size} would resume it: a step would be another set of examples",
                f"resume it with compute.nproc_per_node: {processes}; or start anew: orchestrator rerun {run.id}",
            )
    return chosen, skipped


def planned_world_size(compute: ComputeSpec, facts: Facts) -> int | None:
    """How many processes a training on one node has. None: LLaMA-Factory decides by the devices that it sees."""
    nodes = compute.slurm.nodes if compute.slurm is not None else compute.nnodes
    if nodes not in (None, 1):
        return None
    if compute.nproc_per_node is not None:
        return compute.nproc_per_node
    devices = [each for each in (compute.devices or "").split(",") if each.strip()]
    return len(devices) if devices and facts.gpus else None


def resume_problems(spec_then: RunSpec, spec_now: RunSpec, then: Facts, now: Facts) -> list[tuple[Severity, str]]:
    """What changed since the run began and bears on resuming it, the worst first; error: another training."""
    found = differences(Side("then", spec_then, then), Side("now", spec_now, now))
    differ = [each for each in found if each.then != each.now]  # 1 and 1.0 are one value here
    problems = [(severity, each.line()) for each in differ if (severity := _resume_severity(each)) is not None]
    sizes = [planned_world_size(spec.compute, facts) for spec, facts in ((spec_then, then), (spec_now, now))]
    if None not in sizes and sizes[0] != sizes[1]:
        problems.append(("error", f"processes: {sizes[0]} then, {sizes[1]} now"))
    return sorted(problems, key=lambda problem: get_args(Severity).index(problem[0]))


def best_and_last(run: RunDir) -> set[str]:
    """The labels that a clean-up keeps: of the newest complete checkpoint (or else the newest with complete weights),
    the best by trainer_state.json and by each metric of each benchmark, and the chosen one.
    """
    found = usable_checkpoints(run)
    last = [each.label for each in found if each.complete]
    last = last or [each.label for each in found if not weight_problems(each.folder)]
    states = (json_mapping(each.folder / "trainer_state.json") for each in found)
    named = (next(filter(None, states), {})).get("best_model_checkpoint")
    record = RunRecord.load(run)
    best = {record.chosen_checkpoint, Path(named).name if isinstance(named, str) else ""}
    labels = {each.label for each in found}
    scores: dict[tuple[str | int, ...], tuple[float, str]] = {}
    for each in record.benchmarks:
        for score in each.scores if each.of in labels and each.status == "complete" else ():
            group = (each.testset, each.split, each.n_segments, score.metric, score.signature)
            worth = score.score if higher_is_better(score.metric) else -score.score
            scores[group] = max(scores.get(group, (worth, each.of)), (worth, each.of))
    return {*last[:1], *(labels & {*best, *(label for _, label in scores.values())})}


def _named(run: RunDir, label: str, inspected: list[Inspected]) -> Inspected:
    found = {each.label: each for each in inspected}
    if label not in found:
        have = ", ".join(found) or "none"
        raise SpecError(f"run {run.id} has no {label}{did_you_mean(label, found)}; it has: {have}")
    if not found[label].complete:
        complete = [each.label for each in inspected if each.complete]
        problems = "; ".join(found[label].problems)
        remedy = f"complete, the newest first: {', '.join(complete) or 'none'}"
        raise PrerequisiteError(f"{label} of {run.id} cannot be resumed: {problems}", remedy)
    return found[label]


def _resume_severity(each: Difference) -> Severity | None:
    if each.kind in ("data", "model", "adapter", "template"):
        return each.severity if each.effect == "trajectory" else "note"
    if each.kind == "spec":
        if each.path.startswith(("train.deepspeed", "train.fsdp")):
            return "error"  # the state has another form
        severities: dict[str, Severity] = {"trajectory": "error", "rounding": "warning"}
        return severities.get(each.effect)
    return "warning" if each.effect == "rounding" else None
