"""The installed vLLM, in an environment of its own, as it and LLaMA-Factory 0.9.5 need different torches."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.specs.places import is_secret
from orchestrator.text import escape_controls
from orchestrator.upstream.installation import AskError, Installation, ask, inspect_environment, program_named

VARIABLE = "ORCHESTRATOR_VLLM"
# What decides an answer, recorded with each benchmark.
_DISTRIBUTIONS = ("vllm", "torch", "transformers", "tokenizers", "flashinfer-python", "numpy")
_REMEDY = f"python3 -m venv DIR && DIR/bin/pip install vllm, then {VARIABLE}=DIR: an environment of its own"

# Always given, unless a spec has others: they change answers or speed, and vLLM's own defaults differ by release.
DEFAULTS: dict[str, Any] = {"dtype": "auto", "seed": 0, "enable_prefix_caching": True}


@dataclass(frozen=True)
class ChatPrompt:
    """How a conversation becomes a prompt, as a tokenizer's Jinja template."""

    chat_template: str
    stop_token_ids: tuple[int, ...]  # the tokenizer's end of text, and the stop words of LLaMA-Factory's template


def find_vllm() -> Installation:
    """The vLLM that ORCHESTRATOR_VLLM names; PrerequisiteError where it is not set, or there is none."""
    cli = program_named(VARIABLE, "vllm")
    if cli is None:
        raise PrerequisiteError(f"serve.backend is vllm but {VARIABLE} is not set", _REMEDY)
    found = inspect_environment(cli, "vllm", _DISTRIBUTIONS, _REMEDY)
    if found.package is None:
        raise PrerequisiteError(f"{cli}: its Python, {found.python}, has no package vllm", _REMEDY)
    return found


def settings_of_environment() -> dict[str, str]:
    """Variables of vLLM's own that are set here and change how it computes (VLLM_BATCH_INVARIANT); keys left out."""
    variables = sorted(os.environ.items())
    return {name: value for name, value in variables if name.startswith("VLLM_") and not is_secret(name, value)}


def argument_words(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments as words of `vllm serve`: {"max_len": 5, "eager": False} -> --max-len 5 --no-eager; mappings: JSON."""
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


def parser_refusal(vllm: Installation, words: Sequence[str]) -> str:
    """What vLLM's parser says to a command line, the model first, that it refuses; '' where it takes it. AskError."""
    return str(ask(vllm.python, "vllm_arguments", list(words), timeout_s=180))


def chat_prompt(arguments: Mapping[str, Any], installation: Installation) -> ChatPrompt:
    """The prompt of training for LLaMA-Factory's arguments of a model, by its own functions, token ids compared.

    Raises StageError: it cannot load the tokenizer, or no Jinja template gives the same prompt.
    """
    try:
        answer = ask(installation.python, "chat_prompt", dict(arguments), timeout_s=300)
    except AskError as error:
        raise StageError(f"LLaMA-Factory gave no chat template: {error.message}", error.remedy) from error
    template = arguments.get("template")
    if answer["differences"]:
        trained, rendered = (escape_controls(text[:300]) for text in answer["differences"][0])
        raise StageError(
            f"no Jinja template gives the prompt of template {template} for the tokenizer of "
            f"{arguments['model_name_or_path']}.\n  trained:  {trained}\n  rendered: {rendered}",
            "serve it with serve.backend: llamafactory",
        )
    if any(number >= answer["vocabulary"] for number in answer["stop_token_ids"]):
        raise StageError(
            f"template {template} ends an answer with a token that the model's tokenizer does not have",
            "serve it with serve.backend: llamafactory, or merged: serve.merge: true",
        )
    return ChatPrompt(answer["chat_template"], tuple(answer["stop_token_ids"]))
