"""Whether a repeated run came to the same as the run that it repeats: its first logged losses, and its scores.

Covered: same, within the band of known nondeterminism, or different, with the likely cause, while the run is under way;
scores with each other's intervals.
Not covered: what differs between the two runs (drift.py); significance between systems.
Writes nothing.

The band. A repeated training has other losses where the same sums are taken in another order. How far that goes was
measured by tests/loss_band.py: LoRA of rank 16, LoRA+ 16, learning rate 5e-4, as in runs/demo.yaml, on 2 CPU cores with
AVX-512 and AMX, torch 2.14.1. The largest relative difference of the losses 1 to 10, and the first:

    python tests/loss_band.py .models/SmolLM2-135M-Instruct         4 examples a loss        largest   first
    again; peft 0.18.0, transformers 5.5.0 or torch 2.13.0 instead (--first)                 0         0
    gradient accumulation 2 x 2 for 1 x 4                                                    3.5e-07   0
    2 threads for 1                                                                          5.1e-06   0
    AVX2 for AVX-512                                                                         2.8e-05   1.8e-06
    bf16 for float32                                                                         5.3e-03   1.3e-03
    the same with the tiny model of the tests, TINY                                          9.6e-03   5.0e-04
    2 threads for 1, both in bf16                                                            3.3e-03   0
    learning rate 1 % higher                                                                 4.2e-03   0
    one sentence of 500 changed                                                              0         0
    seed 43, seed 44 for 42                                                                  2.7e-01   3.0e-03
    ... --batch 10 --every 5 --steps 25                            50 examples a loss
    bf16 for float32                                                                         7.3e-03   7.3e-03
    seed 43, seed 44 for 42                                                                  4.9e-02   3.6e-02
    python tests/loss_band.py TINY --batch 50 --every 5 --steps 50 250 examples a loss
    bf16 for float32                                                                         5.3e-03   1.9e-04
    seed 43, seed 44 for 42                                                                  1.1e-02   3.0e-03
    the same with --every 10 --steps 100                           500, all of the data
    bf16 for float32                                                                         2.3e-03   7.2e-05
    seed 43, seed 44 for 42                                                                  3.0e-03   6.8e-04

(Of two seeds the smaller figure stands there.) A pair of another day, torch 2.14.1 and 2.9.1, first three losses:
1.5e-3, 1.1e-2, 3.3e-3. The differences do not grow over ten losses. So:
    float32             5e-4: 18 times what rounding does, a sixth of what the seeds do where they do least
    bf16 and the like   2e-2: twice what rounding does, less than half of what the seeds do with 50 examples a loss
Where a logged loss of bf16 is the mean of hundreds of examples, the seeds differ less than the band is wide, and where
it is that of all the data, no more than rounding. So the numbers alone do not decide: whatever differs in the record
that chooses other examples, weights or steps (the seed, the data, the learning rate) makes "different" of any
difference, however small. Not measured: GPUs, more than one process.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.models.safetensors_header import read_header
from orchestrator.runs.drift import Drift
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.scoring.metrics import Score
from orchestrator.specs.spec import RunSpec

FIRST = 10
"""Losses that are compared: as many as a record keeps."""
# Which package is the likeliest to change a sum; the others come after.
_PACKAGES = ("torch", "transformers", "peft", "llamafactory", "accelerate", "trl", "datasets", "tokenizers")
_LOGGING = ("train.logging_steps", "train.logging_strategy", "train.logging_first_step")
_KINDS = ("data", "model", "adapter", "spec", "default", "version", "environment", "machine")
FULL, REDUCED = 5e-4, 2e-2
"""The largest relative difference of a logged loss that counts as rounding, in float32 and in less."""
_LESS_THAN_FLOAT32 = ("bf16", "fp16", "pure_bf16", "fp8", "tf32", "quantization_bit", "deepspeed", "fsdp")
_SMALLEST = 0.1  # of a loss near 0 a fraction says nothing


@dataclass(frozen=True)
class Verdict:
    """What the first logged losses say about a repeated run."""

    verdict: Literal["same", "within", "different", "unknown"]
    """within: the band of known nondeterminism."""
    first_difference: int | None
    """Number of the first logged loss that differs, from 1."""
    message: str
    """In a sentence, with the likely cause."""


class EarlyVerdict:
    """The verdict on a run under way, as soon as its losses tell."""

    def __init__(self, then: Sequence[float], drift: Sequence[Drift] = (), band: float = REDUCED) -> None:
        self._then = list(then)[:FIRST]
        self._drift = drift
        self._band = band
        self._now: list[float] = []
        self._said = False

    def add(self, loss: float) -> Verdict | None:
        """Take the next logged loss; the verdict when this one decides it, once."""
        if self._said:
            return None
        self._now.append(loss)
        number = len(self._now)
        decided = number >= len(self._then) or any(each.name in _LOGGING for each in self._drift)
        return self.end() if decided or self._beyond(number) else None

    def end(self) -> Verdict | None:
        """The training ended: the verdict on what it logged; None where it is given already."""
        if self._said:
            return None
        self._said = True
        return _judge(self._then, self._now, self._drift, self._band)

    def _beyond(self, number: int) -> bool:
        difference = _difference(self._then[number - 1], self._now[number - 1])
        return difference > (0 if _decides(self._drift) else self._band)


def compare_losses(
    then: Sequence[float], now: Sequence[float], *, drift: Sequence[Drift] = (), band: float = REDUCED
) -> Verdict:
    """The verdict on the first logged losses of two runs.

    Args:
        then: of the run that is repeated.
        now: of the run that repeats it.
        drift: what differs between the two: it gives the likely cause, and where something differs that chooses other
            examples, weights or steps, no difference counts as rounding.
        band: of the two: loss_band().
    """
    return _judge(list(then)[:FIRST], list(now)[:FIRST], drift, band)


def loss_band(specs: Iterable[RunSpec], model: Path | None) -> float:
    """FULL where both runs train in float32: no spec says less, and no weight of the model is in less.

    Args:
        specs: of the two runs.
        model: the model's folder; None: not known, so it may be in less.
    """
    arguments = [spec.train.arguments() for spec in specs if spec.train is not None]
    if model is None or any(each.get(name) for each in arguments for name in _LESS_THAN_FLOAT32):
        return REDUCED
    dtypes = {dtype for path in model.glob("*.safetensors") for dtype, _ in read_header(path).tensors.values()}
    return FULL if dtypes == {"F32"} else REDUCED


def compare_scores(
    then: Sequence[BenchmarkSummary], now: Sequence[BenchmarkSummary], *, drift: Sequence[Drift] = ()
) -> list[str]:
    """A line for each score of two runs' benchmarks: the difference, and whether each is in the other's interval.

    Of a benchmark that was run again the last one counts. What may not be compared is said: another signature, other
    segments, a test set of another hash, an incomplete benchmark, one that the other run lacks.
    """
    old, new = ({(each.of, each.testset, each.split): each for each in side} for side in (then, now))
    changed = {each.name for each in drift if each.kind == "data"}
    lines = []
    for key in dict.fromkeys([*old, *new]):
        of, testset, split = key
        name = f"{testset} {split}, {of}"
        if key not in old or key not in new:
            lines.append(f"{name}: not compared, there is no such benchmark {'then' if key not in old else 'now'}")
        elif f"{testset} {split}" in changed:
            lines.append(f"{name}: not compared, the test set is another one")
        else:
            lines += [f"{name}: {line}" for line in _benchmark_lines(old[key], new[key])]
    return lines


def _judge(then: Sequence[float], now: Sequence[float], drift: Sequence[Drift], band: float) -> Verdict:
    differences = [_difference(one, other) for one, other in zip(then, now, strict=False)]
    relogged = [each for each in drift if each.name in _LOGGING]
    if relogged:
        return Verdict("unknown", None, f"the losses were logged at other steps: {relogged[0].line()}")
    if not differences:
        lacking = "then" if not then else "now"
        return Verdict(
            "unknown", None, f"no losses to compare: none was logged {lacking} (fewer steps than logging_steps)"
        )
    first = next((number for number, difference in enumerate(differences, start=1) if difference), None)
    if first is None:
        return Verdict("same", None, f"{_counted(len(differences))} the same{_unseen(drift)}")
    beyond = next((number for number, each in enumerate(differences, start=1) if each > band), None)
    shown = beyond or max(range(1, len(differences) + 1), key=lambda number: differences[number - 1])
    figures = f"{then[shown - 1]:.6g} then, {now[shown - 1]:.6g} now at logged loss {shown}"
    begin = f"the losses differ from logged loss {first} on: {figures}"
    if not math.isinf(differences[shown - 1]):
        begin += f" ({100 * differences[shown - 1]:.2g} %)"
    if beyond is not None:
        return Verdict("different", first, f"{begin}, more than rounding makes; {_cause(drift, 'different')}")
    if _decides(drift):
        return Verdict("different", first, f"{begin}; {_cause(drift, 'different')}")
    return Verdict("within", first, f"{begin}, within the band of known nondeterminism; {_cause(drift, 'within')}")


def _counted(count: int) -> str:
    return f"the first {count} logged losses are" if count > 1 else "the first logged loss is"


def _difference(then: float, now: float) -> float:
    """Relative to the earlier one."""
    if then == now or (math.isnan(then) and math.isnan(now)):
        return 0.0
    if not math.isfinite(then) or not math.isfinite(now):
        return math.inf
    return abs(now - then) / max(abs(then), _SMALLEST)


def _decides(drift: Sequence[Drift]) -> bool:
    """Whether something differs that makes another training of it: then a small difference is none of rounding."""
    return any(each.effect == "course" for each in drift)


def _unseen(drift: Sequence[Drift]) -> str:
    course = [each for each in _causes(drift) if each.effect == "course"]
    return f"; what differs has not shown in them: {course[0].line()}" if course else ""


def _cause(drift: Sequence[Drift], verdict: Literal["within", "different"]) -> str:
    """The likely cause: the first is the likeliest, two more are named."""
    causes = _causes(drift)
    if not causes and verdict == "within":
        return "likely cause: sums taken in another order, by other threads, another processor or a GPU's kernels"
    if not causes:
        return "nothing in the record explains it: other environment variables, or files that it has no hash of"
    others = "; ".join(each.line() for each in causes[1:3])
    more = f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
    return f"likely cause: {causes[0].line()}" + (f"; it may also be: {others}{more}" if others else "")


def _causes(drift: Sequence[Drift]) -> list[Drift]:
    """What can have changed the losses, the likeliest first."""

    def rank(each: Drift) -> tuple[bool, int, int]:
        package = _PACKAGES.index(each.name) if each.name in _PACKAGES else len(_PACKAGES)
        return each.effect != "course", _KINDS.index(each.kind), package

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
    inside = [then.ci95[0] <= now.score <= then.ci95[1], now.ci95[0] <= then.score <= now.ci95[1]]
    if all(inside):
        return f"{figures}: each lies in the other's 95 % interval"
    low, high = then.ci95 if not inside[0] else now.ci95
    which = "now's lies outside then's" if not inside[0] else "then's lies outside now's"
    both = ", and the other way round" if not any(inside) else ""
    return f"{figures}: {which} 95 % interval [{low:.2f}, {high:.2f}]{both}"
