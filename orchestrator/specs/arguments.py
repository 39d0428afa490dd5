"""One argument of LLaMA-Factory, and whether a value fits it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import did_you_mean

COMPUTED: Any = ...  # stands where a default is no plain value of the source
_MAX_LISTED = 12

# In JSON Schema's words. Below these nothing is trained, or the training fails after the model is loaded.
MINIMUMS: dict[str, dict[str, int]] = {
    "per_device_train_batch_size": {"minimum": 1},
    "per_device_eval_batch_size": {"minimum": 1},
    "gradient_accumulation_steps": {"minimum": 1},
    "lora_rank": {"minimum": 1},
    "cutoff_len": {"minimum": 1},
    "num_train_epochs": {"exclusiveMinimum": 0},
}
_WORDS = dict(int="an integer", float="a number", bool="true or false", str="text", list="a list", dict="a mapping")


@dataclass(frozen=True)
class Argument:
    """One argument of llamafactory-cli."""

    name: str
    kinds: frozenset[str]  # of int, float, bool, str, list, dict: what it may be. Empty: unknown, nothing is checked
    choices: tuple[str | int | float | bool, ...] | None  # the only values that it may have. None: any
    optional: bool  # whether it may be null
    commands: frozenset[str]  # of train, api, export: which take it
    default: Any = COMPUTED  # its default, as a JSON value. COMPUTED: known when LLaMA-Factory starts, or required
    help: str = ""  # LLaMA-Factory's or transformers' own sentence about it, on one line

    def typed(self, value: Any) -> Any:
        """The value in the declared type: 1e5 is an int where only an int will do. An int does for a float as it is."""
        if isinstance(value, float) and value.is_integer() and "int" in self.kinds and "float" not in self.kinds:
            return int(value)
        return value

    @property
    def plain_kinds(self) -> frozenset[str]:
        """Its kinds, without int where any number will do."""
        return self.kinds - {"int"} if "float" in self.kinds else self.kinds


def argument_problem(
    key: str, value: Any, command: str, arguments: Mapping[str, Argument], also_known: Iterable[str] = ()
) -> str | None:
    """What is wrong with an argument of train, api or export, or None; `also_known` names may be meant too."""
    argument = arguments.get(key)
    if argument is None:
        names = [name for name, each in arguments.items() if command in each.commands]
        return f"unknown argument for the installed LLaMA-Factory{did_you_mean(key, [*also_known, *names])}"
    if command not in argument.commands:  # use_cache, say: transformers uses the name for something else
        return f"llamafactory-cli {command} does not take it, only {' and '.join(sorted(argument.commands))}"
    kinds = " or ".join(_WORDS[kind] for kind in _WORDS if kind in argument.plain_kinds)
    if value is None:
        return None if argument.optional or not argument.kinds else f"expected {kinds}, got null"
    choices = argument.choices
    if choices is not None:
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return None
        listed = [*map(_shown, choices[:_MAX_LISTED]), *(["..."] if len(choices) > _MAX_LISTED else [])]
        near = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
        return f"expected one of {', '.join(listed)}; got {_shown(value)}{near}"
    kind = type(argument.typed(value)).__name__
    if argument.kinds and kind not in argument.kinds and not (kind == "int" and "float" in argument.kinds):
        in_quotes = "str" in argument.kinds and not isinstance(value, list | dict)
        return f"expected {kinds}, got {_shown(value)}" + (' (write it in quotes: "...")' if in_quotes else "")
    for bound, limit in MINIMUMS.get(key, {}).items():
        if isinstance(value, int | float) and (value < limit or (value == limit and bound == "exclusiveMinimum")):
            return f"expected {'more than' if bound == 'exclusiveMinimum' else 'at least'} {limit}, got {_shown(value)}"
    return None


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
