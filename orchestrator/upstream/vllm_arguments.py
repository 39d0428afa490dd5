"""The flags of `vllm serve`, read from the source files of the vLLM that will run.

Covered: name, types, choices and default of each, from engine/arg_utils.py, entrypoints/.../cli_args.py and the
dataclasses of config/; how a value is written on the command line. Read with ast, never imported. Read so: vLLM 0.11.0,
0.16.0, 0.24.0 and 0.33.0.
Not covered: types that are named in other files of vLLM: such values are passed on unchecked; what fits together.
Writes nothing.
"""

import ast
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import PrerequisiteError
from orchestrator.specs.arguments import Argument
from orchestrator.upstream.arguments import alternatives, items_of, last_name
from orchestrator.upstream.installation import parse_source

_ADDRESS = "the server is asked at http://HOST:PORT/v1"
_PROMPT = "the prompt is the one of training: model.template, model.default_system"
_DECODING = "the benchmark says how words are chosen: temperature, ..."
_ADAPTERS = "it follows from the adapters that are served"
_TOKENIZER = "it is the model's own"
_SECRET = "a command line can be read by everybody"
OWNED: dict[str, str] = {
    "model": "write it as model.name_or_path",
    "trust_remote_code": "write it as model.trust_remote_code",
    "revision": "write it as model.revision",
    "tokenizer": _TOKENIZER,
    "tokenizer_revision": _TOKENIZER,
    "tokenizer_mode": _TOKENIZER,
    "skip_tokenizer_init": _TOKENIZER,
    "chat_template": _PROMPT,
    "chat_template_content_format": _PROMPT,
    "trust_request_chat_template": _PROMPT,
    "default_chat_template_kwargs": _PROMPT,
    "response_role": _PROMPT,
    "generation_config": _DECODING,
    "override_generation_config": _DECODING,
    "enable_lora": _ADAPTERS,
    "lora_modules": _ADAPTERS,
    "max_loras": _ADAPTERS,
    "max_lora_rank": _ADAPTERS,
    "served_model_name": "the model is called by run and hash of its weights",
    "api_key": f"export ORCHESTRATOR_API_KEY; {_SECRET}",
    "hf_token": f"export HF_TOKEN; {_SECRET}",
    "config": "write its arguments here",
    "uds": _ADDRESS,
    "headless": _ADDRESS,
    "grpc": _ADDRESS,
    "root_path": _ADDRESS,
    "tokens_only": _ADDRESS,
    "ssl_keyfile": _ADDRESS,
    "ssl_certfile": _ADDRESS,
}
"""Flags that a spec says elsewhere, or that would make it another server than the one that is asked."""

# Said where a spec says nothing else: they change answers or speed, and what vLLM itself takes differs by release.
_DEFAULTS: dict[str, Any] = {"dtype": "auto", "seed": 0, "enable_prefix_caching": True}

Style = Literal["value", "yes or no", "switch", "several", "json", "commas", "repeated"]

_KINDS = {"int": "int", "float": "float", "str": "str", "Path": "str", "dict": "dict", "Dict": "dict"}
_LISTS = {"list": "list", "List": "list", "tuple": "list", "Tuple": "list", "set": "list", "Sequence": "list"}
_WRAPPERS = {"SkipValidation", "InitVar", "Annotated", "ClassVar"}


@dataclass(frozen=True)
class Flag(Argument):
    """One flag of `vllm serve`; its name is as in Python: max_model_len for --max-model-len."""

    style: Style = "value"

    def words(self, value: Any) -> list[str]:
        """Flag and value as words of a command line; none where there is nothing to say."""
        flag = f"--{self.name.replace('_', '-')}"
        if value is None:
            return []
        if isinstance(value, bool):
            off = [f"--no-{self.name.replace('_', '-')}"] if self.style == "yes or no" else []
            return [flag] if value else off
        if isinstance(value, dict) or self.style == "json":
            return [flag, json.dumps(value)]
        if isinstance(value, list):
            items = [item if isinstance(item, str) else json.dumps(item) for item in value]
            if self.style == "repeated":
                return [word for item in items for word in (flag, item)]
            return [flag, ",".join(items)] if self.style == "commas" else [flag, *items]
        return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """What decides answers on the command line, but for the model: a spec's arguments over ours."""
    return {**_DEFAULTS, **given}


def read_flags(package: Path) -> dict[str, Flag]:
    """Every flag of `vllm serve` by name.

    Args:
        package: the folder of the package vllm.

    Raises:
        PrerequisiteError: the source files are not there, or are not as in the releases that were read.
    """
    found = _read(package, _stamp(package))
    missing = [name for name in ("host", "served_model_name", "chat_template", "lora_modules") if name not in found]
    if missing:
        raise PrerequisiteError(
            f"{package}: `vllm serve` has no --{missing[0].replace('_', '-')} there, as far as its source shows",
            "take a release between 0.11 and 0.33: ORCHESTRATOR_VLLM=FOLDER of its environment",
        )
    return dict(found)


def _stamp(package: Path) -> int:
    engine = package / "engine" / "arg_utils.py"
    return engine.stat().st_mtime_ns if engine.is_file() else 0


@lru_cache(maxsize=4)
def _read(package: Path, stamp: int) -> Mapping[str, Flag]:
    """The flags of a package; `stamp`, when it was changed, is there for the cache."""
    engine = parse_source(package / "engine" / "arg_utils.py")
    where = [package / "entrypoints" / folder / "cli_args.py" for folder in ("common", "openai")]
    front = parse_source(next((path for path in where if path.is_file()), where[0]))
    sources = _Sources([engine, front, *(parse_source(path) for path in sorted((package / "config").glob("*.py")))])
    flags: dict[str, Flag] = {}
    for name, annotation in sources.fields("FrontendArgs").items():
        flags[name] = sources.flag(name, annotation)
    flags |= sources.customised(front, flags)
    for tree, functions in ((front, ("make_arg_parser",)), (engine, ("add_cli_args",))):
        for function in _functions(tree, functions):
            flags |= {flag.name: flag for flag in sources.added(function)}
    return flags


class _Sources:
    """The dataclasses and the names of types of some modules."""

    def __init__(self, modules: Sequence[ast.Module]) -> None:
        self.classes: dict[str, ast.ClassDef] = {}
        self.names: dict[str, ast.expr] = {}
        """X = Literal[...], or X: TypeAlias = ..."""
        for module in modules:
            for node in ast.walk(module):
                if isinstance(node, ast.ClassDef):
                    self.classes.setdefault(node.name, node)
            for node in module.body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    self.names.setdefault(node.targets[0].id, node.value)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                    self.names.setdefault(node.target.id, node.value)

    def fields(self, name: str) -> dict[str, ast.expr]:
        """The annotated fields of a class and of its bases."""
        node = self.classes.get(name)
        if node is None:
            return {}
        found = {key: value for base in reversed(node.bases) for key, value in self.fields(last_name(base)).items()}
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[statement.target.id] = statement.annotation
        return found

    def added(self, function: ast.FunctionDef) -> Iterator[Flag]:
        """The flags that a function adds to its parser: add_argument("--x", **kwargs["x"]), or type=... written out."""
        kwargs_of: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
                target = node.targets[0]
                if last_name(node.value.func) == "get_kwargs" and isinstance(target, ast.Name):
                    kwargs_of[target.id] = last_name(node.value.args[0])
        for node in ast.walk(function):
            if not (isinstance(node, ast.Call) and last_name(node.func) == "add_argument"):
                continue
            said = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            for word in said:
                if word.startswith("--"):
                    yield self._added(word[2:].replace("-", "_"), node, kwargs_of)

    def _added(self, name: str, call: ast.Call, kwargs_of: Mapping[str, str]) -> Flag:
        said = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
        for keyword in call.keywords:
            for owner, key in _taken(keyword.value) if keyword.arg is None else ():
                annotation = self.fields(kwargs_of.get(owner, "")).get(key)
                if annotation is not None:
                    return self.flag(name, annotation)
        action = last_name(said["action"]) or _text(said["action"]) if "action" in said else ""
        if action == "BooleanOptionalAction":
            return _flag(name, {"bool"}, style="yes or no")
        if action in ("store_true", "store_false"):
            return _flag(name, {"bool"}, style="switch")
        kind = _KINDS.get(last_name(said["type"])) if "type" in said else "str"
        return _flag(name, {kind} if kind else set())

    def flag(self, name: str, annotation: ast.expr) -> Flag:
        """What vLLM's get_kwargs makes of a dataclass's field."""
        kinds: set[str] = set()
        literals: list[Any] = []
        optional, style = False, "value"
        for part in self._parts(annotation):
            label = last_name(part)
            if isinstance(part, ast.Constant):
                optional = optional or part.value is None
            elif label == "Literal" and isinstance(part, ast.Subscript):
                literals += self._literals(part)
            elif label == "bool":
                kinds.add("bool")
            elif label in _KINDS:
                kinds.add(_KINDS[label])
            elif label in _LISTS:
                kinds.add("list")
            elif label in self.classes and self.fields(label):
                kinds.add("dict")  # a dataclass: JSON
        # Of a type that no command line can say (torch.dtype, a callable), nothing is said.
        if kinds == {"bool"}:
            style = "yes or no"
        elif "list" in kinds:
            style = "several"
        closed = bool(literals) and not kinds
        kinds |= {type(value).__name__ for value in literals}
        choices = tuple(dict.fromkeys(literals)) if closed else None  # beside str, literals are suggestions
        return _flag(name, kinds, choices=choices, optional=optional, style=style)

    def _parts(self, annotation: ast.expr, depth: int = 0) -> Iterator[ast.expr]:
        """The alternatives of a type, names of types followed."""
        for part in alternatives(annotation):
            label = last_name(part)
            if isinstance(part, ast.Subscript) and label in _WRAPPERS:
                yield from self._parts(items_of(part.slice)[0], depth)
            elif isinstance(part, ast.Name) and label in self.names and depth < 5:
                yield from self._parts(self.names[label], depth + 1)
            else:
                yield part

    def _literals(self, node: ast.Subscript, depth: int = 0) -> list[Any]:
        found: list[Any] = []
        for item in items_of(node.slice):
            named = self.names.get(last_name(item)) if isinstance(item, ast.Name) else item
            if isinstance(item, ast.Constant):
                found.append(item.value)
            elif isinstance(named, ast.Subscript) and depth < 5:
                found += self._literals(named, depth + 1)
        return found

    @staticmethod
    def customised(front: ast.Module, flags: Mapping[str, Flag]) -> dict[str, Flag]:
        """Flags whose keywords are changed by hand: kwargs["x"]["type"] = json.loads, del kwargs["x"]["nargs"]."""
        changes: dict[str, Style] = {}
        for node in ast.walk(front):
            targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
            for outer in targets:
                inner = outer.value if isinstance(outer, ast.Subscript) else None
                if not (isinstance(outer, ast.Subscript) and isinstance(inner, ast.Subscript)):
                    continue
                name, key = _text(inner.slice), _text(outer.slice)
                if name not in flags:
                    continue
                if isinstance(node, ast.Delete) and key == "nargs":
                    changes.setdefault(name, "commas")
                elif isinstance(node, ast.Assign) and key == "type" and last_name(node.value) == "loads":
                    changes[name] = "json"
                elif isinstance(node, ast.Assign) and key == "action" and _text(node.value) == "append":
                    changes[name] = "repeated"
        return {
            name: _flag(name, set(flags[name].kinds), style=style, optional=True) for name, style in changes.items()
        }


def _flag(
    name: str, kinds: Iterable[str], *, choices: tuple[Any, ...] | None = None, optional: bool = False,
    style: str = "value",
) -> Flag:  # fmt: skip
    return Flag(name, frozenset(kinds), choices, optional, frozenset({"api"}), style=style)  # type: ignore[arg-type]


def _taken(node: ast.expr) -> Iterator[tuple[str, str]]:
    """(variable, key) of **kwargs["x"], or of **{**kwargs["x"], "default": None}."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        yield node.value.id, _text(node.slice)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                yield from _taken(value)


def _functions(tree: ast.Module, names: Sequence[str]) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names)


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
