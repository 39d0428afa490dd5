"""Where a training begins: at step 0 or from a checkpoint. What stands in its way is set aside in output-N/."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.lifecycle.training_results import is_complete
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.machine import own_ranks, this_machine
from orchestrator.runs.owner import OwnedRun, acquire, in_use
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Facts, Request
from orchestrator.runs.run_checkpoints import choose_checkpoint, planned_world_size, resume_problems, usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current
from orchestrator.specs.places import MODEL_ARGUMENTS, RESERVED_ARGUMENTS
from orchestrator.specs.spec import RunSpec, TrainSpec, spec_sha256

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class ResumePoint:
    """Where a training begins."""

    step: int = 0
    label: str | None = None  # of the checkpoint; None: at step 0
    skipped: Sequence[str] = ()  # why none of the others, in lines


def plan_resume(
    session: Session, run: RunDir, label: str | None, *, no_benchmark: bool, wait: bool
) -> tuple[Plan, Request]:
    """What resuming a run, from the checkpoint of a label or the newest complete one, would do; nothing is changed.

    Raises SpecError: nothing is left, or no such label; PrerequisiteError: it has an owner, or cannot go on as begun.
    """
    record = current(run)
    if record.is_active():
        raise in_use(record)
    spec = session.load_spec(run.spec)
    is_done = record.status == "done"
    # A training-only run is resumed as one; once it is done, its benchmarks are what is left.
    is_benchmarked = not no_benchmark and (record.with_benchmarks or is_done)
    changes = {"with_benchmarks": is_benchmarked, "wait": wait, "checkpoint": label}
    request = record.request.model_copy(update=changes)
    if is_done and (record.request.with_benchmarks or not (request.with_benchmarks and spec.benchmark)):
        raise SpecError(
            f"run {run.id} is done: there is nothing to resume", f"to run it again: orchestrator rerun {run.id}"
        )
    is_trained = spec.train is None or is_complete(run, label)
    plan = plan_run(session, spec)
    check_unchanged(run, record, plan.spec, plan.facts)
    if not is_trained:
        find_resume_point(run, plan.spec, plan.facts, label)
    return plan, request


def session_of(run: RunDir, workspace: Path | None) -> Session:
    """A session with the archives that the run was launched with."""
    archives = RunRecord.load(run).request.archives
    return Session.open(workspace, Path(archives) if archives is not None else None)


def take_up(run: RunDir, request: Request) -> OwnedRun:
    """Become the owner of a run that is to be resumed, with a new request; PrerequisiteError where it has one."""
    owned = acquire(run)
    RunRecord.load(run).update(run, request=request)
    return owned


def find_resume_point(run: RunDir, spec: RunSpec, facts: Facts, label: str | None = None) -> ResumePoint:
    """Where the training of a run would begin now.

    Raises SpecError: no such checkpoint, or none in this stage; PrerequisiteError: it cannot be resumed from here.
    """
    train = spec.train
    # as in llamafactory/hparams/parser.py, can_resume_from_checkpoint
    if train is not None and train.stage in ("rm", "ppo") and train.finetuning_type in ("full", "freeze"):
        why = f"LLaMA-Factory resumes from no checkpoint of {train.stage} with {train.finetuning_type}"
        if label is not None:
            raise SpecError(f"{why}, so not from {label}", f"without --from {run.id} is trained again from step 0")
        return ResumePoint(skipped=[why])
    machine = this_machine(spec.compute, os.environ)
    ranks = own_ranks(spec.compute, machine)
    if machine is not None and label is None and run.checkpoints():
        # what each machine holds by itself may be another step than the others'
        found = [each.label for each in usable_checkpoints(run, ranks=ranks) if each.complete]
        raise PrerequisiteError(
            f"which checkpoint? {run.id} trains on {machine.count} machines, and all must resume from the same one; "
            f"complete here: {', '.join(found) or 'none, so copy one from the machine with rank 0'}",
            f"on each machine: orchestrator resume {run.id} --from {found[0] if found else 'checkpoint-N'}",
        )
    chosen, skipped = choose_checkpoint(run, label, planned_world_size(spec.compute, facts), ranks)
    return ResumePoint(chosen.step, chosen.label, skipped) if chosen is not None else ResumePoint(skipped=skipped)


def prepare_output(run: RunDir, spec: RunSpec, record: RunRecord, facts: Facts, label: str | None) -> ResumePoint:
    """Find where the training begins, say so, and set aside what would mix with it.

    At step 0 that is all of output/: LLaMA-Factory resumes by itself from any checkpoint in it; else the later ones.
    """
    point = find_resume_point(run, spec, facts, label)
    lines = [*point.skipped]
    if point.label is None:
        lines += [*([] if lines else ["there is no checkpoint"]), "the training begins at step 0"]
        if moved := any(run.output.glob("*")):
            folder = run.new_set_aside()
            run.output.rename(folder)  # onto an empty folder
            lines.append(f"what the training had left is kept in {folder.name}/")
    else:
        lines.append(f"the training resumes from {point.label}")
        for name in ("train_results.json", "all_results.json", "trainer_state.json"):  # how an earlier attempt ended
            (run.output / name).unlink(missing_ok=True)
        later = [path for path in run.checkpoints() if int(path.name.rpartition("-")[2]) > point.step]
        if moved := bool(later):
            folder = run.new_set_aside()
            names = ", ".join(path.rename(folder / path.name).name for path in later)
            lines.append(f"{names}: later than {point.label}, so kept in {folder.name}/")
    for line in lines if len(record.attempts) > 1 or moved else []:
        log.info("%s", line)
    return point


def check_unchanged(run: RunDir, record: RunRecord, spec: RunSpec, now: Facts) -> list[str]:
    """What changed since the run began, in lines; PrerequisiteError where it would make another training of it."""
    found = resume_problems(_spec_then(run, record, spec), spec, record.facts, now)
    if errors := [message for severity, message in found if severity == "error"]:
        raise PrerequisiteError(
            f"run {run.id} cannot continue as it began: {'; '.join(errors)}",
            f"put back what it began with; or start anew with what is there: orchestrator rerun {run.id}",
        )
    return [message for severity, message in found if severity == "warning"]


def _spec_then(run: RunDir, record: RunRecord, spec: RunSpec) -> RunSpec:
    """The spec that the run began with. Where spec.yaml was edited since, its training is read from train.yaml."""
    if spec.train is None or spec_sha256(spec) == record.spec_sha256 or not run.train_yaml.is_file():
        return spec
    given = yaml.safe_load(run.train_yaml.read_bytes())
    train = {key: value for key, value in given.items() if key not in (*RESERVED_ARGUMENTS, *MODEL_ARGUMENTS)}
    return spec.model_copy(update={"train": TrainSpec.model_validate(train), "seed": given.get("seed", spec.seed)})
