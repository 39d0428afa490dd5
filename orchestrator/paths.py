"""Paths as people write them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path with ~ and ~user written out; one whose user is not known stays as it is, and there is no such file."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError


def resolved(path: Path) -> Path:
    """The path without links, absolute; a link that leads to itself stays as it is, and there is no such file."""
    return Path(os.path.realpath(path))
