"""Text for people: control characters made visible, durations, sizes."""

from unicodedata import category


def escape_controls(text: str) -> str:
    """Text of a stranger (a log, a model, a record) for a terminal: control characters are shown, not obeyed."""
    return "".join(char if _is_harmless(char) else char.encode("unicode_escape").decode() for char in text)


def duration(seconds: float) -> str:
    """'0.7 s', '45 s', '3 min 6 s', '2 h 5 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def size(size_bytes: float) -> str:
    """'1.2 GiB', '700 MiB', '512 bytes'."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= 0.97 * factor:  # 1000 MiB are a GiB to a reader
            shown = size_bytes / factor
            return f"{shown:.1f} {unit}" if shown < 10 or factor >= 1 << 30 else f"{shown:.0f} {unit}"
    return f"{size_bytes:.0f} bytes"


def _is_harmless(char: str) -> bool:
    # Not printable to Python, but text: spaces of all widths, and the joiners of emoji and of Persian.
    return char.isprintable() or char in "\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}" or category(char) == "Zs"
