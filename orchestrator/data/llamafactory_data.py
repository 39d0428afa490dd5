"""Datasets in LLaMA-Factory's own format: their entries, the keys of its dataset_info.json, and their files.

A key that is left out means what it means in get_dataset_list (llamafactory/data/parser.py, 0.9.5).
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.models.hashes import file_sha256
from orchestrator.specs.render import quoted_yaml
from orchestrator.specs.yamlfile import YamlSource, explain

# In the order in which LLaMA-Factory looks for them; which hub it takes depends on USE_*_HUB.
SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
LOCAL = ("file_name", "script_url")  # sources that are paths: LLaMA-Factory joins them to dataset_dir
MAX_READ_BYTES = 256 << 20  # most that is counted and searched: a file is held in memory
_READABLE = {".csv", ".json", ".jsonl", ".txt"}
Model = TypeVar("Model", bound=BaseModel)
NonEmpty = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    # strict: LLaMA-Factory takes the values as they are, and "true" is neither true nor false to it.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Column = Literal[
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen",
    "rejected", "kto_tag",
]  # fmt: skip
Tag = Literal["role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"]


class DatasetInfo(Part):
    """One value of LLaMA-Factory's dataset_info.json (its data/README.md has the keys); paths as in an entry.

    Once any of columns (or of tags) is given, those left out are none, not their defaults.
    """

    hf_hub_url: NonEmpty = ""
    ms_hub_url: NonEmpty = ""
    om_hub_url: NonEmpty = ""
    script_url: NonEmpty = ""
    cloud_file_name: NonEmpty = ""
    file_name: NonEmpty = ""
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: NonEmpty = "train"
    folder: str | None = None
    num_samples: int | None = Field(None, gt=0)
    columns: dict[Column, str | None] = {}  # what LLaMA-Factory's columns are called in the data
    tags: dict[Tag, str | None] = {}  # the words for roles in turns

    @model_validator(mode="after")
    def _has_a_source(self) -> "DatasetInfo":
        if not any(getattr(self, key) for key in SOURCES):
            raise ValueError(f"no source; give one of {', '.join(SOURCES)}")
        return self

    def source(self) -> tuple[str, str]:
        """The key of SOURCES that LLaMA-Factory takes here and now, and its value."""
        given = {key: value for key in SOURCES if (value := getattr(self, key))}
        for key, variable in (("ms_hub_url", "USE_MODELSCOPE_HUB"), ("om_hub_url", "USE_OPENMIND_HUB")):
            is_on = os.environ.get(variable, "0").lower() in ("true", "y", "1")  # as its is_env_enabled
            if key in given and ("hf_hub_url" not in given or is_on):
                return key, given[key]
        return next(iter(given.items()))


class LlamaFactoryEntry(Part):
    """A file dataset_info/NAME.yaml with a section llamafactory; the dataset's name is the file's."""

    description: str = Field(min_length=1)
    license: str = Field("unknown", min_length=1)
    homepage: str | None = None
    llamafactory: DatasetInfo


@dataclass(frozen=True)
class LlamaFactoryDataset:
    """Such an entry with its name and the folder that its files are relative to."""

    name: str
    folder: Path
    entry: LlamaFactoryEntry

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    @property
    def info(self) -> DatasetInfo:
        return self.entry.llamafactory

    @property
    def local_path(self) -> Path | None:
        """The file or folder that LLaMA-Factory reads; None where it takes the data from elsewhere."""
        key, value = self.info.source()
        return self.folder.absolute() / value if key in LOCAL else None

    def as_info(self) -> dict[str, Any]:
        """The value in a dataset_info.json anywhere: the keys as given, paths absolute."""
        given = self.info.model_dump(exclude_unset=True)
        # Not resolved: the name that a link has says the type of the file, the file that it leads to may not.
        return given | {key: str(self.folder.absolute() / given[key]) for key in LOCAL if key in given}


def validated(model: type[Model], source: YamlSource, parts: Sequence[type[BaseModel]] = ()) -> Model:
    """A model of a YAML mapping; SpecError has every problem with its place, and the nearest field, of `parts` too."""
    try:
        return model.model_validate(source.value)
    except ValidationError as error:
        models: list[type[BaseModel]] = [model, *parts]
        known = [*(field for each in models for field in each.model_fields), *get_args(Column), *get_args(Tag)]
        raise SpecError(source.report(explain(error, known)), f"edit {source.path}") from error


def entry_from_info(name: str, raw: object, dataset_dir: Path) -> LlamaFactoryEntry:
    """An entry, paths absolute, from one value of a folder's dataset_info.json; keys that nothing reads are left out.

    SpecError: it has values that LLaMA-Factory would fail on.
    """
    file = dataset_dir / "dataset_info.json"
    if not isinstance(raw, Mapping):
        raise SpecError(f"{name} in {file} is {type(raw).__name__}, expected an object")
    info = {key: value for key, value in raw.items() if key in DatasetInfo.model_fields}
    for part, keys in (("columns", get_args(Column)), ("tags", get_args(Tag))):
        if isinstance(info.get(part), Mapping):
            info[part] = {key: value for key, value in info[part].items() if key in keys}
    info |= {key: str(dataset_dir.absolute() / info[key]) for key in LOCAL if isinstance(info.get(key), str)}
    try:
        parsed = DatasetInfo.model_validate(info)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, at)) or name}: {message}" for at, message in explain(error, ())]
        raise SpecError(f"{name} in {file}: {'; '.join(found)}", f"edit {file}") from error
    key, value = parsed.source()
    return LlamaFactoryEntry(description=f"{name}: {key} {value}", license="unknown", llamafactory=parsed)


def entry_yaml(entry: LlamaFactoryEntry) -> str:
    """The text of a file dataset_info/NAME.yaml."""
    heads = "# A dataset in LLaMA-Factory's own format: below llamafactory stand the keys of its dataset_info.json.\n"
    return heads + quoted_yaml(entry.model_dump(exclude_unset=True))


def find_files(dataset: LlamaFactoryDataset) -> list[Path]:
    """The local files of a dataset by name, none where it is elsewhere; PrerequisiteError: one is no regular file."""
    path = dataset.local_path
    if path is None or dataset.info.source()[0] == "script_url":
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    wrong = [file for file in files or [path / "*"] if not file.is_file()]
    if wrong:
        raise PrerequisiteError(f"no regular file {wrong[0]}", f"put the data there, or edit {dataset.path}")
    return files


def files_sha256(dataset: LlamaFactoryDataset, files: Sequence[Path]) -> str:
    """Hash of a file; of a folder's files, that of the lines that sha256sum prints for them. PrerequisiteError."""
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
    """The records of some files. PrerequisiteError: they are too large, of a type that is not read here, or damaged."""
    types = {file.suffix for file in files}
    if types - _READABLE:
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
