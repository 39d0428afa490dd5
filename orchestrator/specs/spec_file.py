"""A spec file as a RunSpec: every problem at once, each at its place."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.specs.arguments import Argument, argument_problem
from orchestrator.specs.places import MODEL_ARGUMENTS, RESERVED_ARGUMENTS, RESERVED_VLLM, drop_retired, reason
from orchestrator.specs.secrets import is_secret, secret_remedy
from orchestrator.specs.spec import OPEN_SECTIONS, RunSpec
from orchestrator.specs.yamlfile import MAX_PROBLEMS, Location, read_yaml, set_value

log = logging.getLogger("orchestrator")

_Problem = tuple[Location, str]


def load_spec(path: Path, overrides: Sequence[str] = (), arguments: Mapping[str, Argument] | None = None) -> RunSpec:
    """Read a spec file and check all that it says by itself.

    Whether arguments fit together is LLaMA-Factory's to say, and vLLM's arguments are vLLM's to check.

    Args:
        path: the YAML file, at most 1 MiB, UTF-8.
        overrides: KEY=VALUE pairs of `--set`: KEY a dotted path, VALUE read as YAML.
        arguments: LLaMA-Factory's arguments by name; None leaves their names and values unchecked.

    Raises:
        SpecError: every problem at once, each with file:line:column and dotted path.
    """
    source = read_yaml(path)
    dropped = drop_retired(source.value)
    if dropped:
        log.warning("%s: fields of an earlier version are left out: %s", path, ", ".join(dropped))
    for override in overrides:
        set_value(source, override)
    secrets = list(_secrets(source.value, ()))
    source.hidden |= {at for at, _ in secrets}
    problems = [*secrets, *_value_problems(source.value, ()), *_check_arguments(source.value, arguments or {})]
    spec = None
    try:
        spec = RunSpec.model_validate(source.value)
    except ValidationError as error:
        problems += [_explain(detail) for detail in error.errors()[:MAX_PROBLEMS]]
    if problems or spec is None:
        first = dict(reversed(problems))  # of several at one place, the first says it best
        raise SpecError(source.report(list(first.items())), f"edit {path}")
    return spec


def _items(value: object) -> Iterator[tuple[str | int, Any]]:
    yield from value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()


def _secrets(value: object, at: Location) -> Iterator[_Problem]:
    for key, item in _items(value):
        name = key if isinstance(key, str) else ""
        if is_secret(name, item):
            yield (*at, key), f"holds a secret, which would be written into the run folder\n{secret_remedy(name)}"
        yield from _secrets(item, (*at, key))


def _value_problems(value: object, at: Location) -> Iterator[_Problem]:
    """Values that LLaMA-Factory's reader, or any file or command line, would change."""
    for key, item in _items(value):
        if isinstance(key, str) and (problem := _text_problem(key)):
            yield (*at, key), problem
        yield from _value_problems(item, (*at, key))
    if isinstance(value, str) and (problem := _text_problem(value)):
        yield at, problem
    elif isinstance(value, float) and not math.isfinite(value):
        yield at, f"{value} is no number that could be passed on"
    elif value is not None and not isinstance(value, bool | int | float | str | list | Mapping):
        kind = "a date" if isinstance(value, date) else "something with a type of its own"
        yield at, f'YAML takes it for {kind}; for text write it in quotes: "..."'


def _text_problem(text: str) -> str:
    if "${" in text:
        return "'${' cannot be passed on: OmegaConf, LLaMA-Factory's reader, would interpolate it, however it is quoted"
    if "\0" in text:
        return "a null byte cannot be passed on"
    if any("\ud800" <= char <= "\udfff" for char in text):
        return "a lone surrogate is no text that could be written to a file"
    return ""


def _check_arguments(spec: Mapping[str, Any], arguments: Mapping[str, Argument]) -> Iterator[_Problem]:
    """Arguments that have a place of their own, that do not exist, or whose value does not fit.

    Those that fit get the type that LLaMA-Factory declares: 1e5 for an int becomes 100000.
    """
    for section, command in (("train", "train"), ("serve", "api"), ("export", "export")):
        values, fields = spec.get(section), OPEN_SECTIONS[section].model_fields
        if not isinstance(values, dict):
            continue
        by_vllm = section == "serve" and values.get("backend") == "vllm"
        known, reserved = ({}, RESERVED_VLLM) if by_vllm else (arguments, RESERVED_ARGUMENTS)
        for key in islice((key for key in values if key not in fields), MAX_PROBLEMS):
            if key in reserved:
                yield (section, key), f"{key} is managed by orchestrator: {reason(reserved[key])}"
            elif known and (problem := argument_problem(key, values[key], command, known, fields)):
                yield (section, key), problem
            elif known:
                values[key] = known[key].typed(values[key])
    model = spec.get("model")
    for key, value in _items(model.get("arguments") if isinstance(model, Mapping) else None):
        if key not in (*MODEL_ARGUMENTS, "cutoff_len"):
            yield ("model", "arguments", key), f"expected one of {', '.join(MODEL_ARGUMENTS)}"
        elif arguments and (problem := argument_problem(str(key), value, "train", arguments)):
            yield ("model", "arguments", key), problem


def _explain(detail: Any) -> _Problem:
    """A problem of Pydantic's in the words of a spec."""
    at: Location = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return at, "unknown field" + did_you_mean(str(at[-1]), _fields_of(at[:-1]))
    if detail["type"] == "missing":
        return at, "missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "model_type":
        message = "expected a mapping of fields"
    elif detail["type"] == "string_type" and isinstance(detail["input"], int | float):
        message = "expected text: write it in quotes"
    elif at == ("name",) and detail["type"] == "string_pattern_mismatch":
        message = "expected letters, digits, dot, underscore, hyphen; at most 64; a letter or digit first"
    got = repr(detail["input"])
    is_scalar = not isinstance(detail["input"], dict | list) and len(got) <= 80
    return at, f"{message} (got {got})" if at and is_scalar else message


def _fields_of(at: Location) -> list[str]:
    """The fields of the section that a place is in."""
    model: type[BaseModel] = RunSpec
    for key in at:
        if isinstance(key, str) and key in model.model_fields:
            model = next(_sections_in(model.model_fields[key].annotation), model)
    return list(model.model_fields)


def _sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
