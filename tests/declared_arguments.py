"""LLaMA-Factory's arguments as its own dataclasses have them once imported: what is read from its source must be these.

It prints tests/data/arguments-0.9.5.json. Runs in LLaMA-Factory's Python.
"""

import dataclasses
import enum
import inspect
import json
import pathlib
import re
import types
import typing
from typing import Any

from llamafactory import hparams

# What each command reads (hparams/parser.py); export is as api.
COMMANDS = {
    hparams.ModelArguments: ["train", "api", "export"],
    hparams.DataArguments: ["train", "api", "export"],
    hparams.TrainingArguments: ["train"],
    hparams.FinetuningArguments: ["train", "api", "export"],
    hparams.GeneratingArguments: ["train", "api", "export"],
}
KINDS = {int: "int", float: "float", bool: "bool", str: "str", pathlib.Path: "str", list: "list", dict: "dict"}


def split_at_commas(declared: type) -> set[str]:
    """Arguments that may be a list or a text that LLaMA-Factory splits: split_arg(self.NAME)."""
    return set(re.findall(r"split_arg\(self\.(\w+)", inspect.getsource(declared)))


def union(annotation: Any) -> list[Any]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [each for part in typing.get_args(annotation) for each in union(part)] if is_union else [annotation]


def values(annotation: Any) -> list[Any]:
    """The values that an enum or a Literal lists; none of any other type."""
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    is_enum = isinstance(annotation, type) and issubclass(annotation, enum.Enum)
    return [member.value for member in annotation] if is_enum else []


def types_of(annotation: Any) -> dict[str, Any]:
    parts = union(annotation)
    listed = [value for part in parts for value in values(part)]
    others = [part for part in parts if part is not type(None) and not values(part)]
    plain = {KINDS.get(typing.get_origin(part) or part) for part in others}
    # transformers makes a member of the text of `SomeEnum | str`: no other will do. `Literal | str` is any text.
    is_literal = any(typing.get_origin(part) is typing.Literal for part in parts)
    choices = [value for value in listed if value is not None] if plain <= (set() if is_literal else {"str"}) else None
    kinds = plain | {type(value).__name__ for value in listed if value is not None}
    is_optional = type(None) in parts or None in listed
    return {"kinds": set() if None in kinds else kinds, "choices": choices or None, "optional": is_optional}


def default_of(field: Any) -> dict[str, Any]:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    default = default.value if isinstance(default, enum.Enum) else default
    try:
        return {"default": json.loads(json.dumps(default))}
    except TypeError:
        return {}


def arguments() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for declared, commands in COMMANDS.items():
        hints = typing.get_type_hints(declared)
        split = {name for base in declared.__mro__[:-1] for name in split_at_commas(base)}
        for field in dataclasses.fields(declared):
            if not field.init:  # derived, not given
                continue
            argument = types_of(hints[field.name])
            argument["kinds"] = sorted(argument["kinds"] | ({"list"} if field.name in split else set()))
            if "choices" in field.metadata:
                argument["choices"] = list(field.metadata["choices"])
            argument["help"] = " ".join(field.metadata.get("help", "").split())
            found[field.name] = {**argument, "commands": commands, **default_of(field)}
    return found


if __name__ == "__main__":
    print()
    print(json.dumps(arguments()))
