"""A comparison on the terminal: verdicts first, then what they rest on, then where each system wins.

Covered: texts of models and test sets made visible; nothing cut where the output is no terminal.
Not covered: what is shown (compare.py).
"""

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.benchmark.compare import Comparison, Example, Sentences
from orchestrator.scoring.metrics import HEADINGS
from orchestrator.scoring.significance import PairedTest
from orchestrator.text import escape_controls
from orchestrator.views.terminal import table


def comparison_text(comparison: Comparison) -> RenderableType:
    """Everything that a person is shown."""
    title = f"{comparison.testset} {comparison.split}, {comparison.n_segments} segments; against {comparison.baseline}:"
    parts: list[RenderableType] = [_line(title)]
    parts += [_line(f"  {each}") for each in comparison.verdicts]
    parts += [_line(f"  note: {each}") for each in comparison.notes]
    parts += [_gap(), _scores(comparison)]
    parts += [_gap(), table(_TEST_COLUMNS, [_test_row(test) for test in comparison.tests]), *_small_print(comparison)]
    if comparison.buckets:
        parts += [_gap(), *_buckets(comparison)]
    if any(number for system in comparison.systems for number in system.triage.values()):
        parts += [_gap(), *_faults(comparison)]
    for each in comparison.sentences:
        parts += [_gap(), *_sentences(each, comparison.baseline)]
    return Group(*parts)


_TEST_COLUMNS = ["", "metric", "difference", "95 % interval", "p", "p (Holm)", "p (bootstrap)", "can show"]


def _headings(comparison: Comparison) -> list[str]:
    return [HEADINGS[metric] for metric in comparison.signatures]


def _scores(comparison: Comparison) -> RenderableType:
    rows = [
        [system.name, *(f"{system.scores[metric]:.2f}" for metric in comparison.signatures)]
        for system in comparison.systems
    ]
    if comparison.group is None:
        return table(["", *_headings(comparison)], rows)
    targets = [system.target for system in comparison.systems]
    rows = [[*row, target] for row, target in zip(rows, targets, strict=True)]
    return table([comparison.group, *_headings(comparison), "run"], rows)


def _test_row(test: PairedTest) -> list[str]:
    interval = f"[{test.ci95[0]:+.2f}, {test.ci95[1]:+.2f}]"
    shows = "" if test.smallest_difference is None else f"{test.smallest_difference:.2f}"
    p_values = (f"{p:.4f}" for p in (test.p_value, test.p_holm, test.p_bootstrap))
    return [test.system, HEADINGS[test.metric], f"{test.difference:+.2f}", interval, *p_values, shows]


def _small_print(comparison: Comparison) -> list[Text]:
    lines = [
        f"p: paired approximate randomization, {comparison.n_randomizations} trials, ties against the difference; "
        f"seed {comparison.seed}",
        f"p (Holm): corrected over all {comparison.n_comparisons} comparisons"
        if comparison.n_comparisons > 1
        else "p (Holm): there is one comparison, nothing to correct",
        f"95 % interval, p (bootstrap): paired bootstrap, {comparison.n_bootstrap} resamples, p as in sacrebleu",
        f"can show: {comparison.smallest_difference}",
        *(
            f"{HEADINGS[metric]}: {signature}{' (lower is better)' if metric == 'ter' else ''}"
            for metric, signature in comparison.signatures.items()
        ),
    ]
    return [_line(line) for line in lines]


def _buckets(comparison: Comparison) -> list[RenderableType]:
    rows = []
    for bucket in comparison.buckets:
        lengths = str(bucket.shortest) if bucket.shortest == bucket.longest else f"{bucket.shortest}-{bucket.longest}"
        for name in _names(comparison):
            scores = [f"{bucket.scores[name][metric]:.1f}" for metric in comparison.signatures]
            rows.append([lengths, str(bucket.n_segments), name, *scores])
            lengths = ""
    title = f"by length of the source in {comparison.bucket_unit} (no test was made of these):"
    return [_line(title), table([comparison.bucket_unit, "segments", "", *_headings(comparison)], rows)]


def _faults(comparison: Comparison) -> list[RenderableType]:
    faults = [name for name in comparison.systems[0].triage if any(each.triage[name] for each in comparison.systems)]
    rows = [
        [name.replace("_", " "), *("?" if each.triage[name] is None else str(each.triage[name])
                                   for each in comparison.systems)]
        for name in faults
    ]  # fmt: skip
    return [_line("answers with a fault:"), table(["", *map(escape_controls, _names(comparison))], rows)]


def _sentences(sentences: Sentences, baseline: str) -> list[Text]:
    system = sentences.system
    lines = [
        f"{system} against {baseline}, sentence by sentence, by chrF2: higher in {sentences.better}, "
        f"lower in {sentences.worse}, the same in {sentences.equal}"
    ]
    for title, examples in ((f"where {system} wins", sentences.where_better),
                            (f"where {baseline} wins", sentences.where_worse)):  # fmt: skip
        if examples:
            lines += [f"{title}:", *(line for each in examples for line in _example(each, baseline, system))]
    return [_line(line) for line in lines]


def _example(example: Example, baseline: str, system: str) -> list[str]:
    width = max(len("reference"), len(baseline), len(system))
    rows = [("source", example.source), ("reference", example.reference)]
    rows += [(baseline, example.baseline_hypothesis), (system, example.hypothesis)]
    number = f"  {example.index}: chrF2 {example.baseline_chrf:.1f} -> {example.chrf:.1f}"
    return [number, *(f"    {name:{width}}  {text}" for name, text in rows)]


def _names(comparison: Comparison) -> list[str]:
    return [system.name for system in comparison.systems]


def _line(text: str) -> Text:
    return Text(escape_controls(text))


def _gap() -> Text:
    return Text()
