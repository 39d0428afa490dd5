"""An installed LLaMA-Factory or vLLM: its command, Python, package and versions; asked by a script, never imported."""

import ast
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, PrerequisiteError, StageError
from orchestrator.files import expanded
from orchestrator.processes.process import run_short

SCRIPTS = Path(__file__).resolve().parent / "scripts"
VARIABLE = "ORCHESTRATOR_LLAMAFACTORY"
COMMAND = "llamafactory-cli"
# What decides a run's outcome; recorded with each run. llamafactory-kt, from 0.9.6 on, is with KTransformers.
_DISTRIBUTIONS = (
    *("llamafactory", "llamafactory-kt", "torch", "transformers", "peft", "trl", "accelerate", "datasets"),
    *("tokenizers", "safetensors", "numpy", "deepspeed", "bitsandbytes", "flash-attn", "liger-kernel", "unsloth"),
    *("vllm", "sglang", "ray"),
)
# What GPUs are used through, by the names of CUDA 12's packages and of later ones.
_CUDA = (
    *("nvidia-cudnn-cu12", "nvidia-nccl-cu12", "nvidia-cublas-cu12", "nvidia-cuda-runtime-cu12", "triton"),
    *("nvidia-cudnn-cu13", "nvidia-nccl-cu13", "nvidia-cublas", "nvidia-cuda-runtime"),
)
_REMEDY = f'pip install "llamafactory>=0.9.5", or {VARIABLE}=FOLDER of the environment that has it'


@dataclass(frozen=True)
class Installation:
    """A program, the Python that runs it, and the versions of what decides its results."""

    cli: Path  # llamafactory-cli or vllm, absolute; links are left as they are, since a venv is found by its own path
    python: Path
    package: Path | None  # folder of the package llamafactory or vllm. None: that Python has none
    versions: dict[str, str]
    python_version: str = ""
    cuda: dict[str, str] = field(default_factory=dict)  # by package; torch's CUDA: the one that torch was built for
    note: str = ""  # what could not be known for certain, in a sentence; '' where all could
    transformers: Path | None = None  # folder of transformers beside it, whose TrainingArguments LLaMA-Factory takes


class AskError(StageError):
    """No answer: the Python cannot be started, the script failed or took too long, or it printed no JSON."""


def find_installation() -> Installation:
    """The LLaMA-Factory to use: $ORCHESTRATOR_LLAMAFACTORY, else beside our Python, else on PATH; PrerequisiteError."""
    cli = program_named(VARIABLE, COMMAND)
    if cli is None:
        beside = Path(sys.executable).parent / COMMAND
        found = str(beside) if os.access(beside, os.X_OK) else shutil.which(COMMAND)
        if found is None:
            raise PrerequisiteError(f"{COMMAND} not found: not beside {sys.executable}, not on PATH", _REMEDY)
        cli = Path(found).absolute()
    return inspect_environment(cli, "llamafactory", _DISTRIBUTIONS, _REMEDY)


def inspect_environment(cli: Path, package: str, distributions: Sequence[str], remedy: str) -> Installation:
    """What is in the environment of a console script; PrerequisiteError where its Python does not answer."""
    python, note = _python_of(cli, remedy)
    question = {"package": package, "distributions": [*distributions, *_CUDA]}
    try:
        found = ask(python, "environment", question, timeout_s=30)
    except AskError as error:
        raise PrerequisiteError(f"{cli} runs with {python}, which does not work: {error.message}", remedy) from error
    cuda = {name: version for name, version in found["versions"].items() if name in _CUDA}
    cuda |= {"torch's CUDA": found["torch_cuda"]} if found["torch_cuda"] else {}
    versions = {name.removesuffix("-kt"): each for name, each in found["versions"].items() if name not in _CUDA}
    folder, transformers = (Path(found[key]) if found[key] else None for key in ("folder", "transformers"))
    return Installation(cli, python, folder, versions, found["python_version"], cuda, note, transformers)


def program_named(variable: str, command: str) -> Path | None:
    """The program that a variable names, or its folder does; None: it is not set; PrerequisiteError: no program."""
    named = os.environ.get(variable)
    if not named:
        return None
    given = expanded(named).absolute()
    candidates = [given / command, given / "bin" / command] if given.is_dir() else [given]
    found = [path for path in candidates if path.is_file() and os.access(path, os.X_OK)]
    if not found:
        tried = " or ".join(map(str, candidates))
        remedy = f"set it to an environment's folder, its bin, or its {command}"
        raise PrerequisiteError(f"{variable}={named}: no program {tried}", remedy)
    return found[0]


def ask(
    python: Path, script: str, question: object, *, timeout_s: float = 120, environment: Mapping[str, str] | None = None
) -> Any:
    """The last line, JSON, that scripts/SCRIPT.py answers in a Python, under more variables; AskError: no answer."""
    argv = [str(python), str(SCRIPTS / f"{script}.py")]
    try:
        output = run_short(argv, timeout_s=timeout_s, input_text=json.dumps(question), environment=environment)
        return json.loads(output.strip().rpartition("\n")[2])
    except OrchestratorError as error:
        raise AskError(error.message, error.remedy) from error
    except ValueError as error:
        raise AskError(f"{python} answered {script}.py with something that is not JSON: {error}") from error


def parse_source(path: Path) -> tuple[ast.Module, list[str]]:
    """The syntax tree of a Python file of an installation, and its lines; PrerequisiteError where it cannot be read."""
    try:
        text = path.read_text("utf-8")
        return ast.parse(text, filename=str(path)), text.splitlines()
    except (OSError, SyntaxError, ValueError) as error:
        raise PrerequisiteError(f"{path} cannot be read: {error}", "reinstall llamafactory and transformers") from error


def _python_of(cli: Path, remedy: str) -> tuple[Path, str]:
    """The Python that a console script runs with, and what is uncertain about that."""
    try:
        with cli.open("rb") as file:
            start = file.read(4096).decode("utf-8", "replace")
    except OSError as error:
        raise PrerequisiteError(f"{cli} cannot be read: {error.strerror}", remedy) from error
    # One that is too long, or has a blank in it, is in the second line: /bin/sh executes it, to Python it is a string.
    quoted = r'(?:"(/[^"\n]*python[^/"\n]*)"|(/\S*python[^/\s]*)\s)'
    if match := re.match(rf"#!(?:/bin/sh\n'''exec' )?\s*{quoted}", start):
        return Path(match[1] or match[2]), ""
    if (match := re.match(r"#!\S*/env\s+(?:-\S+\s+)*(python\S*)", start)) and (found := shutil.which(match[1])):
        return Path(found).absolute(), ""
    # uv's: beside the script itself, wherever that lies
    if match := re.match(r"""#!/bin/sh\n'''exec' "\$\(dirname .*realpath.*\)"/'?(python[\w.]*)'? "\$0" """, start):
        return cli.resolve().parent / match[1], ""
    beside = [path for name in ("python", "python3") if (path := cli.resolve().parent / name).is_file()]
    guess = beside[0] if beside else Path(sys.executable)
    return guess, f"{cli} does not say which Python it runs: versions and arguments are those of {guess}"
