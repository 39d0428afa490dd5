"""RUN@all: every checkpoint of a run on its validation set, the choice of one, and that one on the test sets.

The best score is chosen. Beside it the earliest checkpoint is named that cannot be told from it: "not significantly
worse" is not "as good", and taking the earlier one costs up to 2.5 BLEU where the set is small.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.benchmark.compare import load_statistics
from orchestrator.benchmark.evaluate import EvalOptions
from orchestrator.benchmark.results import COMPARABLE, Benchmark, read_result
from orchestrator.benchmark.run import BenchmarkJob
from orchestrator.data.testset import load_testset, resolve_instruction
from orchestrator.errors import OrchestratorError, PrerequisiteError, SpecError, StageError, did_you_mean
from orchestrator.files import atomic_write, json_mapping
from orchestrator.models.hashes import model_sha256
from orchestrator.models.model_files import base_checkpoint, trained_checkpoint, weight_problems
from orchestrator.planning.plan import plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import HEADINGS, Score, higher_is_better
from orchestrator.scoring.significance import PairedTest, n_pairs, paired_tests
from orchestrator.specs.benchmark_spec import BenchmarkSpec, Metric
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, RunSpec, ServeSpec

log = logging.getLogger("orchestrator")

POLL_S = 2.0


class Point(BaseModel):
    """One checkpoint on the validation set."""

    model_config = ConfigDict(frozen=True)

    label: str
    same_as: list[str] = []  # other labels with the same weights, which were not benchmarked
    step: int | None  # None: its trainer_state.json does not say
    benchmark: str = ""  # its folder in benchmarks/
    scores: list[Score] = []
    test: PairedTest | None = None  # against the chosen one, by the metric that chooses. None: it is the chosen one.

    @property
    def worse(self) -> bool:
        return self.test is not None and self.test.better == self.test.baseline


class Curve(BaseModel):
    """What curve.json holds."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 2
    run: str
    testset: str
    split: str
    n_segments: int
    text_sha256: str
    prompts_sha256: str
    metric: Metric
    signature: str
    points: list[Point]  # by step
    base: Point | None = None  # the model before training, where it was wanted; it has no part in the choice
    chosen: str  # the label of the best score; of equal ones the earliest
    earliest_not_worse: str  # not significantly worse than the chosen one; which is not to say that it is as good
    left_out: dict[str, str] = {}  # labels that take no part, and why
    test: list[BenchmarkSummary] = []  # the chosen one's; its score above, which it was chosen by, is too good

    def words(self) -> str:
        """Which one was chosen, and which others it may be, in a sentence."""
        heading = HEADINGS[self.metric]
        text = f"chosen: {self.chosen}, the best in {heading} ({self.testset} {self.split}, {self.n_segments} segments)"
        test = next(point.test for point in self.points if point.label == self.earliest_not_worse)
        if test is None:
            return text if self.points[0].label == self.chosen else f"{text}; every earlier one is significantly worse"
        interval = f" [{test.ci95[0]:+.1f}, {test.ci95[1]:+.1f}]" if test.ci95 else ""
        return (
            f"{text}; the earliest that cannot be told from it is {test.system}: "
            f"{test.difference:+.1f} {heading}{interval}, p = {test.p_holm:.2g}"
        )


@dataclass(frozen=True)
class SelectionOptions:
    testset: str | None = None  # the validation set's dataset. None: that of the spec's first benchmark.
    split: str = "validation"
    changes: Mapping[str, Any] = field(default_factory=dict)  # fields of the validation set's benchmark
    metric: str = "bleu"
    with_base: bool = False  # whether the model before training is benchmarked too
    watch: bool = False  # whether they are benchmarked as they are saved, until the run has ended


def select_checkpoint(
    session: Session, run: RunDir, spec: RunSpec, how: SelectionOptions, settings: ServeSpec, options: EvalOptions
) -> Curve:
    """Benchmark all checkpoints of a run, choose one, and benchmark that one alone on the spec's other test sets.

    Raises StageError: a checkpoint got no score, so none was chosen, unless parts are allowed.
    """
    if spec.model is None or spec.train is None:
        raise SpecError(f"{run.id} trains nothing, so it has no checkpoints", f"orchestrator benchmark {run.id}")
    validation, metric = _validation_set(session, spec, how)
    tests = [each for each in spec.benchmark if (each.testset, each.split) != (validation.testset, validation.split)]
    items = [resolve_instruction(item, session.dataset_folders, spec.datasets) for item in (validation, *tests)]
    here = spec.compute.model_copy(update={"slurm": None})
    # the training's data are not read again
    alone = RunSpec(name=spec.name, model=spec.model, serve=settings, benchmark=items, compute=here)
    job = BenchmarkJob(session, plan_run(session, alone), run, RunRecord.load(run), options)
    base = base_checkpoint(spec.model, session.workspace.root)
    if how.watch:
        _watch(job, base.model, items[:1])
    points, left_out = _points(run, job.record)
    for label, reason in left_out.items():
        log.warning("%s is passed over: %s", label, reason)
    if not points:
        raise PrerequisiteError(f"run {run.id} has no checkpoint that can be served", f"orchestrator show {run.id}")
    checkpoints = {point.label: trained_checkpoint(_folder(run, point.label), base.model) for point in points}
    if how.with_base:
        points, checkpoints = [Point(label="base", step=0), *points], {"base": base, **checkpoints}
    folders, failed = _evaluate(job, list(checkpoints.values()), items[:1])
    left_out |= {label: error.message.splitlines()[0] for label, error in failed.items()}
    if failed and not (options.allow_incomplete and folders):
        raise StageError(
            f"no checkpoint was chosen: {len(failed)} of {len(checkpoints)} got no score: "
            + "; ".join(f"{label}: {left_out[label]}" for label in failed),
            f"what was answered stays: orchestrator benchmark {run.id}@all goes on with what is missing "
            "(--allow-incomplete: chosen among those that were answered completely)",
        )
    found = {label: Benchmark(label, made[0], read_result(made[0])) for label, made in folders.items()}
    for label, each in found.items():
        if each.result.status != "complete":
            left_out[label] = f"incomplete: {each.result.n_segments} answers"
    curve = _curve(run, [point for point in points if point.label not in left_out], found, metric, left_out)
    atomic_write(run.curve, curve.model_dump_json(indent=2) + "\n")
    job.record.update(run, chosen_checkpoint=curve.chosen)
    if not tests:
        log.warning("the spec has no other set to score it on: the score here, which it was chosen by, is too good")
        return curve
    tested = checkpoints[curve.chosen]
    if any("output" in point.same_as for point in points if point.label == curve.chosen):
        tested = replace(tested, label="output")  # the run's own benchmarks are of output: they are not done again
    folders, failed = _evaluate(job, [tested], items[1:])
    if failed:
        raise failed[tested.label]
    ids = {folder.name for folder in folders[tested.label]}
    curve = curve.model_copy(update={"test": [item for item in RunRecord.load(run).benchmarks if item.id in ids]})
    atomic_write(run.curve, curve.model_dump_json(indent=2) + "\n")
    return curve


def _evaluate(
    job: BenchmarkJob, checkpoints: Sequence[Checkpoint], items: Sequence[BenchmarkSpec]
) -> tuple[dict[str, list[Path]], dict[str, StageError]]:
    """By label the folders of the items' benchmarks, and how a checkpoint failed, which does not stop the others.

    Raises StageError: the first two fail: it is not the checkpoint's fault.
    """
    done: dict[str, list[Path]] = {}
    failed: dict[str, StageError] = {}
    while left := [each for each in checkpoints if each.label not in {*done, *failed}]:
        at = left[0].label
        try:
            with job.servers(left) as connect_to:
                for each in left:
                    at = each.label
                    done[at] = job.benchmark(each, items, connect_to, keep_completed=not job.options.fresh)
        except StageError as error:  # it may have lost its server, so the others get a new one
            failed[at] = error
            if len(failed) > 1 and not done:
                raise
            log.error("%s: %s", at, error.message)
    job.score_by_comet([pair for folders in done.values() for pair in zip(items, folders, strict=True)])
    return done, failed


def _watch(job: BenchmarkJob, base: ModelSpec, items: Sequence[BenchmarkSpec]) -> None:
    settled = set[str]()
    while True:
        trains = RunRecord.load(job.run).is_active()  # before the checkpoints are looked at
        saved = (each for each in reversed(usable_checkpoints(job.run)) if each.is_saved)
        if each := next((each for each in saved if each.label not in settled), None):
            settled.add(each.label)
            try:
                _evaluate(job, [trained_checkpoint(each.folder, base)], items)
            except (OrchestratorError, OSError) as error:
                gone = "it was removed meanwhile (save_total_limit)"
                log.warning("%s is passed over: %s", each.label, error if each.folder.is_dir() else gone)
        elif not trains:
            return
        else:
            time.sleep(POLL_S)


def _validation_set(session: Session, spec: RunSpec, how: SelectionOptions) -> tuple[BenchmarkSpec, Metric]:
    like = next((item for item in spec.benchmark if how.testset in (None, item.testset)), None)
    if like is None and how.testset is None:
        raise SpecError(f"which validation set? {spec.name} has no benchmark", "give one: --testset NAME")
    item = (like or BenchmarkSpec(testset=str(how.testset))).model_copy(update={"split": how.split, **how.changes})
    splits = load_testset(item, session.dataset_folders, spec.datasets).entry.splits
    if item.split not in splits:
        what = f"{item.testset} has no split {item.split} to choose a checkpoint by; it has: {', '.join(splits)}"
        raise SpecError(what, "name a set that the chosen checkpoint is not scored on: --testset NAME --split SPLIT")
    for metric in item.metrics:
        if metric == how.metric:
            return item, metric
    hint = did_you_mean(how.metric, item.metrics)
    what = f"the validation set is not scored by {how.metric!r}{hint}; by: {', '.join(item.metrics)}"
    raise SpecError(what, "choose one of these: --metric NAME")


def _points(run: RunDir, record: RunRecord) -> tuple[list[Point], dict[str, str]]:
    """The checkpoints of a run by step, output last, and what can't be served, with the reason."""
    found: dict[str, Point] = {}  # by the hash of the weights
    left_out: dict[str, str] = {}
    steps: dict[str, int | None] = {}
    for each in reversed(usable_checkpoints(run)):
        if not weight_problems(each.folder):
            steps[each.label] = each.step
        else:
            left_out[each.label] = "; ".join(each.problems)
    problems = weight_problems(run.output) if run.output.is_dir() else ["it is not there"]
    if not problems:
        steps["output"] = (json_mapping(run.output / "trainer_state.json") or {}).get("global_step")
    elif record.training is not None:
        left_out["output"] = "; ".join(problems)
    for label, step in steps.items():
        same = found.setdefault(model_sha256(_folder(run, label)), Point(label=label, step=step))
        if same.label != label:
            log.info("%s: the same weights as %s, benchmarked once", label, same.label)
            same.same_as.append(label)
    return list(found.values()), left_out


def _folder(run: RunDir, label: str) -> Path:
    return run.output if label == "output" else run.output / label


def _curve(
    run: RunDir, points: Sequence[Point], found: Mapping[str, Benchmark], metric: Metric, left_out: dict[str, str]
) -> Curve:
    """The curve of checkpoints that were benchmarked alike, in the order of their steps, and the best of them."""
    labels, trained = [point.label for point in points], [point.label for point in points if point.label != "base"]
    if not trained:
        raise StageError(f"no checkpoint of {run.id} was answered completely, so none can be chosen")
    if not_scored := [label for label in labels if found[label].score(metric) is None]:
        raise SpecError(f"{', '.join(not_scored)}: no score by {metric}", "benchmark them anew: --fresh")
    of_all, _ = load_statistics([found[label] for label in labels], [metric])
    stats = dict(zip(labels, of_all[metric], strict=True))
    # Scored now, all by one sacrebleu: a benchmark that was completed before may be of another version.
    values = {label: stats[label].score() for label in trained}
    best = (max if higher_is_better(metric) else min)(trained, key=values.__getitem__)  # of equal ones the first
    names = [best, *(label for label in labels if label != best)]
    tests = paired_tests(names, {metric: [stats[name] for name in names]}, n_comparisons=n_pairs(len(trained)))
    tested = {test.system: test for test in tests}
    scored = {}
    for point in points:
        of, result = found[point.label].folder.name, found[point.label].result
        own = {"benchmark": of, "scores": result.scores, "test": tested.get(point.label)}
        scored[point.label] = point.model_copy(update=own)
    return Curve(
        **{key: getattr(found[best].result, key) for key in COMPARABLE},
        run=run.id,
        metric=metric,
        signature=next(score.signature for score in scored[best].scores if score.metric == metric),
        points=[scored[label] for label in trained],
        base=scored.get("base"),
        chosen=best,
        earliest_not_worse=next(label for label in trained if not scored[label].worse),
        left_out=left_out,
    )
