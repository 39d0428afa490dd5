"""Whether a repeated run came to the same as the run that it repeats: its first logged losses, and its scores.

The band of known nondeterminism was measured by tests/loss_band.py, which has the table. Where a logged loss is the
mean of hundreds of examples another seed can lie within the band, so a difference in the record that chooses other
examples, weights or steps makes "different" of any difference, however small.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.models.model_files import read_header
from orchestrator.runs.differences import Difference
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.trainer_log import FIRST_LOSSES
from orchestrator.scoring.metrics import Score
from orchestrator.specs.spec import RunSpec

FULL, REDUCED = 5e-4, 2e-2
"""The largest relative difference of a logged loss that counts as rounding, in float32 and in less."""
_LESS_THAN_FLOAT32 = ("bf16", "fp16", "pure_bf16", "fp8", "tf32", "quantization_bit", "deepspeed", "fsdp")
_SMALLEST = 0.1  # of a loss near 0 a fraction says nothing
_LOGGING = ("train.logging_steps", "train.logging_strategy", "train.logging_first_step")
# The likeliest causes first: by kind, and among packages by name.
_KINDS = ("data", "model", "adapter", "template", "spec", "version", "environment", "machine", "git")
_PACKAGES = ("torch", "transformers", "peft", "llamafactory", "accelerate", "trl", "datasets", "tokenizers")


@dataclass(frozen=True)
class Verdict:
    """What the first logged losses say about a repeated run."""

    verdict: Literal["same", "within", "different", "unknown"]
    """within: the band of known nondeterminism."""
    message: str
    """In a sentence, with the likely cause."""


def compare_losses(
    then: Sequence[float], now: Sequence[float], *, drift: Sequence[Difference] = (), band: float = REDUCED
) -> Verdict:
    """The verdict on the first logged losses of two runs, with what differs between them and their loss_band()."""
    then, now = then[:FIRST_LOSSES], now[:FIRST_LOSSES]
    if relogged := [each for each in drift if each.path in _LOGGING]:
        return Verdict("unknown", f"the losses were logged at other steps: {relogged[0].line()}")
    found = [_difference(one, other) for one, other in zip(then, now, strict=False)]
    if not found:
        when = "now" if then else "then"
        return Verdict("unknown", f"no losses to compare: none was logged {when} (fewer steps than logging_steps)")
    causes = _causes(drift)
    changes_trajectory = any(each.effect == "trajectory" for each in drift)
    if not any(found):
        equal = f"the first {len(found)} logged losses are" if len(found) > 1 else "the first logged loss is"
        shown = f"; what differs has not shown in them: {causes[0].line()}" if changes_trajectory else ""
        return Verdict("same", f"{equal} the same{shown}")
    first = next(number for number, difference in enumerate(found) if difference)
    beyond = next((number for number, difference in enumerate(found) if difference > band), None)
    worst = found.index(max(found)) if beyond is None else beyond
    share = "" if math.isinf(found[worst]) else f" ({100 * found[worst]:.2g} %)"
    message = (
        f"the losses differ from logged loss {first + 1} on: {then[worst]:.6g} then, {now[worst]:.6g} now at logged "
        f"loss {worst + 1}{share}"
    )
    if beyond is None and not changes_trajectory:
        sums = "likely cause: sums taken in another order, by other threads, another processor or a GPU's kernels"
        return Verdict("within", f"{message}, within the band of known nondeterminism; {_cause(causes, sums)}")
    message += ", more than rounding makes" if beyond is not None else ""
    otherwise = "nothing in the record explains it: other environment variables, or files that it has no hash of"
    return Verdict("different", f"{message}; {_cause(causes, otherwise)}")


def loss_band(specs: Iterable[RunSpec], model: Path | None) -> float:
    """FULL where both runs train in float32: no spec says less, and no weight in the model's folder is in less."""
    arguments = [spec.train.arguments() for spec in specs if spec.train is not None]
    if model is None or any(each.get(name) for each in arguments for name in _LESS_THAN_FLOAT32):
        return REDUCED
    dtypes = {dtype for path in model.glob("*.safetensors") for dtype, _ in read_header(path).values()}
    return FULL if dtypes == {"F32"} else REDUCED


def compare_scores(
    then: Sequence[BenchmarkSummary], now: Sequence[BenchmarkSummary], *, drift: Sequence[Difference] = ()
) -> list[str]:
    """A line for each score of two runs' benchmarks: the difference with its interval, or why it is not compared.

    Of a benchmark that was run again the last one counts.
    """
    old, new = ({(each.of, each.testset, each.split): each for each in side} for side in (then, now))
    changed = {each.path for each in drift if each.kind == "data"}
    lines = []
    for key in dict.fromkeys([*old, *new]):
        of, testset, split = key
        if key not in old or key not in new:
            found = [f"not compared, there is no such benchmark {'then' if key not in old else 'now'}"]
        elif f"data {testset} {split}" in changed:
            found = ["not compared, the test set is another one"]
        else:
            found = _benchmark_lines(old[key], new[key])
        lines += [f"{testset} {split}, {of}: {line}" for line in found]
    return lines


def _difference(then: float, now: float) -> float:
    if then == now or (math.isnan(then) and math.isnan(now)):
        return 0.0
    if not math.isfinite(then) or not math.isfinite(now):
        return math.inf
    return abs(now - then) / max(abs(then), _SMALLEST)


def _cause(causes: Sequence[Difference], otherwise: str) -> str:
    if not causes:
        return otherwise
    others = "; ".join(each.line() for each in causes[1:3])
    more = f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
    return f"likely cause: {causes[0].line()}" + (f"; it may also be: {others}{more}" if others else "")


def _causes(drift: Sequence[Difference]) -> list[Difference]:
    """What can have changed the losses, the likeliest first."""

    def rank(each: Difference) -> tuple[bool, int, int]:
        package = each.path.removeprefix("version of ")
        likeliest = _PACKAGES.index(package) if package in _PACKAGES else len(_PACKAGES)
        return each.effect != "trajectory", _KINDS.index(each.kind), likeliest

    return sorted((each for each in drift if each.effect != "none"), key=rank)


def _benchmark_lines(then: BenchmarkSummary, now: BenchmarkSummary) -> list[str]:
    for each, when in ((then, "then"), (now, "now")):
        if each.status != "complete":
            return [f"not compared, the benchmark is incomplete {when}"]
    if then.n_segments != now.n_segments:
        return [f"not compared, {then.n_segments} segments then, {now.n_segments} now"]
    old, new = ({score.metric: score for score in side.scores} for side in (then, now))
    return [
        f"{metric}: not compared, it was not scored {'then' if metric not in old else 'now'}"
        if metric not in old or metric not in new
        else _score_line(old[metric], new[metric])
        for metric in dict.fromkeys([*old, *new])
    ]


def _score_line(then: Score, now: Score) -> str:
    if then.signature != now.signature:
        return f"{then.metric}: not compared, the signature is {then.signature} then, {now.signature} now"
    figures = f"{then.metric} {then.score:.2f} then, {now.score:.2f} now"
    if then.score == now.score:
        return f"{figures}: the same"
    figures += f" ({now.score - then.score:+.2f})"
    if then.ci95 is None or now.ci95 is None:
        return f"{figures}: no interval to compare with"
    outside = [
        f"{which} 95 % interval [{low:.2f}, {high:.2f}]"
        for which, (low, high), score in (("then's", then.ci95, now.score), ("now's", now.ci95, then.score))
        if not low <= score <= high
    ]
    return f"{figures}: " + (
        f"outside {' and '.join(outside)}" if outside else "each lies in the other's 95 % interval"
    )
