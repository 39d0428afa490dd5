"""What is installed in this Python, none of it imported. stdin: {"package", "distributions": [...]}."""

import importlib.metadata
import importlib.util
import json
import sys
from contextlib import suppress
from typing import Any


def folder(name: str) -> Any:
    spec = importlib.util.find_spec(name)
    return next(iter(spec.submodule_search_locations or ()), None) if spec else None


def cuda_of_torch() -> Any:
    try:
        with open(folder("torch") + "/version.py", encoding="utf-8") as file:  # noqa: PTH123
            assigned = [line.partition("=")[2].strip() for line in file if line.startswith("cuda")]
    except (OSError, TypeError):
        return None
    return assigned[0].strip("'") if assigned and assigned[0] != "None" else None


if __name__ == "__main__":
    question = json.load(sys.stdin)
    versions = {}
    for name in question["distributions"]:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    answer = {
        "python_version": ".".join(map(str, sys.version_info[:3])),
        "folder": folder(question["package"]),
        "transformers": folder("transformers"),
        "versions": versions,
        "torch_cuda": cuda_of_torch(),
    }
    print()
    print(json.dumps(answer))
