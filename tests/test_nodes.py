"""Several processes, and several machines, with the real llamafactory-cli. Run: pytest tests/test_nodes.py.

The machines are workspaces that meet on loopback, with one process each. All train the same: 60 steps, each of two
processes' examples. One thread per process: sums come out the same each time.
"""

import random
import re
import signal
import socket

import pytest

from orchestrator.models.checkpoints import inspect
from orchestrator.models.model_files import adapter_problems
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trainer_log import curve
from tests.test_real import torchrun_works
from tests.workshop import PATIENT_S, assert_none_left, new_workshop, training_at_step

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), torchrun_works]

TRAIN = {
    "learning_rate": 5.0e-3,
    "lora_rank": 4,
    "max_steps": 60,
    "max_samples": 500,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "logging_steps": 1,
    "save_steps": 10,
    "report_to": "none",
    "ddp_backend": "gloo",
}
BROKEN_AT = 13  # by then checkpoint-10 is whole: no process can be a step ahead of one that still saves


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model):
    """Makes workspaces with the tiny model and the llamafactory-cli beside our Python."""
    made = []

    def make():
        parent = tmp_path_factory.mktemp("nodes")
        made.append(new_workshop(parent, None, {"OMP_NUM_THREADS": "1", "TMPDIR": str(parent)}, model=tiny_model))
        made[-1].deadline_s = PATIENT_S
        return made[-1]

    yield make
    for workshop in made:
        workshop.kill_all()


def free_port():
    """Below those that the kernel gives to connections: it has to be free still when rank 0 listens, seconds later."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.randint(20_000, 32_000)))
            except OSError:
                continue
            return port


def start_both(machines, *words, **train):
    """The same command on two machines, each with its rank; given arguments of train, a launch of a new spec."""
    compute = {"nnodes": 2, "nproc_per_node": 1, "master_addr": "127.0.0.1", "master_port": free_port()}
    for each in machines if train else ():
        each.spec(train=train, compute=compute, benchmark=None)
    return [each.start(*words, NODE_RANK=str(rank)) for rank, each in enumerate(machines)]


def losses(workshop):
    events = curve(workshop.only_run() / "output" / "trainer_log.jsonl")
    return [(event["current_steps"], event["loss"]) for event in events if "loss" in event]


def adapter(workshop):
    return (workshop.only_run() / "output" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def together(place):
    """Two machines that train to the end."""
    machines = [place(), place()]
    commands = start_both(machines, "launch", "runs/toy.yaml", **TRAIN)
    return machines, [command.finish() for command in commands]


@pytest.fixture(scope="module")
def stopped(place):
    """Two processes on one machine: stopped on the way, gone on with to the end."""
    workshop = place()
    spec = workshop.spec(train=TRAIN, compute={"nproc_per_node": 2}, benchmark=None)
    command = workshop.start("launch", spec)
    command.until(training_at_step(workshop, BROKEN_AT), f"step {BROKEN_AT}")
    said = workshop.run("stop", "toy")
    done = command.finish()
    assert workshop.left_over() == []
    status = workshop.record()["status"]
    return workshop, {"stop": said, "launch": done, "status": status, "resume": workshop.run("resume", "toy")}


@pytest.fixture(scope="module")
def lost(place):
    """Two machines, each with checkpoints; all of rank 1's is killed; both go on from one that is named."""
    machines = [place(), place()]
    commands = start_both(machines, "launch", "runs/toy.yaml", **TRAIN, save_on_each_node=True)
    commands[0].until(training_at_step(machines[0], BROKEN_AT), f"step {BROKEN_AT}")
    for process in machines[1].processes():
        process.kill()
    done = commands[0].finish()
    for each in machines:
        assert_none_left(each)
    listed = [each.run("list", "--json").json()[0]["status"] for each in machines]
    unnamed = machines[0].run("resume", "toy", NODE_RANK="0")
    went_on = start_both(machines, "resume", "toy", "--from", "checkpoint-10")
    return machines, {"launch": done, "listed": listed, "unnamed": unnamed, "resume": [c.finish() for c in went_on]}


def test_two_machines_train_together_and_the_results_are_on_rank_0(together):
    machines, done = together
    assert [each.code for each in done] == [0, 0], done
    first, second = [each.record() for each in machines]
    assert [first["status"], second["status"]] == ["done", "done"]
    assert (first["training"]["steps"], first["training"]["total_steps"]) == (60, 60)
    assert first["results_elsewhere"] is None and adapter_problems(machines[0].only_run() / "output") == []
    where = "this machine is rank 1 of 2: the results are on the one with rank 0, 127.0.0.1:"
    assert second["training"] is None and second["results_elsewhere"].startswith(where)
    assert second["results_elsewhere"] in done[1].err
    assert not (machines[1].only_run() / "output" / "adapter_model.safetensors").exists()
    assert [each.left_over() for each in machines] == [[], []]


def test_two_processes_that_are_stopped_leave_no_rank_and_a_whole_checkpoint(stopped):
    _, done = stopped
    assert done["launch"].code == 130 and "Traceback" not in done["launch"].err, done["launch"].err
    assert (done["stop"].code, done["status"]) == (0, "stopped")
    (kept,) = re.findall(r"the newest whole checkpoint: (checkpoint-\d+)\n", done["stop"].err)
    # Each rank stops by its own clock: where a step lies between the two, what they save at the stop is in two parts.
    assert int(kept.rpartition("-")[2]) >= 10
    assert f"the training goes on from {kept}\n" in done["resume"].err


def test_two_processes_that_were_stopped_come_to_what_two_machines_came_to_in_one_go(stopped, together):
    """To the bit, on a CPU: gloo adds up two processes' gradients in one order, wherever they run."""
    workshop, done = stopped
    assert done["resume"].code == 0, done["resume"].err
    record, whole = workshop.record(), together[0][0]
    assert (record["status"], record["training"]["steps"], record["training"]["total_steps"]) == ("done", 60, 60)
    assert [each["status"] for each in record["attempts"]] == ["stopped", "done"]
    assert [step for step, _ in losses(workshop)] == list(range(1, 61))
    assert losses(workshop) == losses(whole)
    assert adapter(workshop) == adapter(whole)


def test_a_machine_whose_partner_is_killed_ends_and_says_so(lost):
    _, done = lost
    assert done["launch"].code == 4, done["launch"].err
    said = "It lost the connection to another machine, whose part had ended: this one is rank 0 of 2"
    assert said in done["launch"].err
    assert done["listed"] == ["failed", "interrupted"]


def test_both_machines_go_on_from_the_checkpoint_that_is_named(lost, together):
    machines, done = lost
    said = "all must go on from the same one; whole here: checkpoint-"
    assert done["unnamed"].code == 3 and said in done["unnamed"].err
    assert [each.code for each in done["resume"]] == [0, 0], done["resume"]
    assert [each.record()["status"] for each in machines] == ["done", "done"]
    assert losses(machines[0]) == losses(together[0][0])
    assert adapter(machines[0]) == adapter(together[0][0])


def test_a_rank_that_is_killed_takes_the_other_one_with_it(place):
    workshop = place()
    command = workshop.start("launch", workshop.spec(train=TRAIN, compute={"nproc_per_node": 2}, benchmark=None))
    command.until(training_at_step(workshop, BROKEN_AT), f"step {BROKEN_AT}")
    ranks = [each for each in workshop.processes() if each.environ().get("LOCAL_RANK") == "1"]
    for process in ranks:
        process.send_signal(signal.SIGKILL)
    done = command.finish()
    assert len(ranks) == 1 and done.code == 4, done.err
    assert workshop.record()["status"] == "failed" and workshop.left_over() == []
    assert inspect(RunDir(workshop.only_run()).output / "checkpoint-10", world_size=2).whole
