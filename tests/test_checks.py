"""Datasets of a spec, as far as our own process checks them. Run: pytest tests/test_checks.py."""

import json
import shutil

import pytest

from orchestrator.data.checks import check_data
from orchestrator.data.datasets import ArchiveStore
from orchestrator.files import shipped
from orchestrator.specs.spec import RunSpec

SHIPPED = shipped("dataset_info")


@pytest.fixture
def check(tmp_path):
    """Checks a training on an entry 'toy' in LLaMA-Factory's format, if there is one, with other sections."""

    def make(content=None, stage="sft", file="toy.json", info=None, **sections):
        if content is not None:
            (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
        if info is not None:
            entry = {"description": "x", "llamafactory": {"file_name": file, **info}}
            (tmp_path / "toy.yaml").write_text(json.dumps(entry))
        usual = {"name": "x", "model": {"name_or_path": "m"}, "dataset": "toy", "train": {"stage": stage}}
        spec = RunSpec.model_validate(usual | sections)
        return check_data(spec, [tmp_path, SHIPPED], ArchiveStore(None, tmp_path / "cache"))

    return make


def test_each_dataset_is_checked_under_its_own_place(check, tmp_path):
    entry = (SHIPPED / "captions_en_de.yaml").read_text("utf-8")
    (tmp_path / "bare.yaml").write_text(entry.partition("  validation:\n")[0], "utf-8")
    shutil.copytree(SHIPPED / "captions_en_de", tmp_path / "captions_en_de")
    found = check(dataset=["captions_en_de", "captoins_en_de"], eval_dataset="bare")
    assert [each.field for each in found] == ["dataset.1", "eval_dataset"]
    assert "did you mean 'captions_en_de'" in found[0].message
    assert "has no split 'validation'" in found[1].message and "it has: train" in found[1].message
    assert [each.field for each in check(dataset="captions_en_de, x")] == ["dataset.1"]
    [found] = check(info={})
    assert (found.kind, found.field) == ("missing", "dataset") and "no regular file" in found.message


def test_llamafactorys_format_cannot_be_benchmarked(check):
    [found] = check("[]", info={}, train=None, dataset=None, benchmark=[{"testset": "toy"}])
    assert found.field == "benchmark.0.testset" and "it can be trained on, not benchmarked" in found.message


@pytest.mark.parametrize("name", ["toy.json", "toy.jsonl", "toy.csv", "toy.txt"])
def test_test_sentences_that_are_trained_on_are_counted(name, check):
    """As a complete line of any text of a record, however deep, letter case and white space aside."""
    test = (SHIPPED / "captions_en_de" / "test.en").read_text("utf-8").splitlines()
    texts = ["nothing", f"Translate:\n  {test[0].upper()}\nThank you", test[1], f"{test[2]} and more"]
    content = {
        "toy.json": json.dumps([{"text": "x", "more": [{"deep": text}]} for text in texts]),
        "toy.jsonl": "\n".join(json.dumps({"text": text}) for text in texts),
        "toy.csv": "text\n" + "".join(f'"{text}"\n' for text in texts),
        "toy.txt": "\n".join(texts),
    }[name]
    sections = {"file": name, "info": {"columns": {"prompt": "text"}}, "benchmark": [{"testset": "captions_en_de"}]}
    [found] = check(content, "pt", **sections)
    assert (found.severity, found.field) == ("warning", "benchmark.0.testset")
    assert "2 of the 100 sentences of captions_en_de test stand in toy too" in found.message
    assert check(content, **sections, train={"stage": "pt", "max_samples": 1}) == []
    sections["info"]["num_samples"] = 1  # drawn at random: any of them
    assert check(content, **sections, train={"stage": "pt", "max_samples": 1}) == [found]


def test_sentences_of_the_training_split_are_counted_where_they_are_tested(check):
    benchmark = [{"testset": "captions_en_de", "split": "train", "max_samples": 7}, {"testset": "captions_en_de"}]
    [found] = check(dataset="captions_en_de", benchmark=benchmark)
    assert found.field == "benchmark.0.testset"
    assert "7 of the 7 sentences of captions_en_de train stand in captions_en_de train too" in found.message


def test_where_overlap_cannot_be_known_it_is_reported(check):
    sections = {"benchmark": [{"testset": "captions_en_de"}]}
    for info, content, expected in (
        ({"hf_hub_url": "a/b"}, None, "is not known: it is not on this machine"),
        ({}, '["a", x]', "cannot be read to its end"),
    ):
        [found] = check(content, info=info, **sections)
        assert (found.severity, found.field) == ("note", "dataset") and expected in found.message
