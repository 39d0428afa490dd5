"""A training on several machines, as each of them sees its part. Run: pytest tests/test_machines.py.

With the fake llamafactory-cli; test_nodes.py has the real one.
"""

import time

import pytest

from orchestrator.lifecycle.train import CheckpointWait
from orchestrator.runs.machine import own_ranks, this_machine
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.compute_spec import ComputeSpec
from tests.checkpoint_folders import checkpoint
from tests.workshop import Workshop

MEETING = {"nnodes": 2, "nproc_per_node": 1, "master_addr": "127.0.0.1", "master_port": 29500}


@pytest.mark.parametrize(
    ("compute", "environment", "rank", "name"),
    [
        ({**MEETING, "node_rank": 1}, {}, 1, "rank 1 of 2"),
        (MEETING, {"NODE_RANK": "1"}, 1, "rank 1 of 2"),
        ({**MEETING, "node_rank": 0}, {"NODE_RANK": "1"}, 0, "rank 0 of 2"),
        (MEETING, {}, None, "one of 2"),
        (MEETING, {"NODE_RANK": "first"}, None, "one of 2"),
    ],
)
def test_which_machine_this_is(compute, environment, rank, name):
    machine = this_machine(ComputeSpec(**compute), environment)
    assert machine is not None
    assert (machine.rank, machine.name, machine.rendezvous) == (rank, name, "127.0.0.1:29500")


def test_the_ranks_of_a_machine_follow_from_its_own_and_one_machine_is_none_of_several():
    for alone in ({}, {"nnodes": 1}, {"nproc_per_node": 4}):
        assert this_machine(ComputeSpec(**alone), {"NODE_RANK": "1", "NNODES": "2"}) is None
    compute = ComputeSpec(**{**MEETING, "nproc_per_node": 8, "node_rank": 1})
    assert own_ranks(compute, this_machine(compute, {})) == range(8, 16)
    assert own_ranks(compute, None) is None


def test_a_part_without_results_is_done_and_says_where_they_are(workshop: Workshop):
    """LLaMA-Factory's main process alone writes results; the benchmarks of the spec are rank 0's too."""
    spec = workshop.spec(compute=MEETING)
    done = workshop.run("launch", spec, FAKE_TRAIN="silent", NODE_RANK="1")
    assert done.code == 0, done.err
    record = workshop.record()
    assert (record["status"], record["benchmarks"], record["training"]) == ("done", [], None)
    assert record["results_elsewhere"] == "this machine is rank 1 of 2: the results are on the one with rank 0, " + (
        "127.0.0.1:29500"
    )
    assert record["environment"]["train"]["NODE_RANK"] == "1"
    assert record["results_elsewhere"] in done.err and record["results_elsewhere"] in workshop.run("show", "toy").out
    again = workshop.run("resume", "toy", NODE_RANK="1")
    assert again.code == 2 and "is done" in again.err


def test_a_stopped_training_that_has_saved_and_writes_nothing_is_waited_for_no_longer(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    checkpoint(run, 50, processes=2)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    wait = CheckpointWait(run, quiet_s=2)

    def looks(*moments: float) -> list[bool]:
        return [wait() for clock[0] in moments]

    assert looks(0, 3) == [False, False], "it has not saved yet"
    saved = checkpoint(run, 60, processes=2)
    (saved / "checkpoint-is-incomplete.txt").write_text("")
    assert looks(4, 7) == [False, False], "it is still saving"
    (saved / "checkpoint-is-incomplete.txt").unlink()
    assert looks(8, 9.9, 10) == [False, False, True]
