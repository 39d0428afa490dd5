"""A training on several machines, as each of them sees its part. Run: pytest tests/test_machines.py.

With the fake llamafactory-cli; test_nodes.py has the real one.
"""

import os
import shutil
import socket
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

import pytest

from orchestrator.errors import StageError
from orchestrator.lifecycle.train_process import Settled, train
from orchestrator.models.checkpoints import inspect
from orchestrator.planning.compute import Placement, cannot_place, check_compute, init_kwargs
from orchestrator.runs.nodes import own_ranks, this_machine
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.compute_spec import ComputeSpec
from orchestrator.specs.render import train_environment
from orchestrator.specs.spec import RunSpec, training_arguments
from orchestrator.upstream.installation import Installation
from tests.checkpoint_folders import checkpoint
from tests.workshop import Workshop

ROOT = Path(__file__).resolve().parent.parent
MEETING = {"nnodes": 2, "nproc_per_node": 1, "master_addr": "127.0.0.1", "master_port": 29500}


def findings(compute, monkeypatch, rank=None, **train):
    monkeypatch.delenv("NODE_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("NODE_RANK", rank)
    spec = {"name": "x", "model": {"name_or_path": "m"}, "dataset": "d", "train": train, "compute": compute}
    return check_compute(RunSpec.model_validate(spec), None)


@pytest.mark.parametrize(
    ("compute", "environment", "rank", "name"),
    [
        ({**MEETING, "node_rank": 1}, {}, 1, "rank 1 of 2"),
        (MEETING, {"NODE_RANK": "1"}, 1, "rank 1 of 2"),
        ({**MEETING, "node_rank": 0}, {"NODE_RANK": "1"}, 0, "rank 0 of 2"),
        (MEETING, {}, None, "one of 2"),
        (MEETING, {"NODE_RANK": "first"}, None, "one of 2"),
        ({**MEETING, "rdzv_id": "x"}, {"NODE_RANK": "1"}, None, "one of 2"),
        ({**MEETING, "rdzv_id": "x", "min_nnodes": 1, "max_nnodes": 3}, {}, None, "one of 1 to 3"),
    ],
)
def test_which_machine_this_is(compute, environment, rank, name):
    machine = this_machine(ComputeSpec(**compute), environment)
    assert machine is not None
    assert (machine.rank, machine.name, machine.meeting) == (rank, name, "127.0.0.1:29500")


@pytest.mark.parametrize("compute", [{}, {"nnodes": 1}, {"nproc_per_node": 4}, {"rdzv_id": "x"}])
def test_one_machine_is_none_of_several(compute):
    assert this_machine(ComputeSpec(**compute), {"NODE_RANK": "1", "NNODES": "2"}) is None


def test_the_ranks_of_a_machine_follow_from_its_own():
    compute = ComputeSpec(**{**MEETING, "nproc_per_node": 8, "node_rank": 1})
    assert own_ranks(compute, this_machine(compute, {})) == range(8, 16)
    assert own_ranks(compute, None) is None


@pytest.mark.parametrize(
    ("changes", "rank", "field", "said"),
    [
        ({"master_port": None}, "0", "compute.master_port", "not given, and there are 2 machines"),
        ({"master_addr": None}, "0", "compute.master_addr", "not given"),
        ({}, None, "compute.node_rank", "which of the 2 machines is this?"),
        ({}, "2", "compute.node_rank", "2 machines have the ranks 0 to 1"),
        ({"master_addr": "no-such-host.invalid"}, "0", "compute.master_addr", "cannot be found from here"),
    ],
)
def test_machines_that_could_not_meet_are_told_before(monkeypatch, changes, rank, field, said):
    errors = [each for each in findings({**MEETING, **changes}, monkeypatch, rank) if each.severity == "error"]
    assert [each.field for each in errors] == [field] and said in errors[0].message


def test_a_port_that_another_program_has_is_told_before(monkeypatch):
    """Where rank 0 is; the others connect to it, and a login node has another address."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        meeting = {**MEETING, "master_port": other.getsockname()[1]}
        (error,) = [each for each in findings(meeting, monkeypatch, "0") if each.severity == "error"]
        assert error.field == "compute.master_port" and "is in use on this machine" in error.message
        assert not [each for each in findings(meeting, monkeypatch, "1") if each.severity == "error"]


@pytest.mark.parametrize(
    ("compute", "variables", "found"),
    [
        ({}, {"NNODES": "2"}, [("warning", "compute.nnodes")]),
        ({"nproc_per_node": 2}, {"NNODES": "2"}, [("error", "compute.nnodes")]),
        ({}, {"RDZV_ID": "job", "FORCE_TORCHRUN": "1"}, [("error", "compute.rdzv_id")]),
        ({"nproc_per_node": 2}, {"NNODES": "1"}, []),
        ({**MEETING, "node_rank": 0}, {"NNODES": "2"}, []),
        ({"ray": True}, {"NNODES": "2"}, []),
    ],
)
def test_machines_that_the_environment_alone_knows_of_are_told(monkeypatch, compute, variables, found):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = [each for each in findings(compute, monkeypatch) if "in the environment" in each.message]
    assert [(each.severity, each.field) for each in told] == found


@pytest.mark.parametrize("field", ["rdzv_id", "master_addr"])
def test_what_the_launcher_would_tear_at_a_blank_is_refused(field):
    with pytest.raises(ValueError, match=rf"{field}\n.*should match pattern"):
        ComputeSpec(**{field: "my job"})


def test_elastic_machines_need_no_rank(monkeypatch):
    found = findings({**MEETING, "rdzv_id": "x"}, monkeypatch)
    assert [each for each in found if each.severity == "error"] == []


@pytest.mark.parametrize(
    ("max_restarts", "train", "told"),
    [
        (None, {}, [("note", "compute.max_restarts")]),
        (0, {}, [("note", "compute.max_restarts")]),
        (3, {"save_on_each_node": True}, [("warning", "train.save_on_each_node")]),
        (3, {}, []),
    ],
)
def test_what_ends_an_elastic_training_early_is_told(max_restarts, train, told, monkeypatch):
    compute = {**MEETING, "rdzv_id": "x", "min_nnodes": 1, "max_nnodes": 2, "max_restarts": max_restarts}
    found = [each for each in findings(compute, monkeypatch, **train) if each.field != "compute.master_addr"]
    assert [(each.severity, each.field) for each in found] == [("note", "compute.rdzv_id"), *told]


def test_processes_of_an_elastic_training_find_no_addresses_of_before():
    """And where they are ended to be started again, none of them saves a checkpoint alone."""
    spec = {"name": "x", "model": {"name_or_path": "m"}, "dataset": "d", "train": {}}
    for elastic in (False, True):
        compute = {**MEETING, **({"rdzv_id": "x"} if elastic else {})}
        made = RunSpec.model_validate({**spec, "compute": compute})
        assert train_environment(made).get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == ("1" if elastic else None)
        assert training_arguments(made, made.model)["enable_jit_checkpoint"] is not elastic
    own = {**MEETING, "rdzv_id": "x", "env": {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0"}}
    made = RunSpec.model_validate({**spec, "compute": own})
    assert train_environment(made)["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "0"


ELASTIC = {**MEETING, "rdzv_id": "x", "min_nnodes": 1, "max_nnodes": 2, "max_restarts": 3}


@pytest.mark.parametrize(
    ("compute", "train", "code", "said"),
    [
        (MEETING, {}, 2, "is not elastic: no machine can join it"),
        ({**MEETING, "nnodes": 1, "rdzv_id": "x"}, {}, 2, "is not elastic: no machine can join it"),
        (ELASTIC, {"save_on_each_node": True}, 2, "two machines would write the same files"),
        (ELASTIC, {}, 3, "does not train now: it is done"),
    ],
)
def test_what_cannot_be_joined_is_said(workshop: Workshop, compute, train, code, said):
    spec = workshop.spec(compute=compute, train=train, benchmark=None)
    assert workshop.run("launch", spec, NODE_RANK="0").code == 0
    joined = workshop.run("join", "toy")
    assert joined.code == code and said in joined.err
    assert len(workshop.run_folders()) == 1


def test_a_machine_that_has_another_model_does_not_join(workshop: Workshop):
    command = workshop.start("launch", workshop.spec(compute=ELASTIC), FAKE_TRAIN="hangs")
    command.until(lambda: workshop.calls("train"), "the training")
    config = workshop.root / "models" / "tiny" / "config.json"
    config.write_text(config.read_text("utf-8") + "\n", "utf-8")
    joined = workshop.run("join", "toy")
    assert joined.code == 3 and "cannot go on as it began: model" in joined.err, joined.err
    assert workshop.run("stop", "toy").code == 0 and command.finish().code == 130


def test_what_a_training_on_several_machines_leaves_to_chance_is_noted(monkeypatch):
    found = findings(MEETING, monkeypatch, "1", ddp_timeout=180000000)
    assert {each.field for each in found} == {"train.save_on_each_node", "train.ddp_timeout", "compute.master_addr"}
    calm = findings({**MEETING, "node_rank": 0}, monkeypatch, save_on_each_node=True, ddp_timeout=1800)
    assert calm == []


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


def test_rank_0_without_results_has_failed(workshop: Workshop):
    done = workshop.run("launch", workshop.spec(compute=MEETING), FAKE_TRAIN="silent", NODE_RANK="0")
    assert done.code == 4 and "it left no train_results.json" in done.err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_part_that_lost_the_others_says_so(workshop: Workshop, rank):
    done = workshop.run("launch", workshop.spec(compute=MEETING), FAKE_TRAIN="lost", NODE_RANK=rank)
    assert done.code == 4
    assert f"It lost the connection to another machine, whose part had ended: this one is rank {rank} of 2" in done.err


def test_a_failure_of_its_own_is_not_put_on_others(workshop: Workshop):
    done = workshop.run("launch", workshop.spec(compute=MEETING), FAKE_TRAIN="dies", NODE_RANK="1")
    assert done.code == 4 and "ended with status 1" in done.err and "lost the connection" not in done.err


def test_each_machine_goes_on_from_the_checkpoint_that_is_named(workshop: Workshop):
    """Each sees its own checkpoints alone; the newest of one may be another's last but one."""
    spec = workshop.spec(compute=MEETING, train={"save_steps": 2, "max_steps": 6}, benchmark=None)
    assert workshop.run("launch", spec, FAKE_TRAIN="torn-checkpoint", NODE_RANK="0").code == 4
    folder = workshop.only_run() / "output" / "checkpoint-2"
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")  # as one of several processes saves it
    refused = workshop.run("resume", "toy", NODE_RANK="0")
    assert refused.code == 3 and "all must go on from the same one; whole here: checkpoint-2" in refused.err
    assert "--from checkpoint-2" in refused.err
    done = workshop.run("resume", "toy", "--from", "checkpoint-2", NODE_RANK="0")
    assert done.code == 0, done.err


def test_processes_on_a_cpu_that_go_on_get_what_torch_needs_for_it(workshop: Workshop):
    """An extension of torch, found on the path of that training alone; nothing of it where it begins."""
    compute = {"nproc_per_node": 2}
    spec = workshop.spec(compute=compute, train={"save_steps": 2, "max_steps": 6}, benchmark=None)
    assert workshop.run("launch", spec, FAKE_TRAIN="torn-checkpoint").code == 4
    run = workshop.only_run()
    assert workshop.record()["environment"]["train"] == {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
    assert not (run / "cpu_ranks").exists()
    folder = run / "output" / "checkpoint-2"
    for rank in (0, 1):
        shutil.copy(folder / "rng_state.pth", folder / f"rng_state_{rank}.pth")
    done = workshop.run("resume", "toy", PYTHONPATH=f"{ROOT}")
    assert done.code == 0, done.err
    assert workshop.record()["environment"]["train"]["PYTHONPATH"] == f"cpu_ranks{os.pathsep}{ROOT}"
    (found,) = distributions(name="cpu_ranks", path=[str(run / "cpu_ranks")])
    assert [each.value for each in found.entry_points.select(group="torch.backends")] == ["cpu_ranks:register"]


def test_a_machine_needs_the_random_numbers_of_its_own_ranks(tmp_path):
    folder = checkpoint(RunDir(tmp_path), 100, processes=4)
    for rank in (0, 1):
        (folder / f"rng_state_{rank}.pth").unlink()
    assert inspect(folder, ranks=range(2, 4)).whole and inspect(folder).whole
    assert inspect(folder, ranks=range(0, 2)).problems == ["rng_state_0.pth is missing", "rng_state_1.pth is missing"]


def test_a_stopped_training_that_has_saved_and_writes_nothing_is_waited_for_no_longer(tmp_path):
    run = RunDir(tmp_path)
    checkpoint(run, 50, processes=2)
    settled = Settled(run, quiet_s=2)
    saved = checkpoint(run, 60, processes=2)
    (saved / "checkpoint-is-incomplete.txt").write_text("")
    looks = _looks(settled, 3.5)
    assert not any(looks), "it is still saving"
    (saved / "checkpoint-is-incomplete.txt").unlink()
    assert _until(settled)


def test_a_stopped_training_that_has_not_saved_is_waited_for(tmp_path):
    run = RunDir(tmp_path)
    checkpoint(run, 50, processes=2)
    assert not any(_looks(Settled(run, quiet_s=0), 2.5))


def _looks(settled, during_s):
    deadline, looks = time.monotonic() + during_s, []
    while time.monotonic() < deadline:
        looks.append(settled())
        time.sleep(0.1)
    return looks


def _until(settled):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if settled():
            return True
        time.sleep(0.1)
    return False


# Ray


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "said"),
    [
        ([{"CPU": 16.0, "GPU": 1.0}], "GPU", 1, ""),
        ([{"CPU": 20.0, "GPU": 2.0}, {"CPU": 10.0, "GPU": 1.0}], "GPU", 3, ""),
        ([{"CPU": 64.0, "GPU": 8.0}], "GPU", 2, "for each of the 8 GPUs"),
        ([{"CPU": 8.0, "GPU": 1.0}], "GPU", 1, "there is room for 0 (8 CPUs and 1 GPUs)"),
        ([{"CPU": 80.0}, {"CPU": 4.0, "GPU": 1.0}], "GPU", 1, "room for 0"),
        ([{"CPU": 20.0, "GPU": 2.0}], "GPU", 3, "ray_num_workers is 3, and there are 2 GPUs"),
        ([{"CPU": 1000.0}], "CPU", 2, "10 CPUs for each CPU that there is"),
    ],
)
def test_what_ray_can_never_place_is_known(nodes, device, workers, said):
    found = cannot_place(nodes, device, workers)
    assert (said in found) if said else found == ""


@pytest.mark.parametrize("given", [{"address": "auto"}, '{"address": "auto"}'])
def test_ray_s_arguments_are_a_mapping_or_its_json(given):
    assert init_kwargs({"ray_init_kwargs": given}) == {"address": "auto"}


def test_ray_and_torchrun_exclude_each_other():
    with pytest.raises(ValueError, match=r"ray is on, and nproc_per_node is torchrun's"):
        ComputeSpec(ray=True, nproc_per_node=2)


def test_a_training_that_ray_does_not_place_ends_with_the_reason(workshop: Workshop):
    assert workshop.run("launch", workshop.spec(benchmark=None), FAKE_TRAIN="silent").code == 4
    installation = Installation(workshop.cli, Path(sys.executable), None, None, {}, "3.11")
    environment = {**train_environment(_ray_spec()), **workshop.full_environment({"FAKE_TRAIN": "unplaced"})}
    with pytest.raises(StageError, match="Ray has not placed the training within 1 s") as error:
        train(RunDir(workshop.only_run()), installation, environment, on_look=Placement(1).look)
    assert "with 2 workers" in error.value.message and "ray status" in error.value.remedy
    assert workshop.left_over() == []


def test_without_the_package_ray_nothing_starts(workshop: Workshop):
    done = workshop.run("launch", workshop.spec(compute={"ray": True}))
    assert done.code == 3 and "compute.ray: the package ray is not installed beside LLaMA-Factory" in done.err


def test_ray_is_one_variable_and_torchrun_s_are_not_there():
    assert train_environment(_ray_spec()) == {"USE_RAY": "1"}


def _ray_spec():
    spec = {"name": "x", "model": {"name_or_path": "m"}, "dataset": "d", "train": {}, "compute": {"ray": True}}
    return RunSpec.model_validate(spec)


def test_variables_that_ray_and_the_machines_have_stand_in_their_fields():
    with pytest.raises(ValueError, match=r"USE_RAY: write it as compute\.ray"):
        ComputeSpec(env={"USE_RAY": "1"})
