"""The header of a *.safetensors file: which tensors it holds, and whether the file is complete."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
AGAIN = "copy or download it again"


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
            start = file.read(40)
            header_bytes = int.from_bytes(start[:8], "little")
            _refuse_other_files(path, start, size_bytes, header_bytes)
            file.seek(8)
            content = file.read(header_bytes)
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error
    try:
        tensors, data_bytes = _tensors(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise PrerequisiteError(f"{path}: its header is no safetensors header ({error})", AGAIN) from error
    expected = 8 + header_bytes + data_bytes
    if size_bytes < expected:
        missing = f"{expected - size_bytes:,} of {expected:,} bytes are missing"
        raise PrerequisiteError(f"{path} is cut off: {missing}", AGAIN)
    if size_bytes > expected:
        raise PrerequisiteError(f"{path} is {size_bytes - expected:,} bytes longer than its header says", AGAIN)
    return SafetensorsHeader(tensors, header_bytes, size_bytes)


def _refuse_other_files(path: Path, start: bytes, size_bytes: int, header_bytes: int) -> None:
    """Name what is often found in the place of weights."""
    if start.startswith(b"version https://git-lfs"):
        raise PrerequisiteError(
            f"{path} is a git-lfs pointer, not the file itself", f"cd {path.parent} && git lfs pull"
        )
    if start.lstrip().startswith(b"<"):
        raise PrerequisiteError(f"{path} is a web page, not weights: a download went wrong", AGAIN)
    if size_bytes < 8:
        raise PrerequisiteError(f"{path} has {size_bytes} bytes: not even the length of a header", AGAIN)
    if header_bytes > MAX_HEADER_BYTES:
        raise PrerequisiteError(f"{path} is no safetensors file: its header would have {header_bytes:,} bytes", AGAIN)
    if 8 + header_bytes > size_bytes:
        raise PrerequisiteError(f"{path} is cut off inside its header: it has {size_bytes:,} bytes", AGAIN)


def _tensors(entries: dict[str, Any]) -> tuple[dict[str, tuple[str, tuple[int, ...]]], int]:
    """Tensors by name, and the length of their data in bytes."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    data_bytes = 0
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError(f"{name!r} has a shape or an offset that is no count")
        tensors[name] = (str(entry["dtype"]), tuple(shape))
        data_bytes = max(data_bytes, end)
    return tensors, data_bytes
