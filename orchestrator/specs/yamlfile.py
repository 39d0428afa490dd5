"""YAML files that people write, with positions: an error shows its line, as rustc does. YAML 1.2: `no` is a string."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import read_file
from orchestrator.text import escape_controls

Location = tuple[str | int, ...]
MAX_BYTES = 1 << 20
MAX_NODES = 100_000
WIDTH = 200  # a longer line is not shown
_BREAK = re.compile("\r\n|[\n\r]")  # str.splitlines breaks at form feeds too
# A quoted text, or a word: what is underlined.
_TOKEN = re.compile(r"""\"(?:\\.|[^"\\])*\"|'(?:''|[^'])*'|[^\s:,\[\]{}#"'\x00-\x1f\x7f]+""")
_MESSAGES = {
    "missing": "missing",
    "model_type": "expected a mapping of fields",
    "string_type": "expected text: write it in quotes",
}


@dataclass
class YamlSource:
    """A YAML mapping, where each of its nodes stands, and what was set on the command line."""

    path: Path
    value: dict[str, Any]  # plain Python values, overrides included
    nodes: CommentedMap  # the file's nodes as ruamel.yaml read them: they know line and column
    lines: list[str]  # the file's text, to show
    overridden: dict[Location, str] = field(default_factory=dict)  # location -> the `--set` that put a value there
    hidden: set[Location] = field(default_factory=set)  # where a value stands that no message may show

    def place(self, at: Location) -> str:
        """'file:line:column', or the override that a value comes from."""
        override = self._override(at)
        if override is not None:
            return f"--set {override.partition('=')[0]}=..." if at in self.hidden else f"--set {override}"
        line, column = _position(self.nodes, at)
        return f"{self.path}:{line + 1}:{column + 1}"

    def report(self, problems: Sequence[tuple[Location, str]]) -> str:
        """All problems in the file's order, each with its line; what follows a text's first line is shown as help."""
        in_order = sorted(problems, key=lambda each: (_position(self.nodes, each[0]), str(each)))
        heading = f"{self.path} has {len(problems)} error{'s' if len(problems) != 1 else ''}:"
        return "\n\n".join([heading, *(f"error: {self._block(at, text)}" for at, text in in_order)])

    def _block(self, at: Location, text: str) -> str:
        message, *helps = text.split("\n")
        message, mark, near = message.partition("; did you mean ")
        in_file = self._override(at) is None and bool(at) and at[0] in self.nodes and at not in self.hidden
        lines = excerpt(self.lines, *_position(self.nodes, at)) if in_file else []
        name = ".".join(map(str, at)) or "spec"
        return _block(f"{name[:200]}: {message}", self.place(at), lines, [f"did you mean {near}"] * bool(mark) + helps)

    def _override(self, at: Location) -> str | None:
        above = (at[:length] for length in range(len(at), 0, -1))
        return next((self.overridden[each] for each in above if each in self.overridden), None)


def read_yaml(path: Path) -> YamlSource:
    """Read a YAML file that holds one mapping; SpecError for any other."""
    try:
        text = read_file(path, MAX_BYTES).decode("utf-8-sig")
        nodes, value = _load(text)
    except FileNotFoundError as error:
        specs = ", ".join(sorted(each.name for each in path.parent.glob("*.yaml"))[:8]) or "none"
        raise SpecError(f"{path}: no such file", f"YAML files in {path.parent}: {specs}") from error
    except PrerequisiteError as error:
        raise SpecError(error.message) from error
    except MarkedYAMLError as error:
        message = f"not valid YAML: {' '.join(str(error.problem or error.context).split())}"
        mark = error.problem_mark or error.context_mark
        shown = excerpt(_BREAK.split(text), mark.line, mark.column)
        what = _block(message, f"{path}:{mark.line + 1}:{mark.column + 1}", shown, [])
        raise SpecError(what, f"edit {path}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid YAML: {' '.join(str(error).split())}", f"edit {path}") from error
    if not isinstance(nodes, CommentedMap):
        found = " is empty" if nodes is None else ":1:1: expected a mapping of fields"
        raise SpecError(f"{path}{found}", f"edit {path}")
    return YamlSource(path, value, nodes, _BREAK.split(text))


def set_value(source: YamlSource, override: str) -> None:
    """Apply one `--set KEY=VALUE`: KEY is a dotted path (list items by number), VALUE is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"--set {override}: expected KEY=VALUE, such as --set train.num_train_epochs=1")
    try:
        _, value = _load(text)
    except YAMLError as error:
        raise SpecError(f"--set {override}: {text!r} is not YAML; quote it, such as {key}='\"...\"'") from error
    steps = key.strip().split(".")
    parent: Any = source.value
    at: Location = ()
    for number, name in enumerate(steps):
        step = int(name) if isinstance(parent, list) and name.isdecimal() else name
        if isinstance(parent, list) and step == len(parent):
            parent.append(None)
        elif not isinstance(parent, dict) and not (isinstance(parent, list) and step in range(len(parent))):
            raise SpecError(f"--set {override}: {'.'.join(map(str, at))} has no item {step!r}")
        at += (step,)
        if number == len(steps) - 1:
            parent[step] = value
        elif (parent.get(step) if isinstance(parent, dict) else parent[step]) is None:
            parent[step] = [] if steps[number + 1].isdecimal() else {}  # an absent section is made
            source.overridden[at] = override
        parent = parent[step]
    for earlier in [earlier for earlier in source.overridden if earlier[: len(at)] == at]:
        del source.overridden[earlier]  # what it put there is gone
    source.overridden[at] = override


def explain(error: ValidationError, fields: Iterable[str]) -> list[tuple[Location, str]]:
    """Each problem that Pydantic found: its place, and what is wrong; an unknown field with the nearest of `fields`."""
    found = []
    known = list(fields)
    for detail in error.errors():
        at: Location = tuple(step for step in detail["loc"] if step != "[key]")  # of a mapping's key
        text = _MESSAGES.get(detail["type"], detail["msg"].removeprefix("Value error, "))
        given = repr(detail["input"])
        if detail["type"] == "extra_forbidden" or (detail["type"] == "literal_error" and at != detail["loc"]):
            text = "unknown field" + did_you_mean(str(at[-1]), (each for each in known if each != at[-1]))
        elif at and text != "missing" and not isinstance(detail["input"], dict | list) and len(given) <= 80:
            text += f" (got {given})"
        found.append((at, text))
    return found


class _Bounded(RoundTripConstructor):
    """Refuses aliases of aliases and merges of merges, a few lines of which are more values than memory holds."""

    def construct_document(self, node: Any) -> Any:
        sizes: dict[int, int] = {}

        def size(each: Any) -> int:
            if isinstance(each, tuple):
                return sum(map(size, each))
            if id(each) not in sizes:
                sizes[id(each)] = 1 + (sum(map(size, each.value)) if isinstance(each.value, list) else 0)
            return sizes[id(each)]

        if size(node) > MAX_NODES:
            raise YAMLError(f"its aliases stand for more than {MAX_NODES:,} values")
        return super().construct_document(node)


def _load(text: str) -> tuple[Any, Any]:
    """A text's nodes, and its plain values; YAMLError where it is no YAML, or not a sensible one."""
    reader = YAML(typ="rt", pure=True)
    reader.Constructor = _Bounded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # the last one counts, as YAML has it
            nodes = reader.load(text)
        return nodes, _plain(nodes)
    except YAMLError:
        raise
    except Exception as error:  # for a date of month 13, `!!int x`, brackets a thousand deep
        reason = "too deep" if isinstance(error, RecursionError) else error
        raise YAMLError(f"a value cannot be read: {reason}") from error


def _plain(node: Any) -> Any:
    """Ruamel's nodes as plain Python values: what JSON has, and whatever else YAML gave (a date) as it is."""
    if isinstance(node, Mapping):
        return {str(key): _plain(item) for key, item in node.items()}
    if isinstance(node, list):
        return [_plain(item) for item in node]
    for kind in (int, float, str):  # ScalarInt, ScalarFloat, quoted strings
        if isinstance(node, kind) and not isinstance(node, bool):
            return bool(node) if type(node).__name__ == "ScalarBoolean" else kind(node)
    return node


def excerpt(lines: Sequence[str], line: int, column: int) -> list[str]:
    """One line of a file with carets under what stands at the column, both 0-based; nothing where there is none."""
    if not (0 <= line < len(lines) and 0 <= column <= len(lines[line]) <= WIDTH):
        return []
    text = lines[line]
    token = _TOKEN.match(text, column)
    marked = _visible(text[column : token.end() if token else column + 1])
    number = f"{line + 1:>2}"
    margin = " " * len(number)
    carets = " " * len(_visible(text[:column])) + "^" * max(1, len(marked))
    return [f"{margin} |", f"{number} | {_visible(text)}".rstrip(), f"{margin} | {carets}"]


def _block(message: str, place: str, lines: Sequence[str], helps: Sequence[str]) -> str:
    margin = (lines[0] if lines else "   |").removesuffix("|")
    return "\n".join([message, f"  --> {place}", *lines, *(f"{margin}= help: {text}" for text in helps)])


def _visible(text: str) -> str:
    return escape_controls(text).replace("\t", "    ")


def _position(node: Any, at: Location) -> tuple[int, int]:
    """Line and column, 0-based, of the deepest node on the way to a location that the file has."""
    position: tuple[int, int] = (0, 0)
    for step in at:
        try:
            position = tuple(node.lc.item(step) if isinstance(node, CommentedSeq) else node.lc.key(step))
            node = node[step]
        except (AttributeError, LookupError, TypeError):  # a merged key ('<<') has no place of its own
            break
    return position
