"""One run at a time on each device. Run: pytest tests/test_locks.py."""

import re
import signal

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.runs import machine
from orchestrator.runs.machine import busy_devices, devices_of, hold_devices, is_free
from tests.runs_on_disk import on_path
from tests.workshop import assert_none_left, training_at_step

LONG = {"train": {"max_steps": 100_000}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PATIENCE_S", 0)
    path = tmp_path / "locks"
    monkeypatch.setenv("ORCHESTRATOR_LOCKS", str(path))
    return path


@pytest.mark.parametrize(
    ("named", "environment", "devices"),
    [
        (["0"], {}, ["0"]),
        (["1, 0", "2"], {}, ["0", "1", "2"]),
        ([None], {"CUDA_VISIBLE_DEVICES": "3"}, ["3"]),
        (["0"], {"CUDA_VISIBLE_DEVICES": "3"}, ["0"]),
        ([None], {}, ["0", "1"]),
        (["GPU-9f8e"], {}, ["1"]),
        (["GPU-no-such"], {}, ["GPU-no-such"]),
        (["0,-1,1"], {}, ["0"]),
        ([""], {}, []),
        ([None], {"CUDA_VISIBLE_DEVICES": ""}, []),
        ([], {}, []),
    ],
)
def test_devices_are_those_that_cuda_would_show_the_run(named, environment, devices, tmp_path, monkeypatch):
    on_path(monkeypatch, tmp_path, "nvidia-smi", "echo 'GPU-1b2c-3d, 0'; echo 'GPU-9f8e-7d, 1'")
    assert devices_of(named, environment) == devices


def test_a_device_that_is_held_is_refused_with_the_run_that_holds_it_and_free_afterwards(folder, run):
    with hold_devices(["1", "2"], run):
        with pytest.raises(PrerequisiteError, match=r"^device 1 \(run toy-2.* of .*space, process \d+\) is"):
            hold_devices(["0", "1"], run).__enter__()
        assert [is_free(device) for device in "012"] == [True, False, False]  # of the two that were wanted none is kept
        assert [each.partition(" (")[0] for each in busy_devices()] == ["device 1", "device 2"]
    with hold_devices(["1", "2"], None):
        pass
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("made", ["link", "file", "open to others"])
def test_a_folder_of_locks_that_others_may_have_made_is_refused(folder, run, tmp_path, made):
    (tmp_path / "elsewhere").mkdir()
    if made == "link":
        folder.symlink_to(tmp_path / "elsewhere")
    elif made == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o720)
    with pytest.raises(PrerequisiteError, match=f"^{folder} cannot be the folder of the locks"):
        hold_devices(["0"], run).__enter__()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.fixture
def busy(workshop):
    """A workspace where a training holds device 0."""
    command = workshop.start("launch", workshop.spec("first", **LONG, compute={"devices": "0"}), FAKE_STEP_S="0.02")
    command.until(training_at_step(workshop, 1), "step 1")
    return workshop, command, workshop.only_run().name


def test_a_second_launch_on_a_device_is_refused_before_it_has_a_folder_and_another_device_is_free(busy):
    workshop, command, first = busy
    spec = workshop.spec("second", compute={"devices": "0,1"})
    free = ("launch", spec, "--set", 'compute.devices="1"', "--no-benchmark")
    refused, detached, free = workshop.run_together([("launch", spec), ("launch", spec, "--detach"), free])
    for done in (refused, detached):
        assert done.code == 3 and f"device 0 (run {first} of {workshop.root}, process {command.popen.pid})" in done.err
        assert "--wait" in done.err
    assert free.code == 0, free.err
    assert len(list(workshop.runs.glob("second-*"))) == 1
    command.interrupt(signal.SIGTERM)
    assert command.finish().code == 130


def test_a_launch_that_waits_says_so_once_and_begins_when_the_device_is_free(busy):
    workshop, command, first = busy
    spec = workshop.spec("second", compute={"devices": "0"})
    second = workshop.start("launch", spec, "--wait", "--no-benchmark")
    third = workshop.run("launch", spec, "--wait", "--no-benchmark", "--detach")
    assert third.code == 0 and f"waits for device 0 (run {first}" in third.err
    second.until(lambda: "waiting for device 0" in second.err, "the word that it waits")
    name = third.out.strip()
    assert re.search(r"preparing, in process \d+: waits", workshop.run("show", name).out)
    assert workshop.run("stop", name).code == 0  # as well as one that runs
    assert workshop.record(workshop.runs / name)["status"] == "stopped"
    command.interrupt(signal.SIGTERM)
    assert command.finish().code == 130
    done = second.finish()
    assert done.code == 0 and done.err.count("waiting for") == 1, done.err


def test_a_killed_owner_frees_its_devices_once_its_training_is_gone(busy):
    workshop, command, _ = busy
    command.popen.kill()
    command.popen.wait()
    done = workshop.run("launch", workshop.spec("second", compute={"devices": "0"}), "--wait", "--no-benchmark")
    assert done.code == 0, done.err
    assert_none_left(workshop)
