"""The words of a shell text with quotes removed and variables put in; what only running it would tell is marked."""

import os
import re
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.specs.excerpt import block, excerpt

MAX_WORK = 1 << 21  # characters read and written while variables are put in and loops followed: about a second
MAX_DEPTH = 40
NAME = "[A-Za-z_][A-Za-z0-9_]*"
# Marks in texts. An unknown part stands between two ONE, or two MANY where it may be any number of words.
ONE, MANY, BREAK, EMPTY = "\0\1\2\3"
MARKED = re.compile("[\0\1]([^\0\1]*)[\0\1]")
BLANK_OR_MARKED = re.compile("([\0\1][^\0\1]*+[\0\1])|[ \t\n]++")

_NAME = rf"{NAME}(?:\\\r?\n[A-Za-z0-9_]+)*"  # a line may end within it
_PIECE = re.compile(
    rf"""(?P<plain>(?:[^ \t\r\n\\'"`$;&|()<>]|\r(?!\n))++) | '(?P<single>[^']*+)'
    | \\(?P<escaped>\r\n|.?) | (?P<quote>\$?") | (?P<nested>\$\(|\$\{{|`|[<>]\()
    | (?P<ansi>\$'(?:[^'\\]|\\.)*+') | \$(?P<name>{_NAME}|[0-9@*#?$!-]) | (?P<dollar>\$)""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED_PIECE = re.compile(
    rf"""(?P<plain>[^\\`"$]++) | \\(?P<escaped>[$`"\\\n]|\r\n) | (?P<slash>\\) | (?P<nested>\$\(|\$\{{|`)
    | \$(?P<name>{_NAME}|[0-9@*#?$!-]) | (?P<dollar>\$)""",
    re.VERBOSE,
)
# What opens, closes or hides something within $(...) and ${...}; and within double quotes.
_INNER = re.compile(
    r"\\.|'[^']*+'|\$'(?:[^'\\]|\\.)*+'|`(?:[^`\\]|\\.)*+`|\$?[\"(]|\$\{|[)}]|(?<=[\s;])#[^\n]*+|['`]", re.DOTALL
)
_QUOTED_INNER = re.compile(r"\\.|`(?:[^`\\]|\\.)*+`|\$[({]|[\"}`]", re.DOTALL)
_PARAMETER = re.compile(rf"\$\{{?({NAME}|[0-9@*]+)(?:\[([@*])\])?(?:(:?[-=+?])(.*))?\}}?", re.DOTALL)
_MANY_WORDS = re.compile(r"\$\{?(?:[@*]|\w+\[[@*]\])")
_FILES = re.compile(r"[*?]|\{[^{},]*+,[^{}]*+\}|\{[^{}.]*+\.\.[^{}]*+\}")
_SELF = r"(?:\$0|\$\{?BASH_SOURCE(?:\[0\])?(?::-\$0)?\}?)"
_DIRNAME = rf"\$\(\s*dirname\s+(?:--\s+)?(?:{_SELF}|\$\(\s*(?:readlink\s+-f|realpath)\s+{_SELF}\s*\))\s*\)"
# The script's own folder, quotes left out: $(cd $(dirname $0)/.. && pwd), $(dirname $(readlink -f $0)).
_OWN_FOLDER = re.compile(
    rf"\$\(\s*cd\s+(?:--\s+)?{_DIRNAME}(/[./]*)?(?:\s*&?>\s*/dev/null(?:\s*2>&1)?)?\s*(?:&&|;)\s*pwd(?:\s+-P)?\s*\)"
    rf"|{_DIRNAME}"
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
        """The parts that only running the text would tell."""
        return MARKED.findall(self.marked)

    @property
    def is_open(self) -> bool:
        """Whether it may be any number of words: "$@", or an unknown variable without quotes."""
        return self.marked[:1] == MANY and MARKED.fullmatch(self.marked) is not None


class WordReader:
    """Reads the words of a text from `at` on."""

    def __init__(self, text: str, place: str, folder: Path | None) -> None:
        self.text = text
        self.at = 0
        self.values: dict[str, list[str]] = {}
        """What the text has set, with marks: one text, or an array's items. The environment is not read."""
        self.defaults: dict[str, None] = {}
        """Expansions whose default was taken."""
        self._place = place
        self._folder = folder
        self._work = 0

    def fail(self, message: str, at: int) -> SpecError:
        row, column = self.text.count("\n", 0, at), at - (self.text.rfind("\n", 0, at) + 1)
        shown = excerpt(self.text.split("\n"), row, column)
        heads = f"not a shell text that can be read: {message}"
        return SpecError("\n".join(block(heads, f"{self._place}:{row + 1}:{column + 1}", shown, [])))

    def charge(self, count: int) -> None:
        """Count what is done: variables can double, and loops repeat."""
        self._work += count + 20
        if self._work > MAX_WORK:
            raise self.fail("its variables and loops make more of it than any sensible script", self.at)

    def words(self) -> list[Word]:
        """The words that the word which stands here becomes: none, one or several."""
        start, expanded = self.at, self.expand(len(self.text))
        if self.at == start:
            raise self.fail(f"unexpected `{self.text[start : start + 1]}`", start)
        return [Word(marked) for marked in expanded.split(BREAK) if marked]

    def expand(self, end: int, quoted: bool = False, splits: bool = True) -> str:
        """Read pieces of a word, or of a text in double quotes, up to what is none.

        Args:
            end: where to stop at the latest.
            quoted: whether they stand in double quotes.
            splits: whether blanks in a variable end a word; not in an assignment.

        Returns:
            What they stand for, with marks: BREAK between words, EMPTY for a word without text.
        """
        pattern, parts = _QUOTED_PIECE if quoted else _PIECE, list[str]()
        while self.at < end and (found := pattern.match(self.text, self.at, end)):
            start, self.at = self.at, found.end()
            self.charge(self.at - start)
            kind = found.lastgroup or ""
            piece = found[kind]
            if kind == "quote":
                parts.append(self.expand(end, quoted=True, splits=splits))
                if not self.text.startswith('"', self.at):
                    raise self.fail('" is never closed', start)
                parts += [EMPTY] if self.text[self.at - 1] == '"' else []
                self.at += 1
            elif kind == "name":
                parts.append(self._parameter(start, self.at, quoted, splits))
            elif kind == "nested":
                self.at = self.closing(start)
                read = self._parameter if piece == "${" else self._substitution
                parts.append(read(start, self.at, quoted, splits))
            elif kind == "ansi" or (kind == "plain" and not quoted and splits and _FILES.search(piece)):
                parts.append(f"{ONE}{piece}{ONE}")
            elif kind == "single":
                parts.append(piece or EMPTY)
            elif kind != "escaped" or piece not in ("\n", "\r\n"):  # after a backslash it is nothing
                parts.append(piece or "\\")
        if not quoted and self.at < end and self.text[self.at] == "'":
            raise self.fail("' is never closed", self.at)
        return "".join(parts)

    def closing(self, at: int) -> int:
        """Where what begins at a character ends: $(...), ${...}, (...), `...`."""
        begin, stack = at, list[str]()
        while True:
            is_quoted = next((mark for mark in reversed(stack) if mark != "}"), "") == '"'
            found = (_QUOTED_INNER if is_quoted else _INNER).search(self.text, at)
            if found is None or found[0] in ("'", "`"):
                opened = found.start() if found else begin
                raise self.fail(f"{self.text[opened : opened + 2].rstrip()} is never closed", opened)
            self.charge(found.end() - at)
            token, at = found[0], found.end()
            if stack and token == stack[-1]:
                stack.pop()
            elif token in ('"', '$"', "$(", "${") or (token == "(" and stack[-1:] != ["}"]):
                stack.append({'"': '"', "(": ")", "{": "}"}[token[-1]])
            if not stack:
                return at
            if len(stack) > MAX_DEPTH:
                raise self.fail(f"more than {MAX_DEPTH} constructs within each other", at)

    def _substitution(self, start: int, end: int, quoted: bool, splits: bool) -> str:
        """$(...) is not known, but where it is the script's own folder."""
        raw = self.text[start:end]
        plain = re.sub("[\"']", "", f"$({raw[1:-1]})" if raw[0] == "`" else raw)
        found = _OWN_FOLDER.fullmatch(plain) if self._folder and len(raw) < 200 else None
        mark = ONE if quoted else MANY
        return os.path.normpath(f"{self._folder}{found[1] or ''}") if found else f"{mark}{raw}{mark}"

    def _parameter(self, start: int, end: int, quoted: bool, splits: bool) -> str:
        """What $NAME or ${NAME...} stands for, with marks."""
        raw, found = self.text[start:end], _PARAMETER.fullmatch(self.text, start, end)
        name, index, operator = (found[1], found[2] or "", found[3] or "") if found else ("", "", "")
        value = self.values.get(name)
        value = value if value is None or index else value[:1] or [""]
        text = " ".join(value or []).replace(EMPTY, "")
        kind, rest = operator.lstrip(":"), (found.start(4) if found else end, end - 1)
        self.charge(len(text))
        if kind in ("-", "=") and (value is None or (operator != kind and not text)):
            self.defaults |= {raw: None} if value is None else {}
            if kind == "=":
                self.values[name] = [self._default(*rest, quoted, splits=False)]
            return self._default(*rest, quoted, splits)
        if value is None or (kind == "+" and MARKED.fullmatch(text)):
            mark = ONE if quoted and not _MANY_WORDS.match(raw) else MANY
            return f"{mark}{raw}{mark}"
        if kind == "+":
            return self._default(*rest, quoted, splits) if text or operator == kind else ""
        if quoted and index != "@":
            value = [text.replace(MANY, ONE) or EMPTY]
        text = (BREAK if splits else " ").join(value)
        if quoted or not splits:
            return text
        text = text.replace(EMPTY, "")
        return BLANK_OR_MARKED.sub(lambda each: each[1].replace(ONE, MANY) if each[1] else BREAK, text)

    def _default(self, at: int, end: int, quoted: bool, splits: bool) -> str:
        """The WORD of ${NAME:-WORD}, in which blanks and operators are nothing special."""
        back, parts = self.at, list[str]()
        self.at = at
        while self.at < end:
            parts.append(self.expand(end, quoted, splits))
            char = self.text[self.at] if self.at < end else ""
            parts.append("" if char == '"' else BREAK if char.isspace() and splits and not quoted else char)
            self.at += 1
        self.at = back
        return "".join(parts)
