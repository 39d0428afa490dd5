"""Writes docs/reference.md from the commands' help and the spec's fields, and the list of modules in docs/house.md.

Run: python -m tests.reference. A test fails where a page is not current.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer

from orchestrator import __main__ as program
from orchestrator.runs.record_parts import Status
from orchestrator.specs.schema import spec_schema
from tests.test_layers import LAYERS

PACKAGE = Path(__file__).resolve().parent.parent / "orchestrator"
PAGE, HOUSE = PACKAGE / "docs" / "reference.md", PACKAGE / "docs" / "house.md"
MARK = "<!-- below: written by python -m tests.reference -->"
VARIABLES = {
    "ORCHESTRATOR_LLAMAFACTORY": "the environment (its folder, or its `llamafactory-cli`) that trains and serves. "
    "Default: ours, then PATH",
    "ORCHESTRATOR_VLLM": "the environment (its folder, or its `vllm`) of `serve.backend: vllm`. Default: none",
    "ORCHESTRATOR_COMET": "the environment, a folder with bin/comet-score, that computes COMET. Default: none",
    "ORCHESTRATOR_WORKSPACE": "the folder with runs/ and dataset_info/. Default: found upwards from the current one",
    "ORCHESTRATOR_ARCHIVES": "a folder with datasets' archives, instead of the network",
    "ORCHESTRATOR_CACHE": "downloads, hashes, answers of benchmarks. Default: the user's cache folder",
    "ORCHESTRATOR_LOCKS": "the folder of the device locks. Default: /tmp/orchestrator-UID",
    "ORCHESTRATOR_API_KEY": "the key of a server given by URL, and of `serve` instead of a random one",
}
STATUSES = {
    "planned": "a sweep will start it",
    "queued": "a scheduler has not started it yet",
    "preparing": "data and files are being written",
    "running": "it trains",
    "trained": "the training is complete, benchmarks follow",
    "benchmarking": "it translates test sets",
    "done": "complete",
    "failed": "a stage failed",
    "stopped": "someone stopped it",
    "interrupted": "the process that owned it is gone",
}
EXIT_CODES = {
    0: "done",
    1: "a bug in orchestrator: a traceback is shown",
    2: "the spec or the command line is wrong",
    3: "something is missing or in use: a program, a file, a GPU, a server, a port",
    4: "a stage failed; the log's last lines and the command to repeat it are shown",
    130: "interrupted: Ctrl-C, SIGTERM or SIGHUP",
}


def _command(name: str, command: Any) -> Iterator[str]:
    positional = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    words = [each.metavar or each.name.upper() for each in positional]
    yield f"### {name}\n"
    yield f"`orchestrator {' '.join([name, *words, *(['[OPTIONS]'] if options else [])])}`\n"
    yield f"{_line(command.help)}\n"
    yield f"{command.epilog.replace('Example: ', 'Example: `')}`\n"
    if options:
        yield "| option | meaning |\n|---|---|"
    for each in options:
        yield f"| `{', '.join(each.opts)}` | {_line(each.help)} |"
    yield ""


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _section(title: str, section: dict[str, Any]) -> Iterator[str]:
    yield f"### {title}\n"
    yield "| field | default | meaning |\n|---|---|---|"
    for name, field in section["properties"].items():
        default = json.dumps(field.get("default"), ensure_ascii=False)
        shown = "" if name in section.get("required", []) else f"`{default if len(default) <= 40 else '...'}`"
        yield f"| `{name}` | {shown} | {_line(field.get('description', ''))} |"
    yield ""


def reference() -> str:
    schema = spec_schema({})
    sections = {
        "top level": schema, "model": "ModelSpec", "train": "TrainSpec", "serve": "ServeSpec", "export": "ExportSpec",
        "benchmark, each entry": "BenchmarkSpec", "compute": "ComputeSpec", "compute.slurm": "SlurmSpec",
    }  # fmt: skip
    lines = ["# Reference\n", "Written by `python -m tests.reference` from `--help` and the spec's fields.\n"]
    lines += ["## Commands\n"]
    group: Any = typer.main.get_command(program.app)
    for name, command in group.commands.items():
        if command.hidden:
            continue
        lines += _command(name, command)
    lines += ["## Fields of a spec\n", "`train`, `serve` and `export` also take LLaMA-Factory's arguments.\n"]
    for title, section in sections.items():
        lines += _section(title, section if isinstance(section, dict) else schema["$defs"][section])
    for title, rows in (("Variable", VARIABLES), ("Status", STATUSES), ("Exit code", EXIT_CODES)):
        lines += [f"## {title}\n", f"| {title.lower()} | meaning |\n|---|---|"]
        lines += [f"| `{name}` | {meaning} |" for name, meaning in rows.items()]
        lines += [""]
    assert set(STATUSES) == set(get_args(Status)), "STATUSES lacks a status, or has one too many"
    return "\n".join(lines).rstrip() + "\n"


def house() -> str:
    """house.md: its own words, and below the mark each module with the first sentence of its docstring."""
    head = HOUSE.read_text(encoding="utf-8").partition(MARK)[0]
    lines = [MARK, "", "## Modules", ""]
    for layer in LAYERS:
        lines += [f"### {layer}", "", "| file | what it is for |", "|---|---|"]
        paths = [PACKAGE / f"{layer}.py"] if (PACKAGE / f"{layer}.py").is_file() else (PACKAGE / layer).rglob("*.py")
        for path in sorted(each for each in paths if each.stem != "__init__"):
            text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
            lines.append(f"| `{path.relative_to(PACKAGE)}` | {_line(text.partition(chr(10) * 2)[0])} |")
        lines.append("")
    return head + "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    HOUSE.write_text(house(), encoding="utf-8")
