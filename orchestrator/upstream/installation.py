"""The installed LLaMA-Factory: its command, its Python, the files of its package, the versions beside it.

Nothing of it is imported, here or in the short child process that lists its environment: it may be broken.
"""

import ast
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import PrerequisiteError
from orchestrator.files import expanded
from orchestrator.upstream.ask import AskError, ask

VARIABLE = "ORCHESTRATOR_LLAMAFACTORY"
COMMAND = "llamafactory-cli"
# What decides a run's outcome, or whether it starts at all; recorded with each run.
DISTRIBUTIONS = (
    *("llamafactory", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors"),
    *("numpy", "deepspeed", "bitsandbytes", "flash-attn", "liger-kernel", "unsloth", "vllm", "sglang", "ray"),
)
# What GPUs are used through, by the names of CUDA 12's packages and of later ones.
_CUDA = (
    *("nvidia-cudnn-cu12", "nvidia-nccl-cu12", "nvidia-cublas-cu12", "nvidia-cuda-runtime-cu12", "triton"),
    *("nvidia-cudnn-cu13", "nvidia-nccl-cu13", "nvidia-cublas", "nvidia-cuda-runtime"),
)
_WITH_KT = "llamafactory-kt"  # from 0.9.6 on, the distribution with KTransformers
_REMEDY = f'pip install "llamafactory>=0.9.5", or {VARIABLE}=FOLDER of the environment that has it'


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
    found = inspect_environment(cli, ["llamafactory", "transformers"], (*DISTRIBUTIONS, _WITH_KT), _REMEDY)
    versions = {name.removesuffix("-kt"): version for name, version in found.versions.items()}
    training_args = (found.folders["transformers"] or cli) / "training_args.py"
    return Installation(
        cli, found.python, found.folders["llamafactory"], training_args if training_args.is_file() else None,
        versions, found.python_version, found.cuda, found.note,
    )  # fmt: skip


@dataclass(frozen=True)
class EnvironmentInfo:
    """What is installed beside a console script, in its own Python."""

    python: Path
    python_version: str
    folders: dict[str, Path | None]
    """Of packages; None: that Python has none of the name."""
    versions: dict[str, str]
    cuda: dict[str, str]
    note: str


def inspect_environment(
    cli: Path, packages: Sequence[str], distributions: Sequence[str], remedy: str
) -> EnvironmentInfo:
    """List packages in the environment of a console script; none of them is imported.

    Raises:
        PrerequisiteError: its Python cannot be started, or does not answer.
    """
    python, note = _python_of(cli, remedy)
    question = {"packages": list(packages), "distributions": [*distributions, *_CUDA]}
    try:
        found = ask(python, "environment", question, timeout_s=30)
    except AskError as error:
        raise PrerequisiteError(f"{cli} runs with {python}, which does not work: {error.message}", remedy) from error
    versions = {name: version for name, version in found["versions"].items() if version}
    torch = {"torch's CUDA": found["torch_cuda"]} if found["torch_cuda"] else {}
    folders = {name: Path(folder) if folder else None for name, folder in found["folders"].items()}
    cuda = torch | {name: versions.pop(name) for name in _CUDA if name in versions}
    return EnvironmentInfo(python, found["python_version"], folders, versions, cuda, note)


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
    found = [path for path in candidates if path.is_file() and os.access(path, os.X_OK)]
    if not found:
        tried = " or ".join(map(str, candidates))
        remedy = f"set it to an environment's folder, its bin, or its {command}"
        raise PrerequisiteError(f"{variable}={named}: no program {tried}", remedy)
    return found[0]


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
    beside = Path(sys.executable).parent / COMMAND
    on_path = str(beside) if os.access(beside, os.X_OK) else shutil.which(COMMAND)
    found = program_named(VARIABLE, COMMAND) or (Path(on_path).absolute() if on_path else None)
    if found is None:
        raise PrerequisiteError(f"{COMMAND} not found: not beside {sys.executable}, not on PATH", _REMEDY)
    return found


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
        programs = [word for word in words[1:] if not word.startswith("-") and "=" not in word][:1]
        found = shutil.which(programs[0]) if programs and "python" in programs[0] else None
        return Path(found).absolute() if found else None
    if "python" in Path(words[0]).name:
        # The kernel takes all up to the first blank as the program: pip and uv know, and use the form below.
        return Path(words[0])
    # A path too long for '#!', or with a blank in it: /bin/sh executes the second line, to Python it is a string.
    second = lines[1] if len(lines) > 1 else ""
    trick = re.match(r"""'''exec' (?:"(/[^"]*python[^"]*)"|(/\S*python\S*)) "\$0" """, second)
    if trick:
        return Path(trick[1] or trick[2])
    relocatable = re.match(r"""'''exec' "\$\(dirname .*realpath.*\)"/'?(python[\w.]*)'? "\$0" """, second)
    return cli.resolve().parent / relocatable[1] if relocatable else None
