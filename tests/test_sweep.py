"""Sweeps as a user meets them, with a fake llamafactory-cli. Run: pytest tests/test_sweep.py."""

import json
import signal
from pathlib import Path

import pytest
import yaml

from orchestrator.runs.machine import hold_devices
from orchestrator.runs.rundir import RunDir
from tests.runs_on_disk import on_path
from tests.workshop import Workshop, assert_none_left, wait_for

TRAIN_ONLY = {"benchmark": None}
LONG = {"train": {"max_steps": 100_000}, "benchmark": None}


def group_of(workshop: Workshop) -> Path:
    (folder,) = workshop.runs.glob("*-sweep-*")
    return folder


def runs_of(workshop: Workshop) -> list[dict]:
    points = json.loads((group_of(workshop) / "group.json").read_bytes())["points"]
    return [workshop.record(workshop.runs / point["run"]) for point in points]


def at_step_2(workshop: Workshop, number: int) -> bool:
    if not list(workshop.runs.glob("*-sweep-*/group.json")):
        return False
    log = workshop.runs / runs_of(workshop)[number]["id"] / "output" / "trainer_log.jsonl"
    return log.exists() and log.read_text("utf-8").count("\n") >= 2


def statuses(workshop: Workshop) -> list[str]:
    return [each["status"] for each in runs_of(workshop)]


@pytest.fixture
def sweeping(workshop):
    """A sweep of three long trainings in the foreground, the first at work."""
    command = workshop.start("launch", workshop.spec(**LONG), "--sweep", "train.lora_rank=4,8,16", FAKE_STEP_S="0.02")
    command.until(lambda: at_step_2(workshop, 0), "step 2 of the first")
    return workshop, command


def test_each_point_is_a_run_of_its_own_and_a_failure_does_not_stop_the_rest(workshop):
    """What is done is left alone by a resume, which tries the failed one again."""
    axes = ("--sweep", "compute.env.FAKE_TRAIN=dies,x", "--sweep", "train.lora_rank=16")
    words = ("--set", "train.learning_rate=2e-4", "--json")
    done = workshop.run("launch", workshop.spec(**TRAIN_ONLY), *axes, *words)
    assert done.code == 4, done.err
    assert "1 of 2 runs of toy-sweep-" in done.err and "llamafactory-cli ended with status 1" in done.err
    found = done.json()
    assert [each["status"] for each in found["runs"]] == ["failed", "done"]
    assert found["runs"][1]["values"] == {"compute.env.FAKE_TRAIN": "x", "train.lora_rank": "16"}
    second = runs_of(workshop)[1]
    assert second["overrides"] == ["train.learning_rate=2e-4", "compute.env.FAKE_TRAIN=x", "train.lora_rank=16"]
    saved = yaml.safe_load((workshop.runs / second["id"] / "spec.yaml").read_text("utf-8"))
    assert saved["train"]["lora_rank"] == 16 and saved["train"]["learning_rate"] == 2e-4
    assert workshop.run("resume", found["id"]).code == 4 and len(workshop.calls("train")) == 3
    assert [len(each["attempts"]) for each in runs_of(workshop)] == [2, 1]
    assert_none_left(workshop)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--sweep", "train.lora_rank=8,8"), ["two points are the same run"]),
        (("--sweep", "train.lora_rank=8", "--set", "train.lora_rank=4"), ["given to --set and to --sweep"]),
        (("--per-device",), ["--per-device is for a sweep"]),
        (("--sweep", "seed=1,2", "--set", "compute.nproc_per_node=2", "--per-device"), ["go with compute.nproc"]),
        (
            ("--sweep", "train.lora_rank=8,x", "--sweep", "model.template=smollm2,smolm2"),
            ["3 of 4 points of the sweep cannot run", "train.lora_rank=8, model.template=smolm2\n",
             "--set train.lora_rank=x", "did you mean 'smollm2'"],
        ),
    ],
)  # fmt: skip
def test_a_sweep_that_makes_no_sense_is_exit_code_2_with_all_that_is_wrong_and_makes_nothing(workshop, words, says):
    done = workshop.run("launch", workshop.spec(), *words)
    assert done.code == 2 and all(text in done.err for text in says), done.err
    assert list(workshop.runs.glob("*-2*")) == []


def test_ctrl_c_keeps_a_checkpoint_begins_no_other_and_a_resume_continues(sweeping):
    workshop, command = sweeping
    command.interrupt(signal.SIGINT)
    done = command.finish()
    assert done.code == 130 and "0 of 3 runs are done" in done.err and "orchestrator resume toy-sweep-" in done.err
    assert_none_left(workshop)
    assert statuses(workshop) == ["stopped", "planned", "planned"]
    shown = workshop.run("show", "toy-sweep")
    assert "3 of 3 runs are not done; to continue: orchestrator resume toy-sweep-" in shown.out, shown.out
    for path in workshop.runs.glob("toy-*/spec.yaml"):  # the first cannot continue as another one
        path.write_text(path.read_text("utf-8").replace("max_steps: 100000", "max_steps: 5"), "utf-8")
    resumed = workshop.run("resume", "toy-sweep")
    assert statuses(workshop) == ["failed", "done", "done"], resumed.err
    assert resumed.code == 4 and "cannot continue as it began" in resumed.err


def test_a_resume_right_after_a_kill_waits_for_what_is_stopping_and_continues_it(workshop):
    command = workshop.start("launch", workshop.spec(**LONG), "--sweep", "seed=1,2", FAKE_STEP_S="0.02")
    command.until(lambda: at_step_2(workshop, 0), "step 2 of the first")
    (training,) = [each for each in workshop.processes() if "train.yaml" in each.cmdline()]
    training.suspend()  # it is asked to stop, and takes its time
    command.popen.kill()
    command.finish()
    first = runs_of(workshop)[0]["id"]
    resumed = workshop.start("resume", "toy-sweep", FAKE_STEP_S="0.02")
    resumed.until(lambda: f"waiting for what is under way: {first}" in resumed.err, "its patience")
    training.resume()
    resumed.until(lambda: len(runs_of(workshop)[0]["attempts"]) == 2, "the first, again")
    assert statuses(workshop)[1] == "planned"  # one at a time
    assert workshop.run("stop", "toy-sweep").code == 0
    assert resumed.finish().code == 4 and statuses(workshop) == ["stopped", "stopped"]


def test_stopping_one_run_stops_no_other_and_one_that_waits_does_not_begin(sweeping):
    workshop, command = sweeping
    first, second, third = (each["id"] for each in runs_of(workshop))
    waiting = workshop.run("stop", second)
    assert waiting.code == 0 and "had not begun" in waiting.err
    stopped = workshop.run("stop", first)
    assert stopped.code == 0 and f"{first} is stopped" in stopped.err, stopped.err
    command.until(lambda: at_step_2(workshop, 2), "step 2 of the third")
    assert statuses(workshop) == ["stopped", "stopped", "running"]
    assert f"{second} is left alone: stopped" in command.err
    assert workshop.run("stop", third).code == 0
    done = command.finish()
    assert done.code == 4 and "3 of 3 runs" in done.err, done.err


def test_a_detached_sweep_is_shown_and_stopped_by_its_group_even_if_it_does_not_hear(workshop):
    words = ("launch", workshop.spec(**LONG), "--sweep", "train.lora_rank=4,8", "--detach")
    done = workshop.run(*words, FAKE_STEP_S="0.02", FAKE_TRAIN="stubborn")
    assert done.code == 0, done.err
    group = group_of(workshop).name
    assert done.out == f"{group}\n" and f"orchestrator stop {group}" in done.err
    wait_for(lambda: at_step_2(workshop, 0), "step 2 of the first")
    first, second = (each["id"] for each in runs_of(workshop))
    words = [("show", group), ("list", "--group", "toy-sweep", "--json"), ("resume", group, "--from", "checkpoint-1")]
    shown, listed, refused = workshop.run_together(words)
    assert shown.code == 0 and "running" in shown.out and "planned" in shown.out
    assert [each["id"] for each in listed.json()] == [first, second] and refused.code == 2
    stopped = workshop.run("stop", group, "--now")
    assert stopped.code == 0 and f"{first} is stopped" in stopped.err, stopped.err
    assert "2 of 2 runs are not done; to continue: orchestrator resume" in stopped.err
    assert_none_left(workshop)
    assert statuses(workshop) == ["stopped", "stopped"]
    assert f"1 of 2: lora_rank=4: {first}" in (group_of(workshop) / "logs" / "supervisor.log").read_text("utf-8")


@pytest.fixture
def two_gpus(workshop, tmp_path, monkeypatch):
    on_path(monkeypatch, tmp_path / "bin", "nvidia-smi", "echo 'GPU-1b2c-3d, 0'; echo 'GPU-9f8e-7d, 1'")
    monkeypatch.setenv("ORCHESTRATOR_LOCKS", workshop.full_environment({})["ORCHESTRATOR_LOCKS"])
    return workshop


def test_each_device_takes_one_run_at_a_time_and_the_next_as_it_becomes_free(two_gpus):
    workshop = two_gpus
    words = ("launch", workshop.spec(**LONG), "--sweep", "seed=1,2,3", "--per-device")
    command = workshop.start(*words, FAKE_STEP_S="0.02")
    command.until(lambda: at_step_2(workshop, 0) and at_step_2(workshop, 1), "the first two at once")
    assert statuses(workshop) == ["running", "running", "planned"]
    assert workshop.run("stop", runs_of(workshop)[1]["id"]).code == 0
    command.until(lambda: at_step_2(workshop, 2), "the third")
    devices = [each["environment"]["train"]["CUDA_VISIBLE_DEVICES"] for each in runs_of(workshop)]
    assert devices == ["0", "1", "1"]
    third = runs_of(workshop)[2]
    assert third["overrides"] == ["seed=3", 'compute.devices="1"']
    assert yaml.safe_load((workshop.runs / third["id"] / "spec.yaml").read_text("utf-8"))["compute"]["devices"] == "1"
    command.interrupt(signal.SIGINT)
    assert command.finish().code == 130
    assert_none_left(workshop)
    assert statuses(workshop) == ["stopped"] * 3


def test_a_device_that_another_run_holds_is_left_to_it(two_gpus):
    workshop = two_gpus
    spec = workshop.spec(**TRAIN_ONLY)
    with hold_devices(["0"], RunDir(workshop.runs / "other-20261124-101500")):
        done = workshop.run("launch", spec, "--sweep", "seed=1", "--per-device")
        refused = workshop.run("launch", spec, "--sweep", "seed=1", "--set", 'compute.devices="0"')
    assert done.code == 0, done.err
    assert [each["environment"]["train"]["CUDA_VISIBLE_DEVICES"] for each in runs_of(workshop)] == ["1"]
    assert refused.code == 3 and "device 0" in refused.err
