"""A run on a host that will not come back. Run: pytest tests/test_host_is_gone.py."""

import json
import os
import time

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.lifecycle.stop import QUIET_S, host_is_gone, stop_run
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from tests.runs_on_disk import record_json


@pytest.fixture
def run(tmp_path):
    """A run that says it is running on another host, and was last written to a while ago."""
    folder = tmp_path / "runs" / "toy-20261124-101500"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "train.log").write_text("step 1\n")
    write(folder, status="running", ended_at=None, host="gpu-box")
    age(folder, QUIET_S + 5)
    return RunDir(folder)


def write(folder, **changes):
    (folder / "record.json").write_text(json.dumps(record_json(folder.name, **changes)))


def age(folder, seconds):
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_it_reads_as_interrupted_and_can_be_taken_over(run):
    with pytest.raises(PrerequisiteError) as error:
        stop_run(run, 0)
    assert f"orchestrator stop {run.id} --host-is-gone" in error.value.remedy
    (line,) = host_is_gone(run)
    record = RunRecord.load(run)
    assert "gpu-box" in line and record.status == "interrupted" and "gpu-box, is gone" in record.error
    record.take_over(run)
    assert (record.status, record.pid) == ("created", os.getpid())


@pytest.mark.parametrize("file", ["record.json", "logs/train.log"])
def test_a_host_that_still_writes_is_not_gone(run, file):
    (run.path / file).touch()
    with pytest.raises(PrerequisiteError, match=rf"gpu-box is not gone: .*{file} was written \d s ago"):
        host_is_gone(run)
    assert RunRecord.load(run).status == "running"


def test_a_run_of_this_host_is_stopped_in_the_ordinary_way(run):
    write(run.path, status="running", ended_at=None, host=os.uname().nodename, boot_id="", pid=os.getpid())
    record = RunRecord.load(run)
    record.update(run, boot_id=RunRecord.model_fields["boot_id"].default_factory(), process_start_ticks=None)
    record.update(run, process_started_at=RunRecord.model_fields["process_started_at"].default_factory())
    with pytest.raises(PrerequisiteError, match="is of this host"):
        host_is_gone(run)


def test_one_that_has_ended_is_left_as_it_is(run):
    write(run.path, host="gpu-box")
    before = run.record.read_bytes()
    assert host_is_gone(run) == [f"{run.id} is not running: done"]
    assert run.record.read_bytes() == before
