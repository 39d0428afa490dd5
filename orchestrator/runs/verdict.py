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


def compare_scores(then: Sequence[BenchmarkSummary], now: Sequence[BenchmarkSummary]) -> list[str]:
    """A line for each complete benchmark that both runs have: its scores then and now, where signatures are the same.

    Whether a difference is more than chance `orchestrator compare` tells.
    """
    old = {(each.of, each.testset, each.split, each.n_segments): each for each in then if each.status == "complete"}
    lines = []
    for each in now:
        before = old.get((each.of, each.testset, each.split, each.n_segments))
        known = {(score.metric, score.signature): score.score for score in before.scores} if before else {}
        pairs = [
            f"{score.metric} {known[score.metric, score.signature]:.2f} then, {score.score:.2f} now"
            for score in each.scores
            if (score.metric, score.signature) in known and each.status == "complete"
        ]
        lines += [f"{each.testset} {each.split}, {each.of}: {'; '.join(pairs)}"] if pairs else []
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
