"""What a run takes of time and memory: measured, recorded, in words. Run: pytest tests/test_usage.py."""

import json
import os
import signal
import sys

import pytest

from orchestrator.processes.process import start
from orchestrator.runs.record import RunRecord
from orchestrator.runs.usage import EVERY_S, GPUS_EVERY_S, Meter, usage_lines
from tests.runs_on_disk import record_json
from tests.workshop import assert_none_left, wait_for

GREEDY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "x = b'x' * 60_000_000; print(len(x), flush=True); input()"], stdin=-1)
time.sleep(100)
"""
# The real one answers so; power and memory of some GPUs are not known.
SMI = """#!/bin/sh
case "$*" in
*memory.used*--id=0,1) echo "0, $(cat "$FAKE_SMI_MEMORY")"; echo "1, [N/A]";;
*--query-gpu=uuid*) echo "GPU-1b2c-3d, 0"; echo "GPU-9f8e-7d, 1";;
*--query-gpu=name*) echo "NVIDIA H100, 550.54"; echo "NVIDIA H100, 550.54";;
*) echo "| NVIDIA-SMI 550.54   Driver Version: 550.54    CUDA Version: 12.4  |";;
esac
"""


@pytest.fixture
def smi_memory(tmp_path, monkeypatch):
    """A machine with two GPUs; the file says the memory that is used of the first, in MiB."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SMI_MEMORY", str(tmp_path / "memory.txt"))
    (tmp_path / "memory.txt").write_text("100")
    return tmp_path / "memory.txt"


@pytest.fixture
def child(tmp_path):
    """One that has started another with 60 MB."""
    log = tmp_path / "log"
    made = start(
        [sys.executable, "-c", GREEDY], log=log, cwd=tmp_path, env=dict(os.environ), death_signal=signal.SIGKILL
    )
    try:
        wait_for(lambda: log.read_text(), "the memory")
        yield made
    finally:
        made.stop(0)


def test_memory_is_that_of_the_child_and_of_all_that_it_started_by_samples(child, smi_memory):
    moment = [10.0]
    meter = Meter(["0", "1"], clock=lambda: moment[0])
    assert meter.usage.peak_rss_bytes is None
    meter.sample(child)
    first = meter.usage.model_copy(deep=True)
    assert (first.peak_rss_bytes or 0) > 60_000_000 and first.gpu_peak_memory_mib == {"0": 100}
    smi_memory.write_text("200")
    child.stop(0)
    moment[0] += EVERY_S  # the peak stays
    meter.sample(child)
    assert meter.usage == first
    moment[0] = 10.0 + GPUS_EVERY_S
    meter.sample(child)
    smi_memory.write_text("150")
    moment[0] += GPUS_EVERY_S
    meter.sample(child)
    assert meter.usage.gpu_peak_memory_mib == {"0": 200}


def test_without_nvidia_smi_there_is_nothing_to_say_of_gpus(child, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    meter = Meter(["0"])
    meter.sample(child)
    assert meter.usage.gpu_peak_memory_mib == {}


def test_a_run_s_record_says_how_long_each_stage_took_and_what_the_training_needed(workshop, smi_memory):
    spec = workshop.spec(compute={"devices": "0,1"})
    done = workshop.run("launch", spec, PATH=os.environ["PATH"], FAKE_SMI_MEMORY=str(smi_memory), FAKE_STEP_S="0.2")
    assert done.code == 0, done.err
    record = workshop.record()
    (attempt,) = record["attempts"]
    assert set(attempt["stages_s"]) == {"prepare", "train", "benchmark"}
    assert all(seconds > 0 for seconds in attempt["stages_s"].values())
    assert attempt["usage"]["peak_rss_bytes"] > 1_000_000
    assert attempt["usage"]["gpu_peak_memory_mib"] == {"0": 100}
    assert record["facts"]["cuda"]["the driver's CUDA"] == "12.4"
    assert record["facts"]["gpus"] == ["NVIDIA H100, 550.54"] * 2
    assert_none_left(workshop)


def test_a_training_that_fails_has_its_time_and_use_in_the_record_too(workshop):
    assert workshop.run("launch", workshop.spec(), FAKE_TRAIN="dies").code == 4
    (attempt,) = json.loads((workshop.only_run() / "record.json").read_text())["attempts"]
    assert "train" in attempt["stages_s"] and attempt["usage"]["every_s"] > 0


# In words


def attempt(minutes: int, took_s: int | None, **changes):
    started, ended = f"2026-11-24T10:{minutes:02}:00Z", f"2026-11-24T10:{minutes:02}:{took_s or 0:02}Z"
    fields = {
        "started_at": started,
        "ended_at": ended if took_s is not None else None,
        "status": "done",
        "from_step": 0,
    }
    return {**fields, "pid": 1, "host": "elsewhere", **changes}


def record(*attempts, **changes) -> RunRecord:
    return RunRecord.model_validate(record_json("toy-20261124-101500", attempts=attempts, **changes))


def test_all_attempts_count_together_and_what_was_not_measured_is_said():
    usage = {"every_s": 2.0, "peak_rss_bytes": 3 << 30, "gpu_peak_memory_mib": {"0": 500, "1": 23_552}}
    killed = attempt(10, 20, status="interrupted", stages_s={"prepare": 1.5})
    one = attempt(11, 50, stages_s={"prepare": 0.5, "train": 45.0}, usage=usage)
    less = {"every_s": 2.0, "peak_rss_bytes": 1 << 30, "gpu_peak_memory_mib": {"0": 700}, "gpu_energy_j": 3600.0}
    other = attempt(12, 55, stages_s={"train": 30.0, "benchmark": 15.0}, usage=less)
    training = {"steps": 50, "total_steps": 50, "tokens_seen": 12345}
    assert usage_lines(record(killed, one, other, training=training)) == [
        "took 2 min 5 s in 3 attempts: prepare 2.0 s, train 1 min 15 s, benchmark 15 s",
        "training: 12345 input tokens, peak memory 3.0 GiB, GPU 0 700 MiB, GPU 1 23.0 GiB, "
        "not measured in 1 of 3 attempts",
    ]


def test_what_the_record_does_not_have_is_not_said():
    assert usage_lines(record(training=None)) == []
    assert usage_lines(record(attempt(10, 5), training=None)) == ["took 5.0 s"]
    assert usage_lines(record(attempt(10, None), status="running", ended_at=None, training=None)) == []
