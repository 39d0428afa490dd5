"""The hash of a model's or an adapter's files: every byte, remembered for a file that did not change since."""

import hashlib
import json
import logging
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import PrerequisiteError
from orchestrator.files import atomic_write, cache_folder, json_mapping, sha256_file, sha256_json
from orchestrator.models.model_files import weight_files
from orchestrator.text import size

log = logging.getLogger("orchestrator")

_WORTH_A_LINE_BYTES = 1 << 30
# Of a model, what decides an answer beside its weights and its code, which trust_remote_code runs.
_SETTINGS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "tekken.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def weights_sha256(folder: Path) -> str:
    """Hash of every byte of the weights that a folder would be loaded from; PrerequisiteError as file_sha256."""
    return sha256_json({path.name: file_sha256(path) for path in weight_files(folder)})


def model_sha256(folder: Path) -> str:
    """Hash of all in a model's or an adapter's folder that decides answers: weights, configuration, tokenizer, code.

    An adapter's configuration counts without its base model's path. PrerequisiteError as file_sha256.
    """
    parts = {"weights": weights_sha256(folder)}
    if config := json_mapping(folder / "adapter_config.json"):
        modules = config.get("target_modules")  # LLaMA-Factory makes the list from a set, in any order
        config["target_modules"] = sorted(map(str, modules)) if isinstance(modules, list) else modules
        return sha256_json({**parts, "adapter_config.json": {**config, "base_model_name_or_path": None}})
    paths = [folder / name for name in _SETTINGS] + sorted((*folder.glob("*.py"), *folder.glob("*.tiktoken")))
    return sha256_json({**parts, **{path.name: file_sha256(path) for path in paths if path.is_file()}})


def file_sha256(path: Path) -> str:
    """Hash of a file, in hex, remembered by its state; PrerequisiteError: it can't be read, or was written to."""
    try:
        path = path.resolve(strict=True)  # in the hub's cache a link to what has its hash as its name
        state = _state(path)
        name = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()
        kept = cache_folder() / "hashes" / f"{name}.json"
        known = json_mapping(kept)
        if known is not None and known.get("state") == state:
            return str(known["sha256"])
        if path.stat().st_size >= _WORTH_A_LINE_BYTES:
            log.info("hashing %s (%s)", path.name, size(path.stat().st_size))
        digest = sha256_file(path)
        if _state(path) != state:
            raise PrerequisiteError(f"{path} was written to while it was read", "wait until that has ended")
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error
    with suppress(OSError):  # a cache that cannot be written costs time alone
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(kept, json.dumps({"state": state, "sha256": digest}))
    return digest


def _state(path: Path) -> list[object]:
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns, found.st_ino]
