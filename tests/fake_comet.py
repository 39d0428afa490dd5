"""An environment with a `comet-score`: a real executable with the flags of unbabel-comet 2.2.7, and no model.

A segment's score is the share of its words that the reference has. FAKE_COMET: dies, nan, short.
"""

import argparse
import json
import os
import sys
from pathlib import Path

VERSION = "2.2.7"


def install(folder: Path) -> Path:
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
    for flag in ("-s", "-t", "-r", "--to_json", "--model"):
        parser.add_argument(flag)
    parser.add_argument("--only_system", action="store_true")
    given, mode = parser.parse_args(), os.environ.get("FAKE_COMET", "")
    print(f"scoring with {given.model}, references {given.r}", flush=True)
    if mode == "dies":
        sys.exit("huggingface_hub.errors.GatedRepoError: 401 Client Error")
    pairs = zip(*(Path(name).read_text("utf-8").splitlines() for name in (given.t, given.r or given.s)), strict=True)
    rows = [{"COMET": sum(word in ref.split() for word in mt.split()) / max(1, len(mt.split()))} for mt, ref in pairs]
    rows = rows[1:] if mode == "short" else [*rows[1:], {"COMET": float("nan")}] if mode == "nan" else rows
    Path(given.to_json).write_text(json.dumps({given.t: rows}), encoding="utf-8")


if __name__ == "__main__":
    main()
