"""The commands of a shell text, as a shell would start them. Nothing of the text is run, no file is opened.

Branches and loops over words are followed; after a branch a variable is known as far as all ways agree. Functions are
read where they are defined.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.importing.shell_words import (
    BLANK_OR_MARKED,
    BREAK,
    EMPTY,
    MANY,
    MAX_DEPTH,
    NAME,
    ONE,
    Word,
    WordReader,
)

MAX_CHARS = 1 << 16
_BLANKS = re.compile(r"(?:[ \t]|\\\r?\n|\r(?=\n))*+")
_FENCE = re.compile(r"```[^\n]*|!(?=[\w/])")  # Markdown's, and what a notebook has before a command
_CLOSERS = {"if": "fi", "while": "done", "until": "done", "for": "done", "case": "esac", "{": "}", "(": ")"}
_KEYWORD = re.compile(
    r"(?:if|then|elif|else|fi|for|while|until|do|done|case|esac|time|[{}!])(?=[\s;&|()<>]|\Z)|;;&?|;&|[()]"
)
_OPERATOR = re.compile(r"&&|\|\||\|&?|;(?![;&])|&(?!>)|\n")
_REDIRECTION = re.compile(r"(?:[0-9]+|\{\w+\})?(<<<|<<-?|<>|<&|&>>?|>>|>&|>\||<|>)(?!\()")
_FUNCTION = re.compile(r"(?:function[ \t]+[\w.:-]+(?:[ \t]*\(\s*\))?|[\w.:-]+[ \t]*\([ \t]*\))\s*(?=[{(])")
_ASSIGNMENT = re.compile(rf"({NAME})(\[[^]\n]*\])?(\+?)=")
_FOR = re.compile(rf"\s*({NAME})\s*(in(?=[\s;]))?")
_IN_CASE = re.compile(r"[^\n]*?\bin(?=\s)")
_PATTERN = re.compile(r"\(?([^()\n]*)\)")
_TEST = re.compile(r"\[\[\s(?:[^]'\"\\]|\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\"|\](?!\]))*+\]\]", re.DOTALL)
# What ends a line and its command, though it looks as if it continued them.
_BROKEN = re.compile(r"(\\[ \t]+|\\\\[ \t]*|\^[ \t]*|`[ \t]*)(?=\r?\n)")
_BROKEN_BY = {
    "\\": "a blank follows the backslash at its end",
    "\\\\": "two backslashes at its end continue nothing",
    "^": "the ^ at its end continues a line in a .bat file only; write a backslash",
    "`": "the backtick at its end continues a line in PowerShell only; write a backslash",
}
_DECLARE = frozenset({"export", "declare", "typeset", "local", "readonly", "%env"})
_READ = frozenset({"read", "mapfile", "readarray", "getopts", "let"})
_DASHES = "-\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}"

Values = dict[str, list[str]]


@dataclass(frozen=True)
class Command:
    """A simple command: a program and its words, quotes removed, variables put in."""

    environment: dict[str, Word]
    """Variables before the program, and those exported earlier in the text."""
    words: list[Word]
    comments: list[str]
    """Lines of comment since the command before it, and behind it on its last line, without the #."""
    line: int
    """Where it begins, from 1."""
    last_line: int
    ended: str
    """Why it ends there."""
    is_rest: bool
    """Whether its words can only be arguments of the command before it."""
    defaults: list[str]
    """Expansions so far whose default was taken: ${2:-0}."""


def read_commands(text: str, place: str, folder: Path | None = None) -> list[Command]:
    """The simple commands of a shell text, in the order in which they run.

    Args:
        text: one command line, or a script.
        place: what it is called in errors: a file's name, say.
        folder: of the script, where it is a file.

    Raises:
        SpecError: it is no shell text, with line and column, or more than any sensible script.
    """
    if len(text) > MAX_CHARS:
        raise SpecError(f"{place} has more than {MAX_CHARS} characters, more than any sensible script")
    return _Reader(text.removeprefix("\ufeff"), place, folder).read()


@dataclass
class _Block:
    """What a keyword opened: a branch, a loop, a group or a function."""

    closer: str
    before: Values
    chain: Values | None  # before a condition that the block itself hangs on
    is_function: bool = False
    ends: list[Values] = field(default_factory=list)
    is_complete: bool = False  # one of the branches is taken for certain
    is_pattern: bool = False  # a pattern of `case` comes next
    name: str = ""
    words: list[Word] | None = None  # of a `for` whose words are known: those to come
    body: int = 0


class _Reader(WordReader):
    """Reads a text from its beginning; variables are as they stand at the place that is read."""

    def __init__(self, text: str, place: str, folder: Path | None) -> None:
        super().__init__(text, place, folder)
        self._starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self._commands: list[Command] = []
        self._exported: dict[str, None] = {}
        self._blocks: list[_Block] = []
        self._chain: Values | None = None
        self._documents: list[str] = []
        self._comments: list[str] = []
        self._is_broken = False
        """Whether the command before looks as if it went on."""

    def read(self) -> list[Command]:
        if mark := re.search(f"[{ONE}-{EMPTY}]", self.text):
            raise self.fail("it holds a control character", mark.start())
        while self._skip_lines() < len(self.text):
            top = self._blocks[-1] if self._blocks else None
            if fence := _FENCE.match(self.text, self.at):
                self.at = fence.end()
                continue
            found = _KEYWORD.match(self.text, self.at)
            test = _TEST.match(self.text, self.at)
            if top and top.is_pattern and not (found and found[0] == "esac"):
                self._pattern(top)
            elif test or self.text.startswith("((", self.at):
                start, self.at = self.at, test.end() if test else self.closing(self.at)
                inner = self.text[start : self.at]
                if not test and re.search(r"(?<![=<>!])=(?!=)|\+\+|--", inner):
                    self._forget(re.findall(NAME, inner))
                self._join(asks=True)
            elif found:
                self.at = found.end()
                self._keyword(found[0], top)
            elif function := _FUNCTION.match(self.text, self.at):
                self.at = function.end() + 1
                self._open(_CLOSERS[self.text[self.at - 1]]).is_function = True
                self._forget_assigned()
            else:
                self._simple()
        if self._blocks:
            raise self.fail(f"`{self._blocks[-1].closer}` is missing", len(self.text))
        return self._commands

    # keywords

    def _keyword(self, word: str, top: _Block | None) -> None:
        if word in _CLOSERS:
            opened = self._open(_CLOSERS[word])
            if word == "for":
                self._for(opened)
            elif word in ("while", "until"):
                self._forget_assigned()
            elif word == "case":
                found = _IN_CASE.match(self.text, self.at)
                self.at, opened.is_pattern = found.end() if found else self.at, True
        elif top and (word in ("elif", "else") or word.startswith(";")):
            top.ends.append(self.values)
            self.values = dict(top.before)
            top.is_complete |= word == "else"
            top.is_pattern = word.startswith(";")
        elif top and word == top.closer:
            self._close(top)
        elif word not in ("then", "do", "time", "!"):
            raise self.fail(f"unexpected `{word}`", self.at - len(word))
        elif top and word == "do":
            top.body = self.at

    def _open(self, closer: str) -> _Block:
        self.charge(200 + len(self.values))
        self._blocks.append(_Block(closer, dict(self.values), self._chain))
        self._chain = None
        if len(self._blocks) > MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} commands within each other", self.at)
        return self._blocks[-1]

    def _close(self, top: _Block) -> None:
        if top.words:
            self.charge(200)
            self.values[top.name] = [top.words.pop(0).marked]
            self.at = top.body
            return
        self._blocks.pop()
        self._chain = top.chain
        if top.closer == ")":
            self.values = top.before
        elif top.words is None and (top.closer != "}" or top.is_function):
            self._merge(*top.ends, self.values, *([] if top.is_complete else [top.before]))
        self._join(asks=False)

    def _for(self, opened: _Block) -> None:
        """Read the head of a loop, and begin with its first word."""
        words: list[Word] = []
        if self.text.startswith("((", self._skip_blanks()):
            self.at = self.closing(self.at)
        elif found := _FOR.match(self.text, self.at):
            opened.name, self.at = found[1], found.end()
            while found[2] and self._skip_blanks() < len(self.text) and not _OPERATOR.match(self.text, self.at):
                words += self.words()
            self._forget([opened.name])
        self.at += self.text.startswith(";", self.at)
        if words and not any(word.unknown for word in words):
            self.values[opened.name] = [words.pop(0).marked]
            opened.words = words
        else:
            self._forget_assigned()

    def _pattern(self, top: _Block) -> None:
        found = _PATTERN.match(self.text, self.at)
        if found is None:
            raise self.fail("`)` is missing", self.at)
        self.at, top.is_pattern = found.end(), False
        top.is_complete |= found[1].strip() == "*"

    def _join(self, asks: bool) -> None:
        """Pass what joins a command to the next one.

        A command left of && is taken to succeed, as cd does, unless it only asks something.
        """
        while redirection := _REDIRECTION.match(self.text, self._skip_blanks()):
            self._redirect(redirection)
        found = _OPERATOR.match(self.text, self.at)
        operator = found[0] if found else ""
        self.at += len(operator.strip("\n"))  # a line's end is passed with the here-documents that begin there
        if self._chain is None and (operator == "||" or (operator == "&&" and asks)):
            self._chain = dict(self.values)
        elif self._chain is not None and operator not in ("&&", "||", "|"):
            self._merge(self._chain, self.values)
            self._chain = None

    # variables

    def _forget(self, names: list[str]) -> None:
        self.values |= {name: [f"{ONE}${name}{ONE}"] for name in names}

    def _forget_assigned(self) -> None:
        """What runs later, or again, finds variables as the rest of the text may have set them by then."""
        self.charge(len(self.text) - self.at)
        later = {found[1] for found in _ASSIGNMENT.finditer(self.text, self.at)}
        self._forget([name for name in self.values if name in later])

    def _merge(self, *states: Values) -> None:
        """After one of several ways was taken: variables as far as all agree."""
        merged = dict(states[0])
        for state in states[1:]:
            self.charge(len(state))
            for name in merged.keys() | state.keys():
                one, other = merged.get(name), state.get(name)
                if one != other:
                    self.charge(len("".join([*(one or []), *(other or [])])))
                    merged[name] = _common(name, one or [], other or [])
        self.values = merged

    def _assign(self, found: re.Match[str]) -> str:
        """Read and do NAME=VALUE, NAME+=VALUE or NAME=(WORD ...)."""
        name, item, adds = found.groups()
        self.at = found.end()
        before = self.values.get(name, []) if adds else []
        if self.text.startswith("(", self.at):
            value, self.at = [*before], self.at + 1
            while not self.text.startswith(")", self._skip_lines()):
                item = item or self.text.startswith("[", self.at)  # [key]=word
                value += [word.marked for word in self.words()]
            self.at += 1
        else:
            value = ["".join(before[:1]) + self.expand(len(self.text), splits=False).replace(EMPTY, ""), *before[1:]]
        self.values[name] = [f"{MANY}${name}{MANY}"] if item else value
        return name

    # simple commands

    def _simple(self) -> None:
        text, start, before = self.text, self.at, self.values
        words, names, own, reason = list[Word](), list[str](), before, ""
        while (at := self._skip_blanks()) < len(text) and not _OPERATOR.match(text, at) and text[at] not in ";)":
            if text[at] == "#":
                row = self._line_of(at) - 1
                if not text[self._starts[row] : at].strip() and text[: self._starts[row]].rstrip("\r\n").endswith("\\"):
                    reason = f"a comment in line {row + 1} ended it"
                self._comment()
            elif broken := _BROKEN.match(text, at):
                reason = f"line {self._line_of(at)}: {_BROKEN_BY[broken[0].strip()]}"
                self.at = broken.end()
            elif redirection := _REDIRECTION.match(text, at):
                self._redirect(redirection)
            elif (not words or words[0] in _DECLARE) and (assignment := _ASSIGNMENT.match(text, at)):
                self.values = dict(self.values)
                names.append(self._assign(assignment))
            else:
                if not words:  # what stands before a command is its own, and is not put into its words
                    own, self.values = self.values, before
                words += self.words()
        is_rest = bool(words) and words[0][:1] in _DASHES and len(words[0]) > 1
        if names and not words and self._is_broken:
            words, is_rest = [Word(text[start:at].strip())], True
        if words and words[0] in _DECLARE:
            names += [word for word in words[1:] if not word.startswith("-")]
            if words[0] in ("export", "%env") or "-x" in words:
                removes = "-n" in words
                self._exported = {name: None for name in [*self._exported, *names] if not (removes and name in names)}
        elif words:
            ended = reason or self._ended_by(at)
            self._is_broken = is_rest or bool(reason) or ended.endswith("is empty")
            given = {name: Word(" ".join(own[name])) for name in names} if own is not before else {}
            self._emit(start, words, given, ended, is_rest)
        self._join(asks=bool(words) and words[0] in ("[", "test"))

    def _ended_by(self, at: int) -> str:
        row = self._line_of(at)
        if at < len(self.text) and self.text[at] != "\n":
            return f"`{self.text[at]}` in line {row} ended it"
        is_empty = not self.text[self._starts[row - 1] : at].strip()
        return f"line {row} is empty" if is_empty else f"line {row} ends without a backslash"

    def _emit(self, start: int, words: list[Word], own: dict[str, Word], ended: str, is_rest: bool) -> None:
        self.charge(100 + 16 * len(self._exported))
        exported = {name: Word(" ".join(self.values[name])) for name in self._exported if name in self.values}
        lines, comments = (self._line_of(start), self._line_of(self.at)), self._comments
        self._comments = []
        self._commands.append(Command(exported | own, words, comments, *lines, ended, is_rest, list(self.defaults)))
        if words[0] in _READ:
            self._forget([word for word in words[1:] if re.fullmatch(NAME, word)])
        elif words[0] == "unset":
            self.values = {name: value for name, value in self.values.items() if name not in words[1:]}

    # lines

    def _line_of(self, at: int) -> int:
        return bisect_right(self._starts, at)

    def _skip_blanks(self) -> int:
        found = _BLANKS.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at

    def _skip_lines(self) -> int:
        """Pass blanks, comments, line ends and the here-documents that begin there."""
        while self._skip_blanks() < len(self.text) and self.text[self.at] in "#\n":
            if self.text[self.at] == "#":
                self._comment()
                continue
            self.at += 1
            for delimiter in self._documents:
                found = re.compile(f"^{delimiter}\r?$", re.MULTILINE).search(self.text, self.at)
                self.at = min(found.end() + 1, len(self.text)) if found else len(self.text)
            self._documents = []
        return self.at

    def _comment(self) -> None:
        end = self.text.find("\n", self.at)
        start, self.at = self.at, len(self.text) if end < 0 else end
        if not self.text.startswith("#!", start):
            self._comments.append(self.text[start + 1 : self.at].strip())

    def _redirect(self, found: re.Match[str]) -> None:
        self.at = found.end()
        start = self._skip_blanks()
        self.expand(len(self.text))
        if found[1] in ("<<", "<<-"):
            delimiter = re.escape(re.sub(r"[\\'\"]", "", self.text[start : self.at]))
            self._documents.append(("\t*" if found[1] == "<<-" else "") + delimiter)


def _common(name: str, one: list[str], other: list[str]) -> list[str]:
    """What two ways agree on: the common beginning, and that more is not known."""
    pair, unknown = [one, other], f"{MANY}${name}{MANY}"
    is_text = len(one) == len(other) == 1
    if is_text:
        pair = [BLANK_OR_MARKED.sub(lambda each: each[1] or BREAK, value).split(BREAK) for value in (*one, *other)]
    same = [item for item, _ in takewhile(lambda each: each[0] == each[1], zip(*pair, strict=False))]
    return [" ".join([*same, unknown])] if is_text else [*same, unknown]
