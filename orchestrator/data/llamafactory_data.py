"""Entries of dataset_info/ in LLaMA-Factory's own terms: the keys of its dataset_info.json, checked.

Covered: names and types of the keys, what a key that is left out means, which source wins where there are several
(DatasetAttr.join and get_dataset_list in llamafactory/data/parser.py, 0.9.5); an entry from a dataset_info.json.
Not covered: the files (data_files.py); whether records and stage fit (data_records.py).
Reads and writes nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.specs.render import _QuotedDumper
from orchestrator.specs.yamlfile import Location, YamlSource

# In the order in which LLaMA-Factory looks for them; of the hubs, which one is asked depends on USE_*_HUB.
HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url")
SOURCES = (*HUBS, "script_url", "cloud_file_name", "file_name")
LOCAL = ("file_name", "script_url")
"""Sources that are paths: LLaMA-Factory joins them to dataset_dir."""
_OF_PARALLEL_TEXTS = ("source_lang", "target_lang", "instruction", "splits", "archives")


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("a null byte cannot be passed on")
    return text


Text = Annotated[str, AfterValidator(_text)]
NonEmpty = Annotated[str, Field(min_length=1), AfterValidator(_text)]


class _Part(BaseModel):
    # strict: LLaMA-Factory takes the values as they are, and "true" is neither true nor false to it.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Columns(_Part):
    """What the columns of the records are called. Once any is given, those left out are none."""

    prompt: Text | None = None
    """alpaca: the instruction. Without columns: instruction."""
    query: Text | None = None
    """alpaca: the input, on a line of its own behind the prompt. Without columns: input."""
    response: Text | None = None
    """alpaca: the answer. Without columns: output."""
    history: Text | None = None
    """alpaca: earlier turns, pairs of prompt and answer."""
    messages: Text | None = None
    """sharegpt and openai: the turns. Without columns: conversations."""
    system: Text | None = None
    """The system text."""
    tools: Text | None = None
    """Descriptions of tools, as JSON text."""
    images: Text | None = None
    """Paths of image files, relative to train.media_dir."""
    videos: Text | None = None
    """Paths of video files, likewise."""
    audios: Text | None = None
    """Paths of sound files, likewise."""
    chosen: Text | None = None
    """ranking: the better answer."""
    rejected: Text | None = None
    """ranking: the worse one."""
    kto_tag: Text | None = None
    """KTO: true for a good answer, false for a bad one."""


class Tags(_Part):
    """Words within the turns of sharegpt and openai records. Once any is given, those left out are none."""

    role_tag: Text | None = None
    """Key of the speaker. Without tags: from."""
    content_tag: Text | None = None
    """Key of what is said. Without tags: value."""
    user_tag: Text | None = None
    """The user's role. Without tags: human."""
    assistant_tag: Text | None = None
    """The model's. Without tags: gpt."""
    observation_tag: Text | None = None
    """A tool's answer. Without tags: observation."""
    function_tag: Text | None = None
    """A tool's call. Without tags: function_call."""
    system_tag: Text | None = None
    """System text as a turn. Without tags: system."""


COLUMN_DEFAULTS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
TAG_DEFAULTS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


class DatasetInfo(_Part):
    """One value of LLaMA-Factory's dataset_info.json."""

    hf_hub_url: NonEmpty | None = None
    """A dataset's id on the Hugging Face hub."""
    ms_hub_url: NonEmpty | None = None
    """Its id on ModelScope: taken with USE_MODELSCOPE_HUB=1, or where there is no hf_hub_url."""
    om_hub_url: NonEmpty | None = None
    """Its id on Modelers: likewise, with USE_OPENMIND_HUB=1."""
    script_url: NonEmpty | None = None
    """A folder with a loading script, relative to the entry's folder, or absolute."""
    cloud_file_name: NonEmpty | None = None
    """A .json or .jsonl file at s3:// or gs://."""
    file_name: NonEmpty | None = None
    """A file, or a folder of files of one type, relative to the entry's folder, or absolute."""
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    """How the records are laid out."""
    ranking: bool = False
    """Whether each record has a chosen and a rejected answer: for stages rm and dpo, and for no other."""
    subset: Text | None = None
    """The configuration on the hub."""
    split: NonEmpty = "train"
    """The split, or a part of it, such as train[:100]. Files have none but train."""
    folder: Text | None = None
    """The folder in the hub's repository."""
    num_samples: int | None = Field(None, gt=0)
    """How many records are drawn at random, again and again where there are fewer. None: all, once."""
    columns: Columns = Columns()
    """Names of the columns."""
    tags: Tags = Tags()
    """Words within the turns."""

    @field_validator(*SOURCES)
    @classmethod
    def _is_given(cls, value: str | None) -> str:
        if value is None:
            raise ValueError("expected text; leave the key out where there is none")
        return value

    @model_validator(mode="after")
    def _has_a_source(self) -> "DatasetInfo":
        if not any(getattr(self, key) for key in SOURCES):
            raise ValueError(f"no source; give one of {', '.join(SOURCES)}")
        return self

    def source(self) -> tuple[str, str]:
        """The key of SOURCES that LLaMA-Factory takes here and now, and its value."""
        given = {key: value for key in SOURCES if (value := getattr(self, key)) is not None}
        for key, variable in (("ms_hub_url", "USE_MODELSCOPE_HUB"), ("om_hub_url", "USE_OPENMIND_HUB")):
            if key in given and ("hf_hub_url" not in given or _is_on(variable)):
                return key, given[key]
        return next(iter(given.items()))

    def column(self, name: str) -> str | None:
        """What a column is called; None: there is none."""
        given: str | None = getattr(self.columns, name)
        return given if "columns" in self.model_fields_set else COLUMN_DEFAULTS.get(name)

    def tag(self, name: str) -> str | None:
        """The word for a tag; None: there is none."""
        given: str | None = getattr(self.tags, name)
        return given if "tags" in self.model_fields_set else TAG_DEFAULTS[name]


class LlamaFactoryEntry(_Part):
    """A file dataset_info/NAME.yaml with a section llamafactory; the dataset's name is the file's."""

    description: str = Field(min_length=1)
    """What the data are and where they come from."""
    license: str = Field("unknown", min_length=1)
    """Under which terms they may be used."""
    homepage: str | None = None
    """Where to read more."""
    llamafactory: DatasetInfo
    """The dataset as LLaMA-Factory's dataset_info.json describes it, key by key."""


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


def checked_entry(source: YamlSource) -> LlamaFactoryEntry:
    """The entry that a YAML mapping describes; SpecError with every problem and its place."""
    try:
        return LlamaFactoryEntry.model_validate(source.value)
    except ValidationError as error:
        problems = [_explain(detail) for detail in error.errors()]
        raise SpecError(source.report(problems), f"edit {source.path}") from error


def entry_from_info(name: str, raw: object, dataset_dir: Path) -> tuple[LlamaFactoryEntry, list[str]]:
    """An entry of dataset_info/ from one value of a dataset_info.json.

    Args:
        name: its key there.
        raw: the value, as JSON gave it.
        dataset_dir: the folder of that file, which paths in it are relative to.

    Returns:
        The entry, paths absolute, and a line for each key that was left out because LLaMA-Factory ignores it.

    Raises:
        SpecError: it is no mapping, or has values that LLaMA-Factory would fail on, or take for something else.
    """
    where = f"{name} in {dataset_dir / 'dataset_info.json'}"
    if not isinstance(raw, Mapping):
        raise SpecError(f"{where} is {type(raw).__name__}, expected an object")
    notes: list[str] = []
    info = _known(raw, DatasetInfo, where, "", notes)
    for key, model in (("columns", Columns), ("tags", Tags)):
        if isinstance(info.get(key), Mapping):
            info[key] = _known(info[key], model, where, f"{key}.", notes)
    info |= {key: str(dataset_dir.absolute() / info[key]) for key in LOCAL if isinstance(info.get(key), str)}
    try:
        parsed = DatasetInfo.model_validate(info)
    except ValidationError as error:
        found = [_explain({**detail, "loc": ("llamafactory", *detail["loc"])}) for detail in error.errors()]
        lines = [f"  {'.'.join(map(str, at[1:])) or name}: {message}" for at, message in found]
        heads = f"{where} has {len(found)} error{'s' if len(found) > 1 else ''}:"
        raise SpecError("\n".join([heads, *lines]), f"edit {dataset_dir / 'dataset_info.json'}") from error
    key, value = parsed.source()
    entry = LlamaFactoryEntry(description=f"{name}: {key} {value}", license="unknown", llamafactory=parsed)
    return entry, notes


def _known(raw: Mapping[Any, Any], model: type[BaseModel], where: str, at: str, notes: list[str]) -> dict[str, Any]:
    """The keys that LLaMA-Factory reads; the others go to the notes."""
    for key in raw:
        if key not in model.model_fields:
            hint = did_you_mean(str(key), model.model_fields) if key != "file_sha1" else ""  # it was a key once
            notes.append(f"{where}: {at}{key} is left out: LLaMA-Factory ignores it{hint}")
    return {key: value for key, value in raw.items() if key in model.model_fields}


def _explain(detail: Any) -> tuple[Location, str]:
    """A problem of Pydantic's, at the place that the file has it."""
    at: Location = tuple(detail["loc"])
    models: dict[Location, type[BaseModel]] = {
        ("llamafactory",): DatasetInfo,
        ("llamafactory", "columns"): Columns,
        ("llamafactory", "tags"): Tags,
    }
    if detail["type"] == "extra_forbidden":
        if at[:-1] == () and at[-1] in _OF_PARALLEL_TEXTS:
            return at, "an entry holds parallel texts (splits and so on) or a dataset of LLaMA-Factory's, not both"
        model = models.get(at[:-1], LlamaFactoryEntry)
        return at, "unknown field" + did_you_mean(str(at[-1]), model.model_fields)
    if detail["type"] == "missing":
        return at, "missing"
    shown = repr(detail["input"])
    is_scalar = not isinstance(detail["input"], Mapping | list) and len(shown) <= 80
    message = str(detail["msg"]).removeprefix("Value error, ")
    return at, f"{message} (got {shown})" if is_scalar else message


def _is_on(variable: str) -> bool:
    """As LLaMA-Factory's is_env_enabled."""
    return os.environ.get(variable, "0").lower() in ("true", "y", "1")


def entry_yaml(entry: LlamaFactoryEntry) -> str:
    """The text of a file dataset_info/NAME.yaml."""
    heads = "# A dataset in LLaMA-Factory's own terms: below llamafactory stand the keys of its dataset_info.json.\n"
    return heads + yaml.dump(
        entry.model_dump(exclude_unset=True),
        Dumper=_QuotedDumper, allow_unicode=True, sort_keys=False, width=float("inf"),
    )  # fmt: skip
