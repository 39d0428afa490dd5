"""A run that is resumed after each kind of end; the fake's weights depend on every step that led to them."""

import hashlib
import json
import re
import shutil
import signal

import pytest
import yaml

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.lifecycle.resume import check_unchanged, find_resume_point, plan_resume
from orchestrator.lifecycle.training_results import problems
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current
from tests.workshop import Workshop, assert_none_left, new_workshop, training_at_step, wait_for

TRAIN = {"max_steps": 12, "save_steps": 2, "val_size": 0.1, "do_eval": True}
BENCHMARK = {"testset": "captions_en_de", "max_samples": 3, "n_bootstrap": 10}


@pytest.fixture(scope="module")
def ended(tmp_path_factory, fake_cli):
    """The same run: never broken off; killed as it saved its second checkpoint; killed before its final save."""
    made, commands = {}, []
    for mode in ("", "torn-checkpoint", "unsaved"):
        made[mode] = place = new_workshop(tmp_path_factory.mktemp(mode or "unbroken"), fake_cli)
        spec = place.spec(train=TRAIN, benchmark=[BENCHMARK])
        commands.append(place.start("launch", spec, FAKE_TRAIN=mode))
    done = [command.finish() for command in commands]
    assert [each.code for each in done] == [0, 4, 4] and "status -9" in done[1].err, done
    return made


@pytest.fixture
def unbroken(ended):
    return ended[""]


@pytest.fixture
def copied(ended, tmp_path):
    return lambda mode: ended[mode].copy(tmp_path / "copied")


@pytest.fixture
def killed(copied):
    made = copied("torn-checkpoint")
    yield made
    made.kill_all()


def outcome(workshop: Workshop) -> dict[str, object]:
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


def test_stops_a_kill_and_a_checkpoint_that_is_named_make_one_curve_to_the_same_end(workshop, unbroken):
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
    done = workshop.run("resume", "toy", "--from", "checkpoint-5")
    assert done.code == 0 and "the training resumes from checkpoint-5" in done.err, done.err
    assert "checkpoint-6, checkpoint-8: later than checkpoint-5, so kept in output-1/" in done.err
    assert outcome(workshop) == outcome(unbroken)  # of the steps that were trained twice only the second time counts
    found = [(each["status"], each["from_step"]) for each in workshop.record()["attempts"]]
    assert found == [("interrupted", 0), ("stopped", 3), ("stopped", 5), ("done", 5)]


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


def test_a_training_that_was_killed_between_its_last_step_and_its_end_is_not_trained_on(copied, unbroken):
    """transformers takes a step before it looks at max_steps: it would end as another model, at 13 of 12."""
    place = copied("unsaved")
    assert not (place.only_run() / "output" / "adapter_model.safetensors").exists()
    done = place.run("resume", "toy")
    assert done.code == 0 and "the weights of checkpoint-12 are taken as that" in done.err, done.err
    assert place.calls("train") == [] and len(place.record()["benchmarks"]) == 1
    assert outcome(place) == outcome(unbroken)
    names = {path.name for path in (place.only_run() / "output").iterdir() if path.is_file()}
    assert {"adapter_config.json", "trainer_state.json"} <= names and "optimizer.pt" not in names


@pytest.mark.parametrize(
    ("step", "counter", "said"),
    [(12, None, None), (11, None, "step 11 of 12"), (13, None, "step 13 of 12"), (11, 3, None), (11, 2, "step 11")],
)  # fmt: skip
def test_a_training_is_complete_at_its_last_step_or_where_it_stopped_early_by_itself(copied, step, counter, said):
    run = RunDir(copied("").only_run())
    state = {"global_step": step, "max_steps": 12}
    if counter is not None:  # as transformers' EarlyStoppingCallback keeps it
        args, attributes = {"early_stopping_patience": 3}, {"early_stopping_patience_counter": counter}
        state["stateful_callbacks"] = {"EarlyStoppingCallback": {"args": args, "attributes": attributes}}
    (run.output / "trainer_state.json").write_text(json.dumps(state))
    found = problems(run)
    assert (found == []) == (said is None) and all(said in each for each in found)


def test_only_the_benchmarks_that_are_missing_are_run(copied):
    """Trained and benchmarked by half: killed between the two, and before the first stood in the record."""
    place = copied("")
    edit_spec(place, benchmark=[BENCHMARK, {**BENCHMARK, "max_samples": 2}])
    edit_record(place, status="benchmarking", ended_at=None, benchmarks=[])
    scores = place.only_run() / "benchmarks" / "output-captions_en_de-test" / "scores.json"
    before = scores.read_bytes()
    done = place.run("resume", "toy")
    assert done.code == 0 and "the training is complete: 12 of 12 steps" in done.err, done.err
    assert place.calls("train") == [] and len(place.calls("api")) == 1
    assert sorted(each["n_segments"] for each in place.record()["benchmarks"]) == [2, 3]
    assert before == scores.read_bytes() and len(list(scores.parent.parent.iterdir())) == 2


def test_weights_that_are_damaged_are_not_complete_and_old_results_are_not_taken_for_new_ones(copied, unbroken):
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


@pytest.fixture
def session(killed, monkeypatch):
    return killed.session(monkeypatch)


def planned(session, killed, label=None, *, no_benchmark=False):
    return plan_resume(session, RunDir(killed.only_run()), label, no_benchmark=no_benchmark, wait=False)


@pytest.mark.parametrize(
    ("status", "launched", "done_with", "no_benchmark", "with_benchmarks"),
    [("failed", True, True, True, False), ("failed", False, False, False, False), ("done", False, False, False, True),
     ("done", True, True, False, None), ("done", False, False, True, None)],
)  # fmt: skip
def test_a_training_only_run_stays_one_until_it_is_done_and_one_that_is_done_is_not_resumed(
    session, killed, status, launched, done_with, no_benchmark, with_benchmarks
):
    edit_record(killed, status=status, with_benchmarks=launched, request={"with_benchmarks": done_with})
    if with_benchmarks is None:
        with pytest.raises(SpecError, match="is done: there is nothing to resume"):
            planned(session, killed, no_benchmark=no_benchmark)
    else:
        _, request = planned(session, killed, no_benchmark=no_benchmark)
        assert request.with_benchmarks == with_benchmarks


@pytest.mark.parametrize(
    ("label", "record", "spec", "error", "said"),
    [
        ("checkpoint-3", {}, {}, SpecError, "has no checkpoint-3; did you mean"),
        ("checkpoint-4", {}, {}, PrerequisiteError, "checkpoint-4 of .* cannot be resumed: .*newest "
         "first: checkpoint-2"),
        (None, {}, {"compute": {"nproc_per_node": 2}}, PrerequisiteError, "was saved by 1 process, and 2 would resume "
         "it.*compute.nproc_per_node"),
        (None, {"status": "running", "ended_at": None, "host": "gpu-box"}, {}, PrerequisiteError, "on gpu-box owns it"),
        (None, {"data": True}, {}, PrerequisiteError, "cannot continue as it began: data captions_en_de train: 00000"),
        (None, {}, {"train": {"per_device_train_batch_size": 4, "logging_steps": 3}}, PrerequisiteError,
         "train.per_device_train_batch_size: none then, 4 now"),
    ],
)  # fmt: skip
def test_what_cannot_be_resumed_is_refused_with_the_reason(session, killed, label, record, spec, error, said):
    if record.pop("data", None):
        facts = killed.record()["facts"]
        record = {"facts": {**facts, "data": [{**each, "sha256": "0" * 64} for each in facts["data"]]}}
    edit_record(killed, **record)
    edit_spec(killed, **spec)
    before = killed.record()
    with pytest.raises(error) as raised:
        planned(session, killed, label)
    assert re.search(said, f"{raised.value.message}\n{raised.value.remedy}", re.DOTALL), raised.value
    assert killed.record() == before


def test_a_stage_that_llamafactory_resumes_from_no_checkpoint_begins_at_step_0(session, killed):
    spec = session.load_spec(killed.only_run() / "spec.yaml", ["train.stage=rm", "train.finetuning_type=full"])
    run = RunDir(killed.only_run())
    facts = RunRecord.load(run).facts
    assert find_resume_point(run, spec, facts).step == 0
    with pytest.raises(SpecError, match="resumes from no checkpoint of rm with full, so not from checkpoint-2"):
        find_resume_point(run, spec, facts, "checkpoint-2")


def test_a_run_of_an_earlier_version_can_be_resumed_and_changed_versions_are_said(session, killed):
    record = {key: value for key, value in killed.record().items() if key not in ("request", "values")}
    old = {"boot_id": "x", "process_started_at": 1.0, "process_start_ticks": 1, "awaits_turn": False, "joins": None}
    record["facts"]["versions"]["torch"] = "1.0"
    changed = {**record, **old, "status": "running", "ended_at": None, "prepared_sha256": "x"}
    (killed.only_run() / "record.json").write_text(json.dumps(changed))
    (killed.only_run() / ".owner.lock").unlink()
    plan, _ = planned(session, killed)
    run = RunDir(killed.only_run())
    (line,) = check_unchanged(run, RunRecord.load(run), plan.spec, plan.facts)
    assert line.startswith("version of torch: 1.0 then")


def test_of_two_resumes_at_once_one_gets_the_run(killed, unbroken, tmp_path):
    hold = {"FAKE_HOLD": "5", "FAKE_GO": str(tmp_path / "go")}
    commands = [killed.start("resume", "toy", *words, **hold) for words in ((), (), ("--detach",))]
    wait_for(lambda: [command.popen.poll() for command in commands].count(3) == 2, "two that are refused")
    (tmp_path / "go").touch()
    done = [command.finish() for command in commands]
    wait_for(lambda: killed.record()["status"] == "done", "the run's end")
    assert sorted(each.code for each in done) == [0, 3, 3], done
    refused = next(each.err for each in done if each.code == 3)
    assert "owns it" in refused and "orchestrator stop toy-" in refused
    assert outcome(killed) == outcome(unbroken) and len(killed.calls("train")) == 1
    assert_none_left(killed)


def test_what_a_killed_owner_left_running_is_named_and_ended_before_the_run_continues(workshop):
    """It would write into the same output/. The watcher is killed too, so that nobody else ends it."""
    spec = workshop.spec(train={"max_steps": 100_000}, benchmark=None)
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
    (warning,) = [each for each in workshop.run("doctor", "--json").json()["findings"] if each["severity"] == "warning"]
    assert f"{run.name} has no owner, and left running: " in warning["message"] and "--clean" in warning["remedy"]
    assert f"its process {command.popen.pid} has exited without recording a result; still running: " in shown
    assert str(trainer.pid) in shown and f"orchestrator stop {run.name}" in shown
    stopped = workshop.run("stop", "toy", "--grace", "0.3")
    assert stopped.code == 0 and "its owner had left running, now ended" in stopped.err, stopped.err
    assert workshop.left_over() == []
