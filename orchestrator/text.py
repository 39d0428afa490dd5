"""Text of strangers made safe for a terminal."""

from unicodedata import category


def escape_controls(text: str) -> str:
    """Text of a stranger (a log, a model) for a terminal: control characters are shown, not obeyed."""
    return "".join(char if _harmless(char) else _escaped(ord(char)) for char in text)


def _harmless(char: str) -> bool:
    # Not printable to Python, but text: spaces of all widths, and the joiners of emoji and of Persian.
    return char.isprintable() or char in "\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}" or category(char) == "Zs"


def _escaped(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
