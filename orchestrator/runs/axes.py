"""What a sweep varies: `--sweep KEY=V1,V2,...`, values as in a YAML flow list, and the points of several such axes."""

import itertools
from collections.abc import Sequence
from math import prod

import yaml
from pydantic import BaseModel, ConfigDict

from orchestrator.errors import SpecError

MAX_POINTS = 1000
"""More is a slip: each point is a training."""
_EXAMPLE = "such as --sweep train.learning_rate=1e-5,5e-5"


class Axis(BaseModel):
    """One key of the spec and the values that it takes."""

    model_config = ConfigDict(frozen=True)

    key: str
    """Dotted, as for --set."""
    values: list[str]
    """YAML, as written on the command line."""


def read_axes(options: Sequence[str]) -> list[Axis]:
    """The axes of a sweep.

    Args:
        options: KEY=V1,V2,... each.

    Raises:
        SpecError: one is no such text, a key stands there twice, or the product is too large.
    """
    axes = [_read(option) for option in options]
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise SpecError(f"--sweep {key} is there {keys.count(key)} times", f"give its values in one: {key}=A,B")
    if (count := prod(len(axis.values) for axis in axes)) > MAX_POINTS:
        raise SpecError(f"--sweep makes {count} runs; at most {MAX_POINTS} are taken", "leave some values out")
    return axes


def points(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """The values of each point, in the order of the axes; the last axis runs fastest."""
    return list(itertools.product(*(axis.values for axis in axes)))


def point_overrides(axes: Sequence[Axis], values: Sequence[str]) -> list[str]:
    """A point as `--set` has it."""
    return [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]


def short_keys(axes: Sequence[Axis]) -> list[str]:
    """The keys for tables: their last part where that tells them apart."""
    last = [axis.key.rpartition(".")[2] for axis in axes]
    return [short if last.count(short) == 1 else axis.key for axis, short in zip(axes, last, strict=True)]


def _read(option: str) -> Axis:
    key, equals, text = option.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SpecError(f"--sweep {option}: expected KEY=V1,V2,...", _EXAMPLE)
    listed = f"[{text}]"
    remedy = f"""separate values by commas, and quote text that holds some: --sweep '{key}="a, b",c'"""
    try:
        node = yaml.compose(listed, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"--sweep {option}: {text!r} is no list of YAML values", remedy) from error
    # "1 #" or "1]" would end the list early
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(listed):
        raise SpecError(f"--sweep {option}: {text!r} is no list of YAML values", remedy)
    values = [listed[item.start_mark.index : item.end_mark.index].strip() for item in node.value]
    if not values or not all(values):
        raise SpecError(f"--sweep {option}: {'a value is empty' if values else 'there is no value'}", _EXAMPLE)
    return Axis(key=key, values=values)
