"""The header of a *.safetensors file: which tensors it holds, and whether the file is whole.

Covered: files cut off or grown, git-lfs pointers, web pages and other things in their place; hostile headers.
Not covered: the tensors' values.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
AGAIN = "copy or download it again"
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a *.safetensors file says about itself."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Name -> dtype as safetensors writes it (BF16, F32), and shape."""
    header_bytes: int
    """Length of the JSON; the data begin 8 bytes further on."""
    size_bytes: int
    """Length of the file."""


def read_header(path: Path) -> SafetensorsHeader:
    """Read a *.safetensors file's header and compare it with the file's size.

    Raises:
        PrerequisiteError: the file is missing, cut off, or something else; the message says which.

    Source: https://github.com/huggingface/safetensors#format (8 bytes length, JSON, data without gaps).
    """
    try:
        if not path.is_file():  # a named pipe would block
            raise PrerequisiteError(f"{path} is missing")
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            begin = file.read(8)
            header_bytes = int.from_bytes(begin, "little")
            _refuse_other_files(path, begin + file.read(32), size_bytes, header_bytes)
            file.seek(8)
            content = file.read(header_bytes)
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error
    try:
        entries = json.loads(content)
        tensors, data_bytes = _tensors(entries)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise PrerequisiteError(f"{path}: its header is no safetensors header ({error})", AGAIN) from error
    expected = 8 + header_bytes + data_bytes
    if size_bytes < expected:
        missing = f"{expected - size_bytes:,} of {expected:,} bytes are missing"
        raise PrerequisiteError(f"{path} is cut off: {missing}", AGAIN)
    if size_bytes > expected:
        raise PrerequisiteError(f"{path} has {size_bytes - expected:,} bytes more than its header tells of", AGAIN)
    return SafetensorsHeader(tensors, header_bytes, size_bytes)


def _refuse_other_files(path: Path, begin: bytes, size_bytes: int, header_bytes: int) -> None:
    """Tell a safetensors file from what is often found in its place."""
    if begin.startswith(b"version https://git-lfs"):
        raise PrerequisiteError(
            f"{path} is a git-lfs pointer, not the file itself", f"cd {path.parent} && git lfs pull"
        )
    if begin.lstrip().startswith(b"<"):
        raise PrerequisiteError(f"{path} is a web page, not weights: a download went wrong", AGAIN)
    if size_bytes < 8:
        raise PrerequisiteError(f"{path} has {size_bytes} bytes: not even the length of a header", AGAIN)
    if header_bytes > MAX_HEADER_BYTES:
        raise PrerequisiteError(f"{path} is no safetensors file: its header would have {header_bytes:,} bytes", AGAIN)
    if 8 + header_bytes > size_bytes:
        raise PrerequisiteError(f"{path} is cut off inside its header: {size_bytes:,} bytes of it are there", AGAIN)


def _tensors(entries: dict[str, Any]) -> tuple[dict[str, tuple[str, tuple[int, ...]]], int]:
    """Tensors by name, and the bytes of data they have; ValueError, TypeError or KeyError where that is unclear."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError(f"{name!r} has a shape or an offset that is no count")
        if dtype in _BITS and math.prod(shape) * _BITS[dtype] != (end - begin) * 8:
            raise ValueError(f"{name!r} has {end - begin} bytes, which is not its shape in {dtype}")
        tensors[name] = (str(dtype), tuple(shape))
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position or end < begin:
            raise ValueError(f"the tensors' data do not follow each other at byte {position}")
        position = end
    return tensors, position
