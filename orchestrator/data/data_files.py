"""The files of a dataset in LLaMA-Factory's format: found, hashed, counted and read.

Whether they can be trained on, LLaMA-Factory is asked itself (upstream/scripts/datasets_probe.py).
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.errors import PrerequisiteError
from orchestrator.models.hashes import file_sha256

MAX_READ_BYTES = 256 << 20
"""Most that is counted and searched: a file is held in memory."""
_READABLE = (".csv", ".json", ".jsonl", ".txt")


def find_files(dataset: LlamaFactoryDataset) -> list[Path]:
    """The local files of a dataset, in the order of their names; none where LLaMA-Factory takes it from elsewhere.

    Raises:
        PrerequisiteError: there is no file, or one that is not a regular file.
    """
    path = dataset.local_path
    if path is None or dataset.info.source()[0] == "script_url":
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    wrong = [file for file in files or [path / "*"] if not file.is_file()]
    if wrong:
        raise PrerequisiteError(f"no regular file {wrong[0]}", f"put the data there, or edit {dataset.path}")
    return files


def files_sha256(dataset: LlamaFactoryDataset, files: Sequence[Path]) -> str:
    """Hash of a file; of a folder's files, that of the lines that sha256sum prints for them.

    Raises:
        PrerequisiteError: one cannot be read.
    """
    if dataset.local_path in files:
        return file_sha256(files[0])
    lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def count_records(files: Sequence[Path]) -> int | None:
    """How many records some files have; None where they are large, of a type that is not read here, or damaged."""
    try:
        return sum(1 for _ in records(files))
    except PrerequisiteError:
        return None


def records(files: Sequence[Path]) -> Iterator[Any]:
    """The records of some files, one by one.

    Raises:
        PrerequisiteError: they are too large, of a type that is not read here, or damaged; its message is the reason.
    """
    types = {file.suffix for file in files}
    if types - {*_READABLE}:
        raise PrerequisiteError(f"its type is {', '.join(sorted(types))}")
    if sum(file.stat().st_size for file in files) > MAX_READ_BYTES:
        raise PrerequisiteError(f"it has more than {MAX_READ_BYTES >> 20} MiB")
    for file in files:
        try:
            yield from _records(file)
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            raise PrerequisiteError(f"{file} cannot be read to its end: {error}") from error


def _records(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        if file.suffix == ".csv":
            yield from csv.DictReader(lines)
        elif file.suffix == ".txt":
            yield from lines
        else:
            text = lines.read()
            # strict=False: LLaMA-Factory takes a raw tab or line break within a string of a list too.
            if file.suffix == ".json" and text.lstrip().startswith("["):
                yield from json.loads(text, strict=False)
            else:
                yield from (json.loads(line) for line in text.split("\n") if line.strip())
