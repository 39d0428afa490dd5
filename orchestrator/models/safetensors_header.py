"""The header of a *.safetensors file: which tensors it holds, and whether the file is complete."""

import json
import os
from pathlib import Path

from orchestrator.errors import PrerequisiteError

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
AGAIN = "copy or download it again"


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Read a *.safetensors file's header and compare it with the file's size.

    Returns name -> dtype as safetensors writes it (BF16, F32), and shape.

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
            if start.startswith(b"version https://git-lfs"):
                raise PrerequisiteError(f"{path} is a git-lfs pointer, not the file itself", "git lfs pull")
            if start.lstrip().startswith(b"<"):
                raise PrerequisiteError(f"{path} is a web page, not weights: a download went wrong", AGAIN)
            if not 8 + header_bytes <= size_bytes or header_bytes > MAX_HEADER_BYTES:
                what = f"{path} is cut off inside its header, or no safetensors file: it has {size_bytes:,} bytes"
                raise PrerequisiteError(what, AGAIN)
            file.seek(8)
            entries = json.loads(file.read(header_bytes))
        entries.pop("__metadata__", None)
        tensors = {name: (str(each["dtype"]), tuple(map(int, each["shape"]))) for name, each in entries.items()}
        expected = 8 + header_bytes + max((int(each["data_offsets"][1]) for each in entries.values()), default=0)
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise PrerequisiteError(f"{path}: its header is no safetensors header ({error})", AGAIN) from error
    if size_bytes < expected:
        missing = f"{expected - size_bytes:,} of {expected:,} bytes are missing"
        raise PrerequisiteError(f"{path} is cut off: {missing}", AGAIN)
    if size_bytes > expected:
        raise PrerequisiteError(f"{path} is {size_bytes - expected:,} bytes longer than its header says", AGAIN)
    return tensors
