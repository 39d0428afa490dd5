"""LLaMA-Factory's own YAML files: values as it reads them, and comments."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.importing.config_file import Comments, read_config


def read(folder: Path, text: str) -> tuple[dict[str, Any], Comments]:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_values_are_read_as_omegaconf_reads_them(tmp_path):
    text = "a: no\nb: 1e-5\nc: 'no'\nd: on\ne: 3e-6\nf: 2024-01-01\ng: null\nh: 1_000\ni: ${a}\n"
    assert read(tmp_path, text)[0] == {
        "a": False, "b": 1e-5, "c": "no", "d": True, "e": 3e-6, "f": "2024-01-01", "g": None, "h": 1000, "i": False,
    }  # fmt: skip


COMMENTED = """\
# what this is
# in two lines

### model
model_name_or_path: a/b  # or a folder
# why 8
lora_rank: 8
fsdp:
  - full_shard  # inner
  # another
  - auto_wrap
text: "a # not a comment" # beside
block: |
  line # no comment
  two
flow: {a: 1,  # within
  b: 2}  # and more

### eval
# val_size: 0.1
"""


def test_each_comment_goes_with_the_argument_that_it_is_about(tmp_path):
    assert read(tmp_path, COMMENTED)[1] == Comments(
        {"model_name_or_path": ["# what this is", "# in two lines", "### model"], "lora_rank": ["# why 8"],
         "fsdp": ["# inner", "# another"], "flow": ["# and more"]},
        {"model_name_or_path": "# or a folder", "text": "# beside", "flow": "# within"},
        ["### eval", "# val_size: 0.1"],
    )  # fmt: skip


def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path):
    for text, reason in {
        "# nothing\n": "is empty",
        "a: ${b}\n": "Interpolation key 'b' not found",
        "a: 1\na: 2\n": "duplicate key",
        "a: !!python/object/apply:os.system [ls]\n": "cannot be read as LLaMA-Factory reads it",
    }.items():
        with pytest.raises(SpecError, match=reason):
            read(tmp_path, text)
