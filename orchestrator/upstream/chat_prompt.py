"""The prompt of training as a Jinja template, for a server that knows nothing of LLaMA-Factory's templates.

Covered: what LLaMA-Factory itself makes of the model section (template or the tokenizer's own, system text,
thinking), by its own functions in its own Python; the tokens that end an answer; the proof: for conversations with and
without system text, with history and in several scripts, the rendered text has the token ids that it trains on.
Not covered: tools, images; in a chat of several turns, taking thoughts out of earlier answers, as its reasoning
templates do.
Writes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import OrchestratorError, StageError
from orchestrator.processes.process import run_short
from orchestrator.text import escape_controls
from orchestrator.upstream.installation import Installation

TIMEOUT_S = 300  # its import alone takes 6 s and more

# Runs in LLaMA-Factory's Python. A slot such as {"token": "<|user|>"} is its text: which ids come of it is compared.
# Jinja reads \ within a text as Python does; LLaMA-Factory escapes ' alone.
_SCRIPT = r"""
import sys
sys.path[:] = [entry for entry in sys.path if entry]
import json
from llamafactory.data.template import ReasoningTemplate, Template, get_template_and_fix_tokenizer
from llamafactory.hparams import get_infer_args
from llamafactory.model import load_tokenizer
from transformers import AutoTokenizer

given = json.loads(sys.argv[1])
model_args, data_args, _, _ = get_infer_args(dict(given))
tokenizer = load_tokenizer(model_args)["tokenizer"]
template = get_template_and_fix_tokenizer(tokenizer, data_args)
Template._jinja_escape = staticmethod(
    lambda text: text.replace("\\", "\\\\").replace("'", "\\'").replace("\r", "\\r")
)
formatters = [template.format_prefix, template.format_system, template.format_user, template.format_assistant]
kept = [formatter.slots for formatter in formatters]
for formatter in formatters:
    formatter.slots = [slot["token"] if isinstance(slot, dict) else slot for slot in formatter.slots]
jinja = template._get_jinja_template(tokenizer)
for formatter, slots in zip(formatters, kept):
    formatter.slots = slots
if isinstance(template, ReasoningTemplate) and not template.enable_thinking:
    thought = Template._jinja_escape(template.add_thought())
    jinja += "{% if add_generation_prompt %}{{ '" + thought + "' }}{% endif %}"

plain = AutoTokenizer.from_pretrained(
    model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=model_args.trust_remote_code
)
said = ["Translate.\nIt's 5 o'clock: a \"quoted\" word, {braces}, 20 % \\ more.", " Zwei Männer – 两个人 😀 ", "Yes."]
system = {"role": "system", "content": "You translate.\nBriefly."}
turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant", "user"], said)]
differences = []
for messages in (turns[:1], [{"role": "user", "content": said[1]}], [system, turns[0]], turns):
    text = plain.apply_chat_template(messages, chat_template=jinja, tokenize=False, add_generation_prompt=True)
    theirs = plain.encode(text, add_special_tokens=False)
    head = messages[0]["content"] if messages[0]["role"] == "system" else None
    rest = [dict(message) for message in messages if message["role"] != "system"]
    ours, _ = template.encode_oneturn(tokenizer, [*rest, {"role": "assistant", "content": ""}], head, None)
    if ours != theirs:
        differences.append([tokenizer.decode(ours), plain.decode(theirs)])
print()
print(json.dumps({
    "chat_template": jinja,
    "stop_token_ids": sorted(number for number in template.get_stop_token_ids(tokenizer) if number is not None),
    "vocabulary": len(plain),
    "differences": differences,
}))
"""


@dataclass(frozen=True)
class ChatPrompt:
    """How a conversation is put to a model, in terms of its tokenizer alone."""

    chat_template: str
    """Jinja, as tokenizers have it."""
    stop_token_ids: tuple[int, ...]
    """What ends an answer: the tokenizer's end of text, and the stop words of LLaMA-Factory's template."""


def chat_prompt(arguments: Mapping[str, Any], installation: Installation) -> ChatPrompt:
    """The prompt of training for a model.

    Args:
        arguments: LLaMA-Factory's, of the model section (specs.spec.model_arguments).
        installation: LLaMA-Factory.

    Raises:
        StageError: LLaMA-Factory cannot load the tokenizer; or no Jinja template gives the same prompt for this model.
    """
    try:
        said = run_short([str(installation.python), "-c", _SCRIPT, json.dumps(dict(arguments))], timeout_s=TIMEOUT_S)
        answer = json.loads(said.strip().rpartition("\n")[2])
        prompt = ChatPrompt(str(answer["chat_template"]), tuple(map(int, answer["stop_token_ids"])))
        differences, vocabulary = list(answer["differences"]), int(answer["vocabulary"])
    except OrchestratorError as error:
        raise StageError(f"LLaMA-Factory did not tell its chat template: {error.message}", error.remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"LLaMA-Factory did not tell its chat template: {error!r}") from error
    template = arguments.get("template")
    if differences:
        trained, rendered = (escape_controls(text[:300]) for text in differences[0])
        raise StageError(
            f"the prompt of template {template} cannot be had from the tokenizer of {arguments['model_name_or_path']} "
            f"alone.\n  trained:  {trained}\n  rendered: {rendered}",
            "serve it with serve.backend: llamafactory",
        )
    if any(number >= vocabulary for number in prompt.stop_token_ids):
        raise StageError(
            f"template {template} ends an answer with a token that the model's tokenizer does not have",
            "serve it with serve.backend: llamafactory, or merged: serve.merge: true",
        )
    return prompt
