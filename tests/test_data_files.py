"""Local files of datasets in LLaMA-Factory's own formats. Run: pytest tests/test_data_files.py."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.data_files import (
    LookEndedError,
    count_records,
    files_sha256,
    find_files,
    first_records,
    json_records,
    records,
)
from orchestrator.data.llamafactory_data import DatasetInfo, LlamaFactoryDataset, LlamaFactoryEntry
from orchestrator.errors import OrchestratorError, PrerequisiteError, SpecError


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., LlamaFactoryDataset]:
    """Makes a dataset with the given keys; its folder is tmp_path."""

    def make(**info: Any) -> LlamaFactoryDataset:
        entry = LlamaFactoryEntry(description="toy", llamafactory=DatasetInfo.model_validate(info))
        return LlamaFactoryDataset("toy", tmp_path, entry)

    return make


def write(path: Path, content: str | bytes = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Finding


def test_a_file_and_the_files_of_a_folder_are_found(
    dataset: Callable[..., LlamaFactoryDataset], tmp_path: Path
) -> None:
    """json and jsonl are one type; the order is that of the names; hubs and clouds have none here."""
    one = write(tmp_path / "x.json")
    several = [write(tmp_path / "many" / name) for name in ("a.jsonl", "b.json")]
    assert find_files(dataset(file_name="x.json")) == find_files(dataset(file_name=str(one))) == [one]
    assert find_files(dataset(file_name="many")) == several
    assert find_files(dataset(hf_hub_url="a/b", file_name="x.json")) == []
    assert find_files(dataset(cloud_file_name="s3://x/y.json")) == []


@pytest.mark.parametrize(
    ("files", "kind", "said"),
    [
        ({}, PrerequisiteError, "no file .*data .*File .*data not found"),
        ({"data/x.yaml": "x"}, SpecError, "'x.yaml', of no type"),
        ({"data/x.JSON": "x"}, SpecError, "'x.JSON', of no type"),
        ({"data/.x.json.swp": "x", "data/x.json": "x"}, SpecError, "'.x.json.swp', of no type"),
        (
            {"data/x.csv": "x", "data/y.json": "x"},
            SpecError,
            "several types, csv, json .*File types should be identical",
        ),
        (
            {"data/x.json": "x", "data/sub/y.json": "x"},
            SpecError,
            "a folder in it, sub.*File types should be identical",
        ),
        ({"data/x.json": "x", "data/y.json": ""}, PrerequisiteError, r"y\.json is empty .*corresponds to no data"),
    ],
)
def test_what_llamafactory_would_fail_on_is_said_with_its_own_words(
    files: dict[str, str],
    kind: type[OrchestratorError],
    said: str,
    dataset: Callable[..., LlamaFactoryDataset],
    tmp_path: Path,
) -> None:
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(kind, match=said):
        find_files(dataset(file_name="data"))


def test_an_empty_folder_and_a_pipe_are_no_data(dataset: Callable[..., LlamaFactoryDataset], tmp_path: Path) -> None:
    """A pipe would hang whoever opens it."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrerequisiteError, match=r"empty is empty .*list index out of range"):
        find_files(dataset(file_name="empty"))
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(PrerequisiteError, match="no regular file"):
        find_files(dataset(file_name="pipe.json"))


# Hashing and counting


def test_the_hash_is_that_of_sha256sum(dataset: Callable[..., LlamaFactoryDataset], tmp_path: Path) -> None:
    """Of a folder: of the lines that it prints, so names count too."""
    for name, content in (("a.json", "1"), ("b.json", "2")):
        write(tmp_path / "many" / name, content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in (("a.json", b"1"), ("b.json", b"2"))}
    one, many = dataset(file_name="many/a.json"), dataset(file_name="many")
    assert files_sha256(one, find_files(one)) == sums["a.json"]
    printed = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    assert files_sha256(many, find_files(many)) == hashlib.sha256(printed.encode()).hexdigest()
    (tmp_path / "many" / "a.json").rename(tmp_path / "many" / "c.json")
    assert files_sha256(many, find_files(many)) != hashlib.sha256(printed.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("x.json", '[{"a": 1}, {"a": 2}]', 2),
        ("x.jsonl", '{"a": 1}\n\n{"a": 2}\n{"a": 3}', 3),
        ("x.csv", 'a,b\n1,"x\ny"\n\n3,4\n', 2),
        ("x.txt", "one\n\nthree\n", 3),
        ("x.parquet", "PAR1", None),
        ("x.json", '[{"a": 1}, {"a": 2]', None),
    ],
)
def test_records_are_counted_where_they_can_be_read(name: str, content: str, count: int | None, tmp_path: Path) -> None:
    assert count_records([write(tmp_path / name, content)]) == count


# Reading


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3))


def pieces(text: str, sizes: list[int]) -> list[str]:
    """A text cut after each of some numbers of characters, again and again."""
    found, at, turn = [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        found.append(text[at : at + size])
        at, turn = at + size, turn + 1
    return found


@given(RECORDS, st.lists(st.integers(1, 9), min_size=1), st.sampled_from([None, 2]), st.booleans(), st.booleans())
def test_json_is_read_however_it_is_laid_out_and_cut(
    meant: list[dict[str, Any]], sizes: list[int], indent: int | None, as_list: bool, ascii_only: bool
) -> None:
    """A list or objects one behind the other, on one line or several, in pieces of any size."""
    if as_list:
        text = json.dumps(meant, indent=indent, ensure_ascii=ascii_only)
    else:
        text = "\n".join(json.dumps(record, indent=indent, ensure_ascii=ascii_only) for record in meant)
    assert list(json_records(iter(pieces(f" \n{text}\n", sizes)))) == meant


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1} {"a": 2}]',
        '[{"a": 1},]',
        '[{"a": 1}',
        '[{"a": 1}] x',
        '{"a": 1}, {"a": 2}',
        '{"a": }',
        "[,]",
        "[" * 100_000,
    ],
)
def test_what_is_no_json_is_an_error(text: str) -> None:
    """As it is to LLaMA-Factory's library datasets."""
    with pytest.raises((ValueError, RecursionError)):
        list(json_records(iter([text])))


def test_texts_in_a_list_are_records_with_a_text() -> None:
    assert list(json_records(iter(['["a", "b"]']))) == [{"text": "a"}, {"text": "b"}]


def test_a_look_is_limited_in_records_and_bytes(tmp_path: Path) -> None:
    """However large the file is; a first record that is larger is not read at all."""
    many = write(tmp_path / "x.jsonl", '{"a": "b"}\n' * 1000)
    assert len(first_records([many, many], 1500)) == 1500
    large = write(tmp_path / "y.json", json.dumps([{"a": "b" * 2_000_000}]))
    assert first_records([large], 10) == []
    long = write(tmp_path / "z.json", json.dumps([{"a": "b" * 300_000}] * 9))
    assert len(first_records([long], 10)) == 3
    with pytest.raises(LookEndedError):
        list(records(long, 1 << 20))
    assert len(list(records(long))) == 9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n{"a": x}\n', "behind its first 1 records: Expecting value .*DatasetGenerationError"),
        (b'{"a": "\xfc"}', "utf-8"),
        (b'\xef\xbb\xbf[{"a": 1}]', "byte order mark"),
    ],
)
def test_a_broken_start_is_said_with_its_place(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=said):
        first_records([write(tmp_path / "x.json", content)], 100)


def test_a_byte_order_mark_before_lines_is_no_harm(tmp_path: Path) -> None:
    assert first_records([write(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"a": 1}')], 9) == [{"a": 1}]
