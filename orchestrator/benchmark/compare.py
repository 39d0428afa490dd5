"""Benchmarks of one test set against each other: which is better, by how much, and whether that can be known.

All of it from the text files that a benchmark leaves, whose scores must be those of scores.json.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from orchestrator.benchmark.results import COMPARABLE, Benchmark
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.scoring.metrics import HEADINGS, Statistics, seed, sufficient_statistics
from orchestrator.scoring.significance import MDE, N_BOOTSTRAP, N_RANDOMIZATIONS, PairedTest, paired_tests
from orchestrator.specs.benchmark_spec import METRICS, Metric


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class System(_Part):
    name: str
    target: str  # what was benchmarked
    folder: str
    scores: dict[str, float]
    issues: dict[str, int | None]  # hypotheses by issue; null: not known


class Example(_Part):
    """One sentence, as two systems have it: the baseline, then the other."""

    index: int
    source: str
    reference: str
    hypotheses: tuple[str, str]
    chrf: tuple[float, float]


class Sentences(_Part):
    """A system and the baseline, sentence by sentence, by chrF2: where the system is better, worse, the same."""

    system: str
    better: int
    worse: int
    equal: int
    examples: list[Example]  # where the system wins by most, then where the baseline does


class Comparison(_Part):
    """The document that `compare --json` prints."""

    testset: str
    split: str
    n_segments: int
    text_sha256: str
    prompts_sha256: str
    baseline: str  # the first system; every other one is compared with it
    systems: list[System]
    signatures: dict[str, str]
    seed: int
    n_bootstrap: int
    n_randomizations: int
    n_comparisons: int  # within a metric, for Holm's correction
    mde: str = MDE  # what a test's mde means
    tests: list[PairedTest]
    verdicts: list[str]  # one for each test, in words
    sentences: list[Sentences]
    notes: list[str]


def compare(benchmarks: Sequence[Benchmark], metrics: Sequence[str] = (), *, n_examples: int = 3) -> Comparison:
    """Compare benchmarks of one test set, each with the first, by metrics (none: those that all were scored by).

    Raises SpecError: the signatures differ, or a metric is none; PrerequisiteError: the files are not what was scored.
    """
    names, m = [each.name for each in benchmarks], len(benchmarks) - 1
    chosen = _metrics(benchmarks, metrics)
    stats, notes = load_statistics(benchmarks, chosen)
    numbers = {"n_bootstrap": N_BOOTSTRAP, "n_randomizations": N_RANDOMIZATIONS}
    tests = paired_tests(names, stats, **numbers)
    systems = [
        System(
            name=each.name,
            target=each.result.target,
            folder=str(each.folder),
            scores={metric: stats[metric][number].score() for metric in chosen},
            issues={issue: flagged and flagged.count for issue, flagged in each.result.diagnostics.items()},
        )
        for number, each in enumerate(benchmarks)
    ]
    return Comparison(
        **{key: getattr(benchmarks[0].result, key) for key in COMPARABLE},
        **numbers,
        seed=seed(),
        baseline=names[0],
        systems=systems,
        signatures={metric: stats[metric][0].signature for metric in chosen},
        n_comparisons=m,
        tests=tests,
        verdicts=[verdict(test, m) for test in tests],
        sentences=_sentences(benchmarks, stats, n_examples),
        notes=[*_decoding_notes(benchmarks), *notes],
    )


def load_statistics(
    benchmarks: Sequence[Benchmark], metrics: Sequence[Metric]
) -> tuple[dict[Metric, list[Statistics]], list[str]]:
    """By metric the statistics of each benchmark's hypotheses; and notes on scores of another version of sacrebleu."""
    first = benchmarks[0]
    for other in benchmarks[1:]:
        for name in ("sources", "references"):
            if other.lines(name) != first.lines(name):
                paths = f"{first.folder / name}.txt and {other.folder / name}.txt"
                raise PrerequisiteError(f"{paths} differ, though the test set was the same: one was changed since")
    references, target_lang = first.lines("references"), first.result.request.get("target_lang")
    if not isinstance(target_lang, str):
        raise PrerequisiteError(f"{first.folder} says no target_lang", "repeat the benchmark")
    hypotheses = [each.lines("hypotheses") for each in benchmarks]
    stats = {metric: sufficient_statistics(metric, target_lang, references, hypotheses) for metric in metrics}
    notes = []
    for number, benchmark in enumerate(benchmarks):
        for metric in metrics:
            stored, now = benchmark.score(metric), stats[metric][number]
            if stored is not None and _comparable(stored.signature) != _comparable(now.signature):
                notes.append(f"{benchmark.name} was scored as {stored.signature}; its score here is a new one")
            elif stored is not None and abs(now.score() - stored.score) > 1e-6:
                raise PrerequisiteError(
                    f"{benchmark.folder} was changed since: {HEADINGS[metric]} of hypotheses.txt is {now.score():.4f}, "
                    f"scores.json has {stored.score:.4f}",
                    "repeat the benchmark",
                )
    return stats, notes


def verdict(test: PairedTest, n_comparisons: int) -> str:
    """What a test says, in words, and no more than that."""
    heading = HEADINGS[test.metric]
    if test.ci95 is None:
        return f"{test.system}: {test.difference:+.1f} {heading} in one segment, which no test can say more of"
    if test.mde is None and not test.difference:
        return f"{test.system}: no difference in {heading}: what it counts is the same in every segment"
    low, high = test.ci95
    digits = 1 if high - low >= 1 else 2 if high - low >= 0.1 else 4
    correction = f"Holm, {n_comparisons} comparisons" if n_comparisons > 1 else "one comparison"
    figures = f"{test.difference:+.{digits}f} {heading} [{low:.{digits}f}, {high:.{digits}f}], p = {test.p_holm:.2g}"
    if test.better is None:
        power = "" if test.mde is None else f"; minimum detectable difference: about {test.mde:.{digits}f} {heading}"
        return f"{test.system}: no difference shown: {figures} ({correction}){power}"
    return f"{test.system} is {'better' if test.better == test.system else 'worse'}: {figures} ({correction})"


def _metrics(benchmarks: Sequence[Benchmark], wanted: Sequence[str]) -> list[Metric]:
    for name in wanted:
        if name not in METRICS:
            raise SpecError(f"no metric {name!r}{did_you_mean(name, METRICS)}", f"the metrics: {', '.join(METRICS)}")
    shared = [name for name in METRICS if all(each.score(name) for each in benchmarks)]
    chosen = [name for name in METRICS if name in (wanted or shared)]
    if not chosen:
        names = ", ".join(each.name for each in benchmarks)
        raise SpecError(f"no metric that all of {names} were scored by", "choose one: --metric bleu")
    for name in chosen:
        signatures = {each.name: _comparable(score.signature) for each in benchmarks if (score := each.score(name))}
        if len(set(signatures.values())) > 1:
            lines = "\n".join(f"  {benchmark}: {signature}" for benchmark, signature in signatures.items())
            what = f"these cannot be compared: {HEADINGS[name]}'s signatures differ\n{lines}"
            raise SpecError(what, "benchmark them alike, or choose another metric: --metric NAME")
    return chosen


def _comparable(signature: str) -> str:
    """A signature without what concerns the interval alone."""
    return "|".join(part for part in signature.split("|") if not part.startswith(("bs:", "seed:")))


def _decoding_notes(benchmarks: Sequence[Benchmark]) -> list[str]:
    """What was requested otherwise than of the first (max_tokens) or held without a request in one alone (num_beams)"""
    held, sent = ([each.result.request.get(key, {}) for each in benchmarks] for key in ("effective_defaults", "sent"))
    both = [{**a, **b} for a, b in zip(held, sent, strict=True)]
    return [
        f"{key} differs: {benchmarks[0].name} {both[0].get(key, 'none')}, {each.name} {both[number].get(key, 'none')}"
        for number, each in enumerate(benchmarks)
        for key in sorted(both[0].keys() & both[number].keys() | held[0].keys() | held[number].keys())
        if both[0].get(key) != both[number].get(key)
    ]


def _sentences(
    benchmarks: Sequence[Benchmark], stats: dict[Metric, list[Statistics]], n_examples: int
) -> list[Sentences]:
    by_chrf = stats if "chrf" in stats else load_statistics(benchmarks, ["chrf"])[0]
    chrf, *others = (each.segment_scores() for each in by_chrf["chrf"])
    sources, references = benchmarks[0].lines("sources"), benchmarks[0].lines("references")
    before, *texts = (each.lines("hypotheses") for each in benchmarks)
    made = []
    for benchmark, after, scores in zip(benchmarks[1:], texts, others, strict=True):
        deltas = [score - other for score, other in zip(scores, chrf, strict=True)]
        in_order = sorted(range(len(deltas)), key=deltas.__getitem__)
        worse = [index for index in in_order if deltas[index] < 0]
        better = [index for index in reversed(in_order) if deltas[index] > 0]
        examples = [
            Example(
                index=index,
                source=sources[index],
                reference=references[index],
                hypotheses=(before[index], after[index]),
                chrf=(chrf[index], scores[index]),
            )
            for index in (*better[:n_examples], *worse[:n_examples])
        ]
        counts = {"better": len(better), "worse": len(worse), "equal": len(deltas) - len(better) - len(worse)}
        made.append(Sentences(system=benchmark.name, examples=examples, **counts))
    return made
