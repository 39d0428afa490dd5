"""An elastic training with the real llamafactory-cli: machines come and fail, and all go on from the last checkpoint.

The machines are two launches in one workspace, as on a file system that both see; each holds locks of its own.
Run: pytest tests/test_elastic.py.
"""

import re
import signal
from pathlib import Path

import pytest

from orchestrator.models.checkpoints import inspect
from orchestrator.models.model_files import adapter_problems
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trainer_log import curve, restarted_at
from tests.test_nodes import TRAIN, free_port
from tests.test_real import torchrun_works
from tests.workshop import PATIENT_S, training_at_step, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), torchrun_works]
STEPS = 30


def is_told_to_end(process):
    """Whether a process that is held (SIGSTOP) has a SIGTERM before it."""
    (pending,) = re.findall(r"ShdPnd:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(pending, 16) & 1 << (signal.SIGTERM - 1))


@pytest.fixture(scope="module")
def elastic(place):
    """One machine trains; another joins; a process of that is killed; both come to the end."""
    workshop = place()
    compute = {
        "nproc_per_node": 1, "master_addr": "127.0.0.1", "master_port": free_port(),
        "rdzv_id": "toy", "min_nnodes": 1, "max_nnodes": 2, "max_restarts": 3,
    }  # fmt: skip
    spec = workshop.spec(train={**TRAIN, "max_steps": STEPS}, compute=compute)
    first = workshop.start("launch", spec, "--no-benchmark")
    first.until(training_at_step(workshop, 1), "the first step")
    run = workshop.only_run()
    (alone,) = workshop.ranks(run)
    first.until(training_at_step(workshop, 6), "step 6")  # right behind a checkpoint: none is being written
    alone.suspend()  # else it would be at its end before the other one has started
    refused = workshop.run("resume", "toy")
    second = workshop.start("join", "toy", ORCHESTRATOR_LOCKS=str(workshop.root.parent / "locks of another machine"))
    wait_for(lambda: is_told_to_end(alone), "the first machine's torchrun to hear of the second", PATIENT_S)
    alone.resume()
    first.until(lambda: len(restarted_at(run / "logs" / "train.log")) == 1, "both to go on together")
    part = next(each for each in workshop.run_folders() if each != run)
    begun = len((run / "output" / "trainer_log.jsonl").read_text("utf-8").splitlines())
    first.until(training_at_step(workshop, begun + 1), "a step of both")
    (other,) = workshop.ranks(part)
    first.until(training_at_step(workshop, begun + 6), "a step behind the next checkpoint")
    other.kill()
    done = [each.finish() for each in (first, second)]
    return workshop, run, part, {"done": done, "refused": refused}


def test_a_machine_joins_and_a_process_fails_and_the_training_comes_to_its_end(elastic):
    workshop, run, part, said = elastic
    assert [each.code for each in said["done"]] == [0, 0], said["done"]
    record, others = workshop.record(run), workshop.record(part)
    assert (record["status"], others["status"]) == ("trained", "done")
    assert (record["training"]["steps"], record["training"]["total_steps"]) == (STEPS, STEPS)
    assert adapter_problems(run / "output") == [] and workshop.left_over() == []


def test_all_machines_went_on_from_the_same_checkpoints(elastic):
    _, run, part, _ = elastic
    began = restarted_at(run / "logs" / "train.log")
    assert len(began) == 2 and 5 <= began[0] < began[1] < STEPS, began
    text = (part / "logs" / "train.log").read_text("utf-8")
    assert re.findall(r"Resuming training from \S+/output/checkpoint-(\d+)\.", text) == [str(each) for each in began]
    assert inspect(run / "output" / f"checkpoint-{STEPS}", world_size=2).whole


def test_what_was_trained_is_in_the_run_that_began(elastic):
    workshop, run, part, said = elastic
    assert not (part / "output").exists() and (part / "train.yaml").read_text("utf-8").count(f"../{run.name}/output")
    others = workshop.record(part)
    assert others["joins"] == run.name and others["training"] is None
    assert others["results_elsewhere"] == f"this machine is one of 1 to 2 that train {run.name}: the results are there"
    assert others["results_elsewhere"] in said["done"][1].err
    losses = [
        (each["current_steps"], each["loss"]) for each in curve(run / "output" / "trainer_log.jsonl") if "loss" in each
    ]
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert workshop.record(run)["training"]["train_loss"] == pytest.approx(
        sum(loss for _, loss in losses) / STEPS, rel=1e-3
    )
    assert RunDir(run).id == workshop.run("show", "toy", "--json").json()["id"]


def test_a_part_is_no_run_to_go_on_with(elastic):
    workshop, run, part, said = elastic
    assert said["refused"].code == 3
    for command, remedy in (("resume", "join"), ("rerun", "rerun")):
        refused = workshop.run(command, part.name)
        assert refused.code == 2 and f"{part.name} is a machine's part in {run.name}" in refused.err
        assert f"orchestrator {remedy} {run.name}" in refused.err
    joined = workshop.run("join", part.name)
    assert joined.code == 3 and f"run {run.name} does not train now: it is trained" in joined.err
