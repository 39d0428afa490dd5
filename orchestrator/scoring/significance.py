"""Is one system better than another on the same segments? The paired tests of sacrebleu's command line, and what
follows from them. Pure: no files, no network.

Covered: paired bootstrap and paired approximate randomization, digit for digit `sacrebleu --paired-bs` and
`--paired-ar` at the same seed and numbers, but with memory that does not grow with the trials; the interval of the
difference; Holm's correction; the smallest difference that the test set can show.
Not covered: which benchmarks may be compared at all (compare.py).

Verdicts rest on approximate randomization, with a shuffle that gives exactly the difference seen counted against it
(p_value). sacrebleu leaves those out (p_randomization): where two systems differ in a few segments only, nearly every
shuffle is such a one, and two systems with the same output would be "different" with p = 0.0001. Its paired bootstrap
(p_bootstrap) is there to be looked up; for a clear difference it is near to a one-sided test.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from orchestrator.scoring.metrics import Statistics, seed
from orchestrator.specs.benchmark_spec import Metric

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[Any]]

N_BOOTSTRAP = 1000
N_RANDOMIZATIONS = 10_000
"""sacrebleu's own numbers."""
ALPHA = 0.05
POWER = 0.8
SMALLEST_DIFFERENCE = (
    "the difference that would be found at p < 0.05 in 80 % of cases: (z(1 - 0.05 / 2m) + z(0.8)) times the standard "
    "deviation of the paired bootstrap's differences, m being the number of comparisons"
)

# Equal scores of other sums: the last digits of a double.
_TIE = 1e-9


class PairedTest(BaseModel):
    """One system against the baseline, by one metric."""

    model_config = ConfigDict(frozen=True)

    baseline: str
    system: str
    metric: Metric
    baseline_score: float
    score: float
    difference: float
    """score - baseline_score."""
    ci95: tuple[float, float]
    """Where 95 % of the paired bootstrap's differences are."""
    p_bootstrap: float
    """Of the paired bootstrap, as sacrebleu computes it."""
    p_randomization: float
    """Of paired approximate randomization, as sacrebleu computes it."""
    p_value: float
    """The same, with shuffles that equal the difference seen counted against it. Before the correction."""
    p_holm: float
    """p_value after Holm's correction over all comparisons made: what the verdict rests on."""
    smallest_difference: float | None
    """What this test set can show between two such systems; None where their counts are the same."""
    better: str | None
    """The better system's name; None: no difference shown."""


def paired_tests(
    names: Sequence[str],
    counted: dict[Metric, list[Statistics]],
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    n_randomizations: int = N_RANDOMIZATIONS,
) -> list[PairedTest]:
    """Every system but the first against the first, by every metric, corrected over all of these comparisons.

    Source: Koehn (2004), https://aclanthology.org/W04-3250; Riezler and Maxwell (2005),
    https://aclanthology.org/W05-0908; ties: Phipson and Smyth (2010), https://doi.org/10.2202/1544-6115.1585;
    Holm (1979), https://www.jstor.org/stable/4615733.
    """
    tests: list[PairedTest] = []
    n_comparisons = len(counted) * (len(names) - 1)
    for metric, (baseline, *systems) in counted.items():
        resampled = _scores(baseline.resampled(n_bootstrap))
        for name, system in zip(names[1:], systems, strict=True):
            test = _paired(baseline, system, resampled, n_bootstrap, n_randomizations, n_comparisons)
            tests.append(PairedTest(baseline=names[0], system=name, metric=metric, p_holm=1, better=None, **test))
    corrected = holm([test.p_value for test in tests])
    return [
        test.model_copy(update={"p_holm": p, "better": _better(test, p)})
        for test, p in zip(tests, corrected, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number: reject what is below alpha, and false alarms stay below alpha in all."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _paired(
    baseline: Statistics,
    system: Statistics,
    baseline_resampled: "Floats",
    n_bootstrap: int,
    n_randomizations: int,
    n_comparisons: int,
) -> dict[str, Any]:
    from sacrebleu.significance import _compute_p_value as p_value

    scores = baseline.score(), system.score()
    seen = abs(scores[0] - scores[1])
    differences = _scores(system.resampled(n_bootstrap)) - baseline_resampled
    sizes = abs(differences)
    shuffled = _shuffled(baseline, system, n_randomizations)
    low = n_bootstrap // 40  # sacrebleu's bounds of 95 %
    in_order = sorted(map(float, differences))
    spread = float(differences.std(ddof=1))
    first_step = NormalDist().inv_cdf(1 - ALPHA / (2 * n_comparisons))
    return {
        "baseline_score": scores[0],
        "score": scores[1],
        "difference": scores[1] - scores[0],
        "ci95": (in_order[low], in_order[n_bootstrap - low - 1]),
        "p_bootstrap": p_value(sizes - sizes.mean(), seen),
        "p_randomization": p_value(shuffled, seen),
        "p_value": p_value(shuffled, seen - _TIE),
        "smallest_difference": (first_step + NormalDist().inv_cdf(POWER)) * spread if spread else None,
    }


def _shuffled(baseline: Statistics, system: Statistics, trials: int) -> "Floats":
    """The size of the difference when each segment's two outputs change sides by the toss of a coin, trial by trial."""
    import numpy as np

    one, other = (np.array(each.rows, dtype="float64") for each in (baseline, system))
    both, swing = one.sum(0) + other.sum(0), one - other
    differing = np.flatnonzero(swing.any(axis=1))  # the other segments change nothing
    score = baseline.metric._compute_score_from_stats
    random = np.random.default_rng(seed())
    # A multiple of 32 trials at a time: NumPy takes its coins 32 from a word, and drops a word's rest after each call.
    chunk = 32 * max(1, 2_000_000 // (32 * len(one)))
    sizes = []
    for start in range(0, trials, chunk):
        coins = random.integers(2, size=(min(chunk, trials - start), len(one)), dtype=bool)
        sums = other.sum(0) + coins[:, differing].astype("float64") @ swing[differing]
        rests = both - sums
        pairs = zip(sums.tolist(), rests.tolist(), strict=True)  # Python's floats: the same, and faster one by one
        sizes += [abs(score(mine).score - score(yours).score) for mine, yours in pairs]
    return np.array(sizes)


def _scores(resampled: Sequence[Any]) -> "Floats":
    import numpy as np

    return np.array([each.score for each in resampled])


def _better(test: PairedTest, p: float) -> str | None:
    if p >= ALPHA or not test.difference:
        return None
    higher_is_better = test.metric != "ter"
    return test.system if (test.difference > 0) is higher_is_better else test.baseline
