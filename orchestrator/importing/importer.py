"""A draft of what ran with LLaMA-Factory as the text of a spec, and of entries for its datasets, comments kept."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.data.datasets import load_entry
from orchestrator.data.llamafactory_data import LlamaFactoryEntry, entry_from_info, entry_yaml
from orchestrator.errors import SpecError
from orchestrator.files import expanded, json_mapping
from orchestrator.importing.shell_words import Word
from orchestrator.planning.new_spec import check_name
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.places import RESERVED_ARGUMENTS, RESERVED_ENV, is_secret, reason
from orchestrator.specs.render import Comment, field_line
from orchestrator.specs.schema import modeline

# Files and folders that LLaMA-Factory opens where it is started, which is the run folder in a run.
_READ = (
    "deepspeed", "fsdp_config", "media_dir", "new_special_tokens_config", "reward_model", "reward_model_adapters",
    "ref_model", "ref_model_adapters", "export_quantization_dataset", "kt_weight_path", "kt_expert_checkpoint_path",
    "generation_config", "accelerator_config", "swanlab_logdir", "adapter_folder",
)  # fmt: skip
_MADE = ("tokenized_path", "cache_dir", "offload_folder", "logging_dir", "profiler_output_dir", "export_dir")
_ENVIRONMENT = RESERVED_ENV | dict.fromkeys(
    ("RDZV_ID", "MIN_NNODES", "MAX_NNODES", "MAX_RESTARTS"), "an elastic training has no place in a spec"
)
_TOP = ("name", "dataset", "eval_dataset", "seed")
_ORDER = ("name", "model", "dataset", "eval_dataset", "train", "serve", "export", "compute", "seed")
_SECRET = "a secret by its name: export it yourself"


@dataclass
class Draft:
    """A training that was found to have run."""

    arguments: dict[str, Any]  # under LLaMA-Factory's names, in the order of the source
    place: str  # where they stand, for messages
    bases: Sequence[Path] = (Path(),)  # the folders that relative paths may be relative to, the likeliest first
    comments: dict[str, list[str]] = field(default_factory=dict)
    """Argument -> the comments on it, each as it is written, # and all; '' -> those at the end."""
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Imported:
    """A spec and what it needs, as texts."""

    spec: str
    entries: dict[str, str]  # name of a dataset -> the text of its entry, for those that dataset_info/ lacks
    notes: list[str]  # what was not taken over, or not as it was, each with the reason


def import_draft(draft: Draft, name: str, *, workspace: Workspace, folders: Sequence[Path]) -> Imported:
    """The spec of a draft, called `name`; `folders` have the entries of datasets. SpecError where it trains nothing."""
    given = draft.arguments
    problem = None if given.get("model_name_or_path") else "names no model: model_name_or_path is missing"
    if given.get("do_train") is not True:
        problem = f"does not train: do_train is {json.dumps(given.get('do_train'))}"
    if problem:
        remedy = "`orchestrator serve`, `export` and `benchmark` take a model's folder; to train, write do_train: true"
        raise SpecError("\n  ".join([f"{draft.place} {problem}", *draft.notes]), remedy)
    return _Import(draft, workspace, folders).spec(name)


def name_of(words: Sequence[str], draft: Draft) -> str:
    """A name for a spec that none was given for: the file's, else the old output folder's."""
    word = Path(words[0]).stem if len(words) == 1 and not any(map(str.isspace, words[0])) and words[0] != "-" else ""
    parts = Path(str(draft.arguments.get("output_dir") or "imported")).parts[-3:]
    return _file_name(word or "-".join(part for part in parts if part not in ("saves", "/", ".")), 64) or "imported"


def write_imported(imported: Imported, name: str, workspace: Workspace) -> tuple[Path, list[Path]]:
    """Write runs/NAME.yaml and the entries; SpecError where one of the files is there already."""
    check_name(name)
    spec = workspace.runs / f"{name}.yaml"
    entries = {workspace.dataset_info / f"{each}.yaml": text for each, text in imported.entries.items()}
    texts = {spec: imported.spec, **entries}
    if taken := [path for path in texts if os.path.lexists(path)]:
        raise SpecError(f"{taken[0]} already exists", "give another name: --name NAME, or remove it")
    for path, text in texts.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    return spec, list(entries)


class _Import:
    def __init__(self, draft: Draft, workspace: Workspace, folders: Sequence[Path]) -> None:
        self.draft, self.workspace, self.folders = draft, workspace, folders
        self.notes = list(draft.notes)
        self.looked_in = ", ".join(map(str, draft.bases[:3]))
        self.entries: dict[str, LlamaFactoryEntry] = {}
        self.media_dir: Path | None = None
        self.lines: dict[str, list[str]] = {"train": []}
        self.fields = set[tuple[str, str]]()

    def spec(self, name: str) -> Imported:
        comments, pending = self.draft.comments, list[str]()
        self._put("name", "name", name)
        for key, value in self.draft.arguments.items():
            above, place, pending = [*pending, *comments.get(key, [])], _place(key), []
            if isinstance(place, tuple):
                self._put(*place, self._value(key, value), above)
                continue
            pending = above  # they go to the next argument
            if value not in (None, False) and key != "do_train":  # the spec says that it trains
                text = key if is_secret(key) else f"{key}: {json.dumps(value, default=str)}"
                self.notes.append(f"not taken over: {text} ({place})")
        if "template" not in self.draft.arguments:  # left out, a spec would look one up
            why = "# no template given: LLaMA-Factory takes the tokenizer's own, or none at all"
            self._put("model", "template", None, [why])
        if self.media_dir is not None and "media_dir" not in self.draft.arguments:
            why = "# LLaMA-Factory's default is the folder of dataset_info.json"
            self._put("train", "media_dir", str(self.media_dir), [why])
        self._add_environment()
        self.lines["train"] += [f"  {Comment(line)}" for line in [*pending, *comments.get("", [])]]
        written: list[str] = [Comment(modeline(self.workspace.schema.name))]
        filled = {section for section, _ in self.fields}
        for key in (key for key in _ORDER if key in self.lines):
            written += [] if key in _TOP else [f"{key}:" if key in filled else f"{key}: {{}}"]
            written += self.lines[key]
        entries = {each: entry_yaml(entry) for each, entry in self.entries.items()}
        return Imported("\n".join([*written, ""]), entries, self.notes)

    def _put(self, section: str, key: str, value: Any, above: Sequence[str] = ()) -> None:
        self.fields.add((section, key))
        indent = "" if section in _TOP else "  "
        lines = [*map(Comment, above), field_line(key, value)]
        self.lines.setdefault(section, []).extend(indent + each for each in lines)

    def _value(self, key: str, value: Any) -> Any:
        if key in ("dataset", "eval_dataset"):
            names = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
            if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
                return value
            taken = [self._dataset(each) for each in names if each]
            return taken[0] if len(taken) == 1 else taken
        is_model = key in ("model_name_or_path", "adapter_name_or_path")
        if not is_model and key not in (*_READ, *_MADE):
            return value
        if not isinstance(value, str) or not value.strip() or value.lstrip().startswith("{"):
            return value
        paths = [base / expanded(value) for base in self.draft.bases]
        found = next((path for path in paths if os.path.exists(path)), None)  # noqa: PTH110 - Path's raises for long names
        if key in _MADE:
            found = found or self.draft.bases[0] / value
        elif found is None and (key in ("deepspeed", "fsdp_config") or value.startswith(".")):
            self.notes.append(f"{key}: {value!r} is not there, looked for from {self.looked_in}")
        is_here = found == self.workspace.root / value and (is_model or key == "export_dir")
        return value if found is None or is_here else str(found)

    def _add_environment(self) -> None:
        kept = dict[str, str]()
        for name, value in self.draft.environment.items():
            place = _ENVIRONMENT.get(name)
            is_unknown = isinstance(value, Word) and bool(value.unknown)
            is_text = place in (("compute", "devices"), ("compute", "master_addr"))
            if isinstance(place, tuple) and place[0] == "compute" and not (is_text and is_unknown):
                is_number = not is_text and value.isdecimal() and value.isascii()
                self._put(*place, int(value) if is_number else str(value))
            elif is_secret(name):
                self.notes.append(f"not taken over: {name} ({_SECRET})")
            elif is_unknown:
                self.notes.append(f"not taken over: {name}={value} (only running the script would tell its value)")
            elif place is not None:
                self.notes.append(f"not taken over: {name}={value} ({reason(place)})")
            else:
                kept[name] = str(value)
        is_forced = kept.get("FORCE_TORCHRUN", "").lower() in ("true", "y", "1")  # LLaMA-Factory's is_env_enabled
        if is_forced and any(section == "compute" and key != "devices" for section, key in self.fields):
            del kept["FORCE_TORCHRUN"]  # these fields say it
        if kept:
            self._put("compute", "env", kept)

    def _dataset(self, name: str) -> str:
        raw, folder = self._info(name)
        if raw is None:
            return name
        entry = entry_from_info(name, raw, folder)
        if any(entry.llamafactory.columns.get(kind) for kind in ("images", "videos", "audios")):
            self.media_dir = folder
        free = stem = _file_name(name, 56) or "dataset"
        number = 1
        while (taken := self._taken(free)) not in (None, entry.llamafactory):
            number += 1
            free = f"{stem}-{number}"
        if taken is None:
            self.entries[free] = entry
        if free != name:
            why = f"{name!r} can be no file's name" if number == 1 else f"{stem} in dataset_info/ is another"
            self.notes.append(f"dataset {name} is called {free} here: {why}")
        return free

    def _taken(self, name: str) -> object:
        is_there = any((folder / f"{name}.yaml").exists() for folder in self.folders)
        entry = self.entries.get(name) or (load_entry(name, self.folders).entry if is_there else None)
        return getattr(entry, "llamafactory", entry)

    def _info(self, name: str) -> tuple[Mapping[str, Any] | None, Path]:
        """What dataset_info.json has on a dataset, else None and a note; and the folder of that file."""
        given, folder = self.draft.arguments.get("dataset_dir", "data"), self.draft.bases[0]
        if given == "ONLINE":
            return {"hf_hub_url": name}, folder
        paths = [base / str(given) / "dataset_info.json" for base in self.draft.bases]
        path = next((path for path in paths if path.is_file()), None)
        value = (json_mapping(path) or {}).get(name) if path else None
        if path and isinstance(value, Mapping):
            return value, path.parent.absolute()
        reason = f"{given}/dataset_info.json was not found from {self.looked_in}; --cwd names the folder"
        if path or self._taken(name) is None:
            self.notes.append(f"dataset {name} has no entry: {f'{path} does not have it' if path else reason}")
        return None, folder


def _place(key: str) -> tuple[str, str] | str:
    place = RESERVED_ARGUMENTS.get(key, ("train", key))
    if is_secret(key):
        return _SECRET
    return place if isinstance(place, str) else (place[0] or place[1], place[1])


def _file_name(text: str, length: int) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:length]
