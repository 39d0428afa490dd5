"""Values of the right type that peft, torch, datasets or transformers refuse, most of them after the model is loaded.

Covered: what LLaMA-Factory 0.9.5 was seen to fail on (tests/test_ranges.py runs it), with peft 0.18, torch 2.14,
datasets 4.0 and transformers 5.6, as far as other arguments let it; and what trains nothing without an error.
Not covered, since it is taken: values that mean "off" (0 or less for max_grad_norm, max_steps, save_steps, val_size,
max_new_tokens; top_p above 1), weight_decay or lora_dropout below 0, export_size 0.
Not covered either: the engines vllm and sglang; what DeepSpeed, Unsloth, APOLLO, Adam-mini and Muon make of a value.
"""

import operator
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.upstream.rules import TRAIN, Rule

API = frozenset({"api"})
# JSON Schema's words for a bound: what breaks it, and how it is said.
_BREAKS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (operator.lt, "{} or more"),
    "exclusiveMinimum": (operator.le, "more than {}"),
    "maximum": (operator.gt, "{} or less"),
    "exclusiveMaximum": (operator.ge, "less than {}"),
}
# The other arguments on which it depends whether a value matters, and how.
When = tuple[tuple[str, ...], Callable[..., Any]]
_ALWAYS: When = ((), lambda: True)


@dataclass(frozen=True)
class Range:
    """What an argument has to be, and who says so."""

    name: str
    bounds: Mapping[str, float]
    """In JSON Schema's words."""
    by: str
    """Who refuses the rest. Empty: nobody, and the message says what goes wrong."""
    message: str
    when: When = _ALWAYS
    commands: frozenset[str] = TRAIN

    def broken(self, value: Any, *others: Any) -> bool:
        """Null is never out of range."""
        outside = value is not None and any(_BREAKS[kind][0](value, bound) for kind, bound in self.bounds.items())
        return outside and bool(self.when[1](*others))

    @property
    def rule(self) -> Rule:
        """As a rule of the arguments that decide it, with the range in words."""
        said = " and ".join(_BREAKS[kind][1].format(bound) for kind, bound in self.bounds.items())
        return Rule(self.commands, (self.name, *self.when[0]), self.broken, self.message, said, self.by)


def _pointed(name: str, ints: Container[int], by: str, message: str, when: When, commands: frozenset[str]) -> Rule:
    """Integers where only a float is taken."""

    def broken(value: Any, *others: Any) -> bool:
        return type(value) is int and value in ints and bool(when[1](*others))

    return Rule(commands, (name, *when[0]), broken, message, "write it with a decimal point", by)


def _evaluates(evaluates: bool, predicts: bool, strategy: str) -> bool:
    return evaluates or predicts or strategy != "no"


# fmt: off
_1_UP, _0_UP, _ABOVE_0, _UP_TO_1 = {"minimum": 1}, {"minimum": 0}, {"exclusiveMinimum": 0}, {"maximum": 1}
_BETA = {"minimum": 0, "exclusiveMaximum": 1}
_OWN = ("deepspeed", "use_apollo", "use_adam_mini", "use_muon", "use_galore", "use_badam")  # optimizers of their own
_ADAMW = ("adamw_torch", "adamw_torch_fused")
_ADAM: When = (("optim", *_OWN), lambda optim, *own: optim in _ADAMW and not any(own))
_TORCH: When = (("optim", *_OWN),
                lambda optim, *own: optim in (*_ADAMW, "sgd", "rmsprop", "adagrad") and not any(own))
_LORA: When = (("finetuning_type", "adapter_name_or_path", "use_unsloth"),
               lambda kind, adapter, unsloth: kind == "lora" and adapter is None and not unsloth)
_OFT = ("finetuning_type", "adapter_name_or_path")
_MAPS: When = (("tokenized_path", "streaming"), lambda path, streaming: path is None and not streaming)
_ASKED = ("do_eval", "do_predict", "eval_strategy")
_PREDICTS: When = (("predict_with_generate", *_ASKED), lambda used, *asked: used and _evaluates(*asked))
_SAMPLES: When = (("do_sample", *_PREDICTS[0]), lambda sample, used, *asked: sample and used and _evaluates(*asked))
_ANSWERS: When = (("infer_backend",), lambda engine: engine == "huggingface")
_DRAWS: When = (("infer_backend", "do_sample"), lambda engine, sample: engine == "huggingface" and sample)
_WARM: When = (("infer_backend", "do_sample", "temperature"),  # of 0 the server makes greedy search
               lambda engine, sample, heat: engine == "huggingface" and sample and heat != 0)
_BATCH = "batch_size should be a positive integer value, but got batch_size={"
_HOT = "`temperature` (={temperature}) has to be a strictly positive float"
_PENALTY = "`penalty` has to be a strictly positive float, but is {repetition_penalty}"

RANGES: tuple[Range, ...] = (
    Range("lora_rank", _1_UP, "peft", "`r` should be a positive integer value but the value passed is {lora_rank}",
          _LORA),
    Range("lora_dropout", _UP_TO_1, "torch", "dropout probability has to be between 0 and 1, but got {lora_dropout}",
          _LORA),
    Range("oft_rank", {"maximum": 0}, "peft",  # or a block size of 0
          "You can only specify either r ({oft_rank}) or oft_block_size ({oft_block_size}), but not both",
          ((*_OFT, "oft_block_size"), lambda kind, adapter, size: kind == "oft" and adapter is None and size != 0)),
    Range("oft_block_size", _1_UP, "peft",
          "Either `r` or `oft_block_size` must be non-zero. Currently, r = 0 and oft_block_size = {oft_block_size}.",
          ((*_OFT, "oft_rank"), lambda kind, adapter, rank: kind == "oft" and adapter is None and rank == 0)),
    Range("learning_rate", _0_UP, "torch", "Invalid learning rate: {learning_rate}", _TORCH),
    Range("adam_beta1", _BETA, "torch", "Invalid beta parameter at index 0: {adam_beta1}", _ADAM),
    Range("adam_beta2", _BETA, "torch", "Invalid beta parameter at index 1: {adam_beta2}", _ADAM),
    Range("adam_epsilon", _0_UP, "torch", "Invalid epsilon value: {adam_epsilon}", _ADAM),
    Range("neftune_noise_alpha", _0_UP, "torch", "uniform_ expects to return a [from, to) range"),
    Range("per_device_train_batch_size", _1_UP, "torch", _BATCH + "per_device_train_batch_size}"),
    Range("per_device_eval_batch_size", _1_UP, "torch", _BATCH + "per_device_eval_batch_size}", (_ASKED, _evaluates)),
    Range("gradient_accumulation_steps", _1_UP, "",
          "transformers fails to divide by 0, and below 0 it trains nothing"),
    Range("num_train_epochs", _ABOVE_0, "", "transformers trains nothing, and LLaMA-Factory saves what it started from",
          (("max_steps",), lambda steps: steps <= 0)),
    Range("dataloader_num_workers", _0_UP, "torch", "num_workers option should be non-negative"),
    Range("dataloader_num_workers", _ABOVE_0, "torch", "persistent_workers option needs num_workers > 0",
          (("dataloader_persistent_workers",), bool)),
    Range("dataloader_prefetch_factor", _1_UP, "torch", "prefetch_factor must be greater than 0",
          (("dataloader_num_workers",), lambda workers: workers > 0)),
    Range("preprocessing_num_workers", _1_UP, "datasets", "num_proc must be an integer > 0.", _MAPS),
    Range("cutoff_len", _1_UP, "", "LLaMA-Factory cuts every record to nothing, and the model fails on what is left",
          (("tokenized_path",), lambda path: path is None)),
    # generation: of predictions, and by the server where a request does not say it
    Range("temperature", _ABOVE_0, "transformers", _HOT + "; for greedy search write do_sample: false", _SAMPLES),
    Range("temperature", _0_UP, "transformers", _HOT, _DRAWS, API),
    *(Range(*row, when, commands) for when, commands in ((_SAMPLES, TRAIN), (_WARM, API)) for row in (
        ("top_p", _0_UP, "transformers", "`top_p` has to be a float > 0 and < 1, but is {top_p}"),
        ("top_k", _0_UP, "transformers", "`top_k` has to be a strictly positive integer, but is {top_k}"))),
    *(Range(*row, when, commands) for when, commands in ((_PREDICTS, TRAIN), (_ANSWERS, API)) for row in (
        ("num_beams", _1_UP, "transformers", "there is no search with num_beams {num_beams}"),
        ("repetition_penalty", _ABOVE_0, "transformers", _PENALTY))),
)
RANGE_RULES: tuple[Rule, ...] = (
    *(each.rule for each in RANGES),
    Rule(TRAIN, ("val_size", *_MAPS[0]),
         lambda size, *others: type(size) is float and size == 1 and _MAPS[1](*others),
         "test_size={val_size} should be either positive and smaller than the number of samples or a float in the "
         "(0, 1) range", "write 1 for one record, a share below 1, or leave it out", "datasets"),
    *(_pointed(name, (0,), "torch", "betas must be either both floats or both Tensors", _ADAM, TRAIN)
      for name in ("adam_beta1", "adam_beta2")),
    *(_pointed(name, range(2, 2**63), "transformers", message, when, commands)
      for name, message, when, commands in (
          ("temperature", _HOT, _SAMPLES, TRAIN), ("temperature", _HOT, _DRAWS, API),
          ("repetition_penalty", _PENALTY, _PREDICTS, TRAIN), ("repetition_penalty", _PENALTY, _ANSWERS, API))),
)
# fmt: on


def always(command: str) -> dict[str, Mapping[str, float]]:
    """The bounds that hold whatever the other arguments are, by argument."""
    return {each.name: each.bounds for each in RANGES if command in each.commands and each.when is _ALWAYS}
