"""The files of an output folder, read in bounds, and the arguments that were found in them.

Covered: the folder itself, or a checkpoint-N and the folder around it; broken, huge and special files; values that are
none of the argument's type.
Not covered: what stands in which file (output_folder.py).
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.specs.arguments import Argument, argument_problem

MAX_TEXT_BYTES = 1 << 20
MAX_STATE_BYTES = 32 << 20  # trainer_state.json has an entry for each logged step
MAX_VALUE_CHARS = 1000
_OF_A_TRAINING = ("trainer_log.jsonl", "trainer_state.json", "training_args.yaml", "llamaboard_config.yaml")
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})")


class OutputFiles:
    """Files by name: of a folder, else of the folder around a checkpoint, or of the newest checkpoint within."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.is_checkpoint = _CHECKPOINT.fullmatch(folder.name) is not None
        if self.is_checkpoint:
            around = any((folder.parent / name).is_file() for name in _OF_A_TRAINING)
            self.folders = [folder, folder.parent] if around else [folder]
        else:
            found = [(int(match[1]), path) for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
            self.folders = [folder, max(found)[1]] if found else [folder]

    def find(self, name: str) -> Path | None:
        """The file, in the first of the folders that has it."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def label(self, path: Path) -> str:
        """A file's name as seen from the folder."""
        return os.path.relpath(path, self.folder)

    def text(self, path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
        """A file's text; '' and a note where it cannot be read or is too large."""
        try:
            with path.open("rb") as file:
                data = file.read(max_bytes + 1)
        except OSError as error:
            self.notes.append(f"{self.label(path)} was not read: {error.strerror}")
            return ""
        if len(data) > max_bytes:
            self.notes.append(f"{self.label(path)} was not read: it has more than {max_bytes:,} bytes")
            return ""
        return data.decode("utf-8", "replace")

    def mapping(self, path: Path, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
        """A JSON file's mapping; {} and a note where it has none."""
        text = self.text(path, max_bytes)
        if not text:
            return {}
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.notes.append(f"{self.label(path)} was not read: it is no JSON: {error}")
            return {}
        if not isinstance(found, dict):
            self.notes.append(f"{self.label(path)} was not read: it holds no mapping")
            return {}
        return found


class Claims:
    """Arguments that files speak of. The first file that does is believed; one that says otherwise is noted."""

    def __init__(self, arguments: Mapping[str, Argument]) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []
        self.is_whole = False
        """Whether a file has said all: what it leaves out was left to LLaMA-Factory's default."""
        self._arguments = arguments

    def take_whole(self, values: Mapping[str, Any], source: str) -> None:
        """All that was given, from a file of arguments, as it stands there."""
        self.values = dict(values)
        self.sources = dict.fromkeys(values, source)
        self.is_whole = True

    def add(self, name: str, value: Any, source: str) -> None:
        """One argument; a value that does not fit is noted and dropped."""
        if value is None:
            return
        argument = self._arguments.get(name)
        value = argument.typed(value) if argument else value
        problem = argument_problem(name, value, "train", self._arguments) or _oddity(value)
        if problem:
            self.notes.append(f"{source} has {name}: {_shown(value)}, not taken over: {_cut(problem, 200)}")
        elif name in self.values:
            if not _same(self.values[name], value):
                theirs = f"{self.sources[name]} has {_shown(self.values[name])}"
                self.notes.append(f"{name}: {theirs}, but {source} has {_shown(value)}: the first is taken")
        elif not self.is_whole or name == "model_name_or_path":
            self.values[name], self.sources[name] = value, source

    def add_text(self, name: str, text: str | None, source: str) -> None:
        """One argument, written as text."""
        argument = self._arguments.get(name)
        if text is not None:
            self.add(name, _from_text(text.strip(), argument.kinds if argument else frozenset()), source)


def _from_text(text: str, kinds: frozenset[str]) -> Any:
    if "bool" in kinds and text in ("True", "False"):
        return text == "True"
    if kinds & {"int", "float"} and re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if "float" in kinds and len(text) <= 40:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _oddity(value: Any) -> str:
    """What no file that a training leaves would have."""
    if isinstance(value, float) and not math.isfinite(value):
        return "no finite number"
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str) and (len(each) > MAX_VALUE_CHARS or not each.isprintable()):
            return "no text of one line"
    return ""


def _same(one: Any, other: Any) -> bool:
    """Whether two ways of writing a value mean the same; 'all' of lora_target means whichever the model has."""
    return one == other or one == "all" or _items(one) == _items(other)


def _items(value: Any) -> list[str]:
    if isinstance(value, str):
        value = value.split(",")
    return sorted(str(each).strip() for each in value) if isinstance(value, list) else [str(value)]


def _shown(value: Any) -> str:
    return _cut(repr(value), 80)


def _cut(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
