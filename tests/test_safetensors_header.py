"""Headers of *.safetensors files: real ones, damaged ones, hostile ones."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_folders import safetensors

from orchestrator.errors import PrerequisiteError
from orchestrator.models.safetensors_header import read_header

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["x", "dtype", "shape", "data_offsets"]), part)
    ),
    max_leaves=12,
)


def framed(value: object) -> bytes:
    """A value as the header of a file without data."""
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text


def with_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(shape: Any = (1,), begin: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_header_gives_names_types_and_shapes(tmp_path: Path) -> None:
    numpy, library = pytest.importorskip("numpy"), pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    tensors = {"a": numpy.zeros((2, 3), numpy.float16), "b": numpy.zeros((), numpy.int64)}
    library.save_file(tensors, str(path), {"format": "pt"})
    header = read_header(path)
    assert header.tensors == {"a": ("F16", (2, 3)), "b": ("I64", ())}
    assert header.size_bytes == path.stat().st_size


def test_no_tensors_and_types_of_a_later_version_pass(tmp_path: Path) -> None:
    assert read_header(with_header(tmp_path / "empty", b"{}")).tensors == {}
    header = json.dumps({"x": entry(dtype="F4_NEW", shape=[9], end=5)}).encode()
    assert read_header(with_header(tmp_path / "new", header, bytes(5))).tensors == {"x": ("F4_NEW", (9,))}


@pytest.mark.parametrize(("lost", "said"), [(1, "1 of"), (40, "40 of")])
def test_a_file_that_is_cut_off_is_told_by_how_much(lost: int, said: str, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors", {"a": (4, 4)})
    size_bytes = path.stat().st_size
    os.truncate(path, size_bytes - lost)
    with pytest.raises(PrerequisiteError, match=f"cut off: {said} {size_bytes} bytes are missing"):
        read_header(path)


def test_a_file_that_is_too_long_is_told_by_how_much(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors", {"a": (4, 4)})
    path.write_bytes(path.read_bytes() + b"abc")
    with pytest.raises(PrerequisiteError, match="3 bytes longer"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\n\n<html>", "web page"),
        (b"", "0 bytes"),
        (b"abc", "3 bytes"),
        (b"\xff" * 64, "no safetensors file"),
        (b"PK\x03\x04\0\0\0\0 a zip", "no safetensors header|cut off|no safetensors file"),
        ((50).to_bytes(8, "little") + b"{}", "cut off inside its header"),
        ((2).to_bytes(8, "little") + b"{]", "no safetensors header"),
        ((2).to_bytes(8, "little") + b"[]", "no safetensors header"),
        ((4).to_bytes(8, "little") + b"null", "no safetensors header"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "no safetensors header"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_other_things_in_its_place_are_told(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(PrerequisiteError, match=said) as error:
        read_header(path)
    assert str(path) in error.value.message


@pytest.mark.parametrize(
    "entries",
    [
        {"x": 1},
        {"x": {}},
        {"x": entry(shape=[-1], end=-4)},
        {"x": entry(shape=[True])},
        {"x": entry(shape="ab")},
        {"x": entry(end=4.0)},
        {"x": {**entry(), "data_offsets": [0]}},
    ],
    ids=repr,
)
def test_a_hostile_header_is_our_error(entries: dict[str, Any], tmp_path: Path) -> None:
    path = with_header(tmp_path / "x.safetensors", json.dumps(entries).encode(), bytes(8))
    with pytest.raises(PrerequisiteError):
        read_header(path)


@given(st.binary(max_size=64) | JSON_VALUES.map(framed))
def test_any_bytes_are_a_header_or_our_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except PrerequisiteError as error:
        assert str(path) in error.message


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    os.mkfifo(path)
    with pytest.raises(PrerequisiteError, match="is missing"):
        read_header(path)
