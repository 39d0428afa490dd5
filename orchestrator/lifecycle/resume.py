"""Where a training in a run's folder begins: anew, or from a checkpoint that was looked at first.

Covered: the newest whole checkpoint or the one that is named, and in words why none of the others; what stands in the
way of that is set aside, not removed; what may not have changed since the run began.
Not covered: what makes a checkpoint whole (checkpoints.py); the training itself (train.py).
Leaves output-1/, output-2/, ... in the run folder: what was set aside.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import yaml

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.lifecycle.train_process import GRACE_S, finished
from orchestrator.models.checkpoints import Inspected
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.planning.session import Session
from orchestrator.processes.family import end_run, left_behind
from orchestrator.runs.nodes import Machine, own_ranks, this_machine
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Facts, Training
from orchestrator.runs.run_checkpoints import choose_checkpoint, planned_world_size, resume_problems, usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import pids
from orchestrator.specs.spec import OWNED, RunSpec, TrainSpec, spec_sha256

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class Start:
    """Where a training begins."""

    checkpoint: Inspected | None = None
    """None: at step 0."""
    passed_over: Sequence[str] = field(default=())
    """Why none of the others, in lines."""

    @property
    def step(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def label(self) -> str | None:
        return self.checkpoint.label if self.checkpoint else None

    @property
    def path(self) -> str | None:
        """What LLaMA-Factory is given as resume_from_checkpoint, in the run folder."""
        return f"output/{self.checkpoint.label}" if self.checkpoint else None

    def lines(self) -> list[str]:
        """Where it begins, and why nowhere else."""
        where = f"the training goes on from {self.label}" if self.checkpoint else "the training begins anew"
        why = [] if self.checkpoint or self.passed_over else ["there is no checkpoint"]
        return [*self.passed_over, *why, where]


def plan_resume(session: Session, run: RunDir, label: str | None, *, no_benchmark: bool) -> tuple[Plan, bool]:
    """What going on with a run would do: its plan, and whether benchmarks belong to it.

    Raises:
        SpecError: nothing is left to do, or there is no checkpoint of that label.
        PrerequisiteError: a process owns the run, or it could not go on as it began.
    """
    record = RunRecord.load(run)
    if record.is_active():
        raise record.in_use()
    rerun = f"to run it again: orchestrator rerun {run.id}"
    if record.status == "done":
        raise SpecError(f"run {run.id} is done: there is nothing to go on with", rerun)
    spec = session.load_spec(run.spec)
    training = kept_training(run, record, label) if spec.train is not None else None
    # A run that was to be trained only goes on as one; when it is trained, its benchmarks are what is left.
    with_benchmarks = not no_benchmark and (record.with_benchmarks or training is not None)
    if training is not None and not (with_benchmarks and spec.benchmark):
        raise SpecError(f"run {run.id} is trained, and no benchmark is to follow", rerun)
    plan = plan_run(session, spec)
    heed_changes(run, record, plan.spec, plan.facts)
    if spec.train is not None and training is None:
        find_start(run, plan.spec, plan.facts, label)
    return plan, with_benchmarks


def find_start(run: RunDir, spec: RunSpec, facts: Facts, label: str | None = None) -> Start:
    """Where the training of a run would begin now.

    Raises:
        SpecError: there is no checkpoint of that label, or LLaMA-Factory goes on from none in this kind of training.
        PrerequisiteError: the checkpoint of that label is not whole.
    """
    if spec.train is not None and _always_anew(spec.train.stage, spec.train.finetuning_type):
        why = f"LLaMA-Factory goes on from no checkpoint of {spec.train.stage} with {spec.train.finetuning_type}"
        if label is not None:
            raise SpecError(f"{why}, so not from {label}", f"leave --from out: the training of {run.id} begins anew")
        return Start(passed_over=[why])
    machine = this_machine(spec.compute, os.environ)
    ranks = own_ranks(spec.compute, machine)
    if machine is not None and label is None and run.checkpoints():
        raise _all_from_the_same(run, machine, ranks)
    checkpoint, passed_over = choose_checkpoint(run, label, planned_world_size(spec.compute, facts), ranks)
    return Start(checkpoint, passed_over)


def _all_from_the_same(run: RunDir, machine: Machine, ranks: range | None) -> PrerequisiteError:
    """What each machine holds by itself may be another step than the others': nobody but the user knows."""
    found = [each.label for each in usable_checkpoints(run, ranks=ranks) if each.whole]
    here = f"whole here: {', '.join(found)}" if found else "none is whole here: copy one from the machine with rank 0"
    return PrerequisiteError(
        f"which checkpoint? {run.id} trains on {machine.count} machines, and all must go on from the same one; {here}",
        f"on each machine: orchestrator resume {run.id} --from {found[0] if found else 'checkpoint-N'}",
    )


def make_way(run: RunDir, start: Start) -> list[str]:
    """Set aside what would mix with the training that begins; each thing that was, in a line.

    At step 0 that is all of output/: LLaMA-Factory would go on from a checkpoint in it, whole or not, unasked. From a
    checkpoint on it is the later ones: they would be written over in part.
    """
    if start.checkpoint is None:
        if not run.output.is_dir() or not any(run.output.iterdir()):
            return []
        folder = run.new_set_aside()
        run.output.rename(folder)  # onto an empty folder
        return [f"what the training had left is kept in {folder.name}/"]
    later = [path for path in run.checkpoints() if int(path.name.rpartition("-")[2]) > start.step]
    if not later:
        return []
    folder = run.new_set_aside()
    for path in later:
        path.rename(folder / path.name)
    names = ", ".join(path.name for path in later)
    return [f"{names}: later than {start.label}, so kept in {folder.name}/"]


def begin(run: RunDir, spec: RunSpec, record: RunRecord, facts: Facts, label: str | None) -> Start:
    """Find where the training begins, say so, and make way for it."""
    start = find_start(run, spec, facts, label)
    said = [*start.lines(), *make_way(run, start)] if len(record.attempts) > 1 else []
    for line in said:
        log.info("%s", line)
    return start


def kept_training(run: RunDir, record: RunRecord, label: str | None = None) -> Training | None:
    """A training that came to its end in an earlier attempt; None where there is something left to train.

    Raises:
        SpecError: a checkpoint to go on from is named all the same.
    """
    training = finished(run, record.resumed_at()) if run.output.is_dir() else None
    if training is not None and label is not None:
        raise SpecError(f"the training of {run.id} is finished: nothing goes on from {label}", "leave --from out")
    return training


def heed_changes(run: RunDir, record: RunRecord, spec: RunSpec, now: Facts) -> list[str]:
    """What changed since the run began, in lines.

    Raises:
        PrerequisiteError: something that would make another training of it.
    """
    found = resume_problems(_spec_then(run, record, spec), spec, record.facts, now)
    if errors := [problem.message for problem in found if problem.severity == "error"]:
        raise PrerequisiteError(
            f"run {run.id} cannot go on as it began: {'; '.join(errors)}",
            f"put back what it began with; or start anew with what is there: orchestrator rerun {run.id}",
        )
    return [problem.message for problem in found if problem.severity == "warning"]


def end_left_over(run: RunDir) -> None:
    """End what an earlier owner of the run left running, if it was killed: it may still write into output/."""
    left = left_behind(run.path)
    if not left:
        return
    log.warning("processes of %s are still there, and end first: %s", run.id, pids(left))
    end_run(lambda: left_behind(run.path), GRACE_S)


def prepared_sha256(run: RunDir) -> str:
    """Hash of what was prepared for LLaMA-Factory: the files in data/, and dataset_info.json."""
    parts = {}
    for path in [*sorted(run.data.glob("*.jsonl")), run.dataset_info]:
        if path.is_file():
            with path.open("rb") as file:
                parts[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _spec_then(run: RunDir, record: RunRecord, spec: RunSpec) -> RunSpec:
    """The spec that the run began with. Where spec.yaml was edited since, its training is read from train.yaml."""
    if spec.train is None or spec_sha256(spec) == record.spec_sha256 or not run.train_yaml.is_file():
        return spec
    given = yaml.safe_load(run.train_yaml.read_bytes())
    train = {key: value for key, value in given.items() if key not in OWNED}
    return spec.model_copy(update={"train": TrainSpec.model_validate(train), "seed": given.get("seed", spec.seed)})


def _always_anew(stage: str, finetuning_type: str) -> bool:
    """As LLaMA-Factory has it: llamafactory/hparams/parser.py, can_resume_from_checkpoint."""
    return stage in ("rm", "ppo") and finetuning_type in ("full", "freeze")
