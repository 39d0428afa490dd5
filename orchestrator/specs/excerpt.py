"""A problem in a text file, shown as rustc shows one: message, place, the line, what is meant in it, help."""

import re
import unicodedata

from orchestrator.text import escape_controls

WIDTH = 100
"""Characters of a line that are shown."""
# What YAML breaks lines at.
_BREAK = re.compile("\r\n|[\n\r\x85\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}]")
# A quoted text, or a word: what is underlined.
_TOKEN = re.compile(r"""\"(?:\\.|[^"\\])*\"|'(?:''|[^'])*'|[^\s:,\[\]{}#"'\x00-\x1f\x7f]+""")
_COLOURED = re.compile(r"(error:) | +(-->) | +\| +(\^+)$| +(=) help: ")


def block(message: str, place: str, excerpt: list[str], helps: list[str]) -> list[str]:
    """The lines of one problem, without the 'error: ' before the first."""
    margin = (excerpt[0] if excerpt else "   |").removesuffix("|")
    return [message, f"  --> {place}", *excerpt, *(f"{margin}= help: {text}" for text in helps)]


def painted(line: str) -> str:
    """A line of an error for a terminal, with the word error, the arrow and the carets in red."""
    match = _COLOURED.match(line)
    if match is None:
        return line
    start, end = match.span(match.lastindex or 0)
    return f"{line[:start]}\033[1;31m{line[start:end]}\033[0m{line[end:]}"


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
    stop = min(token.end() if token else column + 1, max(end, column + 1))
    dots = "..." if start else ""
    before = " " * _width(dots + _visible(text[start:column]))
    carets = "^" * max(1, _width(_visible(text[column:stop])))
    number = f"{line + 1:>2}"
    margin = " " * len(number)
    shown = f"{number} | {dots}{_visible(text[start:end])}{'...' if end < len(text) else ''}"
    return [f"{margin} |", shown.rstrip(), f"{margin} | {before}{carets}"]


def _visible(text: str) -> str:
    return escape_controls(text).replace("\t", "    ")


def _width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text if not unicodedata.combining(char))
