"""A past run, run again, here or in another workspace. Run: pytest tests/test_rerun.py."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.lifecycle.rerun import compare_trainings, drift_from, log_differences, saved_run
from orchestrator.planning.session import Session
from orchestrator.runs.differences import Side, differences
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir, find_workspace
from orchestrator.specs.spec_file import load_spec
from tests.workshop import new_workshop


@pytest.fixture
def session(toy, monkeypatch, caplog) -> Session:
    caplog.set_level(logging.INFO, "orchestrator")
    return toy.session(monkeypatch)


@pytest.fixture
def past(toy) -> RunDir:
    return RunDir(toy.only_run())


@pytest.mark.parametrize(
    ("factor", "peft", "weights", "said"),
    [
        (1, None, "same", ["same: the first 5 logged losses are the same", "the same, to the last bit"]),
        (1, None, "9" * 64, ["same: ", "the trained weights are others"]),
        (1.000_01, "0.0.1", None, ["within: ", "likely cause: version of peft: 0.0.1 then, "]),
        (1.5, "0.0.1", None, ["different: ", "likely cause: version of peft: 0.0.1 then, "]),
    ],
)
def test_the_verdict_on_a_training_names_the_likely_cause_and_whether_the_weights_are_the_same(
    session, past, caplog, factor, peft, weights, said
):
    now, then = RunRecord.load(past), RunRecord.load(past)
    if peft is not None:
        versions = {**then.facts.versions, "peft": peft}
        then.update(past, facts=then.facts.model_copy(update={"versions": versions}))
    assert now.training is not None
    now.training.logged_losses = [each * factor for each in now.training.logged_losses]
    now.training.weights_sha256 = now.training.weights_sha256 if weights == "same" else weights
    verdict = compare_trainings(session, past, load_spec(past.spec), now) or ""
    assert all(text in verdict + " ".join(caplog.messages) for text in said)
    assert ("the trained weights" in caplog.text) == (weights is not None)
    assert (caplog.records[0].levelno == logging.WARNING) == (factor == 1.5)
    now.training = None
    assert compare_trainings(session, past, load_spec(past.spec), now) is None


def test_strict_refuses_other_data_and_models_and_nothing_else(session, past, caplog):
    record, spec = RunRecord.load(past), load_spec(past.spec)
    then = Side("then", spec, record.facts)

    def drift(**facts):
        return differences(then, replace(then, facts=record.facts.model_copy(update=facts)))

    log_differences(past, drift(versions={}), strict=True)
    assert {each.levelno for each in caplog.records} == {logging.WARNING}
    log_differences(past, drift(model_sha256="9" * 64), strict=False)
    with pytest.raises(PrerequisiteError, match="model hash"):
        log_differences(past, drift(model_sha256="9" * 64), strict=True)


def test_what_differs_is_listed_by_severity(session, past):
    record = RunRecord.load(past)
    facts = record.facts.model_copy(update={"platform": "Plan 9", "model_sha256": "9" * 64})
    found = drift_from(session, past, load_spec(past.spec, ["seed=43"]), facts, ["seed=43"])
    assert [each.severity for each in found] == ["error", "warning", "note"] and found[-1].path == "seed"
    assert drift_from(session, past, load_spec(past.spec), record.facts, []) == []


def test_a_run_is_run_again_in_another_workspace_with_the_model_where_it_is(toy, tmp_path):
    place = new_workshop(tmp_path / "new", toy.cli)
    shutil.rmtree(place.root / "models")
    done = toy.run("rerun", "toy", "--in", place.root, "--no-benchmark", "--strict")
    assert done.code == 0, done.err
    record = place.record()
    assert (record["rerun_of"], record["status"]) == (str(toy.only_run()), "done")
    assert record["overrides"] == [f"model.name_or_path={json.dumps(str(toy.root / 'models' / 'tiny'))}"]
    assert record["verdict"].startswith("same: ") and len(toy.run_folders()) == 1
    assert f"model.name_or_path is the old workspace's: {toy.root}" in done.err


@pytest.mark.parametrize("has_files", [False, True])
def test_entries_of_the_old_workspace_are_copied_after_the_check_and_their_files_are_not(toy, tmp_path, has_files):
    """A bare spec.yaml, without a record beside it."""
    row = json.dumps({"instruction": "Translate", "input": "a", "output": "b"}) + "\n"
    data = toy.root / "dataset_info" / "own.jsonl" if has_files else toy.root / "own.jsonl"
    data.write_text(row * 40)
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    given = {"file_name": "own.jsonl" if has_files else str(data), "columns": columns}
    (toy.root / "dataset_info" / "own.yaml").write_text(yaml.safe_dump({"description": "x", "llamafactory": given}))
    (toy.only_run() / "record.json").unlink()
    spec = toy.only_run() / "spec.yaml"
    spec.write_text(yaml.safe_dump({**yaml.safe_load(spec.read_text("utf-8")), "dataset": "own"}))
    place = new_workshop(tmp_path / "new", toy.cli)
    words = ("rerun", spec, "--in", place.root, "--no-benchmark")
    wrong = toy.run(*words, "--set", "train.lora_rnak=4")
    assert wrong.code == 2 and list((place.root / "dataset_info").iterdir()) == []
    done = toy.run(*words, cwd=tmp_path)
    if has_files:
        assert done.code in (2, 3) and "own.jsonl" in done.err, done.err
        assert list((place.root / "dataset_info").iterdir()) == []
    else:
        assert done.code == 0 and "there is nothing to compare with" in done.err, done.err
        assert place.record()["rerun_of"] is None


def test_what_a_word_means(toy, tmp_path, monkeypatch):
    """A name means a run whatever lies in the current folder; a path needs no workspace."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "spec.yaml").write_text("name: x\n")
    monkeypatch.chdir(tmp_path)
    place, run = find_workspace(toy.root), RunDir(toy.only_run())
    assert saved_run("toy", place) == saved_run(str(run.path), None) == saved_run(str(run.spec), None) == run
    assert saved_run("toy/spec.yaml", None) == Path("toy/spec.yaml")
    for word, workspace, said in (("tooy", place, "did you mean 'toy'?"), ("toy", None, "no run folder and no spec")):
        with pytest.raises(SpecError, match=said):
            saved_run(word, workspace)
