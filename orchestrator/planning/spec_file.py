"""A spec file as a RunSpec, checked as a whole, every problem at its place.

Covered: reading YAML 1.2 with positions, `--set` overrides, Pydantic's checks, LLaMA-Factory's arguments one by one,
those that the run layer owns, strings that could not reach LLaMA-Factory unchanged.
Not covered: what a spec is (spec.py); whether arguments fit together, and the dataset, the model or the programs exist
(check.py); vLLM's arguments.
Reads nothing but the spec file; writes nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.specs.arguments import Argument, argument_problem
from orchestrator.specs.spec import OPEN_SECTIONS, OWNED, RunSpec
from orchestrator.specs.yamlfile import MAX_PROBLEMS, Location, YamlSource, read_yaml, set_value
from orchestrator.upstream.vllm import RESERVED_ARGUMENTS as VLLM_RESERVED

_TEXT_OR_LIST: tuple[Location, ...] = (("train", "lora_target"), ("dataset",), ("eval_dataset",))


def load_spec(
    path: Path,
    overrides: Sequence[str] = (),
    arguments: Mapping[str, Argument] | None = None,
) -> RunSpec:
    """Read a spec file and check it as a whole.

    Args:
        path: the YAML file, at most 1 MiB, UTF-8.
        overrides: KEY=VALUE pairs of `--set`: KEY a dotted path, VALUE read as YAML.
        arguments: LLaMA-Factory's arguments by name; None leaves `train` and `serve` unchecked.

    Raises:
        SpecError: every problem at once, each with file:line:column and dotted path.
    """
    source = read_yaml(path)
    for override in overrides:
        set_value(source, override)
    return validate_spec(source, arguments)


def validate_spec(source: YamlSource, arguments: Mapping[str, Argument] | None = None) -> RunSpec:
    """The RunSpec that a YAML mapping describes; SpecError with every problem and its place."""
    section = source.value.get("serve") if isinstance(source.value, Mapping) else None
    by_vllm = isinstance(section, Mapping) and section.get("backend") == "vllm"
    serving = None if by_vllm else arguments
    problems = [
        *_value_problems(source.value, ()),
        *_section_problems(source.value, "train", "train", arguments),
        *_section_problems(source.value, "serve", "api", serving, by_vllm=by_vllm),
        *_section_problems(source.value, "export", "export", arguments),
    ]
    spec = None
    try:
        spec = RunSpec.model_validate(source.value)
    except ValidationError as error:
        problems += [found for detail in error.errors()[:MAX_PROBLEMS] for found in _explain(detail)]
    if problems or spec is None:
        first = dict(reversed(problems))  # of several at one place, the first says it best
        raise SpecError(source.report(list(first.items())), f"edit {source.path}")
    return _typed(spec, {"train": arguments, "serve": serving, "export": arguments})


def _typed(spec: RunSpec, known: Mapping[str, Mapping[str, Argument] | None]) -> RunSpec:
    """The spec with the arguments of each section in the type that is declared (1e5 for an int becomes 100000)."""
    changes: dict[str, Any] = {}
    for name in OPEN_SECTIONS:
        section, arguments = getattr(spec, name), known[name]
        if section is not None and arguments is not None:
            typed = {
                key: arguments[key].typed(value) if key in arguments else value
                for key, value in section.extra_arguments().items()
            }
            changes[name] = type(section).model_validate({**section.model_dump(), **typed})
    return spec.model_copy(update=changes)


def _value_problems(value: object, at: Location) -> list[tuple[Location, str]]:
    """Values that LLaMA-Factory's reader, or any file or command line, would change."""
    if isinstance(value, Mapping):
        keys = [((*at, str(key)), problem) for key in value if (problem := _text_problem(str(key)))]
        return keys + [found for key, item in value.items() for found in _value_problems(item, (*at, str(key)))]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in _value_problems(item, (*at, index))]
    if isinstance(value, str):
        problem = _text_problem(value)
    elif isinstance(value, float) and not math.isfinite(value):
        problem = f"{value} is no number that could be passed on"
    elif value is None or isinstance(value, bool | int | float):
        problem = ""
    else:
        kind = "a date" if isinstance(value, date) else "something with a type of its own"
        problem = f'YAML takes it for {kind}; for text write it in quotes: "..."'
    return [(at, problem)] if problem else []


def _text_problem(text: str) -> str:
    if "${" in text:
        return "'${' cannot be passed on: OmegaConf, LLaMA-Factory's reader, would interpolate it, however it is quoted"
    if "\0" in text:
        return "a null byte cannot be passed on"
    if any("\ud800" <= char <= "\udfff" for char in text):
        return "a lone surrogate is no text that could be written to a file"
    return ""


def _section_problems(
    raw: object, section: str, command: str, arguments: Mapping[str, Argument] | None, *, by_vllm: bool = False
) -> list[tuple[Location, str]]:
    values = raw.get(section) if isinstance(raw, Mapping) else None
    if not isinstance(values, Mapping):
        return []  # Pydantic says so
    typed_fields = OPEN_SECTIONS[section].model_fields
    owned = VLLM_RESERVED if by_vllm else OWNED
    problems: list[tuple[Location, str]] = []
    for key, value in values.items():
        if len(problems) >= MAX_PROBLEMS:
            break
        if key in typed_fields:
            continue
        if not isinstance(key, str):
            problems.append(((section, str(key)), "an argument's name is a string"))
        elif key in owned:
            problems.append(((section, key), f"the run layer sets {key}: {owned[key]}"))
        elif arguments is not None:
            problem = argument_problem(key, value, command, arguments, also_known=typed_fields)
            if problem:
                problems.append(((section, key), problem))
    return problems


def _explain(detail: Any) -> list[tuple[Location, str]]:
    at: Location = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return [(at, "unknown field" + did_you_mean(str(at[-1]), _fields_of(at[:-1])))]
    if detail["type"] == "missing":
        return [(at, "missing")]
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "model_type":
        message = "expected a mapping of fields"
    elif detail["type"] == "string_type" and isinstance(detail["input"], int | float):
        message = "expected text: write it in quotes"
    elif at == ("name",) and detail["type"] == "string_pattern_mismatch":
        message = "expected letters, digits, dot, underscore, hyphen; at most 64; a letter or digit first"
    for field in _TEXT_OR_LIST:  # `str | list[str]`: Pydantic names the alternative, and reports each
        depth = len(field)
        if at[:depth] == field:
            if at[depth:] == ("str",) and isinstance(detail["input"], list):
                return []
            rest = at[depth + 1 :]
            at, message = (*field, *rest), "expected text" if rest else "expected text, or a list of texts"
            break
    shown = repr(detail["input"])
    is_scalar = not isinstance(detail["input"], dict | list) and len(shown) <= 80
    return [(at, f"{message} (got {shown})" if at and is_scalar else message)]


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
