"""Entries in LLaMA-Factory's own formats. Run: pytest tests/test_llamafactory_data.py."""

import hashlib
import json
import os
from pathlib import Path
from typing import get_args

import pytest

from orchestrator.data import llamafactory_data
from orchestrator.data.datasets import load_entry
from orchestrator.data.llamafactory_data import (
    Column,
    DatasetInfo,
    Tag,
    count_records,
    entry_from_info,
    entry_yaml,
    files_sha256,
    find_files,
    records,
)
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.specs.render import Renderer
from tests.reports import flat

LLAMAFACTORY = Path(__file__).parent / "data" / "llamafactory-0.9.5"
PUBLISHED = json.loads((LLAMAFACTORY / "data" / "dataset_info.json").read_text("utf-8"))


@pytest.fixture
def native(tmp_path):
    def make(**info):
        (tmp_path / "toy.yaml").write_text(json.dumps({"description": "a toy", "llamafactory": info}))
        return load_entry("toy", [tmp_path])

    return make


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llamafactory: {formatting: alpaca}", "llamafactory: no source; give one of hf_hub_url, ms_hub_url,"),
        ("llamafactory: {file_name: x.json}\nsplits: {}", "splits: unknown field"),
        ("file_name: x.json", "file_name: unknown field"),
        ("llamafactory: {file_nam: x.json}", "llamafactory.file_nam: unknown field; did you mean 'file_name'?"),
        ("llamafactory: {formatting: sharegtp}", "formatting: Input should be 'alpaca', 'sharegpt' or 'openai'"),
        ('llamafactory: {ranking: "true"}', "llamafactory.ranking: Input should be a valid boolean (got 'true')"),
        ("llamafactory: {num_samples: 0, split: null}", "llamafactory.split: "),
        ("llamafactory: {columns: {mesages: m}}", "columns.mesages: unknown field; did you mean 'messages'?"),
        ("llamafactory: {tags: {role: r}}", "llamafactory.tags.role: unknown field; did you mean 'role_tag'?"),
        *((f"llamafactory: {value}", "llamafactory: ") for value in ("null", "x", "[]", "{}")),
    ],
)
def test_an_entry_that_is_not_as_llamafactory_has_it_is_refused(text, expected, tmp_path):
    (tmp_path / "toy.yaml").write_text(f"description: x\n{text}\n")
    with pytest.raises(SpecError) as error:
        load_entry("toy", [tmp_path])
    assert expected in "\n".join(flat(error.value.message))


@pytest.mark.parametrize(
    ("given", "variable", "key"),
    [
        ("hf_hub_url ms_hub_url", "USE_MODELSCOPE_HUB", "ms_hub_url"),
        ("hf_hub_url om_hub_url", "USE_OPENMIND_HUB", "om_hub_url"),
        ("hf_hub_url", "USE_MODELSCOPE_HUB", "hf_hub_url"),
        ("ms_hub_url file_name", "", "ms_hub_url"),
        ("om_hub_url script_url", "", "om_hub_url"),
        ("file_name cloud_file_name script_url", "", "script_url"),
        ("file_name cloud_file_name", "", "cloud_file_name"),
    ],
)
def test_of_several_sources_the_one_is_taken_that_llamafactory_takes(given, variable, key, monkeypatch):
    for name in ("USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB"):
        monkeypatch.setenv(name, "True" if name == variable else "0")
    assert DatasetInfo.model_validate(dict.fromkeys(given.split(), "x")).source()[0] == key


def test_what_llamafactory_ignores_is_left_out(tmp_path):
    raw = {"file_name": "x.json", "file_sha1": "ab", "colums": {}, "columns": {"promt": "a"}, "tags": {"x": "y"}}
    entry = entry_from_info("toy", raw, tmp_path)
    assert entry.llamafactory.model_dump(exclude_unset=True) == {
        "file_name": str(tmp_path / "x.json"), "columns": {}, "tags": {}
    }  # fmt: skip


def test_values_that_llamafactory_would_fail_on_are_refused(tmp_path):
    for raw, expected in (
        ([], r"toy in .* is list, expected an object"),
        ({"file_name": 3}, r"toy in .*: file_name: expected text: write it in quotes \(got 3\)"),
        ({"file_name": "x", "columns": None}, "toy in .*: columns: "),
    ):
        with pytest.raises(SpecError, match=expected):
            entry_from_info("toy", raw, tmp_path)


def through_a_file(name, raw, dataset_dir, folder):
    entry = entry_from_info(name, raw, dataset_dir)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(entry_yaml(entry), encoding="utf-8")
    loaded = load_entry(name, [folder])
    assert loaded.entry == entry
    return json.loads(Renderer().dataset_info({name: loaded.as_info()}))[name]


def absolute(raw, dataset_dir):
    return raw | {key: str(dataset_dir / raw[key]) for key in ("file_name", "script_url") if key in raw}


def test_every_published_entry_and_every_key_comes_through_unchanged(tmp_path):
    every = {
        "script_url": "here", "subset": "s", "split": "train[:5]", "folder": "f", "num_samples": 7,
        "formatting": "openai", "ranking": True, "columns": dict.fromkeys(get_args(Column), "c"),
        "tags": dict.fromkeys(get_args(Tag), "t"),
    }  # fmt: skip
    for name, raw in {**PUBLISHED, "every": every}.items():
        assert through_a_file(name, raw, tmp_path / "data", tmp_path / "x") == absolute(raw, tmp_path / "data")


def write(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_file_and_the_files_of_a_folder_are_found_in_order(native, tmp_path):
    one = write(tmp_path / "x.json")
    several = [write(tmp_path / "many" / name) for name in ("a.jsonl", "b.json")]
    assert find_files(native(file_name="x.json")) == find_files(native(file_name=str(one))) == [one]
    assert find_files(native(file_name="many")) == several
    assert find_files(native(hf_hub_url="a/b", file_name="x.json")) == []
    assert find_files(native(cloud_file_name="s3://x/y.json")) == []


def test_what_is_no_file_of_data_is_refused(native, tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.json")  # it would be waited for without end
    for name, expected in (("gone.json", r"gone\.json"), ("empty", r"empty/\*"), ("pipe.json", r"pipe\.json")):
        with pytest.raises(PrerequisiteError, match=f"no regular file .*{expected}"):
            find_files(native(file_name=name))


def test_the_hash_is_that_of_sha256sum(native, tmp_path):
    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.json", "b.json")}
    for name in sums:
        write(tmp_path / "many" / name, name)
    one, many = native(file_name="many/a.json"), native(file_name="many")
    assert files_sha256(one, find_files(one)) == sums["a.json"]
    printed = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    assert files_sha256(many, find_files(many)) == hashlib.sha256(printed.encode()).hexdigest()
    (tmp_path / "many" / "a.json").rename(tmp_path / "many" / "c.json")
    assert files_sha256(many, find_files(many)) != hashlib.sha256(printed.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.json", '\n[{"a": 1}, {"a": "raw\ttab"}]', [{"a": 1}, {"a": "raw\ttab"}]),
        ("x.json", b'\xef\xbb\xbf{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ("x.jsonl", '{"a": "\u2028"}\n\n[1]', [{"a": "\u2028"}, [1]]),
        ("x.csv", 'a,b\n1,"x\ny"\n\n3,4\n', [{"a": "1", "b": "x\ny"}, {"a": "3", "b": "4"}]),
        ("x.txt", "one\n\nthree\n", ["one\n", "\n", "three\n"]),
        ("x.parquet", "PAR1", "its type is .parquet"),
        ("x.json", '[{"a": 1}, {"a": 2]', "cannot be read to its end: Expecting"),
        ("x.json", "[" * 100_000, "cannot be read to its end: maximum recursion"),
        ("x.jsonl", b'{"a": "\xfc"}', "cannot be read to its end: 'utf-8'"),
    ],
)
def test_records_are_read_by_the_files_type(name, content, expected, tmp_path):
    file = write(tmp_path / name, content)
    if isinstance(expected, list):
        assert list(records([file, file])) == expected * 2
        assert count_records([file]) == len(expected)
    else:
        with pytest.raises(PrerequisiteError, match=expected):
            list(records([file]))
        assert count_records([file]) is None


def test_large_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(llamafactory_data, "MAX_READ_BYTES", 8)
    file = write(tmp_path / "x.txt", "a\n" * 4)
    assert count_records([file]) == 4
    assert count_records([file, write(tmp_path / "y.txt", "a")]) is None


DEFAULTS = """
import json
from dataclasses import asdict
from llamafactory.data.parser import DatasetAttr
print("DEFAULTS " + json.dumps(asdict(DatasetAttr("file", "x"))))
"""


@pytest.mark.integration
def test_keys_and_defaults_are_those_of_llamafactory(llamafactory, tmp_path):
    done = llamafactory.run(DEFAULTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    defaults = json.loads(done.stdout.partition("DEFAULTS ")[2])
    names = {*get_args(Column), *get_args(Tag)}
    assert names <= set(defaults)
    assert set(defaults) - names - {"load_from", "dataset_name"} <= set(DatasetInfo.model_fields)
    for name in DatasetInfo.model_fields.keys() & defaults.keys():
        assert DatasetInfo.model_fields[name].default == defaults[name]
