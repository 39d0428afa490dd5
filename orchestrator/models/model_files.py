"""The files of a model or an adapter: where they are, and whether they are complete. No weights are loaded."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import expanded, json_mapping
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_AGAIN = "copy or download it again"
_ADAPTER_CONFIG, _INDEX = "adapter_config.json", "model.safetensors.index.json"
# huggingface_hub's rule for repository ids, `owner/name` or `name`
_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]{0,95}(?:/\w[\w.-]{0,95})?", re.ASCII)


def locate_model(name_or_path: str, root: Path, revision: str | None = None) -> Path | None:
    """The folder of a path below `root`, or of a hub id in the local cache (None: not there); SpecError: neither."""
    try:
        path = root / expanded(name_or_path)
        if path.is_dir():
            return path.absolute()
        if path.exists():
            raise SpecError(f"{path} is a file; a model is the folder that holds its files", f"write {path.parent}")
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    except OSError as error:  # no permission, too long a name
        raise SpecError(f"{name_or_path} cannot be looked up: {error}", "give a folder or a hub id") from error
    if not _HUB_ID.fullmatch(name_or_path):
        raise SpecError(f"no folder {path}{did_you_mean(path.name, siblings)}", "give a folder or a hub id, OWNER/NAME")
    repository = _hub_cache() / f"models--{name_or_path.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / commit if commit else None
    return snapshot if snapshot is not None and snapshot.is_dir() else None


def hub_revision(folder: Path) -> str | None:
    """The hub's commit of a folder that locate_model found in the hub's cache; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and _hub_cache() in folder.parents else None


def base_checkpoint(model: ModelSpec, root: Path) -> Checkpoint:
    """The model of a spec as it is before training, its folders absolute."""
    given = {key: getattr(model, key) for key in ("name_or_path", "adapter_name_or_path")}
    update = {key: absolute_model(value, root) for key, value in given.items() if value is not None}
    return Checkpoint("base", model.model_copy(update=update))


def trained_checkpoint(folder: Path, base: ModelSpec) -> Checkpoint:
    """What a training left: an adapter on its base model, or a model of its own."""
    is_adapter = (folder / _ADAPTER_CONFIG).is_file()
    return Checkpoint(folder.name, base.trained(str(folder), is_adapter=is_adapter))


def absolute_model(name_or_path: str, root: Path) -> str:
    """An absolute folder, or a hub id as it is; SpecError where it can be neither."""
    path = root / expanded(name_or_path)
    if path.is_dir():
        return str(path.resolve())
    locate_model(name_or_path, root)
    return name_or_path


def model_problems(folder: Path) -> list[str]:
    """What is missing or broken in a full model's folder."""
    if (folder / _ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return [f"{folder} holds an adapter, not a model"]
    problems = weight_problems(folder)
    if not any((folder / name).is_file() for name in _VOCABULARIES) and not any(folder.glob("*.tiktoken")):
        problems.append(f"{folder} has no tokenizer: none of {', '.join(_VOCABULARIES)}")
    return problems


def adapter_problems(folder: Path) -> list[str]:
    if not (folder / _ADAPTER_CONFIG).is_file():
        kind = "a full model, not an adapter" if (folder / "config.json").is_file() else "no adapter"
        return [f"{folder} holds {kind}: it has no {_ADAPTER_CONFIG}"]
    return weight_problems(folder)


def weight_problems(folder: Path) -> list[str]:
    """What is missing or broken of the configuration and the weights of a model or an adapter, whichever it is."""
    config = folder / (_ADAPTER_CONFIG if (folder / _ADAPTER_CONFIG).is_file() else "config.json")
    problems = [] if json_mapping(config) is not None else [f"{config} is missing, or no JSON mapping"]
    try:
        shards = _shards(folder)
    except PrerequisiteError as error:
        return [*problems, error.message]
    absent = [name for name in shards if not (folder / name).is_file()]
    if not shards:
        problems.append(f"{folder} has no weights: no (adapter_)model.safetensors, and no {_INDEX}")
    elif absent:
        problems.append(f"{folder} lacks {len(absent)} of {len(shards)} files: {', '.join(absent[:5])}")
    for name in [name for name in shards if name.endswith(".safetensors") and name not in absent]:
        try:
            if lacking := sorted(shards[name] - read_header(folder / name).keys()):  # they would begin at random
                problems.append(f"{folder / name} lacks {len(lacking)} tensors of the index, such as {lacking[0]}")
        except PrerequisiteError as error:
            problems.append(error.message)
    return problems


def weight_files(folder: Path) -> list[Path]:
    """The weights that transformers or peft would load; PrerequisiteError where an index is damaged."""
    return [folder / name for name in _shards(folder)]


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A *.safetensors file's header: name -> dtype as written (BF16, F32), and shape; the file's size is compared.

    PrerequisiteError: it is missing, cut off, or something else. Source: https://github.com/huggingface/safetensors#format.
    """
    try:
        if not path.is_file():  # a pipe would block
            raise PrerequisiteError(f"{path} is missing")
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            start = file.read(40)
            header_bytes = int.from_bytes(start[:8], "little")
            if start.startswith(b"version https://git-lfs"):
                raise PrerequisiteError(f"{path} is a git-lfs pointer, not the file itself", "git lfs pull")
            if not 8 + header_bytes <= size_bytes or header_bytes > 100_000_000:  # safetensors' own limit
                what = f"{path} is cut off inside its header, or no safetensors file: it has {size_bytes:,} bytes"
                raise PrerequisiteError(what, _AGAIN)
            file.seek(8)
            entries = json.loads(file.read(header_bytes))
        entries.pop("__metadata__", None)
        tensors = {name: (str(each["dtype"]), tuple(map(int, each["shape"]))) for name, each in entries.items()}
        expected = 8 + header_bytes + max((int(each["data_offsets"][1]) for each in entries.values()), default=0)
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise PrerequisiteError(f"{path}: its header is no safetensors header ({error})", _AGAIN) from error
    if size_bytes != expected:
        what = f"{path} is cut off, or another file: it has {size_bytes:,} bytes, and its header says {expected:,}"
        raise PrerequisiteError(what, _AGAIN)
    return tensors


def lora_target_problem(target: str | list[str], folder: Path) -> str | None:
    """What is wrong with a lora_target for a model, or None: of several items peft skips a misspelt one in silence."""
    items = [item.strip() for item in (target.split(",") if isinstance(target, str) else target)]
    modules = {"lm_head"}  # where it shares the embedding's weight, the files have none of its name
    for path in weight_files(folder):
        if items == ["all"] or path.suffix != ".safetensors":
            return None
        for name, (_, shape) in read_header(path).items():
            module, _, kind = name.rpartition(".")
            if kind in ("weight", "qweight") and len(shape) == 2:  # GPTQ and AWQ call it qweight
                modules.add(module)
    # https://github.com/huggingface/peft: BaseTuner, check_target_module_exists
    absent = [item for item in items if not any(name == item or name.endswith(f".{item}") for name in modules)]
    if not absent:
        return None
    leaves = sorted({name.rpartition(".")[2] for name in modules})
    lacking = ", ".join(map(repr, absent)) + did_you_mean(absent[0], leaves)
    return f"the model has no module {lacking}; it has {', '.join(leaves)}"


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")  # the second is deprecated
    return expanded(given or f"{home}/hub")


def _shards(folder: Path) -> Mapping[str, set[str]]:
    """Name of each file of weights that would be loaded -> the tensors that an index expects in it."""
    kind = "adapter_model" if (folder / _ADAPTER_CONFIG).is_file() else "model"
    if (folder / f"{kind}.safetensors").is_file():  # transformers takes it before an index
        return {f"{kind}.safetensors": set()}
    index = folder / _INDEX
    if kind == "model" and index.is_file():
        weight_map = (json_mapping(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise PrerequisiteError(f"{index} is damaged: it has no weight_map", _AGAIN)
        shards: dict[str, set[str]] = {}
        for tensor, name in sorted(weight_map.items()):
            if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
                raise PrerequisiteError(f"{index} names {name!r}, which is no file beside it", _AGAIN)
            shards.setdefault(name, set()).add(tensor)
        return dict(sorted(shards.items()))
    pattern = "adapter_model.bin" if kind == "adapter_model" else "pytorch_model*.bin"
    return {path.name: set() for path in sorted(folder.glob(pattern))}
