"""The prompt of training as a Jinja template, for a server that has none of LLaMA-Factory's templates.

LLaMA-Factory makes it, and its token ids are compared with those of training: without and with a system text, with
history, in several scripts. Not for tools and images; thoughts in earlier answers stay, as its reasoning templates do
not have it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import StageError
from orchestrator.text import escape_controls
from orchestrator.upstream.ask import AskError, ask
from orchestrator.upstream.installation import Installation

TIMEOUT_S = 300  # importing LLaMA-Factory takes 8 s on an idle machine


@dataclass(frozen=True)
class ChatPrompt:
    """How a conversation becomes a prompt, in terms of the model's tokenizer alone."""

    chat_template: str
    """Jinja, as tokenizers have it."""
    stop_token_ids: tuple[int, ...]
    """What ends an answer: the tokenizer's end of text, and the stop words of LLaMA-Factory's template."""


def chat_prompt(arguments: Mapping[str, Any], installation: Installation) -> ChatPrompt:
    """The prompt of training for a model, of which `arguments` has LLaMA-Factory's.

    Raises:
        StageError: LLaMA-Factory cannot load the tokenizer; or no Jinja template gives the same prompt for this model.
    """
    try:
        answer = ask(installation.python, "chat_prompt", dict(arguments), timeout_s=TIMEOUT_S)
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
