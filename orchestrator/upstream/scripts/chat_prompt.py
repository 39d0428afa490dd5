"""The prompt of training as a Jinja template, made by LLaMA-Factory's own functions and compared by token ids.

stdin: the model's arguments of llamafactory-cli. stdout: {"chat_template", "stop_token_ids", "vocabulary",
"differences": [[as trained, as rendered], ...]}. Runs in LLaMA-Factory's Python.
"""

import json
import sys
from typing import Any

from llamafactory.data.template import ReasoningTemplate, Template, get_template_and_fix_tokenizer
from llamafactory.hparams import get_infer_args
from llamafactory.model import load_tokenizer
from transformers import AutoTokenizer

TEXTS = ["Translate.\nIt's 5 o'clock: a \"quoted\" word, {braces}, 20 % \\ more.", " Zwei Männer – 两个人 😀 ", "Yes."]
SYSTEM = {"role": "system", "content": "You translate.\nBriefly."}


def escape(text: str) -> str:
    """For a string of Jinja, where a backslash is as in Python; LLaMA-Factory escapes quotes alone."""
    return text.replace("\\", "\\\\").replace("'", "\\'").replace("\r", "\\r")


def jinja_template(template: Any, tokenizer: Any) -> str:
    Template._jinja_escape = staticmethod(escape)
    formatters = [template.format_prefix, template.format_system, template.format_user, template.format_assistant]
    kept = [formatter.slots for formatter in formatters]
    for formatter in formatters:  # a slot such as {"token": "<|user|>"} is its text: ids are compared
        formatter.slots = [slot["token"] if isinstance(slot, dict) else slot for slot in formatter.slots]
    jinja: str = template._get_jinja_template(tokenizer)
    for formatter, slots in zip(formatters, kept, strict=True):
        formatter.slots = slots
    if isinstance(template, ReasoningTemplate) and not template.enable_thinking:
        jinja += "{% if add_generation_prompt %}{{ '" + escape(template.add_thought()) + "' }}{% endif %}"
    return jinja


def main() -> dict[str, Any]:
    model_args, data_args, _, _ = get_infer_args(json.load(sys.stdin))
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    jinja = jinja_template(template, tokenizer)
    options = {"revision": model_args.model_revision, "trust_remote_code": model_args.trust_remote_code}
    plain = AutoTokenizer.from_pretrained(model_args.model_name_or_path, **options)
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant", "user"], TEXTS, strict=True)]
    differences = []
    for messages in (turns[:1], [{"role": "user", "content": TEXTS[1]}], [SYSTEM, turns[0]], turns):
        text = plain.apply_chat_template(messages, chat_template=jinja, tokenize=False, add_generation_prompt=True)
        rendered = plain.encode(text, add_special_tokens=False)
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        rest = [dict(message) for message in messages if message["role"] != "system"]
        trained, _ = template.encode_oneturn(tokenizer, [*rest, {"role": "assistant", "content": ""}], system, None)
        if trained != rendered:
            differences.append([tokenizer.decode(trained), plain.decode(rendered)])
    stops = sorted(number for number in template.get_stop_token_ids(tokenizer) if number is not None)
    return {"chat_template": jinja, "stop_token_ids": stops, "vocabulary": len(plain), "differences": differences}


if __name__ == "__main__":
    answer = main()
    print()
    print(json.dumps(answer))
