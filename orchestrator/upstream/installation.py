"""The LLaMA-Factory that is used: its command, its Python, the files of its package, the versions beside it.

Covered: a llamafactory-cli named by ORCHESTRATOR_LLAMAFACTORY, beside our own Python, or on PATH, in this
environment or another one; the Python that runs it, from its first lines.
Not covered: what its arguments are (arguments.py); whether it works: nothing of it is imported, here or in the one
short child process that looks around in its environment.
Writes nothing.
"""

import ast
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, PrerequisiteError
from orchestrator.files import expanded
from orchestrator.processes.process import run_short

VARIABLE = "ORCHESTRATOR_LLAMAFACTORY"
COMMAND = "llamafactory-cli"
# What decides a run's outcome, or whether it starts at all; recorded with each run.
DISTRIBUTIONS = (
    "llamafactory",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "deepspeed",
    "bitsandbytes",
    "flash-attn",
    "liger-kernel",
    "unsloth",
    "vllm",
    "sglang",
    "ray",
)
# What GPUs are used through, by the names of CUDA 12's packages and of later ones.
_CUDA = (
    *("nvidia-cudnn-cu12", "nvidia-nccl-cu12", "nvidia-cublas-cu12", "nvidia-cuda-runtime-cu12", "triton"),
    *("nvidia-cudnn-cu13", "nvidia-nccl-cu13", "nvidia-cublas", "nvidia-cuda-runtime"),
)
_REMEDY = f'pip install "llamafactory>=0.9.5", or {VARIABLE}=FOLDER of the environment that has it'

# Runs in the other Python, whatever its version. The folder it was started in is taken off sys.path: a stray
# json.py there would be imported. User site and PYTHONPATH stay, as llamafactory-cli itself sees them.
_LOOK_AROUND = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
import importlib.metadata, importlib.util, json
def folder(name):
    spec = importlib.util.find_spec(name)
    return list(spec.submodule_search_locations or [None])[0] if spec else None
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
def torch_cuda():
    try:
        with open(folder("torch") + "/version.py", encoding="utf-8") as file:
            assigned = [line.partition("=")[2].strip() for line in file if line.startswith("cuda")]
    except (OSError, TypeError):
        return None
    return assigned[0].strip(chr(39)) if assigned and assigned[0] != "None" else None
print()
print(json.dumps({
    "python_version": ".".join(map(str, sys.version_info[:3])),
    "folders": {name: folder(name) for name in sys.argv[1].split(",")},
    "versions": {name: version(name) for name in sys.argv[2:]},
    "torch_cuda": torch_cuda(),
}))
"""


@dataclass(frozen=True)
class Installation:
    """Where LLaMA-Factory is and what stands beside it."""

    cli: Path
    """llamafactory-cli, absolute; links are left as they are, since a venv is found by its own path."""
    python: Path
    """The Python that runs it."""
    package: Path | None
    """Folder of the package llamafactory. None: that Python has none."""
    training_args: Path | None
    """transformers/training_args.py, next to the other files of transformers."""
    versions: dict[str, str]
    """Of DISTRIBUTIONS, those that are installed."""
    python_version: str
    cuda: dict[str, str] = field(default_factory=dict)
    """What it uses GPUs through, by package; torch's CUDA is the version that torch was built for."""
    note: str = ""
    """What could not be known for certain, in a sentence; '' where all could."""


def find_installation() -> Installation:
    """The LLaMA-Factory to use: $ORCHESTRATOR_LLAMAFACTORY, else beside our Python, else on PATH.

    Raises:
        PrerequisiteError: there is no llamafactory-cli, or its Python cannot be started.
    """
    cli = _find_cli()
    seen = look_around(cli, ["llamafactory", "transformers"], DISTRIBUTIONS, _REMEDY)
    transformers = seen.folders["transformers"]
    training_args = transformers / "training_args.py" if transformers else None
    return Installation(
        cli=cli,
        python=seen.python,
        package=seen.folders["llamafactory"],
        training_args=training_args if training_args and training_args.is_file() else None,
        versions=seen.versions,
        python_version=seen.python_version,
        cuda=seen.cuda,
        note=seen.note,
    )


@dataclass(frozen=True)
class Surroundings:
    """What stands beside a console script, in its own Python."""

    python: Path
    python_version: str
    folders: dict[str, Path | None]
    """Of packages; None: that Python has none of the name."""
    versions: dict[str, str]
    """Of distributions, those that are installed."""
    cuda: dict[str, str]
    """Versions of CUDA's parts, as packages have them."""
    note: str
    """What could not be known for certain; '' where all could."""


def look_around(cli: Path, packages: Sequence[str], distributions: Sequence[str], remedy: str) -> Surroundings:
    """Look for packages in the environment of a console script; nothing of it is imported.

    Raises:
        PrerequisiteError: its Python cannot be started.
    """
    python, note = _python_of(cli, remedy)
    try:
        answer = run_short([str(python), "-c", _LOOK_AROUND, ",".join(packages), *distributions, *_CUDA])
        # The last line: a .pth file or sitecustomize may have printed before.
        found = json.loads(answer.strip().rpartition("\n")[2])
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} instead of a mapping")
    except OrchestratorError as error:
        raise PrerequisiteError(f"{cli} runs with {python}, which does not work: {error.message}", remedy) from error
    except ValueError as error:
        raise PrerequisiteError(f"{cli} runs with {python}, whose answer is not JSON: {error}", remedy) from error
    return Surroundings(
        python=python,
        python_version=found["python_version"],
        folders={name: Path(folder) if folder else None for name, folder in found["folders"].items()},
        versions={name: version for name, version in found["versions"].items() if version and name not in _CUDA},
        cuda=_cuda(found),
        note=note,
    )


def program_named(variable: str, command: str) -> Path | None:
    """The program that a variable names: itself, or the folder of its environment. None: the variable is not set.

    Raises:
        PrerequisiteError: there is none.
    """
    named = os.environ.get(variable)
    if not named:
        return None
    given = expanded(named).absolute()
    candidates = [given / command, given / "bin" / command] if given.is_dir() else [given]
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    tried = " or ".join(map(str, candidates))
    raise PrerequisiteError(
        f"{variable}={named}: no program {tried}", f"set it to an environment's folder, its bin, or its {command}"
    )


def _cuda(found: dict[str, Any]) -> dict[str, str]:
    torch = {"torch's CUDA": found["torch_cuda"]} if found["torch_cuda"] else {}
    return {**torch, **{name: version for name, version in found["versions"].items() if version and name in _CUDA}}


def parse_source(path: Path) -> ast.Module:
    """The syntax tree of a Python file of the installation.

    Raises:
        PrerequisiteError: it cannot be read, or this Python does not understand it.
    """
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise PrerequisiteError(f"{path} cannot be read: {error}", "reinstall llamafactory and transformers") from error


def _find_cli() -> Path:
    if named := program_named(VARIABLE, COMMAND):
        return named
    beside = Path(sys.executable).parent / COMMAND
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    on_path = shutil.which(COMMAND)
    if on_path:
        return Path(on_path).absolute()
    raise PrerequisiteError(f"{COMMAND} not found: not beside {sys.executable}, not on PATH", _REMEDY)


def _python_of(cli: Path, remedy: str) -> tuple[Path, str]:
    """The Python that a console script runs with, and what is uncertain about that."""
    named = _interpreter(cli, remedy)
    if named is not None:
        return named, ""
    beside = [path for name in ("python", "python3") if (path := cli.resolve().parent / name).is_file()]
    guess = beside[0] if beside else Path(sys.executable)
    return guess, f"{cli} does not say which Python it runs: versions and arguments are those of {guess}"


def _interpreter(cli: Path, remedy: str) -> Path | None:
    try:
        with cli.open("rb") as file:
            lines = file.read(4096).decode("utf-8", "replace").split("\n")
    except OSError as error:
        raise PrerequisiteError(f"{cli} cannot be read: {error.strerror}", remedy) from error
    words = lines[0].removeprefix("#!").split() if lines[0].startswith("#!") else []
    if not words:
        return None
    if Path(words[0]).name == "env":
        asked = [word for word in words[1:] if not word.startswith("-") and "=" not in word][:1]
        found = shutil.which(asked[0]) if asked and "python" in asked[0] else None
        return Path(found).absolute() if found else None
    if "python" in Path(words[0]).name:
        # The kernel takes all up to the first blank as the program: pip and uv know, and use the form below.
        return Path(words[0])
    # A path too long for '#!', or with a blank in it: /bin/sh executes the second line, to Python it is a string.
    second = lines[1] if len(lines) > 1 else ""
    trick = re.match(r"""'''exec' (["']?)(/[^"']*python[^"']*)\1 "\$0" """, second)
    if trick:
        return Path(trick[2])
    relocatable = re.match(r"""'''exec' "\$\(dirname .*realpath.*\)"/'?(python[\w.]*)'? "\$0" """, second)
    return cli.resolve().parent / relocatable[1] if relocatable else None
