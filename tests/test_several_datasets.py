"""Trainings on several datasets and on LLaMA-Factory's own formats, from the spec to what LLaMA-Factory is given."""

import hashlib
import json
import shutil

import yaml

from tests.workshop import CAPTIONS

PREPARED = {"prompt": "instruction", "query": "input", "response": "output"}
ALPACA = [{"instruction": f"Say {word}.", "input": "", "output": word} for word in ("one", "two", "three", "four")]


def entry(workshop, name, info, records):
    """dataset_info/NAME.yaml in LLaMA-Factory's own format, with its records beside it."""
    folder = workshop.root / "dataset_info"
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    held = {"description": "a toy", "llamafactory": {"file_name": file.name, **info}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(held), encoding="utf-8")
    return file


def with_captions(workshop, name):
    """captions_en_de under another name, in the workspace."""
    folder = workshop.root / "dataset_info"
    shutil.copytree(CAPTIONS, folder / "captions_en_de")
    shutil.copyfile(CAPTIONS.with_suffix(".yaml"), folder / f"{name}.yaml")


def lines(path):
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_each_dataset_of_a_run_has_its_file_and_its_entry(workshop):
    """Parallel texts are prepared in the run folder; own formats are read where they are."""
    with_captions(workshop, "mine")
    file = entry(workshop, "toy", {"columns": {"prompt": "instruction", "response": "output"}}, ALPACA)
    spec = workshop.spec(dataset=["captions_en_de", "mine"], eval_dataset="mine, toy", benchmark=None)
    done = workshop.run("launch", spec)
    assert done.code == 0, done.err
    run = workshop.only_run()
    (call,) = workshop.calls("train")
    assert call["arguments"]["dataset"] == "captions_en_de,mine"
    assert call["arguments"]["eval_dataset"] == "mine-validation,toy"
    info = json.loads((run / "dataset_info.json").read_text("ascii"))
    assert info == {
        "captions_en_de": {"file_name": "data/captions_en_de.jsonl", "columns": PREPARED},
        "mine": {"file_name": "data/mine.jsonl", "columns": PREPARED},
        "mine-validation": {"file_name": "data/mine-validation.jsonl", "columns": PREPARED},
        "toy": {"file_name": str(file), "columns": {"prompt": "instruction", "response": "output"}},
    }
    sizes = {path.name: len(lines(path)) for path in (run / "data").iterdir()}
    assert sizes == {"captions_en_de.jsonl": 500, "mine.jsonl": 500, "mine-validation.jsonl": 50}
    data = workshop.record()["facts"]["data"]
    assert [(each["dataset"], each["split"], each["use"], each["pairs"]) for each in data] == [
        ("captions_en_de", "train", "train", 500),
        ("mine", "train", "train", 500),
        ("mine", "validation", "eval", 50),
        ("toy", "train", "eval", 4),
    ]
    assert data[3]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
