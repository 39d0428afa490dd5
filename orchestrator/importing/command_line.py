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


@dataclass
class Given:
    """What a command line says; `config` is the YAML or JSON file that it begins with."""

    config: str | None = None
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
            may_be_bare = _is_bool(argument) and (isinstance(argument.default, bool) or not argument.optional)
            is_list = argument.kinds == {"list"} or name == "debug"  # declared text | list: the parser takes the list
            count = "+" if is_list else "?" if may_be_bare else None
            self.add_argument(*_flags(name), dest=name, action=_Keep, nargs=count, const=may_be_bare or None)
            if _is_bool(argument) and argument.default is True:
                self.add_argument(*_flags(f"no_{name}"), dest=name, action=_Keep, nargs=0, const=False)

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{self.where}: {message}", "LLaMA-Factory would not start with it: correct the command")


def _flags(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


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
    return f"{word!r}: belongs to no argument; LLaMA-Factory reads key=value only after a YAML file"


def _is_open(word: object) -> bool:
    return isinstance(word, Word) and word.is_open


def _left_out(word: str) -> str:
    return f"{word}: {UNRESOLVED}; left out"


def _after_config(config: str, words: Sequence[str]) -> Given:
    """A YAML file, and what OmegaConf.from_cli makes of the words after it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    given, values, odd = Given(config), OmegaConf.create(), list[str]()
    for word in words:
        if _is_open(word):
            given.notes.append(_left_out(word))
        elif not re.match(r"[A-Za-z_][\w.]*=", word):
            odd.append(word)
        elif re.search(r"=[\[{].*[&*]\w", word, re.DOTALL):
            given.notes.append(f"{word!r}: not taken over, as YAML's aliases are not followed")
        else:
            try:
                values.merge_with_dotlist([word])
            except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
                given.notes.append(f"{word!r}: OmegaConf cannot read it: {' '.join(str(error).split())[:200]}")
    if odd:
        given.notes.append(f"{' '.join(odd)!r}: LLaMA-Factory refuses it: after a YAML file it reads key=value alone")
    read = OmegaConf.to_container(values)
    given.arguments = {str(key): item for key, item in read.items()} if isinstance(read, dict) else {}
    return given
