"""LLaMA-Factory's chat templates and the models that it lists with them, read from its source and never imported.

A model's type decides nothing: SmolLM, Llama 3 and Vicuna are all of type llama.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from orchestrator.files import json_mapping
from orchestrator.models.model_files import locate_model
from orchestrator.specs.spec import ModelSpec
from orchestrator.upstream.installation import Installation, parse_source

_THINKS = "ReasoningTemplate"


@dataclass(frozen=True)
class ChatTemplates:
    """What an installation knows; empty where its source is not there."""

    names: frozenset[str] = frozenset()
    reasoning: frozenset[str] = frozenset()
    """Those for models that think before they answer."""
    by_model: Mapping[str, frozenset[str | None]] = field(default_factory=dict)
    """Hub id, and its part behind the owner, lower case -> templates that it is listed with. None: as a base model."""


@dataclass(frozen=True)
class TemplateMatch:
    """The template that a model goes with."""

    template: str | None
    """None: it is not known, or not clear."""
    reason: str
    """How it was found, or why not."""


def read_templates(installation: Installation) -> ChatTemplates:
    """The templates of an installation.

    Raises:
        PrerequisiteError: its source cannot be read.
    """
    if installation.package is None:
        return ChatTemplates()
    files = (installation.package / "data" / "template.py", installation.package / "extras" / "constants.py")
    stamps = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files)
    return _read(*files, stamps)


@lru_cache(maxsize=4)
def _read(template_file: Path, models_file: Path, stamps: tuple[int, ...]) -> ChatTemplates:
    """The templates of two source files; `stamps`, when they were changed, is there for the cache."""
    if not stamps[0]:
        return ChatTemplates()
    module = parse_source(template_file)
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    thinking = {_THINKS, *(node.name for node in classes if _THINKS in map(ast.unparse, node.bases))}
    names: dict[str, bool] = {}  # and whether it is for models that think
    for _, keywords in _calls(module, "register_template"):
        kind = keywords.get("template_class")
        names[_text(keywords.get("name"))] = isinstance(kind, ast.Name) and kind.id in thinking
    by_model = _by_model(parse_source(models_file)) if stamps[1] else {}
    return ChatTemplates(frozenset(names), frozenset(name for name, thinks in names.items() if thinks), by_model)


def suggest_template(name_or_path: str, folder: Path | None, templates: ChatTemplates) -> TemplateMatch:
    """The template that LLaMA-Factory lists a model with.

    Args:
        name_or_path: the model, as a spec names it.
        folder: its files; None where they are not on this machine.
        templates: what read_templates found.
    """
    matches: list[tuple[str, str, frozenset[str | None]]] = []
    for where, name in _names(name_or_path, folder):
        key = name.lower().replace("___", ".")  # ModelScope's downloads: Qwen2___5-7B-Instruct
        listed = templates.by_model.get(key) or templates.by_model.get(_last_part(key))
        if listed:
            matches.append((where, _last_part(name), listed))
    if not matches:
        return TemplateMatch(None, f"LLaMA-Factory lists no model {_last_part(name_or_path)}")
    _, name, first = matches[0]
    named = {template for _, _, listed in matches for template in listed if template}
    if not named:
        return TemplateMatch(None, f"LLaMA-Factory lists {name} as a base model, without a template")
    if first == named and len(named) == 1:
        (template,) = named
        return TemplateMatch(template, f"LLaMA-Factory lists {name} with {template}")
    reasons = []
    for where, name, listed in matches:
        ways = sorted(f"with {each}" if each else "as a base model" for each in listed)
        reasons.append(f"{where}, {name}, is listed {' and '.join(ways)}")
    return TemplateMatch(None, f"which one is not clear: {'; '.join(reasons)}")


def resolve_template(model: ModelSpec, root: Path, installation: Installation) -> tuple[ModelSpec, str]:
    """The model with the template that it is listed with, where the spec leaves template out; and how it was found.

    An explicit null stays null, and so does what a resolved spec says: a rerun is never resolved anew.
    """
    if "template" in model.model_fields_set:
        return model, ""
    folder = locate_model(model.name_or_path, root, model.revision)
    found = suggest_template(model.name_or_path, folder, read_templates(installation))
    return model.model_copy(update={"template": found.template}), found.reason


def template_sha256(installation: Installation, name: str) -> str | None:
    """Hash of a template as LLaMA-Factory's source has it: upstream changes texts under one name. None: not known.

    Raises:
        PrerequisiteError: its source cannot be read.
    """
    path = installation.package / "data" / "template.py" if installation.package else None
    if path is None or not path.is_file():
        return None
    for statement, keywords in _calls(parse_source(path), "register_template"):
        if _text(keywords.get("name")) == name:
            lines = path.read_text("utf-8").splitlines()[statement.lineno - 1 : statement.end_lineno]
            return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return None


def has_chat_template(folder: Path) -> bool:
    """Whether a model's tokenizer brings a chat template of its own."""
    has_file = any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
    return has_file or bool((json_mapping(folder / "tokenizer_config.json") or {}).get("chat_template"))


def _names(name_or_path: str, folder: Path | None) -> Iterator[tuple[str, str]]:
    """What a model is called, and where: its id or folder first."""
    if folder is None:
        yield "the model's id", name_or_path
        return
    cached = re.search(r"/models--([^/]+)/snapshots/[^/]+$", str(folder))  # the hub's cache
    if cached:
        yield "the model's id", cached[1].replace("--", "/", 1)
    else:
        yield "the folder", _last_part(name_or_path)
    config = json_mapping(folder / "config.json") or {}
    for key in ("_name_or_path", "_model_name_or_path"):
        name = config.get(key)
        if isinstance(name, str) and name.strip("/"):
            yield f"config.json's {key}", name


def _last_part(name: str) -> str:
    return Path(name).name or name


def _by_model(module: ast.Module) -> dict[str, frozenset[str | None]]:
    """register_model_group's models. Within a group, only chat models have its template, by marks in their names."""
    marks = _chat_marks(module.body)
    listed: dict[str, tuple[set[str], str | None]] = {}  # display name -> its hub ids and its template
    for _, keywords in _calls(module, "register_model_group"):
        group = _text(keywords.get("template")) or None
        is_multimodal = ast.unparse(keywords.get("multimodal", ast.Constant(False))) == "True"
        for name, sources in _items(keywords.get("models")):
            ids = {_text(value) for _, value in _items(sources)}
            is_chat = is_multimodal or any(mark in name for mark in marks)
            # As in the dict there: a later entry of a name replaces its ids, but a template that it had is kept.
            kept = listed[name][1] if name in listed else None
            listed[name] = (ids, group if group and is_chat else kept)
    found: dict[str, set[str | None]] = {}
    for ids, its_template in listed.values():
        for hub_id in ids:
            for key in {hub_id.lower(), hub_id.lower().rpartition("/")[2]}:
                found.setdefault(key, set()).add(its_template)
    return {key: frozenset(templates) for key, templates in found.items()}


def _chat_marks(body: Iterable[ast.stmt]) -> tuple[str, ...]:
    """("-Chat", "-Instruct", ...), as register_model_group itself has them."""
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "register_model_group"]
    for part in (part for function in functions for part in ast.walk(function)):
        if isinstance(part, ast.Tuple) and part.elts and all(map(_text, part.elts)):
            return tuple(map(_text, part.elts))
    return ()


def _calls(module: ast.Module, function: str) -> Iterator[tuple[ast.stmt, dict[str | None, ast.expr]]]:
    """Each call of a function among the module's own statements, as docstrings hold examples; and its keywords."""
    for statement in module.body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == function:
            yield statement, {keyword.arg: keyword.value for keyword in call.keywords}


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _items(node: ast.expr | None) -> Iterator[tuple[str, ast.expr]]:
    """Keys and values of a dict in the source; what is no text has no key."""
    if isinstance(node, ast.Dict):
        yield from ((_text(key), value) for key, value in zip(node.keys, node.values, strict=True))
