"""The words after `llamafactory-cli train`, as arguments of the type that LLaMA-Factory gives them.

Covered: the ways of transformers' HfArgumentParser (`--flag value`, `--flag=value`, bare flags, `--no_flag`, dashes for
underscores, unambiguous beginnings, lists); a YAML file first, and then OmegaConf's `key=value`.
Not covered: whether the arguments exist and their values are right: those that do not fit are kept as text, for the
check of the spec (argument_check.py) to report.
Opens no file: the YAML file is named, not read.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.specs.arguments import Argument

_CONFIGS = (".yaml", ".yml", ".json")
_TRUE, _FALSE = frozenset({"yes", "true", "t", "y", "1"}), frozenset({"no", "false", "f", "n", "0"})
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
_READERS: dict[frozenset[str], Callable[[str], Any]] = {
    frozenset({"int"}): int,
    frozenset({"float"}): float,
}
_MAX_WORDS = 10_000
_MAX_SHOWN = 12  # of the arguments that a beginning may mean
# Declared `str | list[DebugOption]`: of text and something else HfArgumentParser takes the other. Of three, the second.
_LISTS_BESIDE_TEXT = frozenset({"debug"})


@dataclass
class Given:
    """What a command line says."""

    config: str | None = None
    """The YAML or JSON file that it begins with."""
    arguments: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What has no place in the arguments, each with its reason."""

    def put(self, name: str, value: Any) -> None:
        if name in self.arguments:
            self.notes.append(f"{name} is given twice, {self.arguments[name]!r} and {value!r}: the last counts")
        self.arguments[name] = value


def parse_words(
    words: Sequence[str],
    command: str,
    arguments: Mapping[str, Argument],
    where: str,
    unknown: Collection[str] = (),
) -> Given:
    """What a command's words say.

    Args:
        words: those after the command.
        command: train, api, export, chat, ...
        arguments: LLaMA-Factory's, by name.
        where: what errors call the place.
        unknown: words that stand for something which is not known; the first one may be the YAML file.

    Raises:
        SpecError: LLaMA-Factory would not have started: a beginning of several arguments, a flag without its value.
    """
    if len(words) > _MAX_WORDS:
        raise SpecError(f"{where}: more than {_MAX_WORDS} words, more than any sensible command")
    names_file = bool(words) and words[0] in unknown and not any(word.startswith("-") for word in words)
    if names_file or (words and words[0].endswith(_CONFIGS)):
        return _after_config(words[0], words[1:])
    return _Flags(arguments, command, where).read(words)


class _Flags:
    """HfArgumentParser's way with words, which is argparse's."""

    def __init__(self, arguments: Mapping[str, Argument], command: str, where: str) -> None:
        self.where = where
        self.options: dict[str, tuple[Argument, bool]] = {}
        """Flag -> the argument, and whether the flag turns it off."""
        takes = command if command in ("train", "export") else "api"
        for name, argument in arguments.items():
            if takes in argument.commands:
                flags = [name, f"no_{name}"] if _is_bool(argument) and argument.default is True else [name]
                for flag in flags:
                    for written in (flag, flag.replace("_", "-")):
                        self.options.setdefault(f"--{written}", (argument, flag != name))

    def read(self, words: Sequence[str]) -> Given:
        given = Given()
        at = 0
        while at < len(words):
            word = words[at]
            at += 1
            if word == "--":
                given.notes += [_stray(each) for each in words[at:]]
                break
            if not self._is_flag(word):
                given.notes.append(_stray(word))
                continue
            flag, equals, value = word.partition("=")
            found = self.options.get(word) or self._option(flag)
            following = self._values(words, at) if not equals else [value]
            if found is None:
                at += self._put_unknown(given, flag, following, bool(equals))
            elif found[1]:
                if equals:
                    raise SpecError(f"{self.where}: {flag} takes no value, and is given {value!r}")
                given.put(found[0].name, False)
            else:
                taken = self._put(given, flag, found[0], following)
                at += 0 if equals else taken
        return given

    def _option(self, flag: str) -> tuple[Argument, bool] | None:
        """What a flag, or the beginning of one, means."""
        if flag in self.options or not flag.startswith("--"):
            return self.options.get(flag)
        found = {(each.name, off): (each, off) for text, (each, off) in self.options.items() if text.startswith(flag)}
        if len(found) > 1:
            names = sorted(f"--{'no_' if off else ''}{name}" for name, off in found)
            more = f" or one of {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
            meant = ", ".join(names[:_MAX_SHOWN]) + more
            raise SpecError(f"{self.where}: {flag} may be {meant}", "write the whole name")
        return next(iter(found.values()), None)

    def _is_flag(self, word: str) -> bool:
        if not word.startswith("-") or word == "-":
            return False
        if word == "--":
            return True
        if word in self.options or self._option(word.partition("=")[0]) is not None:
            return True
        return not _NEGATIVE_NUMBER.fullmatch(word) and " " not in word

    def _values(self, words: Sequence[str], at: int) -> list[str]:
        """The words from some place on that are no flags."""
        end = at
        while end < len(words) and not self._is_flag(words[end]):
            end += 1
        return list(words[at:end])

    def _put(self, given: Given, flag: str, argument: Argument, following: list[str]) -> int:
        """Give an argument its value; how many words that takes."""
        if _is_list(argument) and following:
            given.put(argument.name, following)
            return len(following)
        if not following:
            if not _is_bool(argument) or _has_no_default(argument):
                raise SpecError(f"{self.where}: {flag} has no value")
            given.put(argument.name, True)
            return 0
        given.put(argument.name, _typed(argument, following[0]))
        return 1

    @staticmethod
    def _put_unknown(given: Given, flag: str, following: list[str], equals: bool) -> int:
        name = flag.lstrip("-").replace("-", "_")
        taken = 0 if equals else len(following)
        if not name.isidentifier():
            given.notes += [_stray(word) for word in [flag, *following]]
        elif len(following) == 1:
            given.put(name, following[0])
        else:
            given.put(name, following or True)
        return taken


def _stray(word: str) -> str:
    found = re.match(r"([A-Za-z_]\w*)=", word)
    if found:
        return f"{word!r}: key=value is read only after a YAML file; LLaMA-Factory refuses it here"
    return f"{word!r}: belongs to no argument; LLaMA-Factory refuses it"


def _is_bool(argument: Argument) -> bool:
    """Whether a bare flag may mean it: declared bool, or bool | str where null is none of its values."""
    return argument.kinds == {"bool"} or ("bool" in argument.kinds and not argument.optional)


def _has_no_default(argument: Argument) -> bool:
    """Declared bool | None = None: HfArgumentParser then wants the value said."""
    return argument.optional and not isinstance(argument.default, bool)


def _is_list(argument: Argument) -> bool:
    return argument.kinds == {"list"} or argument.name in _LISTS_BESIDE_TEXT


def _typed(argument: Argument, text: str) -> Any:
    """A word in the argument's type, or as it is where it cannot be."""
    if argument.choices is not None:
        return next((choice for choice in argument.choices if str(choice) == text), text)
    if _is_bool(argument):
        lowered = text.lower()
        return True if lowered in _TRUE else False if lowered in _FALSE else text
    try:
        return _READERS.get(argument.kinds, str)(text)
    except ValueError:
        return text


def _after_config(config: str, words: Sequence[str]) -> Given:
    """A YAML file, and what OmegaConf.from_cli makes of the words after it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    given = Given(config)
    values = OmegaConf.create()
    seen: dict[str, str] = {}
    for word in _joined(words):
        key, equals, value = word.partition("=")
        if word.startswith("-") or not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            given.notes.append(
                f"{word!r}: after a YAML file LLaMA-Factory reads key=value alone, and refuses this"
                + _as_pair(key, value)
            )
            continue
        if key in seen:
            given.notes.append(f"{key} is given twice, {seen[key]!r} and {value!r}: the last counts")
        seen[key] = value
        try:
            if re.search(r"[&*]\w", value) and value[:1] in ("[", "{"):
                raise ValueError("YAML's aliases are not followed")
            values.merge_with_dotlist([word])
        except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
            given.notes.append(f"{word!r}: OmegaConf cannot read it: {' '.join(str(error).split())[:200]}")
    read = OmegaConf.to_container(values)
    given.arguments = {str(key): item for key, item in read.items()} if isinstance(read, dict) else {}
    return given


def _joined(words: Sequence[str]) -> list[str]:
    """The words, a flag and its value in one."""
    joined: list[str] = []
    is_open = False
    for word in words:
        if is_open and "=" not in word and not word.startswith("--"):
            joined[-1] += f" {word}"
            is_open = False
        else:
            joined.append(word)
            is_open = word.startswith("--") and "=" not in word
    return joined


def _as_pair(key: str, value: str) -> str:
    found = re.fullmatch(r"--([A-Za-z_][\w-]*)(?: (.*))?", key, re.DOTALL)
    if found is None:
        return ""
    text = value or found[2] or "true"
    return f"; were it {found[1].replace('-', '_')}={text}, it would"
