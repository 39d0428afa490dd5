"""A run's checkpoints: which one is resumed, which are kept. Run: pytest tests/test_run_checkpoints.py."""

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.record_parts import BenchmarkSummary, Facts
from orchestrator.runs.run_checkpoints import best_and_last, choose_checkpoint, planned_world_size
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import Score
from orchestrator.specs.compute_spec import ComputeSpec
from tests.checkpoint_folders import checkpoint


def test_the_newest_complete_one_is_chosen_and_the_newer_ones_are_explained(run):
    assert choose_checkpoint(run) == (None, [])
    for step in (5, 90, 100, 1000):
        checkpoint(run, step)
    (run.output / "checkpoint-best-7").mkdir()
    (run.output / "checkpoint-2000").write_text("a file")
    (run.output / "checkpoint-1000" / "trainer_state.json").unlink()
    (run.output / "checkpoint-100" / "optimizer.pt").write_bytes(b"")
    found, skipped = choose_checkpoint(run)
    assert found is not None and found.label == "checkpoint-90"
    assert [line.partition(":")[0] for line in skipped] == ["checkpoint-1000 is skipped", "checkpoint-100 is skipped"]
    assert "trainer_state.json is missing" in skipped[0] and "optimizer.pt is empty" in skipped[1]
    for step in (5, 90):
        (run.output / f"checkpoint-{step}" / "optimizer.pt").unlink()
    found, skipped = choose_checkpoint(run)
    assert found is None and len(skipped) == 4


def test_the_one_that_is_named_is_chosen_and_no_other(run):
    for step in (5, 90):
        checkpoint(run, step)
    found, skipped = choose_checkpoint(run, "checkpoint-5")
    assert found is not None and (found.label, skipped) == ("checkpoint-5", [])
    (run.output / "checkpoint-5" / "optimizer.pt").unlink()
    with pytest.raises(PrerequisiteError, match=r"optimizer\.pt is missing") as error:
        choose_checkpoint(run, "checkpoint-5")
    assert "checkpoint-90" in error.value.remedy
    with pytest.raises(SpecError, match=r"no checkpoint-50; did you mean .*it has: checkpoint-90, checkpoint-5"):
        choose_checkpoint(run, "checkpoint-50")


@pytest.mark.parametrize(("processes", "planned"), [(1, 2), (3, 2), (2, 1)])
def test_a_plan_with_another_number_of_processes_is_refused_and_the_checkpoint_is_not_skipped(run, processes, planned):
    """It is complete: an older one, or none, would throw the training away."""
    checkpoint(run, 5, processes=planned)
    checkpoint(run, 90, processes=processes)
    with pytest.raises(PrerequisiteError, match=f"checkpoint-90 .* saved by {processes} process.*, and {planned} "):
        choose_checkpoint(run, None, planned)
    for world_size in (None, processes):
        found, skipped = choose_checkpoint(run, None, world_size)
        assert found is not None and (found.label, skipped) == ("checkpoint-90", [])


@pytest.mark.parametrize(
    ("compute", "gpus", "expected"),
    [
        ({"nproc_per_node": 3}, [], 3),
        ({"devices": "0,1"}, ["a", "b"], 2),
        ({"devices": "0,1", "nproc_per_node": 1}, ["a", "b"], 1),
        ({"devices": "0,1"}, [], None),
        ({}, ["a", "b"], None),
    ],
)
def test_the_number_of_processes_is_known_where_the_spec_tells(compute, gpus, expected):
    assert planned_world_size(ComputeSpec(**compute), Facts(gpus=gpus)) == expected


def recorded(
    run: RunDir, *scores: tuple[int, str, float, *tuple[int, ...]], chosen: int = 0, status: str = "complete"
) -> set[int]:
    """The steps that are kept of a run with these benchmarks: step, metric, score, sentences (10)."""
    benchmarks = [
        BenchmarkSummary(
            id=f"b{number}", of=f"checkpoint-{step}", testset="d", split="test", status=status, n_segments=sum(n) or 10,
            scores=[Score(metric=metric, score=score, signature="s", n_segments=10)],
        )
        for number, (step, metric, score, *n) in enumerate(scores)
    ]  # fmt: skip
    record = RunRecord(id=run.id, name="x", created_at=now(), spec_sha256="0" * 64, seed=1, benchmarks=benchmarks)
    record.chosen_checkpoint = f"checkpoint-{chosen}" if chosen else None
    record.save(run)
    return {int(label.removeprefix("checkpoint-")) for label in best_and_last(run)}


def four(run: RunDir) -> None:
    for step in (100, 200, 300, 400):
        checkpoint(run, step)


def test_the_last_that_can_be_resumed_is_kept_or_else_the_last_with_complete_weights(run):
    assert recorded(run) == set()
    four(run)
    assert recorded(run) == {400}
    (run.output / "checkpoint-400" / "optimizer.pt").unlink()
    assert recorded(run) == {300}
    for step in (100, 200, 300):
        (run.output / f"checkpoint-{step}" / "optimizer.pt").unlink()
    (run.output / "checkpoint-400" / "adapter_model.safetensors").write_bytes(b"cut")
    assert recorded(run) == {300}


def test_the_best_by_each_metric_of_our_benchmarks_and_the_chosen_one_are_kept(run):
    four(run)
    assert recorded(run, (100, "bleu", 30.0), (200, "bleu", 29.0), (500, "bleu", 40.0)) == {100, 400}
    assert recorded(run, (100, "ter", 30.0), (200, "ter", 29.0)) == {200, 400}
    assert recorded(run, (100, "bleu", 30.0), (200, "ter", 29.0)) == {100, 200, 400}
    few = [(100, "bleu", 90.0, 5), (200, "bleu", 29.0)]  # of a sample: its score is another one's
    assert recorded(run, *few) == {100, 200, 400}
    assert recorded(run, chosen=300) == {300, 400}
    assert recorded(run, (100, "bleu", 30.0), status="incomplete") == {400}
    checkpoint(run, 600, best_model_checkpoint="/elsewhere/output/checkpoint-200")
    assert recorded(run) == {200, 600}
