"""YAML files that people write, read with positions, so that an error can name line and column.

YAML 1.2: `no` is a string, 1e-4 a number; a key that stands twice is an error.
"""

import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning
from ruamel.yaml.reader import ReaderError

from orchestrator.errors import SpecError
from orchestrator.specs.excerpt import block, excerpt, split_lines

Location = tuple[str | int, ...]
MAX_BYTES = 1 << 20
MAX_PROBLEMS = 50  # of each kind that are looked for, and of all that are shown
MAX_DEPTH = 50  # steps in the KEY of a --set; a spec has six at most
MAX_VALUES = 100_000  # aliases of aliases can make a small file hold billions
MAX_BITS = 1024  # of an integer; one of thousands of digits cannot even be shown
# What ruamel.yaml raises beside its own errors: for a date of month 13, `!!int x`, brackets a thousand deep.
_ALSO_RAISED = (ValueError, LookupError, AttributeError, TypeError, RuntimeError)


@dataclass
class YamlSource:
    """A YAML mapping, where each of its nodes stands, and what was set on the command line."""

    path: Path
    value: dict[str, Any]
    """Plain Python values, overrides included."""
    nodes: CommentedMap
    """The file's nodes as ruamel.yaml read them: they know line and column."""
    lines: list[str]
    """The file's text, to show."""
    overridden: dict[Location, str] = field(default_factory=dict)
    """Location -> the `--set` that put a value there."""
    hidden: set[Location] = field(default_factory=set)
    """Where a value stands that no message may show."""

    def place(self, at: Location) -> str:
        """'file:line:column', or the override that a value comes from."""
        override = self._override(at)
        if override is not None:
            return f"--set {override.partition('=')[0]}=..." if at in self.hidden else f"--set {override}"
        line, column = _position(self.nodes, at)
        return f"{self.path}:{line + 1}:{column + 1}"

    def report(self, problems: Sequence[tuple[Location, str]]) -> str:
        """All problems in the order of the file, each with its place, the line, and help.

        Args:
            problems: where, and what. '; did you mean ...?' at its end, and each line after the first, is help.
        """
        in_order = sorted(problems, key=lambda each: (_position(self.nodes, each[0]), str(each)))
        total = f"{len(problems)} error{'s' if len(problems) != 1 else ''}"
        more = f"; the first {MAX_PROBLEMS}" if len(problems) > MAX_PROBLEMS else ""
        blocks = ["error: " + "\n".join(self._block(at, text)) for at, text in in_order[:MAX_PROBLEMS]]
        return "\n\n".join([f"{self.path} has {total}{more}:", *blocks])

    def _block(self, at: Location, text: str) -> list[str]:
        message, *helps = text.split("\n")
        message, mark, near = message.partition("; did you mean ")
        in_file = self._override(at) is None and bool(at) and at[0] in self.nodes and at not in self.hidden
        lines = excerpt(self.lines, *_position(self.nodes, at)) if in_file else []
        helps = [f"did you mean {near}"] * bool(mark) + helps
        name = ".".join(map(str, at)) or "spec"
        name = name if len(name) <= 200 else f"{name[:197]}..."
        return block(f"{name}: {message}", self.place(at), lines, helps)

    def _override(self, at: Location) -> str | None:
        above = (at[:length] for length in range(len(at), 0, -1))
        return next((self.overridden[each] for each in above if each in self.overridden), None)


def read_yaml(path: Path) -> YamlSource:
    """Read a YAML file that holds one mapping.

    Raises:
        SpecError: no such file, no regular one, too large, not UTF-8, not YAML, or no mapping.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a FIFO would be waited for
            kind = "a folder, not a file" if stat.S_ISDIR(info.st_mode) else "no regular file"
            raise SpecError(f"{path} is {kind}", _specs_near(path))
        if info.st_size > MAX_BYTES:
            raise SpecError(f"{path} is larger than {MAX_BYTES} bytes, more than any sensible spec")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such file", _specs_near(path)) from error
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    try:
        nodes, value = _load(text)
    except YAMLError as error:
        raise _refusal(path, text, *_diagnosis(error, text)) from error
    if nodes is None:
        raise SpecError(f"{path} is empty", f"edit {path}")
    if not isinstance(nodes, CommentedMap):
        kind = "a list" if isinstance(nodes, CommentedSeq) else "a single value"
        raise _refusal(path, text, f"expected a mapping of fields, found {kind}", (0, 0))
    return YamlSource(path, value, nodes, split_lines(text))


def set_value(source: YamlSource, override: str) -> None:
    """Apply one `--set KEY=VALUE`: KEY is a dotted path (list items by number), VALUE is read as YAML.

    Raises:
        SpecError: no '=', an empty key, a VALUE that is no YAML, or a path through something that is no mapping.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"--set {override}: expected KEY=VALUE, such as --set train.num_train_epochs=1")
    try:
        _, value = _load(text)
    except YAMLError as error:
        raise SpecError(f"--set {override}: {text!r} is not YAML; quote it, such as {key}='\"...\"'") from error
    steps: list[str | int] = [int(step) if step.isdecimal() else step for step in key.strip().split(".")]
    if len(steps) > MAX_DEPTH:
        raise SpecError(f"--set {override[:60]}...: KEY has {len(steps)} parts; no spec is that deep")
    parent: Any = source.value
    at: Location = ()
    for number, step in enumerate(steps):
        if isinstance(parent, dict):
            step = str(step)
        elif isinstance(parent, list) and isinstance(step, int) and step <= len(parent):
            parent.extend([None] * (step == len(parent)))
        else:
            raise SpecError(f"--set {override}: {'.'.join(map(str, at))} has no item {step!r}")
        at += (step,)
        if number == len(steps) - 1:
            parent[step] = value
        elif (parent.get(step) if isinstance(parent, dict) else parent[step]) is None:
            parent[step] = [] if isinstance(steps[number + 1], int) else {}  # an absent section is made
            source.overridden[at] = override
        parent = parent[step]
    for earlier in [earlier for earlier in source.overridden if earlier[: len(at)] == at]:
        del source.overridden[earlier]  # what it put there is gone
    source.overridden[at] = override


def _load(text: str) -> tuple[Any, Any]:
    """A text's nodes, and its plain values.

    Raises:
        YAMLError: it is no YAML, or not a sensible one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", YAMLWarning)  # an anchor that is used twice, say: YAML allows it
            nodes = YAML(typ="rt", pure=True).load(text)
        return nodes, _plain(nodes, count(1))
    except _ALSO_RAISED as error:
        reason = "too deep" if isinstance(error, RecursionError) else error
        raise YAMLError(f"a value cannot be read: {reason}") from error


def _plain(node: Any, counter: Iterator[int]) -> Any:
    """Ruamel's nodes as plain Python values: what JSON has, and whatever else YAML gave (a date) as it is."""
    if next(counter) > MAX_VALUES:
        raise YAMLError(f"it holds more than {MAX_VALUES} values, aliases written out")
    if isinstance(node, Mapping):
        return {str(key): _plain(item, counter) for key, item in node.items()}
    if isinstance(node, list):
        return [_plain(item, counter) for item in node]
    if isinstance(node, int) and node.bit_length() > MAX_BITS:
        raise YAMLError(f"an integer of {node.bit_length()} bits")
    for kind in (int, float, str):  # ScalarInt, ScalarFloat, quoted strings
        if isinstance(node, kind) and not isinstance(node, bool):
            return bool(node) if type(node).__name__ == "ScalarBoolean" else kind(node)
    return node


def _diagnosis(error: YAMLError, text: str) -> tuple[str, tuple[int, int] | None]:
    """What is wrong with a text that is no YAML, and at which line and column, 0-based."""
    if isinstance(error, ReaderError):  # a control character
        before = split_lines(text[: error.position])
        return f"not valid YAML: {error}", (len(before) - 1, len(before[-1]))
    mark = (error.problem_mark or error.context_mark) if isinstance(error, MarkedYAMLError) else None
    problem = error.problem or error.context if isinstance(error, MarkedYAMLError) else error
    return f"not valid YAML: {problem}", (mark.line, mark.column) if mark else None


def _refusal(path: Path, text: str, problem: str, at: tuple[int, int] | None) -> SpecError:
    message = " ".join(problem.split())
    if at is None:
        return SpecError(f"{path}: {message}", f"edit {path}")
    place = f"{path}:{at[0] + 1}:{at[1] + 1}"
    return SpecError("\n".join(block(message, place, excerpt(split_lines(text), *at), [])), f"edit {path}")


def _position(nodes: Any, at: Location) -> tuple[int, int]:
    """Line and column, 0-based, of the deepest node on the way to a location that the file has."""
    position: tuple[int, int] = (0, 0)
    node = nodes
    for step in at:
        try:
            if isinstance(node, CommentedMap) and step in node:
                position = tuple(node.lc.key(step))
            elif isinstance(node, CommentedSeq) and isinstance(step, int) and step < len(node):
                position = tuple(node.lc.item(step))
            else:
                break
        except (KeyError, TypeError):  # a merged key ('<<') has no place of its own
            break
        node = node[step]
    return position


def _specs_near(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    try:
        specs = sorted(entry.name for entry in folder.glob("*.yaml"))[:8]
    except OSError:
        specs = []
    return f"specs in {folder}: {', '.join(specs)}" if specs else "give the path of a spec, such as runs/demo.yaml"
