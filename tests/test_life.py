"""Runs in the background: started, followed, stopped, with a fake llamafactory-cli. Run: pytest tests/test_life.py."""

import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.lifecycle import local
from orchestrator.lifecycle.stop import assume_host_lost, stop_run
from orchestrator.runs import slurm
from orchestrator.runs.machine import hold_devices
from orchestrator.runs.owner import acquire
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current
from tests.openai_stub import serving
from tests.runs_on_disk import on_path, record_json
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


def test_a_detached_launch_is_a_launch_that_goes_on_by_itself_and_can_be_followed(workshop, launched, tmp_path):
    hold = {"FAKE_HOLD": "3", "FAKE_GO": str(tmp_path / "go")}
    done = workshop.run("launch", workshop.spec(), "--detach", "--json", **hold)
    assert done.code == 0, done.err
    run = workshop.only_run()
    assert f"orchestrator show {run.name}" in done.err and f"orchestrator stop {run.name}" in done.err
    follower = workshop.start("logs", "toy", "-f")
    follower.until(lambda: "fake train" in follower.out, "the log")
    (tmp_path / "go").touch()
    record = ended(workshop)
    assert (record["status"], len(record["benchmarks"]), len(record["attempts"])) == ("done", 1, 1)
    assert (done.json()["id"], done.json()["pid"]) == (run.name, record["pid"])
    assert record["training"] == launched[0].record()["training"]
    log = (run / "logs" / "supervisor.log").read_text("utf-8")
    assert "train: 5/5 steps" in log and "translate: 6/6 sentences" in log
    followed = follower.finish()
    assert followed.code == 0 and followed.err == "" and followed.out.startswith("fake train of")
    assert "==> benchmarks/output-captions_en_de-test/api.log <==\nfake api" in followed.out


def test_it_outlives_its_terminal_and_a_hang_up_and_stop_keeps_a_checkpoint(workshop):
    with workshop.on_terminal("launch", workshop.spec(**LONG), "--detach", FAKE_STEP_S="0.02") as terminal:
        assert terminal.popen.wait(60) == 0
    supervisor = psutil.Process(workshop.record()["pid"])
    assert os.getsid(supervisor.pid) == supervisor.pid and supervisor.terminal() is None
    assert Path(f"/proc/{supervisor.pid}/fd/0").readlink() == Path(os.devnull)
    supervisor.send_signal(signal.SIGHUP)
    wait_for(training_at_step(workshop, 20), "step 20")
    shown = workshop.run("show", "toy").out
    assert re.search(rf"running, in process {supervisor.pid}: step \d+ of 100000, loss [\d.e-]+, left 0:00:09", shown)
    done = workshop.run("stop", "toy", "--json")
    (checkpoint,) = workshop.only_run().glob("output/checkpoint-*")
    assert done.code == 0 and f"the newest complete checkpoint: {checkpoint.name}" in done.err
    assert "no process of it is left" in done.err and "orchestrator resume" in done.err
    assert f"kept: {checkpoint.name}" in done.json()["error"] and workshop.left_over() == []


def test_a_supervisor_that_cannot_begin_says_why_where_it_was_started(workshop, monkeypatch):
    assert workshop.run("launch", workshop.spec(**LONG), FAKE_TRAIN="dies").code == 4
    run = RunDir(workshop.only_run())
    monkeypatch.setenv("ORCHESTRATOR_LOCKS", workshop.full_environment({})["ORCHESTRATOR_LOCKS"])
    with hold_devices(["0"], RunDir(workshop.runs / "holder-20261124-101500")):
        done = workshop.run("resume", "toy", "--detach", CUDA_VISIBLE_DEVICES="0")
    assert done.code == 3 and "did not start: device 0 (run holder-" in done.err, done.err
    assert str(run.supervisor_log) in done.err and workshop.record()["status"] == "failed"


def test_the_supervisor_has_the_key_and_the_archives_and_no_file_or_command_line_has_the_key(workshop):
    (workshop.root.parent / "archives").mkdir()
    with serving() as stub:
        spec = workshop.spec(**BENCHMARK_ONLY, model=None, serve={"url": stub.base_url})
        words = ("launch", spec.relative_to(workshop.root), "--detach", "--from", "../archives")
        done = workshop.run(*words, ORCHESTRATOR_API_KEY="sk-secret")
        assert done.code == 0, done.err
        record = ended(workshop)
        archives = str(workshop.root / ".." / "archives")
        assert (record["status"], record["request"]["archives"]) == ("done", archives)
        assert {headers["authorization"] for headers in stub.headers} == {"Bearer sk-secret"}
        changed = {**record, "status": "stopped", "benchmarks": []}
        (workshop.only_run() / "record.json").write_text(json.dumps(changed))
        assert workshop.run("resume", "toy", ORCHESTRATOR_API_KEY="sk-secret").code == 0
        assert workshop.record()["request"]["archives"] == archives
    for path in workshop.only_run().rglob("*"):
        assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path


def test_logs_prints_all_that_was_written_or_its_end_and_names_what_there_is(toy):
    log = toy.only_run() / "logs" / "train.log"
    log.write_bytes(b"one\n\x1b[31mtwo\x1b[0m\n 1%\r 50%\r100%\nthree\nlast")
    files = ["train", "base-captions_en_de-test", "trian", "../../toy.yaml"]
    words = [("logs", "toy", "--file", "train", "-n", "2"), *(("logs", "toy", "--file", name) for name in files)]
    end, complete, server, unknown, hostile = toy.run_together(words)
    assert complete.out == "one\n\\x1b[31mtwo\\x1b[0m\n100%\nthree\nlast\n"
    assert end.out == "three\nlast\n" and server.out.startswith("fake api of")
    assert unknown.code == 2 and "did you mean 'train'?; it has: train, base-" in unknown.err
    assert hostile.code == 2 and "has no log '../../toy.yaml'" in hostile.err


def test_ctrl_c_ends_the_following_alone_and_a_killed_owner_ends_it_too(background):
    followers = [background.start("logs", "toy", "-f", "-n", "1") for _ in range(2)]
    for follower in followers:
        follower.until(lambda follower=follower: "fake train" in follower.out, "the log")
    followers[0].interrupt(signal.SIGINT)
    done = followers[0].finish()
    assert done.code == 130 and "the run goes on; orchestrator stop toy-" in done.err and "error" not in done.err
    assert background.record()["status"] == "running"
    os.kill(background.record()["pid"], signal.SIGKILL)
    assert followers[1].finish().code == 0
    assert_none_left(background)
    shown = background.run("show", "toy").out
    assert "interrupted: its process" in shown and "orchestrator resume" in shown


def test_what_does_not_stop_is_killed_whatever_session_and_parents_it_has(workshop):
    """The trainer ignores SIGTERM, and a worker of it too; another is as a rank whose torchrun was killed."""
    command = workshop.start("launch", workshop.spec(**LONG), FAKE_TRAIN="stubborn", FAKE_STEP_S="0.02")
    command.until(training_at_step(workshop, 3), "step 3")
    environment = {**workshop.full_environment({}), "ORCHESTRATOR_RUN": str(workshop.only_run())}
    orphan = psutil.Popen(["sh", "-c", "setsid sleep 60 & wait"], env=environment, start_new_session=True)
    wait_for(lambda: orphan.children(), "its child")
    orphan.kill()
    orphan.wait()
    done = workshop.run("stop", "toy", "--grace", "0.5")  # the deadline is shorter than the usual grace
    assert done.code == 0 and "there is no complete checkpoint" in done.err, done.err
    command.finish()
    assert workshop.record()["status"] == "stopped" and workshop.left_over() == []


def test_an_owner_that_does_not_answer_is_killed_and_the_run_reads_stopped(background, monkeypatch):
    monkeypatch.setattr(local, "OWNER_EXIT_S", 0.5)
    os.kill(background.record()["pid"], signal.SIGSTOP)
    lines = stop_run(RunDir(background.only_run()), 0)
    assert "no process of it is left" in lines and background.left_over() == []
    record = background.record()
    assert record["status"] == "stopped" and "killed: it had not stopped within 0 s" in record["error"]


def test_a_run_that_is_not_running_is_left_as_it_is_and_so_is_who_has_its_pid_by_now(toy, monkeypatch):
    before, run = toy.record(), RunDir(toy.only_run())
    done, both = toy.run_together([("stop", "toy"), ("stop", "toy", "--now", "--grace", "3")])
    assert (done.code, done.err) == (0, f"{run.id} is not running: done\n")
    assert both.code == 2 and "--grace" in both.err and toy.record() == before
    other = psutil.Popen(["sleep", "60"])
    changes = {"status": "running", "ended_at": None, "pid": other.pid}
    try:
        run.record.write_text(json.dumps({**before, **changes}))
        assert stop_run(run, 0) == [f"{run.id} is not running: interrupted"]
        monkeypatch.setattr(local, "POLL_S", 0)
        with acquire(run), pytest.raises(PrerequisiteError, match="is not it, or is another user's"):
            stop_run(run, 0)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def lost(run: RunDir, **changes: object) -> bytes:
    """The record of a run whose owner is not seen."""
    stored = {"status": "running", "ended_at": None, "host": "gpu-box", **changes}
    run.record.write_text(json.dumps(record_json(run.id, **stored)))
    return run.record.read_bytes()


def test_a_run_of_a_lost_host_is_marked_interrupted_and_only_on_request(run):
    before = lost(run)
    with pytest.raises(PrerequisiteError, match=r"nothing was changed|cannot be reached"):
        stop_run(run, 0)
    assert run.record.read_bytes() == before
    assert f"{run.id} was on gpu-box and is marked interrupted" in assume_host_lost(run)
    assert current(run).status == "interrupted" and "gpu-box, was given up" in str(current(run).error)
    acquire(run).release()
    before = lost(run, host=os.uname().nodename)
    assert assume_host_lost(run) == f"{run.id} is not running: interrupted"
    assert run.record.read_bytes() == before


@pytest.mark.parametrize(
    ("squeue", "said"),
    [
        ("exit 1", "is Slurm job 12"),
        ("echo '12|RUNNING|9:00||n|None'", "is Slurm job 12"),
        ("true", "is not running: interrupted"),
    ],
)
def test_a_run_of_slurm_is_not_marked_interrupted(run, tmp_path, monkeypatch, squeue, said):
    on_path(monkeypatch, tmp_path, "squeue", squeue)
    slurm._answers.clear()
    before = lost(run, job={"id": "12", "uid": 0, "submitted_at": "2026-11-24T10:15:00Z"})
    if squeue == "exit 1":  # it cannot be known what became of it
        with pytest.raises(StageError, match=r"nothing was changed|cannot be reached"):
            stop_run(run, 0)
    try:
        found = assume_host_lost(run)
    except PrerequisiteError as error:
        found = str(error)
    slurm._answers.clear()
    assert said in found and run.record.read_bytes() == before
