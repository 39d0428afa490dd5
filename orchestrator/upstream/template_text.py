"""The text of a chat template, hashed: LLaMA-Factory changes texts under one name."""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

from orchestrator.files import json_mapping
from orchestrator.upstream.installation import Installation, parse_source

_OF_TOKENIZER = ("chat_template.jinja", "chat_template.json")


def chat_template_sha256(template: str | None, model: Path | None, installation: Installation | None) -> str | None:
    """Hash of the template's text that a conversation is put into.

    Args:
        template: LLaMA-Factory's name of it. None: the tokenizer's own is taken.
        model: the folder of the model, for its tokenizer; None where it is not on this machine.
        installation: LLaMA-Factory; None where there is none.

    Returns:
        None where the text is not known here.

    Raises:
        PrerequisiteError: LLaMA-Factory's source cannot be read.
    """
    if template is None:
        return None if model is None else _sha256(_tokenizers_own(model))
    source = installation.package / "data" / "template.py" if installation and installation.package else None
    if source is None or not source.is_file():
        return None
    text = _registered(source, source.stat().st_mtime_ns).get(template)
    return None if text is None else _sha256(text)


@lru_cache(maxsize=4)
def _registered(source: Path, stamp: int) -> dict[str, str]:
    """Name -> the call of register_template that makes it; `stamp`, when the file was changed, is for the cache."""
    found: dict[str, str] = {}
    for statement in parse_source(source).body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register_template":
            names = [each.value for each in call.keywords if each.arg == "name"]
            if names and isinstance(names[0], ast.Constant):
                found[str(names[0].value)] = ast.unparse(call)
    return found


def _tokenizers_own(model: Path) -> str:
    texts = [(model / name).read_text("utf-8", "replace") for name in _OF_TOKENIZER if (model / name).is_file()]
    return "\n".join([*texts, str((json_mapping(model / "tokenizer_config.json") or {}).get("chat_template"))])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
