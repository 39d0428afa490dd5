"""Launch, stop, fail and repeat a run, with a fake llamafactory-cli; folders have a space and quotes in their names."""

import importlib.metadata
import json
import re
import shutil
import signal
import subprocess
from datetime import datetime

import pytest

from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current
from orchestrator.specs.spec import spec_sha256
from orchestrator.specs.spec_file import load_spec
from tests.fake_llamafactory import OUT_OF_MEMORY
from tests.workshop import CAPTIONS, assert_none_left, new_workshop, training_at_step

LONG = {"train": {"max_steps": 100_000}}
BENCHMARK_ONLY = {"train": None, "dataset": None}
# How a fake fails by itself, and what is said then.
FAULTS = {
    "other": "another server took the port",
    "401": "Invalid API key",
    "late-death": "Segmentation fault",
    "never": "did not answer within 1 s",
}


@pytest.fixture(scope="module", autouse=True)
def faulty(tmp_path_factory, fake_cli):
    """Launches that fail by themselves, under way while other tests run: retries take time."""
    commands = {}
    for mode in FAULTS:
        workshop = new_workshop(tmp_path_factory.mktemp(mode), fake_cli)
        serve = {"start_timeout_s": 1} if mode == "never" else {}
        benchmark = [{"testset": "captions_en_de", "max_samples": 4}]
        spec = workshop.spec(train=None, dataset=None, benchmark=benchmark, serve=serve)
        commands[mode] = (workshop, workshop.start("launch", spec, FAKE_API=mode))
    yield commands
    for workshop, command in commands.values():
        command.popen.kill()
        command.popen.wait()
        assert_none_left(workshop)


def test_a_launch_leaves_the_files_that_the_design_names_and_no_process(launched):
    run = launched[0].only_run()
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    own = {"spec.yaml", "record.json", ".record.lock", ".owner.lock", "train.yaml", "api.yaml", "dataset_info.json"}
    own |= {"command.txt", "defaults.json", "data/captions_en_de.jsonl", "logs/train.log"}
    benchmark = ("hypotheses.jsonl", "scores.json", "sources.txt", "references.txt", "hypotheses.txt")
    for label in ("base", "output"):
        own |= {f"benchmarks/{label}-captions_en_de-test/{name}" for name in (*benchmark, "api.yaml", "api.log")}
    assert {name for name in files if not name.startswith("output/")} == own
    assert {"output/adapter_model.safetensors", "output/trainer_log.jsonl", "output/train_results.json"} <= files
    assert launched[0].left_over() == []


def test_the_record_says_what_ran_with_what_and_what_came_of_it(launched):
    workshop, done = launched
    run, record = workshop.only_run(), workshop.record()
    assert (record["status"], record["error"], record["name"], record["id"]) == ("done", None, "toy", run.name)
    assert (record["spec_file"], record["seed"]) == (str(workshop.runs / "toy.yaml"), 42)
    assert record["spec_sha256"] == spec_sha256(load_spec(run / "spec.yaml"))
    assert datetime.fromisoformat(record["created_at"]) <= datetime.fromisoformat(record["ended_at"])
    versions = {name: importlib.metadata.version(name) for name in ("llamafactory", "torch", "peft", "sacrebleu")}
    assert record["facts"]["versions"].items() >= versions.items()
    assert [(each["split"], each["pairs"]) for each in record["facts"]["data"]] == [("train", 500), ("test", 100)]
    assert re.fullmatch(r"[0-9a-f]{64}", record["facts"]["model_sha256"])
    assert record["training"]["steps"] == record["training"]["total_steps"] == 5
    log = [json.loads(line) for line in (run / "output" / "trainer_log.jsonl").read_text().splitlines()]
    assert record["training"]["logged_losses"] == [line["loss"] for line in log if "loss" in line]
    (attempt,) = record["attempts"]
    assert (attempt["from_step"], set(attempt["stages_s"])) == (0, {"prepare", "train", "benchmark"})
    found = [(each["of"], each["status"], each["n_segments"]) for each in record["benchmarks"]]
    assert found == [("base", "complete", 6), ("output", "complete", 6)]
    for label in ("base", "output"):  # the table rounds scores.json, and does not mix up
        folder = run / "benchmarks" / f"{label}-captions_en_de-test"
        scores = {each["metric"]: each for each in json.loads((folder / "scores.json").read_bytes())["scores"]}
        row = next(line for line in done.out.splitlines() if line.startswith(label))
        for metric in ("bleu", "chrf", "ter"):
            low, high = scores[metric]["ci95"]
            assert f"{scores[metric]['score']:.1f} [{low:.1f}, {high:.1f}]" in row
            assert scores[metric]["signature"] in done.out


def test_llamafactory_gets_the_data_as_prepared_and_each_server_is_private_and_has_a_key_of_its_own(launched):
    workshop, _ = launched
    run = workshop.only_run()
    (call,) = workshop.calls("train")
    assert call["cwd"] == str(run)
    assert call["arguments"]["model_name_or_path"] == str(workshop.root / "models" / "tiny")
    assert (call["arguments"]["output_dir"], call["arguments"]["enable_jit_checkpoint"]) == ("output", True)
    assert call["environment"]["PATH"].split(":")[0] == str(workshop.cli.parent)
    first = json.loads((run / "data" / "captions_en_de.jsonl").read_text().splitlines()[0])
    sides = [(CAPTIONS / f"train.{side}").read_text("utf-8").splitlines()[0] for side in ("en", "de")]
    assert [first["input"], first["output"]] == sides
    result = json.loads((run / "benchmarks" / "output-captions_en_de-test" / "scores.json").read_text("utf-8"))
    assert result["request"]["instruction"] == first["instruction"]
    assert result["request"]["sent"]["temperature"] == 0
    servers = [call["environment"] for call in workshop.calls("api")]
    assert servers[0]["API_KEY"] != servers[1]["API_KEY"] and len(servers[0]["API_KEY"]) >= 20
    for label, environment in zip(("base", "output"), servers, strict=True):
        assert (environment["API_HOST"], environment["API_VERBOSE"]) == ("127.0.0.1", "0")
        assert re.fullmatch(rf"{run.name}@{label}:[0-9a-f]{{12}}", environment["API_MODEL_NAME"])


def test_no_secret_is_in_the_run_folder_or_on_a_command_line(launched):
    workshop, done = launched
    secrets = [call["environment"]["API_KEY"] for call in workshop.calls("api")] + ["hf_secret"]
    places = {str(path): path.read_bytes() for path in workshop.only_run().rglob("*") if path.is_file()}
    places |= {"command lines": json.dumps([call["argv"] for call in workshop.calls("api")]).encode()}
    places |= {"output": (done.out + done.err).encode()}
    assert [(name, secret) for name, text in places.items() for secret in secrets if secret.encode() in text] == []


def test_progress_without_a_terminal_is_plain_lines_and_results_alone_are_on_stdout(launched):
    workshop, done = launched
    loss = workshop.record()["training"]["logged_losses"][-1]
    assert re.search(rf"train: 5/5 steps in .*, loss {loss:.4g},", done.err)  # its line came in two halves
    assert "translate: 6/6 sentences" in done.err
    assert not {"\r", "\x1b"} & set(done.err + done.out)
    assert "steps" not in done.out and done.out.rstrip().endswith(f"done: {workshop.only_run()}")


def test_a_template_that_is_left_out_is_found_once_and_kept_in_the_resolved_spec(workshop):
    shutil.copytree(workshop.root / "models" / "tiny", workshop.root / "models" / "SmolLM2-135M-Instruct")
    text = workshop.spec().read_text("utf-8").replace("  template: smollm2\n", "")
    (workshop.runs / "toy.yaml").write_text(text.replace("tiny", "SmolLM2-135M-Instruct"), "utf-8")
    done = workshop.run("launch", workshop.runs / "toy.yaml", "--no-benchmark", "--set", "seed=7")
    assert done.code == 0 and "warning: model.template: none given" in done.err, done.err
    record, saved = workshop.record(), (workshop.only_run() / "spec.yaml").read_text("utf-8")
    assert "# model.template was not given: LLaMA-Factory lists" in saved
    assert (record["status"], record["overrides"], record["seed"]) == ("done", ["seed=7"], 7)
    (call,) = workshop.calls("train")
    assert workshop.calls("api") == [] and (call["arguments"]["seed"], call["arguments"]["template"]) == (7, "smollm2")


def test_a_dry_run_shows_the_command_and_like_a_wrong_spec_leaves_nothing(workshop):
    spec, wrong = workshop.spec(), workshop.spec("wrong", train={"lora_rnak": 4})
    words = ("--dry-run", "--set", "train.learning_rate=1e-3")
    dry, misspelt = workshop.run_together([("launch", spec, *words), ("launch", wrong, "--detach")])
    assert dry.code == 0 and dry.out.startswith("llamafactory-cli train --model_name_or_path ")
    assert "--learning_rate 0.001 " in dry.out
    assert misspelt.code == 2 and "lora_rank" in misspelt.err
    assert workshop.run_folders() == [] and workshop.calls("train") == [] and workshop.left_over() == []


def test_a_stop_while_training_keeps_a_checkpoint(workshop, tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    places = [new_workshop(tmp_path / number.name, workshop.cli) for number in numbers]
    commands = [place.start("launch", place.spec(**LONG), FAKE_STEP_S="0.02") for place in places]
    for number, place, command in zip(numbers, places, commands, strict=True):
        command.until(training_at_step(place, 3), "step 3")
        command.interrupt(number)
    for place, command in zip(places, commands, strict=True):
        done = command.finish()
        run = RunDir(place.only_run())
        (checkpoint,) = run.checkpoints()
        assert done.code == 130 and "Traceback" not in done.err
        assert not (checkpoint / "checkpoint-is-incomplete.txt").exists()
        assert f"kept: {checkpoint.name}\n  try: orchestrator resume {run.id} continues it" in done.err
        record = place.record()
        assert record["status"] == "stopped" and checkpoint.name in record["error"] and record["ended_at"]
        assert record["benchmarks"] == [] and place.calls("api") == []
        assert place.left_over() == []


@pytest.mark.parametrize(
    ("faults", "log", "sign", "number"),
    [
        ({"FAKE_TRAIN": "hangs"}, "logs/train.log", "fake train", signal.SIGINT),
        ({"FAKE_API": "never"}, "benchmarks/*/api.log", "fake api", signal.SIGTERM),
        ({"FAKE_API": "hangs"}, "benchmarks/*/api.log", "asked", signal.SIGINT),
    ],
    ids=["the model is loaded for training", "the server starts", "the server is asked"],
)
def test_a_stop_at_any_other_stage_says_stopped_and_leaves_no_process(workshop, faults, log, sign, number):
    trains = "FAKE_TRAIN" in faults
    command = workshop.start("launch", workshop.spec() if trains else workshop.spec(**BENCHMARK_ONLY), **faults)
    command.until(lambda: any(sign in path.read_text("utf-8") for path in workshop.runs.glob(f"*/{log}")), sign)
    command.interrupt(number)
    done = command.finish()
    assert done.code == 130 and "Traceback" not in done.err, done.err
    assert workshop.record()["status"] == "stopped" and workshop.left_over() == []
    assert ("it had not come to a checkpoint" if trains else f"stopped by {number.name}") in done.err
    assert "orchestrator benchmark" not in done.err  # there is nothing to benchmark


def test_a_second_ctrl_c_ends_a_training_that_does_not_stop(workshop):
    command = workshop.start("launch", workshop.spec(**LONG), FAKE_TRAIN="stubborn", FAKE_STEP_S="0.02")
    command.until(training_at_step(workshop, 3), "step 3")
    command.interrupt(signal.SIGINT)
    command.until(lambda: "Ctrl-C" in command.err, "the word that it is being stopped")
    command.interrupt(signal.SIGINT)
    assert (command.finish().code, workshop.record()["status"]) == (130, "stopped")
    assert_none_left(workshop)


@pytest.mark.parametrize("stage", ["running", "benchmarking"])
def test_kill_9_leaves_no_process_and_a_run_that_reads_interrupted(workshop, stage):
    if stage == "running":
        command = workshop.start("launch", workshop.spec(**LONG), FAKE_STEP_S="0.02")
        command.until(training_at_step(workshop, 3), "step 3")
    else:
        command = workshop.start("launch", workshop.spec(**BENCHMARK_ONLY), FAKE_API="hangs")
        logs = "*/benchmarks/*/api.log"
        command.until(lambda: any(b"asked" in path.read_bytes() for path in workshop.runs.glob(logs)), "a request")
    run = RunDir(workshop.only_run())
    assert current(run).status == stage
    command.popen.kill()
    command.popen.wait()
    assert_none_left(workshop)
    (listed,) = workshop.run("list", "--json").json()
    assert (listed["id"], listed["status"]) == (run.id, "interrupted")
    assert run.checkpoints() or stage != "running"  # the trainer was told to stop as by Ctrl-C


@pytest.mark.parametrize("stage", ["train", "api"])
def test_what_dies_is_shown_with_its_last_words_and_the_command_to_repeat_it(workshop, stage):
    faults = {"FAKE_TRAIN" if stage == "train" else "FAKE_API": "dies"}
    done = workshop.run("launch", workshop.spec() if stage == "train" else workshop.spec(**BENCHMARK_ONLY), **faults)
    assert done.code == 4 and "Traceback" not in done.err and "status 1" in done.err, done.err
    log = next(workshop.only_run().glob("logs/train.log" if stage == "train" else "benchmarks/*/api.log"))
    assert f"ast lines of {log}" in done.err and "\x1b" not in done.err
    shown = re.findall(r"^  \| (.*)$", done.err, re.MULTILINE)
    assert len(shown) <= 20 and OUT_OF_MEMORY in shown[-1]
    record = workshop.record()
    assert record["status"] == "failed" and OUT_OF_MEMORY in record["error"] and record["training"] is None
    by_hand, environment = re.search(r"by hand: (.*)", done.err)[1], workshop.full_environment(faults)
    again = subprocess.run(["sh", "-c", by_hand], cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1 and OUT_OF_MEMORY in again.stderr, again


def test_a_rerun_is_the_same_run_under_a_new_id_and_needs_the_saved_spec_alone(toy):
    past = toy.only_run()
    (toy.runs / "toy.yaml").unlink()
    done = toy.run("rerun", "toy", "--strict")
    assert done.code == 0, done.err
    assert f"nothing differs from {past.name}" in done.err
    (again,) = [folder for folder in toy.run_folders() if folder != past]
    now = toy.record(again)
    assert (now["rerun_of"], now["drift"], now["status"]) == (past.name, [], "done")
    assert now["verdict"].startswith("same: the first 5 logged losses are the same")
    translations = "benchmarks/output-captions_en_de-test/hypotheses.txt"
    for name in ("spec.yaml", "dataset_info.json", "data/captions_en_de.jsonl", translations):
        assert (again / name).read_bytes() == (past / name).read_bytes(), name


@pytest.mark.parametrize("mode", FAULTS)
def test_what_fails_by_itself_is_a_failed_run_that_says_why_and_leaves_nothing(faulty, mode):
    workshop, command = faulty[mode]
    done = command.finish()
    assert done.code == (3 if mode == "401" else 4) and FAULTS[mode] in done.err and "Traceback" not in done.err
    record = workshop.record()
    assert (record["status"], record["benchmarks"]) == ("failed", []) and workshop.left_over() == []
    if mode == "late-death":  # a sentence without an answer is no empty one
        folder = next(workshop.only_run().glob("benchmarks/*"))
        scores = json.loads((folder / "scores.json").read_bytes())
        assert (scores["status"], scores["scores"], scores["failed"]) == ("incomplete", [], 2)
        assert not (folder / "hypotheses.txt").exists()
        assert len((folder / "hypotheses.jsonl").read_text("utf-8").splitlines()) == 4
