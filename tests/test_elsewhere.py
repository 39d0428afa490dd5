"""A past run, run again in another workspace. Run: pytest tests/test_elsewhere.py."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.lifecycle.cross_workspace import Dependencies, saved_run
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import RunDir, find_workspace
from tests.workshop import Workshop, new_workshop

ROWS = "".join(json.dumps({"instruction": "Translate", "input": "a", "output": "b"}) + "\n" for _ in range(40))


def other(toy: Workshop, parent: Path) -> Workshop:
    """A workspace without models."""
    made = new_workshop(parent, toy.cli)
    shutil.rmtree(made.root / "models")
    return made


def dataset(workshop: Workshop, name: str, file_name: str) -> None:
    """An entry in LLaMA-Factory's own format, and a spec.yaml that trains on it, without a record beside it."""
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    entry = {"description": "x", "llamafactory": {"file_name": file_name, "columns": columns}}
    (workshop.root / "dataset_info" / f"{name}.yaml").write_text(yaml.safe_dump(entry))
    (workshop.only_run() / "record.json").unlink(missing_ok=True)
    path = workshop.only_run() / "spec.yaml"
    spec = yaml.safe_load(path.read_text("utf-8"))
    path.write_text(yaml.safe_dump({**spec, "dataset": name}))


def test_a_run_is_run_again_in_another_workspace_with_what_it_needs_of_the_old_one(toy, tmp_path):
    """The model stays where it is, and counts as the same one by its hash; the comparison is with the old run."""
    place = other(toy, tmp_path / "new")
    done = toy.run("rerun", "toy", "--in", place.root, "--no-benchmark", "--strict")
    assert done.code == 0, done.err
    record = place.record()
    assert (record["rerun_of"], record["status"]) == (str(toy.only_run()), "done")
    assert record["overrides"] == [f"model.name_or_path={json.dumps(str(toy.root / 'models' / 'tiny'))}"]
    assert record["verdict"].startswith("same: ") and len(toy.run_folders()) == 1
    assert f"model.name_or_path is the old workspace's: {toy.root}" in done.err


def test_a_bare_spec_yaml_and_a_dataset_of_the_old_workspace_are_enough(toy, tmp_path):
    (toy.root / "dataset_info" / "own.jsonl").write_text(ROWS)
    dataset(toy, "own", "own.jsonl")
    spec = toy.only_run() / "spec.yaml"
    place = other(toy, tmp_path / "new")
    words = ("rerun", spec, "--in", place.root, "--no-benchmark")
    refused = toy.run(*words, "--set", "train.lora_rnak=4")
    assert refused.code == 2 and list((place.root / "dataset_info").iterdir()) == []  # checked before it is copied
    done = toy.run(*words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "there is nothing to compare with" in done.err and "dataset own is copied from" in done.err
    assert place.record()["rerun_of"] is None
    assert {path.name for path in (place.root / "dataset_info").iterdir()} == {"own.yaml", "own.jsonl"}


@pytest.mark.parametrize("way", ["a path that leads out", "a link that leads out", "a linked entry"])
def test_nothing_of_a_stranger_s_workspace_is_copied_but_what_lies_in_its_dataset_info(toy, tmp_path, way, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    (toy.root / "profile.jsonl").write_text(ROWS)
    folder = toy.root / "dataset_info"
    dataset(toy, "own", "../profile.jsonl" if way == "a path that leads out" else "own.jsonl")
    if way == "a link that leads out":
        (folder / "own.jsonl").symlink_to(toy.root / "profile.jsonl")
    elif way == "a linked entry":
        (folder / "own.jsonl").write_text(ROWS)
        (folder / "own.yaml").rename(toy.root / "own.yaml")
        (folder / "own.yaml").symlink_to(toy.root / "own.yaml")
    place = other(toy, tmp_path / "new")
    with pytest.raises(SpecError, match=r"dataset own of the old workspace is not copied: .* is outside"):
        Dependencies(Session.open(place.root), datasets=["own"], old=folder).copy()
    assert list((place.root / "dataset_info").iterdir()) == [] and not (place.root / "profile.jsonl").exists()


def test_what_a_word_means(toy, tmp_path, monkeypatch):
    """A name means a run whatever lies in the current folder; a path needs no workspace."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "spec.yaml").write_text("name: x\n")
    monkeypatch.chdir(tmp_path)
    place, run = find_workspace(toy.root), RunDir(toy.only_run())
    assert saved_run("toy", place) == saved_run(str(run.path), None) == saved_run(str(run.spec), None) == run
    assert saved_run("toy/spec.yaml", None) == Path("toy/spec.yaml")
    for word, workspace, said in (
        ("tooy", place, "did you mean 'toy'?"),
        ("toy", None, "no run folder and no spec.yaml 'toy'"),
        ("x/" * 5000, place, "no run"),
    ):
        with pytest.raises(SpecError, match=said):
            saved_run(word, workspace)
    done = toy.run("rerun", "toy", "--in", tmp_path / "none")
    assert done.code == 2 and "is no workspace" in done.err
