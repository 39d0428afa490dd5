"""The vLLM that is used: an environment of its own, since vLLM and LLaMA-Factory 0.9.5 want different torches.

Covered: the program that ORCHESTRATOR_VLLM names, its Python, the files of its package, the versions beside it.
Not covered: its flags (vllm_arguments.py); whether it works: nothing of it is imported, here or in the one short child
process that looks around in its environment.
Writes nothing.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PrerequisiteError
from orchestrator.upstream.installation import look_around, program_named

VARIABLE = "ORCHESTRATOR_VLLM"
# What decides an answer, recorded with each benchmark.
DISTRIBUTIONS = ("vllm", "torch", "transformers", "tokenizers", "flashinfer-python", "triton", "numpy")
_REMEDY = f"python3 -m venv DIR && DIR/bin/pip install vllm, then {VARIABLE}=DIR: an environment of its own"


@dataclass(frozen=True)
class Vllm:
    """Where vLLM is and what stands beside it."""

    cli: Path
    """The program vllm, absolute."""
    package: Path
    """Folder of the package vllm."""
    versions: dict[str, str]
    """Of DISTRIBUTIONS, those that are installed."""


def find_vllm() -> Vllm:
    """The vLLM that ORCHESTRATOR_VLLM names.

    Raises:
        PrerequisiteError: it is not set, or names none.
    """
    cli = program_named(VARIABLE, "vllm")
    if cli is None:
        raise PrerequisiteError(f"serve.backend is vllm, and {VARIABLE} says of none where it is", _REMEDY)
    seen = look_around(cli, ["vllm"], DISTRIBUTIONS, _REMEDY)
    package = seen.folders["vllm"]
    if package is None:
        raise PrerequisiteError(f"{cli}: its Python, {seen.python}, has no package vllm", _REMEDY)
    return Vllm(cli, package, seen.versions)


def settings_of_environment() -> dict[str, str]:
    """Variables of vLLM's own that are set here and change how it computes (VLLM_BATCH_INVARIANT); keys left out."""
    hidden = ("KEY", "TOKEN", "SECRET", "PASSWORD")
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("VLLM_") and not name.endswith(hidden)
    }
