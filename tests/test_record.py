"""record.json: what is written, whose run it is, and that no write is lost."""

import json
import math
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.runs import slurm
from orchestrator.runs.owner import acquire, is_owned, liveness
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.record_parts import Attempt, BenchmarkSummary, DataFacts, Facts, Training
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.slurm import Job
from orchestrator.runs.state import current, usage_lines
from tests.runs_on_disk import on_path, record_json

JOB = {"id": "12", "uid": 0, "submitted_at": now()}


def saved(run: RunDir, **changes: object) -> RunRecord:
    record = RunRecord(id=run.id, name="toy", created_at=now(), spec_sha256="0" * 64, seed=42, **changes)
    record.save(run)
    return record


def summary(name: str) -> BenchmarkSummary:
    return BenchmarkSummary(id=name, of="output", testset="t", split="test", status="complete", n_segments=9)


FULL = {
    "error": "it's \x1b a\nproblem 😀",
    "ended_at": now(),
    "commands": {"train": ["a b", ""]},
    "facts": Facts(data=[DataFacts(dataset="d", split="train", pairs=1, sha256="x")]),
    "benchmarks": [summary("a")],
}


@pytest.mark.parametrize("loss", [0.5, math.nan, math.inf, -math.inf])
def test_what_is_saved_is_read_also_a_loss_that_is_no_number_in_json_that_all_can_read(loss, run):
    training = Training(steps=1, total_steps=1, train_loss=loss, logged_losses=[1.0, loss])
    record = saved(run, status="done", training=training, **FULL)
    read = RunRecord.load(run)
    assert read.model_dump_json() == record.model_dump_json() and repr(read.training) == repr(training)
    json.loads(run.record.read_bytes(), parse_constant=pytest.fail)


def test_fields_of_a_later_version_survive_an_update(run):
    record = saved(run, status="running", **FULL)
    stored = json.loads(run.record.read_bytes())
    stored["later"] = {"a": [1]}
    stored["facts"]["later"] = stored["benchmarks"][0]["later"] = 1
    run.record.write_text(json.dumps(stored))
    record.update(run, status="failed")
    assert json.loads(run.record.read_bytes()) == {**stored, "status": "failed"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"status": "created", "ended_at": None}, {"status": "preparing"}),
        ({"status": "created", "ended_at": None, "awaits_turn": True}, {"status": "planned"}),
        ({"status": "trained"}, {"status": "done"}),
        ({"with_benchmarks": False}, {"with_benchmarks": False}),
    ],
)
def test_a_record_of_an_earlier_version_is_read_and_keeps_its_fields(change, expected, run):
    old = {**record_json(run.id), "process_start_ticks": 1, "joins": None, **change}
    old["attempts"][0]["status"] = "created"
    run.record.write_text(json.dumps(old))
    record = RunRecord.load(run)
    assert {key: getattr(record, key) for key in expected} == expected
    assert record.request.with_benchmarks == record.with_benchmarks and record.attempts[0].status == "preparing"
    record.update(run, waits_for="x")
    stored = json.loads(run.record.read_bytes())
    assert (stored["boot_id"], stored["process_start_ticks"], stored["joins"]) == (old["boot_id"], 1, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("", "EOF"),
        ("[]", "should be an object"),
        ({"status": "asleep"}, "status: Input should be"),
        ({"job": {**JOB, "id": "--user=root", "submitted_at": "2026-11-24T10:15:00Z"}}, "job.id: String should match"),
    ],
)
def test_a_damaged_record_is_named_with_the_reason(content, said, run):
    if content is not None:
        run.record.write_text(json.dumps({**record_json(run.id), **content}) if isinstance(content, dict) else content)
    with pytest.raises(PrerequisiteError, match=f"^{run.record} cannot be read: (?!.*pydantic).*{said}") as error:
        RunRecord.load(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "allowed", "refused"),
    [
        ("preparing", "running", "planned"),
        ("running", "trained", "done"),
        ("running", "preparing", "interrupted"),  # its owner was killed
        ("done", "preparing", "failed"),
        ("planned", "stopped", "running"),
    ],
)
def test_a_status_changes_only_as_the_table_allows(before, allowed, refused, run):
    record = saved(run, status=before)
    with pytest.raises(ValueError, match=f"a run that is {before} cannot become {refused}"):
        record.update(run, status=refused)
    assert RunRecord.load(run).status == record.status == before
    record.update(run, status=allowed)
    assert RunRecord.load(run).status == record.status == allowed


def test_writers_at_the_same_time_lose_nothing(run):
    saved(run, status="running")

    def write(name: str) -> None:
        record = RunRecord.load(run)
        for number in range(8):
            record.add_benchmark(run, summary(f"{name}-{number}"))
            record.add_command(run, f"{name}-{number}", ["x"], {"A": "1"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    stored = RunRecord.load(run)
    names = [f"{name}-{number}" for name in "abcd" for number in range(8)]
    assert sorted(item.id for item in stored.benchmarks) == sorted(names)
    assert set(stored.commands) == set(stored.environment) == set(names)
    stored.add_benchmark(run, summary("a-3"))
    assert len(stored.benchmarks) == 32 and stored.benchmarks[-1].id == "a-3"


OWNER = """
import sys
from pathlib import Path
from orchestrator.runs.owner import lock_run
from orchestrator.runs.rundir import RunDir
owned = lock_run(RunDir(Path(sys.argv[1])))
print(flush=True)
sys.stdin.read()
"""


def test_a_run_has_one_owner_and_reads_interrupted_once_that_is_killed(run):
    saved(run, status="running", attempts=[Attempt(started_at=now(), status="running", pid=1, host="x")])
    (run.path / ".record.json.x1y2").write_text('{"id": "of a writer that was ki')
    owner = subprocess.Popen([sys.executable, "-c", OWNER, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline() == b"\n"
    assert current(run).status == "running" and is_owned(run)
    with pytest.raises(PrerequisiteError, match=r"is running: process \d+ owns it"):
        acquire(run)
    owner.kill()
    owner.communicate()
    assert current(run).status == "interrupted" and not is_owned(run)
    assert RunRecord.load(run).status == "running"  # reading writes nothing
    with acquire(run):
        with pytest.raises(PrerequisiteError):
            acquire(run)  # nor does this process own it twice
        record = RunRecord.load(run)
        record.begin_attempt(run)
        assert [each.status for each in record.attempts] == ["interrupted", "preparing"]
        assert (record.pid, record.host, record.status) == (os.getpid(), socket.gethostname(), "preparing")
        assert list(run.path.glob("*x1y2")) == []
        assert current(run).status == "preparing"
        record.end(run, "stopped", "Ctrl-C")
    stored = current(run)
    assert (stored.status, stored.error, stored.attempts[-1].status) == ("stopped", "Ctrl-C", "stopped")
    assert stored.ended_at == stored.attempts[-1].ended_at is not None


@pytest.mark.parametrize(
    ("changes", "squeue", "alive", "status"),
    [
        ({}, "", "ended", "interrupted"),
        ({"host": "gpu-box"}, "", "unknown", "running"),
        ({"job": Job(**JOB)}, "echo '12|RUNNING|9:00||node1|None'", "alive", "running"),
        ({"job": Job(**JOB)}, "echo '12|PENDING|9:00||| Priority'", "waiting", "queued"),
        ({"job": Job(**JOB)}, "echo '12|NODE_FAIL|9:00||| None'", "ended", "interrupted"),
        ({"job": Job(**JOB)}, "echo '13|RUNNING|9:00||node1|None'", "ended", "interrupted"),
        ({"job": Job(**JOB)}, "exit 1", "unknown", "running"),
        ({"job": Job(**{**JOB, "id": ""})}, "exit 1", "ended", "interrupted"),
    ],
)
def test_what_is_known_of_a_run_whose_lock_is_free(changes, squeue, alive, status, run, tmp_path, monkeypatch):
    """`unknown` changes nothing: the run reads as it is written, and nobody may take it over."""
    on_path(monkeypatch, tmp_path, "squeue", squeue)
    slurm._answers.clear()
    record = saved(run, status="running", **changes)
    assert liveness(run, record) == alive and current(run).status == status
    if alive == "ended":
        acquire(run).release()
    else:
        with pytest.raises(PrerequisiteError, match="owns it"):
            acquire(run)
    slurm._answers.clear()


@pytest.mark.parametrize(
    ("job", "changes", "is_let_in"),
    [
        ("12", {"status": "queued", "job": Job(**JOB)}, True),
        ("12", {"status": "queued", "job": Job(**{**JOB, "id": ""})}, True),  # its id is not in the record yet
        ("13", {"status": "stopped", "job": Job(**JOB)}, True),  # sbatch.sh, submitted by hand
        ("12", {"status": "stopped", "job": Job(**JOB), "stop_requested": True}, False),
        ("13", {"status": "running", "host": "gpu-box"}, False),
    ],
)
def test_a_job_takes_its_own_run(job, changes, is_let_in, run):
    record = saved(run, **changes)
    if not is_let_in:
        with pytest.raises(PrerequisiteError):
            acquire(run, job)
        assert not is_owned(run)
        return
    with acquire(run, job):
        record.begin_attempt(run, job)
    assert record.job is not None and record.job.id == job
    record.end(run, "failed")
    record.begin_attempt(run)  # here, by hand: `stop` must not go to the old job
    assert record.job is None


@pytest.mark.parametrize(
    ("attempts", "training", "lines"),
    [
        ([], None, []),
        ([(None, {})], None, []),
        ([(5, {})], None, ["took 5.0 s"]),
        ([(20, {"prepare": 1.5}), (50, {"prepare": 0.5, "train": 45.0}), (55, {"train": 30.0, "benchmark": 15.0})],
         {"steps": 50, "total_steps": 50, "tokens_seen": 12345},
         ["took 2 min 5 s in 3 attempts: prepare 2.0 s, train 1 min 15 s, benchmark 15 s",
          "training: 12345 input tokens"]),
    ],
)  # fmt: skip
def test_all_attempts_that_have_ended_count_together(attempts, training, lines, run):
    begun = {"started_at": "2026-11-24T10:15:00Z", "status": "done", "pid": 1, "host": "x"}
    made = [
        {**begun, "ended_at": f"2026-11-24T10:15:{took_s:02}Z" if took_s else None, "stages_s": stages,
         "usage": {"every_s": 2.0}}  # of an earlier version
        for took_s, stages in attempts
    ]  # fmt: skip
    record = RunRecord.model_validate(record_json(run.id, attempts=made, training=training))
    assert usage_lines(record) == lines
