"""A problem in a text file, shown as rustc shows one: message, place, the line, what is meant in it, help.

Control characters are made visible, a long line is cut around the place, wide characters count as two.
"""

import re
import unicodedata

from orchestrator.text import escape_controls

WIDTH = 100
"""Characters of a line that are shown."""
# What YAML breaks lines at.
_BREAK = re.compile("\r\n|[\n\r\x85\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}]")
# A quoted text, or a word: what is underlined.
_TOKEN = re.compile(r"""\"(?:\\.|[^"\\])*\"|'(?:''|[^'])*'|[^\s:,\[\]{}#"'\x00-\x1f\x7f]+""")
# Parts of an error's lines, in rustc's colours.
_COLOURS = (
    (re.compile(r"(error:) "), "1;31"),
    (re.compile(r" +(-->) "), "1;34"),
    (re.compile(r" +\| +(\^+)$"), "1;31"),
    (re.compile(r" +(=) help: "), "1;34"),
)


def block(message: str, place: str, excerpt: list[str], helps: list[str]) -> list[str]:
    """The lines of one problem, without the 'error: ' before the first."""
    margin = (excerpt[0] if excerpt else "   |").removesuffix("|")
    return [message, f"  --> {place}", *excerpt, *(f"{margin}= help: {text}" for text in helps)]


def painted(line: str) -> str:
    """A line of an error in colour, for a terminal: the word error, the place, the carets."""
    for pattern, colour in _COLOURS:
        match = pattern.match(line)
        if match:
            start, end = match.span(1)
            return f"{line[:start]}\033[{colour}m{line[start:end]}\033[0m{line[end:]}"
    return line


def split_lines(text: str) -> list[str]:
    """Lines as a YAML reader counts them."""
    return _BREAK.split(text)


def excerpt(lines: list[str], line: int, column: int) -> list[str]:
    """One line of a file with carets under what stands at the column, both 0-based; nothing where there is none."""
    if not (0 <= line < len(lines) and 0 <= column <= len(lines[line])):
        return []
    text = lines[line]
    start = max(0, min(column - WIDTH // 2, len(text) - WIDTH))
    end = min(len(text), start + WIDTH)
    token = _TOKEN.match(text, column)
    stop = min(max(token.end() if token else 0, column + 1), max(end, column + 1))
    dots = "..." if start else ""
    visible = f"{dots}{_visible(text[start:end])}{'...' if end < len(text) else ''}"
    before = " " * _width(dots + _visible(text[start:column]))
    carets = "^" * max(1, _width(_visible(text[column:stop])))
    number = f"{line + 1:>2}"
    margin = " " * len(number)
    return [f"{margin} |", f"{number} | {visible}".rstrip(), f"{margin} | {before}{carets}"]


def _visible(text: str) -> str:
    return escape_controls(text).replace("\t", "    ")


def _width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    marks = ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(char) in marks else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )
