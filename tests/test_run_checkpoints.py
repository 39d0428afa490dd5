"""A run's checkpoints: which one is resumed, which are kept. Run: pytest tests/test_run_checkpoints.py."""

from pathlib import Path

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.record_parts import BenchmarkSummary, Facts
from orchestrator.runs.run_checkpoints import best_and_last, choose_checkpoint, planned_world_size, usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import Score
from orchestrator.specs.compute_spec import ComputeSpec
from tests.checkpoint_folders import checkpoint


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "it's a run")
    made.output.mkdir(parents=True)
    return made


# Which one


def test_the_newest_whole_one_is_chosen_and_the_newer_ones_are_explained(run):
    for step in (5, 90, 100, 1000):
        checkpoint(run, step)
    (run.output / "checkpoint-1000" / "trainer_state.json").unlink()
    (run.output / "checkpoint-100" / "optimizer.pt").write_bytes(b"")
    found, said = choose_checkpoint(run)
    assert found is not None and found.label == "checkpoint-90"
    assert [line.partition(":")[0] for line in said] == [
        "checkpoint-1000 is skipped",
        "checkpoint-100 is skipped",
    ]
    assert "trainer_state.json is missing" in said[0] and "optimizer.pt is empty" in said[1]


def test_of_nothing_whole_nothing_is_chosen(run):
    assert choose_checkpoint(run) == (None, [])
    checkpoint(run, 5)
    (run.output / "checkpoint-5" / "optimizer.pt").unlink()
    found, said = choose_checkpoint(run)
    assert found is None and len(said) == 1


def test_of_all_the_newest_comes_first_and_other_names_are_left_out(run):
    for step in (5, 90, 100):
        checkpoint(run, step)
    (run.output / "checkpoint-best-7").mkdir()
    (run.output / "checkpoint-200").write_text("a file")
    assert [each.label for each in usable_checkpoints(run)] == ["checkpoint-100", "checkpoint-90", "checkpoint-5"]


def test_the_one_that_is_named_is_chosen_and_no_other(run):
    for step in (5, 90):
        checkpoint(run, step)
    found, said = choose_checkpoint(run, "checkpoint-5")
    assert found is not None and (found.label, said) == ("checkpoint-5", [])
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
    with pytest.raises(
        PrerequisiteError, match=f"checkpoint-90 of .* was saved by {processes} process.*, and {planned} "
    ):
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
        ({"devices": ""}, ["a"], None),
        ({}, ["a", "b"], None),
    ],
)
def test_the_number_of_processes_is_known_where_the_spec_tells(compute, gpus, expected):
    assert planned_world_size(ComputeSpec(**compute), Facts(gpus=gpus)) == expected


# Which ones are kept


def recorded(run: RunDir, *scores: tuple[str, str, float], status: str = "complete") -> None:
    """A record with benchmarks: label, metric, score."""
    record = RunRecord(id=run.id, name="x", created_at=now(), spec_sha256="0" * 64, seed=1)
    record.benchmarks = [
        BenchmarkSummary(
            id=f"b{number}",
            of=label,
            testset="d",
            split="test",
            status=status,
            n_segments=10,
            scores=[Score(metric=metric, score=score, signature="s", n_segments=10)],
        )
        for number, (label, metric, score) in enumerate(scores)
    ]
    record.save(run)


def four(run: RunDir, **state: object) -> None:
    for step in (100, 200, 300, 400):
        checkpoint(run, step, **state)


def test_the_last_one_is_kept(run):
    four(run)
    recorded(run)
    assert best_and_last(run) == {"checkpoint-400"}
    (run.output / "checkpoint-400" / "optimizer.pt").unlink()
    assert best_and_last(run) == {"checkpoint-300"}


def test_where_none_can_be_resumed_from_the_last_with_whole_weights_is_kept(run):
    four(run)
    recorded(run)
    for step in (100, 200, 300, 400):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (run.output / f"checkpoint-{step}" / name).unlink()
    (run.output / "checkpoint-400" / "adapter_model.safetensors").write_bytes(b"cut")
    assert best_and_last(run) == {"checkpoint-300"}


def test_the_one_that_the_trainer_calls_the_best_is_kept_wherever_it_was_then(run):
    four(run, best_model_checkpoint="/elsewhere/output/checkpoint-200", best_metric=1.5)
    recorded(run)
    assert best_and_last(run) == {"checkpoint-400", "checkpoint-200"}


@pytest.mark.parametrize("best", ["/elsewhere/checkpoint-7", "..", "", 5])
def test_a_best_one_that_is_not_there_is_none(run, best):
    four(run, best_model_checkpoint=best)
    recorded(run)
    assert best_and_last(run) == {"checkpoint-400"}


def test_the_best_by_each_metric_of_our_benchmarks_is_kept(run):
    four(run)
    recorded(run, ("checkpoint-100", "bleu", 30.0), ("checkpoint-200", "bleu", 29.0), ("output", "bleu", 40.0))
    assert best_and_last(run) == {"checkpoint-400", "checkpoint-100"}
    recorded(run, ("checkpoint-100", "ter", 30.0), ("checkpoint-200", "ter", 29.0))
    assert best_and_last(run) == {"checkpoint-400", "checkpoint-200"}
    recorded(run, ("checkpoint-100", "bleu", 30.0), ("checkpoint-200", "ter", 29.0))
    assert best_and_last(run) == {"checkpoint-400", "checkpoint-100", "checkpoint-200"}
    RunRecord.load(run).update(run, chosen_checkpoint="checkpoint-300", benchmarks=[])
    assert best_and_last(run) == {"checkpoint-400", "checkpoint-300"}
    recorded(run, ("checkpoint-100", "bleu", 30.0), status="incomplete")
    assert best_and_last(run) == {"checkpoint-400"}


def test_a_run_without_checkpoints_has_none_to_keep(run):
    recorded(run)
    assert best_and_last(run) == set()
