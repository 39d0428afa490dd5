"""What a training takes of the machine. Run: pytest tests/test_metering.py."""

import json
import os
import signal
import sys

import pytest

from orchestrator.processes.process import start
from orchestrator.runs.metering import Meter, read_samples
from orchestrator.runs.rundir import RunDir
from tests.workshop import assert_none_left, wait_for

GREEDY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "x = b'x' * 60_000_000; print(len(x), flush=True); input()"], stdin=-1)
time.sleep(100)
"""
# As the real one at --loop-ms: a line for each GPU, again and again; power only of the first.
SMI = """#!/bin/sh
case "$*" in
*loop-ms*) ;;
*--query-gpu=uuid*) echo "GPU-1b2c-3d, 0"; echo "GPU-9f8e-7d, 1"; exit;;
*--query-gpu=name*) echo "NVIDIA H100, 550.54"; echo "NVIDIA H100, 550.54"; exit;;
*) echo "| NVIDIA-SMI 550.54   Driver Version: 550.54    CUDA Version: 12.4  |"; exit;;
esac
echo "$*" >> "$FAKE_SMI_CALLS"
echo "2026/11/25 01:02:03.000, 0, 100, 200.50"
echo "2026/11/25 01:02:03.000, 1, 50, [N/A]"
echo "2026/11/25 01:02:05.000, 0, 90, 300.50"
echo "2026/11/25 01:02:05.000, 1, 70, [N/A]"
exec sleep 600
"""


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "it's work" / "runs" / "toy-20261124-101500"
    path.mkdir(parents=True)
    return RunDir(path)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SMI_CALLS", str(tmp_path / "smi.txt"))
    return tmp_path / "smi.txt"


def test_memory_is_that_of_the_child_and_of_all_that_it_started(run):
    log = run.path / "log"
    child = start(
        [sys.executable, "-c", GREEDY], log=log, cwd=run.path, env=dict(os.environ), death_signal=signal.SIGKILL
    )
    try:
        with Meter(run, [], clock=iter(range(0, 100, 3)).__next__) as meter:
            assert meter.usage().peak_rss_bytes is None
            wait_for(lambda: log.read_text(), "the memory")
            meter.sample(child)
            assert meter.usage().peak_rss_bytes > 60_000_000
    finally:
        child.stop(0)
    before = meter.usage()
    meter.sample(child)  # it is gone by now
    assert meter.usage() == before
    assert before.gpu_peak_memory_mib == {} and before.gpu_energy_j is None


def test_samples_are_taken_at_intervals(run):
    child = start(
        ["sleep", "100"], log=run.path / "log", cwd=run.path, env=dict(os.environ), death_signal=signal.SIGKILL
    )
    moment = [0.0]
    try:
        with Meter(run, [], every_s=2, clock=lambda: moment[0]) as meter:
            meter.sample(child)
            first = meter.usage()
            assert first.peak_rss_bytes
            child.stop(0)
    finally:
        child.stop(0)
    moment[0] = 1.0
    meter.sample(child)
    assert meter.usage() == first


def test_gpus_are_followed_by_nvidia_smi_which_ends_with_the_block(run, nvidia_smi):
    with Meter(run, ["0", "1"]) as meter:
        wait_for(lambda: run.gpu_log.is_file() and run.gpu_log.read_text().count("\n") == 4, "the samples")
    usage = meter.usage()
    assert usage.gpu_peak_memory_mib == {"0": 100, "1": 70}
    assert usage.gpu_energy_j == pytest.approx(501.0)
    assert "--id=0,1" in nvidia_smi.read_text()
    with Meter(run, ["0"]) as again:  # of a later attempt: what stands there already is not its own
        pass
    assert again.usage().gpu_energy_j in (None, pytest.approx(501.0))


def test_without_nvidia_smi_there_is_nothing_to_say_of_gpus(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with Meter(run, ["0"]) as meter:
        pass
    assert (meter.usage().gpu_peak_memory_mib, meter.usage().gpu_energy_j) == ({}, None)


@pytest.mark.parametrize(
    ("lines", "energy_j"),
    [
        (["2026/11/25 01:02:03.000, 0, 1, 100"], None),
        (["2026/11/25 01:02:03.000, 0, 1, 100", "2026/11/25 01:02:05.500, 0, 1, 100"], 250),
        (["2026/11/25 01:02:03.000, 0, 1, 100", "2026/11/25 02:02:03.000, 0, 1, 100"], None),  # it slept
        (["2026/11/25 01:02:03.000, 0, 1, 100", "2026/11/25 00:02:05.000, 0, 1, 100"], None),  # the clock was set
        (["No devices were found", "", "2026/11/25 01:02:0"], None),
        (["2026/11/25 01:02:03.000, 0, [N/A], [Not Supported]"] * 2, None),
        (["never, 0, 1, 100", "x, y, z, 100, \x1b[31m"], None),
    ],
)
def test_energy_is_power_over_the_time_between_samples(lines, energy_j):
    assert read_samples(lines)[1] == (None if energy_j is None else pytest.approx(energy_j))


def test_a_run_s_record_says_how_long_each_stage_took_and_what_the_training_needed(workshop, nvidia_smi):
    spec = workshop.spec(compute={"devices": "0,1"})
    path = f"{nvidia_smi.parent / 'bin'}:{os.environ['PATH']}"
    done = workshop.run("launch", spec, PATH=path, FAKE_SMI_CALLS=str(nvidia_smi), FAKE_STEP_S="0.2")
    assert done.code == 0, done.err
    record = workshop.record()
    (attempt,) = record["attempts"]
    assert set(attempt["stages_s"]) == {"prepare", "train", "benchmark"}
    assert all(seconds > 0 for seconds in attempt["stages_s"].values())
    assert attempt["usage"]["peak_rss_bytes"] > 1_000_000
    assert attempt["usage"]["gpu_peak_memory_mib"] == {"0": 100, "1": 70}
    assert attempt["usage"]["gpu_energy_j"] == pytest.approx(501.0)
    assert record["facts"]["cuda"]["the driver's CUDA"] == "12.4"
    assert record["facts"]["gpus"] == ["NVIDIA H100, 550.54"] * 2
    assert_none_left(workshop)


def test_a_training_that_fails_has_its_time_and_use_in_the_record_too(workshop):
    done = workshop.run("launch", workshop.spec(), FAKE_TRAIN="dies")
    assert done.code == 4
    (attempt,) = json.loads((workshop.only_run() / "record.json").read_text())["attempts"]
    assert "train" in attempt["stages_s"] and attempt["usage"]["every_s"] > 0
