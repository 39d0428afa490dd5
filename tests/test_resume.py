"""A run that is resumed after each kind of end, with a fake llamafactory-cli. Run: pytest tests/test_resume.py.

The fake's weights depend on every step that led to them.
"""

import hashlib
import json
import shutil
import signal

import pytest
import yaml

from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current
from tests.runs_on_disk import owned_by_another
from tests.workshop import Workshop, assert_none_left, new_workshop, training_at_step, wait_for

TRAIN = {"max_steps": 12, "save_steps": 2, "val_size": 0.1, "do_eval": True}
BENCHMARK = {"testset": "captions_en_de", "max_samples": 3, "n_bootstrap": 10}


@pytest.fixture(scope="module")
def ended(tmp_path_factory, fake_cli):
    """The same run: never broken off; killed as it saved its second checkpoint; killed before its final save."""
    made = {}
    for mode in ("", "torn-checkpoint", "unsaved"):
        made[mode] = new_workshop(tmp_path_factory.mktemp(mode or "unbroken"), fake_cli)
    commands = {
        mode: place.start("launch", place.spec(train=TRAIN, benchmark=[BENCHMARK]), FAKE_TRAIN=mode)
        for mode, place in made.items()
    }
    done = {mode: command.finish() for mode, command in commands.items()}
    assert [each.code for each in done.values()] == [0, 4, 4], done
    assert "status -9" in done["torn-checkpoint"].err
    return made


@pytest.fixture
def unbroken(ended):
    return ended[""]


@pytest.fixture
def copied(ended, tmp_path):
    made = []

    def copy(mode: str) -> Workshop:
        made.append(ended[mode].copy(tmp_path / str(len(made))))
        return made[-1]

    yield copy
    for each in made:
        each.kill_all()


@pytest.fixture
def killed(copied):
    return copied("torn-checkpoint")


def outcome(workshop: Workshop) -> dict[str, object]:
    """All that a training comes to."""
    weights = (workshop.only_run() / "output" / "adapter_model.safetensors").read_bytes()
    training = workshop.record()["training"]
    # transformers sums the loss up since the last resume alone: null after one
    kept = {key: value for key, value in training.items() if key not in ("train_loss", "train_runtime_s")}
    return {"weights": hashlib.sha256(weights).hexdigest(), **kept}


def attempts(workshop: Workshop) -> list[tuple[str, str | None]]:
    return [(each["status"], each["from_checkpoint"]) for each in workshop.record()["attempts"]]


def edit_record(workshop: Workshop, **changes: object) -> None:
    path = workshop.only_run() / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def edit_spec(workshop: Workshop, **changes: dict | list) -> None:
    path = workshop.only_run() / "spec.yaml"
    spec = yaml.safe_load(path.read_text("utf-8"))
    for section, values in changes.items():
        spec[section] = spec[section] | values if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(spec))


# After each kind of end


def test_after_a_failure_it_resumes_from_the_newest_complete_checkpoint_to_the_same_end(killed, unbroken):
    data = killed.only_run() / "data" / "captions_en_de.jsonl"
    data.write_text(data.read_text().replace("frozen", "icy"))  # it is written again
    done = killed.run("resume", "toy")
    assert done.code == 0, done.err
    assert "checkpoint-4 is skipped: checkpoint-is-incomplete.txt is there" in done.err
    assert "the training resumes from checkpoint-2" in done.err
    assert "checkpoint-4: later than checkpoint-2, so kept in output-1/" in done.err
    assert killed.calls("train")[-1]["arguments"]["resume_from_checkpoint"] == "output/checkpoint-2"
    assert outcome(killed) == outcome(unbroken)
    assert data.read_bytes() == (unbroken.only_run() / "data" / "captions_en_de.jsonl").read_bytes()
    assert attempts(killed) == [("failed", None), ("done", "checkpoint-2")]
    record = killed.record()
    assert (record["status"], record["error"], len(record["benchmarks"])) == ("done", None, 1)
    assert (killed.only_run() / "output-1" / "checkpoint-4").is_dir()
    again = killed.run("resume", "toy")
    assert again.code == 2 and "is done: there is nothing to resume" in again.err


def test_several_stops_and_a_kill_make_one_curve_to_the_same_end(workshop, unbroken):
    words = ("launch", workshop.spec(train=TRAIN, benchmark=None))
    for step, way in ((3, signal.SIGKILL), (5, signal.SIGTERM), (8, "stop")):
        command = workshop.start(*words, FAKE_HOLD=str(step))
        command.until(training_at_step(workshop, step), f"step {step}")
        if way == "stop":
            assert workshop.run("stop", "toy").code == 0
        else:
            command.interrupt(way)
        command.popen.wait(60)
        assert_none_left(workshop)
        status = "interrupted" if way == signal.SIGKILL else "stopped"
        assert current(RunDir(workshop.only_run())).status == status
        words = ("resume", "toy")
    assert workshop.run(*words).code == 0
    assert outcome(workshop) == outcome(unbroken)
    record = workshop.record()
    assert [each["status"] for each in record["attempts"]] == ["interrupted", "stopped", "stopped", "done"]
    assert record["attempts"][0]["ended_at"] is None and record["training"]["train_loss"] is None
    assert [each["from_step"] for each in record["attempts"]] == [0, 3, 5, 8]


def test_without_a_checkpoint_it_begins_at_step_0_and_what_was_there_is_kept(killed, unbroken):
    run = killed.only_run()
    shutil.rmtree(run / "output" / "checkpoint-2")
    (run / "output" / "mine.txt").write_text("mine")
    shutil.rmtree(run / "data")
    done = killed.run("resume", "toy")
    assert done.code == 0, done.err
    assert "checkpoint-4 is skipped" in done.err and "the training begins at step 0" in done.err
    assert "what the training had left is kept in output-1/" in done.err
    assert (run / "output-1" / "mine.txt").read_text() == "mine"
    assert "resume_from_checkpoint" not in killed.calls("train")[-1]["arguments"]
    assert outcome(killed) == outcome(unbroken) and attempts(killed)[-1] == ("done", None)


def test_an_earlier_checkpoint_can_be_named_and_the_later_ones_are_kept_aside(workshop, unbroken):
    command = workshop.start("launch", workshop.spec(train=TRAIN, benchmark=None), FAKE_HOLD="7")
    command.until(training_at_step(workshop, 7), "step 7")
    command.interrupt(signal.SIGTERM)
    command.finish()
    done = workshop.run("resume", "toy", "--from", "checkpoint-4")
    assert done.code == 0 and "the training resumes from checkpoint-4" in done.err, done.err
    aside = [path.name for path in sorted((workshop.only_run() / "output-1").iterdir())]
    assert aside[0] == "checkpoint-6" and f"{', '.join(aside)}: later than checkpoint-4" in done.err
    assert outcome(workshop) == outcome(unbroken)  # of the steps that were trained twice only the second time counts


# What is complete is not done again


def test_a_training_that_was_killed_between_its_last_step_and_its_end_is_not_trained_on(copied, unbroken):
    """transformers takes a step before it looks at max_steps: it would end as another model, at 13 of 12."""
    place = copied("unsaved")
    assert not (place.only_run() / "output" / "adapter_model.safetensors").exists()
    done = place.run("resume", "toy")
    assert done.code == 0 and "the weights of checkpoint-12 are taken as that" in done.err, done.err
    assert place.calls("train") == [] and len(place.record()["benchmarks"]) == 1
    assert outcome(place) == outcome(unbroken)
    names = {path.name for path in (place.only_run() / "output").iterdir() if path.is_file()}
    assert {"adapter_model.safetensors", "adapter_config.json", "trainer_state.json"} <= names
    assert not names & {"optimizer.pt", "scheduler.pt", "rng_state.pth"}


def test_a_training_that_went_beyond_its_last_step_is_no_result(copied):
    place = copied("unsaved")
    state = place.only_run() / "output" / "checkpoint-12" / "trainer_state.json"
    state.write_text(state.read_text().replace('"max_steps": 12', '"max_steps": 14'))
    command = place.run("resume", "toy", "--from", "checkpoint-12")
    assert command.code == 4 and "it ended at step 13 of 12" in command.err, command.err


def test_only_the_benchmarks_that_are_missing_are_run(copied):
    """Trained and benchmarked by half: killed between the two, and before the first stood in the record."""
    place = copied("")
    path = place.only_run() / "spec.yaml"
    spec = yaml.safe_load(path.read_text("utf-8"))
    spec["benchmark"].append({**spec["benchmark"][0], "max_samples": 2})
    path.write_text(yaml.safe_dump(spec))
    edit_record(place, status="benchmarking", ended_at=None, benchmarks=[])
    scores = place.only_run() / "benchmarks" / "output-captions_en_de-test" / "scores.json"
    before = scores.read_bytes()
    done = place.run("resume", "toy")
    assert done.code == 0 and "the training is complete: 12 of 12 steps" in done.err, done.err
    assert place.calls("train") == [] and len(place.calls("api")) == 1
    record = place.record()
    assert sorted(each["n_segments"] for each in record["benchmarks"]) == [2, 3]
    assert record["status"] == "done" and attempts(place)[-1] == ("done", None)
    assert before == scores.read_bytes()


def test_a_training_whose_owner_was_killed_before_it_could_say_so_is_settled(copied, unbroken):
    """By a resume, where nothing else is left to do."""
    place = copied("")
    edit_spec(place, benchmark=[])
    edit_record(place, status="running", ended_at=None, training=None, benchmarks=[])
    done = place.run("resume", "toy")
    assert done.code == 0 and place.calls("train") == [], done.err
    assert outcome(place) == outcome(unbroken) and place.record()["status"] == "done"


def test_weights_that_are_damaged_are_not_complete_and_old_results_are_not_taken_for_new_ones(copied, unbroken):
    """However the clock was set between the two."""
    place = copied("")
    output = place.only_run() / "output"
    weights = output / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    for label in ("checkpoint-12", "checkpoint-10"):
        shutil.rmtree(output / label)
    edit_record(place, status="failed")
    silent = place.run("resume", "toy", FAKE_TRAIN="silent")
    assert silent.code == 4 and "it left no train_results.json" in silent.err, silent.err
    done = place.run("resume", "toy")
    assert done.code == 0 and "resumes from checkpoint-8" in done.err, done.err
    assert outcome(place) == outcome(unbroken)


def test_a_run_that_was_launched_without_benchmarks_stays_one_until_it_is_done(workshop):
    spec = workshop.spec(train=TRAIN, benchmark=[BENCHMARK])
    assert workshop.run("launch", spec, "--no-benchmark", FAKE_TRAIN="torn-checkpoint").code == 4
    done = workshop.run("resume", "toy", "--json")
    assert (done.code, done.json()["status"], workshop.calls("api")) == (0, "done", []), done.err
    refused = workshop.run("resume", "toy", "--no-benchmark")
    assert refused.code == 2 and "is done: there is nothing to resume" in refused.err
    done = workshop.run("resume", "toy")
    assert (done.code, workshop.record()["status"], len(workshop.calls("api"))) == (0, "done", 1), done.err
    assert len(workshop.calls("train")) == 2


# What is refused


def test_a_checkpoint_that_is_not_there_or_not_complete_is_refused_by_name(killed):
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
        assert done.code == 3 and "checkpoint-4 of" in done.err and "cannot be resumed" in done.err
        assert "the newest complete one is checkpoint-2" in done.err
    assert killed.record() == before


def test_where_only_the_number_of_processes_is_another_it_does_not_begin_at_step_0(killed):
    edit_spec(killed, compute={"nproc_per_node": 2})
    before = killed.record()
    done = killed.run("resume", "toy")
    assert done.code == 3 and "was saved by 1 process, and 2 would resume it" in done.err, done.err
    assert "compute.nproc_per_node" in done.err and killed.record() == before


def test_a_run_that_has_an_owner_or_is_another_host_s_is_not_resumed(killed):
    run = RunDir(killed.only_run())
    edit_record(killed, status="running", ended_at=None)
    with owned_by_another(run):
        owned = killed.run("resume", "toy")
    assert owned.code == 3 and f"is running: process {killed.record()['pid']} owns it" in owned.err
    assert f"orchestrator stop {run.id}" in owned.err
    edit_record(killed, host="gpu-box")
    elsewhere = killed.run("resume", "toy")
    assert elsewhere.code == 3 and "on gpu-box owns it" in elsewhere.err


def test_of_two_resumes_at_once_one_gets_the_run(killed, unbroken, tmp_path):
    hold = {"FAKE_HOLD": "5", "FAKE_GO": str(tmp_path / "go")}
    commands = [killed.start("resume", "toy", *words, **hold) for words in ((), (), ("--detach",))]
    wait_for(lambda: [command.popen.poll() for command in commands].count(3) == 2, "two that are refused")
    (tmp_path / "go").touch()
    codes = [command.finish().code for command in commands]
    wait_for(lambda: killed.record()["status"] == "done", "the run's end")
    assert sorted(codes) == [0, 3, 3], [command.err for command in commands]
    assert outcome(killed) == outcome(unbroken) and len(killed.calls("train")) == 1
    assert_none_left(killed)


def test_what_would_make_another_training_ends_it_and_changed_versions_are_said(killed):
    facts = killed.record()["facts"]
    facts["versions"]["torch"] = "1.0"
    other = [{**data, "sha256": "0" * 64} for data in facts["data"]]
    edit_record(killed, facts={**facts, "data": other})
    before = killed.record()
    refused = killed.run("resume", "toy")
    assert refused.code == 3 and "cannot continue as it began: data captions_en_de train: 000000000000" in refused.err
    assert killed.record() == before
    edit_record(killed, facts=facts)
    edit_spec(killed, train={"per_device_train_batch_size": 4, "logging_steps": 3})
    edited = killed.run("resume", "toy")
    assert edited.code == 3 and "train.per_device_train_batch_size: none then, 4 now" in edited.err, edited.err
    path = killed.only_run() / "spec.yaml"
    path.write_text(path.read_text("utf-8").replace("  per_device_train_batch_size: 4\n", ""))
    done = killed.run("resume", "toy")
    assert done.code == 0 and "since the run began: version of torch: 1.0 then" in done.err, done.err
    assert any("torch" in line for line in killed.record()["attempts"][-1]["drift"])


def test_a_run_of_an_earlier_version_is_resumed_too(killed, unbroken):
    record = {key: value for key, value in killed.record().items() if key not in ("request", "values")}
    old = {"boot_id": "x", "process_started_at": 1.0, "process_start_ticks": 1, "awaits_turn": False, "joins": None}
    attempt = {**record["attempts"][0], "status": "created", "ended_at": None}
    changed = {**record, **old, "status": "running", "ended_at": None, "attempts": [attempt], "prepared_sha256": "x"}
    (killed.only_run() / "record.json").write_text(json.dumps(changed))
    (killed.only_run() / ".owner.lock").unlink()
    done = killed.run("resume", "toy")
    assert done.code == 0, done.err
    assert outcome(killed) == outcome(unbroken)
    assert attempts(killed) == [("interrupted", None), ("done", "checkpoint-2")]


def test_what_a_killed_owner_left_running_is_named_and_ended_before_the_run_continues(workshop):
    """It would write into the same output/. The watcher is killed too, so that nobody else ends it."""
    spec = workshop.spec(train={"max_steps": 100_000, "save_steps": 2}, benchmark=None)
    command = workshop.start("launch", spec, FAKE_TRAIN="stubborn", FAKE_STEP_S="0.05")
    command.until(training_at_step(workshop, 3), "step 3")
    command.interrupt(signal.SIGSTOP)  # it would start the watcher again
    left = [each for each in workshop.processes() if each.pid != command.popen.pid]
    for watcher in (each for each in left if "orchestrator.processes.watch" in each.cmdline()):
        watcher.kill()
    command.popen.kill()
    command.popen.wait()
    (run,) = workshop.run_folders()
    trainer = next(each for each in left if "llamafactory-cli" in " ".join(each.cmdline()))
    shown = workshop.run("show", "toy").out
    assert f"its process {command.popen.pid} has exited without recording a result; still running: " in shown
    assert str(trainer.pid) in shown and f"orchestrator stop {run.name}" in shown
    stopped = workshop.run("stop", "toy", "--grace", "0.3")
    assert stopped.code == 0 and "its owner had left running, now ended" in stopped.err, stopped.err
    assert workshop.left_over() == []
    assert "nothing of it is still running. To continue: orchestrator resume" in workshop.run("show", "toy").out
