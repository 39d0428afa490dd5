"""A problem shown at its line. Run: pytest tests/test_excerpt.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.specs.excerpt import WIDTH, block, excerpt, painted, split_lines


@pytest.mark.parametrize(
    ("text", "column", "carets"),
    [
        ("  lora_rank: 8", 2, "  ^^^^^^^^^"),
        ("a: {b: 1, 'c d': 2}", 10, "          ^^^^^"),
        ('"x: \\" y": 1', 0, "^^^^^^^^^"),
        ("- [a, b]", 2, "  ^"),
        ("key", 3, "   ^"),
        ("ä日本: x", 0, "^^^^^"),  # wide characters take two columns
        ("日本: {é\u0301a: x}", 5, "       ^^"),  # accents none
    ],
)
def test_what_stands_at_the_column_is_underlined(text: str, column: int, carets: str) -> None:
    assert excerpt(["other", text], 1, column) == ["   |", f" 2 | {text}", f"   | {carets}"]


@pytest.mark.parametrize("column", [0, 30, 2500, 4990])
def test_a_long_line_is_cut_around_the_column(column: int) -> None:
    text = "x" * 5000
    text = text[:column] + " HERE " + text[column + 6 :]
    _, line, below = excerpt([text], 0, column + 1)
    assert len(line) <= WIDTH + 11
    assert line[below.index("^") :].startswith("HERE") and below.count("^") == 4
    assert line.startswith(" 1 | ...") == (column > 50) and line.endswith("...") == (column < 4900)
    _, line, below = excerpt(["a" * 5000 + ": 1"], 0, 0)
    assert line == f" 1 | {'a' * WIDTH}..." and below == f"   | {'^' * WIDTH}"


def test_control_characters_are_made_visible() -> None:
    _, line, below = excerpt(["\ta: \x1b[31m\u202e\x00 b: 1"], 0, 12)
    assert line == " 1 |     a: \\x1b[31m\\u202e\\x00 b: 1"
    assert line[below.index("^") :] == "b: 1"


def test_lines_are_counted_as_a_yaml_reader_counts_them() -> None:
    assert split_lines("a\nb\r\nc\rd\x85e\u2028f\u2029g\x0bh\x0ci") == ["a", "b", "c", "d", "e", "f", "g\x0bh\x0ci"]


@given(st.text(), st.integers(0, 300))
def test_any_line_is_shown_in_three_lines_of_printable_text(text: str, column: int) -> None:
    lines = split_lines(text * 9)
    found = excerpt(lines, 0, column)
    assert len(found) == (3 if column <= len(lines[0]) else 0)
    assert excerpt(lines, len(lines), 0) == []
    assert all("\n" not in line and "\x1b" not in line and "\0" not in line for line in found)
    assert found == [] or set(found[2].removeprefix("   | ").lstrip()) == {"^"}


def test_a_block_is_message_place_line_and_help() -> None:
    found = excerpt(["a: 1"] * 120, 99, 0)
    assert block("a: wrong", "f.yaml:100:1", found, ["write b", "or c"]) == [
        "a: wrong",
        "  --> f.yaml:100:1",
        "    |",
        "100 | a: 1",
        "    | ^",
        "    = help: write b",
        "    = help: or c",
    ]
    assert block("a: wrong", "--set a=1", [], ["write b"])[2:] == ["   = help: write b"]


@pytest.mark.parametrize(
    ("line", "coloured"),
    [
        ("error: a: wrong", "\x1b[1;31merror:\x1b[0m a: wrong"),
        ("  --> f:1:1", "  \x1b[1;31m-->\x1b[0m f:1:1"),
        ("   |   ^^^", "   |   \x1b[1;31m^^^\x1b[0m"),
        ("   = help: x", "   \x1b[1;31m=\x1b[0m help: x"),
        (" 1 | error: x", " 1 | error: x"),
        ("  | a log's line ^^^", "  | a log's line ^^^"),
    ],
)
def test_only_what_a_reader_looks_for_is_coloured(line: str, coloured: str) -> None:
    assert painted(line) == coloured
