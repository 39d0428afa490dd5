"""Two specs or runs: what differs, by dotted path.

Covered: their resolved specs; of runs, data, hashes, versions and machine too; arguments that neither spec sets, where
their default changed between the versions of LLaMA-Factory and transformers that the two go with.
Not covered: what came of the runs.
Leaves defaults.json in a run's folder, by pipeline.py: no later version knows an earlier one's defaults.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.errors import PrerequisiteError
from orchestrator.runs.facts import fact_differences, flat
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.arguments import COMPUTED, Argument
from orchestrator.specs.spec import OWNED, RunSpec, spec_json
from orchestrator.text import escape_controls

# The packages that declare the arguments, and what they are called.
DECLARE = {"llamafactory": "LLaMA-Factory", "transformers": "transformers"}


@dataclass(frozen=True)
class Side:
    """A spec, or a run, as one of two that are compared."""

    name: str
    spec: RunSpec
    versions: Mapping[str, str]
    """Of the packages in DECLARE: what runs, or ran, the spec."""
    defaults: Mapping[str, Any] | None
    """Argument -> its default in these versions. None: not known."""
    facts: Facts | None = None
    """Of a run."""

    def heading(self) -> str:
        known = [f"{said} {self.versions[key]}" for key, said in DECLARE.items() if key in self.versions]
        return f"{self.name} ({', '.join(known)})" if known else self.name


@dataclass(frozen=True)
class Difference:
    """One thing that differs."""

    kind: Literal["spec", "default", "fact"]
    """A default: neither spec sets the argument."""
    path: str
    """Dotted path in the spec, or what the fact is about."""
    one: Any
    other: Any
    absent: tuple[bool, bool] = (False, False)
    """On which side nothing is set; what stands there then is the default, None where that is not known."""

    def line(self) -> str:
        if self.kind == "fact":
            return escape_controls(f"{self.path}: {self.one} -> {self.other}")
        sides = [
            json.dumps(value, ensure_ascii=False) + (" (by default)" if absent and value is not None else "")
            if not absent or value is not None
            else "not set"
            for value, absent in zip((self.one, self.other), self.absent, strict=True)
        ]
        changed = "; the default changed, neither spec sets it" if self.kind == "default" else ""
        return escape_controls(f"{self.path}: {' -> '.join(sides)}{changed}")


def differences(one: Side, other: Side) -> list[Difference]:
    """All that differs: the specs in their own order, then defaults, then facts."""
    flats = [flat(spec_json(side.spec)) for side in (one, other)]
    found: list[Difference] = []
    for path in dict.fromkeys([*flats[0], *flats[1]]):
        absent = (path not in flats[0], path not in flats[1])
        values = [
            flats[number][path] if not absent[number] else _default(side, path)
            for number, side in enumerate((one, other))
        ]
        if absent != (False, False) or values[0] != values[1] or type(values[0]) is not type(values[1]):
            found.append(Difference("spec", path, values[0], values[1], absent))
    found += changed_defaults(one, other)
    if one.facts is not None and other.facts is not None:
        found += [Difference("fact", what, old, new) for what, old, new in fact_differences(one.facts, other.facts)]
    return found


def changed_defaults(one: Side, other: Side) -> list[Difference]:
    """Arguments of the training that neither spec sets, with another default on either side."""
    if one.spec.train is None or other.spec.train is None or one.defaults is None or other.defaults is None:
        return []
    said = {*one.spec.train.arguments(), *other.spec.train.arguments(), *OWNED}
    return [
        Difference("default", f"train.{name}", default, other.defaults[name])
        for name, default in one.defaults.items()
        if name in other.defaults and name not in said and default != other.defaults[name]
    ]


def known_defaults(arguments: Mapping[str, Argument]) -> dict[str, Any]:
    """The defaults of `llamafactory-cli train` that its source tells."""
    return {
        name: argument.default
        for name, argument in sorted(arguments.items())
        if "train" in argument.commands and argument.default is not COMPUTED
    }


def run_defaults(run: RunDir) -> dict[str, Any] | None:
    """The defaults that a run kept; None where it kept none.

    Raises:
        PrerequisiteError: its defaults.json is damaged.
    """
    try:
        read = json.loads(run.defaults.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PrerequisiteError(f"{run.defaults} cannot be read: {error}", f"remove {run.defaults}") from error
    return read if isinstance(read, dict) else None


def defaults_json(arguments: Mapping[str, Argument]) -> str:
    """The text of defaults.json."""
    return json.dumps(known_defaults(arguments), indent=1) + "\n"


def _default(side: Side, path: str) -> Any:
    """Of an argument that a spec does not set."""
    section, _, name = path.partition(".")
    return (side.defaults or {}).get(name) if section in ("train", "serve") else None
