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


def entry(shape: Any = (1,), begin: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_header_gives_names_types_and_shapes(tmp_path: Path) -> None:
    numpy, library = pytest.importorskip("numpy"), pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    tensors = {"a": numpy.zeros((2, 3), numpy.float16), "b": numpy.zeros((), numpy.int64)}
    library.save_file(tensors, str(path), {"format": "pt"})
    assert read_header(path) == {"a": ("F16", (2, 3)), "b": ("I64", ())}
    path.write_bytes(framed({}))
    assert read_header(path) == {}


@pytest.mark.parametrize(("lost", "said"), [(1, "1 of"), (40, "40 of"), (-3, "3 bytes longer")])
def test_a_file_of_another_length_is_told_by_how_much(lost: int, said: str, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors", {"a": (4, 4)})
    os.truncate(path, path.stat().st_size - lost)
    with pytest.raises(PrerequisiteError, match=said):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (b"\n\n<html>", "web page"),
        (b"", "0 bytes"),
        (b"\xff" * 64, "no safetensors file"),
        ((50).to_bytes(8, "little") + b"{}", "cut off inside its header"),
        ((2).to_bytes(8, "little") + b"{]", "no safetensors header"),
        ((2).to_bytes(8, "little") + b"[]", "no safetensors header"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "no safetensors header"),
        (framed({"x": {}}), "no safetensors header"),
        (framed({"x": entry(shape="ab")}), "no safetensors header"),
        (framed({"x": {**entry(), "data_offsets": [0]}}), "no safetensors header"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_other_things_in_its_place_are_told(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(PrerequisiteError, match=said) as error:
        read_header(path)
    assert str(path) in error.value.message


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
