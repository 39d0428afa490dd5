"""The files of a model or an adapter: where they are, whether they are whole, what they hold. Nothing is loaded.

Covered: folders and the local hub cache; config.json, tokenizer, *.safetensors by their headers (a truncated download,
a git-lfs pointer, a missing shard); module names for lora_target; an adapter against its base; hashes for the record.
Not covered: what is in pytorch_model.bin; whether the weights are good; downloading.
Reads a few MB of a model at most; writes nothing.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import MAX_JSON_BYTES, expanded
from orchestrator.models.tensorfile import AGAIN, MAX_HEADER_BYTES, read_header
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec

SAMPLES = 16
SAMPLE_BYTES = 1 << 16
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_IDENTITY_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    *_VOCABULARIES,
)
# huggingface_hub's rule for repository ids, `owner/name` or `name`
_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]{0,95}(?:/\w[\w.-]{0,95})?", re.ASCII)


def locate_model(name_or_path: str, root: Path, revision: str | None = None) -> Path | None:
    """The folder of a model or adapter on this machine, or None for a hub id that is not in the local cache.

    Args:
        name_or_path: a folder (absolute, ~, or relative to root) or a hub id.
        root: the workspace.
        revision: branch, tag or commit on the hub. None: main.

    Raises:
        SpecError: neither an existing folder nor a hub id.
    """
    try:
        path = root / expanded(name_or_path)
        if path.is_dir():
            return path.absolute()
        if path.exists():
            raise SpecError(f"{path} is a file; a model is the folder that holds its files", f"write {path.parent}")
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    except (OSError, RuntimeError) as error:  # no permission, too long a name; an unknown ~user
        raise SpecError(f"{name_or_path} cannot be looked up: {error}", "give a folder or a hub id") from error
    if not _HUB_ID.fullmatch(name_or_path):
        raise SpecError(f"no folder {path}{did_you_mean(path.name, siblings)}", "give a folder or a hub id, OWNER/NAME")
    repository = hub_cache() / f"models--{name_or_path.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / commit if commit else None
    return snapshot if snapshot is not None and snapshot.is_dir() else None


def hub_revision(folder: Path) -> str | None:
    """The hub's commit of a folder that locate_model found in the hub's cache; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and hub_cache() in folder.parents else None


def model_problems(folder: Path) -> list[str]:
    """What is missing or broken in a full model's folder; empty where it is whole."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return [f"{folder} holds an adapter, not a model"]
    problems = _json_problems(folder / "config.json")
    has_vocabulary = any((folder / name).is_file() for name in _VOCABULARIES) or any(folder.glob("*.tiktoken"))
    if not has_vocabulary:
        problems.append(f"{folder} has no tokenizer: none of {', '.join(_VOCABULARIES)}")
    return problems + weight_problems(folder)


def adapter_problems(folder: Path) -> list[str]:
    """What is missing or broken in an adapter's folder; empty where it is whole."""
    if not (folder / "adapter_config.json").is_file():
        kind = "a full model, not an adapter" if (folder / "config.json").is_file() else "no adapter"
        return [f"{folder} holds {kind}: it has no adapter_config.json"]
    return _json_problems(folder / "adapter_config.json") + weight_problems(folder)


def weight_problems(folder: Path) -> list[str]:
    """What is missing or broken among the weights of a model or an adapter, whichever the folder holds."""
    if (folder / "adapter_config.json").is_file():
        if (folder / "adapter_model.bin").is_file() and not (folder / "adapter_model.safetensors").is_file():
            return []
        return _header_problems([folder / "adapter_model.safetensors"])
    if (folder / "model.safetensors").is_file():  # transformers takes it before an index
        return _header_problems([folder / "model.safetensors"])
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _index_problems(index)
    if _pickled(folder):
        return []
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        shown = ", ".join(others[:3])
        return [f"{folder} has {shown}, but neither model.safetensors nor its index model.safetensors.index.json"]
    gguf = "; transformers does not load *.gguf by itself" if any(folder.glob("*.gguf")) else ""
    return [f"{folder} has no weights: neither model.safetensors nor model.safetensors.index.json{gguf}"]


def unchecked_weights(folder: Path) -> list[str]:
    """Weights that a look at headers cannot check: pickled ones, where there are no others."""
    names = ["adapter_model.bin"] if (folder / "adapter_config.json").is_file() else _pickled(folder)
    has_safetensors = any(folder.glob("*.safetensors"))
    return [name for name in names if (folder / name).is_file() and not has_safetensors]


def module_names(folder: Path) -> set[str]:
    """Names of the modules that have a weight matrix: what an adapter can be put on. Empty where it can't be told.

    Raises:
        PrerequisiteError: a weight file is broken.
    """
    return set(_matrices(folder))


def lora_target_problem(target: str | list[str], folder: Path) -> str | None:
    """What is wrong with a lora_target for a model, or None.

    peft fails only where no item at all is there; one misspelt item of several it leaves out without a word.
    """
    asked = [item.strip() for item in (target.split(",") if isinstance(target, str) else target)]
    modules = module_names(folder)
    if asked == ["all"] or not modules:
        return None
    modules.add("lm_head")  # where it shares the embedding's weight, the files have none of its name
    # https://github.com/huggingface/peft: BaseTuner, check_target_module_exists
    absent = [item for item in asked if not any(name == item or name.endswith(f".{item}") for name in modules)]
    if not absent:
        return None
    leaves = sorted({name.rpartition(".")[2] for name in modules})
    hint = did_you_mean(absent[0], leaves)
    return f"the model has no module {', '.join(map(repr, absent))}{hint}; it has {', '.join(leaves)}"


def adapter_mismatch(adapter: Path, base: Path) -> str | None:
    """The first module where a LoRA adapter's shapes do not fit the base model, or None.

    Only equal names are compared, and only plain weights: a quantized base has other shapes.

    Raises:
        PrerequisiteError: a file is broken.
    """
    config = _read_json(adapter / "adapter_config.json")
    weights = adapter / "adapter_model.safetensors"
    if config.get("fan_in_fan_out") or "quantization_config" in _read_json(base / "config.json"):
        return None
    matrices = _matrices(base)
    tensors = read_header(weights).tensors if weights.is_file() else {}
    for name, (_, shape) in sorted(tensors.items()):
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        side = {"A.weight": 1, "B.weight": 0}.get(part)  # A is rank x inputs, B outputs x rank
        if side is not None and module in matrices and len(shape) == 2 and shape[side] != matrices[module][side]:
            fits = f"{shape[side]} for {matrices[module][side]} {'inputs' if side else 'outputs'}"
            return f"{adapter} does not fit {base}: {module} has {fits}"
    return None


def model_sha256(folder: Path) -> str:
    """Hash of a full model: configuration, tokenizer, and of each weight file its size, header and samples.

    The weights are not read whole: 16 pieces of 64 KiB of each file, evenly spread, tell one training from another.

    Raises:
        PrerequisiteError: a file cannot be read.
    """
    digest = hashlib.sha256()
    codes = sorted(path.name for path in folder.glob("*.py"))  # trust_remote_code runs them
    for name in [*_IDENTITY_FILES, *codes]:
        if (folder / name).is_file():
            _add(digest, name, _read(folder / name))
    for path in weight_files(folder):
        _add(digest, path.name, _sample(path))
    return digest.hexdigest()


def adapter_sha256(folder: Path) -> str:
    """Hash of an adapter: all its weights, and its configuration without the order of target_modules.

    Raises:
        PrerequisiteError: a file cannot be read.
    """
    config = _read_json(folder / "adapter_config.json")
    if isinstance(config.get("target_modules"), list):
        # LLaMA-Factory makes it from a set: the same training writes another order each time.
        config["target_modules"] = sorted(map(str, config["target_modules"]))
    digest = hashlib.sha256()
    _add(digest, "adapter_config.json", json.dumps(config, sort_keys=True).encode())
    for path in _adapter_weights(folder):
        _add(digest, path.name, _file_sha256(path))
    return digest.hexdigest()


def weights_sha256(folder: Path) -> str:
    """Hash of the weights alone, an adapter's whole, a full model's by samples: the same wherever the base model lies.

    Raises:
        PrerequisiteError: a file cannot be read.
    """
    digest = hashlib.sha256()
    is_adapter = (folder / "adapter_config.json").is_file()
    for path in _adapter_weights(folder) if is_adapter else weight_files(folder):
        _add(digest, path.name, _file_sha256(path) if is_adapter else _sample(path))
    return digest.hexdigest()


def _header_problems(paths: Iterable[Path]) -> list[str]:
    problems = []
    for path in paths:
        try:
            read_header(path)
        except PrerequisiteError as error:
            problems.append(error.message)
    return problems


def _index_problems(index: Path) -> list[str]:
    try:
        shards = _shards(index)
    except PrerequisiteError as error:
        return [error.message]
    absent = [name for name in shards if not (index.parent / name).is_file()]
    problems = []
    if absent:
        problems.append(f"{index.parent} lacks {len(absent)} of {len(shards)} shards: {', '.join(absent[:5])}")
    for name, expected in shards.items():
        if name in absent:
            continue
        try:
            held = read_header(index.parent / name).tensors
        except PrerequisiteError as error:
            problems.append(error.message)
            continue
        lacking = sorted(expected - held.keys())
        if lacking:  # transformers would start these from random numbers
            problems.append(f"{index.parent / name} lacks {len(lacking)} tensors of the index, such as {lacking[0]}")
    return problems


def _shards(index: Path) -> dict[str, set[str]]:
    """Shard -> the tensors that the index expects in it."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PrerequisiteError(f"{index} has no weight_map", AGAIN)
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise PrerequisiteError(f"{index} names {name!r}, which is no file beside it", AGAIN)
        shards.setdefault(name, set()).add(tensor)
    return shards


def weight_files(folder: Path) -> list[Path]:
    """The weights that transformers would load."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    return [folder / name for name in (sorted(_shards(index)) if index.is_file() else _pickled(folder))]


def _adapter_weights(folder: Path) -> list[Path]:
    paths = (folder / name for name in ("adapter_model.safetensors", "adapter_model.bin"))
    return [path for path in paths if path.is_file()]


def _pickled(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("pytorch_model*.bin"))


def _matrices(folder: Path) -> dict[str, tuple[int, ...]]:
    """Module -> shape of its weight, where that has two dimensions."""
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            return {}
        for name, (_, shape) in read_header(path).tensors.items():
            module, _, kind = name.rpartition(".")
            if kind in ("weight", "qweight") and len(shape) == 2:  # GPTQ and AWQ call it qweight
                found[module] = shape
    return found


def _json_problems(path: Path) -> list[str]:
    try:
        _read_json(path, required=True)
    except PrerequisiteError as error:
        return [error.message]
    return []


def _read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """A JSON file's mapping; {} where the file is not there and not required."""
    if not path.is_file():
        if required:
            raise PrerequisiteError(f"{path} is missing")
        return {}
    content = _read(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        is_pointer = content.startswith(b"version https://git-lfs")
        reason = "a git-lfs pointer, not the file itself" if is_pointer else f"not JSON: {error}"
        raise PrerequisiteError(f"{path} is {reason}", AGAIN) from error
    if not isinstance(value, dict):
        raise PrerequisiteError(f"{path} is no JSON mapping", AGAIN)
    return value


def _read(path: Path) -> bytes:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_JSON_BYTES:
            raise PrerequisiteError(f"{path} has {size_bytes:,} bytes, more than any file of its name")
        return path.read_bytes()
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error


def _sample(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size_bytes).encode())
            begin = file.read(8)
            header_bytes = min(int.from_bytes(begin, "little"), size_bytes, MAX_HEADER_BYTES)
            digest.update(begin + file.read(header_bytes if path.suffix == ".safetensors" else 0))
            for number in range(SAMPLES):
                file.seek(number * max(size_bytes - SAMPLE_BYTES, 0) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error
    return digest.digest()


def _file_sha256(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error


def _add(digest: "hashlib._Hash", name: str, content: bytes) -> None:
    """Add a named part; lengths keep two parts from reading as other two."""
    digest.update(f"{name}\0{len(content)}\0".encode() + content)


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return expanded(os.environ[variable])
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return expanded(home) / "hub"


def base_checkpoint(model: ModelSpec, root: Path) -> Checkpoint:
    """The model of a spec as it is before training, its folders absolute."""
    adapter = model.adapter_name_or_path
    update = {
        "name_or_path": _absolute(model.name_or_path, root),
        "adapter_name_or_path": None if adapter is None else _absolute(adapter, root),
    }
    return Checkpoint("base", model.model_copy(update=update))


def trained_checkpoint(folder: Path, base: ModelSpec) -> Checkpoint:
    """What a training left: an adapter on its base model, or a whole model."""
    is_adapter = (folder / "adapter_config.json").is_file()
    return Checkpoint(folder.name, base.trained(str(folder), is_adapter=is_adapter))


def _absolute(name_or_path: str, root: Path) -> str:
    """An absolute folder, or a hub id as it is."""
    path = expanded(name_or_path)
    folder = path if path.is_absolute() else root / path
    if folder.is_dir():
        return str(folder.resolve())
    locate_model(name_or_path, root, None)  # SpecError where it can't be a hub id either
    return name_or_path
