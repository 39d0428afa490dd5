"""A YAML file that was written for LLaMA-Factory: values as its reader, OmegaConf, takes them, and the comments.

OmegaConf reads YAML 1.1, in which `no` is false, but 1e-5 a number; ${name} in it stands for another value.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SpecError
from orchestrator.specs.yamlfile import read_yaml


@dataclass(frozen=True)
class Comments:
    """A file's comments, each as it is written, # and all."""

    before: dict[str, list[str]] = field(default_factory=dict)
    """On lines of their own above an argument, or within its value."""
    beside: dict[str, str] = field(default_factory=dict)
    tail: list[str] = field(default_factory=list)


def read_config(path: Path) -> tuple[dict[str, Any], Comments]:
    """Read a file of arguments, in its order, and its comments.

    Raises:
        SpecError: no such file, too large, no YAML that holds one mapping, an interpolation that leads nowhere.
    """
    read_yaml(path)  # its limits, and its errors with line and column
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"{path} cannot be read as LLaMA-Factory reads it: {reason}", f"edit {path}") from error
    assert isinstance(values, dict)  # read_yaml takes nothing else
    return {str(key): value for key, value in values.items()}, _comments(path.read_text(encoding="utf-8-sig"))


def _comments(text: str) -> Comments:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    names = {key.start_mark.line: str(key.value) for key, _ in root.value} if isinstance(root, yaml.MappingNode) else {}
    lines, comments = [*names], Comments()
    for line, column, words in _found(text):
        following = bisect_right(lines, line)
        name = names[lines[following - 1]] if following else ""
        if column > 0 and line in names and name not in comments.beside:
            comments.beside[name] = words
        elif column > 0 and following:  # within the value
            comments.before.setdefault(name, []).append(words)
        elif following < len(lines):
            comments.before.setdefault(names[lines[following]], []).append(words)
        else:
            comments.tail.append(words)
    return comments


def _found(text: str) -> Iterator[tuple[int, int, str]]:
    """Line, column and words of each comment: between two tokens there is nothing but white space and comments."""
    starts = [0, *(at + 1 for at, char in enumerate(text) if char == "\n")]
    ends = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        at = ends
        while (at := text.find("#", at, token.start_mark.index)) >= 0:
            line = bisect_right(starts, at) - 1
            stop = starts[line + 1] - 1 if line + 1 < len(starts) else len(text)
            yield line, at - starts[line], text[at:stop].strip()
            at = stop
        ends = max(ends, token.end_mark.index)
