"""Runs in the background: started, followed, stopped, with a fake llamafactory-cli. Run: pytest tests/test_life.py."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.lifecycle.stop import QUIET_S, assume_host_lost, stop_run
from orchestrator.runs import slurm
from orchestrator.runs.owner import acquire
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current
from tests.openai_stub import serving
from tests.runs_on_disk import record_json
from tests.workshop import Workshop, assert_none_left, training_at_step, wait_for

LONG = {"train": {"max_steps": 100_000}, "benchmark": None}
BENCHMARK_ONLY = {"train": None, "dataset": None}


def ended(workshop: Workshop) -> dict:
    """The record of the only run once it says how it ended, and its supervisor is gone."""
    wait_for(lambda: workshop.record()["ended_at"], "the run's end")
    assert_none_left(workshop)
    return workshop.record()


@pytest.fixture
def background(workshop):
    """A training in the background, at step 3 or later."""
    done = workshop.run("launch", workshop.spec(**LONG), "--detach", FAKE_STEP_S="0.02")
    assert done.code == 0, done.err
    wait_for(training_at_step(workshop, 3), "step 3")
    return workshop


# In the background


def test_a_detached_launch_is_a_launch_that_goes_on_by_itself(workshop, launched):
    done = workshop.run("launch", workshop.spec(), "--detach", "--json")
    assert done.code == 0, done.err
    run = workshop.only_run()
    assert f"orchestrator logs {run.name} -f" in done.err and f"orchestrator stop {run.name}" in done.err
    record = ended(workshop)
    assert (record["status"], len(record["benchmarks"]), len(record["attempts"])) == ("done", 1, 1)
    assert f"in process {record['pid']}" in done.err
    assert (done.json()["id"], done.json()["pid"]) == (run.name, record["pid"])
    foreground = launched[0].only_run()
    for name in ("data/captions_en_de.jsonl", "dataset_info.json", "output/trainer_log.jsonl"):
        assert (run / name).read_bytes() == (foreground / name).read_bytes(), name
    assert record["training"] == launched[0].record()["training"]
    log = (run / "logs" / "supervisor.log").read_text("utf-8")
    assert "train: 5/5 steps" in log and "translate: 6/6 sentences" in log


def test_it_outlives_its_terminal_and_a_hang_up_and_stop_keeps_a_checkpoint(workshop):
    with workshop.on_terminal("launch", workshop.spec(**LONG), "--detach", FAKE_STEP_S="0.02") as terminal:
        assert terminal.finish() == 0
    supervisor = psutil.Process(workshop.record()["pid"])
    assert os.getsid(supervisor.pid) == supervisor.pid and supervisor.terminal() is None
    assert Path(f"/proc/{supervisor.pid}/fd/0").readlink() == Path(os.devnull)
    supervisor.send_signal(signal.SIGHUP)
    wait_for(training_at_step(workshop, 1), "step 1")
    before = (workshop.only_run() / "output" / "trainer_log.jsonl").read_text("utf-8").count("\n")
    wait_for(training_at_step(workshop, before + 10), "ten more steps")
    shown = workshop.run("show", "toy").out
    assert re.search(rf"running, in process {supervisor.pid}: step \d+ of 100000, loss [\d.e-]+, left 0:00:09", shown)
    done = workshop.run("stop", "toy", "--json")
    (checkpoint,) = workshop.only_run().glob("output/checkpoint-*")
    assert done.code == 0 and f"the newest complete checkpoint: {checkpoint.name}" in done.err
    assert "no process of it is left" in done.err and "orchestrator resume" in done.err
    assert f"kept: {checkpoint.name}" in done.json()["error"] and workshop.left_over() == []


def test_nothing_is_started_where_a_check_fails_or_nothing_is_to_be_run(workshop):
    wrong, dry = workshop.run_together(
        [
            ("launch", workshop.spec("wrong", train={"lora_rnak": 4}), "--detach"),
            ("launch", workshop.spec("dry"), "--detach", "--dry-run"),
        ]
    )
    assert wrong.code == 2 and "lora_rank" in wrong.err
    assert dry.code == 2 and "nothing to detach" in dry.err
    assert workshop.run_folders() == [] and workshop.left_over() == []


def test_a_supervisor_that_cannot_begin_says_why_where_it_was_started(workshop):
    """Its devices are taken, say: a resume finds out in the supervisor."""
    assert workshop.run("launch", workshop.spec(**LONG), FAKE_TRAIN="dies").code == 4
    holder = workshop.start("launch", workshop.spec("holder", **LONG, compute={"devices": "0"}), FAKE_STEP_S="0.02")
    holder.until(lambda: list(workshop.runs.glob("holder-*/output/trainer_log.jsonl")), "a training")
    (run,) = workshop.runs.glob("toy-*/")
    done = workshop.run("resume", "toy", "--detach", CUDA_VISIBLE_DEVICES="0")
    assert done.code == 3 and "did not start: device 0 (run holder-" in done.err, done.err
    assert str(run / "logs" / "supervisor.log") in done.err
    assert workshop.record(run)["status"] == "failed"
    holder.interrupt(signal.SIGTERM)
    holder.finish()


def test_the_supervisor_has_the_key_and_the_archives_and_no_file_or_command_line_has_the_key(workshop):
    (workshop.root.parent / "archives").mkdir()
    with serving() as stub:
        spec = workshop.spec(**BENCHMARK_ONLY, model=None, serve={"url": stub.base_url})
        words = ("launch", spec.relative_to(workshop.root), "--detach", "--from", "../archives")
        done = workshop.run(*words, ORCHESTRATOR_API_KEY="sk-secret")
        assert done.code == 0, done.err
        assert workshop.record()["request"]["archives"] == str(workshop.root / ".." / "archives")
        assert ended(workshop)["status"] == "done"
        assert {headers["authorization"] for headers in stub.headers} == {"Bearer sk-secret"}
    logless = workshop.run("logs", "toy")
    assert "sk-secret" not in done.out + done.err + logless.out
    for path in workshop.only_run().rglob("*"):
        assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path


def test_another_orchestrator_in_the_working_folder_is_not_taken_for_ours(workshop):
    """`python -m` looks there first; a console script, which is how we are started, does not."""
    folder = workshop.root.parent / "elsewhere" / "orchestrator"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('another one')")
    (folder.parent / "psutil.py").write_text("raise SystemExit('another one')")
    script = workshop.root.parent / "bin" / "script.py"
    script.parent.mkdir()
    script.write_text("from orchestrator.__main__ import main\nmain()\n")
    done = subprocess.run(
        [sys.executable, script, "launch", workshop.spec(), "--workspace", workshop.root, "--detach", "--no-benchmark"],
        cwd=folder.parent, env=workshop.full_environment({}), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ended(workshop)["status"] == "done"


# Logs


def test_logs_prints_all_that_was_written_or_its_end_and_names_what_there_is(toy):
    log = toy.only_run() / "logs" / "train.log"
    log.write_bytes(b"one\n\x1b[31mtwo\x1b[0m\n 1%\r 50%\r100%\nthree\nlast")
    complete, end, server, unknown, hostile = toy.run_together(
        [
            ("logs", "toy", "--file", "train"),
            ("logs", "toy", "-n", "2", "--file", "train"),
            ("logs", "toy", "--file", "base-captions_en_de-test"),
            ("logs", "toy", "--file", "trian"),
            ("logs", "toy", "--file", "../../toy.yaml"),
        ]
    )
    assert complete.out == "one\n\\x1b[31mtwo\\x1b[0m\n100%\nthree\nlast\n"
    assert end.out == "three\nlast\n"
    assert server.out.startswith("fake api of")
    assert unknown.code == 2 and "did you mean 'train'?; it has: train, base-" in unknown.err
    assert hostile.code == 2 and "has no log '../../toy.yaml'" in hostile.err


def test_following_goes_on_to_the_benchmark_s_server_and_ends_with_the_run(workshop, tmp_path):
    hold = {"FAKE_HOLD": "3", "FAKE_GO": str(tmp_path / "go")}
    assert workshop.run("launch", workshop.spec(train={"max_steps": 40}), "--detach", **hold).code == 0
    follower = workshop.start("logs", "toy", "-f")
    follower.until(lambda: "fake train" in follower.out, "the log")
    (tmp_path / "go").touch()
    done = follower.finish()
    assert done.code == 0 and done.err == ""
    assert done.out.startswith("fake train of")
    assert "==> benchmarks/output-captions_en_de-test/api.log <==\nfake api" in done.out
    assert workshop.record()["status"] == "done"


def test_ctrl_c_ends_the_following_alone_and_a_killed_owner_ends_it_too(background):
    stopped, followers = background, [background.start("logs", "toy", "-f", "-n", "1") for _ in range(2)]
    for follower in followers:
        follower.until(lambda follower=follower: "fake train" in follower.out, "the log")
    followers[0].interrupt(signal.SIGINT)
    done = followers[0].finish()
    assert done.code == 130 and "the run goes on; orchestrator stop toy-" in done.err and "error" not in done.err
    assert background.record()["status"] == "running"
    os.kill(background.record()["pid"], signal.SIGKILL)
    assert followers[1].finish().code == 0
    assert_none_left(stopped)
    shown = stopped.run("show", "toy").out
    assert "interrupted: its process" in shown and "orchestrator resume" in shown


# Stopping


@pytest.mark.parametrize("detached", [True, False])
def test_stop_ends_a_run_at_another_stage_and_no_process_is_left(workshop, detached):
    command = workshop.start("launch", workshop.spec(**BENCHMARK_ONLY), *["--detach"] * detached, FAKE_API="hangs")
    logs = "*/benchmarks/*/api.log"
    wait_for(lambda: any("asked" in path.read_text("utf-8") for path in workshop.runs.glob(logs)), "a request")
    done = workshop.run("stop", "latest")
    assert done.code == 0 and f"{workshop.only_run().name} is stopped: " in done.err, done.err
    assert workshop.record()["status"] == "stopped" and workshop.record()["stop_requested"]
    assert command.finish().code == (0 if detached else 130)
    assert workshop.left_over() == []


@pytest.mark.parametrize("words", [("--now",), ("--grace", "1")])
def test_what_does_not_stop_is_killed_whatever_session_and_parents_it_has(workshop, words):
    """The trainer ignores SIGTERM, and a worker of it too; another is as a rank whose torchrun was killed."""
    spec = workshop.spec(**LONG)
    assert workshop.run("launch", spec, "--detach", FAKE_TRAIN="stubborn", FAKE_STEP_S="0.02").code == 0
    wait_for(training_at_step(workshop, 3), "step 3")
    orphan = psutil.Popen(
        ["sh", "-c", "setsid sleep 60 & wait"],
        env={**workshop.full_environment({}), "ORCHESTRATOR_RUN": str(workshop.only_run())},
        start_new_session=True,
    )
    wait_for(lambda: orphan.children(), "its child")
    orphan.kill()
    orphan.wait()
    done = workshop.run("stop", "toy", *words)  # within its deadline, which is shorter than the usual grace
    assert done.code == 0 and workshop.left_over() == [], done.err
    assert workshop.record()["status"] == "stopped" and "there is no complete checkpoint" in done.err


def test_an_owner_that_does_not_answer_is_killed_and_the_run_reads_stopped(background):
    """Stopped by SIGSTOP, say: it hears nothing."""
    os.kill(background.record()["pid"], signal.SIGSTOP)
    done = background.run("stop", "toy", "--grace", "0")
    assert done.code == 0 and background.left_over() == [], done.err
    record = background.record()
    assert record["status"] == "stopped" and "killed: it had not stopped within 0 s" in record["error"]


def test_a_run_that_is_not_running_is_left_as_it_is_and_so_is_who_has_its_pid_by_now(toy):
    before, run = toy.record(), toy.only_run()
    done, both = toy.run_together([("stop", "toy"), ("stop", "toy", "--now", "--grace", "3")])
    assert (done.code, done.err) == (0, f"{run.name} is not running: done\n")
    assert both.code == 2 and "--grace" in both.err
    assert toy.record() == before
    other = psutil.Popen(["sleep", "60"])
    try:
        for host, code, said in ((None, 0, "is not running: interrupted"), ("gpu-box", 3, "is running on gpu-box")):
            changes = {"status": "running", "ended_at": None, "pid": other.pid} | ({"host": host} if host else {})
            (run / "record.json").write_text(json.dumps({**before, **changes}))
            done = toy.run("stop", "toy")
            assert done.code == code and said in done.err, done.err
        with acquire_as_somebody(run):
            with pytest.raises(PrerequisiteError, match="is not it, or is another user's"):
                stop_run(RunDir(run), 0)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def acquire_as_somebody(run: Path):
    """The lock is held, but not by the process that the record names."""
    path = run / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "host": os.uname().nodename}))
    return acquire(RunDir(run))


# A host that will not come back


@pytest.fixture
def remote(tmp_path):
    """A run that says it is running on another host, and was last written to a while ago."""
    folder = tmp_path / "runs" / "toy-20261124-101500"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "train.log").write_text("step 1\n")

    def write(**changes):
        stored = record_json(folder.name, **{"status": "running", "ended_at": None, "host": "gpu-box", **changes})
        (folder / "record.json").write_text(json.dumps(stored))
        for path in folder.rglob("*"):
            os.utime(path, (time.time() - QUIET_S - 5,) * 2)
        return RunDir(folder)

    return write


def test_a_run_of_a_lost_host_reads_as_interrupted_and_can_be_resumed_here(remote):
    run = remote()
    with pytest.raises(PrerequisiteError) as error:
        stop_run(run, 0)
    assert f"orchestrator stop {run.id} --host-is-gone" in error.value.remedy
    (line,) = assume_host_lost(run)
    record = current(run)
    assert "gpu-box" in line and record.status == "interrupted" and "gpu-box, was given up" in record.error
    acquire(run).release()


@pytest.mark.parametrize("file", ["record.json", "logs/train.log"])
def test_a_host_that_still_writes_is_not_gone(remote, file):
    run = remote()
    (run.path / file).touch()
    with pytest.raises(PrerequisiteError, match=rf"gpu-box is not gone: .*{file} was written \d s ago"):
        assume_host_lost(run)
    assert current(run).status == "running"


@pytest.mark.parametrize(
    ("changes", "squeue", "error", "said"),
    [
        ({"job": "12"}, "exit 1", StageError, "Slurm does not say whether job 12"),
        ({"job": "12"}, "echo '12|RUNNING|9:00||n|None'", PrerequisiteError, "job 12 of .* is not over"),
        ({"job": "12"}, "true", None, "is not running: interrupted"),
        ({"status": "done", "ended_at": "2026-11-24T10:20:00Z"}, "true", None, "is not running: done"),
    ],
)
def test_slurm_is_asked_of_a_lost_host_s_job_and_no_answer_changes_nothing(
    remote, changes, squeue, error, said, tmp_path, monkeypatch
):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm._answers.clear()
    if job := changes.get("job"):
        changes = {"job": {"id": job, "uid": 0, "submitted_at": "2026-11-24T10:15:00Z"}}
    run = remote(**changes)
    before = run.record.read_bytes()
    if error is None:
        assert re.search(said, assume_host_lost(run)[0])
    else:
        with pytest.raises(error, match=said):
            assume_host_lost(run)
    if error is StageError:
        with pytest.raises(StageError, match="nothing was changed"):  # nor does `stop` take it for over
            stop_run(run, 0)
    slurm._answers.clear()
    assert run.record.read_bytes() == before
