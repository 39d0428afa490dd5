"""The words of a shell text with quotes removed and variables put in; what only running it would show is marked."""

import os
import re
from bisect import bisect_right
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from orchestrator.errors import SpecError

_MAX_WORK = 1 << 21  # characters read and written while variables are put in and loops followed: about a second
# Marks in texts. An unknown part stands between two ONE, or two MANY where it may be any number of words.
ONE, MANY, BREAK, EMPTY = "\0\1\2\3"
_MARKED = re.compile("[\0\1]([^\0\1]*)[\0\1]")
_BLANK_OR_MARKED = re.compile("([\0\1][^\0\1]*+[\0\1])|[ \t\n]++")
NAME = "[A-Za-z_][A-Za-z0-9_]*"
_PIECE = re.compile(
    rf"""(?P<plain>(?:[^ \t\r\n\\'"`$;&|()<>]|\r(?!\n))++) | '(?P<single>[^']*+)'
    | \\(?P<escaped>\r\n|.?) | (?P<quote>\$?") | (?P<nested>\$\(|\$\{{|`|[<>]\()
    | (?P<ansi>\$'(?:[^'\\]|\\.)*+') | \$(?P<name>{NAME}|[0-9@*#?$!-]) | (?P<dollar>\$)""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED_PIECE = re.compile(
    rf"""(?P<plain>[^\\`"$]++) | \\(?P<escaped>[$`"\\\n]|\r\n) | (?P<slash>\\) | (?P<nested>\$\(|\$\{{|`)
    | \$(?P<name>{NAME}|[0-9@*#?$!-]) | (?P<dollar>\$)""",
    re.VERBOSE,
)
# What opens, closes or hides something within $(...) and ${...}; and within double quotes.
_INNER = re.compile(
    r"\\.|'[^']*+'|\$'(?:[^'\\]|\\.)*+'|`(?:[^`\\]|\\.)*+`|\$?[\"(]|\$\{|[)}]|(?<=[\s;])#[^\n]*+|['`]", re.DOTALL
)
_QUOTED_INNER = re.compile(r"\\.|`(?:[^`\\]|\\.)*+`|\$[({]|[\"}`]", re.DOTALL)
_PARAMETER = re.compile(rf"""\$\{{?({NAME}|[0-9@*]+)(?:\[([@*])\])?(?:(:?[-=])("?)([^"'$`\\}}]*)\4)?\}}?""")
_MANY_WORDS = re.compile(r"\$\{?(?:[@*]|\w+\[[@*]\])")
_FILES = re.compile(r"[*?]|\{[^{},]*+,[^{}]*+\}|\{[^{}.]*+\.\.[^{}]*+\}")
_SELF = r"(?:\$0|\$\{?BASH_SOURCE(?:\[0\])?(?::-\$0)?\}?)"
# The script's own folder, without quotes, blanks and where errors go: $(cd $(dirname $0)/.. && pwd), $(dirname $0).
_OWN_FOLDER = re.compile(
    rf"(?:\$\(cd)?\$\(dirname(?:{_SELF}|\$\((?:readlink-f|realpath){_SELF}\))\)(?:(/[./]*)?(?:&&|;)pwd(?:-P)?\))?"
)


class Word(str):
    """A word as the program gets it, or as it is written where that is not known."""

    marked: str

    def __new__(cls, marked: str) -> "Word":
        word = super().__new__(cls, re.sub(f"[{ONE}-{EMPTY}]", "", marked))
        word.marked = marked
        return word

    @property
    def unknown(self) -> list[str]:
        """The parts that cannot be resolved without running the script."""
        return _MARKED.findall(self.marked)

    @property
    def is_open(self) -> bool:
        """Whether it may be any number of words: "$@", or an unknown variable without quotes."""
        return self.marked[:1] == MANY and _MARKED.fullmatch(self.marked) is not None


Values = dict[str, list[str]]


class WordReader:
    """Reads a text from `at` on; variables are as they stand there."""

    def __init__(self, text: str, place: str, folder: Path | None) -> None:
        self.text, self.place, self.folder = text, place, folder
        self.at = 0
        self.defaults: dict[str, None] = {}
        self.values: Values = {}  # one text each, or an array's items, with marks; replaced, never changed
        self.starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self.work = 0

    def fail(self, message: str, at: int) -> SpecError:
        row = bisect_right(self.starts, at)
        place = f"{self.place}:{row}:{at - self.starts[row - 1] + 1}"
        return SpecError(f"{place}: not a shell text that can be read: {message}")

    def charge(self, count: int) -> None:
        """Count what is done: variables can double, and loops repeat."""
        self.work += count + 20
        if self.work > _MAX_WORK:
            raise self.fail("its variables and loops make more of it than any sensible script", self.at)

    def forget(self, names: Iterable[str]) -> None:
        self.values = self.values | {name: [f"{ONE}${name}{ONE}"] for name in names}

    def merged(self, one: Values, other: Values) -> Values:
        """After one of two ways was taken: variables as far as both agree, else their common beginning."""
        merged = dict(one)
        for name in one.keys() | other.keys():
            values = one.get(name, []), other.get(name, [])
            if values[0] != values[1]:
                merged[name] = _common(name, *values)
        return merged

    def words(self) -> list[Word]:
        """The words that the word which stands here becomes: none, one or several."""
        start, expanded = self.at, self.expand()
        if self.at == start:
            raise self.fail(f"unexpected `{self.text[start : start + 1]}`", start)
        return [Word(marked) for marked in expanded.split(BREAK) if marked]

    def expand(self, quoted: bool = False) -> str:
        """Read a word: what it stands for, with marks, BREAK between words and EMPTY for a word without text."""
        pattern, parts = _QUOTED_PIECE if quoted else _PIECE, list[str]()
        while found := pattern.match(self.text, self.at):
            start, self.at = self.at, found.end()
            self.charge(self.at - start)
            kind = found.lastgroup or ""
            piece = found[kind]
            if kind == "quote":
                parts.append(self.expand(quoted=True))
                if not self.text.startswith('"', self.at):
                    raise self.fail('" is never closed', start)
                parts += [EMPTY] if self.text[self.at - 1] == '"' else []
                self.at += 1
            elif kind in ("name", "nested"):
                self.at = self.at if kind == "name" else self.closing(start)
                read = self._parameter if kind == "name" or piece == "${" else self._substitution
                parts.append(read(self.text[start : self.at], quoted))
            elif kind == "ansi" or (kind == "plain" and not quoted and _FILES.search(piece)):
                parts.append(f"{ONE}{piece}{ONE}")
            elif kind == "single":
                parts.append(piece or EMPTY)
            elif kind != "escaped" or piece not in ("\n", "\r\n"):  # after a backslash it is nothing
                parts.append(piece or "\\")
        if not quoted and self.text.startswith("'", self.at):
            raise self.fail("' is never closed", self.at)
        return "".join(parts)

    def closing(self, at: int) -> int:
        """Where what begins at a character ends: $(...), ${...}, (...), `...`."""
        begin, stack = at, list[str]()
        while True:
            found = (_QUOTED_INNER if stack[-1:] == ['"'] else _INNER).search(self.text, at)
            if found is None or found[0] in ("'", "`"):
                opened = found.start() if found else begin
                raise self.fail(f"{self.text[opened : opened + 2].rstrip()} is never closed", opened)
            token, at = found[0], found.end()
            if stack and token == stack[-1]:
                stack.pop()
            elif token in ('"', '$"', "$(", "${") or (token == "(" and stack[-1:] != ["}"]):
                stack.append({'"': '"', "(": ")", "{": "}"}[token[-1]])
            if not stack:
                return at

    def _substitution(self, raw: str, quoted: bool) -> str:
        """$(...) is not known, but where it is the script's own folder."""
        mark = ONE if quoted else MANY
        plain = re.sub(r"[\"'\s]|--|&?>\s*/dev/null|2>&1", "", f"$({raw[1:-1]})" if raw[0] == "`" else raw)
        found = _OWN_FOLDER.fullmatch(plain) if self.folder else None
        return os.path.normpath(f"{self.folder}{found[1] or ''}") if found else f"{mark}{raw}{mark}"

    def _parameter(self, raw: str, quoted: bool) -> str:
        found = _PARAMETER.fullmatch(raw)
        name, index, operator, quote, default = found.groups() if found else ("", None, None, "", "")
        value = self.values.get(name)
        value = value if value is None or index else value[:1] or [""]
        text = " ".join(value or []).replace(EMPTY, "")
        self.charge(len(text))
        if operator and (value is None or (operator[0] == ":" and not text)):
            self.defaults |= {raw: None} if value is None else {}
            if "=" in operator:
                self.values = self.values | {name: [default]}
            return default or EMPTY if quoted or quote else re.sub(r"\s+", BREAK, default)
        if value is None:
            mark = ONE if quoted and not _MANY_WORDS.match(raw) else MANY
            return f"{mark}{raw}{mark}"
        if quoted:
            return BREAK.join(value) if index == "@" else text.replace(MANY, ONE) or EMPTY
        return _split(BREAK.join(value).replace(EMPTY, "")).replace(ONE, MANY)


def _split(text: str) -> str:
    return _BLANK_OR_MARKED.sub(lambda each: each[1] or BREAK, text)


def _common(name: str, one: list[str], other: list[str]) -> list[str]:
    """What two ways agree on: the common beginning, and that more is not known."""
    unknown, is_text = f"{MANY}${name}{MANY}", len(one) == len(other) == 1
    pair = [_split(one[0]).split(BREAK), _split(other[0]).split(BREAK)] if is_text else [one, other]
    same = [item for item, _ in takewhile(lambda each: each[0] == each[1], zip(*pair, strict=False))]
    return [" ".join([*same, unknown])] if is_text else [*same, unknown]
