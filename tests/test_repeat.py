"""A run beside the one that it repeats, from the run folders. Run: pytest tests/test_repeat.py."""

import logging
import shutil
from dataclasses import replace

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.lifecycle.rerun import RerunComparison, drift_from, log_differences
from orchestrator.planning.session import Session
from orchestrator.runs.differences import Difference, Side, differences
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Training
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.spec_file import load_spec


@pytest.fixture
def session(toy, monkeypatch, caplog) -> Session:
    """Of a workspace with the finished run `toy`."""
    monkeypatch.setenv("ORCHESTRATOR_LLAMAFACTORY", str(toy.cli))
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(toy.root.parent / "cache"))
    caplog.set_level(logging.INFO, "orchestrator")
    return Session.open(toy.root)


@pytest.fixture
def past(toy) -> RunDir:
    return RunDir(toy.only_run())


def repeat(session: Session, past: RunDir, *asked: str, **facts: object) -> RerunComparison:
    record = RunRecord.load(past)
    record.overrides, record.facts = list(asked), record.facts.model_copy(update=facts)
    return RerunComparison(session, past, load_spec(past.spec, asked), record)


def losses(past: RunDir) -> list[float]:
    training = RunRecord.load(past).training
    assert training is not None and len(training.logged_losses) > 2
    return training.logged_losses


def test_scores_are_said_beside_the_past_ones(session, past, caplog):
    repeat(session, past).scored(RunRecord.load(past).benchmarks)
    lines = [message.removeprefix(f"{past.id}: ") for message in caplog.messages]
    assert {line.partition(": ")[0] for line in lines} == {"captions_en_de test, base", "captions_en_de test, output"}
    assert all(" then, " in line for line in lines)


def test_strict_refuses_other_data_and_models_and_nothing_else(session, past, caplog):
    record, spec = RunRecord.load(past), load_spec(past.spec)
    then = Side("then", spec, record.facts)

    def drift(**facts):
        return differences(then, replace(then, facts=record.facts.model_copy(update=facts)))

    field = Difference("spec", "train.x", 1, 2, "trajectory", "warning")
    log_differences(past, [*drift(versions={}), field], strict=True)
    assert {each.levelno for each in caplog.records} == {logging.WARNING}
    model = drift(model_sha256="9" * 64)
    log_differences(past, model, strict=False)
    with pytest.raises(PrerequisiteError, match="model hash"):
        log_differences(past, model, strict=True)


def test_a_run_with_another_peft_is_explained_by_it(session, past, caplog):
    """Within the band as beyond it: the version is what is named."""
    record = RunRecord.load(past)
    versions = {**record.facts.versions, "peft": "0.0.1"}
    record.update(past, facts=record.facts.model_copy(update={"versions": versions}))
    for factor, verdict in ((1, "same"), (1.000_01, "within"), (1.5, "different")):
        caplog.clear()
        found = repeat(session, past, versions={**versions, "peft": "0.18.1"})
        given = found.trained(Training(steps=5, total_steps=5, logged_losses=[each * factor for each in losses(past)]))
        assert given is not None and given.verdict == verdict
        assert given.message in caplog.messages[0]
        assert caplog.records[0].levelno == (logging.WARNING if verdict == "different" else logging.INFO)
        assert ("likely cause: version of peft: 0.0.1 then, 0.18.1 now" in given.message) is (verdict != "same")


def test_trained_weights_are_said_to_be_the_same_or_others_where_both_are_known(session, past, caplog):
    then = RunRecord.load(past).training
    assert then is not None and then.weights_sha256 is not None
    for now, said in ((then.weights_sha256, "the same, to the last bit"), ("9" * 64, "others"), (None, None)):
        caplog.clear()
        repeat(session, past).trained(then.model_copy(update={"weights_sha256": now}))
        lines = [line for line in caplog.messages if "the trained weights" in line]
        assert lines == ([] if said is None else [f"{past.id}: the trained weights are {said}"])


def test_what_others_changed_while_it_ran_is_said_with_its_severity(session, past, caplog):
    assert repeat(session, past).changed() == []
    weights = session.workspace.root / "models" / "tiny" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = repeat(session, past, versions={**RunRecord.load(past).facts.versions, "peft": "0.0.1"})
    model, peft = found.changed()
    assert model.startswith("(error) model hash: ")
    assert peft.startswith("(warning) version of peft: 0.0.1 then, ")
    assert [each.levelno for each in caplog.records] == [logging.WARNING] * 2
    shutil.rmtree(weights.parent)
    (line,) = repeat(session, past).changed()
    assert line.startswith("(warning) model hash: ") and line.endswith(", none now")


def test_what_differs_is_listed_by_severity(session, past):
    record = RunRecord.load(past)
    facts = record.facts.model_copy(update={"platform": "Plan 9", "model_sha256": "9" * 64})
    found = drift_from(session, past, load_spec(past.spec, ["seed=43"]), facts, ["seed=43"])
    assert [each.severity for each in found] == ["error", "warning", "note"] and found[-1].path == "seed"
    assert drift_from(session, past, load_spec(past.spec), record.facts, []) == []
