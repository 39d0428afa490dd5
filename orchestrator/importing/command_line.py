"""The words after `llamafactory-cli train`, as arguments of the type that LLaMA-Factory gives them.

Values that do not fit their argument are kept as text: the spec's check reports them. No file is opened.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from yaml import YAMLError

from orchestrator.errors import SpecError
from orchestrator.importing.shell_words import Word
from orchestrator.specs.arguments import Argument

UNRESOLVED = "cannot be resolved without running the script"
_CONFIGS = (".yaml", ".yml", ".json")
_BOOLS = dict.fromkeys(("yes", "true", "t", "y", "1"), True) | dict.fromkeys(("no", "false", "f", "n", "0"), False)
# Declared `str | list[DebugOption]`: of text and something else HfArgumentParser takes the other.
_LISTS_BESIDE_TEXT = frozenset({"debug"})
_LONG_DASHES = ("\N{HYPHEN}", "\N{NON-BREAKING HYPHEN}", "\N{EN DASH}", "\N{EM DASH}", "\N{MINUS SIGN}")


@dataclass
class Given:
    """What a command line says."""

    config: str | None = None
    """The YAML or JSON file that it begins with."""
    arguments: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What has no place in the arguments, each with its reason."""


def parse_words(words: Sequence[str], command: str, arguments: Mapping[str, Argument], where: str) -> Given:
    """What the words after a command say; a Word may have parts that are not known.

    Raises:
        SpecError: LLaMA-Factory would not have started: a beginning of several arguments, a flag without its value.
    """
    is_flags = any(word.startswith("-") for word in words)
    if words and (words[0].endswith(_CONFIGS) or (isinstance(words[0], Word) and words[0].unknown and not is_flags)):
        return _after_config(words[0], words[1:])
    end = words.index("--") if "--" in words else len(words)
    takes = command if command in ("train", "export") else "api"
    known = {name: argument for name, argument in arguments.items() if takes in argument.commands}
    parser = _Parser(known, where)
    _, extra = parser.parse_known_args(words[:end])
    for flag in {word.partition("=")[0] for word in extra}:  # arguments that LLaMA-Factory does not have
        if re.fullmatch(r"--?[A-Za-z_][\w-]*", flag):
            parser.add_argument(flag, dest=flag.lstrip("-").replace("-", "_"), nargs="*", action=_Keep)
    parser.notes = []
    values, extra = parser.parse_known_args(words[:end])
    found = {name: _value(value, known.get(name)) for name, value in vars(values).items()}
    return Given(None, found, [*parser.notes, *map(_stray, [*extra, *words[end + 1 :]])])


class _Parser(argparse.ArgumentParser):
    """HfArgumentParser's flags; every value is kept as text."""

    def __init__(self, arguments: Mapping[str, Argument], where: str) -> None:
        super().__init__(add_help=False, argument_default=argparse.SUPPRESS)
        self.where = where
        self.notes: list[str] = []
        for name, argument in arguments.items():
            bare = True if _may_be_bare(argument) else None
            self._add(name, name, nargs="+" if _is_list(argument) else "?" if bare else None, const=bare)
            if _is_bool(argument) and argument.default is True:
                self._add(f"no_{name}", name, nargs=0, const=False)

    def _add(self, flag: str, name: str, **how: Any) -> None:
        self.add_argument(*dict.fromkeys((f"--{flag}", f"--{flag.replace('_', '-')}")), dest=name, action=_Keep, **how)

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{self.where}: {message}", "LLaMA-Factory would not start with it: correct the command")


class _Keep(argparse.Action):
    """Keeps the words of an argument; the last of several counts, and a note says so."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        value = self.const if self.nargs == 0 else values
        if self.nargs in ("?", "*", "+"):  # words that may be none are not taken for a value
            items = value if isinstance(value, list) else [value]
            parser.notes += [_left_out(each) for each in items if _is_open(each)]
            kept = [each for each in items if not _is_open(each)]
            value = kept if isinstance(value, list) else kept[0] if kept else self.const
        if hasattr(namespace, self.dest):
            before = getattr(namespace, self.dest)
            parser.notes.append(f"{self.dest} is given twice, {before!r} and {value!r}: the last counts")
        setattr(namespace, self.dest, value)


def _is_bool(argument: Argument) -> bool:
    """Whether it is declared bool, or bool | str where null is none of its values."""
    return argument.kinds == {"bool"} or ("bool" in argument.kinds and not argument.optional)


def _may_be_bare(argument: Argument) -> bool:
    """Whether the flag alone turns it on; declared bool | None = None it wants its value."""
    return _is_bool(argument) and (isinstance(argument.default, bool) or not argument.optional)


def _is_list(argument: Argument) -> bool:
    return argument.kinds == {"list"} or argument.name in _LISTS_BESIDE_TEXT


def _value(value: Any, argument: Argument | None) -> Any:
    """Words in the argument's type, or as they are where they cannot be."""
    if isinstance(value, list):
        texts = list(map(str, value))
        return texts if argument is not None or len(texts) > 1 else texts[0] if texts else True
    text = str(value)
    if argument is None or isinstance(value, bool):
        return value
    if argument.choices is not None:
        return next((choice for choice in argument.choices if str(choice) == text), text)
    if _is_bool(argument):
        return _BOOLS.get(text.lower(), text)
    try:
        return int(text) if argument.kinds == {"int"} else float(text) if argument.kinds == {"float"} else text
    except ValueError:
        return text


def _stray(word: str) -> str:
    if _is_open(word):
        return _left_out(word)
    if word.startswith(_LONG_DASHES):
        return f"{word!r} begins with a long dash: write --"
    if re.match(r"[A-Za-z_]\w*=", word):
        return f"{word!r}: key=value is read only after a YAML file; LLaMA-Factory refuses it here"
    return f"{word!r}: belongs to no argument; LLaMA-Factory refuses it"


def _is_open(word: object) -> bool:
    return isinstance(word, Word) and word.is_open


def _left_out(word: str) -> str:
    return f"{word}: {UNRESOLVED}; left out"


def _after_config(config: str, words: Sequence[str]) -> Given:
    """A YAML file, and what OmegaConf.from_cli makes of the words after it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    given, rest, seen, values = Given(config), list(words), dict[str, str](), OmegaConf.create()
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if _is_open(word):
            given.notes.append(_left_out(word))
        elif word.startswith("--"):
            value = rest.pop(0) if not equals and rest and not re.match("--|[^=]*=", rest[0]) else value
            pair = f"{key[2:].replace('-', '_')}={value or 'true'}"
            reason = f"after a YAML file LLaMA-Factory reads key=value alone; write {pair}"
            given.notes.append(f"{word if equals else f'{key} {value}'.rstrip()!r}: {reason}")
        elif not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            given.notes.append(f"{word!r}: after a YAML file LLaMA-Factory reads key=value alone, and refuses this")
        else:
            try:
                if re.search(r"[&*]\w", value) and value[:1] in ("[", "{"):
                    raise ValueError("YAML's aliases are not followed")
                values.merge_with_dotlist([word])
            except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
                given.notes.append(f"{word!r}: OmegaConf cannot read it: {' '.join(str(error).split())[:200]}")
            if key in seen:
                given.notes.append(f"{key} is given twice, {seen[key]!r} and {value!r}: the last counts")
            seen[key] = value
    read = OmegaConf.to_container(values)
    given.arguments = {str(key): item for key, item in read.items()} if isinstance(read, dict) else {}
    return given
