"""Local files of datasets in LLaMA-Factory's format. Run: pytest tests/test_data_files.py."""

import hashlib
import os

import pytest

from orchestrator.data import data_files
from orchestrator.data.data_files import count_records, files_sha256, find_files, records
from orchestrator.data.llamafactory_data import DatasetInfo, LlamaFactoryDataset, LlamaFactoryEntry
from orchestrator.errors import PrerequisiteError


@pytest.fixture
def dataset(tmp_path):
    """Makes a dataset with the given keys; its folder is tmp_path."""

    def make(**info):
        entry = LlamaFactoryEntry(description="toy", llamafactory=DatasetInfo.model_validate(info))
        return LlamaFactoryDataset("toy", tmp_path, entry)

    return make


def write(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_file_and_the_files_of_a_folder_are_found_in_order(dataset, tmp_path):
    """Hubs and clouds have none here."""
    one = write(tmp_path / "x.json")
    several = [write(tmp_path / "many" / name) for name in ("a.jsonl", "b.json")]
    assert find_files(dataset(file_name="x.json")) == find_files(dataset(file_name=str(one))) == [one]
    assert find_files(dataset(file_name="many")) == several
    assert find_files(dataset(hf_hub_url="a/b", file_name="x.json")) == []
    assert find_files(dataset(cloud_file_name="s3://x/y.json")) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gone.json", r"no regular file .*gone\.json"),
        ("empty", r"no regular file .*empty/\*"),
        ("pipe.json", r"no regular file .*pipe\.json"),
        (".", "no regular file .*empty"),
    ],
)
def test_what_is_no_file_of_data_is_refused(name, expected, dataset, tmp_path):
    """A pipe would be waited for without end."""
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(PrerequisiteError, match=expected):
        find_files(dataset(file_name=name))


def test_the_hash_is_that_of_sha256sum(dataset, tmp_path):
    """Of a folder: of the lines that it prints, so names count too."""
    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.json", "b.json")}
    for name in sums:
        write(tmp_path / "many" / name, name)
    one, many = dataset(file_name="many/a.json"), dataset(file_name="many")
    assert files_sha256(one, find_files(one)) == sums["a.json"]
    printed = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    assert files_sha256(many, find_files(many)) == hashlib.sha256(printed.encode()).hexdigest()
    (tmp_path / "many" / "a.json").rename(tmp_path / "many" / "c.json")
    assert files_sha256(many, find_files(many)) != hashlib.sha256(printed.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.json", '\n[{"a": 1}, {"a": "raw\ttab"}]', [{"a": 1}, {"a": "raw\ttab"}]),
        ("x.json", '["one", "two"]', ["one", "two"]),
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
    monkeypatch.setattr(data_files, "MAX_READ_BYTES", 8)
    file = write(tmp_path / "x.txt", "a\n" * 4)
    assert count_records([file]) == 4
    assert count_records([file, write(tmp_path / "y.txt", "a")]) is None
