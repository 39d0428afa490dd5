"""The installed vLLM, in an environment of its own: vLLM and LLaMA-Factory 0.9.5 need different torches."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError
from orchestrator.specs.places import is_secret
from orchestrator.upstream.ask import ask
from orchestrator.upstream.installation import inspect_environment, program_named

VARIABLE = "ORCHESTRATOR_VLLM"
# What decides an answer, recorded with each benchmark.
DISTRIBUTIONS = ("vllm", "torch", "transformers", "tokenizers", "flashinfer-python", "triton", "numpy")
_REMEDY = f"python3 -m venv DIR && DIR/bin/pip install vllm, then {VARIABLE}=DIR: an environment of its own"

# Always given: they change answers or speed, and vLLM's own defaults differ by release.
_DEFAULTS: dict[str, Any] = {"dtype": "auto", "seed": 0, "enable_prefix_caching": True}


@dataclass(frozen=True)
class Vllm:
    """Where vLLM is and what is installed beside it."""

    cli: Path
    """The program vllm, absolute."""
    python: Path
    """The Python that runs it."""
    versions: dict[str, str]
    """Of DISTRIBUTIONS, those that are installed."""


def find_vllm() -> Vllm:
    """The vLLM that ORCHESTRATOR_VLLM names.

    Raises:
        PrerequisiteError: it is not set, or there is no vLLM where it points.
    """
    cli = program_named(VARIABLE, "vllm")
    if cli is None:
        raise PrerequisiteError(f"serve.backend is vllm but {VARIABLE} is not set", _REMEDY)
    found = inspect_environment(cli, ["vllm"], DISTRIBUTIONS, _REMEDY)
    if found.folders["vllm"] is None:
        raise PrerequisiteError(f"{cli}: its Python, {found.python}, has no package vllm", _REMEDY)
    return Vllm(cli, found.python, found.versions)


def settings_of_environment() -> dict[str, str]:
    """Variables of vLLM's own that are set here and change how it computes (VLLM_BATCH_INVARIANT); keys left out."""
    variables = sorted(os.environ.items())
    return {name: value for name, value in variables if name.startswith("VLLM_") and not is_secret(name, value)}


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the command line that decide answers, without the model: a spec's over ours."""
    return {**_DEFAULTS, **given}


def argument_words(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments as words of `vllm serve`: {"max_model_len": 512, "enforce_eager": False} -> --max-model-len 512
    --no-enforce-eager.

    A mapping is JSON, a list one word for each item. Whether vLLM takes them, parser_refusal says.
    """
    words: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *(item if isinstance(item, str) else json.dumps(item) for item in value)]
        else:
            is_integer = isinstance(value, float) and value.is_integer()  # 1e2, where only an integer is taken
            text = json.dumps(value) if isinstance(value, dict) else str(int(value) if is_integer else value)
            words += [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", text]
    return words


def parser_refusal(vllm: Vllm, words: Sequence[str]) -> str:
    """What vLLM's parser says to a command line, the model first, that it refuses; '' where it takes it.

    Raises:
        AskError: vLLM cannot be imported, or is of a release that has its parser elsewhere.
    """
    return str(ask(vllm.python, "vllm_arguments", list(words), timeout_s=180))
