"""A spec file as a RunSpec: every problem at once, each at its place."""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError
from orchestrator.specs import places
from orchestrator.specs.arguments import Argument, argument_problem
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.specs.compute_spec import ComputeSpec, SlurmSpec
from orchestrator.specs.spec import OPEN_SECTIONS, ModelSpec, RunSpec
from orchestrator.specs.yamlfile import Location, explain, read_yaml, set_value

log = logging.getLogger("orchestrator")
_SECTIONS: tuple[type[BaseModel], ...] = (RunSpec, ModelSpec, BenchmarkSpec, ComputeSpec, SlurmSpec)
_FIELDS = [name for model in (*_SECTIONS, *OPEN_SECTIONS.values()) for name in model.model_fields]
_Problem = tuple[Location, str]


def load_spec(path: Path, overrides: Sequence[str] = (), arguments: Mapping[str, Argument] | None = None) -> RunSpec:
    """Read a spec file under `--set`s and check what it says by itself, if `arguments` are known, theirs too.

    Raises SpecError: every problem at once, each with file:line:column and dotted path.
    """
    source = read_yaml(path)
    dropped = places.drop_retired(source.value)
    if dropped:
        log.warning("%s: fields of an earlier version are left out: %s", path, ", ".join(dropped))
    for override in overrides:
        set_value(source, override)
    problems: list[_Problem] = []
    for at, value in _walk(source.value):
        name = str(at[-1])
        if places.is_secret(name, value):
            source.hidden.add(at)
            problems.append((at, f"holds a secret, which would go into the run folder\n{places.SECRET_REMEDY}"))
        elif problem := _unwritable(name) or _unwritable(value):
            problems.append((at, problem))
    problems += _check_arguments(source.value, arguments or {})
    spec = None
    try:
        spec = RunSpec.model_validate(source.value)
    except ValidationError as error:
        problems += explain(error, _FIELDS)
    if problems or spec is None:
        first = dict(reversed(problems))  # of several at one place, the first says it best
        raise SpecError(source.report(list(first.items())), f"edit {path}")
    return spec


def _items(value: object) -> Iterator[tuple[str | int, Any]]:
    yield from value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()


def _walk(value: object, at: Location = ()) -> Iterator[tuple[Location, Any]]:
    for key, item in _items(value):
        yield (*at, key), item
        yield from _walk(item, (*at, key))


def _unwritable(value: object) -> str:
    """Why LLaMA-Factory's reader, a file or a command line would change a value; '' where none would."""
    if isinstance(value, str):
        if re.search("[\0\ud800-\udfff]", value):
            return "holds NUL or half of a surrogate pair, which no file or command line can hold"
        problem = "'${' cannot be passed on: OmegaConf, LLaMA-Factory's reader, would interpolate it, even in quotes"
        return problem if "${" in value else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value} is no number that could be passed on"
    if value is None or isinstance(value, int | list | Mapping):
        return ""
    return f'YAML takes it for a {type(value).__name__}; for text write it in quotes: "..."'


def _check_arguments(spec: Mapping[str, Any], arguments: Mapping[str, Argument]) -> Iterator[_Problem]:
    """Arguments that are misplaced, unknown or do not fit; others get their declared type: 1e5 of an int is 100000."""
    for section, command in (("train", "train"), ("serve", "api"), ("export", "export")):
        values, fields = spec.get(section), OPEN_SECTIONS[section].model_fields
        if not isinstance(values, dict):
            continue
        by_vllm = section == "serve" and values.get("backend") == "vllm"
        known, reserved = ({}, places.RESERVED_VLLM) if by_vllm else (arguments, places.RESERVED_ARGUMENTS)
        for key in [key for key in values if key not in fields]:
            if key in reserved:
                yield (section, key), f"{key} is managed by orchestrator: {places.reason(reserved[key])}"
            elif known and (problem := argument_problem(key, values[key], command, known, fields)):
                yield (section, key), problem
            elif known:
                values[key] = known[key].typed(values[key])
    model = spec.get("model")
    for key, value in _items(model.get("arguments") if isinstance(model, Mapping) else None):
        if key not in (*places.MODEL_ARGUMENTS, "cutoff_len"):
            yield ("model", "arguments", key), f"expected one of {', '.join(places.MODEL_ARGUMENTS)}"
        elif arguments and (problem := argument_problem(str(key), value, "train", arguments)):
            yield ("model", "arguments", key), problem
