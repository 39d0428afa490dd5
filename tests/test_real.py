"""The real llamafactory-cli on the CPU, on a tiny random model; tests share runs, as its imports take some 7 s."""

import json
import math
import shutil
import signal
import subprocess
import sys

import pytest

from orchestrator.models.model_files import adapter_problems, model_problems
from orchestrator.processes.ports import free_port
from orchestrator.runs.rundir import RunDir
from tests.workshop import PATIENT_S, assert_none_left, loss_curve, told_to_stop, training_at_step, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TRAIN = {
    "learning_rate": 5.0e-2, "lora_rank": 4, "max_steps": 5, "max_samples": 40, "per_device_train_batch_size": 2,
    "logging_steps": 1, "save_strategy": "no", "report_to": "none",
}  # fmt: skip
LONG = {**TRAIN, "max_steps": 1_000_000}
torchrun_works = pytest.mark.skipif(
    any(char.isspace() for char in sys.prefix),
    reason="LLaMA-Factory's launcher splits torchrun's command at the blank in the installation's path",
)
BENCHMARK = {"testset": "captions_en_de", "max_samples": 6, "max_tokens": 8, "n_bootstrap": 10}
OUTPUT = "output-captions_en_de-test"


@pytest.fixture(scope="module")
def launched(place):
    """A finished run with benchmarks of the base model and the adapter."""
    workshop = place()
    done = workshop.run("launch", workshop.spec(train=TRAIN, benchmark=[{**BENCHMARK, "base_model": True}]))
    assert done.code == 0, done.err
    return workshop, workshop.only_run()


def translations(run, benchmark=OUTPUT):
    return (run / "benchmarks" / benchmark / "hypotheses.txt").read_text("utf-8").splitlines()


def test_a_real_launch_trains_serves_and_scores(launched):
    workshop, run = launched
    record = workshop.record(run)
    assert (record["status"], record["training"]["steps"], record["training"]["total_steps"]) == ("done", 5, 5)
    losses = record["training"]["logged_losses"]
    assert len(losses) == 5 and all(map(math.isfinite, losses)) and len(set(losses)) == 5
    assert adapter_problems(run / "output") == []
    assert [(each["of"], each["n_segments"]) for each in record["benchmarks"]] == [("base", 6), ("output", 6)]
    base, output = translations(run, "base-captions_en_de-test"), translations(run)
    assert len(set(base)) > 1 and all(base) and base != output  # five steps at a high rate change what the model says
    assert workshop.left_over() == []


def test_a_rerun_gives_the_same_losses_and_the_same_translations(launched):
    workshop, past = launched
    done = workshop.run("rerun", past.name, "--strict", "--set", "benchmark.0.base_model=false")
    assert done.code == 0 and "the first 5 logged losses are the same" in done.err, done.err
    (again,) = [folder for folder in workshop.run_folders() if workshop.record(folder)["rerun_of"] == past.name]
    then, now = workshop.record(past), workshop.record(again)
    assert now["training"]["logged_losses"] == then["training"]["logged_losses"]
    assert translations(again) == translations(past)
    assert now["benchmarks"][0]["scores"] == then["benchmarks"][1]["scores"]
    # the adapter's hash in the server's name is that of weights which are the same to the bit
    names = [record["environment"][f"api {OUTPUT}"]["API_MODEL_NAME"] for record in (then, now)]
    assert names[0].partition(":")[2] == names[1].partition(":")[2]


def test_an_exported_model_translates_as_its_adapter_does(launched):
    workshop, run = launched
    assert workshop.run("export", run.name).code == 0
    assert model_problems(run / "export") == []
    done = workshop.run("benchmark", f"{run.name}@export")
    assert done.code == 0, done.err
    assert translations(run, "export-captions_en_de-test") == translations(run)


def test_a_served_run_answers_curl_and_a_chat_by_the_openai_client(launched):
    workshop, run = launched
    command = workshop.start("serve", run.name, "--port", str(port := free_port()), ORCHESTRATOR_API_KEY="sk-test")
    command.until(lambda: "Ctrl-C" in command.err, "ready")
    (curl,) = command.out.splitlines()
    assert "sk-test" not in command.out  # the key's variable is named
    if shutil.which("curl"):
        environment = workshop.full_environment({"ORCHESTRATOR_API_KEY": "sk-test"})
        answer = subprocess.run(["sh", "-c", curl], env=environment, capture_output=True, text=True, timeout=60)
        assert json.loads(answer.stdout)["choices"][0]["message"]["content"], answer
    source = workshop.root.parent / "input.txt"
    source.write_text("Hello!\nAnd now?\nexit\n")
    url = f"http://127.0.0.1:{port}/v1"
    with source.open("rb") as stdin:
        chat = workshop.run("chat", url, "--max-tokens", "64", stdin=stdin, ORCHESTRATOR_API_KEY="sk-test")
    assert chat.code == 0 and "error" not in chat.out, chat
    first, second = chat.out.split("> ")[1:3]
    assert first.strip() and second.strip()
    command.interrupt(signal.SIGINT)
    assert command.finish().code == 130
    assert_none_left(workshop)


@torchrun_works
def test_kill_9_leaves_no_rank_of_torchrun(place):
    """One rank: of two one may wait for the other, which has left, until the grace is over."""
    workshop = place()
    train = {**LONG, "ddp_backend": "gloo"}
    command = workshop.start("launch", workshop.spec(train=train, compute={"nproc_per_node": 1}))
    command.until(training_at_step(workshop, 3), "step 3")
    assert len(workshop.children(command)) >= 3  # launcher, torchrun, rank
    command.popen.kill()
    command.popen.wait()
    assert_none_left(workshop)
    (listed,) = workshop.run("list", "--json").json()
    assert listed["status"] == "interrupted"


SLOW = {**TRAIN, "learning_rate": 5.0e-3, "max_steps": 40, "gradient_accumulation_steps": 4, "save_strategy": "steps"}
SLOW |= {"save_steps": 5, "max_samples": 500, "finetuning_type": "full", "lora_target": None}


@pytest.fixture(scope="module")
def broken_off(place):
    """Full finetuning, once in one go, once killed, resumed, ended by Ctrl-C, and resumed to a benchmark."""
    whole, broken = place(), place()
    unbroken = whole.start("launch", whole.spec(train=SLOW, benchmark=None))
    assert broken.run("launch", broken.spec(train=SLOW, benchmark=[BENCHMARK]), "--detach").code == 0
    wait_for(training_at_step(broken, 7), "step 7", PATIENT_S)
    for process in broken.processes():
        process.kill()
    assert_none_left(broken)
    command = broken.start("resume", "toy")

    def tell():
        wait_for(lambda: "step" in broken.run("show", "toy").out, "steps in what is shown")
        command.interrupt(signal.SIGINT)
        command.until(lambda: "stopping: the training saves a checkpoint first" in command.err, "the stop")

    command.until(lambda: _trained_on(broken), "steps of the second attempt")
    told_to_stop([each for each in broken.processes() if "train.yaml" in each.cmdline()], tell)
    stopped = command.finish()
    record, left_over = broken.record(), broken.left_over()
    (kept,) = [path for path in RunDir(broken.only_run()).checkpoints() if f"kept: {path.name}\n" in stopped.err]
    names = {path.name for path in kept.iterdir()}
    done = {"stopped": stopped, "record": record, "kept": kept, "names": names}
    done |= {"left_over": left_over, "last": broken.run("resume", "toy")}
    assert unbroken.finish().code == 0
    return whole, broken, done


def _trained_on(workshop):
    attempts = workshop.record()["attempts"]
    log = (workshop.only_run() / "output" / "trainer_log.jsonl").read_bytes()
    return len(attempts) == 2 and log[attempts[1]["log_start_bytes"] or len(log) :].count(b"\n") >= 2


def test_a_run_that_was_killed_and_stopped_comes_to_the_same_end_to_the_bit_and_is_benchmarked(broken_off):
    whole, broken, done = broken_off
    assert done["last"].code == 0, done["last"].err
    record = broken.record()
    assert record["status"] == "done"
    attempts = [(each["status"], (each["from_checkpoint"] or "").partition("-")[0]) for each in record["attempts"]]
    assert attempts == [("interrupted", ""), ("stopped", "checkpoint"), ("done", "checkpoint")]
    assert record["attempts"][1]["from_step"] in (5, 10)
    first, second = whole.record()["training"], record["training"]
    assert (second["steps"], second["total_steps"]) == (first["steps"], first["total_steps"]) == (40, 40)
    assert second["logged_losses"] == first["logged_losses"]
    assert second["train_loss"] is None  # transformers sums up the losses since the resume alone
    losses = [loss_curve(each.only_run()) for each in (whole, broken)]
    assert losses[0] == losses[1] and len(losses[0]) == 40
    weights = [(each.only_run() / "output" / "model.safetensors").read_bytes() for each in (whole, broken)]
    assert weights[0] == weights[1]
    run = broken.only_run()
    assert model_problems(run / "output") == [] and len(translations(run)) == 6
    assert record["environment"][f"api {OUTPUT}"]["API_MODEL_NAME"].startswith(f"{run.name}@output:")


def test_a_real_training_that_is_stopped_leaves_a_complete_checkpoint(broken_off):
    _, _, done = broken_off
    stopped, kept = done["stopped"], done["kept"]
    assert stopped.code == 130 and "Traceback" not in stopped.err
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"} <= done["names"]
    assert "checkpoint-is-incomplete.txt" not in done["names"] and model_problems(kept) == []
    step = json.loads((kept / "trainer_state.json").read_bytes())["global_step"]
    assert step >= 7 and kept.name == f"checkpoint-{step}"
    assert (done["record"]["status"], done["record"]["benchmarks"], done["left_over"]) == ("stopped", [], [])
