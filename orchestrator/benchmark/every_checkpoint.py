"""Every checkpoint of a run on its validation set, the choice of one, and that one on the test sets.

    checkpoints -> benchmarks of the validation set -> curve, choice -> benchmarks of the test sets

Covered: which set chooses and which ones test; what can be served, damaged checkpoints passed over and named; weights
with several labels asked once; nothing asked again that was answered before, so that the same command goes on after an
interruption; one that fails while the others go on.
Not covered: the rule (curve.py), asking (benchmarking.py), benchmarks beside a training (during.py).
Leaves curve.json and the benchmarks in the run folder, and the choice in the record.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.benchmark.afterwards import score_by_comet
from orchestrator.benchmark.benchmarking import Connect, benchmark_checkpoint, served_in_turn, whole_benchmark
from orchestrator.benchmark.curve import Curve, Done, check_metric, draw_curve
from orchestrator.benchmark.evaluate import Asking
from orchestrator.data.datasets import load_parallel
from orchestrator.errors import PrerequisiteError, SpecError, StageError
from orchestrator.models.checkpoints import can_be_served
from orchestrator.models.hashes import model_sha256
from orchestrator.models.model_files import (
    base_checkpoint,
    trained_checkpoint,
    weight_problems,
)
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.record import RunRecord
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.benchmark_spec import BenchmarkSpec, Metric
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, RunSpec, ServeSpec

log = logging.getLogger("orchestrator")

SPLIT = "validation"


@dataclass(frozen=True)
class Sets:
    """What chooses, and what tests."""

    validation: BenchmarkSpec
    tests: Sequence[BenchmarkSpec]


@dataclass(frozen=True)
class Candidate:
    """A checkpoint of a run that can be served."""

    checkpoint: Checkpoint
    step: int | None
    """None: its trainer_state.json does not say."""
    same_as: tuple[str, ...] = ()
    """Other labels of the same weights."""

    @property
    def label(self) -> str:
        return self.checkpoint.label


def sets_of(
    session: Session, spec: RunSpec, testset: str | None, split: str | None, changes: Mapping[str, Any]
) -> Sets:
    """The validation set and the test sets of a run.

    Args:
        session: the workspace.
        spec: the run's; its other benchmarks are the test sets.
        testset: a dataset. None: that of the benchmark with `during`, or of the first one.
        split: of it. None: that of the benchmark with `during`, or validation.
        changes: fields of the validation set's benchmark.

    Raises:
        SpecError: there is no such set.
    """
    items = sorted(spec.benchmark, key=lambda item: not item.during)
    like = next((item for item in items if testset in (None, item.testset)), None)
    if like is None and testset is None:
        raise SpecError(f"which validation set? {spec.name} has no benchmark", "give one: --testset NAME")
    base = like or BenchmarkSpec(testset=str(testset))
    wanted = split or (base.split if base.during else SPLIT)
    splits = load_parallel(base.testset, session.dataset_folders).entry.splits
    if wanted not in splits:
        raise SpecError(
            f"{base.testset} has no split {wanted} to choose a checkpoint by; it has: {', '.join(splits)}",
            "name a set other than the one that the chosen checkpoint is scored on: --testset NAME --split SPLIT",
        )
    validation = base.model_copy(update={"split": wanted, **changes})
    tests = [item for item in spec.benchmark if (item.testset, item.split) != (base.testset, wanted)]
    return Sets(validation, tests)


def benchmark_every_checkpoint(
    session: Session,
    run: RunDir,
    spec: RunSpec,
    sets: Sets,
    settings: ServeSpec,
    how: Asking,
    *,
    metric: str = "bleu",
    with_base: bool = False,
) -> Curve:
    """Benchmark all checkpoints of a run, choose one, and put the test sets to that one alone.

    Raises:
        SpecError, PrerequisiteError: the run trains nothing, nothing can be served, a set cannot be had.
        StageError: a checkpoint got no score, so none was chosen, unless parts are allowed.
    """
    if spec.model is None or spec.train is None:
        raise SpecError(f"{run.id} trains nothing, so it has no checkpoints", f"orchestrator benchmark {run.id}")
    chosen_by = check_metric(metric, sets.validation.metrics)
    plan = plan_benchmarks(session, spec, [sets.validation, *sets.tests], settings)
    record = RunRecord.load(run)
    curve = choose(session, plan, run, record, sets.validation, how, metric=chosen_by, with_base=with_base)
    if not sets.tests:
        log.warning("the spec has no other set to score it on: the score here, which it was chosen by, is too good")
        return curve
    found = next(each for each in find_candidates(session, plan, run)[0] if each.label == curve.chosen)
    # The run's own benchmarks are of output: where that is the same, they are not done again.
    tested = replace(found.checkpoint, label="output") if "output" in found.same_as else found.checkpoint
    done, failed = put_to(session, plan, run, record, [tested], sets.tests, how)
    if failed:
        raise failed[tested.label]
    ids = {folder.name for folder in done[tested.label]}
    curve = curve.model_copy(update={"test": [item for item in record.benchmarks if item.id in ids]})
    curve.save(run)
    return curve


def plan_benchmarks(session: Session, spec: RunSpec, items: Sequence[BenchmarkSpec], settings: ServeSpec) -> Plan:
    """A plan of benchmarks alone: the training's data are not read again."""
    compute = spec.compute.model_copy(update={"slurm": None})  # asked for here, it is done here
    alone = [item.model_copy(update={"during": False}) for item in items]
    asked = RunSpec(name=spec.name, model=spec.model, serve=settings, benchmark=alone, compute=compute)
    return plan_run(session, asked)


def choose(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    item: BenchmarkSpec,
    how: Asking,
    *,
    metric: Metric,
    with_base: bool,
) -> Curve:
    """Put the validation set to all checkpoints, and choose one."""
    candidates, left_out = find_candidates(session, plan, run)
    for label, reason in left_out.items():
        log.warning("%s is passed over: %s", label, reason)
    if not candidates:
        raise PrerequisiteError(f"run {run.id} has no checkpoint that can be served", f"orchestrator show {run.id}")
    for each in candidates:
        if each.same_as:
            log.info("%s: the same weights as %s, asked once", ", ".join(each.same_as), each.label)
    base = [base_checkpoint(_model(plan.spec), session.workspace.root)] if with_base else []
    checkpoints = [*base, *(each.checkpoint for each in candidates)]
    folders, failed = put_to(session, plan, run, record, checkpoints, [item], how)
    for label, error in failed.items():
        left_out[label] = error.message.splitlines()[0]
    if failed and not (how.allow_incomplete and folders):
        raise StageError(
            f"no checkpoint was chosen: {len(failed)} of {len(checkpoints)} got no score: "
            + "; ".join(f"{label}: {left_out[label]}" for label in failed),
            f"what was answered stays: orchestrator benchmark {run.id}@all goes on with what is missing "
            "(--allow-incomplete: chosen among those that were answered whole)",
        )
    done = [
        Done(each.label, each.step, each.same_as, folders[each.label][0])
        for each in candidates
        if each.label in folders
    ]
    before = Done("base", 0, (), folders["base"][0]) if "base" in folders else None
    curve = draw_curve(run, done, before, metric, left_out)
    curve.save(run)
    record.update(run, chosen_checkpoint=curve.chosen)
    return curve


def find_candidates(session: Session, plan: Plan, run: RunDir) -> tuple[list[Candidate], dict[str, str]]:
    """The checkpoints of a run by step, output last, and what can't be served, with the reason."""
    base = base_checkpoint(_model(plan.spec), session.workspace.root).model
    found: dict[str, Candidate] = {}  # by the hash of the weights
    left_out: dict[str, str] = {}
    for each in reversed(usable_checkpoints(run)):
        if can_be_served(each):
            _add_candidate(found, trained_checkpoint(each.folder, base), each.step)
        else:
            left_out[each.label] = "; ".join(each.problems)
    problems = weight_problems(run.output) if run.output.is_dir() else []
    if run.output.is_dir() and not problems:
        _add_candidate(found, trained_checkpoint(run.output, base), _step(run.output / "trainer_state.json"))
    elif problems and RunRecord.load(run).training is not None:
        left_out["output"] = "; ".join(problems)
    return list(found.values()), left_out


def put_to(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    checkpoints: Sequence[Checkpoint],
    items: Sequence[BenchmarkSpec],
    how: Asking,
) -> tuple[dict[str, list[Path]], dict[str, StageError]]:
    """Put sets to checkpoints, each with all of them in a row; one that fails does not hold up the others.

    Returns:
        By label, the folders of the items' benchmarks, and how it failed.

    Raises:
        StageError: the first two fail.
    """
    done: dict[str, list[Path]] = {}
    failed: dict[str, StageError] = {}
    while left := [each for each in checkpoints if each.label not in {*done, *failed}]:
        try:
            with served_in_turn(session, plan.spec, run, record, left) as connect_to:
                for each in left:
                    at = each
                    done[each.label] = _put_all(session, plan, run, record, each, items, how, connect_to)
        except StageError as error:  # it may have lost its server, so the others get a new one
            failed[at.label] = error
            if len(failed) > 1 and not done:  # it is not the checkpoint's fault
                raise
            log.error("%s: %s", at.label, error.message)
    pairs = [(item, folder) for folders in done.values() for item, folder in zip(items, folders, strict=True)]
    score_by_comet(session, plan.spec, run, record, pairs)
    return done, failed


def _put_all(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    checkpoint: Checkpoint,
    items: Sequence[BenchmarkSpec],
    how: Asking,
    connect_to: Connect,
) -> list[Path]:
    """The folders of some sets' benchmarks; what is whole is not done again."""
    folders = []
    for item in items:
        whole = None if how.fresh else whole_benchmark(session, plan, run, record, checkpoint, item)
        if whole is None:
            [whole] = benchmark_checkpoint(session, plan, run, record, checkpoint, [item], how, connect_to)
        folders.append(whole)
    return folders


def _add_candidate(found: dict[str, Candidate], checkpoint: Checkpoint, step: int | None) -> None:
    model = checkpoint.model
    adapter = model.adapter_name_or_path
    digest = model_sha256(Path(adapter or model.name_or_path))
    if digest not in found:
        found[digest] = Candidate(checkpoint, step)
        return
    same = found[digest]
    found[digest] = replace(same, same_as=(*same.same_as, checkpoint.label))


def _step(path: Path) -> int | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    step = value.get("global_step") if isinstance(value, dict) else None
    return step if isinstance(step, int) else None


def _model(spec: RunSpec) -> ModelSpec:
    if spec.model is None:
        raise SpecError(f"{spec.name} has no model of ours", "RUN@all is for runs that train")
    return spec.model
