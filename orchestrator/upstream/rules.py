"""Rules between arguments that LLaMA-Factory and transformers check when they start: a table, and who breaks it.

Covered: the conditions of hparams/*.py (__post_init__), hparams/parser.py and transformers' training_args.py that the
arguments alone decide, in the order of those files, with the messages that stand there. A rule whose message the
installation in use has no more is left out, so that an upgrade never refuses what LLaMA-Factory would take.
Not covered: rules on GPUs (bf16, pure_bf16, tf32), torchrun, DeepSpeed, what output_dir holds, optional packages.
Not covered: what one value alone decides in peft, torch, datasets or transformers' generation (ranges.py).
Not covered either, since the choices say it first: an unknown finetuning_type, reward_model_type oft.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError
from orchestrator.specs.arguments import COMPUTED, Argument
from orchestrator.specs.yamlfile import Location
from orchestrator.upstream.installation import Installation

ANY = frozenset({"train", "api", "export"})
TRAIN = frozenset({"train"})
SERVE = frozenset({"api", "export"})


@dataclass(frozen=True)
class Rule:
    """What must not be, in LLaMA-Factory's words."""

    commands: frozenset[str]
    """The commands that check it."""
    fields: tuple[str, ...]
    """The arguments that decide it; the first that a spec gives is where it is reported."""
    broken: Callable[..., Any]
    """Given the values of the fields, in their order, defaults filled in."""
    message: str
    """LLaMA-Factory's or transformers' own. {name}: a value."""
    remedy: str
    by: str = "LLaMA-Factory"
    """Who refuses it. Empty: nobody does, and the message says what goes wrong."""

    @property
    def beginning(self) -> str:
        """The message up to its first value, which Python may show in another way."""
        return self.message.partition("{")[0].rstrip()


def _items(value: Any) -> list[Any]:
    """As LLaMA-Factory splits: text at commas, a list as it is, nothing is none."""
    return [] if value is None else value.split(",") if isinstance(value, str) else list(value)


def _unequal_lengths(one: Any, other: Any) -> bool:
    return one is not None and other is not None and len(_items(one)) != len(_items(other))


def _loggers(report_to: Any) -> set[Any]:
    """As transformers reads report_to; of 'all' it is known only where it runs."""
    return set() if report_to in ("all", ["all"]) else set(report_to) if isinstance(report_to, list) else {report_to}


def _fraction(steps: float) -> bool:
    return steps > 1 and steps != int(steps)


def _eval_steps(strategy: str, eval_steps: float | None, logging_steps: float) -> float:
    """Steps between evaluations; 0 where it is not by steps."""
    return (eval_steps or logging_steps) if strategy == "steps" else 0


def _unequal_steps(best: bool, strategy: str, saving: str, steps: float | None, save: float, log: float) -> int:
    """How saving and evaluation disagree where the best model is loaded: 0 not, 1 mixed, 2 of ratios, 3 of steps."""
    every = _eval_steps(strategy, steps, log)
    if not best or saving != "steps" or every <= 0 or save % every == 0:
        return 0
    if every >= 1 and save >= 1:
        return 3
    if every >= 1 or save >= 1:
        return 1
    return 2 if (save * 1_000_000) % (every * 1_000_000) else 0


def _two(*switches: bool) -> bool:
    return sum(switches) > 1


_WRAP = "transformer_layer_cls_to_wrap"
_STEPS = ("load_best_model_at_end", "eval_strategy", "save_strategy", "eval_steps", "save_steps", "logging_steps")
_MULTIPLE = "--load_best_model_at_end requires the saving steps to be a "
_PISSA = "Please use scripts/pissa_init.py to initialize PiSSA for a quantized model."


def _fsdp_wraps_twice(fsdp: Any, config: Any) -> bool:
    if not fsdp or not isinstance(config, dict):  # a file is not read
        return False
    given = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    return (given.get("min_num_params") or 0) > 0 and given.get(_WRAP) is not None


def _fsdp_words(fsdp: Any) -> list[str]:
    return fsdp.split() if isinstance(fsdp, str) else list(fsdp or [])


# Where a spec says what LLaMA-Factory is told under these names; every other stands in its section as it is.
_PLACES: dict[str, Location] = {
    "model_name_or_path": ("model", "name_or_path"),
    "adapter_name_or_path": ("model", "adapter_name_or_path"),
    "dataset": ("dataset",),
    "infer_backend": ("serve", "infer_backend"),
}

# fmt: off
RULES: tuple[Rule, ...] = (
    # hparams/model_args.py
    Rule(ANY, ("model_name_or_path",), lambda name: name is None,
         "Please provide `model_name_or_path`.", "write model.name_or_path"),
    Rule(ANY, ("image_max_pixels", "image_min_pixels"), lambda most, least: most < least,
         "`image_max_pixels` cannot be smaller than `image_min_pixels`.", "raise image_max_pixels"),
    Rule(ANY, ("video_max_pixels", "video_min_pixels"), lambda most, least: most < least,
         "`video_max_pixels` cannot be smaller than `video_min_pixels`.", "raise video_max_pixels"),
    Rule(ANY, ("export_quantization_bit", "export_quantization_dataset"),
         lambda bit, data: bit is not None and data is None,
         "Quantization dataset is necessary for exporting.", "give export_quantization_dataset"),
    # hparams/data_args.py
    Rule(ANY, ("val_size", "dataset"), lambda size, data: data is None and size > 1e-6,
         "Cannot specify `val_size` if `dataset` is None.", "give a dataset, or leave val_size out"),
    Rule(ANY, ("val_size", "eval_dataset"), lambda size, data: data is not None and size > 1e-6,
         "Cannot specify `val_size` if `eval_dataset` is not None.", "leave one of them out"),
    Rule(ANY, ("interleave_probs", "mix_strategy"), lambda probs, mix: probs is not None and mix == "concat",
         "`interleave_probs` is only valid for interleaved mixing.", "write mix_strategy: interleave_under"),
    Rule(ANY, ("interleave_probs", "mix_strategy", "dataset"),
         lambda probs, mix, data: mix != "concat" and _unequal_lengths(probs, data),
         "The length of dataset and interleave probs should be identical.", "one probability for each dataset"),
    Rule(ANY, ("interleave_probs", "mix_strategy", "eval_dataset"),
         lambda probs, mix, data: mix != "concat" and _unequal_lengths(probs, data),
         "The length of eval dataset and interleave probs should be identical.", "one probability for each dataset"),
    Rule(ANY, ("val_size", "streaming"), lambda size, streaming: streaming and 1e-6 < size < 1,
         "Streaming mode should have an integer val size.", "write val_size as a number of rows"),
    Rule(ANY, ("max_samples", "streaming"), lambda most, streaming: streaming and most is not None,
         "`max_samples` is incompatible with `streaming`.", "leave max_samples out, and set max_steps"),
    Rule(ANY, ("mask_history", "train_on_prompt"), lambda mask, prompt: mask and prompt,
         "`mask_history` is incompatible with `train_on_prompt`.", "leave one of them out"),
    # transformers/training_args.py
    Rule(TRAIN, ("eval_steps", "logging_steps", "eval_strategy"),
         lambda steps, log, strategy: strategy == "steps" and not steps and log <= 0,
         "evaluation strategy {eval_strategy} requires either non-zero --eval_steps or --logging_steps",
         "give eval_steps"),
    Rule(TRAIN, ("torch_empty_cache_steps",), lambda steps: steps is not None and steps <= 0,
         "`torch_empty_cache_steps` must be an integer bigger than 0, got {torch_empty_cache_steps}.",
         "leave it out"),
    Rule(TRAIN, ("logging_steps", "logging_strategy"), lambda steps, strategy: strategy == "steps" and steps == 0,
         "logging strategy {logging_strategy} requires non-zero --logging_steps", "or write logging_strategy: \"no\""),
    Rule(TRAIN, ("logging_steps", "logging_strategy"), lambda steps, strategy: strategy == "steps" and _fraction(steps),
         "--logging_steps must be an integer if bigger than 1: {logging_steps}", "below 1 it is a share of all steps"),
    Rule(TRAIN, ("eval_steps", "eval_strategy", "logging_steps"),
         lambda steps, strategy, log: _fraction(_eval_steps(strategy, steps, log)),
         "--eval_steps must be an integer if bigger than 1: {eval_steps}", "below 1 it is a share of all steps"),
    Rule(TRAIN, ("save_steps", "save_strategy"), lambda steps, strategy: strategy == "steps" and _fraction(steps),
         "--save_steps must be an integer if bigger than 1: {save_steps}", "below 1 it is a share of all steps"),
    Rule(TRAIN, ("load_best_model_at_end", "eval_strategy", "save_strategy"),
         lambda best, strategy, saving: best and saving != "best" and strategy != saving,
         "--load_best_model_at_end requires the save and eval strategy to match, except when --save_strategy=\"best\", "
         "but found {eval_strategy} for evaluation, {save_strategy} for saving",
         "write the same eval_strategy and save_strategy"),
    Rule(TRAIN, _STEPS, lambda *steps: _unequal_steps(*steps) == 1,
         _MULTIPLE + "multiple of the evaluation steps, which cannot get guaranteed when mixing ratio and absolute "
         "steps for save_steps {save_steps} and eval_steps {eval_steps}.", "both as steps, or both below 1"),
    Rule(TRAIN, _STEPS, lambda *steps: _unequal_steps(*steps) == 2,
         _MULTIPLE + "multiple of the evaluation steps, but found {save_steps}, which is not a multiple of "
         "{eval_steps}.",
         "make save_steps a multiple of eval_steps"),
    Rule(TRAIN, _STEPS, lambda *steps: _unequal_steps(*steps) == 3,
         _MULTIPLE + "round multiple of the evaluation steps, but found {save_steps}, which is not a round multiple of "
         "{eval_steps}.", "make save_steps a multiple of eval_steps"),
    Rule(TRAIN, ("fp16", "bf16"), _two,
         "At most one of fp16 and bf16 can be True, but not both", "leave fp16 out"),
    Rule(TRAIN, ("fp16_full_eval", "bf16_full_eval"), _two,
         "At most one of fp16 and bf16 can be True for full eval, but not both", "leave fp16_full_eval out"),
    Rule(TRAIN, ("lr_scheduler_type", "eval_strategy"),
         lambda kind, strategy: kind == "reduce_lr_on_plateau" and strategy == "no",
         "lr_scheduler_type reduce_lr_on_plateau requires an eval strategy", "write eval_strategy, and val_size"),
    Rule(TRAIN, ("lr_scheduler_type", "eval_strategy"), lambda kind, strategy: kind == "greedy" and strategy == "no",
         "lr_scheduler_type greedy requires an eval strategy", "write eval_strategy, and val_size"),
    Rule(TRAIN, ("warmup_steps", "warmup_ratio"), lambda steps, ratio: (steps if ratio is None else ratio) < 0,
         "warmup_steps must be an integer or a float", "0 or more"),
    Rule(TRAIN, ("dataloader_prefetch_factor", "dataloader_num_workers"),
         lambda factor, workers: factor is not None and workers == 0,
         "--dataloader_prefetch_factor can only be set when data is loaded in a different process, i.e. when "
         "--dataloader_num_workers > 0.", "give dataloader_num_workers"),
    Rule(TRAIN, ("fsdp",), lambda fsdp: _fsdp_words(fsdp) == ["offload"],
         "`--fsdp offload` can't work on its own. It needs to be added to `--fsdp full_shard` or "
         "`--fsdp shard_grad_op`.", "write fsdp: full_shard offload"),
    Rule(TRAIN, ("fsdp",), lambda fsdp: {"full_shard", "shard_grad_op"} <= set(_fsdp_words(fsdp)),
         "`--fsdp full_shard` is not compatible with `--fsdp shard_grad_op`.", "leave one of them out"),
    Rule(TRAIN, ("fsdp_config", "fsdp"), lambda config, fsdp: _fsdp_wraps_twice(fsdp, config),
         "`min_num_params` and `transformer_layer_cls_to_wrap` are mutually exclusive.", "leave one of them out"),
    # hparams/finetuning_args.py
    Rule(ANY, ("ref_model_quantization_bit",), lambda bit: bit not in (None, 8, 4),
         "We only accept 4-bit or 8-bit quantization.", "4 or 8"),
    Rule(ANY, ("reward_model_quantization_bit",), lambda bit: bit not in (None, 8, 4),
         "We only accept 4-bit or 8-bit quantization.", "4 or 8"),
    Rule(ANY, ("reward_model", "stage"), lambda model, stage: stage == "ppo" and model is None,
         "`reward_model` is necessary for PPO training.", "give reward_model"),
    Rule(ANY, ("reward_model_type", "finetuning_type", "stage"),
         lambda reward, kind, stage: stage == "ppo" and reward == "lora" and kind != "lora",
         "`reward_model_type` cannot be lora for Freeze/Full PPO training.", "write reward_model_type: full"),
    Rule(ANY, ("dpo_label_smoothing", "pref_loss", "stage"),
         lambda smoothing, loss, stage: stage == "dpo" and loss != "sigmoid" and smoothing > 1e-6,
         "`dpo_label_smoothing` is only valid for sigmoid loss function.", "write pref_loss: sigmoid"),
    Rule(ANY, ("use_llama_pro", "finetuning_type"), lambda pro, kind: pro and kind == "full",
         "`use_llama_pro` is only valid for Freeze or LoRA training.", "write finetuning_type: freeze"),
    Rule(ANY, ("use_galore", "use_apollo", "use_badam", "finetuning_type"),
         lambda galore, apollo, badam, kind: kind == "lora" and (galore or apollo or badam),
         "Cannot use LoRA with GaLore, APOLLO or BAdam together.", "write finetuning_type: full"),
    Rule(ANY, ("use_galore", "use_apollo", "use_badam"), _two,
         "Cannot use GaLore, APOLLO or BAdam together.", "leave all but one out"),
    Rule(ANY, ("pissa_init", "stage", "pref_loss"),
         lambda pissa, stage, loss:
         pissa and (stage in ("ppo", "kto") or (stage == "dpo" and loss not in ("orpo", "simpo"))),
         "Cannot use PiSSA for current training stage.", "leave pissa_init out"),
    Rule(ANY, ("loraplus_lr_ratio", "finetuning_type"), lambda ratio, kind: ratio is not None and kind != "lora",
         "`loraplus_lr_ratio` is only valid for LoRA training.", "leave it out"),
    Rule(ANY, ("use_rslora", "finetuning_type"), lambda used, kind: used and kind != "lora",
         "`use_rslora` is only valid for LoRA training.", "leave it out"),
    Rule(ANY, ("use_dora", "finetuning_type"), lambda used, kind: used and kind != "lora",
         "`use_dora` is only valid for LoRA training.", "leave it out"),
    Rule(ANY, ("pissa_init", "finetuning_type"), lambda used, kind: used and kind != "lora",
         "`pissa_init` is only valid for LoRA training.", "leave it out"),
    # hparams/parser.py, get_train_args
    Rule(TRAIN, ("predict_with_generate", "stage"), lambda used, stage: used and stage != "sft",
         "`predict_with_generate` cannot be set as True except SFT.", "leave it out"),
    Rule(TRAIN, ("neat_packing", "stage"), lambda used, stage: used and stage != "sft",
         "`neat_packing` cannot be set as True except SFT.", "leave it out"),
    Rule(TRAIN, ("train_on_prompt", "mask_history", "stage"),
         lambda prompt, mask, stage: (prompt or mask) and stage != "sft",
         "`train_on_prompt` or `mask_history` cannot be set as True except SFT.", "leave it out"),
    Rule(TRAIN, ("do_predict", "predict_with_generate", "stage"),
         lambda predict, generate, stage: stage == "sft" and predict and not generate,
         "Please enable `predict_with_generate` to save model predictions.", "write predict_with_generate: true"),
    Rule(TRAIN, ("load_best_model_at_end", "stage"), lambda best, stage: best and stage in ("rm", "ppo"),
         "RM and PPO stages do not support `load_best_model_at_end`.", "leave it out"),
    Rule(TRAIN, ("do_train", "stage"), lambda train, stage: stage == "ppo" and not train,
         "PPO training does not support evaluation, use the SFT stage to evaluate models.", "write stage: sft"),
    Rule(TRAIN, ("shift_attn", "stage"), lambda shift, stage: shift and stage == "ppo",
         "PPO training is incompatible with S^2-Attn.", "leave shift_attn out"),
    Rule(TRAIN, ("use_kt", "reward_model_type", "stage"),
         lambda used, reward, stage: used and stage == "ppo" and reward == "lora",
         "KTransformers does not support lora reward model.", "write reward_model_type: full"),
    Rule(TRAIN, ("use_unsloth", "reward_model_type", "stage"),
         lambda used, reward, stage: used and stage == "ppo" and reward == "lora",
         "Unsloth does not support lora reward model.", "write reward_model_type: full"),
    Rule(TRAIN, ("report_to", "stage"),
         lambda to, stage: stage == "ppo" and not _loggers(to) <= {"wandb", "tensorboard", "trackio", "none"},
         "PPO only accepts wandb, tensorboard, or trackio logger.", "write report_to: none"),
    Rule(TRAIN, ("streaming", "max_steps"), lambda streaming, steps: streaming and steps == -1,
         "Please specify `max_steps` in streaming mode.", "give max_steps"),
    Rule(TRAIN, ("do_train", "dataset"), lambda train, data: train and data is None,
         "Please specify dataset for training.", "write the spec's dataset"),
    Rule(TRAIN, ("do_eval", "do_predict", "predict_with_generate", "eval_strategy", "eval_dataset", "val_size"),
         lambda evaluates, predicts, generates, strategy, data, size:
         (evaluates or predicts or generates or strategy != "no") and data is None and size < 1e-6,
         "Please make sure eval_dataset be provided or val_size >1e-6", "give val_size"),
    Rule(TRAIN, ("compute_accuracy", "predict_with_generate"), _two,
         "Cannot use `predict_with_generate` and `compute_accuracy` together.", "leave one of them out"),
    Rule(TRAIN, ("quantization_device_map", "do_train"), lambda device_map, train: train and device_map == "auto",
         "Cannot use device map for quantized models in training.", "leave quantization_device_map out"),
    Rule(TRAIN, ("fp8", "quantization_bit"), lambda fp8, bit: fp8 and bit is not None,
         "FP8 training is not compatible with quantization. Please disable one of them.", "leave one of them out"),
    Rule(TRAIN, ("infer_backend",), lambda backend: backend != "huggingface",
         "vLLM/SGLang backend is only available for API, CLI and Web.", "write serve.infer_backend"),
    # hparams/parser.py, get_infer_args
    Rule(SERVE, ("stage", "infer_backend"), lambda stage, backend: backend == "vllm" and stage != "sft",
         "vLLM engine only supports auto-regressive models.", "leave stage out"),
    Rule(SERVE, ("quantization_bit", "infer_backend"), lambda bit, backend: backend == "vllm" and bit is not None,
         "vLLM engine does not support bnb quantization (GPTQ and AWQ are supported).", "leave quantization_bit out"),
    Rule(SERVE, ("rope_scaling", "infer_backend"), lambda scaling, backend: backend == "vllm" and scaling is not None,
         "vLLM engine does not support RoPE scaling.", "leave rope_scaling out"),
    Rule(SERVE, ("adapter_name_or_path", "infer_backend"),
         lambda adapter, backend: backend == "vllm" and len(_items(adapter)) > 1,
         "vLLM only accepts a single adapter. Merge them first.", "name one adapter"),
    # hparams/parser.py, _verify_model_args
    Rule(ANY, ("adapter_name_or_path", "finetuning_type"),
         lambda adapter, kind: adapter is not None and kind != "lora",
         "Adapter is only valid for the LoRA method.", "write finetuning_type: lora"),
    Rule(ANY, ("quantization_bit", "finetuning_type"),
         lambda bit, kind: bit is not None and kind not in ("lora", "oft"),
         "Quantization is only compatible with the LoRA or OFT method.", "write finetuning_type: lora"),
    Rule(ANY, ("pissa_init", "quantization_bit"), lambda pissa, bit: pissa and bit is not None,
         _PISSA, "leave pissa_init out, and name the model that the script makes"),
    Rule(ANY, ("resize_vocab", "quantization_bit"), lambda resize, bit: resize and bit is not None,
         "Cannot resize embedding layers of a quantized model.", "leave resize_vocab out"),
    Rule(ANY, ("create_new_adapter", "adapter_name_or_path", "quantization_bit"),
         lambda create, adapter, bit: create and adapter is not None and bit is not None,
         "Cannot create new adapter upon a quantized model.", "leave create_new_adapter out"),
    Rule(ANY, ("adapter_name_or_path", "quantization_bit"),
         lambda adapter, bit: bit is not None and len(_items(adapter)) > 1,
         "Quantized model only accepts a single adapter. Merge them first.", "name one adapter"),
    # hparams/parser.py, _verify_trackio_args
    Rule(TRAIN, ("project", "report_to"), lambda project, to: "trackio" in _loggers(to) and not project,
         "`--project` must be specified when using Trackio.", "give project"),
)
# fmt: on


def known_rules(installation: Installation) -> tuple[Rule, ...]:
    """The rules that the installation in use still has.

    Raises:
        PrerequisiteError: its source files are not there.
    """
    if installation.package is None or installation.training_args is None:
        return ()
    text = "".join(
        _joined(_source(path))
        for path in [*sorted((installation.package / "hparams").glob("*.py")), installation.training_args]
    )
    return tuple(rule for rule in RULES if rule.beginning in text)


def broken_rules(
    command: str, given: Mapping[str, Any], arguments: Mapping[str, Argument], rules: Iterable[Rule] = RULES
) -> list[tuple[Rule, str]]:
    """The rules that some arguments break, each with its message.

    Args:
        command: train, api or export.
        given: arguments that are right one by one.
        arguments: what the installation takes; their defaults stand for what is not given.
        rules: those of the installation.
    """
    known = {name: each.default for name, each in arguments.items() if command in each.commands}
    values = {name: default for name, default in known.items() if default is not COMPUTED} | dict(given)
    return [
        (rule, rule.message.format(**{name: values[name] for name in rule.fields}))
        for rule in rules
        if command in rule.commands
        and all(name in values for name in rule.fields)
        and rule.broken(*(values[name] for name in rule.fields))
    ]


def rule_problems(
    command: str,
    given: Mapping[str, Any],
    section: str,
    raw: Mapping[str, Any],
    arguments: Mapping[str, Argument],
    rules: Iterable[Rule],
) -> list[tuple[Location, str]]:
    """broken_rules, each at the place in the spec `raw` that gives the first of its arguments, else at the section."""
    found: list[tuple[Location, str]] = []
    for rule, message in broken_rules(command, given, arguments, rules):
        places = [_PLACES.get(name, (section, name)) for name in rule.fields]
        at = next((place for place in places if _stands(raw, place)), (section,))
        refused = f"{rule.by} would refuse this: " if rule.by else ""
        found.append((at, f"{refused}{message}\n{rule.remedy}"))
    return found


def _stands(raw: Any, at: Location) -> bool:
    for step in at:
        if not isinstance(raw, Mapping) or step not in raw:
            return False
        raw = raw[step]
    return True


def _source(path: Path) -> str:
    try:
        return str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PrerequisiteError(f"{path} cannot be read: {error}", "reinstall llamafactory and transformers") from error


def _joined(source: str) -> str:
    """Python source whose messages stand on one line each: 'a ' "b" of several lines is 'a b'."""
    return re.sub(r"""["']\s*\n\s*f?["']""", "", source).replace('\\"', '"')
