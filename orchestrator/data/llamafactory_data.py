"""Entries of dataset_info/ in LLaMA-Factory's own format: the keys of its dataset_info.json, checked.

A key that is left out means what it means in get_dataset_list (llamafactory/data/parser.py, 0.9.5).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.specs.render import _QuotedDumper
from orchestrator.specs.yamlfile import Location, YamlSource

# In the order in which LLaMA-Factory looks for them; which hub it takes depends on USE_*_HUB.
SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
LOCAL = ("file_name", "script_url")
"""Sources that are paths: LLaMA-Factory joins them to dataset_dir."""
COLUMN_DEFAULTS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
TAG_DEFAULTS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
Column = Literal[
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen",
    "rejected", "kto_tag",
]  # fmt: skip
Tag = Literal["role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"]


Model = TypeVar("Model", bound=BaseModel)
NonEmpty = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    # strict: LLaMA-Factory takes the values as they are, and "true" is neither true nor false to it.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetInfo(_Part):
    """One value of LLaMA-Factory's dataset_info.json; the keys are explained in its data/README.md.

    Paths are relative to the entry's folder, or absolute. Once any of columns (or of tags) is given, those left out are
    none, not their defaults.
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
    columns: dict[Column, str | None] = {}
    tags: dict[Tag, str | None] = {}

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

    def column(self, name: str) -> str | None:
        """What a column is called; None: there is none."""
        given: dict[Any, str | None] = {**self.columns} if "columns" in self.model_fields_set else {**COLUMN_DEFAULTS}
        return given.get(name)

    def tag(self, name: str) -> str | None:
        """The word for a tag; None: there is none."""
        given: dict[Any, str | None] = {**self.tags} if "tags" in self.model_fields_set else {**TAG_DEFAULTS}
        return given.get(name)


class LlamaFactoryEntry(_Part):
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
        """The entry's file."""
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


_FIELDS = [*LlamaFactoryEntry.model_fields, *DatasetInfo.model_fields, *get_args(Column), *get_args(Tag)]
_OTHER_KIND = "an entry holds parallel texts (splits and so on) or a dataset of LLaMA-Factory's, not both"


def checked_entry(source: YamlSource) -> LlamaFactoryEntry:
    """The entry that a YAML mapping describes; SpecError with every problem and its place."""
    hints = dict.fromkeys(("source_lang", "target_lang", "instruction", "splits", "archives"), _OTHER_KIND)
    return validated(LlamaFactoryEntry, source, _FIELDS, hints)


def validated(model: type[Model], source: YamlSource, fields: Iterable[str], hints: Mapping[str, str]) -> Model:
    """A model of a YAML mapping; SpecError has every problem with its place, and the hint for an unknown field."""
    try:
        return model.model_validate(source.value)
    except ValidationError as error:
        problems = []
        for at, text in _explain(error, fields):
            hint = hints.get(str(at[0])) if len(at) == 1 and text.startswith("unknown") else None
            problems.append((at, f"{text}\n{hint}" if hint else text))
        raise SpecError(source.report(problems), f"edit {source.path}") from error


def _explain(error: ValidationError, fields: Iterable[str]) -> list[tuple[Location, str]]:
    """Each problem that Pydantic found: its place, and what is wrong, with the nearest of the fields that there are."""
    found = []
    for detail in error.errors():
        # Of a mapping's key Pydantic adds '[key]' to the place.
        at: Location = tuple(step for step in detail["loc"] if step != "[key]")
        shown = f" (got {detail['input']!r})"
        text = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden" or (detail["type"] == "literal_error" and at != detail["loc"]):
            text = "unknown field" + did_you_mean(str(at[-1]), fields)
        elif detail["type"] == "missing":
            text = "missing"
        elif not isinstance(detail["input"], Mapping | list) and len(shown) < 90:
            text += shown
        found.append((at, text))
    return found


def entry_from_info(name: str, raw: object, dataset_dir: Path) -> tuple[LlamaFactoryEntry, list[str]]:
    """An entry of dataset_info/ from one value of the dataset_info.json in a folder, which its paths are relative to.

    Returns:
        The entry, paths absolute, and a line for each key that was left out because LLaMA-Factory ignores it.

    Raises:
        SpecError: it is no mapping, or has values that LLaMA-Factory would fail on, or take for something else.
    """
    file = dataset_dir / "dataset_info.json"
    if not isinstance(raw, Mapping):
        raise SpecError(f"{name} in {file} is {type(raw).__name__}, expected an object")
    notes: list[str] = []

    def known(given: Mapping[str, Any], names: Sequence[str], at: str = "") -> dict[str, Any]:
        for key in [key for key in given if key not in names]:
            hint = did_you_mean(key, names) if key != "file_sha1" else ""  # it was a key once
            notes.append(f"{name} in {file}: {at}{key} is left out: LLaMA-Factory ignores it{hint}")
        return {key: value for key, value in given.items() if key in names}

    info = known(raw, list(DatasetInfo.model_fields))
    for section, names in (("columns", get_args(Column)), ("tags", get_args(Tag))):
        if isinstance(info.get(section), Mapping):
            info[section] = known(info[section], names, f"{section}.")
    info |= {key: str(dataset_dir.absolute() / info[key]) for key in LOCAL if isinstance(info.get(key), str)}
    try:
        parsed = DatasetInfo.model_validate(info)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, at)) or name}: {message}" for at, message in _explain(error, _FIELDS)]
        heads = f"{name} in {file} has {len(found)} error{'s' if len(found) > 1 else ''}:"
        raise SpecError("\n  ".join([heads, *found]), f"edit {file}") from error
    key, value = parsed.source()
    return LlamaFactoryEntry(description=f"{name}: {key} {value}", license="unknown", llamafactory=parsed), notes


def entry_yaml(entry: LlamaFactoryEntry) -> str:
    """The text of a file dataset_info/NAME.yaml."""
    heads = "# A dataset in LLaMA-Factory's own format: below llamafactory stand the keys of its dataset_info.json.\n"
    return heads + yaml.dump(
        entry.model_dump(exclude_unset=True),
        Dumper=_QuotedDumper, allow_unicode=True, sort_keys=False, width=float("inf"),
    )  # fmt: skip
