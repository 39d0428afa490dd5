"""The tokens of a POSIX shell's text: words as written, operators, line ends.

Covered: quotes of every kind, line continuations, comments, here-documents and redirections (passed over), `$(...)`,
`${...}`, arithmetic, the arrays and process substitutions of bash.
Not covered: what a word says (shell_words.py); which tokens make a command (shell_grammar.py).
Pure: nothing is run or opened.
"""

import re
from typing import NamedTuple

MAX_DEPTH = 50  # of one construct within another

NAME = "[A-Za-z_][A-Za-z0-9_]*"
ASSIGNMENT = re.compile(rf"({NAME})(?:\[([^]]*)\])?(\+?)=", re.ASCII)
# A line may end within a name too.
PARAMETER = re.compile(r"\$(?:([A-Za-z_](?:(?:\\\r?\n)*[A-Za-z0-9_])*)|[0-9@*#?$!-])", re.ASCII)
_OPERATOR = re.compile(r"&>>|&>|&&|\|\||\|&|;;&|;&|;;|<<<|<<-|<<|<>|<&|>>|>&|>\||[;&|()<>]")
_REDIRECTIONS = frozenset({"&>>", "&>", "<<<", "<<-", "<<", "<>", "<&", ">>", ">&", ">|", "<", ">"})
_META = frozenset(" \t\n;&|()<>")
# What a command can follow, beside operators: for finding the `case` of a command in $(...).
_BEFORE_COMMAND = frozenset({"if", "then", "elif", "else", "while", "until", "do", "{", "!"})


class ShellError(Exception):
    """What is wrong with a shell's text, and at which character."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.at = at


class Token(NamedTuple):
    """A word, an operator, the end of a line or of the text."""

    kind: str
    """word, operator, newline or end."""
    text: str
    """As written."""
    at: int
    end: int
    redirected: bool = False
    """Whether a redirection stands right before it."""


class Lexer:
    """The tokens of a text from some character on; redirections and here-documents are passed over."""

    def __init__(self, text: str, at: int = 0, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise ShellError(f"more than {MAX_DEPTH} constructs within each other", at)
        self.text = text
        self.at = at
        self.depth = depth
        self.comments: list[tuple[int, str]] = []
        """Where each comment begins, and its text; whoever reads the tokens takes them."""
        self._documents: list[tuple[str, bool]] = []

    def next(self) -> Token:
        text, redirected = self.text, False
        while self.at < len(text):
            start, char = self.at, text[self.at]
            if blank := _blank(text, start):
                self.at += blank
            elif char == "#":
                end = text.find("\n", start)
                self.at = len(text) if end < 0 else end
                self.comments.append((start, text[start + 1 : self.at]))
            elif char == "\n":
                self.at += 1
                self._pass_documents()
                return Token("newline", "\n", start, start + 1, redirected)
            elif char in _META and not is_process_substitution(text, start):
                operator = _operator_at(text, start)
                self.at += len(operator)
                if operator not in _REDIRECTIONS:
                    return Token("operator", operator, start, self.at, redirected)
                self._pass_target(operator, start)
                redirected = True
            else:
                self.at = word_end(text, start, self.depth)
                word = re.sub(r"(?:\\\r?\n)+\Z", "", text[start : self.at])  # a line's end within a word is nothing
                is_descriptor = word.isdecimal() and self.at < len(text) and text[self.at] in "<>"
                if not is_descriptor:  # the 2 of 2>&1
                    return Token("word", word, start, self.at, redirected)
        return Token("end", "", len(text), len(text), redirected)

    def _pass_target(self, operator: str, start: int) -> None:
        text = self.text
        while blank := _blank(text, self.at):
            self.at += blank
        begin = self.at
        self.at = word_end(text, begin, self.depth)
        target = text[begin : self.at]
        is_next = target.isdecimal() and text[self.at : self.at + 1] in ("<", ">") and operator[-1:] != "&"
        if not target or target.startswith("#") or is_next:  # > 2> file: the 2 belongs to what follows
            raise ShellError(f"a file is missing after {operator}", start)
        if operator in ("<<", "<<-"):
            self._documents.append((re.sub(r"[\\'\"]", "", target), operator == "<<-"))

    def _pass_documents(self) -> None:
        for delimiter, without_tabs in self._documents:
            while self.at < len(self.text):
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                line = self.text[self.at : end]
                self.at = min(end + 1, len(self.text))
                if (line.lstrip("\t") if without_tabs else line).removesuffix("\r") == delimiter:
                    break
        self._documents.clear()


def _blank(text: str, at: int) -> int:
    """How many characters of a blank, a continued line, or the first half of Windows' line end stand here."""
    if text.startswith((" ", "\t", "\r\n"), at):
        return 1
    return continuation(text, at)


def continuation(text: str, at: int) -> int:
    """How many characters a backslash at the end of a line is: 2, 3 with Windows' line ends, 0 where there is none."""
    return 2 if text.startswith("\\\n", at) else 3 if text.startswith("\\\r\n", at) else 0


def _operator_at(text: str, at: int) -> str:
    found = _OPERATOR.match(text, at)
    return found[0] if found else text[at]


def is_process_substitution(text: str, at: int) -> bool:
    return text[at] in "<>" and text.startswith("(", at + 1)


def word_end(text: str, at: int, depth: int) -> int:
    """Where the word that begins at a character ends."""
    start = at
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += continuation(text, at) or 2
        elif char in "'\"`$":
            at = quoted_end(text, at, depth)
        elif is_process_substitution(text, at):
            at = list_end(text, at + 2, depth + 1)
        elif char == "(" and ASSIGNMENT.fullmatch(text, start, at):
            at = list_end(text, at + 1, depth + 1)
        elif char in _META or text.startswith("\r\n", at):
            break
        else:
            at += 1
    return min(at, len(text))


def list_end(text: str, at: int, depth: int) -> int:
    """Where the commands, or the words of an array, that begin at a character end: after their ')'."""
    lexer, begin = Lexer(text, at, depth), at
    parentheses = cases = 0
    starts = True
    while (token := lexer.next()).kind != "end":
        if token.text == "(" and token.kind == "operator":
            parentheses += 1
        elif token.text == ")" and token.kind == "operator":
            if parentheses == 0 and cases == 0:
                return token.end
            parentheses = max(0, parentheses - 1)  # none is open: it ends a pattern of case
        elif starts and token.text in ("case", "esac"):
            cases = max(0, cases + (1 if token.text == "case" else -1))
        starts = token.kind != "word" or token.text in _BEFORE_COMMAND
    raise ShellError("( is never closed", begin - 1)


def arithmetic_end(text: str, at: int) -> int | None:
    """Where the ((...)) that begins at a character ends; None where it is something else."""
    level, inner = 0, -1
    for found in re.compile(r"[()]").finditer(text, at):
        level += 1 if found[0] == "(" else -1
        if level == 1:
            inner = found.start()
        elif level == 0:
            return found.end() if inner == found.start() - 1 else None
    return None


def quoted_end(text: str, at: int, depth: int, within: bool = False) -> int:
    """Where what a quote, a backtick or a dollar begins ends.

    Args:
        text: all of it.
        at: where the quote stands.
        depth: of the construct that it stands in.
        within: whether that is a text in double quotes.
    """
    if depth > MAX_DEPTH:
        raise ShellError(f"more than {MAX_DEPTH} constructs within each other", at)
    char, following = text[at], text[at + 1 : at + 2]
    if char == "'" or (char == "$" and following == "'" and not within):
        return _single_end(text, at, escapes=char == "$")
    if char == '"' or (char == "$" and following == '"' and not within):
        return _closing(text, at + (2 if char == "$" else 1), depth, '"', at)
    if char == "`":
        found = re.compile(r"(?:[^`\\]|\\.)*`", re.DOTALL).match(text, at + 1)
        if found is None:
            raise ShellError("` is never closed", at)
        return found.end()
    if following == "{":
        return _closing(text, at + 2, depth, "}", at, within)
    if following == "(":
        arithmetic = arithmetic_end(text, at + 1) if text.startswith("$((", at) else None
        return arithmetic or list_end(text, at + 2, depth + 1)
    named = PARAMETER.match(text, at)
    return named.end() if named else at + 1


def _single_end(text: str, at: int, escapes: bool) -> int:
    pattern = r"\$'(?:[^'\\]|\\.)*'" if escapes else "'[^']*'"
    found = re.compile(pattern, re.DOTALL).match(text, at)
    if found is None:
        raise ShellError("' is never closed", at)
    return found.end()


def _closing(text: str, at: int, depth: int, mark: str, begin: int, within: bool = False) -> int:
    """After the mark that closes a text in double quotes or a ${...}."""
    in_text = mark == '"' or within
    while at < len(text):
        char = text[at]
        if char == mark:
            return at + 1
        if char == "\\":
            at += 2
        elif char in "`$" or (char in "\"'" and mark == "}"):  # to bash ' protects a } even within double quotes
            at = quoted_end(text, at, depth + 1, in_text)
        else:
            at += 1
    raise ShellError(f"{'${' if mark == '}' else mark} is never closed", begin)
