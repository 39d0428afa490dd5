"""Entries of dataset_info/ in LLaMA-Factory's own format: the keys of its dataset_info.json, checked.

A key that is left out means what it means in get_dataset_list (llamafactory/data/parser.py, 0.9.5).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.specs.render import quoted_yaml
from orchestrator.specs.yamlfile import YamlSource, explain

# In the order in which LLaMA-Factory looks for them; which hub it takes depends on USE_*_HUB.
SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
LOCAL = ("file_name", "script_url")
"""Sources that are paths: LLaMA-Factory joins them to dataset_dir."""
Model = TypeVar("Model", bound=BaseModel)
NonEmpty = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    # strict: LLaMA-Factory takes the values as they are, and "true" is neither true nor false to it.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Columns(_Part):
    """What LLaMA-Factory's columns are called in a dataset, with its defaults for where none of them is given."""

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None


class Tags(_Part):
    """The words for roles in turns, with LLaMA-Factory's defaults for where none of them is given."""

    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"


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
    columns: Columns = Columns()
    tags: Tags = Tags()

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
        is_left_out = "columns" in self.model_fields_set and name not in self.columns.model_fields_set
        return None if is_left_out else getattr(self.columns, name)


class LlamaFactoryEntry(_Part):
    """A file dataset_info/NAME.yaml with a section llamafactory; the dataset's name is the file's."""

    description: str = Field(min_length=1)
    license: str = Field("unknown", min_length=1)
    homepage: str | None = None
    llamafactory: DatasetInfo


_PARTS: dict[str, type[BaseModel]] = {"columns": Columns, "tags": Tags}


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


def validated(model: type[Model], source: YamlSource, models: Sequence[type[BaseModel]]) -> Model:
    """A model of a YAML mapping; SpecError has every problem with its place, and the nearest field of `models`."""
    try:
        return model.model_validate(source.value)
    except ValidationError as error:
        fields = [field for each in models for field in each.model_fields]
        raise SpecError(source.report(explain(error, fields)), f"edit {source.path}") from error


def entry_from_info(name: str, raw: object, dataset_dir: Path) -> tuple[LlamaFactoryEntry, list[str]]:
    """An entry of dataset_info/, paths absolute, from one value of the dataset_info.json in a folder.

    A line is returned too for each key that is left out because LLaMA-Factory ignores it.

    Raises:
        SpecError: it is no mapping, or has values that LLaMA-Factory would fail on, or take for something else.
    """
    file = dataset_dir / "dataset_info.json"
    if not isinstance(raw, Mapping):
        raise SpecError(f"{name} in {file} is {type(raw).__name__}, expected an object")
    notes: list[str] = []

    def known(given: Any, model: type[BaseModel], at: str = "") -> Any:
        if not isinstance(given, Mapping):
            return given
        for key in [key for key in given if key not in model.model_fields]:
            hint = did_you_mean(key, model.model_fields) if key != "file_sha1" else ""  # it was a key once
            notes.append(f"{name} in {file}: {at}{key} is left out: LLaMA-Factory ignores it{hint}")
        return {key: value for key, value in given.items() if key in model.model_fields}

    info = known(raw, DatasetInfo)
    info |= {key: known(info[key], part, f"{key}.") for key, part in _PARTS.items() if key in info}
    info |= {key: str(dataset_dir.absolute() / info[key]) for key in LOCAL if isinstance(info.get(key), str)}
    try:
        parsed = DatasetInfo.model_validate(info)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, at)) or name}: {message}" for at, message in explain(error, ())]
        raise SpecError(f"{name} in {file}: {'; '.join(found)}", f"edit {file}") from error
    key, value = parsed.source()
    return LlamaFactoryEntry(description=f"{name}: {key} {value}", license="unknown", llamafactory=parsed), notes


def entry_yaml(entry: LlamaFactoryEntry) -> str:
    """The text of a file dataset_info/NAME.yaml."""
    heads = "# A dataset in LLaMA-Factory's own format: below llamafactory stand the keys of its dataset_info.json.\n"
    return heads + quoted_yaml(entry.model_dump(exclude_unset=True))
