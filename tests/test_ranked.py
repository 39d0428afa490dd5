"""The runs of a group against each other. Run: pytest tests/test_ranked.py."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.benchmark.compare import compare
from orchestrator.benchmark.ranked import find_ranked
from orchestrator.errors import SpecError
from orchestrator.runs.axes import read_axes
from orchestrator.runs.groups import Group, Point
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.workspace import Workspace
from tests.benchmark_folders import REFERENCES, STAMP, add_benchmark, workspace

GROUP = f"demo-sweep-{STAMP}"


def spoiled(every: int) -> list[str]:
    """The references with each so-manieth made worse."""
    return [line if number % every else "Etwas anderes" for number, line in enumerate(REFERENCES, start=1)]


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """A group of three runs, the second the best, the third without a benchmark."""
    made = workspace(tmp_path)
    add_benchmark(made, spoiled(2), run="low")
    add_benchmark(made, spoiled(9), run="high")
    failed = RunDir(made.runs / f"none-{STAMP}")
    failed.path.mkdir()
    at = datetime(2026, 11, 24, 10, 15, tzinfo=UTC)
    RunRecord(id=failed.id, name="none", created_at=at, ended_at=at, status="failed", spec_sha256="0", seed=1).save(
        failed
    )
    names = [f"{name}-{STAMP}" for name in ("low", "high", "none")]
    for name in names:
        record = RunRecord.load(RunDir(made.runs / name))
        record.update(RunDir(made.runs / name), group=GROUP)
    folder = GroupDir(made.runs / GROUP)
    folder.path.mkdir()
    points = [Point(run=name, values=[str(rank)], overrides=[]) for name, rank in zip(names, (4, 8, 16), strict=True)]
    axes = read_axes(["train.lora_rank=4,8,16"])
    group = Group(id=GROUP, created_at=at, spec_file="x", axes=axes, points=points, with_benchmarks=True)
    group.save(folder)
    return made


def test_the_best_is_first_and_each_other_is_compared_with_it_by_what_was_swept(place):
    found = find_ranked([GROUP], place, None, ())
    comparison = found.noted(compare(found.benchmarks, ["bleu"], n_examples=0))
    assert [each.name for each in comparison.systems] == ["lora_rank=8", "lora_rank=4"]
    assert comparison.group == GROUP and comparison.systems[0].values == {"train.lora_rank": "8"}
    assert comparison.baseline == "lora_rank=8" and comparison.verdicts[0].startswith("lora_rank=4 is worse: ")
    assert any("flatters it" in note for note in comparison.notes)
    assert f"not ranked: none-{STAMP} (lora_rank=16), failed: it has no complete benchmark" in comparison.notes


def test_the_metric_that_is_asked_for_ranks_and_of_ter_the_lowest_is_best(place):
    found = find_ranked(["demo-sweep"], place, "toy", ("ter",))
    assert [each.name for each in found.benchmarks] == ["lora_rank=8", "lora_rank=4"]
    assert found.notes[0].startswith("ranked by TER")


def test_another_system_before_the_group_is_what_all_are_compared_with(place):
    add_benchmark(place, spoiled(3), run="base")
    found = find_ranked(["base", GROUP], place, None, ())
    assert [each.name for each in found.benchmarks] == ["base", "lora_rank=8", "lora_rank=4"]


def test_a_group_with_one_benchmark_and_two_groups_are_refused(place):
    with pytest.raises(SpecError, match="one group at a time"):
        find_ranked([GROUP, GROUP], place, None, ())
    (place.runs / f"low-{STAMP}" / "record.json").unlink()
    with pytest.raises(SpecError, match=r"1 of 3 runs .* have a complete benchmark: a comparison takes two"):
        find_ranked([GROUP], place, None, ())
