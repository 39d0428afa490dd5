"""A run's checkpoints by step: their scores on a validation set, and the one that these speak for.

The rule: of the checkpoints, the one with the best score is compared with each other one by paired approximate
randomization; those with p < 0.05 after Holm's correction over all of these comparisons are worse, and the earliest of
the others is chosen. So a later one is taken only where this validation set can show that it is better. The model
before training and what could not be benchmarked take no part.
Covered: the rule; curve.json; the curve in lines of text.
Not covered: benchmarking the checkpoints (every_checkpoint.py).
Leaves curve.json in the run folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from orchestrator.benchmark.compare import compare
from orchestrator.benchmark.finished import Benchmark, read_benchmark
from orchestrator.errors import SpecError, StageError, did_you_mean
from orchestrator.files import atomic_write
from orchestrator.runs.record import now
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import HEADINGS, Score
from orchestrator.scoring.significance import PairedTest
from orchestrator.specs.benchmark_spec import Metric

SCHEMA_VERSION = 1
RULE = (
    "the earliest checkpoint that is not significantly worse than the best: paired approximate randomization against "
    "the checkpoint of the best score, p < 0.05 after Holm's correction over these comparisons"
)
_WIDTH = 32  # of the drawn intervals, in characters


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Point(_Part):
    """One checkpoint."""

    label: str
    """checkpoint-N, output or base."""
    same_as: list[str] = []
    """Other labels with the same weights; they were not asked."""
    step: int | None
    """None: its trainer_state.json does not say."""
    benchmark: str
    """Its folder in benchmarks/."""
    scores: list[Score]
    difference: float | None = None
    """Its score minus the best one's. None: it is the best."""
    difference_ci95: tuple[float, float] | None = None
    """Where 95 % of the paired bootstrap's differences are."""
    p_holm: float | None = None
    """Of paired approximate randomization, after Holm's correction."""
    worse: bool = False
    """Whether it is significantly worse than the best."""
    smallest_difference: float | None = None
    """What this validation set can show between the two."""


class Curve(_Part):
    """What curve.json holds."""

    schema_version: int = SCHEMA_VERSION
    run: str
    made_at: datetime
    testset: str
    split: str
    n_segments: int
    text_sha256: str
    prompts_sha256: str
    metric: Metric
    """What the rule goes by."""
    signature: str
    rule: str = RULE
    points: list[Point]
    """By step."""
    base: Point | None = None
    """The model before training, where that was asked for; compared with the best, with no part in the choice."""
    best: str
    """The label of the best score."""
    chosen: str
    """The label that the rule gives."""
    left_out: dict[str, str] = {}
    """Labels that take no part, and why."""
    test: list[BenchmarkSummary] = []
    """The chosen one's benchmarks on test sets. Its score above is the one that it was chosen by, so it is too good."""

    def point(self, label: str) -> Point:
        return next(point for point in self.points if point.label == label)

    def save(self, run: RunDir) -> None:
        atomic_write(run.curve, self.model_dump_json(indent=2) + "\n")


@dataclass(frozen=True)
class Done:
    """A checkpoint that was benchmarked."""

    label: str
    step: int | None
    same_as: tuple[str, ...]
    folder: Path
    """The benchmark's."""


def check_metric(name: str, metrics: Sequence[Metric]) -> Metric:
    """The metric of a name, which is among those that the benchmark scores.

    Raises:
        SpecError: it is not.
    """
    for metric in metrics:
        if metric == name:
            return metric
    raise SpecError(
        f"the validation set is not scored by {name!r}{did_you_mean(name, metrics)}; by: {', '.join(metrics)}",
        "choose one of these: --metric NAME",
    )


def draw_curve(
    run: RunDir, done: Sequence[Done], base: Done | None, metric: Metric, left_out: Mapping[str, str]
) -> Curve:
    """The curve of checkpoints that were benchmarked alike, and what the rule says.

    Args:
        run: whose.
        done: the checkpoints, in the order of their steps.
        base: the model before training.
        metric: what the rule goes by.
        left_out: what could not be benchmarked, and why.

    Raises:
        StageError: none was answered whole.
        SpecError, PrerequisiteError: what was benchmarked cannot be compared (compare.py).
    """
    read = [(each, read_benchmark(each.label, each.folder)) for each in done]
    part = {each.label: f"incomplete: {found.stored.n_segments} answers" for each, found in read if not _whole(found)}
    whole = [(each, found) for each, found in read if _whole(found)]
    if not whole:
        raise StageError(f"no checkpoint of {run.id} was answered whole, so none can be chosen")
    best = max(whole, key=lambda pair: _worth(pair[1], metric))[1]  # of equal ones the first
    tests = _against(best, [found for _, found in whole if found is not best], metric)
    points = [_point(each, found, tests.get(each.label)) for each, found in whole]
    before = None
    if base is not None and _whole(found := read_benchmark(base.label, base.folder)):
        before = _point(base, found, _against(best, [found], metric)[base.label])
    stored = best.stored
    return Curve(
        run=run.id,
        made_at=now(),
        testset=stored.testset,
        split=stored.split,
        n_segments=stored.n_segments,
        text_sha256=stored.text_sha256,
        prompts_sha256=stored.prompts_sha256,
        metric=metric,
        signature=_score(best, metric).signature,
        points=points,
        base=before,
        best=best.name,
        chosen=next(point.label for point in points if not point.worse),
        left_out={**left_out, **part},
    )


def curve_lines(curve: Curve) -> list[tuple[str, ...]]:
    """The curve as rows of a table: step, label, score, the interval drawn, against the best, remark."""
    shown = ([curve.base] if curve.base else []) + curve.points
    intervals = [_interval(point, curve.metric) for point in shown]
    low, high = min(each[0] for each in intervals), max(each[2] for each in intervals)
    return [
        (
            "0" if point is curve.base else "?" if point.step is None else str(point.step),
            " = ".join([point.label, *point.same_as]),
            _score_words(point, curve.metric),
            _drawn(interval, low, high),
            "" if point.difference is None else f"{point.difference:+.1f}, p = {point.p_holm:.2g}",
            _remark(point, curve),
        )
        for point, interval in zip(shown, intervals, strict=True)
    ]


def chosen_words(curve: Curve) -> str:
    """Which one was chosen and why, in a sentence."""
    heading, of = HEADINGS[curve.metric], f"{curve.testset} {curve.split}, {curve.n_segments} segments"
    if len(curve.points) == 1:
        return f"chosen: {curve.chosen}, the only checkpoint ({of})"
    if curve.chosen == curve.best:
        others = "every earlier one is significantly worse"
        why = "the earliest, and the best" if curve.chosen == curve.points[0].label else f"the best, and {others}"
    else:
        why = f"the earliest that is not significantly worse in {heading} than the best, {curve.best}"
    shows = curve.point(curve.chosen).smallest_difference
    power = f"; between these two, this set can show differences of about {shows:.1f}" if shows else ""
    return f"chosen: {curve.chosen}, {why} ({of}{power})"


def _whole(found: Benchmark) -> bool:
    return found.stored.status == "complete"


def _score(found: Benchmark, metric: Metric) -> Score:
    for score in found.stored.scores:
        if score.metric == metric:
            return score
    raise SpecError(f"{found.folder} has no score by {metric}", "benchmark it anew: --fresh")


def _worth(found: Benchmark, metric: Metric) -> float:
    score = _score(found, metric).score
    return -score if metric == "ter" else score


def _against(best: Benchmark, others: Sequence[Benchmark], metric: Metric) -> dict[str, PairedTest]:
    """The paired test of each against the best, by name."""
    if not others:
        return {}
    return {test.system: test for test in compare([best, *others], [metric], n_examples=0).tests}


def _point(done: Done, found: Benchmark, test: PairedTest | None) -> Point:
    tested = {} if test is None else {
        "difference": test.difference,
        "difference_ci95": test.ci95,
        "p_holm": test.p_holm,
        "worse": test.better == test.baseline,
        "smallest_difference": test.smallest_difference,
    }  # fmt: skip
    return Point(
        label=done.label,
        same_as=list(done.same_as),
        step=done.step,
        benchmark=done.folder.name,
        scores=found.stored.scores,
        **tested,
    )


def _interval(point: Point, metric: Metric) -> tuple[float, float, float]:
    """Low, score, high."""
    score = next(each for each in point.scores if each.metric == metric)
    low, high = score.ci95 or (score.score, score.score)
    return min(low, score.score), score.score, max(high, score.score)


def _score_words(point: Point, metric: Metric) -> str:
    score = next(each for each in point.scores if each.metric == metric)
    return f"{score.score:.1f}" + (f" [{score.ci95[0]:.1f}, {score.ci95[1]:.1f}]" if score.ci95 else "")


def _drawn(interval: tuple[float, float, float], low: float, high: float) -> str:
    """---*--- on an axis from low to high."""
    scale = (_WIDTH - 1) / (high - low) if high > low else 0
    begin, place, end = (round((value - low) * scale) for value in interval)
    return "".join("*" if at == place else "-" if begin <= at <= end else " " for at in range(_WIDTH))


def _remark(point: Point, curve: Curve) -> str:
    if point is curve.base:
        return "before training"
    said = [word for word, label in (("best", curve.best), ("chosen", curve.chosen)) if point.label == label]
    return ", ".join([*said, *["worse"] * point.worse])
