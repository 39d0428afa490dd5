"""What is wrong, the next step, and what --clean ends. Run: pytest tests/test_doctor.py."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

from orchestrator.lifecycle.doctor import orphans
from orchestrator.processes.process_tree import RUN_ENV
from orchestrator.runs.rundir import Workspace
from tests.runs_on_disk import on_path
from tests.workshop import wait_for


def findings(done, severity):
    return [each for each in done.json()["findings"] if each["severity"] == severity]


def test_a_machine_in_order_has_no_error_and_what_is_wrong_comes_with_the_next_step(toy, tmp_path):
    fine = toy.run("doctor")
    assert fine.code == 0 and "error" not in fine.out and fine.err == "", fine.out
    fragments = [f"ok       {area}: " for area in ("installation", "machine", "workspace")]
    assert [text for text in (*fragments, str(toy.cli), "llamafactory 0.", "with 1 runs") if text not in fine.out] == []
    (toy.only_run() / "record.json").write_text("{")
    commands = [("doctor", "--json"), ("doctor", "--workspace", tmp_path), ("doctor", "--clean")]
    done, outside, clean = toy.run_together(commands, ORCHESTRATOR_LLAMAFACTORY="/nowhere")
    assert done.code == 3
    errors = findings(done, "error")
    assert [each["area"] for each in errors] == ["installation", "workspace"]
    assert "/nowhere" in errors[0]["message"] and errors[0]["remedy"]
    assert f"orchestrator rm --all {toy.only_run().name}" in errors[1]["remedy"]
    assert outside.code == 2 and "nothing to clean" in clean.err
    nowhere = toy.run("doctor", "--json", cwd=tmp_path)
    assert nowhere.code == 0 and "no workspace here" in nowhere.json()["findings"][-1]["message"]


def test_gpus_that_torch_does_not_see_are_an_error(toy, tmp_path, monkeypatch):
    script = "case $1 in --query*) echo 'NVIDIA H100, 550.54';; *) echo 'CUDA Version: 12.4';; esac"
    on_path(monkeypatch, tmp_path / "bin", "nvidia-smi", script)
    done = toy.run("doctor", "--json", CUDA_VISIBLE_DEVICES=None)
    assert done.code == 3, done.out
    (error,) = findings(done, "error")
    assert "it sees no GPU with this driver" in error["message"] and "pytorch.org" in error["remedy"]
    assert any("H100, 550.54; its driver takes CUDA up to 12.4" in each["message"] for each in findings(done, "ok"))


def test_processes_of_runs_that_are_at_work_or_of_others_are_left_alone(toy):
    run, place, started = toy.only_run(), Workspace(toy.root), []

    def start(*argv: str, folder: str | None) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, **({RUN_ENV: folder} if folder else {})}
        started.append(subprocess.Popen(argv, env=environment, start_new_session=True))
        return started[-1]

    (toy.root.parent / "orchestrator").write_text("import subprocess; subprocess.run(['sleep', '600'])\n")
    benchmark = start(sys.executable, str(toy.root.parent / "orchestrator"), "benchmark", folder=str(run))
    for folder in ("/elsewhere/runs/toy-20261124-101500", None):
        start("sleep", "600", folder=folder)
    left = start("sleep", "600", folder=str(run))
    gone = start("sleep", "600", folder=str(toy.runs / "removed-20261124-101500"))
    try:
        wait_for(lambda: subprocess.run(["pgrep", "-P", str(benchmark.pid)]).returncode == 0, "the benchmark's server")
        wait_for(lambda: len(orphans(place)) == 2, "both")
        found = {run: [process.pid for process in processes] for run, processes in orphans(place).items()}
        assert found == {"removed-20261124-101500": [gone.pid], run.name: [left.pid]}
        elsewhere = {**toy.record(), "host": "gpu-box", "status": "running", "ended_at": None}
        (run / "record.json").write_text(json.dumps(elsewhere))
        assert list(orphans(place)) == ["removed-20261124-101500"]
        done = toy.run("doctor", "--clean", "--json")
        assert done.json()["cleaned"] == [f"ending what removed-20261124-101500 left running: {gone.pid} (sleep)"]
        assert gone.wait(10) == -signal.SIGTERM and left.poll() is None
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
