"""The commands of a shell text, as a shell would start them. Nothing of the text is run, no file is opened.

After a branch or a loop a variable is known as far as all ways agree. Functions are read where they are defined.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.importing.shell_words import BREAK, EMPTY, MANY, NAME, Values, Word, WordReader

MAX_CHARS = 1 << 16
_BLANKS = re.compile(r"(?:[ \t]|\\\r?\n|\r(?=\n))*+")
_FENCE = re.compile(r"```[^\n]*|!(?=[\w/])")  # Markdown's, and what a notebook has before a command
_KEYWORD = re.compile(
    r"(?:if|then|elif|else|fi|for|while|until|do|done|case|esac|time|[{}!])(?=[\s;&|()<>]|\Z)|;;&?|;&|[()]"
)
# What begins a part that may be passed over, and what ends one; the last of these ends all.
_STOPS = {"if": ("elif", "else", "fi"), "case": (";;", ";&", ";;&", "esac"), "while": ("done",), "until": ("done",)}
_COMPOUND = {"(", "{", "for", *_STOPS}
_OPERATOR = re.compile(r"&&|\|\||\|&?|;(?![;&])|&(?!>)|\n")
_REDIRECTION = re.compile(r"(?:[0-9]+|\{\w+\})?(<<<|<<-?|<>|<&|&>>?|>>|>&|>\||<|>)(?!\()")
_FUNCTION = re.compile(r"(?:function[ \t]+[\w.:-]+(?:[ \t]*\(\s*\))?|[\w.:-]+[ \t]*\([ \t]*\))\s*(?=[{(])")
_ASSIGNMENT = re.compile(rf"({NAME})(\[[^]\n]*\])?(\+?)=")
_FOR = re.compile(rf"\s*({NAME})\s*(in(?=[\s;]))?")
_IN_CASE = re.compile(r"[^\n]*?\bin(?=\s)")
_PATTERN = re.compile(r"\(?([^()\n]*)\)")
_TEST = re.compile(r"\[\[\s(?:[^]'\"\\]|\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\"|\](?!\]))*+\]\]", re.DOTALL)
# What looks as if it continued a line: a blank after the backslash, two of them, ^ and ` of other shells.
_BROKEN = re.compile(r"(\\[ \t]+|\\\\[ \t]*|\^[ \t]*|`[ \t]*)(?=\r?\n)")
_DECLARE = frozenset({"export", "declare", "typeset", "local", "readonly", "%env"})
_CHANGES = frozenset({"read", "mapfile", "readarray", "getopts", "let", "unset"})


@dataclass(frozen=True)
class Command:
    """A simple command: a program and its words, quotes removed, variables put in."""

    environment: dict[str, Word]  # variables before the program, and those exported earlier in the text
    words: list[Word]
    line: int
    defaults: list[str]  # expansions so far whose default was taken: ${2:-0}


def read_commands(text: str, place: str, folder: Path | None = None) -> list[Command]:
    """The simple commands of a command line or a script, which lies in `folder`, in the order in which they run.

    Raises SpecError: it is no shell text, with `place`, line and column, or more than any sensible script.
    """
    if len(text) > MAX_CHARS:
        raise SpecError(f"{place} has more than {MAX_CHARS} characters, more than any sensible script")
    reader = _Reader(text.removeprefix("\ufeff"), place, folder)
    if mark := re.search("[\0-\3]", reader.text):
        raise reader.fail("it holds a control character", mark.start())
    try:
        reader.read()
    except RecursionError:
        raise reader.fail("its parts are nested too deeply", reader.at) from None
    return reader.commands


class _Reader(WordReader):
    def __init__(self, text: str, place: str, folder: Path | None) -> None:
        super().__init__(text, place, folder)
        self.commands: list[Command] = []
        self.exported: dict[str, None] = {}
        self.documents: list[str] = []

    def read(self, *stops: str) -> str:
        """Read commands up to one of some keywords, which is returned, or to the end of the text."""
        before_condition: Values | None = None
        while self._skip_lines() < len(self.text):
            asks, keyword = False, _KEYWORD.match(self.text, self.at)
            if found := _TEST.match(self.text, self.at):
                self.at, asks = found.end(), True
            elif keyword and keyword[0] in stops:
                self.at = keyword.end()
                return keyword[0]
            elif keyword and keyword[0] in _COMPOUND:
                self.at, asks = keyword.end(), keyword[0] == "("
                self._compound(keyword[0])
            elif found := keyword or _FENCE.match(self.text, self.at):  # then, do, time, !: what follows is a command
                self.at = found.end()
                continue
            elif found := _FUNCTION.match(self.text, self.at):
                self.at = found.end() + 1
                self._branches("function", "}" if self.text[self.at - 1] == "{" else ")")
            else:
                asks = self._simple()
            while redirection := _REDIRECTION.match(self.text, self._skip_blanks()):
                self._redirect(redirection)
            joins = _OPERATOR.match(self.text, self.at)
            operator = joins[0] if joins else ""
            self.at += len(operator.strip("\n"))  # a line's end is passed with the here-documents that begin there
            # A command left of && is taken to succeed, as cd does, unless it only asks something.
            if before_condition is None and (operator == "||" or (operator == "&&" and asks)):
                before_condition = self.values
            elif before_condition is not None and operator not in ("&&", "||", "|"):
                self.values = self.merged(before_condition, self.values)
                before_condition = None
        if stops:
            raise self.fail(f"`{stops[-1]}` is missing", len(self.text))
        return ""

    def _compound(self, word: str) -> None:
        before = self.values
        if word == "(" and self.text.startswith("(", self.at):  # arithmetic
            start, self.at = self.at, self.closing(self.at - 1)
            self.forget(re.findall(NAME, self.text[start : self.at]))
        elif word == "(":
            self.read(")")
            self.values = before
        elif word == "{":
            self.read("}")
        elif word == "for":
            self._for()
        else:
            self._branches(word, *_STOPS[word])

    def _branches(self, word: str, *stops: str) -> None:
        """Read what may be passed over: branches up to the last of some keywords."""
        stop, before = "", self.values
        merged = before
        if word == "case" and (found := _IN_CASE.match(self.text, self.at)):
            self.at = found.end()
        elif word != "if":
            # What runs again or later finds variables as the text below may have set them by then.
            later = {found[1] for found in _ASSIGNMENT.finditer(self.text, self.at)}
            self.forget([name for name in self.values if name in later])
        while stop != stops[-1]:
            if word == "case" and not self.text.startswith("esac", self._skip_lines()):
                pattern = _PATTERN.match(self.text, self.at)
                self.at = pattern.end() if pattern else len(self.text)
            stop = self.read(*stops)
            merged = self.merged(merged, self.values)
            self.values = before
        self.values = merged

    def _for(self) -> None:
        if found := _FOR.match(self.text, self.at):
            self.at = found.end()
            while found[2] and self._skip_blanks() < len(self.text) and not _OPERATOR.match(self.text, self.at):
                self.words()
            self.forget([found[1]])
        self.at += self.text.startswith(";", self.at)
        self._branches("for", "done")

    def _simple(self) -> bool:
        """Read a simple command; whether it only asks something."""
        text, start, before = self.text, self.at, self.values
        words, names, own = list[Word](), list[str](), before
        while (at := self._skip_blanks()) < len(text) and not _OPERATOR.match(text, at) and text[at] not in ";)":
            if text[at] == "#":
                self._comment()
            elif broken := _BROKEN.match(text, at):
                self.at = broken.end()
            elif redirection := _REDIRECTION.match(text, at):
                self._redirect(redirection)
            elif (not words or words[0] in _DECLARE) and (assignment := _ASSIGNMENT.match(text, at)):
                names.append(self._assign(assignment))
            else:
                if not words:  # what stands before a command is its own, and is not put into its words
                    own, self.values = self.values, before
                words += self.words()
        if not words:
            return False
        if words[0] in _DECLARE:
            names += [word for word in words[1:] if not word.startswith("-")]
            self.exported |= dict.fromkeys(names) if words[0] in ("export", "%env") else {}
            return False
        self.charge(100 + 16 * len(self.exported))
        variables = {name: self.values[name] for name in self.exported if name in self.values}
        variables |= {name: own[name] for name in names if own is not before}
        environment = {name: Word(" ".join(value)) for name, value in variables.items()}
        self.commands.append(Command(environment, words, bisect_right(self.starts, start), list(self.defaults)))
        if words[0] in _CHANGES:
            self.forget([word for word in words[1:] if re.fullmatch(NAME, word)])
        return words[0] in ("[", "test")

    def _assign(self, found: re.Match[str]) -> str:
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
            text = self.expand().replace(BREAK, " ").replace(EMPTY, "")
            value = ["".join(before[:1]) + text, *before[1:]]
        self.values = self.values | {name: [f"{MANY}${name}{MANY}"] if item else value}
        return name

    def _skip_blanks(self) -> int:
        found = _BLANKS.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at

    def _skip_lines(self) -> int:
        while self._skip_blanks() < len(self.text) and self.text[self.at] in "#\n":
            if self.text[self.at] == "#":
                self._comment()
                continue
            self.at += 1
            for delimiter in self.documents:
                found = re.compile(f"^{delimiter}\r?$", re.MULTILINE).search(self.text, self.at)
                self.at = min(found.end() + 1, len(self.text)) if found else len(self.text)
            self.documents = []
        return self.at

    def _comment(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def _redirect(self, found: re.Match[str]) -> None:
        self.at = found.end()
        start = self._skip_blanks()
        self.expand()
        if found[1] in ("<<", "<<-"):
            delimiter = re.escape(re.sub(r"[\\'\"]", "", self.text[start : self.at]))
            self.documents.append(("\t*" if found[1] == "<<-" else "") + delimiter)
