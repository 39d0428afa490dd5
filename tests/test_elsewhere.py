"""A past run, run again in another workspace. Run: pytest tests/test_elsewhere.py."""

import json
import shutil
from pathlib import Path

import yaml

from tests.workshop import Workshop, new_workshop


def other(toy: Workshop, parent: Path) -> Workshop:
    """A workspace without models."""
    made = new_workshop(parent, toy.cli)
    shutil.rmtree(made.root / "models")
    return made


def test_a_run_is_run_again_in_another_workspace_with_what_it_needs_of_the_old_one(toy, tmp_path):
    """The model stays where it is, and counts as the same one by its hash; the comparison is with the old run."""
    place = other(toy, tmp_path / "new")
    done = toy.run("rerun", "toy", "--in", place.root, "--no-benchmark", "--strict")
    assert done.code == 0, done.err
    record = place.record()
    assert record["rerun_of"] == str(toy.only_run()) and record["status"] == "trained"
    assert record["overrides"] == [f"model.name_or_path={json.dumps(str(toy.root / 'models' / 'tiny'))}"]
    assert record["verdict"].startswith("same: ")
    assert f"model.name_or_path is the old workspace's: {toy.root}" in done.err
    assert len(toy.run_folders()) == 1


def test_a_bare_spec_yaml_and_a_dataset_of_the_old_workspace_are_enough(toy, tmp_path):
    rows = [{"instruction": "Translate", "input": "a", "output": "b"}] * 40
    (toy.root / "dataset_info" / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {
        "file_name": "own.jsonl", "columns": {"prompt": "instruction", "query": "input", "response": "output"}
    }  # fmt: skip
    (toy.root / "dataset_info" / "own.yaml").write_text(yaml.safe_dump({"description": "x", "llamafactory": entry}))
    (toy.only_run() / "record.json").unlink()
    spec = toy.only_run() / "spec.yaml"
    spec.write_text(spec.read_text("utf-8").replace('dataset: "captions_en_de"', 'dataset: "own"', 1), "utf-8")
    spec.write_text(spec.read_text("utf-8").replace("dataset: captions_en_de", "dataset: own", 1), "utf-8")
    place = other(toy, tmp_path / "new")
    done = toy.run("rerun", spec, "--in", place.root, "--no-benchmark", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "there is nothing to compare with" in done.err and "dataset own is copied from" in done.err
    assert place.record()["rerun_of"] is None
    assert {"own.yaml", "own.jsonl"} <= {path.name for path in (place.root / "dataset_info").iterdir()}


def test_files_of_arguments_are_taken_along_and_what_is_not_is_said(toy, tmp_path):
    """LLaMA-Factory opens them in the run folder."""
    spec = toy.only_run() / "spec.yaml"
    (toy.root / "media" / "a").mkdir(parents=True)
    (toy.root / "media" / "a" / "x.png").write_bytes(b"x")
    for path in (toy.root / "tokens.json", tmp_path / "outside.json"):
        path.write_text("{}")
    (toy.root / "templates").mkdir()
    (toy.root / "templates" / "train.yaml.j2").write_text("# ours\n{{ train }}")
    changed = yaml.safe_load(spec.read_text("utf-8"))
    changed["train"] |= {
        "media_dir": "../../media", "cache_dir": str(toy.root / "media"), "ref_model": "../../../outside.json",
        "reward_model": "../../tokens.json", "run_name": "runs", "logging_dir": "..",
    }  # fmt: skip
    spec.write_text(yaml.safe_dump(changed), "utf-8")
    place = other(toy, tmp_path / "new")
    (place.root / "tokens.json").write_text("another")
    done = toy.run("rerun", spec, "--in", place.root, "--no-benchmark")
    assert done.code == 0, done.err
    assert (place.root / "media" / "a" / "x.png").read_bytes() == b"x"
    assert (place.root / "tokens.json").read_text() == "another"
    assert f"train.media_dir is copied from {toy.root / 'media'}" in done.err
    assert f"train.cache_dir is the old workspace's: {toy.root / 'media'}" in done.err
    assert f"train.reward_model is not taken along: there is another {place.root / 'tokens.json'}" in done.err
    assert f"train.ref_model is not taken along: {tmp_path / 'outside.json'} is outside the old workspace" in done.err
    assert "the old workspace's templates/train.yaml.j2 is not taken along" in done.err
    assert "run_name" not in done.err and "logging_dir" not in done.err
    again = toy.run("rerun", "toy", "--in", place.root, "--no-benchmark")
    assert f"train.media_dir is not taken along: the folder {place.root / 'media'} is there already" in again.err


def test_what_is_neither_a_run_nor_a_spec_is_refused(toy, tmp_path):
    done = toy.run("rerun", "tooy", "--in", toy.root)
    assert done.code == 2 and "did you mean 'toy'?" in done.err
    done = toy.run("rerun", "toy", "--in", tmp_path / "none")
    assert done.code == 2 and "is no workspace" in done.err
    done = toy.run("rerun", "toy", "--in", toy.root, cwd=tmp_path)
    assert done.code == 2 and "name one by its path" in done.err


def test_a_name_means_a_run_whatever_lies_in_the_current_folder(toy, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "spec.yaml").write_text("name: x\n")
    done = toy.run("rerun", "toy", "--workspace", toy.root, "--no-benchmark", cwd=tmp_path)
    assert done.code == 0, done.err
    long = toy.run("rerun", "x/" * 5000)
    assert long.code == 2 and "no run" in long.err
