"""The files of a dataset in LLaMA-Factory's own terms: found as it finds them, hashed, and read record by record.

Covered: a file, or a folder of files of one type (_load_single_dataset in llamafactory/data/loader.py, 0.9.5); JSON
as a list or as objects one behind the other, CSV with a heading, lines of text. Memory is bounded by one record.
Not covered: what stands in arrow and parquet files; hubs and clouds.
Writes nothing.
"""

import codecs
import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.processes.progress import Progress

# By file name extension: FILEEXT2TYPE in llamafactory/extras/constants.py, 0.9.5.
TYPES = {"arrow": "arrow", "csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "txt": "text"}
READABLE = ("csv", "json", "text")
"""Types whose records are read here."""
MAX_SEARCH_BYTES = 256 << 20
"""Most that is searched for test sentences."""
_MAX_COUNT_BYTES = MAX_SEARCH_BYTES
_MAX_LOOK_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_SHOWN_FROM_BYTES = 1 << 30
_BLANK = re.compile(r"[ \t\r\n]*")


class LookEndedError(Exception):
    """As many bytes as were to be read have been read."""


def find_files(dataset: LlamaFactoryDataset) -> list[Path]:
    """The local files of a dataset, in the order of their names; none where it has none.

    Raises:
        SpecError: files of a type that LLaMA-Factory does not read, or of several.
        PrerequisiteError: there is no file, or an empty one.
    """
    path = dataset.local_path
    if path is None or dataset.info.source()[0] == "script_url":
        return []
    remedy = f"put it there, or edit {dataset.path}"
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}", remedy) from error
    if files == [path] and not path.exists():
        raise PrerequisiteError(f"no file {path} (LLaMA-Factory: File {path} not found)", remedy)
    if not files:
        raise PrerequisiteError(f"the folder {path} is empty (LLaMA-Factory: list index out of range)", remedy)
    folders = [file.name for file in files if file.is_dir()]
    if folders:
        what = f"{path} has a folder in it, {folders[0]}: LLaMA-Factory takes each entry of a folder for a file"
        raise SpecError(f"{what} (LLaMA-Factory: File types should be identical)", f"move it, or edit {dataset.path}")
    types = {file: _type(file) for file in files}
    wrong = [file.name for file, kind in types.items() if kind is None]
    if wrong:
        what = f"{path if path.is_dir() else path.parent} has {wrong[0]!r}, of no type that LLaMA-Factory reads"
        raise SpecError(what, f"the name's end says the type, one of {', '.join(TYPES)}")
    if len(set(types.values())) > 1:
        found = ", ".join(sorted({str(kind) for kind in types.values()}))
        raise SpecError(f"{path} has files of several types, {found} (LLaMA-Factory: File types should be identical)")
    if -1 in sizes:
        raise PrerequisiteError(f"{files[sizes.index(-1)]} is no regular file", remedy)
    if 0 in sizes:
        empty = files[sizes.index(0)]
        raise PrerequisiteError(f"{empty} is empty (LLaMA-Factory: corresponds to no data)", remedy)
    return files


def type_of(files: Sequence[Path]) -> str:
    """The type of files that find_files gave."""
    return _type(files[0]) or ""


def total_bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def files_sha256(dataset: LlamaFactoryDataset, files: Sequence[Path]) -> str:
    """Hash of a file; of a folder's files, that of the lines that sha256sum prints for them.

    Raises:
        PrerequisiteError: one cannot be read.
    """
    size = total_bytes(files)
    bar = Progress(size, f"hashing {dataset.name}", "bytes") if size >= _SHOWN_FROM_BYTES else None
    sums = {file.name: _sha256(file, bar.update if bar else lambda count: None) for file in files}
    if bar is not None:
        bar.close()
    if dataset.local_path in files:
        return next(iter(sums.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def count_records(files: Sequence[Path]) -> int | None:
    """How many records some files have; None where counting would take long, or nobody here can read them."""
    if type_of(files) not in READABLE or total_bytes(files) > _MAX_COUNT_BYTES:
        return None
    try:
        return sum(1 for file in files for _ in records(file))
    except (OSError, ValueError, csv.Error, RecursionError):
        return None  # LLaMA-Factory's own readers may do better


def first_records(files: Sequence[Path], number: int) -> list[Any]:
    """The first records of some files, as many as a limited look shows.

    Raises:
        SpecError: what is read is no JSON, no CSV, or not UTF-8.
        PrerequisiteError: a file cannot be read.
    """
    found: list[Any] = []
    for file in files:
        try:
            _refuse_byte_order_mark(file)
            found.extend(islice(records(file, _MAX_LOOK_BYTES), number - len(found)))
        except LookEndedError:
            break
        except (ValueError, csv.Error, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            what = f"{file} cannot be read as {type_of(files)} behind its first {len(found)} records: {reason}"
            raise SpecError(f"{what} (LLaMA-Factory: DatasetGenerationError)", "mend the file") from error
        except OSError as error:
            raise PrerequisiteError(f"{file} cannot be read: {error.strerror}") from error
        if len(found) >= number:
            break
    return found


def records(path: Path, max_bytes: int | None = None) -> Iterator[Any]:
    """The records of a file of a readable type, one by one.

    Args:
        path: the file.
        max_bytes: the most that is read. None: all.

    Raises:
        LookEndedError: max_bytes were read, and the file goes on.
        ValueError, csv.Error, RecursionError: at the first thing that is none; what stands before it has been given.
        OSError: it cannot be read.
    """
    chunks = _chunks(path, max_bytes)
    kind = _type(path)
    if kind == "json":
        yield from json_records(chunks)
    elif kind == "csv":
        rows = csv.reader(_lines(chunks))
        heading = next(rows, [])
        for row in rows:
            if row:
                yield dict(zip(heading, row, strict=False))
    else:
        yield from ({"text": line.rstrip("\r\n")} for line in _lines(chunks))


def json_records(chunks: Iterator[str]) -> Iterator[Any]:
    """The records of JSON text: the items of one list, or values one behind the other.

    A string in a list is the record {"text": string}, as it is to the library datasets.

    Raises:
        ValueError, RecursionError: at the first thing that is no JSON.
    """
    text = _Text(chunks)
    in_list = text.next_char() == "["
    text.at += in_list
    is_first = True
    while char := text.next_char():
        if in_list and char == "]":
            text.at += 1
            if text.next_char():
                raise json.JSONDecodeError("Extra data", "", 0)
            return
        if in_list and not is_first:
            if char != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", "", 0)
            text.at += 1
            text.next_char()
        is_first = False
        value = text.next_value()
        yield {"text": value} if in_list and isinstance(value, str) else value
    if in_list:
        raise json.JSONDecodeError("the list has no end", "", 0)


class _Text:
    """Text that comes in pieces, read value by value."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._text = ""
        self._decode = json.JSONDecoder().raw_decode
        self.at = 0

    def next_char(self) -> str:
        """The next character that is no blank, which stays the next one; '' at the end."""
        while True:
            blank = _BLANK.match(self._text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self._text) or not self._more():
                return self._text[self.at : self.at + 1]

    def next_value(self) -> Any:
        while True:
            try:
                value, end = self._decode(self._text, self.at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            self.at = end
            return value

    def _more(self) -> bool:
        """Read on, twice as much where a value is longer than what there is; False at the end."""
        kept = self._text[self.at :]
        pieces, wanted = [kept], max(len(kept), 1)
        for chunk in self._chunks:
            pieces.append(chunk)
            wanted -= len(chunk)
            if wanted <= 0:
                break
        self._text, self.at = "".join(pieces), 0
        return len(self._text) > len(kept)


def _chunks(path: Path, max_bytes: int | None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    left = max_bytes
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)):
            yield decoder.decode(chunk)
            left = None if left is None else left - len(chunk)
        if left == 0 and file.read(1):
            raise LookEndedError
    yield decoder.decode(b"", final=True)


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    """Text in pieces as lines, their ends kept."""
    rest: list[str] = []
    for chunk in chunks:
        first, *others = chunk.split("\n")
        rest.append(first)
        for line in others:
            yield "".join(rest) + "\n"
            rest = [line]
    if any(rest):
        yield "".join(rest)


def _refuse_byte_order_mark(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(64)
    if _type(path) == "json" and start.startswith(codecs.BOM_UTF8) and start[3:].lstrip().startswith(b"["):
        raise ValueError("it begins with a byte order mark, which the library datasets fails on before a list")


def _type(path: Path) -> str | None:
    return TYPES.get(path.suffix[1:])


def _sha256(path: Path, count: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                count(len(chunk))
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
