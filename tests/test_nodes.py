"""Several processes, and several machines, with the real llamafactory-cli. Run: pytest tests/test_nodes.py.

The machines are workspaces that meet on loopback, with one process each. All train the same 40 steps, each of two
processes' examples. One thread per process: sums come out the same each time.
"""

import random

import pytest

from orchestrator.models.model_files import adapter_problems
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
from tests.test_real import torchrun_works
from tests.workshop import assert_none_left, loss_curve, told_to_stop, training_at_step

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), torchrun_works]

TRAIN = {"learning_rate": 5.0e-3, "lora_rank": 4, "max_steps": 40, "max_samples": 500, "logging_steps": 1}
TRAIN |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "save_steps": 5}
TRAIN |= {"report_to": "none", "ddp_backend": "gloo"}


def start_both(machines, *words, **train):
    """The same command on two machines, each with its rank; given arguments of train, a launch of a new spec."""
    port = random.randint(20_000, 32_000)  # below those that the kernel gives to connections
    compute = {"nnodes": 2, "nproc_per_node": 1, "master_addr": "127.0.0.1", "master_port": port}
    for each in machines if train else ():
        each.spec(train=train, compute=compute, benchmark=None)
    return [each.start(*words, NODE_RANK=str(rank)) for rank, each in enumerate(machines)]


@pytest.fixture(scope="module")
def killed(place):
    """Two machines, each with checkpoints; the run of rank 1 is killed; both go on from a checkpoint that is named."""
    machines = [place(), place()]
    commands = start_both(machines, "launch", "runs/toy.yaml", **TRAIN, save_on_each_node=True)
    # checkpoint-5 is whole by then: no process can be a step ahead of one that still saves
    commands[0].until(training_at_step(machines[0], 7), "step 7")
    assert len(machines[1].children(commands[1])) >= 3  # launcher, torchrun, its rank
    for process in machines[1].processes():
        process.kill()
    launched = commands[0].finish()
    for each in machines:
        assert_none_left(each)
    listed = [each.run("list", "--json").json()[0]["status"] for each in machines]
    unnamed = machines[0].run("resume", "toy", NODE_RANK="0")
    resumed = [each.finish() for each in start_both(machines, "resume", "toy", "--from", "checkpoint-5")]
    return machines, {"launched": launched, "listed": listed, "unnamed": unnamed, "resumed": resumed}


def stop(workshop, command):
    """`stop`, of which both ranks hear at one step."""
    ranks = [each for each in workshop.processes() if {"-u", "train.yaml"} <= {*each.cmdline()}]
    assert len(ranks) == 2
    stopping = []

    def tell():
        stopping.append(workshop.start("stop", "toy"))
        command.until(lambda: "stopping: the training saves a checkpoint first" in command.err, "the stop")

    told_to_stop(ranks, tell)
    return stopping[0].finish()


@pytest.fixture(scope="module")
def stopped(place):
    """Two processes on one machine: stopped, then resumed to the end.

    In three tries: each rank stops by its own clock, and where a step lies between, what they save is in two parts.
    """
    for _ in range(3):
        workshop = place()
        command = workshop.start("launch", workshop.spec(train=TRAIN, compute={"nproc_per_node": 2}, benchmark=None))
        command.until(training_at_step(workshop, 12), "step 12")
        said = stop(workshop, command)
        done = {"launched": command.finish(), "said": said, "record": workshop.record()}
        assert workshop.left_over() == [] and done["launched"].code == 130, done["launched"].err
        done["newest"] = usable_checkpoints(RunDir(workshop.only_run()), ranks=range(2))[0]
        if done["newest"].complete:
            break
    done["names"] = {path.name for path in done["newest"].folder.iterdir()}
    done["faults"] = adapter_problems(done["newest"].folder)
    return workshop, done | {"resumed": workshop.run("resume", "toy")}


def test_where_all_of_one_machine_is_killed_the_other_one_ends_and_a_resume_needs_a_checkpoint(killed):
    _, done = killed
    assert done["launched"].code == 4, done["launched"].err
    assert "this machine is rank 0 of 2, and the cause may be in the log of another one" in done["launched"].err
    assert done["listed"] == ["failed", "interrupted"]
    said = "all must resume from the same one; complete here: checkpoint-"
    assert done["unnamed"].code == 3 and said in done["unnamed"].err


def test_two_machines_train_together_and_the_results_are_on_rank_0(killed):
    machines, done = killed
    assert [each.code for each in done["resumed"]] == [0, 0], done["resumed"]
    first, second = [each.record() for each in machines]
    assert [first["status"], second["status"]] == ["done", "done"]
    assert (first["training"]["steps"], first["training"]["total_steps"]) == (40, 40)
    assert first["results_elsewhere"] is None and adapter_problems(machines[0].only_run() / "output") == []
    where = "this machine is rank 1 of 2: the results are on the one with rank 0, 127.0.0.1:"
    assert second["training"] is None and second["results_elsewhere"].startswith(where)
    assert second["results_elsewhere"] in done["resumed"][1].err
    assert [each.left_over() for each in machines] == [[], []]


def test_two_processes_that_are_stopped_leave_no_rank_and_a_whole_checkpoint(stopped):
    _, done = stopped
    assert done["launched"].code == 130 and "Traceback" not in done["launched"].err, done["launched"].err
    assert (done["said"].code, done["record"]["status"], done["record"]["benchmarks"]) == (0, "stopped", [])
    assert done["newest"].complete, done["newest"].problems
    assert {"optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"} <= done["names"]
    assert done["faults"] == []
    assert done["newest"].step >= 12 and f"kept: {done['newest'].label}\n" in done["launched"].err
    assert f"the newest complete checkpoint: {done['newest'].label}\n" in done["said"].err
    assert f"the training resumes from {done['newest'].label}\n" in done["resumed"].err
    assert done["record"]["environment"]["train"] == {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}


def test_however_two_processes_were_broken_off_and_wherever_they_ran_they_come_to_the_same_end(stopped, killed):
    """To the bit, but for the loss logged at the stop: where one rank saves a moment before the other, it is mixed with
    another sum that is gathered for the checkpoint (transformers' store_flos).
    """
    workshop, done = stopped
    assert done["resumed"].code == 0, done["resumed"].err
    record, other = workshop.record(), killed[0][0]
    assert (record["status"], record["training"]["steps"], record["training"]["total_steps"]) == ("done", 40, 40)
    assert [each["status"] for each in record["attempts"]] == ["stopped", "done"]
    runs = [each.only_run() for each in (workshop, other)]
    losses, others = map(loss_curve, runs)
    assert [step for step, _ in losses] == list(range(1, 41))
    stopped_at = record["attempts"][1]["from_step"]
    assert stopped_at >= 12 > other.record()["attempts"][1]["from_step"]
    assert [each for each in losses if each[0] != stopped_at] == [each for each in others if each[0] != stopped_at]
    assert len({(run / "output" / "adapter_model.safetensors").read_bytes() for run in runs}) == 1
