"""Runs in the background: started, followed, stopped, with a fake llamafactory-cli. Run: pytest tests/test_life.py."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.openai_stub import serving
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
    done = workshop.run("launch", workshop.spec(), "--detach")
    assert done.code == 0, done.err
    run = workshop.only_run()
    assert done.out == f"{run.name}\n"
    assert f"orchestrator logs {run.name} -f" in done.err and f"orchestrator stop {run.name}" in done.err
    record = ended(workshop)
    assert (record["status"], len(record["benchmarks"]), len(record["attempts"])) == ("done", 1, 1)
    assert f"in process {record['pid']}" in done.err
    foreground = launched[0].only_run()
    same = [
        "spec.yaml",
        "train.yaml",
        "data/captions_en_de.jsonl",
        "dataset_info.json",
        "command.txt",
        "output/trainer_log.jsonl",
    ]
    for name in same[2:4] + same[5:]:
        assert (run / name).read_bytes() == (foreground / name).read_bytes(), name
    assert record["training"] == launched[0].record()["training"]
    log = (run / "logs" / "supervisor.log").read_text("utf-8")
    assert "train: 5/5 steps" in log and "translate: 6/6 sentences" in log


def test_it_prints_its_record_as_json(workshop):
    done = workshop.run("launch", workshop.spec(benchmark=None), "--detach", "--json")
    assert done.code == 0 and done.json()["id"] == workshop.only_run().name
    assert done.json()["pid"] == ended(workshop)["pid"]


def test_it_outlives_its_terminal_and_a_hang_up(workshop):
    with workshop.on_terminal("launch", workshop.spec(**LONG), "--detach", FAKE_STEP_S="0.02") as terminal:
        assert terminal.finish() == 0
    supervisor = psutil.Process(workshop.record()["pid"])
    assert os.getsid(supervisor.pid) == supervisor.pid and supervisor.terminal() is None
    assert Path(f"/proc/{supervisor.pid}/fd/0").readlink() == Path(os.devnull)
    supervisor.send_signal(signal.SIGHUP)
    wait_for(training_at_step(workshop, 1), "step 1")
    before = (workshop.only_run() / "output" / "trainer_log.jsonl").read_text("utf-8").count("\n")
    wait_for(training_at_step(workshop, before + 10), "ten more steps")
    assert workshop.record()["status"] == "running"
    assert workshop.run("stop", "toy").code == 0


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


def test_a_supervisor_that_cannot_begin_says_why_where_it_was_started(background):
    """Its devices are taken, say: a resume finds out in the supervisor."""
    workshop = background
    assert workshop.run("stop", "toy").code == 0
    holder = workshop.start("launch", workshop.spec("holder", **LONG, compute={"devices": "0"}), FAKE_STEP_S="0.02")
    holder.until(lambda: list(workshop.runs.glob("holder-*/output/trainer_log.jsonl")), "a training")
    (run,) = workshop.runs.glob("toy-*/")
    done = workshop.run("resume", "toy", "--detach", CUDA_VISIBLE_DEVICES="0")
    assert done.code == 3 and "did not come to run: device 0 (run holder-" in done.err, done.err
    assert str(run / "logs" / "supervisor.log") in done.err
    assert workshop.record(run)["status"] == "failed"
    holder.interrupt(signal.SIGTERM)
    holder.finish()


def test_the_supervisor_has_the_key_and_the_archives_and_no_file_or_command_line_has_the_key(workshop, tmp_path):
    (tmp_path / "archives").mkdir()
    with serving() as stub:
        spec = workshop.spec(**BENCHMARK_ONLY, model=None, serve={"url": stub.base_url})
        words = ("launch", spec.relative_to(workshop.root), "--detach", "--from", "../archives")
        (workshop.root.parent / "archives").mkdir(exist_ok=True)
        done = workshop.run(*words, ORCHESTRATOR_API_KEY="sk-secret")
        assert done.code == 0, done.err
        argv = " ".join(psutil.Process(workshop.record()["pid"]).cmdline()) if not workshop.record()["ended_at"] else ""
        assert not argv or str(workshop.root / ".." / "archives") in argv
        assert ended(workshop)["status"] == "done"
        assert {headers["authorization"] for headers in stub.headers} == {"Bearer sk-secret"}
    assert "sk-secret" not in argv + done.out + done.err
    for path in workshop.only_run().rglob("*"):
        assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path


def test_another_orchestrator_in_the_working_folder_is_not_taken_for_ours(workshop):
    """`python -m` looks there first; a console script, which is how we are started, does not."""
    folder = workshop.root.parent / "elsewhere" / "orchestrator"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('another one')")
    script = workshop.root.parent / "bin" / "script.py"
    script.parent.mkdir()
    script.write_text("from orchestrator.__main__ import main\nmain()\n")
    done = subprocess.run(
        [sys.executable, script, "launch", workshop.spec(), "--workspace", workshop.root, "--detach", "--no-benchmark"],
        cwd=folder.parent, env=workshop.full_environment({}), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ended(workshop)["status"] == "trained"


def test_a_killed_supervisor_leaves_nothing_and_a_run_to_go_on_with(background):
    workshop = background
    os.kill(workshop.record()["pid"], signal.SIGKILL)
    assert_none_left(workshop)
    shown = workshop.run("show", "toy")
    assert "interrupted: its process" in shown.out and "orchestrator resume" in shown.out
    done = workshop.run("resume", "toy", "--detach", FAKE_STEP_S="0.02")
    assert done.code == 0, done.err
    wait_for(training_at_step(workshop, 10), "step 10")
    assert workshop.run("stop", "toy").code == 0
    assert [each["status"] for each in workshop.record()["attempts"]] == ["interrupted", "stopped"]


# What it is at


def test_show_says_step_and_loss_of_a_training_that_goes_on(background):
    shown = background.run("show", "toy").out
    pid = background.record()["pid"]
    assert re.search(rf"running, in process {pid}: step \d+ of 100000, loss [\d.e-]+, left 0:00:09", shown), shown
    assert background.run("stop", "toy").code == 0


# Logs


def test_logs_prints_what_was_written_whole_or_its_end_and_names_what_there_is(toy):
    run = toy.only_run()
    log = run / "logs" / "train.log"
    log.write_bytes(b"one\n\x1b[31mtwo\x1b[0m\n 1%\r 50%\r100%\nthree\nlast")
    whole, end, server, unknown, hostile = toy.run_together(
        [
            ("logs", "toy", "--file", "train"),
            ("logs", "toy", "-n", "2", "--file", "train"),
            ("logs", "toy", "--file", "base-captions_en_de-test"),
            ("logs", "toy", "--file", "trian"),
            ("logs", "toy", "--file", "../../toy.yaml"),
        ]
    )
    assert whole.out == "one\n\\x1b[31mtwo\\x1b[0m\n100%\nthree\nlast\n"
    assert end.out == "three\nlast\n"
    assert server.out.startswith("fake api of")
    assert unknown.code == 2 and "did you mean 'train'?; it has: train, base-" in unknown.err
    assert hostile.code == 2 and "has no log '../../toy.yaml'" in hostile.err


def test_following_ends_with_the_run_and_goes_on_to_the_benchmark_s_server(workshop, tmp_path):
    hold = {"FAKE_HOLD": "3", "FAKE_GO": str(tmp_path / "go")}
    assert workshop.run("launch", workshop.spec(), "--detach", **hold).code == 0
    follower = workshop.start("logs", "toy", "-f")
    follower.until(lambda: "fake train" in follower.out, "the log")
    (tmp_path / "go").touch()
    done = follower.finish()
    assert done.code == 0, done.err
    assert (
        done.out.startswith("fake train of")
        and "==> benchmarks/output-captions_en_de-test/api.log <==\nfake api" in done.out
    )
    assert done.err == ""  # no bar where there is no terminal
    assert workshop.record()["status"] == "done"


def test_following_a_run_whose_owner_is_killed_ends(background):
    follower = background.start("logs", "toy", "-f")
    follower.until(lambda: "fake train" in follower.out, "the log")
    os.kill(background.record()["pid"], signal.SIGKILL)
    assert follower.finish().code == 0
    assert_none_left(background)


def test_ctrl_c_ends_the_following_alone(background):
    follower = background.start("logs", "toy", "-f", "-n", "1")
    follower.until(lambda: "fake train" in follower.out, "the log")
    follower.interrupt(signal.SIGINT)
    done = follower.finish()
    assert done.code == 130 and "the run goes on; orchestrator stop toy-" in done.err and "error" not in done.err
    assert background.record()["status"] == "running"
    assert background.run("stop", "toy").code == 0


def test_on_a_terminal_following_shows_the_bar_of_a_launch(workshop, tmp_path):
    spec = workshop.spec(train={"max_steps": 40}, benchmark=None)
    hold = {"FAKE_HOLD": "3", "FAKE_GO": str(tmp_path / "go")}
    assert workshop.run("launch", spec, "--detach", **hold).code == 0
    with workshop.on_terminal("logs", "toy", "-f", COLUMNS="120") as terminal:
        terminal.until("3/40")
        (tmp_path / "go").touch()
        assert terminal.finish() == 0
    assert re.search(r"train: .*\| 40/40 \[.*steps.*loss=.*lr=.*tokens/s=150\.1.*left=", terminal.screen), (
        terminal.screen
    )
    assert "fake train of" in terminal.screen


def test_a_run_without_a_log_says_so(workshop):
    with workshop.run("launch", workshop.spec(), FAKE_TRAIN="dies") and serving() as stub:
        spec = workshop.spec("url", **BENCHMARK_ONLY, model=None, serve={"url": stub.base_url})
        assert workshop.run("launch", spec).code == 0
    done = workshop.run("logs", "url")
    assert done.code == 3 and "has no log yet" in done.err
    assert "\\x1b[31mtorch.OutOfMemoryError" in workshop.run("logs", "toy", "-n", "1").out


# Stopping


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize(
    ("faults", "log", "sign"),
    [
        ({"FAKE_TRAIN": "hangs"}, "logs/train.log", "fake train"),
        ({"FAKE_API": "never"}, "benchmarks/*/api.log", "fake api"),
        ({"FAKE_API": "hangs"}, "benchmarks/*/api.log", "asked"),
    ],
    ids=["the model is loaded for training", "the server starts", "the server is asked"],
)
def test_a_run_is_stopped_at_any_stage_and_no_process_is_left(workshop, faults, log, sign, detached):
    spec = workshop.spec() if "FAKE_TRAIN" in faults else workshop.spec(**BENCHMARK_ONLY)
    command = workshop.start("launch", spec, *["--detach"] * detached, **faults)
    wait_for(lambda: any(sign in path.read_text("utf-8") for path in workshop.runs.glob(f"*/{log}")), sign)
    done = workshop.run("stop", "latest")
    assert workshop.left_over() == [] or not detached
    assert done.code == 0 and f"{workshop.only_run().name} is stopped: " in done.err, done.err
    assert "no process of it is left" in done.err and "orchestrator resume" in done.err
    assert workshop.record()["status"] == "stopped"
    assert command.finish().code == (0 if detached else 130)
    assert workshop.left_over() == []


def test_stop_keeps_a_checkpoint_and_says_which(background):
    done = background.run("stop", "toy", "--json")
    (checkpoint,) = background.only_run().glob("output/checkpoint-*")
    assert done.code == 0 and f"the newest whole checkpoint: {checkpoint.name}" in done.err
    assert f"kept: {checkpoint.name}" in done.json()["error"]
    assert background.left_over() == []
    benchmark = background.run("benchmark", "toy", "--testset", "captions_en_de", "--max-samples", "2")
    assert benchmark.code == 0, benchmark.err  # at once, as it is


@pytest.mark.parametrize("words", [("--now",), ("--grace", "1")])
def test_what_does_not_stop_is_ended_by_force_and_the_record_says_so(workshop, words):
    """The trainer ignores SIGTERM, and a worker of it too."""
    spec = workshop.spec(**LONG)
    assert workshop.run("launch", spec, "--detach", FAKE_TRAIN="stubborn", FAKE_STEP_S="0.02").code == 0
    wait_for(training_at_step(workshop, 3), "step 3")
    done = workshop.run("stop", "toy", *words)  # within its deadline, which is shorter than the usual grace
    assert done.code == 0 and workshop.left_over() == [], done.err
    assert workshop.record()["status"] == "stopped" and "there is no whole checkpoint" in done.err


def test_an_owner_that_does_not_answer_is_killed_and_the_run_reads_stopped(background):
    """Stopped by SIGSTOP, say: it hears nothing."""
    os.kill(background.record()["pid"], signal.SIGSTOP)
    done = background.run("stop", "toy", "--grace", "0")
    assert done.code == 0 and background.left_over() == [], done.err
    record = background.record()
    assert record["status"] == "stopped" and "ended by force" in record["error"]
    assert background.run("resume", "toy", "--set", "x=1").code == 2  # resume takes no overrides


def test_a_run_that_is_not_running_is_left_as_it_is(toy):
    before = toy.record()
    done = toy.run("stop", "toy")
    assert (done.code, done.err) == (0, f"{toy.only_run().name} is not running: done\n")
    assert toy.record() == before
    path = toy.only_run() / "record.json"
    path.write_text(json.dumps({**before, "host": "gpu-box", "status": "running", "ended_at": None}))
    elsewhere = toy.run("stop", "toy")
    assert elsewhere.code == 3 and "is running on gpu-box, which cannot be reached from here" in elsewhere.err
    both = toy.run("stop", "toy", "--now", "--grace", "3")
    assert both.code == 2 and "--grace" in both.err


def test_stop_touches_no_process_of_others_that_has_the_owner_s_pid_by_now(toy):
    other = psutil.Popen(["sleep", "60"])
    try:
        path = toy.only_run() / "record.json"
        stale = {"pid": other.pid, "process_start_ticks": 1, "status": "running", "ended_at": None}
        path.write_text(json.dumps({**toy.record(), **stale}))
        done = toy.run("stop", "toy")
        assert done.code == 0 and "is not running: interrupted" in done.err
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_processes_of_a_run_are_found_whatever_session_and_parents_they_have(workshop):
    """As ranks of torchrun whose torchrun was killed."""
    spec = workshop.spec(**LONG)
    assert workshop.run("launch", spec, "--detach", FAKE_TRAIN="stubborn", FAKE_STEP_S="0.02").code == 0
    wait_for(training_at_step(workshop, 3), "step 3")
    run = workshop.only_run()
    orphan = psutil.Popen(
        ["sh", "-c", "setsid sleep 60 & wait"],
        env={**workshop.full_environment({}), "ORCHESTRATOR_RUN": str(run)},
        start_new_session=True,
    )
    wait_for(lambda: orphan.children(), "its child")
    orphan.kill()
    orphan.wait()
    done = workshop.run("stop", "toy", "--now")
    assert done.code == 0 and workshop.left_over() == [], done.err
