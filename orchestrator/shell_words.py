"""What the words of a POSIX shell's text say, without their quotes and with their variables.

Covered: quotes, escapes; variables and arrays with their defaults and cut ends (`${X:-a}`, `${X##*/}`); the splitting
of what stands unquoted.
Not covered: what only running the text would tell: it is kept as written and listed. So are patterns of file names and
brace expansions.
Pure: nothing is run, opened or read from the environment.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from orchestrator.shell_tokens import (
    NAME,
    PARAMETER,
    ShellError,
    continuation,
    is_process_substitution,
    list_end,
    quoted_end,
)

MAX_EXPANDED = 1 << 23  # characters that all words of a text may have together: variables can double each time
MAX_CUT = 4096  # characters of a value that ${X##PATTERN} is tried on

_BRACED = re.compile(rf"\$\{{({NAME})(?:\[([@*]|[0-9]{{1,6}})\])?(?:(:?[-=+?]|##?|%%?)(.*))?\}}", re.ASCII | re.DOTALL)
_BRACES = re.compile(r"\{[^{}\s]*\}")
_ANSI = re.compile(
    r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8})|c(.)|(.))", re.DOTALL
)
_ANSI_CHARS = {"a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True)
class Variable:
    """What the text gives a variable."""

    value: str | tuple[str, ...] | None
    """Text, or the words of an array, which may hold what is unresolved. None: not known without running the text."""
    written: str = ""
    """The text, with what cannot be known as it is written."""
    unresolved: tuple[str, ...] = ()
    exported: bool = False


@dataclass
class Expander:
    """Words with their quotes removed and their variables put in."""

    variables: dict[str, Variable] = field(default_factory=dict)
    unresolved: list[str] = field(default_factory=list)
    """What could not be known in the words so far, each as written; whoever reads the words takes them."""
    spent: int = 0
    _fields: list[str] = field(default_factory=list)
    _current: list[str] | None = None
    _splits: bool = True
    _pattern: bool = False
    _last_bracket: int = -1

    def fields(self, raw: str) -> list[str]:
        """The words that one word as written becomes: none, one or several."""
        self._read_word(raw, splits=True)
        return self._fields

    def text(self, raw: str) -> str:
        """What an assignment makes of its right side: one text."""
        self._read_word(raw, splits=False)
        return " ".join(self._fields)

    def _read_word(self, raw: str, splits: bool) -> None:
        self._fields, self._current, self._splits, self._pattern = [], None, splits, False
        self._last_bracket = raw.rfind("]")
        tilde = re.match(r"~[^/'\"\\$`:]*", raw)
        if tilde:
            self.unresolved.append(tilde[0])
        self._read(raw, within=False, expanded=False)
        self._end_field()
        if self._pattern and splits:
            self.unresolved.append(raw)

    def _read(self, raw: str, within: bool, expanded: bool) -> None:
        at = 0
        while at < len(raw):
            char = raw[at]
            end = at + 1
            if char == "\\":
                end = at + (continuation(raw, at) or 2)
                if not continuation(raw, at):
                    self._put(_escaped(raw[at:end], within))
            elif char in "$`" or (char == '"') or (char == "'" and not within):
                end = quoted_end(raw, at, 0, within)
                self._read_quoted(raw[at:end], within)
            elif within:
                end = re.compile(r"[^\\$`\"]+").match(raw, at).end()  # type: ignore[union-attr]
                self._put(raw[at:end])
            elif is_process_substitution(raw, at):
                end = list_end(raw, at + 2, 0)
                self._leave(raw[at:end])
            else:
                literal = re.compile(r"[^\\$`\"'*?\[{<>]+").match(raw, at)
                end = literal.end() if literal else end
                self._pattern |= char in "*?" or _is_brace_expansion(raw, at)
                # key=[a,b] is what OmegaConf reads; no file is called so
                self._pattern |= char == "[" and at < self._last_bracket and not re.match(rf"{NAME}=", raw)
                (self._split if expanded else self._put)(raw[at:end])
            at = end

    def _read_quoted(self, raw: str, within: bool) -> None:
        if raw[0] == "'":
            self._put(raw[1:-1])
        elif raw[0] == '"' or (raw[:2] == '$"' and not within and len(raw) > 2):
            inner = raw[raw.index('"') + 1 : -1]
            if not self._is_empty_array(inner):
                self._put("")  # "" is a word
            self._read(inner, within=True, expanded=False)
        elif raw[:2] == "$'" and not within and len(raw) > 2:
            self._put(_ANSI.sub(_ansi_char, raw[2:-1]))
        elif raw == "$":
            self._put(raw)
        else:
            self._read_parameter(raw, within)

    def _is_empty_array(self, inner: str) -> bool:
        """Whether a text in double quotes is "${A[@]}" of an empty array, which is no word at all."""
        found = _BRACED.fullmatch(inner)
        given = self.variables.get(found[1]) if found and found[2] == "@" and not found[3] else None
        return given is not None and given.value == ()

    def _read_parameter(self, raw: str, within: bool) -> None:
        plain, braced = PARAMETER.fullmatch(raw), _BRACED.fullmatch(raw)
        if plain and plain[1]:
            name, index, operator, rest = re.sub(r"\\\r?\n", "", plain[1]), "", "", ""
        elif braced:
            name, index, operator, rest = braced.groups("")
        else:
            self._leave(raw)
            return
        given = self.variables.get(name)
        value = None if given is None else _item(given.value, index)
        if given is not None and isinstance(given.value, tuple):
            self._take_over(given)
        kind = operator.lstrip(":")
        is_empty = value is None or (operator != kind and not "".join(value))
        if given is not None and given.value is None:
            self._leave_unknown(raw, given, within, is_whole=not (index or operator))
        elif ("IFS" in self.variables and not within and self._splits) or (kind == "?" and is_empty):
            self._leave(raw)
        elif kind in ("-", "=") and is_empty:
            self._read_default(name, rest, within, assigns=kind == "=")
        elif given is None:  # our own environment is not asked
            self._leave(raw)
        elif kind == "+" and not is_empty:
            self._read(rest, within, expanded=not within)
        elif kind != "+" and value is not None:
            if kind[:1] in ("#", "%"):
                self._put_cut(raw, value, kind, rest, within)
            else:
                self._put_value(value, within, joined=index == "*")

    def _leave_unknown(self, raw: str, given: Variable, within: bool, is_whole: bool) -> None:
        """Of what the text gives a variable, at least the parts that can be known: saves/$(date)."""
        if not is_whole or raw in (given.written, f"${{{given.written[1:]}}}"):
            self._leave(raw)
            return
        self._take_over(given)
        parts = sorted(given.unresolved, key=len, reverse=True)
        for number, piece in enumerate(re.split("(" + "|".join(map(re.escape, parts)) + ")", given.written)):
            (self._put if within or number % 2 else self._split)(piece)

    def _take_over(self, given: Variable) -> None:
        """What a variable holds of unknown parts, the word that it stands in holds too."""
        self.unresolved += given.unresolved
        self._spend(len(given.unresolved))

    def _put_cut(self, raw: str, value: str | tuple[str, ...], kind: str, pattern: str, within: bool) -> None:
        if isinstance(value, str) and len(value) <= MAX_CUT and not re.search(r"[\\'\"`$]", pattern):
            self._spend(16 * len(value))  # that many tries
            self._put_value(_cut(value, kind, pattern), within, joined=False)
        else:
            self._leave(raw)

    def _read_default(self, name: str, rest: str, within: bool, assigns: bool) -> None:
        if assigns:
            inner = Expander(self.variables, spent=self.spent)
            written = inner.text(rest)
            self.spent = inner.spent
            known = None if inner.unresolved else written
            self.variables[name] = Variable(known, written, tuple(inner.unresolved))
        self._read(rest, within, expanded=not within)

    def _put_value(self, value: str | tuple[str, ...], within: bool, joined: bool) -> None:
        if isinstance(value, tuple) and (joined or not self._splits):
            value = " ".join(value)
        for number, item in enumerate((value,) if isinstance(value, str) else value):
            if number:
                self._end_field()
            (self._put if within else self._split)(item)

    def _leave(self, raw: str) -> None:
        """Keep what cannot be known as it is written."""
        self.unresolved.append(raw)
        self._put(raw)

    def _put(self, text: str) -> None:
        self._current = self._current if self._current is not None else []
        self._current.append(text)
        self._spend(len(text))

    def _split(self, text: str) -> None:
        """Put in what stands unquoted: blanks in it end a word."""
        self._pattern |= bool(re.search(r"[*?]", text))
        for number, part in enumerate(re.split(r"[ \t\n]+", text) if self._splits else [text]):
            if number:
                self._end_field()
            if part or not self._splits:
                self._put(part)

    def _end_field(self) -> None:
        if self._current is not None:
            self._fields.append("".join(self._current))
            self._spend(1)
        self._current = None

    def _spend(self, count: int) -> None:
        self.spent += count
        if self.spent > MAX_EXPANDED:
            raise ShellError(f"its variables written out are more than {MAX_EXPANDED} characters", 0)


def _is_brace_expansion(raw: str, at: int) -> bool:
    found = _BRACES.match(raw, at)
    return found is not None and ("," in found[0] or ".." in found[0])


def _item(value: str | tuple[str, ...] | None, index: str) -> str | tuple[str, ...] | None:
    """An array's item, or all of them for @ and *; None where there is none."""
    if value is None or (isinstance(value, str) and index in ("", "@", "*", "0")):
        return value
    if index in ("@", "*"):
        return value
    items = value if isinstance(value, tuple) else (value,)
    number = int(index or "0")
    return items[number] if number < len(items) else None


def _cut(value: str, kind: str, pattern: str) -> str:
    """The value without the shortest (#, %) or longest (##, %%) beginning or end that a pattern fits."""
    lengths: Iterator[int] = iter(range(len(value) + 1) if len(kind) == 1 else range(len(value), -1, -1))
    for length in lengths:
        if kind[0] == "#" and fnmatchcase(value[:length], pattern):
            return value[length:]
        if kind[0] == "%" and fnmatchcase(value[len(value) - length :], pattern):
            return value[: len(value) - length]
    return value


def _escaped(pair: str, within: bool) -> str:
    if len(pair) == 1 or (within and pair[1] not in '$`"\\'):
        return pair
    return pair[1]


def _ansi_char(found: re.Match[str]) -> str:
    octal, *hexadecimal, control, plain = found.groups()
    for digits in hexadecimal:
        if digits:
            code = int(digits, 16)
            return chr(code) if code <= 0x10FFFF else found[0]
    if octal:
        return chr(int(octal, 8) & 0xFF)
    if control:
        return chr(ord(control) & 0x1F)
    return _ANSI_CHARS.get(plain, plain if plain in "\\'\"?" else found[0])
