"""The structure of a POSIX shell's text: a recursive descent through the shell's grammar.

Covered: lists, pipes, groups, functions, if, case and loops, [[ ]] and (( )) of bash.
Not covered: what the words say (shell_words.py).
Pure: nothing is run or opened.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from orchestrator.importing.shell_tokens import ASSIGNMENT, MAX_DEPTH, NAME, Lexer, ShellError, Token, arithmetic_end

MAX_COMMANDS = 10_000
DECLARE = frozenset({"export", "declare", "typeset", "local", "readonly"})
READ = frozenset({"read", "mapfile", "readarray", "getopts"})
_CLOSERS = frozenset({"then", "elif", "else", "fi", "do", "done", "esac", "}"})
_CHANGED = re.compile(rf"({NAME})\s*(?:[-+*/%&|^]|<<|>>)?=(?!=)|({NAME})(?:\+\+|--)|(?:\+\+|--)({NAME})", re.ASCII)


@dataclass
class Simple:
    words: list[Token]
    comments: list[str]


@dataclass
class Test:
    """[[ ]] and (( )): no command, but they may set variables."""

    names: frozenset[str] = frozenset()


@dataclass
class Block:
    kind: str
    """group, subshell, branches, loop or function."""
    bodies: "list[list[Chain]]"
    complete: bool = False
    """Of branches: whether one of them is always taken."""
    names: frozenset[str] = frozenset()
    """Of a loop: its variables."""


Node = Simple | Test | Block
Chain = list[tuple[str, Node]]
"""Commands with the operator before each: '', &&, || or |."""


class Parser:
    """The structure of a text: a recursive descent through the grammar of POSIX's shell."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lexer = Lexer(text)
        self.token = self.lexer.next()
        self.depth = 0
        self.count = 0

    def read_all(self) -> list[Chain]:
        chains = self._list(may_be_empty=True)
        if self.token.kind != "end":
            self._refuse()
        return chains

    def _advance(self) -> Token:
        token = self.token
        self.token = self.lexer.next()
        return token

    def _is_operator(self, *texts: str) -> bool:
        return self.token.kind == "operator" and self.token.text in texts

    def _is_word(self, *texts: str) -> bool:
        """Whether a reserved word comes; behind a redirection it is a word like any other."""
        return self.token.kind == "word" and self.token.text in texts and not self.token.redirected

    def _refuse(self, wanted: str = "") -> NoReturn:
        found = {"end": "the end", "newline": "the end of the line"}.get(self.token.kind, f"`{self.token.text[:40]}`")
        raise ShellError(f"{wanted} expected, found {found}" if wanted else f"unexpected {found}", self.token.at)

    def _expect(self, text: str) -> None:
        if self.token.text != text or self.token.kind not in ("word", "operator"):
            self._refuse(f"`{text}`")
        self._advance()

    def _skip_newlines(self) -> None:
        while self.token.kind == "newline" and not self.token.redirected:  # `> file` alone is a command
            self._advance()

    def _list(self, may_be_empty: bool = False) -> list[Chain]:
        """Commands up to what closes the construct that they are in."""
        chains: list[Chain] = []
        while True:
            self._skip_newlines()
            is_over = self._is_operator(")", ";;", ";&", ";;&") or self._is_word(*_CLOSERS)
            if self.token.kind == "end" or is_over:
                break
            chains.append(self._chain())
            if self._is_operator(";", "&"):
                self._advance()
            elif self._is_word(*_CLOSERS) and not isinstance(chains[-1][-1][1], Simple):
                break  # { (a) }
            elif self.token.kind not in ("newline", "end") and not self._is_operator(")", ";;", ";&", ";;&"):
                self._refuse()
        if not chains and not may_be_empty and not self.token.redirected:
            self._refuse("a command")
        return chains

    def _chain(self) -> Chain:
        chain = [("", self._command(""))]
        while self._is_operator("&&", "||", "|", "|&"):
            operator = self._advance().text
            self._skip_newlines()
            chain.append((operator, self._command(operator)))
        return chain

    def _command(self, operator: str) -> Node:
        self.count += 1
        if self.count > MAX_COMMANDS:
            raise ShellError(f"more than {MAX_COMMANDS} commands", self.token.at)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ShellError(f"more than {MAX_DEPTH} constructs within each other", self.token.at)
        node = self._prefixed() if operator[:1] != "|" or operator == "||" else self._bare()
        self.token = self.token._replace(redirected=False)  # it was this command's
        self.depth -= 1
        return node

    def _prefixed(self) -> Node:
        while self._is_word("!", "time", "coproc"):
            if self._advance().text == "time" and self._is_word("-p"):
                self._advance()
            if self.token.kind in ("newline", "end") or self._is_operator(";", "&"):
                return Simple([], [])  # ! alone
        return self._bare()

    def _bare(self) -> Node:
        if self._is_word("!"):
            self._refuse()
        if self.token.kind == "word" and not self.token.redirected:
            compound = {
                "{": self._group, "if": self._if, "case": self._case, "while": self._while, "until": self._while,
                "for": self._for, "select": self._for, "function": self._function, "[[": self._test,
            }.get(self.token.text)  # fmt: skip
            return compound() if compound else self._simple()
        if self._is_operator("("):
            return self._subshell()
        return self._simple()

    def _simple(self) -> Node:
        words: list[Token] = []
        before, self.lexer.comments = self.lexer.comments, []
        if not self.token.redirected and (self.token.kind != "word" or self._is_word(*_CLOSERS)):
            self._refuse()
        while self.token.kind == "word":
            words.append(self._advance())
            if len(words) == 1 and self._is_operator("(") and re.fullmatch(r"[^\\'\"`$]+", words[0].text):
                self.lexer.comments = before + self.lexer.comments
                return self._function_body(parentheses=True)
        after = self.lexer.comments if self.token.kind in ("newline", "end") else []
        self.lexer.comments = self.lexer.comments[len(after) :]
        return Simple(words, [text for at, text in before + after if not (at == 0 and text.startswith("!"))])

    def _function(self) -> Node:
        self._advance()
        if self.token.kind != "word":
            self._refuse("a function's name")
        self._advance()
        return self._function_body(parentheses=self._is_operator("("))

    def _function_body(self, parentheses: bool) -> Node:
        if parentheses:
            self._expect("(")
            self._expect(")")
        at = self.token.at
        self._skip_newlines()
        body = self._command("|")
        if isinstance(body, Simple):
            raise ShellError("a function's body in { } expected", at)
        return Block("function", [[[("", body)]]])

    def _group(self) -> Node:
        self._advance()
        body = self._list()
        self._expect("}")
        return Block("group", [body])

    def _subshell(self) -> Node:
        start = self.token.at
        end = arithmetic_end(self.text, start) if self.text.startswith("((", start) else None
        if end is not None:
            return self._arithmetic(end)
        self._advance()
        body = self._list()
        self._expect(")")
        return Block("subshell", [body])

    def _arithmetic(self, end: int) -> Test:
        inner = self.text[self.token.at : end]
        self.lexer.at = end
        self._advance()
        return Test(frozenset(name for names in _CHANGED.findall(inner) for name in names if name))

    def _test(self) -> Node:
        while not self._is_word("]]"):
            if self.token.kind == "end":
                self._refuse("`]]`")
            self._advance()
        self._advance()
        return Test(frozenset({"BASH_REMATCH"}))

    def _if(self) -> Node:
        bodies, complete = [], False
        self._advance()
        while True:
            condition = self._list()
            self._expect("then")
            bodies.append(condition + self._list())
            if not self._is_word("elif"):
                break
            self._advance()
        if self._is_word("else"):
            self._advance()
            bodies.append(self._list())
            complete = True
        self._expect("fi")
        return Block("branches", bodies, complete)

    def _while(self) -> Node:
        self._advance()
        condition = self._list()
        self._expect("do")
        body = condition + self._list()
        self._expect("done")
        return Block("loop", [body])

    def _for(self) -> Node:
        self._advance()
        names: frozenset[str] = frozenset()
        end = arithmetic_end(self.text, self.token.at) if self._is_operator("(") else None
        if end is not None:
            names = self._arithmetic(end).names
        elif self.token.kind == "word":
            names = frozenset({self._advance().text})
            self._skip_newlines()
            if self._is_word("in"):
                while self.token.kind == "word":
                    self._advance()
        else:
            self._refuse("a variable's name")
        while self.token.kind == "newline" or self._is_operator(";"):
            self._advance()
        closer = "}" if self._is_word("{") else "done"
        self._expect("{" if closer == "}" else "do")
        body = self._list()
        self._expect(closer)
        return Block("loop", [body], names=names)

    def _case(self) -> Node:
        self._advance()
        if self.token.kind != "word":
            self._refuse("a word")
        self._advance()
        self._skip_newlines()
        self._expect("in")
        self._skip_newlines()
        bodies, complete = [], False
        while not self._is_word("esac"):
            if self._is_operator("("):
                self._advance()
            complete |= self._is_word("*")
            while not self._is_operator(")"):
                if self.token.kind in ("end", "newline"):
                    self._refuse("`)`")
                self._advance()
            self._advance()
            bodies.append(self._list(may_be_empty=True))
            if self._is_operator(";;", ";&", ";;&"):
                self._advance()
            self._skip_newlines()
        self._advance()
        return Block("branches", bodies, complete)


def assigned(nodes: Iterable[Chain]) -> Counter[str]:
    """How often each name is given a value within some commands."""
    found: Counter[str] = Counter()
    for chain in nodes:
        for _, node in chain:
            if isinstance(node, Block):
                found.update(node.names)
                for body in node.bodies:
                    found += assigned(body)
            elif isinstance(node, Test):
                found.update(node.names)
            else:
                found.update(each.name for word in node.words if (each := assignment_in(word)))
                if node.words and node.words[0].text in READ:
                    found.update(word.text for word in node.words[1:])
    return found


class Assignment(NamedTuple):
    """NAME=VALUE, NAME+=VALUE, NAME[INDEX]=VALUE, as written."""

    name: str
    item: str | None
    adds: bool
    right: str


def assignment_in(word: Token) -> Assignment | None:
    """The assignment that a word is where one may stand."""
    found = ASSIGNMENT.match(word.text)
    return Assignment(found[1], found[2], found[3] == "+", word.text[found.end() :]) if found else None
