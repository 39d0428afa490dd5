"""LLaMA-Factory's chat templates and the models that it lists with them, read from its source and never imported.

A model's type decides nothing: SmolLM, Llama 3 and Vicuna are all of type llama.
"""

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
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

    names: Mapping[str, str] = field(default_factory=dict)  # with the sha256 of each one's text, which upstream changes
    reasoning: frozenset[str] = frozenset()  # those for models that think before they answer
    by_model: Mapping[str, frozenset[str | None]] = field(default_factory=dict)
    """Hub id, and its part behind the owner, lower case -> templates that it is listed with. None: as a base model."""


def read_templates(installation: Installation) -> ChatTemplates:
    """The templates of an installation. Raises PrerequisiteError: its source cannot be read."""
    path = installation.package / "data" / "template.py" if installation.package else None
    if path is None or not path.is_file():
        return ChatTemplates()
    return _read(path)


@lru_cache(maxsize=4)
def _read(path: Path) -> ChatTemplates:
    module, lines = parse_source(path)
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    thinking = {_THINKS, *(node.name for node in classes if _THINKS in map(ast.unparse, node.bases))}
    names, reasoning = {}, set()
    for call, keywords in _calls(module, "register_template"):
        name = _text(keywords["name"])
        names[name] = hashlib.sha256("\n".join(lines[call.lineno - 1 : call.end_lineno]).encode()).hexdigest()
        if "template_class" in keywords and ast.unparse(keywords["template_class"]) in thinking:
            reasoning.add(name)
    models = path.parent.parent / "extras" / "constants.py"
    return ChatTemplates(names, frozenset(reasoning), _by_model(parse_source(models)[0]) if models.is_file() else {})


def suggest_template(name_or_path: str, folder: Path | None, templates: ChatTemplates) -> tuple[str | None, str]:
    """The template that a model (an id, or its files in `folder`) is listed with, and how it was found, or why not."""
    for name in _names(name_or_path, folder):
        key = name.lower().replace("___", ".")  # ModelScope's downloads: Qwen2___5-7B-Instruct
        listed = templates.by_model.get(key) or templates.by_model.get(Path(key).name)
        if listed is None:
            continue
        if len(listed) > 1:
            ways = " and ".join(sorted(each or "no template" for each in listed))
            return None, f"which one is not clear: {Path(name).name} is listed with {ways}"
        (template,) = listed
        way = f"with {template}" if template else "as a base model, without a template"
        return template, f"LLaMA-Factory lists {Path(name).name} {way}"
    return None, f"LLaMA-Factory lists no model {Path(name_or_path).name}"


def resolve_template(model: ModelSpec, root: Path, installation: Installation) -> tuple[ModelSpec, str]:
    """The model with the template that it lacks, and how it was found; null stays: a rerun is never resolved anew."""
    if "template" in model.model_fields_set:
        return model, ""
    folder = locate_model(model.name_or_path, root, model.revision)
    template, reason = suggest_template(model.name_or_path, folder, read_templates(installation))
    return model.model_copy(update={"template": template}), reason


def has_chat_template(folder: Path) -> bool:
    """Whether a model's tokenizer brings a chat template of its own."""
    has_file = any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
    return has_file or bool((json_mapping(folder / "tokenizer_config.json") or {}).get("chat_template"))


def _names(name_or_path: str, folder: Path | None) -> list[str]:
    """What a model is called: its id, or else its folder, first; then what its configuration says it was made from."""
    cached = re.search(r"/models--([^/]+)/snapshots/[^/]+$", str(folder))  # the hub's cache
    config = (json_mapping(folder / "config.json") if folder else None) or {}
    first = cached[1].replace("--", "/", 1) if cached else Path(name_or_path).name if folder else name_or_path
    origin = config.get("_name_or_path")
    return [first, origin] if isinstance(origin, str) and origin.strip("/") else [first]


def _by_model(module: ast.Module) -> dict[str, frozenset[str | None]]:
    """register_model_group's models. Within a group, only chat models have its template, by marks in their names."""
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.endswith("_group")]
    tuples = [node.elts for function in functions for node in ast.walk(function) if isinstance(node, ast.Tuple)]
    # ("-Chat", "-Instruct", ...), as register_model_group itself has them
    marks = next((list(map(_text, elements)) for elements in tuples if all(map(_text, elements))), [])
    listed: dict[str, tuple[list[str], str | None]] = {}  # name, of which a later entry replaces it -> ids, template
    for _, keywords in _calls(module, "register_model_group"):
        template = _text(keywords.get("template")) or None
        is_multimodal = "multimodal" in keywords and ast.unparse(keywords["multimodal"]) == "True"
        for name, sources in _items(keywords["models"]):
            is_chat = is_multimodal or any(mark in name for mark in marks)
            listed[name] = ([_text(value).lower() for _, value in _items(sources)], template if is_chat else None)
    found: dict[str, set[str | None]] = {}
    for ids, its_template in listed.values():
        for key in {key for hub_id in ids for key in (hub_id, hub_id.rpartition("/")[2])}:
            found.setdefault(key, set()).add(its_template)
    return {key: frozenset(templates) for key, templates in found.items()}


def _calls(module: ast.Module, function: str) -> Iterator[tuple[ast.Call, dict[str | None, ast.expr]]]:
    """Each call of a function among the module's own statements, as docstrings hold examples; and its keywords."""
    for statement in module.body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) == function:
            yield call, {keyword.arg: keyword.value for keyword in call.keywords}


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _items(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Keys and values of a dict in the source; an enum's member has no text."""
    if isinstance(node, ast.Dict):
        yield from ((_text(key), value) for key, value in zip(node.keys, node.values, strict=True))
