"""The benchmarks of a group's runs, the best first, for `compare GROUP`: each by what was swept.

Covered: runs that have no benchmark, which are named and left out; other systems before the group's; what a ranking on
one test set is worth, said.
Not covered: the tests (significance.py): with the best first, each is compared with the best.
Writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.benchmark.compare import Comparison
from orchestrator.benchmark.finished import Benchmark, candidates, find_benchmarks
from orchestrator.errors import SpecError
from orchestrator.runs.groups import Group, lookup_group, members
from orchestrator.runs.workspace import Workspace
from orchestrator.scoring.metrics import HEADINGS
from orchestrator.specs.benchmark_spec import METRICS


@dataclass(frozen=True)
class Ranked:
    """Benchmarks in the order in which they are compared."""

    benchmarks: list[Benchmark]
    group: str | None = None
    """The group among them."""
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    """A benchmark's name -> what was swept, by key."""
    notes: list[str] = field(default_factory=list)

    def noted(self, comparison: Comparison) -> Comparison:
        """The comparison, with what belongs to a group."""
        if self.group is None:
            return comparison
        systems = [each.model_copy(update={"values": self.values.get(each.name, {})}) for each in comparison.systems]
        return comparison.model_copy(
            update={"group": self.group, "systems": systems, "notes": [*comparison.notes, *self.notes]}
        )


def find_ranked(words: Sequence[str], workspace: Workspace, testset: str | None, metrics: Sequence[str]) -> Ranked:
    """The benchmarks that words mean, a group's runs the best first in the place of the group.

    Args:
        words: as find_benchmarks has them; one of them may be a group.
        workspace: where the runs are.
        testset: as find_benchmarks has it.
        metrics: the first of them ranks; none: BLEU, where all have it.

    Raises:
        SpecError, PrerequisiteError: as find_benchmarks; two groups; a group with no benchmarks.
    """
    groups = {word: folder for word in words if (folder := lookup_group(workspace, word)) is not None}
    if not groups:
        return Ranked(find_benchmarks(words, workspace, testset))
    if len(groups) > 1 or len(groups) < sum(word in groups for word in words):
        raise SpecError(f"one group at a time: {', '.join(words)}", "orchestrator compare GROUP; or name single runs")
    ((word, folder),) = groups.items()
    group, place = Group.load(folder), words.index(word)
    labels: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}
    left_out = []
    for each in members(folder, group):
        label = group.label(each.point)
        try:
            candidates(each.run.id, workspace, testset)
        except SpecError:
            left_out.append(f"not ranked: {each.run.id} ({label}), {each.status}: it has no complete benchmark")
            continue
        labels[each.run.id] = label
        values[label] = dict(zip((axis.key for axis in group.axes), each.point.values, strict=True))
    if not labels or len(labels) + len(words) < 3:
        raise SpecError(
            f"{len(labels)} of {len(group.points)} runs of {folder.id} have a complete benchmark"
            f"{f' of {testset}' if testset else ''}: a comparison takes two",
            f"orchestrator resume {folder.id} finishes them; orchestrator show {folder.id} says how far they are",
        )
    found = find_benchmarks([*words[:place], *labels, *words[place + 1 :]], workspace, testset)
    metric = _rank_metric(found, metrics)
    own = [replace(each, name=labels[each.name]) for each in found[place : place + len(labels)]]
    own.sort(key=lambda each: _score(each, metric), reverse=metric != "ter")
    notes = [f"ranked by {HEADINGS.get(metric, metric)}; the best of {len(own)} was chosen by the very sentences that "
             "score it, which flatters it: say its score on another test set", *left_out]  # fmt: skip
    return Ranked([*found[:place], *own, *found[place + len(labels) :]], folder.id, values, notes)


def _rank_metric(found: Sequence[Benchmark], metrics: Sequence[str]) -> str:
    """The first that was asked for, or the first that all were scored by; compare() says what is wrong with one."""
    shared = [name for name in METRICS if all(_has(each, name) for each in found)]
    return next((name for name in metrics if name in shared), shared[0] if shared else METRICS[0])


def _has(benchmark: Benchmark, metric: str) -> bool:
    return any(score.metric == metric for score in benchmark.stored.scores)


def _score(benchmark: Benchmark, metric: str) -> float:
    return next((score.score for score in benchmark.stored.scores if score.metric == metric), 0.0)
