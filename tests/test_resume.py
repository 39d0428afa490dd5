"""Going on with a run after each kind of end, with a fake llamafactory-cli. Run: pytest tests/test_resume.py.

The fake's weights depend on every step that led to them.
"""

import hashlib
import json
import shutil
import signal

import psutil
import pytest
import yaml

from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from tests.workshop import Workshop, assert_none_left, new_workshop, training_at_step, wait_for

TRAIN = {"max_steps": 12, "save_steps": 2}
BENCHMARK = {"testset": "captions_en_de", "max_samples": 3, "n_bootstrap": 10}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, fake_cli):
    """A run that was never broken off."""
    made = new_workshop(tmp_path_factory.mktemp("unbroken"), fake_cli)
    done = made.run("launch", made.spec(train=TRAIN, benchmark=[BENCHMARK]))
    assert done.code == 0, done.err
    return made


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory, fake_cli):
    """A run whose training was killed as it saved its second checkpoint."""
    made = new_workshop(tmp_path_factory.mktemp("killed"), fake_cli)
    done = made.run("launch", made.spec(train=TRAIN, benchmark=[BENCHMARK]), FAKE_TRAIN="torn-checkpoint")
    assert done.code == 4 and "status -9" in done.err, done.err
    return made


@pytest.fixture
def killed(killed_once, tmp_path):
    made = killed_once.copy(tmp_path)
    yield made
    made.kill_all()


@pytest.fixture
def whole(unbroken, tmp_path):
    made = unbroken.copy(tmp_path)
    yield made
    made.kill_all()


def outcome(workshop: Workshop) -> dict[str, object]:
    """All that a training comes to."""
    run = workshop.only_run()
    weights = hashlib.sha256((run / "output" / "adapter_model.safetensors").read_bytes()).hexdigest()
    training = workshop.record(run)["training"]
    training.pop("train_loss")  # transformers sums it up since the last resume alone: null after one
    return {"weights": weights, **training}


def attempts(workshop: Workshop) -> list[tuple[str, str | None]]:
    return [(each["status"], each["from_checkpoint"]) for each in workshop.record()["attempts"]]


def edit_record(workshop: Workshop, **changes: object) -> None:
    path = workshop.only_run() / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


# After each kind of end


def test_after_a_failure_it_goes_on_from_the_newest_whole_checkpoint_to_the_same_end(killed, unbroken):
    done = killed.run("resume", "toy")
    assert done.code == 0, done.err
    assert "checkpoint-4 is passed over: checkpoint-is-incomplete.txt is there" in done.err
    assert "the training goes on from checkpoint-2" in done.err
    assert "checkpoint-4: later than checkpoint-2, so kept in output-1/" in done.err
    assert killed.calls("train")[-1]["arguments"]["resume_from_checkpoint"] == "output/checkpoint-2"
    assert outcome(killed) == outcome(unbroken)
    assert attempts(killed) == [("failed", None), ("done", "checkpoint-2")]
    record = killed.record()
    assert (record["status"], record["error"], len(record["benchmarks"])) == ("done", None, 1)
    assert (killed.only_run() / "output-1" / "checkpoint-4").is_dir()


@pytest.mark.parametrize("way", ["stop", "SIGTERM", "SIGINT", "SIGHUP", "kill -9"])
def test_after_a_stop_or_a_kill_it_goes_on_to_the_same_end(workshop, unbroken, way):
    spec = workshop.spec(train=TRAIN, benchmark=[BENCHMARK])
    command = workshop.start("launch", spec, FAKE_HOLD="3")
    command.until(training_at_step(workshop, 3), "step 3")
    if way == "stop":
        assert workshop.run("stop", "toy").code == 0
    elif way == "kill -9":
        command.popen.kill()
        command.popen.wait()
        assert_none_left(workshop)
    else:
        command.interrupt(signal.Signals[way])
    command.popen.wait(60)
    status = "interrupted" if way == "kill -9" else "stopped"
    assert RunRecord.load(RunDir(workshop.only_run())).status == status
    done = workshop.run("resume", "toy")
    assert done.code == 0, done.err
    assert outcome(workshop) == outcome(unbroken)
    (first, second) = workshop.record()["attempts"]
    assert (first["status"], second["status"], second["from_step"] >= 3) == (status, "done", True)
    assert (first["ended_at"] is None) == (way == "kill -9")
    assert workshop.calls("train")[-1]["arguments"]["resume_from_checkpoint"] == f"output/{second['from_checkpoint']}"


def test_several_stops_make_one_curve_and_one_mean_loss(workshop, unbroken):
    words = ("launch", workshop.spec(train=TRAIN, benchmark=None))
    for step in (2, 5, 8):
        command = workshop.start(*words, FAKE_HOLD=str(step))
        command.until(training_at_step(workshop, step), f"step {step}")
        command.interrupt(signal.SIGTERM)
        assert command.finish().code == 130
        words = ("resume", "toy")
    assert workshop.run(*words).code == 0
    assert outcome(workshop) == outcome(unbroken)
    assert [each["status"] for each in workshop.record()["attempts"]] == ["stopped"] * 3 + ["done"]


def test_without_a_checkpoint_it_begins_anew_and_what_was_there_is_kept(killed, unbroken):
    run = killed.only_run()
    shutil.rmtree(run / "output" / "checkpoint-2")
    (run / "output" / "mine.txt").write_text("mine")
    done = killed.run("resume", "toy")
    assert done.code == 0, done.err
    assert "checkpoint-4 is passed over" in done.err and "the training begins anew" in done.err
    assert "what the training had left is kept in output-1/" in done.err
    assert (run / "output-1" / "mine.txt").read_text() == "mine"
    assert "resume_from_checkpoint" not in killed.calls("train")[-1]["arguments"]
    assert outcome(killed) == outcome(unbroken)
    assert attempts(killed)[-1] == ("done", None)


def test_a_run_that_had_not_come_to_train_begins(killed, unbroken):
    run = killed.only_run()
    for name in ("output", "data"):
        shutil.rmtree(run / name)
    edit_record(killed, prepared_sha256=None)
    done = killed.run("resume", "toy")
    assert done.code == 0 and "there is no checkpoint" in done.err and not (run / "output-1").exists(), done.err
    assert outcome(killed) == outcome(unbroken)


def test_an_earlier_checkpoint_can_be_named_and_the_later_ones_are_kept_aside(workshop, unbroken):
    command = workshop.start("launch", workshop.spec(train=TRAIN, benchmark=None), FAKE_HOLD="7")
    command.until(training_at_step(workshop, 7), "step 7")
    command.interrupt(signal.SIGTERM)
    command.finish()
    done = workshop.run("resume", "toy", "--from", "checkpoint-4")
    assert done.code == 0 and "the training goes on from checkpoint-4" in done.err, done.err
    aside = [path.name for path in sorted((workshop.only_run() / "output-1").iterdir())]
    assert aside[0] == "checkpoint-6" and f"{', '.join(aside)}: later than checkpoint-4" in done.err
    assert outcome(workshop) == outcome(unbroken)  # of the steps that were trained twice only the second time counts


def test_a_checkpoint_that_is_not_there_or_not_whole_is_refused_by_name(killed):
    before = killed.record()
    misspelt, torn, detached = killed.run_together(
        [
            ("resume", "toy", "--from", "checkpoint-3"),
            ("resume", "toy", "--from", "checkpoint-4"),
            ("resume", "toy", "--from", "checkpoint-4", "--detach"),
        ]
    )
    assert misspelt.code == 2 and "has no checkpoint-3; did you mean" in misspelt.err
    for done in (torn, detached):
        assert done.code == 3 and "checkpoint-4 of" in done.err and "can't be resumed from" in done.err
        assert "the newest whole one is checkpoint-2" in done.err
    assert killed.record() == before


# What is whole is not done again


def test_only_the_benchmarks_that_are_missing_are_run(whole):
    """Trained and benchmarked by half: killed between the two, and before the first stood in the record."""
    second = {**BENCHMARK, "max_samples": 2}
    spec = yaml.safe_load((whole.only_run() / "spec.yaml").read_text("utf-8"))
    spec["benchmark"] = [spec["benchmark"][0], {**spec["benchmark"][0], **second}]
    (whole.only_run() / "spec.yaml").write_text(yaml.safe_dump(spec))
    edit_record(whole, status="benchmarking", ended_at=None, benchmarks=[], pid=2**22 + 1)
    before = (whole.only_run() / "benchmarks" / "output-captions_en_de-test" / "scores.json").read_bytes()
    done = whole.run("resume", "toy")
    assert done.code == 0, done.err
    assert "the training is whole: 12 of 12 steps" in done.err
    assert "benchmark output: captions_en_de test is complete" in done.err
    assert whole.calls("train") == [] and len(whole.calls("api")) == 1
    record = whole.record()
    assert sorted(each["n_segments"] for each in record["benchmarks"]) == [2, 3]
    assert record["status"] == "done" and attempts(whole)[-1] == ("done", None)
    assert before == (whole.only_run() / "benchmarks" / "output-captions_en_de-test" / "scores.json").read_bytes()


@pytest.mark.parametrize("change", ["another question", "no scores"])
def test_a_benchmark_of_something_else_or_without_scores_is_done_again(whole, change):
    folder = whole.only_run() / "benchmarks" / "output-captions_en_de-test"
    result = json.loads((folder / "scores.json").read_bytes())
    if change == "no scores":
        result |= {"status": "incomplete", "scores": []}
    else:
        result["request"]["key"] = "0" * 64
    (folder / "scores.json").write_text(json.dumps(result), "utf-8")
    edit_record(whole, status="stopped", benchmarks=[])
    assert whole.run("resume", "toy").code == 0
    (again,) = whole.record()["benchmarks"]
    assert again["id"] == folder.name + ("" if change == "no scores" else "-2")
    assert (folder.parent / again["id"] / "scores.json").is_file()


def test_a_training_whose_owner_was_killed_before_it_could_say_so_counts(whole):
    expected = outcome(whole)
    edit_record(whole, status="running", ended_at=None, training=None, benchmarks=[], pid=2**22 + 1)
    done = whole.run("resume", "toy")
    assert done.code == 0 and whole.calls("train") == [], done.err
    assert outcome(whole) == expected


def test_a_training_with_damaged_weights_is_not_whole(whole, unbroken):
    weights = whole.only_run() / "output" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    edit_record(whole, status="failed")
    done = whole.run("resume", "toy")
    assert done.code == 0 and "goes on from checkpoint-12" in done.err, done.err
    assert outcome(whole) == outcome(unbroken)


def test_a_training_file_that_was_changed_is_written_again(killed, unbroken):
    data = killed.only_run() / "data" / "captions_en_de.jsonl"
    data.write_text(data.read_text().replace("frozen", "icy"))
    assert killed.run("resume", "toy").code == 0
    assert data.read_bytes() == (unbroken.only_run() / "data" / "captions_en_de.jsonl").read_bytes()
    assert outcome(killed) == outcome(unbroken)


def test_a_run_that_was_launched_without_benchmarks_stays_one_until_it_is_trained(workshop):
    spec = workshop.spec(train=TRAIN, benchmark=[BENCHMARK])
    assert workshop.run("launch", spec, "--no-benchmark", FAKE_TRAIN="torn-checkpoint").code == 4
    done = workshop.run("resume", "toy", "--json")
    assert (done.code, done.json()["status"], workshop.calls("api")) == (0, "trained", []), done.err
    refused = workshop.run("resume", "toy", "--no-benchmark")
    assert refused.code == 2 and "is trained, and no benchmark is to follow" in refused.err
    done = workshop.run("resume", "toy")
    assert (done.code, workshop.record()["status"], len(workshop.calls("api"))) == (0, "done", 1), done.err
    assert len(workshop.calls("train")) == 2


# What is refused


def test_a_run_that_is_done_or_of_another_host_or_has_an_owner_is_not_resumed(whole):
    done = whole.run("resume", "toy")
    assert done.code == 2 and "is done: there is nothing to go on with" in done.err
    sleeper = psutil.Popen(["sleep", "60"])
    try:
        owner = {"pid": sleeper.pid, "process_start_ticks": None, "process_started_at": sleeper.create_time()}
        edit_record(whole, status="running", ended_at=None, **owner)
        owned = whole.run("resume", "toy")
        assert owned.code == 3 and f"is running: process {sleeper.pid} owns it" in owned.err
        assert f"orchestrator stop {whole.only_run().name}" in owned.err
    finally:
        sleeper.kill()
        sleeper.wait()
    edit_record(whole, host="gpu-box")
    elsewhere = whole.run("resume", "toy")
    assert elsewhere.code == 3 and "on gpu-box owns it" in elsewhere.err


def test_of_two_resumes_at_once_one_gets_the_run(killed, unbroken, tmp_path):
    hold = {"FAKE_HOLD": "5", "FAKE_GO": str(tmp_path / "go")}
    commands = [killed.start("resume", "toy", *words, **hold) for words in ((), (), ("--detach",))]
    wait_for(lambda: [command.popen.poll() for command in commands].count(3) == 2, "two that are refused")
    (tmp_path / "go").touch()
    codes = [command.finish().code for command in commands]
    wait_for(lambda: killed.record()["status"] == "done", "the run's end")
    assert sorted(codes) == [0, 3, 3], [command.err for command in commands]
    assert outcome(killed) == outcome(unbroken)
    assert len(killed.calls("train")) == 1
    assert_none_left(killed)


def test_changed_data_end_it_and_changed_versions_are_said(killed):
    record = killed.record()
    record["facts"]["versions"]["torch"] = "1.0"
    edit_record(killed, facts=record["facts"])
    for data in record["facts"]["data"]:
        data["sha256"] = "0" * 64
    refused_record = {**record, "facts": record["facts"]}
    path = killed.only_run() / "record.json"
    good = path.read_bytes()
    path.write_text(json.dumps(refused_record))
    refused = killed.run("resume", "toy")
    assert refused.code == 3 and "cannot go on as it began: data captions_en_de train: 000000000000 then" in refused.err
    assert killed.record() == refused_record
    path.write_bytes(good)
    done = killed.run("resume", "toy")
    assert done.code == 0 and "since the run began: version of torch: 1.0 then" in done.err, done.err
    assert any("torch" in line for line in killed.record()["attempts"][-1]["drift"])


def test_a_spec_that_was_edited_in_what_would_make_another_training_is_refused_by_name(killed):
    path = killed.only_run() / "spec.yaml"
    spec = yaml.safe_load(path.read_text("utf-8"))
    spec["train"] |= {"per_device_train_batch_size": 4, "logging_steps": 3}
    path.write_text(yaml.safe_dump(spec))
    done = killed.run("resume", "toy")
    assert done.code == 3 and "train.per_device_train_batch_size: none then, 4 now" in done.err, done.err
    assert "logging_steps" not in done.err.partition("to go on")[0] or "note" in done.err
    del spec["train"]["per_device_train_batch_size"]
    path.write_text(yaml.safe_dump(spec))
    assert killed.run("resume", "toy").code == 0


def test_a_run_of_before_this_version_is_resumed_too(killed, unbroken):
    """Its record has neither attempts nor the start in ticks."""
    record = killed.record()
    for name in ("attempts", "process_start_ticks", "with_benchmarks", "waits_for", "prepared_sha256"):
        del record[name]
    (killed.only_run() / "record.json").write_text(json.dumps({**record, "status": "running", "ended_at": None}))
    done = killed.run("resume", "toy")
    assert done.code == 0, done.err
    assert outcome(killed) == outcome(unbroken)
    assert attempts(killed) == [("interrupted", None), ("done", "checkpoint-2")]


def test_what_a_killed_owner_left_running_is_ended_before_the_run_goes_on(workshop):
    """It would write into the same output/."""
    spec = workshop.spec(train={"max_steps": 100_000, "save_steps": 2}, benchmark=None)
    command = workshop.start("launch", spec, FAKE_TRAIN="stubborn", FAKE_STEP_S="0.05")
    command.until(training_at_step(workshop, 3), "step 3")
    watchers = [each for each in workshop.processes() if "orchestrator.processes.watch" in each.cmdline()]
    left = [each for each in workshop.processes() if each.pid != command.popen.pid]
    for watcher in watchers:
        watcher.kill()
    command.popen.kill()
    command.popen.wait()
    (run,) = workshop.run_folders()
    trainer = next(each for each in left if "llamafactory-cli" in " ".join(each.cmdline()))
    shown = workshop.run("show", "toy").out
    assert f"its process {command.popen.pid} is gone without a word; left running: " in shown
    assert str(trainer.pid) in shown and f"orchestrator stop {run.name}" in shown
    stopped = workshop.run("stop", "toy", "--grace", "0.3")
    assert stopped.code == 0 and "its owner had left running, now ended" in stopped.err, stopped.err
    assert workshop.left_over() == []
    assert "nothing of it is left running. To go on: orchestrator resume" in workshop.run("show", "toy").out
