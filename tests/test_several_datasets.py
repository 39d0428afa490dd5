"""Trainings on several datasets and on LLaMA-Factory's own formats, from the spec to what LLaMA-Factory is given."""

import json
import shutil

import yaml

from tests.workshop import CAPTIONS

PREPARED = {"prompt": "instruction", "query": "input", "response": "output"}


def test_each_dataset_of_a_run_has_its_file_and_its_entry(workshop):
    """Parallel texts are prepared in the run folder; own formats are read where they are."""
    folder = workshop.root / "dataset_info"
    shutil.copytree(CAPTIONS, folder / "captions_en_de")
    shutil.copyfile(CAPTIONS.with_suffix(".yaml"), folder / "mine.yaml")
    columns, file = {"prompt": "instruction", "response": "output"}, folder / "toy.jsonl"
    file.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": str(n)}) + "\n" for n in range(4)))
    own = {"description": "a toy", "llamafactory": {"file_name": file.name, "columns": columns}}
    (folder / "toy.yaml").write_text(yaml.safe_dump(own))
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
        "toy": {"file_name": str(file), "columns": columns},
    }
    sizes = {path.name: path.read_text("ascii").count("\n") for path in (run / "data").iterdir()}
    assert sizes == {"captions_en_de.jsonl": 500, "mine.jsonl": 500, "mine-validation.jsonl": 50}
    found = [(each["dataset"], each["split"], each["use"]) for each in workshop.record()["facts"]["data"]]
    expected = [("captions_en_de", "train", "train"), ("mine", "train", "train"), ("mine", "validation", "eval")]
    assert found == [*expected, ("toy", "train", "eval")]
