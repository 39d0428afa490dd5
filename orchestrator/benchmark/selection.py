"""RUN@all: every checkpoint of a run on its validation set, the choice of one, and that one on the test sets.

The best score is chosen. Beside it the earliest checkpoint is named that cannot be told from it: "not significantly
worse" is not "as good", and taking the earlier one costs up to 2.5 BLEU where the set is small.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.benchmark.compare import load_statistics
from orchestrator.benchmark.evaluate import EvalOptions
from orchestrator.benchmark.results import Benchmark, read_result
from orchestrator.benchmark.run import Connect, benchmark_checkpoint, checkpoint_servers, find_completed, score_by_comet
from orchestrator.data.testset import load_testset, resolve_instruction
from orchestrator.errors import OrchestratorError, PrerequisiteError, SpecError, StageError, did_you_mean
from orchestrator.files import atomic_write, json_mapping
from orchestrator.models.checkpoints import can_be_served, is_saved
from orchestrator.models.hashes import model_sha256
from orchestrator.models.model_files import base_checkpoint, trained_checkpoint, weight_problems
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import HEADINGS, Score, higher_is_better
from orchestrator.scoring.significance import PairedTest, n_pairs, paired_tests
from orchestrator.specs.benchmark_spec import BenchmarkSpec, Metric
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import RunSpec, ServeSpec

log = logging.getLogger("orchestrator")

POLL_S = 2.0
RULE = (
    "the checkpoint of the best score; the others are compared with it by paired approximate randomization, Holm's "
    "correction being for all k(k-1)/2 pairs, since these data picked the best"
)


class Point(BaseModel):
    """One checkpoint on the validation set."""

    model_config = ConfigDict(frozen=True)

    label: str
    same_as: list[str] = []
    """Other labels with the same weights, which were not benchmarked."""
    step: int | None
    """None: its trainer_state.json does not say."""
    benchmark: str
    """Its folder in benchmarks/."""
    scores: list[Score]
    test: PairedTest | None = None
    """Against the chosen one, by the metric that chooses. None: it is the chosen one."""

    @property
    def worse(self) -> bool:
        return self.test is not None and self.test.better == self.test.baseline


class Curve(BaseModel):
    """What curve.json holds."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 2
    run: str
    made_at: datetime
    testset: str
    split: str
    n_segments: int
    text_sha256: str
    prompts_sha256: str
    metric: Metric
    signature: str
    rule: str = RULE
    points: list[Point]
    """By step."""
    base: Point | None = None
    """The model before training, where it was wanted; it has no part in the choice."""
    chosen: str
    """The label of the best score; of equal ones the earliest."""
    earliest_not_worse: str
    """The earliest that is not significantly worse than the chosen one; which is not to say that it is as good."""
    left_out: dict[str, str] = {}
    """Labels that take no part, and why."""
    test: list[BenchmarkSummary] = []
    """The chosen one's benchmarks on test sets. Its score above is the one that it was chosen by, so it is too good."""

    def save(self, run: RunDir) -> None:
        atomic_write(run.curve, self.model_dump_json(indent=2) + "\n")

    def words(self) -> str:
        """Which one was chosen, and which others it may be, in a sentence."""
        heading, of = HEADINGS[self.metric], f"{self.testset} {self.split}, {self.n_segments} segments"
        if len(self.points) == 1:
            return f"chosen: {self.chosen}, the only checkpoint ({of})"
        text = f"chosen: {self.chosen}, the best in {heading} ({of})"
        earlier = next(point for point in self.points if point.label == self.earliest_not_worse)
        if earlier.test is None:
            return f"{text}; every earlier one is significantly worse"
        test, interval = earlier.test, ""
        if test.ci95 is not None:
            interval = f" [{test.ci95[0]:+.1f}, {test.ci95[1]:+.1f}]"
        return (
            f"{text}; the earliest that cannot be told from it is {earlier.label}: "
            f"{test.difference:+.1f} {heading}{interval}, p = {test.p_holm:.2g}"
        )


@dataclass(frozen=True)
class Candidate:
    """A checkpoint of a run that can be served."""

    checkpoint: Checkpoint
    step: int | None
    same_as: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return self.checkpoint.label


@dataclass(frozen=True)
class SelectionOptions:
    """What chooses a checkpoint."""

    testset: str | None = None
    """The validation set's dataset. None: that of the spec's first benchmark."""
    split: str = "validation"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the validation set's benchmark."""
    metric: str = "bleu"
    with_base: bool = False
    """Whether the model before training is benchmarked too."""
    watch: bool = False
    """Whether checkpoints are benchmarked as they are saved, until the run has ended, and one is chosen then."""


def select_checkpoint(
    session: Session, run: RunDir, spec: RunSpec, how: SelectionOptions, settings: ServeSpec, options: EvalOptions
) -> Curve:
    """Benchmark all checkpoints of a run, choose one, and benchmark that one alone on the spec's other test sets.

    Raises:
        SpecError, PrerequisiteError: the run trains nothing, nothing can be served, a set cannot be had.
        StageError: a checkpoint got no score, so none was chosen, unless parts are allowed.
    """
    if spec.model is None or spec.train is None:
        raise SpecError(f"{run.id} trains nothing, so it has no checkpoints", f"orchestrator benchmark {run.id}")
    validation = _validation_set(session, spec, how)
    metric = _metric(how.metric, validation)
    tests = [each for each in spec.benchmark if (each.testset, each.split) != (validation.testset, validation.split)]
    items = [resolve_instruction(item, session.dataset_folders, spec.datasets) for item in (validation, *tests)]
    alone = RunSpec(  # the training's data are not read again, and it is carried out here
        name=spec.name,
        model=spec.model,
        serve=settings,
        benchmark=[item.model_copy(update={"during": False}) for item in items],
        compute=spec.compute.model_copy(update={"slurm": None}),
    )
    plan, record = plan_run(session, alone), RunRecord.load(run)
    base = base_checkpoint(spec.model, session.workspace.root)
    if how.watch:
        _watch(session, plan, run, record, base, items[:1], options)
    candidates, left_out = _candidates(run, record, base)
    curve = _choose(session, plan, run, record, base if how.with_base else None, candidates, left_out, metric, options)
    curve.save(run)
    record.update(run, chosen_checkpoint=curve.chosen)
    if not tests:
        log.warning("the spec has no other set to score it on: the score here, which it was chosen by, is too good")
        return curve
    found = next(each for each in candidates if each.label == curve.chosen)
    # The run's own benchmarks are of output: where that is the same, they are not done again.
    tested = replace(found.checkpoint, label="output") if "output" in found.same_as else found.checkpoint
    folders, failed = evaluate_checkpoints(session, plan, run, record, [tested], items[1:], options)
    if failed:
        raise failed[tested.label]
    ids = {folder.name for folder in folders[tested.label]}
    curve = curve.model_copy(update={"test": [item for item in record.benchmarks if item.id in ids]})
    curve.save(run)
    return curve


def evaluate_checkpoints(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    checkpoints: Sequence[Checkpoint],
    items: Sequence[BenchmarkSpec],
    options: EvalOptions,
) -> tuple[dict[str, list[Path]], dict[str, StageError]]:
    """Benchmark checkpoints, each on all sets in a row; one that fails does not hold up the others.

    Returns:
        By label, the folders of the items' benchmarks, and how it failed.

    Raises:
        StageError: the first two fail.
    """
    done: dict[str, list[Path]] = {}
    failed: dict[str, StageError] = {}

    def benchmark(checkpoint: Checkpoint, connect_to: Connect) -> list[Path]:
        completed = {} if options.fresh else find_completed(session, plan, run, record, checkpoint, items)
        left = [item for number, item in enumerate(items) if number not in completed]
        made = iter(benchmark_checkpoint(session, plan, run, record, checkpoint, left, options, connect_to))
        return [completed.get(number) or next(made) for number in range(len(items))]

    while left := [each for each in checkpoints if each.label not in {*done, *failed}]:
        try:
            with checkpoint_servers(session, plan.spec, run, record, left) as connect_to:
                for each in left:
                    at = each
                    done[each.label] = benchmark(each, connect_to)
        except StageError as error:  # it may have lost its server, so the others get a new one
            failed[at.label] = error
            if len(failed) > 1 and not done:  # it is not the checkpoint's fault
                raise
            log.error("%s: %s", at.label, error.message)
    pairs = [(item, folder) for folders in done.values() for item, folder in zip(items, folders, strict=True)]
    score_by_comet(session, plan.spec, run, record, pairs)
    return done, failed


def _validation_set(session: Session, spec: RunSpec, how: SelectionOptions) -> BenchmarkSpec:
    like = next((item for item in spec.benchmark if how.testset in (None, item.testset)), None)
    if like is None and how.testset is None:
        raise SpecError(f"which validation set? {spec.name} has no benchmark", "give one: --testset NAME")
    item = (like or BenchmarkSpec(testset=str(how.testset))).model_copy(update={"split": how.split, **how.changes})
    splits = load_testset(item, session.dataset_folders, spec.datasets).entry.splits
    if item.split not in splits:
        raise SpecError(
            f"{item.testset} has no split {item.split} to choose a checkpoint by; it has: {', '.join(splits)}",
            "name a set other than the one that the chosen checkpoint is scored on: --testset NAME --split SPLIT",
        )
    return item


def _metric(name: str, item: BenchmarkSpec) -> Metric:
    for metric in item.metrics:
        if metric == name:
            return metric
    hint = did_you_mean(name, item.metrics)
    what = f"the validation set is not scored by {name!r}{hint}; by: {', '.join(item.metrics)}"
    raise SpecError(what, "choose one of these: --metric NAME")


def _watch(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    base: Checkpoint,
    items: Sequence[BenchmarkSpec],
    options: EvalOptions,
) -> None:
    """Benchmark a run's checkpoints on the validation set as they are saved, until the run has ended."""
    settled = set[str]()
    while True:
        trains = RunRecord.load(run).is_active()  # before the checkpoints are looked at: those of the end are seen
        saved = [each for each in reversed(usable_checkpoints(run)) if each.label not in settled and is_saved(each)]
        for each in saved[:1]:  # then look again: others may have come, or gone
            settled.add(each.label)
            checkpoint = trained_checkpoint(each.folder, base.model)
            try:
                evaluate_checkpoints(session, plan, run, record, [checkpoint], items, options)
            except (OrchestratorError, OSError) as error:
                gone = "it was removed meanwhile (save_total_limit)"
                log.warning("%s is passed over: %s", each.label, error if each.folder.is_dir() else gone)
        if not saved and not trains:
            return
        if not saved:
            time.sleep(POLL_S)


def _choose(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    base: Checkpoint | None,
    candidates: Sequence[Candidate],
    left_out: dict[str, str],
    metric: Metric,
    options: EvalOptions,
) -> Curve:
    for label, reason in left_out.items():
        log.warning("%s is passed over: %s", label, reason)
    if not candidates:
        raise PrerequisiteError(f"run {run.id} has no checkpoint that can be served", f"orchestrator show {run.id}")
    for each in candidates:
        if each.same_as:
            log.info("%s: the same weights as %s, benchmarked once", ", ".join(each.same_as), each.label)
    everything = [*([Candidate(base, 0)] if base else []), *candidates]
    checkpoints = [each.checkpoint for each in everything]
    folders, failed = evaluate_checkpoints(session, plan, run, record, checkpoints, plan.spec.benchmark[:1], options)
    left_out |= {label: error.message.splitlines()[0] for label, error in failed.items()}
    if failed and not (options.allow_incomplete and folders):
        raise StageError(
            f"no checkpoint was chosen: {len(failed)} of {len(checkpoints)} got no score: "
            + "; ".join(f"{label}: {left_out[label]}" for label in failed),
            f"what was answered stays: orchestrator benchmark {run.id}@all goes on with what is missing "
            "(--allow-incomplete: chosen among those that were answered completely)",
        )
    complete = []
    for each in everything:
        for folder in folders.get(each.label, []):
            found = Benchmark(each.label, folder, read_result(folder))
            if found.result.status == "complete":
                complete.append((each, found))
            else:
                left_out[each.label] = f"incomplete: {found.result.n_segments} answers"
    return _curve(run, complete, metric, left_out)


def _curve(
    run: RunDir, complete: Sequence[tuple[Candidate, Benchmark]], metric: Metric, left_out: dict[str, str]
) -> Curve:
    """The curve of checkpoints that were benchmarked alike, in the order of their steps, and the best of them."""
    trained = [found for each, found in complete if each.label != "base"]
    if not trained:
        raise StageError(f"no checkpoint of {run.id} was answered completely, so none can be chosen")
    sign = 1 if higher_is_better(metric) else -1
    best = max(trained, key=lambda found: sign * _score(found, metric).score)  # of equal ones the first
    others = [found for _, found in complete if found is not best]
    stats, _ = load_statistics([best, *others], [metric])
    tests = paired_tests(
        [best.name, *(each.name for each in others)], stats, n_comparisons=max(1, n_pairs(len(trained)))
    )
    by_name = {test.system: test for test in tests}
    points = [
        Point(
            label=each.label,
            same_as=list(each.same_as),
            step=each.step,
            benchmark=found.folder.name,
            scores=found.result.scores,
            test=by_name.get(each.label),
        )
        for each, found in complete
    ]
    own = [point for point in points if point.label != "base"]
    result = best.result
    return Curve(
        run=run.id,
        made_at=now(),
        testset=result.testset,
        split=result.split,
        n_segments=result.n_segments,
        text_sha256=result.text_sha256,
        prompts_sha256=result.prompts_sha256,
        metric=metric,
        signature=_score(best, metric).signature,
        points=own,
        base=next((point for point in points if point.label == "base"), None),
        chosen=best.name,
        earliest_not_worse=next(point.label for point in own if not point.worse),
        left_out=left_out,
    )


def _candidates(run: RunDir, record: RunRecord, base: Checkpoint) -> tuple[list[Candidate], dict[str, str]]:
    """The checkpoints of a run by step, output last, and what can't be served, with the reason."""
    found: dict[str, Candidate] = {}  # by the hash of the weights
    left_out: dict[str, str] = {}
    steps: dict[Path, int | None] = {}
    for each in reversed(usable_checkpoints(run)):
        if can_be_served(each):
            steps[each.folder] = each.step
        else:
            left_out[each.label] = "; ".join(each.problems)
    problems = weight_problems(run.output) if run.output.is_dir() else ["it is not there"]
    if not problems:
        steps[run.output] = (json_mapping(run.output / "trainer_state.json") or {}).get("global_step")
    elif record.training is not None:
        left_out["output"] = "; ".join(problems)
    for folder, step in steps.items():
        digest, checkpoint = model_sha256(folder), trained_checkpoint(folder, base.model)
        same = found.get(digest)
        found[digest] = replace(same, same_as=(*same.same_as, folder.name)) if same else Candidate(checkpoint, step)
    return list(found.values()), left_out


def _score(benchmark: Benchmark, metric: Metric) -> Score:
    score = benchmark.score(metric)
    if score is None:
        raise SpecError(f"{benchmark.folder} has no score by {metric}", "benchmark it anew: --fresh")
    return score
