"""Paired tests equal sacrebleu's; where those are fooled, verdicts are not."""

import random

import pytest
import sacrebleu.significance
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scoring.metrics import load_metric, sufficient_statistics
from orchestrator.scoring.significance import ALPHA, holm, n_pairs, paired_tests
from orchestrator.specs.benchmark_spec import METRICS

WORDS = "ein eine der die das mann frau kind hund steht läuft sitzt auf in vor dem haus wasser rot blau".split()


def corpus(n_segments=37):
    words = random.Random(1)
    return [" ".join(words.choices(WORDS, k=words.randint(3, 12))) + "." for _ in range(n_segments)]


def system(references, errors, seed):
    """The references with a share of their words changed."""
    words = random.Random(seed)
    lines = [[words.choice(WORDS) if words.random() < errors else each for each in line.split()] for line in references]
    return list(map(" ".join, lines))


def compared(references, *systems, metrics=METRICS, names=None, **numbers):
    stats = {name: sufficient_statistics(name, "de", references, systems) for name in metrics}
    return paired_tests(names or list("ABCDEF"[: len(systems)]), stats, **numbers)


TEXT = st.text("ab .", max_size=12)
REFERENCES = corpus()
A, B, C = system(REFERENCES, 0.3, 2), system(REFERENCES, 0.25, 3), system(REFERENCES, 0.5, 4)


@pytest.mark.parametrize("n_segments", [1, 33, 1001])
def test_every_digit_is_that_of_sacrebleus_paired_test(n_segments, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "99")
    references = corpus(n_segments)
    systems = [system(references, errors, seed) for errors, seed in ((0.3, 5), (0.3, 6), (0.5, 7))]
    pairs = list(zip("ABC", systems, strict=True))
    for name in METRICS if n_segments < 1001 else ["bleu"]:
        tests = compared(references, *systems, metrics=[name], n_bootstrap=50, n_randomizations=2100)
        assert [(test.metric, test.baseline, test.system) for test in tests] == [(name, "A", "B"), (name, "A", "C")]
        for kind, n, field in (("bs", 50, "p_bootstrap"), ("ar", 2100, "p_randomization")):
            metric = {name: load_metric(name, "de")}
            _, found = sacrebleu.significance.PairedTest(pairs, metric, [references], kind, n)()
            [baseline, *theirs] = next(results for head, results in found.items() if head != "System")
            assert [(test.score, getattr(test, field)) for test in tests] == [(e.score, e.p_value) for e in theirs]
            assert [test.difference for test in tests] == [each.score - baseline.score for each in theirs]
        assert all(test.ci95[0] <= test.difference <= test.ci95[1] for test in tests if n_segments > 1)


def test_the_same_output_is_no_difference_though_sacrebleu_says_it_is():
    for test in compared(REFERENCES, A, A, n_bootstrap=50, n_randomizations=200):
        assert test.p_randomization < 0.01
        assert (test.p_value, test.better, test.mde) == (1, None, None)
        assert (test.difference, test.ci95) == (0, (0, 0))


def test_a_clear_difference_is_shown_in_the_direction_that_the_metric_has():
    for test in compared(REFERENCES, C, REFERENCES, names=["bad", "good"], n_bootstrap=200, n_randomizations=1000):
        assert (test.better, test.difference > 0) == ("good", test.metric != "ter")
        assert test.p_holm < ALPHA


def test_the_interval_has_95_percent_of_the_resampled_differences():
    one, other = sufficient_statistics("bleu", "de", REFERENCES, [A, B])
    differences = sorted(b - a for a, b in zip(one.resampled(80), other.resampled(80), strict=True))
    [test] = paired_tests(["A", "B"], {"bleu": [one, other]}, n_bootstrap=80, n_randomizations=64)
    assert test.ci95 == (differences[2], differences[-3])


def test_one_segment_has_no_interval_and_no_detectable_difference():
    [test] = compared(["Ein Mann."], ["Ein Mann."], ["Ganz anders."], metrics=["bleu"], n_bootstrap=20)
    assert (test.ci95, test.mde, test.better, test.p_holm) == (None, None, None, 1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=2, max_size=8))
def test_a_comparison_is_the_other_one_turned_round(segments):
    a, b, references = (list(side) for side in zip(*segments, strict=True))
    there = compared(references, a, b, n_bootstrap=40, n_randomizations=64)
    back = compared(references, b, a, names=["B", "A"], n_bootstrap=40, n_randomizations=64)
    for test, turned in zip(there, back, strict=True):
        assert turned.difference == -test.difference
        assert turned.ci95 == (-test.ci95[1], -test.ci95[0])
        assert turned.p_randomization == test.p_randomization
        assert (turned.p_value, turned.p_holm, turned.better) == (test.p_value, test.p_holm, test.better)
        assert turned.p_bootstrap == pytest.approx(test.p_bootstrap)


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    assert holm([0.01, 0.04], n_comparisons=3) == pytest.approx([0.03, 0.08])
    assert holm([0.5, 0.001], n_comparisons=1) == pytest.approx([0.5, 0.002]), "never for fewer than there are"
    assert [n_pairs(k) for k in (1, 2, 3, 8)] == [0, 1, 3, 28]


def test_p_values_are_corrected_within_a_metric_and_for_all_pairs_where_the_data_picked_the_baseline():
    numbers = {"metrics": ["bleu", "ter"], "n_bootstrap": 40, "n_randomizations": 100}
    tests = compared(REFERENCES, A, B, C, **numbers)
    assert [test.p_holm for test in tests[:2]] == holm([test.p_value for test in tests[:2]])
    assert [test.p_holm for test in tests[2:]] == holm([test.p_value for test in tests[2:]])
    picked = compared(REFERENCES, A, B, C, n_comparisons=n_pairs(3), **numbers)
    assert [test.p_holm for test in picked[:2]] == holm([test.p_value for test in tests[:2]], 3)
    [alone] = compared(REFERENCES, A, B, metrics=["bleu"], n_bootstrap=40, n_randomizations=100)
    assert alone.p_holm == alone.p_value == tests[0].p_value
    assert alone.mde < tests[0].mde < picked[0].mde, "more comparisons, stricter each"
    assert compared(REFERENCES, A, B, C, n_comparisons=n_pairs(2), **numbers) == tests, "a base beside two checkpoints"
