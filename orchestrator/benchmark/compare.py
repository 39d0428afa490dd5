"""Benchmarks of one test set against each other: which is better, by how much, where, and whether that can be known.

Covered: the paired tests of every system against the first, with a verdict in words; scores by length of the source;
the sentences where each wins; faults (triage.py) side by side. All from the text files that a benchmark leaves, whose
scores must be those of scores.json, with the same signatures.
Not covered: which benchmarks words mean (finished.py); scores of another test set or prompt: no test says anything
about those.
Writes nothing.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.benchmark.finished import Benchmark
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.scoring.diagnostics import triage
from orchestrator.scoring.metrics import HEADINGS, Statistics, count, seed
from orchestrator.scoring.significance import (
    N_BOOTSTRAP,
    N_RANDOMIZATIONS,
    SMALLEST_DIFFERENCE,
    PairedTest,
    paired_tests,
)
from orchestrator.specs.benchmark_spec import METRICS, Metric

_MIN_PER_BUCKET, _N_BUCKETS = 10, 4
_UNSPACED = ("zh", "ja", "th", "lo", "km", "my")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class System(_Part):
    """One of the systems."""

    name: str
    target: str
    """What was benchmarked."""
    folder: str
    values: dict[str, str] = {}
    """Of a group's run: what was swept, by key."""
    scores: dict[str, float]
    triage: dict[str, int | None]
    """Answers by fault; null: not known."""


class Bucket(_Part):
    """The segments whose sources have some length."""

    shortest: int
    longest: int
    n_segments: int
    scores: dict[str, dict[str, float]]
    """By system, then by metric."""


class Example(_Part):
    """One sentence, as two systems have it."""

    index: int
    source: str
    reference: str
    baseline_hypothesis: str
    hypothesis: str
    baseline_chrf: float
    chrf: float


class Sentences(_Part):
    """A system and the baseline, sentence by sentence, by chrF2."""

    system: str
    better: int
    """Sentences where the system's chrF2 is higher than the baseline's."""
    worse: int
    equal: int
    where_better: list[Example]
    """The biggest differences first."""
    where_worse: list[Example]


class Comparison(_Part):
    """The document that `compare --json` prints."""

    testset: str
    split: str
    n_segments: int
    text_sha256: str
    prompts_sha256: str
    group: str | None = None
    """The group whose runs are compared, the best first."""
    baseline: str
    """The first system; every other one is compared with it."""
    systems: list[System]
    signatures: dict[str, str]
    seed: int | None
    n_bootstrap: int
    n_randomizations: int
    n_comparisons: int
    """Systems but the first, times metrics. Holm's correction is over all of them."""
    smallest_difference: str = SMALLEST_DIFFERENCE
    """What a test's smallest_difference means."""
    tests: list[PairedTest]
    verdicts: list[str]
    """One for each test, in words."""
    bucket_unit: str
    """What a source's length is counted in: words or characters."""
    buckets: list[Bucket]
    sentences: list[Sentences]
    notes: list[str]
    """What a reader should know besides."""


def compare(
    benchmarks: Sequence[Benchmark],
    metrics: Sequence[str] = (),
    *,
    n_examples: int = 3,
    n_bootstrap: int = N_BOOTSTRAP,
    n_randomizations: int = N_RANDOMIZATIONS,
) -> Comparison:
    """Compare benchmarks of one test set: each with the first.

    Args:
        benchmarks: as find_benchmarks gives them.
        metrics: which; none: those that all of them were scored by.
        n_examples: how many sentences to show where each wins.
        n_bootstrap: resamples.
        n_randomizations: trials of approximate randomization.

    Raises:
        SpecError: the signatures differ, or a metric is none.
        PrerequisiteError: the files are not what was scored; or BLEU needs MeCab, which is not installed.
    """
    names, first = [each.name for each in benchmarks], benchmarks[0]
    asked = [each.asked() for each in benchmarks]
    chosen = _metrics(benchmarks, metrics)
    sources, references = _same_lines(benchmarks, "sources"), _same_lines(benchmarks, "references")
    hypotheses = [each.lines("hypotheses") for each in benchmarks]
    counted: dict[Metric, list[Statistics]] = {}
    for metric in dict.fromkeys([*chosen, "chrf"]):  # chrF2 is what sentences are compared by
        counted[metric] = count(metric, str(asked[0]["target_lang"]), [references], hypotheses)
    notes = [*_decoding_notes(names, asked), *_check_stored(benchmarks, counted, chosen)]
    chrf = [each.segment_scores() for each in counted["chrf"]]
    of_tests = {metric: counted[metric] for metric in chosen}
    tests = paired_tests(names, of_tests, n_bootstrap=n_bootstrap, n_randomizations=n_randomizations)
    unit = "characters" if str(asked[0]["source_lang"]).partition("-")[0] in _UNSPACED else "words"
    return Comparison(
        **first.identity._asdict(),
        baseline=first.name,
        systems=[
            System(
                name=each.name,
                target=each.stored.target,
                folder=str(each.folder),
                scores={metric: of_tests[metric][number].score() for metric in chosen},
                triage=_faults(each, asked[number], sources, references, hypotheses[number]),
            )
            for number, each in enumerate(benchmarks)
        ],
        signatures={metric: of_tests[metric][0].signature for metric in chosen},
        seed=seed(),
        n_bootstrap=n_bootstrap,
        n_randomizations=n_randomizations,
        n_comparisons=len(tests),
        tests=tests,
        verdicts=[verdict(test, len(tests)) for test in tests],
        bucket_unit=unit,
        buckets=_buckets([len(text.split() if unit == "words" else text) for text in sources], names, of_tests),
        sentences=[
            _sentences(names[number], (sources, references, hypotheses[0], hypotheses[number]),
                       chrf[0], chrf[number], n_examples)
            for number in range(1, len(names))
        ],
        notes=notes,
    )  # fmt: skip


def verdict(test: PairedTest, n_comparisons: int) -> str:
    """What a test says, in words, and no more than that."""
    heading, (low, high) = HEADINGS[test.metric], test.ci95
    if test.smallest_difference is None:
        return f"{test.system}: no difference in {heading}: what it counts is the same in every segment"
    digits = 1 if high - low >= 1 else 2 if high - low >= 0.1 else 4
    correction = f"Holm, {n_comparisons} comparisons" if n_comparisons > 1 else "one comparison"
    figures = f"{test.difference:+.{digits}f} {heading} [{low:.{digits}f}, {high:.{digits}f}], p = {test.p_holm:.2g}"
    if test.better is None:
        shows = f"this test set can show differences of about {test.smallest_difference:.{digits}f} {heading}"
        return f"{test.system}: no difference shown: {figures} ({correction}); {shows}"
    return f"{test.system} is {'better' if test.better == test.system else 'worse'}: {figures} ({correction})"


def _metrics(benchmarks: Sequence[Benchmark], wanted: Sequence[str]) -> list[Metric]:
    """The metrics to compare by. SpecError where the signatures of one of them differ."""
    for name in wanted:
        if name not in METRICS:
            raise SpecError(f"no metric {name!r}{did_you_mean(name, METRICS)}", f"the metrics: {', '.join(METRICS)}")
    by_metric = [{score.metric: score for score in each.stored.scores} for each in benchmarks]
    shared = [name for name in METRICS if all(name in each for each in by_metric)]
    chosen = [name for name in METRICS if name in (wanted or shared)]
    if not chosen:
        raise SpecError(f"no metric that all of {', '.join(each.name for each in benchmarks)} were scored by",
                        "choose one: --metric bleu")  # fmt: skip
    for name in chosen:
        signatures = {
            benchmark.name: _comparable(scores[name].signature)
            for benchmark, scores in zip(benchmarks, by_metric, strict=True)
            if name in scores
        }
        if len(set(signatures.values())) > 1:
            lines = "\n".join(f"  {benchmark}: {signature}" for benchmark, signature in signatures.items())
            raise SpecError(f"these cannot be compared: {HEADINGS[name]}'s signatures differ\n{lines}",
                            "benchmark them alike, or choose another metric: --metric NAME")  # fmt: skip
    return chosen


def _comparable(signature: str) -> str:
    """A signature without what concerns the interval alone."""
    return "|".join(part for part in signature.split("|") if not part.startswith(("bs:", "seed:")))


def _same_lines(benchmarks: Sequence[Benchmark], name: str) -> list[str]:
    lines = benchmarks[0].lines(name)
    for other in benchmarks[1:]:
        if other.lines(name) != lines:
            paths = " and ".join(str(each.folder / f"{name}.txt") for each in (benchmarks[0], other))
            raise PrerequisiteError(f"{paths} differ, though the test set was the same: one was changed since")
    return lines


def _check_stored(
    benchmarks: Sequence[Benchmark], counted: dict[Metric, list[Statistics]], chosen: Sequence[Metric]
) -> list[str]:
    """See that the files are what was scored; notes on scores of another sacrebleu, which can't be checked so."""
    notes = []
    for number, benchmark in enumerate(benchmarks):
        for score in benchmark.stored.scores:
            if score.metric not in counted:
                continue
            now = counted[score.metric][number]
            if _comparable(score.signature) != _comparable(now.signature):
                if score.metric in chosen:
                    notes.append(f"{benchmark.name} was scored as {score.signature}; its score here is a new one")
            elif abs(now.score() - score.score) > 1e-6:
                raise PrerequisiteError(
                    f"{benchmark.folder} was changed since: {HEADINGS[score.metric]} of hypotheses.txt is "
                    f"{now.score():.4f}, scores.json has {score.score:.4f}",
                    "repeat the benchmark",
                )
    return notes


def _decoding_notes(names: Sequence[str], asked: Sequence[dict[str, Any]]) -> list[str]:
    """What was asked for otherwise than of the first, such as max_tokens: part of what the scores differ by."""
    first, *others = map(_decoding, asked)
    return [
        f"{key} differs: {names[0]} {first[key]}, {name} {other[key]}"
        for name, other in zip(names[1:], others, strict=True)
        for key in sorted(first.keys() & other.keys())
        if first[key] != other[key]
    ]


def _decoding(asked: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the requests, and what held besides; in the first version's files they stand by themselves."""
    found: dict[str, Any] = {name: asked[name] for name in ("temperature", "max_tokens") if name in asked}
    for part in ("in_force", "sent"):
        value = asked.get(part)
        found |= value if isinstance(value, dict) else {}
    return found


def _faults(
    benchmark: Benchmark, asked: dict[str, Any], sources: list[str], references: list[str], hypotheses: list[str]
) -> dict[str, int | None]:
    """As the benchmark found them; of an older one what its texts tell."""
    found = benchmark.stored.triage or triage(
        sources, references, hypotheses, [None] * len(hypotheses), 0,
        str(asked["source_lang"]), str(asked["target_lang"]), instruction=str(asked.get("instruction") or ""),
    )  # fmt: skip
    return found.counts()


def _buckets(lengths: list[int], names: Sequence[str], counted: dict[Metric, list[Statistics]]) -> list[Bucket]:
    """Up to four buckets of about as many segments each; none where there are too few for two."""
    number = min(_N_BUCKETS, len(lengths) // _MIN_PER_BUCKET)
    if number < 2:
        return []
    in_order = sorted(lengths)
    bounds = sorted({in_order[len(in_order) * part // number] for part in range(1, number)})
    members: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        members.setdefault(bisect_right(bounds, length), []).append(index)
    if len(members) < 2:
        return []
    return [
        Bucket(
            shortest=min(lengths[index] for index in indices),
            longest=max(lengths[index] for index in indices),
            n_segments=len(indices),
            scores={
                name: {metric: of_all[system].score(indices) for metric, of_all in counted.items()}
                for system, name in enumerate(names)
            },
        )
        for _, indices in sorted(members.items())
    ]


def _sentences(
    system: str, texts: Iterable[list[str]], baseline_chrf: list[float], chrf: list[float], n_examples: int
) -> Sentences:
    differences = [mine - yours for mine, yours in zip(chrf, baseline_chrf, strict=True)]
    better = sorted((index for index, each in enumerate(differences) if each > 0), key=lambda i: -differences[i])
    worse = sorted((index for index, each in enumerate(differences) if each < 0), key=lambda i: differences[i])
    rows = list(zip(*texts, strict=True))

    def examples(indices: list[int]) -> list[Example]:
        return [
            Example(index=index, **dict(zip(("source", "reference", "baseline_hypothesis", "hypothesis"),
                                            rows[index], strict=True)),
                    baseline_chrf=baseline_chrf[index], chrf=chrf[index])
            for index in indices[:n_examples]
        ]  # fmt: skip

    return Sentences(
        system=system,
        better=len(better),
        worse=len(worse),
        equal=len(rows) - len(better) - len(worse),
        where_better=examples(better),
        where_worse=examples(worse),
    )
