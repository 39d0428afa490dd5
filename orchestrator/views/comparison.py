"""A comparison on the terminal: verdicts first, then what they rest on, then where each system wins."""

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.benchmark.compare import Comparison, Sentences
from orchestrator.scoring.metrics import HEADINGS, higher_is_better
from orchestrator.scoring.significance import PairedTest
from orchestrator.views.terminal import line, table

_TEST_COLUMNS = ["", "metric", "difference", "95 % interval", "p", "p (Holm)", "p (bootstrap)", "MDE"]


def comparison_text(comparison: Comparison) -> RenderableType:
    """Everything that a person is shown."""
    title = f"{comparison.testset} {comparison.split}, {comparison.n_segments} segments; against {comparison.baseline}:"
    parts: list[RenderableType] = [line(title)]
    parts += [line(f"  {each}") for each in comparison.verdicts]
    parts += [line(f"  note: {each}") for each in comparison.notes]
    parts += [Text(), _scores(comparison)]
    parts += [Text(), table(_TEST_COLUMNS, map(_test_row, comparison.tests)), *map(line, _small_print(comparison))]
    if any(number for system in comparison.systems for number in system.issues.values()):
        parts += [Text(), line("hypotheses with issues:"), _issues(comparison)]
    for each in comparison.sentences:
        parts += [Text(), *map(line, _sentences(each, comparison.baseline))]
    return Group(*parts)


def _scores(comparison: Comparison) -> RenderableType:
    rows = [
        [system.name, *(f"{score:.2f}" for score in system.scores.values()), system.target]
        for system in comparison.systems
    ]
    return table(["", *(HEADINGS[metric] for metric in comparison.signatures), "of"], rows)


def _test_row(test: PairedTest) -> list[str]:
    interval = "" if test.ci95 is None else f"[{test.ci95[0]:+.2f}, {test.ci95[1]:+.2f}]"
    p_values = (f"{p:.4f}" for p in (test.p_value, test.p_holm, test.p_bootstrap))
    mde = "" if test.mde is None else f"{test.mde:.2f}"
    return [test.system, HEADINGS[test.metric], f"{test.difference:+.2f}", interval, *p_values, mde]


def _small_print(comparison: Comparison) -> list[str]:
    return [
        f"p: paired approximate randomization, {comparison.n_randomizations} trials, ties against the difference; "
        f"seed {comparison.seed}",
        f"p (Holm): corrected over {comparison.n_comparisons} comparisons by each metric"
        if comparison.n_comparisons > 1
        else "p (Holm): there is one comparison by each metric, nothing to correct",
        f"95 % interval, p (bootstrap): paired bootstrap, {comparison.n_bootstrap} resamples, p as in sacrebleu",
        f"MDE: {comparison.mde}",
        *(
            f"{HEADINGS[metric]}: {signature}{'' if higher_is_better(metric) else ' (lower is better)'}"
            for metric, signature in comparison.signatures.items()
        ),
    ]


def _issues(comparison: Comparison) -> RenderableType:
    """Side by side; '?' where a benchmark could not know."""
    names = dict.fromkeys(name for each in comparison.systems for name, number in each.issues.items() if number)
    of_each = [[each.issues.get(name) for each in comparison.systems] for name in names]
    rows = [
        [name.replace("_", " "), *("?" if count is None else str(count) for count in counts)]
        for name, counts in zip(names, of_each, strict=True)
    ]
    return table(["", *(each.name for each in comparison.systems)], rows)


def _sentences(sentences: Sentences, baseline: str) -> list[str]:
    system = sentences.system
    lines = [
        f"{system} against {baseline}, sentence by sentence, by chrF2: higher in {sentences.better}, "
        f"lower in {sentences.worse}, the same in {sentences.equal}"
    ]
    width = max(len("reference"), len(baseline), len(system))
    for each in sentences.examples:
        lines.append(f"  {each.index}: chrF2 {each.chrf[0]:.1f} -> {each.chrf[1]:.1f}")
        texts = [each.source, each.reference, *each.hypotheses]
        rows = zip(("source", "reference", baseline, system), texts, strict=True)
        lines += [f"    {name:{width}}  {text}" for name, text in rows]
    return lines
