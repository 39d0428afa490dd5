"""What a run takes of time and memory: measured, recorded, in words. Run: pytest tests/test_usage.py."""

import json
import os
import signal
import sys

import pytest

from orchestrator.processes.process import start
from orchestrator.runs import usage
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.usage import metered, usage_lines
from tests.runs_on_disk import record_json
from tests.workshop import assert_none_left, wait_for

GREEDY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "x = b'x' * 60_000_000; print(len(x), flush=True); input()"], stdin=-1)
time.sleep(100)
"""
# The real one answers so.
SMI = """#!/bin/sh
case "$*" in
*--query-gpu=uuid*) echo "GPU-1b2c-3d, 0"; echo "GPU-9f8e-7d, 1";;
*--query-gpu=name*) echo "NVIDIA H100, 550.54"; echo "NVIDIA H100, 550.54";;
*) echo "| NVIDIA-SMI 550.54   Driver Version: 550.54    CUDA Version: 12.4  |";;
esac
"""


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """A machine with two GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


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


def test_memory_is_the_peak_of_the_child_and_of_all_that_it_started(child, tmp_path, monkeypatch):
    monkeypatch.setattr(usage, "EVERY_S", 0)
    run = RunDir(tmp_path / "toy-20261124-101500")
    run.path.mkdir()
    made = record(attempt(10, None), status="running", ended_at=None)
    made.save(run)
    with metered(run, made) as sample:
        sample(child)
        child.stop(0)
        sample(child)  # the peak stays
    assert made.attempts[-1].usage.peak_rss_bytes > 60_000_000


def test_a_run_s_record_says_how_long_each_stage_took_and_what_the_training_needed(workshop, two_gpus):
    spec = workshop.spec(compute={"devices": "0,1"})
    done = workshop.run("launch", spec, PATH=os.environ["PATH"], FAKE_STEP_S="0.2")
    assert done.code == 0, done.err
    record = workshop.record()
    (attempt,) = record["attempts"]
    assert set(attempt["stages_s"]) == {"prepare", "train", "benchmark"}
    assert all(seconds > 0 for seconds in attempt["stages_s"].values())
    assert attempt["usage"]["peak_rss_bytes"] > 0
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


def test_all_attempts_count_together():
    usage = {"every_s": 2.0, "peak_rss_bytes": 3 << 30}
    killed = attempt(10, 20, status="interrupted", stages_s={"prepare": 1.5})
    one = attempt(11, 50, stages_s={"prepare": 0.5, "train": 45.0}, usage=usage)
    less = {"every_s": 2.0, "peak_rss_bytes": 1 << 30, "gpu_peak_memory_mib": {"0": 700}}
    other = attempt(12, 55, stages_s={"train": 30.0, "benchmark": 15.0}, usage=less)
    training = {"steps": 50, "total_steps": 50, "tokens_seen": 12345}
    assert usage_lines(record(killed, one, other, training=training)) == [
        "took 2 min 5 s in 3 attempts: prepare 2.0 s, train 1 min 15 s, benchmark 15 s",
        "training: 12345 input tokens, peak memory 3.0 GiB",
    ]


def test_what_the_record_does_not_have_is_not_said():
    assert usage_lines(record(training=None)) == []
    assert usage_lines(record(attempt(10, 5), training=None)) == ["took 5.0 s"]
    assert usage_lines(record(attempt(10, None), status="running", ended_at=None, training=None)) == []
