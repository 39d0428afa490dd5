"""Is one system better than another on the same segments? sacrebleu's paired tests, with memory that does not grow.

Verdicts rest on p_value: approximate randomization that counts ties as extreme, p = (#{|d*| >= |d|} + 1) / (n + 1).
sacrebleu leaves ties out (p_randomization): where two systems differ in a few segments only, nearly every shuffle is a
tie, and two systems with the same output would be "different" with p = 0.0001.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.scoring.metrics import Statistics, higher_is_better, seed
from orchestrator.specs.benchmark_spec import Metric

N_BOOTSTRAP, N_RANDOMIZATIONS = 1000, 10_000  # sacrebleu's own numbers
ALPHA = 0.05
POWER = 0.8
MDE = (
    "minimum detectable difference: what would be found at p < 0.05 in 80 % of cases, (z(1 - 0.05 / 2m) + z(0.8)) "
    "times the standard deviation of the paired bootstrap's differences, m being the number of comparisons"
)

# Equal scores of other sums: the last digits of a double.
_TIE = 1e-9


class PairedTest(BaseModel):
    """One system against the baseline, by one metric."""

    model_config = ConfigDict(frozen=True)

    baseline: str
    system: str
    metric: Metric
    score: float
    difference: float  # score - the baseline's
    ci95: tuple[float, float] | None  # 95 % of the paired bootstrap's differences. None: of one segment there is none.
    p_bootstrap: float  # as sacrebleu computes it: near to a one-sided test for a clear difference
    p_randomization: float  # as sacrebleu computes it
    p_value: float  # of paired approximate randomization with ties counted as extreme; before the correction
    p_holm: float  # p_value after Holm's correction over the comparisons by this metric: what the verdict rests on
    mde: float | None  # minimum detectable difference. None: one segment, or the same statistics in each.
    better: str | None  # the better system's name; None: no difference shown


def n_pairs(n_systems: int) -> int:
    """The comparisons to correct for where the baseline is the best of the systems, picked by the same data."""
    return n_systems * (n_systems - 1) // 2


def paired_tests(
    names: Sequence[str],
    stats: dict[Metric, list[Statistics]],
    *,
    n_comparisons: int | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    n_randomizations: int = N_RANDOMIZATIONS,
) -> list[PairedTest]:
    """Every system but the first against the first, by every metric; p values are corrected within a metric.

    They are corrected for their number, or for `n_comparisons` where that is more: n_pairs() where these data picked
    the baseline.

    Source: Koehn (2004), https://aclanthology.org/W04-3250; Riezler and Maxwell (2005),
    https://aclanthology.org/W05-0908; ties: Phipson and Smyth (2010), https://doi.org/10.2202/1544-6115.1585;
    Holm (1979), https://www.jstor.org/stable/4615733.
    """
    import numpy as np

    m = max(n_comparisons or 1, len(names) - 1)
    tests: list[PairedTest] = []
    for metric, (baseline, *systems) in stats.items():
        resampled = np.array(baseline.resampled(n_bootstrap))
        made = [_paired(baseline, system, resampled, n_randomizations, m) for system in systems]
        corrected = holm([each["p_value"] for each in made], m)
        for name, test, p in zip(names[1:], made, corrected, strict=True):
            better = None
            if p < ALPHA and test["difference"]:
                better = name if (test["difference"] > 0) is higher_is_better(metric) else names[0]
            tests.append(PairedTest(baseline=names[0], system=name, metric=metric, p_holm=p, better=better, **test))
    return tests


def holm(p_values: Sequence[float], n_comparisons: int | None = None) -> list[float]:
    """P values corrected for their number, or for more comparisons than were made."""
    m = max(n_comparisons or 0, len(p_values))
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (m - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _paired(
    baseline: Statistics, system: Statistics, baseline_resampled: Any, trials: int, n_comparisons: int
) -> dict[str, Any]:
    import numpy as np
    from sacrebleu.significance import _compute_p_value as p_value

    scores = baseline.score(), system.score()
    observed = abs(scores[0] - scores[1])
    n_bootstrap = len(baseline_resampled)
    differences = np.array(system.resampled(n_bootstrap)) - baseline_resampled
    sizes = abs(differences)
    shuffled = _shuffled(baseline, system, trials)
    low = n_bootstrap // 40  # sacrebleu's bounds of 95 %
    in_order = sorted(map(float, differences))
    resampling_says_something = len(system.rows) > 1
    spread = float(differences.std(ddof=1)) if resampling_says_something else 0.0
    z = NormalDist().inv_cdf(1 - ALPHA / (2 * n_comparisons)) + NormalDist().inv_cdf(POWER)
    return {
        "score": scores[1],
        "difference": scores[1] - scores[0],
        "ci95": (in_order[low], in_order[n_bootstrap - low - 1]) if resampling_says_something else None,
        "p_bootstrap": p_value(sizes - sizes.mean(), observed),
        "p_randomization": p_value(shuffled, observed),
        "p_value": p_value(shuffled, observed - _TIE),
        "mde": z * spread if spread else None,
    }


def _shuffled(baseline: Statistics, system: Statistics, trials: int) -> Any:
    """The size of the difference when each segment's two outputs change sides by the toss of a coin, trial by trial."""
    import numpy as np

    a, b = (np.array(each.rows, dtype="float64") for each in (baseline, system))
    both, delta = a.sum(0) + b.sum(0), a - b
    differing = np.flatnonzero(delta.any(axis=1))  # the other segments change nothing
    score = baseline.metric._compute_score_from_stats
    random = np.random.default_rng(seed())
    # A multiple of 32 trials at a time: NumPy takes its coins 32 from a word, and drops a word's rest after each call.
    chunk = 32 * max(1, 2_000_000 // (32 * len(a)))
    sizes = []
    for start in range(0, trials, chunk):
        coins = random.integers(2, size=(min(chunk, trials - start), len(a)), dtype=bool)
        sums = b.sum(0) + coins[:, differing].astype("float64") @ delta[differing]
        pairs = zip(sums.tolist(), (both - sums).tolist(), strict=True)  # Python's floats: faster one by one
        sizes += [abs(score(one).score - score(other).score) for one, other in pairs]
    return np.array(sizes)
