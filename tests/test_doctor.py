"""What is wrong, the next step, and what --clean takes away. Run: pytest tests/test_doctor.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.lifecycle.orphans import orphans, unfinished_files
from orchestrator.processes.process_tree import RUN_ENV
from orchestrator.runs.rundir import Workspace
from tests.workshop import assert_none_left, training_at_step

OLD_S = 3600


def findings(done, severity):
    return [each for each in done.json()["findings"] if each["severity"] == severity]


def old(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - OLD_S, time.time() - OLD_S))
    return path


def sleeper(**environment: str) -> "subprocess.Popen[bytes]":
    """A process that some shell started, in a session of its own, and whose parent is gone."""
    return subprocess.Popen(["sleep", "600"], env={**os.environ, **environment}, start_new_session=True)


def test_a_machine_in_order_has_no_error_and_it_says_what_it_runs_with(toy):
    done = toy.run("doctor")
    assert done.code == 0, done.out
    for text in (
        "installation\n",
        "machine\n",
        "workspace\n",
        str(toy.cli),
        "llamafactory 0.",
        "locks and renames work",
    ):
        assert text in done.out
    assert "error" not in done.out
    assert done.err == ""


def test_what_is_wrong_is_an_error_with_the_next_step(toy):
    (toy.only_run() / "record.json").write_text("{")
    done = toy.run(
        "doctor", "--json",
        ORCHESTRATOR_LLAMAFACTORY="/nowhere", ORCHESTRATOR_ARCHIVES="/none", ORCHESTRATOR_CACH="x",
        ORCHESTRATOR_API_KEY="sk-secret",
    )  # fmt: skip
    assert done.code == 3
    errors = findings(done, "error")
    assert [each["area"] for each in errors] == ["installation", "settings", "workspace"]
    assert "/nowhere" in errors[0]["message"] and errors[0]["remedy"]
    assert "/none does not exist" in errors[1]["remedy"]
    assert f"orchestrator rm --all {toy.only_run().name}" in errors[2]["remedy"]
    (unknown,) = findings(done, "warning")
    assert unknown["message"] == "nothing reads ORCHESTRATOR_CACH; did you mean 'CACHE'?"
    assert "sk-secret" not in done.out


def test_without_a_workspace_the_rest_is_looked_at_and_clean_needs_one(toy, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    done = toy.run("doctor", "--json", cwd=folder)
    assert done.code == 0 and "no workspace here" in done.json()["findings"][-1]["message"]
    assert toy.run("doctor", "--clean", cwd=folder).code == 2
    assert toy.run("doctor", "--workspace", folder).code == 2


def test_gpus_that_torch_does_not_see_are_an_error(toy, tmp_path):
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\ncase $1 in --query*) echo 'NVIDIA H100, 550.54';; *) echo 'CUDA Version: 12.4';; esac\n"
    )
    program.chmod(0o755)
    done = toy.run("doctor", "--json", PATH=f"{program.parent}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES=None)
    assert done.code == 3, done.out
    (error,) = findings(done, "error")
    assert "sees 0 of 1 GPUs" in error["message"] and "pytorch.org" in error["remedy"]
    assert any(
        "NVIDIA H100, 550.54; its driver takes CUDA up to 12.4" in each["message"] for each in findings(done, "ok")
    )


def test_what_a_killed_owner_left_running_is_named_and_ended_by_clean(workshop):
    """The watcher is killed too, so that nobody else ends the training."""
    command = workshop.start(
        "launch", workshop.spec(train={"max_steps": 100_000}), FAKE_STEP_S="0.02", FAKE_TRAIN="stubborn"
    )
    command.until(training_at_step(workshop, 1), "step 1")
    run = workshop.only_run().name
    assert "left running" not in workshop.run("doctor").out
    command.interrupt(signal.SIGSTOP)  # it would start the watcher again
    for process in workshop.processes():
        if "orchestrator.processes.watch" in process.cmdline():
            process.kill()
    command.popen.kill()
    command.popen.wait()
    said = workshop.run("doctor", "--json")
    assert said.code == 0
    (warning,) = findings(said, "warning")
    assert f"{run} has no owner, and left running: " in warning["message"] and "--clean" in warning["remedy"]
    assert any(f"orchestrator resume {run}" in each["remedy"] for each in findings(said, "note"))
    for process in workshop.processes():  # a stubborn one would take all of the grace
        if "llamafactory-cli" in " ".join(process.cmdline()):
            process.send_signal(signal.SIGKILL)
    done = workshop.run("doctor", "--clean", "--json", timeout_s=120)
    assert [line.partition(": ")[0] for line in done.json()["cleaned"]] == [f"ending what {run} left running"]
    assert_none_left(workshop)
    assert "nothing to clean" in workshop.run("doctor", "--clean").err


def test_processes_of_runs_that_are_at_work_or_of_others_are_left_alone(toy):
    """A server that a benchmark of a finished run has started; another workspace's; one without a run."""
    run, place = toy.only_run(), Workspace(toy.root)
    script = "import subprocess, sys; sys.argv[1:2] == ['x']; subprocess.run(['sleep', '600'])"
    folder = toy.root.parent / "orchestrator"
    folder.mkdir()
    (folder / "orchestrator").write_text(f"{script}\n")
    ours = {RUN_ENV: str(run)}
    benchmark = subprocess.Popen(
        [sys.executable, str(folder / "orchestrator"), "benchmark"], env={**os.environ, **ours}, start_new_session=True
    )
    others = [sleeper(**{RUN_ENV: "/elsewhere/runs/toy-20261124-101500"}), sleeper()]
    left = sleeper(**ours, ORCHESTRATOR_TEST="left")
    gone = sleeper(**{RUN_ENV: str(toy.runs / "removed-20261124-101500")})
    try:
        while (
            len(found := orphans(place)) < 2
            or not subprocess.run(["pgrep", "-P", str(benchmark.pid)], capture_output=True, check=False).stdout
        ):
            time.sleep(0.02)
        assert [(each.run.id, [process.pid for process in each.processes]) for each in found] == [
            ("removed-20261124-101500", [gone.pid]),
            (run.name, [left.pid]),
        ]
        record = json.loads((run / "record.json").read_text())
        elsewhere = {**record, "host": "gpu-box", "status": "running", "ended_at": None}
        (run / "record.json").write_text(json.dumps(elsewhere))
        assert [each.run.id for each in orphans(place)] == ["removed-20261124-101500"]
    finally:
        for process in (benchmark, *others, left, gone):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_files_of_writers_that_were_killed_are_removed_and_no_others(toy):
    run, cache = toy.only_run(), toy.root.parent / "cache"
    benchmark = next((run / "benchmarks").iterdir())
    garbage = {
        old(run / ".record.json.abcd_123"),
        old(benchmark / ".scores.json.a1b2c3d4"),
        old(toy.runs / ".spec.schema.json.00000000"),
        old(cache / "hashes" / ".0123.json.a1b2c3d4"),
        old(toy.runs / ".probe-x" / "lock").parent,
    }
    os.utime(toy.runs / ".probe-x", (time.time() - OLD_S, time.time() - OLD_S))
    kept = {
        old(run / ".record.lock"), old(run / ".mine.json.backup"), old(run / "output" / ".x.json.a1b2c3d4"),
        old(toy.root / "dataset_info" / ".x.yaml.a1b2c3d4"), old(run / "notes.json.a1b2c3d4"),
        old(toy.runs / "mine-20261124-101500" / "notes.txt"),
    }  # fmt: skip
    fresh = run / ".notes.json.a1b2c3d4"
    fresh.write_text("being written")
    link = run / ".spec.yaml.a1b2c3d4"
    link.symlink_to(toy.root / "runs" / "toy.yaml")
    assert set(unfinished_files(Workspace(toy.root), cache)) == garbage
    said = toy.run("doctor")
    assert "files of writers that were killed, 5 of them" in said.out and all(path.exists() for path in garbage)
    done = toy.run("doctor", "--clean", "--json")
    assert len(done.json()["cleaned"]) == 5 and findings(done, "warning") == []
    assert not any(path.exists() for path in garbage)
    assert all(path.exists() for path in (*kept, fresh, link))
