"""Launch, stop, fail and repeat a run as a user does, with a fake llamafactory-cli. Run: pytest tests/test_pipeline.py.

Workspace and llamafactory-cli lie in folders with a space and a quote in their names.
"""

import hashlib
import importlib.metadata
import json
import re
import shutil
import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from orchestrator.planning.spec_file import load_spec
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.spec import spec_sha256
from tests.fake_llamafactory import OUT_OF_MEMORY
from tests.workshop import CAPTIONS, assert_none_left, new_workshop, training_at_step, wait_for

LONG = {"train": {"max_steps": 100_000}}
BENCHMARK_ONLY = {"train": None, "dataset": None}


@pytest.fixture(scope="module", autouse=True)
def faulty(tmp_path_factory, fake_cli):
    """Launches that fail by themselves, under way while other tests run: retries alone take ten seconds."""
    api = ("500", "html", "empty", "late-death", "401", "models-500", "models-html", "other")
    cases = [("FAKE_TRAIN", mode) for mode in ("silent", "truncated")] + [("FAKE_API", mode) for mode in api]
    commands = {}
    for variable, mode in cases:
        workshop = new_workshop(tmp_path_factory.mktemp(mode), fake_cli)
        benchmark_only = {**BENCHMARK_ONLY, "benchmark": [{"testset": "captions_en_de", "max_samples": 4}]}
        spec = workshop.spec() if variable == "FAKE_TRAIN" else workshop.spec(**benchmark_only)
        commands[mode] = (workshop, workshop.start("launch", spec, **{variable: mode}))
    yield commands
    for workshop, command in commands.values():
        command.popen.kill()
        command.popen.wait()
        assert_none_left(workshop)


# A launch that goes well


def test_a_launch_leaves_the_files_that_the_design_names(launched):
    run = launched[0].only_run()
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    own = {"spec.yaml", "record.json", ".record.lock", "train.yaml", "api.yaml", "dataset_info.json", "command.txt"}
    own.add("defaults.json")
    own |= {"data/captions_en_de.jsonl", "logs/train.log"}
    benchmark = ("hypotheses.jsonl", "scores.json", "sources.txt", "references.txt", "hypotheses.txt")
    for label in ("base", "output"):
        own |= {f"benchmarks/{label}-captions_en_de-test/{name}" for name in (*benchmark, "api.yaml", "api.log")}
    assert {name for name in files if not name.startswith("output/")} == own
    assert {"output/adapter_model.safetensors", "output/trainer_log.jsonl", "output/train_results.json"} <= files


def test_a_template_that_is_left_out_is_found_once_and_kept_in_the_resolved_spec(workshop):
    """The saved spec says which and why. A rerun takes it from there, and null for what was not found."""
    shutil.copytree(workshop.root / "models" / "tiny", workshop.root / "models" / "SmolLM2-135M-Instruct")
    spec = workshop.spec()
    for name, template in (("SmolLM2-135M-Instruct", "smollm2"), ("tiny", None)):
        text = spec.read_text("utf-8").replace("  template: smollm2\n", "").replace("tiny", name)
        (workshop.runs / "left-out.yaml").write_text(text.replace("name: toy", f"name: {name.lower()}"), "utf-8")
        done = workshop.run("launch", workshop.runs / "left-out.yaml", "--no-benchmark")
        assert done.code == 0 and "warning: model.template: none given" in done.err, done.err
        saved = next(workshop.runs.glob(f"{name.lower()}-*")) / "spec.yaml"
        assert yaml.safe_load(saved.read_text("utf-8"))["model"]["template"] == template
        assert "# model.template was not given: LLaMA-Factory lists" in saved.read_text("utf-8")
        assert workshop.calls("train")[-1]["arguments"].get("template") == template
        again = workshop.run("rerun", name.lower(), "--strict", "--no-benchmark")
        assert again.code == 0 and "nothing differs" in again.err, again.err
        assert workshop.calls("train")[-1]["arguments"].get("template") == template


def test_the_record_says_what_ran_with_what_and_what_came_of_it(launched):
    workshop, _ = launched
    run = workshop.only_run()
    record = workshop.record()
    assert (record["status"], record["error"], record["name"]) == ("done", None, "toy")
    assert record["id"] == run.name
    assert record["spec_file"] == str(workshop.runs / "toy.yaml")
    assert record["spec_sha256"] == spec_sha256(load_spec(run / "spec.yaml"))
    assert datetime.fromisoformat(record["created_at"]) <= datetime.fromisoformat(record["ended_at"])
    versions = record["facts"]["versions"]
    for package in ("llamafactory", "torch", "transformers", "peft", "datasets", "sacrebleu"):
        assert versions[package] == importlib.metadata.version(package)
    assert [(each["split"], each["pairs"]) for each in record["facts"]["data"]] == [("train", 500), ("test", 100)]
    assert re.fullmatch(r"[0-9a-f]{64}", record["facts"]["model_sha256"])
    assert record["commands"]["train"] == [str(workshop.cli), "train", "train.yaml"]
    assert record["training"]["steps"] == record["training"]["total_steps"] == 5
    log = [json.loads(line) for line in (run / "output" / "trainer_log.jsonl").read_text().splitlines()]
    assert record["training"]["logged_losses"] == [line["loss"] for line in log if "loss" in line]
    assert [(each["of"], each["status"], each["n_segments"]) for each in record["benchmarks"]] == [
        ("base", "complete", 6),
        ("output", "complete", 6),
    ]
    for each in record["benchmarks"]:
        assert [score["metric"] for score in each["scores"]] == ["bleu", "chrf", "chrf++", "ter"]
        assert all("version:" in score["signature"] and score["ci95"] for score in each["scores"])


def test_the_numbers_shown_are_those_of_scores_json(launched):
    """The table of the terminal and the record do not round or mix up on their own."""
    workshop, done = launched
    for label in ("base", "output"):
        folder = workshop.only_run() / "benchmarks" / f"{label}-captions_en_de-test"
        scores = {each["metric"]: each for each in json.loads((folder / "scores.json").read_bytes())["scores"]}
        row = next(line for line in done.out.splitlines() if line.startswith(label))
        for metric in ("bleu", "chrf", "ter"):
            low, high = scores[metric]["ci95"]
            assert f"{scores[metric]['score']:.1f} [{low:.1f}, {high:.1f}]" in row
            assert scores[metric]["signature"] in done.out


def test_llamafactory_gets_paths_that_hold_in_the_run_folder_and_the_data_as_prepared(launched):
    workshop, _ = launched
    run = workshop.only_run()
    (call,) = workshop.calls("train")
    assert call["cwd"] == str(run)
    assert call["arguments"]["model_name_or_path"] == str(workshop.root / "models" / "tiny")
    assert (call["arguments"]["output_dir"], call["arguments"]["seed"]) == ("output", 42)
    assert call["arguments"]["enable_jit_checkpoint"] is True
    assert call["environment"]["PATH"].split(":")[0] == str(workshop.cli.parent)
    first = json.loads((run / "data" / "captions_en_de.jsonl").read_text().splitlines()[0])
    sides = [(CAPTIONS / f"train.{side}").read_text("utf-8").splitlines()[0] for side in ("en", "de")]
    assert [first["input"], first["output"]] == sides


def test_the_benchmark_asks_with_the_prompt_of_the_training(launched):
    workshop, _ = launched
    run = workshop.only_run()
    trained = json.loads((run / "data" / "captions_en_de.jsonl").read_text().splitlines()[0])
    result = json.loads((run / "benchmarks" / "output-captions_en_de-test" / "scores.json").read_bytes())
    assert result["request"]["instruction"] == trained["instruction"]
    assert result["request"]["sent"]["temperature"] == 0


def test_each_server_is_private_has_a_key_of_its_own_and_says_what_it_serves(launched):
    workshop, _ = launched
    base, output = (call["environment"] for call in workshop.calls("api"))
    assert base["API_KEY"] != output["API_KEY"] and len(base["API_KEY"]) >= 20
    for environment in (base, output):
        assert (environment["API_HOST"], environment["API_VERBOSE"]) == ("127.0.0.1", "0")
    run = workshop.only_run().name
    assert re.fullmatch(rf"{run}@base:[0-9a-f]{{12}}", base["API_MODEL_NAME"])
    assert re.fullmatch(rf"{run}@output:[0-9a-f]{{12}}", output["API_MODEL_NAME"])


def test_no_secret_is_in_the_run_folder_or_on_a_command_line(launched):
    workshop, done = launched
    secrets = [call["environment"]["API_KEY"] for call in workshop.calls("api")] + ["hf_secret"]
    places = {str(path): path.read_bytes() for path in workshop.only_run().rglob("*") if path.is_file()}
    places |= {"command lines": json.dumps([call["argv"] for call in workshop.calls("api")]).encode()}
    places |= {"output": (done.out + done.err).encode()}
    assert [(name, secret) for name, text in places.items() for secret in secrets if secret.encode() in text] == []


def test_a_finished_launch_leaves_no_process(launched):
    assert launched[0].left_over() == []


def test_progress_without_a_terminal_is_plain_lines_and_results_alone_are_on_stdout(launched):
    workshop, done = launched
    last_loss = workshop.record()["training"]["logged_losses"][-1]
    assert re.search(rf"train: 5/5 steps in .*, loss {last_loss:.4g},", done.err)  # its line came in two halves
    assert "translate: 6/6 sentences" in done.err
    assert not {"\r", "\x1b"} & set(done.err + done.out)
    assert "steps" not in done.out and done.out.rstrip().endswith(f"done: {workshop.only_run()}")


def test_a_dry_run_shows_the_command_and_leaves_nothing(workshop):
    done = workshop.run("launch", workshop.spec(), "--dry-run", "--set", "train.learning_rate=1e-3")
    assert done.code == 0 and done.out.startswith("llamafactory-cli train --model_name_or_path ")
    assert "--learning_rate 0.001 " in done.out
    assert workshop.run_folders() == [] and workshop.calls("train") == []


def test_overrides_are_in_the_record_and_in_what_is_run_and_no_benchmark_trains_only(workshop):
    done = workshop.run("launch", workshop.spec(), "--no-benchmark", "--set", "train.max_steps=2", "--set", "seed=7")
    assert done.code == 0, done.err
    record, (call,) = workshop.record(), workshop.calls("train")
    assert record["status"] == "trained" and workshop.calls("api") == []
    assert record["overrides"] == ["train.max_steps=2", "seed=7"]
    assert (record["seed"], record["training"]["steps"]) == (7, 2)
    assert (call["arguments"]["seed"], call["arguments"]["max_steps"]) == (7, 2)


def test_a_spec_without_training_benchmarks_the_model_as_it_is(workshop):
    done = workshop.run("launch", workshop.spec(**BENCHMARK_ONLY))
    assert done.code == 0, done.err
    assert [each["of"] for each in workshop.record()["benchmarks"]] == ["base"]
    assert workshop.calls("train") == []


def test_launches_of_one_second_get_a_folder_each(workshop):
    """The second's name is taken already, and two take it at once: each run is in a folder of its own."""
    spec = workshop.spec()
    now = datetime.now()
    for second in range(-1, DEADLINE_OF_NAMES_S):
        (workshop.runs / f"toy-{now + timedelta(seconds=second):%Y%m%d-%H%M%S}").mkdir()
    commands = [workshop.start("launch", spec, "--no-benchmark") for _ in range(3)]
    done = [command.finish() for command in commands]
    assert [each.code for each in done] == [0, 0, 0], done
    records = [json.loads(path.read_bytes()) for path in workshop.runs.glob("*/record.json")]
    assert len({record["id"] for record in records}) == 3
    assert all(re.fullmatch(r"toy-\d{8}-\d{6}-\d", record["id"]) for record in records)
    assert all(record["status"] == "trained" and record["training"]["steps"] == 5 for record in records)
    assert workshop.run("show", "toy").code == 0  # the name still means the newest of them


DEADLINE_OF_NAMES_S = 60


# Stopping


def test_a_stop_while_training_keeps_a_checkpoint(workshop, tmp_path):
    commands = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        place = new_workshop(tmp_path / number.name, workshop.cli)
        commands.append((number, place, place.start("launch", place.spec(**LONG), FAKE_STEP_S="0.02")))
    for number, place, command in commands:
        command.until(training_at_step(place, 3), "step 3")
        command.interrupt(number)
    for _, place, command in commands:
        done = command.finish()
        assert done.code == 130
        run = RunDir(place.only_run())
        (checkpoint,) = run.checkpoints()
        assert (checkpoint / "trainer_state.json").is_file()
        assert not (checkpoint / "checkpoint-is-incomplete.txt").exists()
        assert f"kept: {checkpoint.name}" in done.err and "Traceback" not in done.err
        assert f"try: orchestrator resume {run.id} goes on; orchestrator benchmark {run.id} takes it" in done.err
        record = place.record()
        assert record["status"] == "stopped" and checkpoint.name in record["error"] and record["ended_at"]
        assert record["benchmarks"] == [] and place.calls("api") == []
        assert place.left_over() == []


@pytest.mark.parametrize(
    ("faults", "log", "sign"),
    [
        ({"FAKE_TRAIN": "hangs"}, "logs/train.log", "fake train"),
        ({"FAKE_API": "never"}, "benchmarks/*/api.log", "fake api"),
        ({"FAKE_API": "hangs"}, "benchmarks/*/api.log", "asked"),
    ],
    ids=["the model is loaded for training", "the server starts", "the server is asked"],
)
def test_a_stop_at_any_other_stage_says_stopped_and_leaves_no_process(workshop, tmp_path, faults, log, sign):
    trains = "FAKE_TRAIN" in faults
    commands = []
    for number in (signal.SIGINT, signal.SIGTERM):
        place = new_workshop(tmp_path / number.name, workshop.cli)
        spec = place.spec() if trains else place.spec(**BENCHMARK_ONLY)
        commands.append((number, place, place.start("launch", spec, **faults)))
    for number, place, command in commands:

        def has_come(place=place):
            return any(sign in path.read_text("utf-8") for path in place.runs.glob(f"*/{log}"))

        command.until(has_come, sign)
        command.interrupt(number)
    for number, place, command in commands:
        done = command.finish()
        assert done.code == 130 and "Traceback" not in done.err, done.err
        record = place.record()
        assert (record["status"], bool(record["error"])) == ("stopped", True)
        assert place.left_over() == []
        if trains:
            assert "it had not come to a checkpoint" in done.err
            assert "orchestrator benchmark" not in done.err  # there is nothing to benchmark
        else:
            assert f"stopped by {number.name}" in done.err


def test_a_second_ctrl_c_ends_a_training_that_does_not_stop(workshop):
    """It does not wait for the grace of a clean stop, and a worker process goes with it."""
    command = workshop.start("launch", workshop.spec(**LONG), FAKE_TRAIN="stubborn", FAKE_STEP_S="0.02")
    command.until(training_at_step(workshop, 3), "step 3")
    command.interrupt(signal.SIGINT)
    wait_for(lambda: "Ctrl-C" in command.err, "the word that it is being stopped")
    assert command.popen.poll() is None
    command.interrupt(signal.SIGINT)
    done = command.finish()
    assert (done.code, workshop.record()["status"]) == (130, "stopped")
    assert_none_left(workshop)


@pytest.mark.skipif(not Path("/proc").exists(), reason="a parent's death is signalled on Linux only")
@pytest.mark.parametrize("stage", ["training", "serving"])
def test_kill_9_leaves_no_process_and_a_run_that_reads_interrupted(workshop, stage):
    if stage == "training":
        command = workshop.start("launch", workshop.spec(**LONG), FAKE_STEP_S="0.02")
        command.until(training_at_step(workshop, 3), "step 3")
    else:
        command = workshop.start("launch", workshop.spec(**BENCHMARK_ONLY), FAKE_API="hangs")
        logs = "*/benchmarks/*/api.log"
        command.until(lambda: any(b"asked" in path.read_bytes() for path in workshop.runs.glob(logs)), "a request")
    assert len(workshop.children(command)) == 1
    active = {"training": "running", "serving": "benchmarking"}
    assert [each["status"] for each in workshop.run("list", "--json").json()] == [active[stage]]
    command.popen.kill()
    command.popen.wait()
    assert_none_left(workshop)
    listed = workshop.run("list", "--json").json()
    assert [(each["id"], each["status"]) for each in listed] == [(workshop.only_run().name, "interrupted")]
    if stage == "training":  # it was told to stop as by Ctrl-C
        assert RunDir(workshop.only_run()).checkpoints()


def test_a_stop_while_llamafactory_is_looked_for_is_no_fault_of_its(workshop, tmp_path):
    """A signal that comes while a short child runs ends the command; it is not taken for that child's failure."""
    slow = tmp_path / "slow-python"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nsleep 60\n")
    slow.chmod(0o755)
    cli = tmp_path / "llamafactory-cli"
    cli.write_text(f"#!{slow}\n")
    cli.chmod(0o755)
    command = workshop.start("check", workshop.spec(), ORCHESTRATOR_LLAMAFACTORY=str(cli))
    command.until((tmp_path / "started").exists, "the look around")
    command.interrupt(signal.SIGTERM)
    done = command.finish()
    assert (done.code, done.err.strip()) == (130, "error: stopped by SIGTERM")


# Failing


def test_a_training_that_dies_is_shown_with_its_last_words_and_the_command_to_repeat_it(workshop):
    done = workshop.run("launch", workshop.spec(), FAKE_TRAIN="dies")
    assert done.code == 4 and "Traceback" not in done.err
    assert "status 1" in done.err and str(workshop.only_run() / "logs" / "train.log") in done.err
    shown = re.findall(r"^  \| (.*)$", done.err, re.MULTILINE)
    assert len(shown) == 20 and OUT_OF_MEMORY in shown[-1]
    assert "\x1b" not in done.err and r"\x1b[31m" in shown[-1]
    record = workshop.record()
    assert record["status"] == "failed" and OUT_OF_MEMORY in record["error"] and record["training"] is None
    by_hand = re.search(r"by hand: (.*)", done.err)[1]
    environment = workshop.full_environment({"FAKE_TRAIN": "dies"})
    again = subprocess.run(["sh", "-c", by_hand], cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1 and OUT_OF_MEMORY in again.stderr, again


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("silent", "it left no train_results.json"),
        ("truncated", "adapter_model.safetensors is cut off"),
    ],
)
def test_a_training_that_ends_well_without_a_whole_result_has_failed(faulty, mode, said):
    workshop, command = faulty[mode]
    done = command.finish()
    assert done.code == 4 and said in done.err
    assert workshop.record()["status"] == "failed" and workshop.calls("api") == []


def test_a_training_that_somebody_else_stopped_is_not_taken_for_a_whole_one(workshop):
    """It ends with status 0 and all its files, but before its time: a score of it would be another run's."""
    command = workshop.start("launch", workshop.spec(**LONG), FAKE_STEP_S="0.02")
    command.until(training_at_step(workshop, 3), "step 3")
    (child,) = workshop.children(command)
    child.terminate()
    done = command.finish()
    assert done.code == 4 and re.search(r"it ended at step \d+ of 100000", done.err), done.err
    assert workshop.record()["status"] == "failed" and workshop.calls("api") == []


def test_what_a_killed_launcher_leaves_running_is_ended(workshop):
    """torchrun, say, whose ranks would go on training."""
    command = workshop.start("launch", workshop.spec(**LONG), FAKE_TRAIN="stubborn", FAKE_STEP_S="0.02")
    command.until(training_at_step(workshop, 3), "step 3")
    launcher, _worker = workshop.children(command)
    launcher.kill()
    done = command.finish()
    assert done.code == 4 and "status -9" in done.err, done.err
    assert workshop.left_over() == []


def test_a_server_that_dies_before_it_is_ready_is_reported_with_its_log(workshop):
    done = workshop.run("launch", workshop.spec(**BENCHMARK_ONLY), FAKE_API="dies")
    assert done.code == 4
    log = next(workshop.only_run().glob("benchmarks/*/api.log"))
    assert f"before it was ready the server ended with status 1. Last lines of {log}" in done.err
    assert f"  | {OUT_OF_MEMORY}" in done.err
    assert workshop.record()["status"] == "failed"
    by_hand = re.search(r"by hand: (.*)", done.err)[1]
    environment = workshop.full_environment({"FAKE_API": "dies"})
    again = subprocess.run(["sh", "-c", by_hand], cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    assert OUT_OF_MEMORY in again.stderr, again


def test_a_server_that_is_never_ready_is_given_up_on(workshop):
    done = workshop.run("launch", workshop.spec(**BENCHMARK_ONLY, serve={"start_timeout_s": 1}), FAKE_API="never")
    assert done.code == 4 and "did not answer within 1 s" in done.err and "serve.start_timeout_s" in done.err
    assert workshop.left_over() == []


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("models-500", "HTTP 500"),
        ("models-html", "no list of models"),
        ("other", "another server took the port"),
    ],
)
def test_what_answers_in_place_of_our_server_is_told_from_it(faulty, mode, said):
    workshop, command = faulty[mode]
    done = command.finish()
    assert done.code == 4 and said in done.err, done.err
    assert "ORCHESTRATOR_API_KEY" not in done.err  # the key was ours
    assert workshop.record()["status"] == "failed" and workshop.left_over() == []


def test_a_refused_key_ends_the_benchmark_at_once(faulty):
    workshop, command = faulty["401"]
    done = command.finish()
    assert done.code == 3 and "HTTP 401" in done.err and "Invalid API key" in done.err
    assert workshop.record()["status"] == "failed"


def test_a_full_disk_leaves_the_old_record_whole(workshop, tmp_path):
    runs = workshop.runs
    spec = workshop.spec(**LONG)
    shutil.move(spec, workshop.root / "toy.yaml")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", runs], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        command = workshop.start("launch", workshop.root / "toy.yaml", FAKE_STEP_S="0.02")
        command.until(training_at_step(workshop, 1), "step 1")
        before = (workshop.only_run() / "record.json").read_bytes()
        with (runs / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(b"\0" * 4096)
        command.interrupt(signal.SIGTERM)
        done = command.finish()
        assert done.code == 3 and "Traceback" not in done.err
        assert f"cannot write: {workshop.only_run()}/record.json: No space left on device" in done.err
        assert (workshop.only_run() / "record.json").read_bytes() == before
        assert [path.name for path in workshop.only_run().glob(".record.json*")] == []
        assert RunRecord.load(RunDir(workshop.only_run())).status == "interrupted"
        assert workshop.left_over() == []
    finally:
        for process in workshop.processes():
            process.kill()
        wait_for(lambda: subprocess.run(["umount", runs], capture_output=True).returncode == 0, "umount")


# Reruns


def test_a_rerun_is_the_same_run_under_a_new_id_and_needs_the_saved_spec_alone(toy):
    past = toy.only_run()
    (toy.runs / "toy.yaml").unlink()
    done = toy.run("rerun", "toy", "--strict")
    assert done.code == 0, done.err
    assert f"nothing differs from {past.name}" in done.err
    assert f"{past.name}: the first 5 logged losses are the same" in done.err
    (again,) = [folder for folder in toy.run_folders() if folder != past]
    then, now = toy.record(past), toy.record(again)
    assert (now["rerun_of"], now["drift"], now["status"]) == (past.name, [], "done")
    assert now["verdict"].startswith("same: ")
    assert now["training"]["logged_losses"] == then["training"]["logged_losses"]
    for name in ("spec.yaml", "dataset_info.json", "data/captions_en_de.jsonl"):
        assert (again / name).read_bytes() == (past / name).read_bytes(), name
    arguments = [yaml.safe_load((run / "train.yaml").read_text("utf-8")) for run in (past, again)]
    assert {**arguments[0], "model_name_or_path": ""} == {**arguments[1], "model_name_or_path": ""}  # toy is a copy
    translations = [
        (run / "benchmarks" / "output-captions_en_de-test" / "hypotheses.txt").read_bytes() for run in (past, again)
    ]
    assert translations[0] == translations[1]


def test_a_rerun_says_first_all_that_differs_and_strict_starts_nothing(toy):
    past = toy.only_run()
    git = ["git", "-C", toy.root, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    record = toy.record(past)
    record["facts"]["versions"]["torch"] = "1.0"
    record["facts"]["git_commit"] = "0" * 40
    (past / "record.json").write_text(json.dumps(record))
    shutil.copytree(CAPTIONS, toy.root / "dataset_info" / "captions_en_de")
    source = toy.root / "dataset_info" / "captions_en_de" / "train.en"
    source.write_text(source.read_text("utf-8").replace("frozen", "icy", 1), encoding="utf-8")
    entry = (CAPTIONS.parent / "captions_en_de.yaml").read_text("utf-8")
    old_sum = hashlib.sha256((CAPTIONS / "train.en").read_bytes()).hexdigest()
    new_entry = entry.replace(old_sum, hashlib.sha256(source.read_bytes()).hexdigest())
    (toy.root / "dataset_info" / "captions_en_de.yaml").write_text(new_entry, encoding="utf-8")
    weights = toy.root / "models" / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")

    expected = [
        r"spec train\.max_steps: none then, 3 now",
        r"data captions_en_de train: [0-9a-f]{12} then, [0-9a-f]{12} now",
        r"model hash: [0-9a-f]{12} then, [0-9a-f]{12} now",
        rf"version of torch: 1\.0 then, {re.escape(importlib.metadata.version('torch'))} now",
        r"git commit: 000000000000 then, [0-9a-f]{12} now",
    ]
    refused = toy.run("rerun", past.name, "--strict", "--set", "train.max_steps=3")
    assert refused.code == 3 and "without --strict" in refused.err
    assert toy.run_folders() == [past]
    done = toy.run("rerun", past.name, "--no-benchmark", "--set", "train.max_steps=3")
    assert done.code == 0, done.err
    (again,) = [folder for folder in toy.run_folders() if folder != past]
    lines = toy.record(again)["drift"]
    for pattern in expected:
        assert re.search(pattern, refused.err), pattern
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, lines)
        assert done.err.index(next(line for line in lines if re.fullmatch(pattern, line))) < done.err.index("training")
    assert not any(line.startswith(("platform", "GPUs", "data captions_en_de test")) for line in lines)


def test_a_reruns_overrides_are_checked_like_a_specs(toy):
    """A misspelt argument is found before anything starts, as in launch."""
    done = toy.run("rerun", "toy", "--set", "train.lora_rnak=4")
    assert done.code == 2 and "did you mean 'lora_rank'" in done.err, done.err
    assert len(toy.run_folders()) == 1


def test_a_rerun_of_a_failed_run_works(faulty):
    workshop, command = faulty["silent"]
    assert command.finish().code == 4
    past = workshop.only_run()
    done = workshop.run("rerun", past.name, "--no-benchmark")
    assert done.code == 0, done.err
    assert workshop.record(past)["status"] == "failed"
    shutil.rmtree(next(folder for folder in workshop.run_folders() if folder != past))


def test_a_rerun_of_a_rerun_and_of_a_benchmark_without_training_work(toy):
    past = toy.only_run()
    benchmark = ("benchmark", "models/tiny", "--testset", "captions_en_de", "--max-samples", "3")
    first = [("rerun", past.name, "--no-benchmark"), benchmark]
    assert [done.code for done in toy.run_together(first)] == [0, 0]
    (again,) = [folder.name for folder in toy.run_folders() if toy.record(folder)["rerun_of"] == past.name]
    repeated = toy.run_together([("rerun", again, "--no-benchmark"), ("rerun", "tiny")])
    for done in repeated:
        assert done.code == 0 and "nothing differs" in done.err, done.err
    assert sorted(str(toy.record(folder)["rerun_of"]) for folder in toy.run_folders())[:2] == ["None", "None"]


# Servers that fail: last, their retries take time


@pytest.mark.parametrize(
    ("mode", "counts", "said"),
    [
        ("500", "4 of 4", "HTTP 500"),
        ("html", "4 of 4", "the reply is no JSON: <html>"),
        ("empty", "4 of 4", "the reply is no chat completion: "),
        ("late-death", "2 of 4", "Segmentation fault"),
    ],
)
def test_sentences_without_an_answer_are_counted_and_give_no_score(faulty, mode, counts, said):
    workshop, command = faulty[mode]
    done = command.finish()
    assert done.code == 4 and "Traceback" not in done.err
    assert f"{counts} sentences got no answer, so there is no score" in done.err
    assert said in done.err
    assert workshop.record()["status"] == "failed" and workshop.record()["benchmarks"] == []
    folder = next(workshop.only_run().glob("benchmarks/*"))
    scores = json.loads((folder / "scores.json").read_bytes())
    assert (scores["status"], scores["scores"], scores["failed"]) == ("incomplete", [], int(counts[0]))
    assert not (folder / "hypotheses.txt").exists()
    assert str(folder / "hypotheses.jsonl") in done.err
    assert len((folder / "hypotheses.jsonl").read_text("utf-8").splitlines()) == 4
