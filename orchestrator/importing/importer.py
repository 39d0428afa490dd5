"""What ran with LLaMA-Factory as it is, as a spec: the same arguments in the places that a spec has for them.

Covered: a draft of arguments (sources.py reads commands, scripts, YAML files, LLaMA Board's files and output folders)
turned into the text of a spec and of the datasets' entries, comments kept. What has no place in a spec is said.
Not covered: whether the arguments are right: the spec's own check says so, at its place.
Writes nothing: it returns texts.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.data.datasets import load_entry
from orchestrator.data.llamafactory_data import LlamaFactoryEntry, entry_from_info, entry_yaml
from orchestrator.errors import SpecError
from orchestrator.files import expanded
from orchestrator.importing.config_file import Comments
from orchestrator.planning.new_spec import check_name
from orchestrator.runs.workspace import Workspace
from orchestrator.specs.compute_spec import OWNED_VARIABLES, is_secret
from orchestrator.specs.render import Comment, Line, Renderer, Section
from orchestrator.specs.schema import modeline
from orchestrator.specs.spec import MODEL_PLACES

MAX_INFO_BYTES = 16 << 20
# What a run decides itself. The reason is said where the original asked for something.
_RUN_LAYER = {
    "output_dir": "each run has a new output folder of its own",
    "overwrite_output_dir": "each run has a new output folder of its own",
    "resume_from_checkpoint": "each run begins in a new output folder",
    "do_train": "a spec with a train section trains",
    "dataset_dir": "the datasets' entries are in dataset_info/",
    "enable_jit_checkpoint": "it is on, but where a training is elastic",
}
# Files and folders that LLaMA-Factory opens where it is started: in a run that is the run folder.
_PATHS = frozenset({
    "deepspeed", "fsdp_config", "tokenized_path", "media_dir", "cache_dir", "offload_folder",
    "new_special_tokens_config", "reward_model", "reward_model_adapters", "ref_model", "ref_model_adapters",
    "export_quantization_dataset", "kt_weight_path", "kt_expert_checkpoint_path", "generation_config",
    "accelerator_config", "logging_dir", "profiler_output_dir", "swanlab_logdir", "adapter_folder",
})  # fmt: skip
_MADE = frozenset({"tokenized_path", "cache_dir", "offload_folder", "logging_dir", "profiler_output_dir"})
"""Of these, what LLaMA-Factory makes where it is not there."""
_SERVER = {
    "API_HOST": "host",
    "API_PORT": "port",
    "MAX_CONCURRENT": "max_concurrent",
    "CUDA_VISIBLE_DEVICES": "devices",
}
_TOP = ("name", "dataset", "eval_dataset", "seed")
_SECTIONS = {"train": "train", "api": "serve", "export": "export"}
_MEDIA = ("images", "videos", "audios")


@dataclass
class Draft:
    """What was found to have run."""

    command: str
    """train, api or export."""
    arguments: dict[str, Any]
    """Under LLaMA-Factory's names, in the order of the source."""
    place: str
    """Where they stand, for messages."""
    bases: Sequence[Path]
    """The folders that relative paths may be relative to, the likeliest first."""
    comments: Comments = field(default_factory=Comments)
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Imported:
    """A spec and what it needs, as texts."""

    spec: str
    entries: dict[str, str]
    """Name of a dataset -> the text of its entry, for those that dataset_info/ lacks."""
    notes: list[str]
    """What was not taken over, or not as it was, each with the reason."""


def import_draft(
    draft: Draft, name: str, *, workspace: Workspace, folders: Sequence[Path], renderer: Renderer
) -> Imported:
    """The spec of a draft.

    Args:
        draft: what ran.
        name: of the spec.
        workspace: where it will be.
        folders: where entries of datasets are.
        renderer: the templates.

    Raises:
        SpecError: it trains nothing, or cannot be said in a spec.
    """
    if draft.command == "train" and draft.arguments.get("do_train") is not True:
        raise SpecError(
            f"{draft.place} does not train: do_train is {json.dumps(draft.arguments.get('do_train'))}",
            "a model's translations are scored by `orchestrator benchmark`; to train, write do_train: true",
        )
    return _Import(draft, workspace, folders).spec(name, renderer)


def name_of(words: Sequence[str], draft: Draft) -> str:
    """A name for a spec that none was given for: the file's, else the old output folder's."""
    word = Path(words[0]).stem if len(words) == 1 and not any(map(str.isspace, words[0])) and words[0] != "-" else ""
    parts = Path(str(draft.arguments.get("output_dir") or "imported")).parts[-3:]
    text = word or "-".join(part for part in parts if part not in ("saves", "/", "."))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64] or "imported"


def write_imported(imported: Imported, name: str, workspace: Workspace) -> tuple[Path, list[Path]]:
    """Write runs/NAME.yaml and the entries; nothing that is there is overwritten.

    Raises:
        SpecError: one of the files is there already.
    """
    check_name(name)
    texts = {workspace.dataset_info / f"{each}.yaml": text for each, text in imported.entries.items()}
    spec = workspace.runs / f"{name}.yaml"
    for path, text in {spec: imported.spec, **texts}.items():
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise SpecError(f"{path} is there already", "give another name: --name NAME, or remove it") from error
    return spec, list(texts)


class _Import:
    """One import, while it goes on."""

    def __init__(self, draft: Draft, workspace: Workspace, folders: Sequence[Path]) -> None:
        self.draft = draft
        self.root = workspace.root
        self.modeline = modeline(workspace.schema.name)
        self.folders = folders
        self.notes = list(draft.notes)
        self.entries: dict[str, str] = {}
        self.media_dir: Path | None = None

    def spec(self, name: str, renderer: Renderer) -> Imported:
        top: dict[str, list[Line]] = {"name": [Line("name", name)]}
        meant: dict[str, Any] = {"name": name}
        pending: list[str] = []
        dropped: list[str] = []
        for key, value in self.draft.arguments.items():
            comments = [*pending, *self.draft.comments.before.get(key, [])]
            beside = self.draft.comments.beside.get(key)
            section, field_name, value = self._place(key, value)
            if section is None:
                dropped += [key] if value not in (None, False) else []
                pending = [*comments, *([beside] if beside else [])]
                continue
            pending = []
            _put(meant, section, field_name, value)
            line = Line(field_name, value, tuple(map(Comment, comments)), Comment(beside) if beside else None)
            top.setdefault(section, []).append(line)
        self._say_dropped(dropped)
        self._complete(top, meant)
        order = ("name", "model", "dataset", "eval_dataset", "train", "serve", "export", "compute", "seed")
        below = {_SECTIONS[self.draft.command]: [Comment(line) for line in [*pending, *self.draft.comments.tail]]}
        sections = [Section(None if key in _TOP else key, top[key], below.get(key, ())) for key in order if key in top]
        heads = [self.modeline, *self.draft.comments.head]
        text = renderer.imported_yaml(heads, sections, meant)
        return Imported(text, self.entries, self.notes)

    def _place(self, key: str, value: Any) -> tuple[str | None, str, Any]:
        """Section, field and value in the spec; no section where a spec has no place for it."""
        command = self.draft.command
        if key in MODEL_PLACES:
            return "model", MODEL_PLACES[key], self._model_value(key, value)
        if command == "train":
            if key in ("dataset", "eval_dataset"):
                return key, key, self._datasets(key, value)
            if key == "seed":
                return "seed", "seed", value
            if key in _RUN_LAYER or (key == "infer_backend" and value == "huggingface"):
                return None, key, value
        section = _SECTIONS[command]
        if key == "export_dir":
            return section, key, self._absolute(key, value) if self.draft.bases[0] != self.root else value
        return section, key, self._absolute(key, value) if key in _PATHS else value

    def _say_dropped(self, keys: Sequence[str]) -> None:
        reasons: dict[str, list[str]] = {}
        for key in keys:
            if key != "do_train":  # what it asks for is what the spec says
                shown = f"{key}: {json.dumps(self.draft.arguments[key], default=str)}"
                reasons.setdefault(_RUN_LAYER.get(key, "it is the default"), []).append(shown)
        self.notes += [f"not taken over: {', '.join(each)} ({reason})" for reason, each in reasons.items()]

    def _complete(self, top: dict[str, list[Line]], meant: dict[str, Any]) -> None:
        """What the original leaves to defaults that a spec has other ones for, and its environment."""
        model = meant.get("model", {})
        if "name_or_path" not in model:
            raise SpecError(f"{self.draft.place} names no model: model_name_or_path is missing")
        if "template" not in model:  # left out, a spec would look one up
            _put(meant, "model", "template", None)
            said = Comment("# none given: LLaMA-Factory takes the tokenizer's own, or none at all")
            top["model"].append(Line("template", None, (), said))
        section = _SECTIONS[self.draft.command]
        if section not in top:
            top[section], meant[section] = [], {}
        if self.media_dir is not None and "media_dir" not in meant["train"]:
            _put(meant, "train", "media_dir", str(self.media_dir))
            said = Comment("# LLaMA-Factory's default is the folder of dataset_info.json")
            top["train"].append(Line("media_dir", str(self.media_dir), (), said))
        for target, key, value in self._environment():
            _put(meant, target, key, value)
            top.setdefault(target, []).append(Line(key, value, (), None))

    def _environment(self) -> list[tuple[str, str, Any]]:
        variables = dict(self.draft.environment)
        places: list[tuple[str, str, Any]] = []
        own = _SERVER if self.draft.command == "api" else {}
        for variable, field_name in own.items():
            if variable in variables:
                places.append(("serve", field_name, _value_of_variable(field_name, variables.pop(variable))))
        launcher = {
            variable: where.rpartition(".")[2]
            for variable, where in OWNED_VARIABLES.items()
            if where.startswith("write it as compute.") and self.draft.command == "train"
        }
        for variable, field_name in launcher.items():
            if variable in variables:
                places.append(("compute", field_name, _value_of_variable(field_name, variables.pop(variable))))
        started_by_torchrun = any(key not in ("devices", "ray") for _, key, _ in places)
        if started_by_torchrun and variables.get("FORCE_TORCHRUN", "").lower() in ("true", "y", "1"):
            del variables["FORCE_TORCHRUN"]  # these fields say it
        kept: dict[str, str] = {}
        for variable, value in variables.items():
            if variable in OWNED_VARIABLES:
                self.notes.append(f"not taken over: {variable}={value} ({OWNED_VARIABLES[variable]})")
            elif is_secret(variable):
                self.notes.append(f"not taken over: {variable}, a secret by its name (export it yourself)")
            elif self.draft.command != "train":
                self.notes.append(f"not taken over: {variable}={value} (export it before `orchestrator`)")
            else:
                kept[variable] = value
        return places + ([("compute", "env", kept)] if kept else [])

    # paths

    def _model_value(self, key: str, value: Any) -> Any:
        if key not in ("model_name_or_path", "adapter_name_or_path") or not isinstance(value, str):
            return value
        found = self._found(value)
        return value if found is None or found == self.root / value else str(found)

    def _absolute(self, key: str, value: Any) -> Any:
        if (
            not isinstance(value, str)
            or not value.strip()
            or value.lstrip().startswith("{")
            or Path(value).is_absolute()
        ):
            return value
        found = self._found(value)
        if found is None and (key in _MADE or key == "export_dir"):
            found = self.draft.bases[0] / value
        if found is None:
            if key in ("deepspeed", "fsdp_config") or value.startswith("."):
                self.notes.append(f"{key}: {value!r} is not there, looked for from {_shown(self.draft.bases)}")
            return value
        return str(found)

    def _found(self, value: str) -> Path | None:
        for base in self.draft.bases:
            path = base / expanded(value)
            if _exists(path):
                return path
        return None

    # datasets

    def _datasets(self, key: str, value: Any) -> Any:
        names = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            return value
        taken = [self._dataset(each) for each in names if each]
        return taken[0] if len(taken) == 1 else taken

    def _dataset(self, name: str) -> str:
        """The name of a dataset in dataset_info/, its entry made where there is none."""
        raw, folder = self._info(name)
        if raw is None:
            return name
        entry, notes = entry_from_info(name, raw, folder)
        self.notes += [f"dataset {name}: {note}" for note in notes]
        if any(entry.llamafactory.column(kind) for kind in _MEDIA):
            self.media_dir = folder
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:56] or "dataset"
        for number in range(1, 1000):
            free = stem if number == 1 else f"{stem}-{number}"
            same = self._same_entry(free, entry)
            if same is None:
                self.entries[free] = entry_yaml(entry)
            if same is not False:
                if free != name:
                    why = f"{stem} in dataset_info/ is another" if number > 1 else f"{name!r} can be no file's name"
                    self.notes.append(f"dataset {name} is called {free} here: {why}")
                return free
        raise SpecError(f"dataset_info/ has 999 datasets that are called like {stem}")

    def _same_entry(self, name: str, entry: LlamaFactoryEntry) -> bool | None:
        """Whether a dataset of that name is this one; None: there is none."""
        if name in self.entries:
            return self.entries[name] == entry_yaml(entry)
        if not any((folder / f"{name}.yaml").exists() for folder in self.folders):
            return None
        found = load_entry(name, self.folders)
        return isinstance(found.entry, LlamaFactoryEntry) and found.entry.llamafactory == entry.llamafactory

    def _info(self, name: str) -> tuple[Mapping[str, Any] | None, Path]:
        """What dataset_info.json has on a dataset, and the folder of that file; nothing, and it is said."""
        given = self.draft.arguments.get("dataset_dir", "data")
        base = self.draft.bases[0]
        if isinstance(given, Mapping):
            return self._value_of(name, given, "dataset_dir"), base
        if given == "ONLINE":
            return {"hf_hub_url": name}, base
        if not isinstance(given, str) or given.startswith("REMOTE:"):
            self.notes.append(f"dataset {name} is in dataset_dir {given!r}, which was not read: write its entry")
            return None, base
        found = next((each for each in self.draft.bases if (each / given / "dataset_info.json").is_file()), None)
        if found is None:
            where = f"{given}/dataset_info.json was not found from {_shown(self.draft.bases)}"
            if not any((folder / f"{name}.yaml").exists() for folder in self.folders):
                self.notes.append(f"dataset {name} has no entry: {where}; --cwd names the folder it was started in")
            return None, base
        path = found / given / "dataset_info.json"
        return self._value_of(name, _read_info(path), str(path)), path.parent.absolute()

    def _value_of(self, name: str, info: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
        value = info.get(name)
        if not isinstance(value, Mapping):
            self.notes.append(f"dataset {name} has no entry: {where} does not have it")
            return None
        return value


_TEXT_FIELDS = ("devices", "host", "master_addr", "rdzv_id")


def _put(meant: dict[str, Any], section: str, key: str, value: Any) -> None:
    if section == key:
        meant[key] = value
    else:
        meant.setdefault(section, {})[key] = value


def _value_of_variable(field_name: str, text: str) -> Any:
    """A variable's text as its field has it; what is no number stays as it is, for the spec's check to name."""
    if field_name == "ray":
        return text.lower() in ("true", "y", "1")  # as LLaMA-Factory's is_env_enabled
    return int(text) if field_name not in _TEXT_FIELDS and text.isdecimal() and text.isascii() else text


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long a name, say
        return False


def _shown(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders[:3])) + (", ..." if len(folders) > 3 else "")


def _read_info(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_INFO_BYTES:
            raise SpecError(f"{path} has more than {MAX_INFO_BYTES} bytes")
        info = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    if not isinstance(info, Mapping):
        raise SpecError(f"{path} holds no mapping of datasets")
    return info
