"""record.json: what is written, whose it is, and that no writer loses another's. Run: pytest tests/test_record.py."""

import json
import math
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.processes.process_tree import start_ticks
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.record_parts import ACTIVE, Attempt, BenchmarkSummary, DataFacts, Facts, Training
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import Score

ROOT = Path(__file__).resolve().parent.parent
SCORE = Score(
    metric="bleu", score=12.5, ci95=(10.0, 15.0), ci_mean=12.4, ci_half=2.5, signature="nrefs:1", n_segments=9
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    folder = tmp_path / "toy-20261124-101500"
    folder.mkdir()
    return RunDir(folder)


def record_of(run: RunDir, **changes: object) -> RunRecord:
    return RunRecord(id=run.id, name="toy", created_at=now(), spec_sha256="0" * 64, seed=42, **changes)


def summary(name: str, score: Score = SCORE) -> BenchmarkSummary:
    return BenchmarkSummary(
        id=name, of="output", testset="t", split="test", status="complete", n_segments=9, scores=[score]
    )


def saved(run: RunDir, **changes: object) -> RunRecord:
    record = record_of(run, **changes)
    record.save(run)
    return record


FULL = {
    "status": "done",
    "error": "it's \x1b a\nproblem 😀",
    "ended_at": now(),
    "overrides": ["a=b=c"],
    "commands": {"train": ["a b", ""]},
    "environment": {"train": {"CUDA_VISIBLE_DEVICES": "0"}},
    "facts": Facts(
        versions={"torch": "2"}, data=[DataFacts(dataset="d", split="train", pairs=1, blank_pairs=0, sha256="x")]
    ),
    "training": Training(steps=1, total_steps=2, train_loss=1 / 3, logged_losses=[0.1, 1 / 3]),
    "benchmarks": [summary("a")],
}


def test_what_is_saved_is_read(run):
    record = saved(run, **FULL)
    assert RunRecord.load(run) == record
    assert record.created_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_saved_as_what_it_is_in_json_that_all_can_read(loss, run):
    """A training in fp16 that went wrong; its record must not be lost for it."""
    saved(run, status="failed", training=Training(steps=1, total_steps=1, train_loss=loss, logged_losses=[1.0, loss]))
    read = RunRecord.load(run).training
    assert read is not None
    assert [repr(value) for value in (read.train_loss, *read.logged_losses)] == [repr(loss), "1.0", repr(loss)]

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    json.loads(run.record.read_bytes(), parse_constant=refuse)


def test_fields_of_a_later_version_survive_an_update(run):
    record = saved(run, **FULL)
    stored = json.loads(run.record.read_bytes())
    stored["later"] = {"a": [1]}
    stored["facts"]["later"] = "x"
    stored["benchmarks"][0]["later"] = 1
    run.record.write_text(json.dumps(stored))
    record.update(run, status="failed")
    after = json.loads(run.record.read_bytes())
    assert after == {**stored, "status": "failed"}


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "not json", "a list", "unknown status", "folder"])
def test_a_damaged_record_is_named_with_the_reason(damage, run):
    saved(run)
    text = run.record.read_text()
    run.record.unlink()
    contents = {
        "empty": "",
        "cut": text[: len(text) // 2],
        "not json": "\0" * 100,
        "a list": "[]",
        "unknown status": text.replace('"created"', '"asleep"'),
    }
    if damage == "folder":
        run.record.mkdir()
    elif damage in contents:
        run.record.write_text(contents[damage])
    with pytest.raises(PrerequisiteError, match=f"^{run.record} cannot be read: (?!.*pydantic)") as error:
        RunRecord.load(run)
    assert "\n" not in str(error.value)


# Two writers


def test_an_update_changes_its_fields_and_keeps_what_others_wrote(run):
    first = saved(run)
    second = RunRecord.load(run)
    second.add_benchmark(run, summary("a"))
    first.update(run, status="running", error=None)
    assert [item.id for item in first.benchmarks] == ["a"]
    stored = RunRecord.load(run)
    assert (stored.status, [item.id for item in stored.benchmarks]) == ("running", ["a"])


WRITER = """
import sys
from pathlib import Path
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.rundir import RunDir

run, name = RunDir(Path(sys.argv[1])), sys.argv[2]
record = RunRecord.load(run)
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    record.add_benchmark(run, BenchmarkSummary(
        id=f"{name}-{number}", of=name, testset="t", split="test", status="complete", n_segments=1))
    record.update(run, environment={**record.environment, f"{name}-{number}": {}})
"""


def test_two_processes_that_add_benchmarks_at_once_lose_none(run):
    saved(run)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(run.path), name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in ("one", "two")
    ]
    with writers[0], writers[1]:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"go\n")
            writer.stdin.flush()
        for writer in writers:
            writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    found = [item.id for item in RunRecord.load(run).benchmarks]
    assert sorted(found) == sorted(f"{name}-{number}" for name in ("one", "two") for number in range(20))
    for name in ("one", "two"):
        assert [item for item in found if item.startswith(name)] == [f"{name}-{number}" for number in range(20)]


# Whose run it is

OWNER = """
import sys, time
from pathlib import Path
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.rundir import RunDir

run = RunDir(Path(sys.argv[1]))
RunRecord(id=run.id, name="toy", created_at=now(), spec_sha256="0", seed=1, status="running").save(run)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_run_whose_process_was_killed_reads_as_interrupted(run):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(run.path)], cwd=ROOT, stdout=subprocess.PIPE)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        assert RunRecord.load(run).status == "running"
        owner.send_signal(signal.SIGKILL)
    assert RunRecord.load(run).status == "interrupted"
    assert json.loads(run.record.read_bytes())["status"] == "running"  # reading writes nothing


@pytest.mark.parametrize("status", ACTIVE)
def test_a_pid_that_another_process_has_by_now_is_not_the_owner(status, run):
    """The same number, another start."""
    record = saved(run, status=status)
    assert RunRecord.load(run).status == status
    assert record.process_started_at is not None
    saved(run, status=status, process_started_at=record.process_started_at - 60)
    assert RunRecord.load(run).status == "interrupted"


@pytest.mark.skipif(not Path("/proc").exists(), reason="ticks are Linux's")
def test_a_clock_that_was_set_makes_no_other_owner(run):
    """The start in seconds moves with the clock; in ticks since the machine's start it does not."""
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    saved(run, status="running", process_start_ticks=ticks, process_started_at=1.0)
    assert RunRecord.load(run).status == "running"
    saved(run, status="running", process_start_ticks=ticks + 1)
    assert RunRecord.load(run).status == "interrupted"


@pytest.mark.parametrize("status", ["done", "failed", "stopped", "interrupted"])
def test_a_run_that_said_how_it_ended_keeps_its_word(status, run):
    saved(run, status=status, pid=_unused_pid())
    assert RunRecord.load(run).status == status


@pytest.mark.parametrize(
    "changes",
    [{"boot_id": "another boot"}, {"process_started_at": None}, {"pid": 2**22 + 1}],
    ids=lambda each: next(iter(each)),
)
def test_without_proof_that_the_owner_lives_it_does_not(changes, run):
    saved(run, status="running", **changes)
    assert RunRecord.load(run).status == "interrupted"


def test_of_a_run_on_another_host_that_cannot_be_known(run):
    saved(run, status="running", host="another-host", pid=_unused_pid())
    assert RunRecord.load(run).status == "running"


TAKE_OVER = """
import sys
from pathlib import Path
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir

run = RunDir(Path(sys.argv[1]))
RunRecord.load(run).take_over(run)
"""


def test_a_run_has_one_owner_and_keeps_each_attempt(run):
    record = saved(run, status="running", pid=_unused_pid())
    (run.path / ".record.json.x1y2").write_text('{"id": "of a writer that was ki')
    record.take_over(run)
    assert [path.name for path in run.path.iterdir() if "x1y2" in path.name] == []
    assert [(each.status, each.pid) for each in record.attempts] == [
        ("interrupted", saved_pid := record.attempts[0].pid),
        ("created", os.getpid()),
    ]
    assert saved_pid != os.getpid() and record.owner_lives() and record.status == "created"
    record.update(run, status="running")
    # Not as our own child, which would be the supervisor of a run that its parent has just made.
    argv = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", TAKE_OVER]
    done = subprocess.run([*argv, str(run.path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"run {run.id} is running: process {os.getpid()} owns it" in done.stderr, done
    record.end(run, "stopped", "Ctrl-C")
    stored = RunRecord.load(run)
    assert (stored.status, stored.error, stored.attempts[-1].status) == ("stopped", "Ctrl-C", "stopped")
    assert stored.ended_at == stored.attempts[-1].ended_at is not None


def test_the_steps_of_resumes_are_those_since_the_training_last_began(run):
    def attempt(step: int | None) -> Attempt:
        return Attempt(started_at=now(), status="stopped", pid=1, host="x", from_step=step)

    def steps(*began: int | None) -> list[int]:
        return record_of(run, attempts=[attempt(step) for step in began]).resumed_at()

    assert steps() == steps(0) == steps(None) == []
    assert steps(0, 4, None, 8) == [4, 8]
    assert steps(0, 4, 0, 2) == [2]


def _unused_pid() -> int:
    """The next ones are what other processes get while a test runs; these come last."""
    return next(pid for pid in range(2**22 - 1, 1, -1) if not psutil.pid_exists(pid))
