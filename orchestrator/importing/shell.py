"""The commands of a shell's text, pasted or from a script, as the shell would start them: nothing of it is run.

Covered: POSIX quoting and splitting, line continuations, comments, here-documents, redirections, pipes, lists, groups,
functions, if, case and loops; arrays, [[ ]] and (( )) of bash; variables that the text itself sets, those exported as
the environment of the commands after it. Where a value depends on which way the text runs (a branch, a loop, a
function called later) it is not known, and said so.
Not covered: Windows and zsh; what sourced files set; `eval`; the value of $IFS.
Pure: nothing is run, no file is opened, our own environment is not read.

Written here, since no parser on PyPI tells words apart as a shell does: tree-sitter-bash 0.25.1 is made for
highlighting (without an error it takes the line after `a | b | c > log` for arguments of c, and the flags after `> log`
for files), bashlex is GPL and rests since 2023, shfmt is a program whose JSON is hundreds of times the text. The tests
compare with bash itself.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from orchestrator.errors import SpecError
from orchestrator.importing.shell_grammar import (
    DECLARE,
    READ,
    Assignment,
    Block,
    Chain,
    Node,
    Parser,
    Simple,
    Test,
    assigned,
    assignment_in,
)
from orchestrator.importing.shell_tokens import NAME, Lexer, ShellError, Token
from orchestrator.importing.shell_words import Expander, Variable
from orchestrator.specs.excerpt import block, excerpt

MAX_CHARS = 1 << 20
MAX_VARIABLES = 1000
MAX_EXPORTED = 200
_TESTS = frozenset({"[", "test"})


@dataclass(frozen=True)
class Command:
    """A simple command as the shell would start it."""

    environment: dict[str, str]
    """Variables before the program, and those exported earlier in the text."""
    words: list[str]
    """The program and its arguments: quotes removed, variables put in."""
    comments: list[str]
    """Lines of comment since the command before it, and behind it on its own last line, without the #."""
    line: int
    """Where it begins, from 1."""
    unresolved: list[str]
    """Parts of its words and variables that only running the text would tell, as they are written, there too."""


def read_commands(text: str, place: str) -> list[Command]:
    """The simple commands of a shell's text, in order.

    Args:
        text: one command line, or a whole script.
        place: what it is called in errors: a file's name, say.

    Raises:
        SpecError: it is no shell text, with line and column, or more than any sensible script.
    """
    if len(text) > MAX_CHARS:
        raise SpecError(f"{place} has more than {MAX_CHARS} characters, more than any sensible script")
    text = text.removeprefix("\ufeff")
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    lines = [line.removesuffix("\r") for line in lines]
    try:
        if "\0" in text:
            raise ShellError("a null byte is no text", text.index("\0"))
        reader = _Reader(starts)
        reader.walk(Parser(text).read_all())
    except ShellError as error:
        row = bisect_right(starts, min(error.at, len(text))) - 1
        column = min(error.at, len(text)) - starts[row]
        at = f"{place}:{row + 1}:{column + 1}"
        message = f"no shell text that can be read: {error.message}"
        raise SpecError("\n".join(block(message, at, excerpt(lines, row, column), []))) from error
    return reader.commands


@dataclass
class _Reader:
    """The commands of a text, with the variables as they stand when each is reached."""

    starts: list[int]
    commands: list[Command] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)
    _at: int = 0
    _spent: int = 0
    _everywhere: Counter[str] = field(default_factory=Counter)
    _comments: list[str] = field(default_factory=list)

    def walk(self, chains: list[Chain]) -> None:
        self._everywhere = assigned(chains)
        self._walk(chains)

    def _walk(self, chains: list[Chain]) -> None:
        for chain in chains:
            entry = dict(self.variables) if len(chain) > 1 else {}
            is_conditional = False
            previous: Node | None = None
            for operator, node in chain:
                # a command left of && is taken to succeed, as cd does, unless it asks something
                is_conditional |= operator == "||" or (operator == "&&" and _asks(previous))
                self._reach(node)
                previous = node
            if is_conditional:
                self.variables = _merged([entry, self.variables])

    def _reach(self, node: Node) -> None:
        if isinstance(node, Simple):
            self._simple(node)
        elif isinstance(node, Test):
            self._forget(node.names)
        elif node.kind == "group":
            self._walk(node.bodies[0])
        else:
            self._block(node)

    def _block(self, node: Block) -> None:
        entry = dict(self.variables)
        ends = [] if node.kind == "branches" and node.complete else [entry]
        for body in node.bodies:
            self.variables = dict(entry)
            if node.kind == "loop":  # it may have run before, and what it sets be set already
                self._forget({*node.names, *assigned(body)})
            elif node.kind == "function":  # called later: what is set more than once may be set otherwise by then
                self._forget(name for name in self.variables if self._everywhere[name] > 1)
            self._walk(body)
            ends.append(self.variables)
        self.variables = entry if node.kind == "subshell" else _merged(ends or [entry])

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            given = self.variables.get(name, Variable(None))
            self.variables[name] = replace(given, value=None, written=f"${name}", unresolved=(f"${name}",))

    def _simple(self, node: Simple) -> None:
        expander = Expander(self.variables, spent=self._spent)
        tokens = list(node.words)
        self._at = tokens[0].at if tokens else self._at
        self._comments += [comment.strip() for comment in node.comments]
        assignments = []
        while tokens and (assignment := assignment_in(tokens[0])):
            assignments.append(assignment)
            tokens.pop(0)
        if not tokens or tokens[0].text in DECLARE:
            self._declare(assignments, tokens, expander)
        else:
            own = {each.name: self._value(each, expander).written for each in assignments}
            found = [word for token in tokens for word in expander.fields(token.text)]
            if found:
                self._note_changes(found)
                self._append(own, found, expander.unresolved)
        self._spent = expander.spent

    def _append(self, own: dict[str, str], words: list[str], unresolved: list[str]) -> None:
        exported = {name: each for name, each in self.variables.items() if each.exported}
        if len(exported) > MAX_EXPORTED:
            raise ShellError(f"more than {MAX_EXPORTED} exported variables", self._at)
        inherited = [part for name, each in exported.items() if name not in own for part in each.unresolved]
        environment = {name: each.written for name, each in exported.items()} | own
        line = bisect_right(self.starts, self._at)
        parts = list(dict.fromkeys([*unresolved, *inherited]))
        self.commands.append(Command(environment, words, self._comments, line, parts))
        self._comments = []

    def _note_changes(self, words: list[str]) -> None:
        if words[0] in READ:
            self._forget(word for word in words[1:] if re.fullmatch(NAME, word))
        elif words[0] == "unset":
            for name in words[1:]:
                self.variables.pop(name, None)

    def _declare(self, assignments: list[Assignment], tokens: list[Token], expander: Expander) -> None:
        """Set the shell's variables: NAME=VALUE alone, or after export, declare, local."""
        flags = "".join(token.text[1:] for token in tokens[1:] if token.text[:1] == "-")
        exports = bool(tokens) and (tokens[0].text == "export" or "x" in flags) and "n" not in flags
        for each in [*assignments, *(assignment_in(token) or token for token in tokens[1:])]:
            if isinstance(each, Assignment):
                before = self.variables.get(each.name, Variable(None))
                self.variables[each.name] = replace(self._value(each, expander), exported=exports or before.exported)
            elif each.text in self.variables:
                given = self.variables[each.text]
                is_exported = exports or (given.exported and "n" not in flags)
                self.variables[each.text] = replace(given, exported=is_exported)
        if len(self.variables) > MAX_VARIABLES:
            raise ShellError(f"more than {MAX_VARIABLES} variables", self._at)

    def _value(self, assignment: Assignment, expander: Expander) -> Variable:
        """What NAME=VALUE, NAME+=VALUE or NAME=(WORD ...) gives its variable."""
        right, name = assignment.right, assignment.name
        if assignment.item is not None or re.match(r"\(\s*\[", right):  # A[1]=x, A=([key]=x)
            return Variable(None, f"${name}", (f"${name}",))
        inner = Expander(expander.variables, spent=expander.spent)
        value: str | tuple[str, ...]
        if right.startswith("("):
            lexer = Lexer(right[1:-1])
            items: list[str] = []
            while (token := lexer.next()).kind != "end":
                items += inner.fields(token.text) if token.kind == "word" else []
            value = tuple(items)
        else:
            value = inner.text(right)
        before = self.variables.get(name)
        unresolved = list(inner.unresolved)
        if assignment.adds and before is not None:
            unresolved += before.unresolved
            value = _joined(before, value)
        expander.spent = inner.spent
        expander.unresolved += unresolved
        written = value if isinstance(value, str) else " ".join(value)
        is_known = not unresolved or isinstance(value, tuple)
        return Variable(value if is_known else None, written, tuple(unresolved))


def _joined(before: Variable, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    left = before.written if before.value is None else before.value
    if isinstance(left, str) and isinstance(value, str):
        return left + value
    return (*((left,) if isinstance(left, str) else left), *((value,) if isinstance(value, str) else value))


def _asks(node: Node | None) -> bool:
    """Whether a command asks something, so that what follows && may not be reached."""
    if isinstance(node, Simple):
        return bool(node.words) and node.words[0].text in _TESTS
    return isinstance(node, Test)


def _merged(states: list[dict[str, Variable]]) -> dict[str, Variable]:
    """Variables after one of several ways was taken: where they differ, the value is not known."""
    merged = dict(states[0])
    for state in states[1:]:
        for name in merged.keys() | state.keys():
            one, other = merged.get(name), state.get(name)
            if one != other:
                exported = bool((one and one.exported) or (other and other.exported))
                merged[name] = Variable(None, f"${name}", (f"${name}",), exported)
    return merged
