"""An environment with a `comet-score`: a real executable with the flags of unbabel-comet 2.2.7, and no model.

A segment's score is the share of its words that the reference has. FAKE_COMET: dies, nan, short, silent.
"""

import argparse
import json
import os
import sys
from pathlib import Path

VERSION = "2.2.7"


def install(folder: Path) -> Path:
    """An environment's folder, as `python -m venv` and `pip install unbabel-comet` leave it."""
    program = folder / "bin" / "comet-score"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{Path(__file__).resolve()}' \"$@\"\n")
    program.chmod(0o755)
    about = folder / "lib" / "python3.11" / "site-packages" / f"unbabel_comet-{VERSION}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: unbabel-comet\nVersion: {VERSION}\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-s", "--sources", required=True)
    parser.add_argument("-t", "--translations", nargs="+", required=True)
    parser.add_argument("-r", "--references")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--only_system", action="store_true")
    parser.add_argument("--to_json", default="")
    parser.add_argument("--model", default="Unbabel/wmt22-comet-da")
    given = parser.parse_args()
    mode = os.environ.get("FAKE_COMET", "")
    print(f"scoring with {given.model}, references {given.references}", flush=True)
    if mode == "dies":
        sys.exit("huggingface_hub.errors.GatedRepoError: 401 Client Error")
    if mode == "silent":
        return
    [translations] = given.translations
    sides = [_lines(name) for name in (given.sources, translations, given.references or given.sources)]
    assert len({len(side) for side in sides}) == 1, "not parallel"
    rows = [
        {"src": source, "mt": said, "ref": reference, "COMET": _score(said, reference)}
        for source, said, reference in zip(*sides, strict=True)
    ]
    if mode == "nan":
        rows[1]["COMET"] = float("nan")
    if mode == "short":
        rows.pop()
    Path(given.to_json).write_text(json.dumps({translations: rows}, ensure_ascii=False, indent=4), encoding="utf-8")


def _lines(name: str) -> list[str]:
    with Path(name).open(encoding="utf-8") as file:
        return [line.strip() for line in file]


def _score(said: str, reference: str) -> float:
    words = said.split()
    return sum(word in reference.split() for word in words) / max(1, len(words))


if __name__ == "__main__":
    main()
