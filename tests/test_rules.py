"""The rules between arguments, against LLaMA-Factory's own parser. Run: pytest tests/test_rules.py."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.planning.spec_file import load_spec
from orchestrator.specs.arguments import Argument
from orchestrator.upstream.installation import Installation
from orchestrator.upstream.rules import RULES, broken_rules, known_rules
from tests.imported_once import Imported
from tests.reports import flat

TRAIN = {
    "model_name_or_path": "m", "template": "default", "dataset": "d", "do_train": True, "output_dir": "o",
    "use_cpu": True,
}  # fmt: skip
PPO = {"stage": "ppo", "reward_model": "r"}
TWO = {"dataset": "d,e", "mix_strategy": "interleave_under"}
EVAL = {"val_size": 0.1, "eval_strategy": "steps"}
BEST = {**EVAL, "load_best_model_at_end": True}
VLLM = {"infer_backend": "vllm"}
GONE = object()

# Of each rule, by the beginning of its message: what breaks it, and what mends that. The first of several messages that
# begin alike comes first in the table.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Please provide `model_name_or_path`", {"model_name_or_path": GONE}, {"model_name_or_path": "m"}),
    ("`image_max_pixels` cannot", {"image_max_pixels": 10, "image_min_pixels": 11}, {"image_min_pixels": 10}),
    ("`video_max_pixels` cannot", {"video_max_pixels": 100}, {"video_max_pixels": 256}),
    ("Quantization dataset is", {"export_quantization_bit": 4}, {"export_quantization_dataset": "c4"}),
    ("Cannot specify `val_size` if `dataset`", {"dataset": GONE, "val_size": 0.1}, {"dataset": "d"}),
    ("Cannot specify `val_size` if `eval", {"eval_dataset": "e", "val_size": 5}, {"val_size": 0.0}),
    ("`interleave_probs` is only", {**TWO, "interleave_probs": "0.5,0.5", "mix_strategy": "concat"},
     {"mix_strategy": "interleave_over"}),
    ("The length of dataset and", {**TWO, "interleave_probs": "0.5,0.5", "dataset": "d"}, {"dataset": ["d", "e"]}),
    ("The length of eval dataset", {**TWO, "interleave_probs": "0.5,0.5", "eval_dataset": "e"},
     {"eval_dataset": "e,f"}),
    ("Streaming mode", {"streaming": True, "max_steps": 1, "val_size": 0.1}, {"val_size": 100}),
    ("`max_samples` is", {"streaming": True, "max_steps": 1, "max_samples": 5}, {"max_samples": GONE}),
    ("`mask_history` is", {"mask_history": True, "train_on_prompt": True}, {"mask_history": False}),
    ("evaluation strategy", {**EVAL, "logging_steps": 0, "logging_strategy": "no"}, {"eval_steps": 5}),
    ("`torch_empty_cache_steps` must", {"torch_empty_cache_steps": 0}, {"torch_empty_cache_steps": 1}),
    ("logging strategy", {"logging_steps": 0}, {"logging_strategy": "epoch"}),
    ("--logging_steps must", {"logging_steps": 1.5}, {"logging_steps": 2.0}),
    ("--eval_steps must", {**EVAL, "eval_steps": 1.5}, {"eval_steps": 0.5}),
    ("--eval_steps must", {**EVAL, "logging_steps": 1.5, "logging_strategy": "no"}, {"eval_steps": 1}),
    ("--save_steps must", {"save_steps": 1.5}, {"save_strategy": "epoch"}),
    ("--load_best_model_at_end requires the save and", {**BEST, "eval_strategy": "epoch"}, {"save_strategy": "epoch"}),
    ("--load_best_model_at_end requires the save and", {**BEST, "save_strategy": "epoch"}, {"save_strategy": "best"}),
    ("--load_best_model_at_end requires the saving steps to be a multiple of the evaluation steps, which",
     {**BEST, "eval_steps": 0.4, "save_steps": 9}, {"save_steps": 0.8}),
    ("--load_best_model_at_end requires the saving steps to be a multiple of the evaluation steps, but",
     {**BEST, "eval_steps": 0.3, "save_steps": 0.4}, {"save_steps": 0.6}),
    ("--load_best_model_at_end requires the saving steps to be a round",
     {**BEST, "eval_steps": 3, "save_steps": 10}, {"save_steps": 9}),
    ("At most one of fp16 and bf16 can be True, but", {"fp16": True, "bf16": True}, {"fp16": False}),
    ("At most one of fp16 and bf16 can be True for", {"fp16_full_eval": True, "bf16_full_eval": True},
     {"fp16_full_eval": False}),
    ("lr_scheduler_type reduce", {"lr_scheduler_type": "reduce_lr_on_plateau"}, {**EVAL}),
    ("lr_scheduler_type greedy", {"lr_scheduler_type": "greedy"}, {**EVAL}),
    ("warmup_steps must", {"warmup_steps": -1}, {"warmup_steps": 0}),
    ("warmup_steps must", {"warmup_ratio": -0.1}, {"warmup_ratio": 0.1}),
    ("--dataloader_prefetch_factor", {"dataloader_prefetch_factor": 2}, {"dataloader_num_workers": 1}),
    ("`--fsdp offload`", {"fsdp": "offload"}, {"fsdp": ""}),
    ("`--fsdp full_shard` is not", {"fsdp": "full_shard shard_grad_op"}, {"fsdp": "full_shard"}),
    ("`min_num_params` and",
     {"fsdp": "full_shard", "fsdp_config": {"min_num_params": 1, "fsdp_transformer_layer_cls_to_wrap": "A"}},
     {"fsdp_config": {"transformer_layer_cls_to_wrap": ["A"]}}),
    ("We only accept 4-bit", {"ref_model_quantization_bit": 3}, {"ref_model_quantization_bit": 4}),
    ("We only accept 4-bit", {"reward_model_quantization_bit": 2}, {"reward_model_quantization_bit": 8}),
    ("`reward_model` is", {"stage": "ppo"}, {"reward_model": "r"}),
    ("`reward_model_type` cannot", {**PPO, "finetuning_type": "full"}, {"reward_model_type": "full"}),
    ("`dpo_label_smoothing` is", {"stage": "dpo", "pref_loss": "hinge", "dpo_label_smoothing": 0.1}, {"stage": "sft"}),
    ("`use_llama_pro` is", {"use_llama_pro": True, "finetuning_type": "full"}, {"finetuning_type": "freeze"}),
    ("Cannot use LoRA with", {"use_apollo": True}, {"use_apollo": False}),
    ("Cannot use GaLore, APOLLO or", {"finetuning_type": "full", "use_galore": True, "use_badam": True},
     {"use_galore": False, "use_badam": False}),
    ("Cannot use PiSSA", {"pissa_init": True, "stage": "kto"}, {"stage": "sft"}),
    ("Cannot use PiSSA", {"pissa_init": True, "stage": "dpo"}, {"pref_loss": "simpo"}),
    ("`loraplus_lr_ratio` is", {"loraplus_lr_ratio": 16, "finetuning_type": "oft"}, {"finetuning_type": "lora"}),
    ("`use_rslora` is", {"use_rslora": True, "finetuning_type": "full"}, {"finetuning_type": "lora"}),
    ("`use_dora` is", {"use_dora": True, "finetuning_type": "freeze"}, {"finetuning_type": "lora"}),
    ("`pissa_init` is", {"pissa_init": True, "finetuning_type": "full"}, {"finetuning_type": "lora"}),
    ("`predict_with_generate` cannot", {"stage": "pt", "predict_with_generate": True, **EVAL},
     {"predict_with_generate": False}),
    ("`neat_packing` cannot", {"stage": "dpo", "neat_packing": True}, {"stage": "sft"}),
    ("`train_on_prompt` or", {"stage": "dpo", "train_on_prompt": True}, {"stage": "sft"}),
    ("`train_on_prompt` or", {"stage": "kto", "mask_history": True}, {"stage": "sft"}),
    ("Please enable `predict", {"do_predict": True, "val_size": 0.1}, {"do_predict": False}),
    ("RM and PPO stages", {"stage": "rm", **BEST}, {"load_best_model_at_end": False}),
    ("PPO training does not", {**PPO, "do_train": False}, {"do_train": True}),
    ("PPO training is", {**PPO, "shift_attn": True}, {"shift_attn": False}),
    ("KTransformers does not", {**PPO, "use_kt": True}, {"use_kt": False}),
    ("Unsloth does not", {**PPO, "use_unsloth": True}, {"use_unsloth": False}),
    ("PPO only accepts", {**PPO, "report_to": "mlflow"}, {"report_to": "none"}),
    ("PPO only accepts", {**PPO, "report_to": ["wandb", "mlflow"]}, {"report_to": ["wandb", "tensorboard"]}),
    ("PPO only accepts", {**PPO, "report_to": None}, {"report_to": ["none"]}),
    ("Please specify `max_steps`", {"streaming": True}, {"max_steps": 3}),
    ("Please specify dataset", {"dataset": GONE}, {"do_train": False}),
    ("Please make sure eval", {"do_eval": True}, {"val_size": 0.1}),
    ("Please make sure eval", {"eval_strategy": "epoch"}, {"eval_dataset": "e"}),
    ("Cannot use `predict_with_generate` and", {"predict_with_generate": True, "compute_accuracy": True, **EVAL},
     {"predict_with_generate": False}),
    ("Cannot use device map", {"quantization_device_map": "auto"}, {"do_train": False}),
    ("FP8 training is not", {"fp8": True, "quantization_bit": 4}, {"fp8": False}),
    ("vLLM/SGLang backend", {"infer_backend": "sglang"}, {"infer_backend": "huggingface"}),
    ("vLLM engine only", {**VLLM, "stage": "rm"}, {"infer_backend": "huggingface"}),
    ("vLLM engine does not support bnb", {**VLLM, "quantization_bit": 4}, {"infer_backend": "huggingface"}),
    ("vLLM engine does not support RoPE", {**VLLM, "rope_scaling": "yarn"}, {"infer_backend": "huggingface"}),
    ("vLLM only accepts", {**VLLM, "adapter_name_or_path": "a,b"}, {"infer_backend": "huggingface"}),
    ("Adapter is only", {"adapter_name_or_path": "a", "finetuning_type": "full"}, {"finetuning_type": "lora"}),
    ("Quantization is only", {"quantization_bit": 8, "finetuning_type": "freeze"}, {"finetuning_type": "oft"}),
    ("Please use scripts/pissa", {"quantization_bit": 4, "pissa_init": True}, {"pissa_init": False}),
    ("Cannot resize", {"quantization_bit": 4, "resize_vocab": True}, {"resize_vocab": False}),
    ("Cannot create new", {"quantization_bit": 4, "adapter_name_or_path": "a", "create_new_adapter": True},
     {"create_new_adapter": False}),
    ("Quantized model only", {"quantization_bit": 4, "adapter_name_or_path": "a, b"}, {"adapter_name_or_path": "a"}),
    ("`--project` must", {"report_to": "trackio", "project": ""}, {"project": "p"}),
]  # fmt: skip

# In LLaMA-Factory's own Python: the verdict of its parser on each list of arguments.
VERDICTS = """
import json, sys
from llamafactory.hparams.parser import get_infer_args, get_train_args
verdicts = []
for command, arguments in json.load(open(sys.argv[1])):
    try:
        (get_train_args if command == "train" else get_infer_args)(arguments)
        verdicts.append("")
    except Exception as error:
        verdicts.append(str(error) or type(error).__name__)
json.dump(verdicts, open(sys.argv[2], "w"))
"""


def tried(arguments: dict[str, Argument]) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(command, beginning, breaking arguments, mended ones), for each command that checks the rule."""
    found = []
    for beginning, breaks, mends in CASES:
        commands = {command for rule in RULES if rule.beginning.startswith(beginning) for command in rule.commands}
        for command in sorted(commands & {"train", "api"}):
            taken = {name for name, each in arguments.items() if command in each.commands}
            broken = {key: value for key, value in {**TRAIN, **breaks}.items() if key in taken and value is not GONE}
            mended = {key: value for key, value in {**broken, **mends}.items() if key in taken and value is not GONE}
            found.append((command, beginning, broken, mended))
    return found


def test_every_rule_has_a_case(arguments: dict[str, Argument]) -> None:
    broken = {rule for command, _, given, _ in tried(arguments) for rule, _ in broken_rules(command, given, arguments)}
    assert [rule.message for rule in RULES if rule not in broken] == []


def test_a_case_breaks_its_rule_and_its_mended_arguments_none(arguments: dict[str, Argument]) -> None:
    for command, beginning, broken, mended in tried(arguments):
        said = [message for _, message in broken_rules(command, broken, arguments)]
        assert any(message.startswith(beginning) for message in said), (command, broken, said)
        assert broken_rules(command, mended, arguments) == [], (command, mended)


def test_a_usual_training_and_server_break_none(arguments: dict[str, Argument]) -> None:
    assert broken_rules("train", TRAIN, arguments) == []
    assert broken_rules("api", {"model_name_or_path": "m", "adapter_name_or_path": "a"}, arguments) == []


def test_every_rule_stands_in_the_installed_source(installation: Installation) -> None:
    assert known_rules(installation) == RULES


def test_a_rule_that_the_installation_no_longer_has_is_left_out(tmp_path: Path) -> None:
    """Its message is looked up in the source, wherever that breaks its lines."""
    package, training = tmp_path / "llamafactory", tmp_path / "training_args.py"
    (package / "hparams").mkdir(parents=True)
    (package / "hparams" / "a.py").write_text(
        'raise ValueError(\n    "vLLM engine only "\n    f"supports auto-regressive models."\n)\n'
    )
    training.write_text('raise ValueError(f"--save_steps must be an integer if bigger than 1: {self.save_steps}")\n')
    found = known_rules(Installation(tmp_path, tmp_path, package, training, {}, "3.11"))
    assert [rule.fields[0] for rule in found] == ["save_steps", "stage"]
    assert known_rules(Installation(tmp_path, tmp_path, None, None, {}, "3.11")) == ()


def test_a_rule_of_arguments_that_the_installation_lacks_is_not_looked_at(arguments: dict[str, Argument]) -> None:
    fewer = {name: each for name, each in arguments.items() if name != "use_badam"}
    given = {**TRAIN, "use_galore": True}
    assert broken_rules("train", given, arguments) != []
    assert broken_rules("train", given, fewer) == []


def test_a_message_holds_the_values_and_defaults_count(arguments: dict[str, Argument]) -> None:
    ((rule, message),) = broken_rules("train", {**TRAIN, "save_steps": 7.5}, arguments)
    assert message == "--save_steps must be an integer if bigger than 1: 7.5"
    assert rule.beginning == "--save_steps must be an integer if bigger than 1:"


def test_broken_rules_stand_at_the_first_field_that_the_spec_gives(
    arguments: dict[str, Argument], tmp_path: Path
) -> None:
    """The model's in its section, a rule of both commands once, an override as it was written."""
    (tmp_path / "s.yaml").write_text(
        "name: a\nmodel: {name_or_path: m, adapter_name_or_path: x}\ndataset: d\ntrain:\n"
        "  finetuning_type: full\n  fp16: true\n  bf16: true\nserve:\n  finetuning_type: full\n  stage: rm\n"
        "  infer_backend: vllm\n"
    )
    with pytest.raises(SpecError) as error:
        load_spec(tmp_path / "s.yaml", ["train.stage=ppo"], arguments)
    lines = [line.replace(f"{tmp_path}/", "") for line in flat(str(error.value))]
    refused = "LLaMA-Factory would refuse this: "
    assert lines == [
        "s.yaml has 5 errors:",
        f"s.yaml:2:26: model.adapter_name_or_path: {refused}Adapter is only valid for the LoRA method.;"
        " write finetuning_type: lora",
        f"--set train.stage=ppo: train.stage: {refused}`reward_model` is necessary for PPO training.;"
        " give reward_model",
        f"s.yaml:5:3: train.finetuning_type: {refused}`reward_model_type` cannot be lora for Freeze/Full PPO training.;"
        " write reward_model_type: full",
        f"s.yaml:6:3: train.fp16: {refused}At most one of fp16 and bf16 can be True, but not both; leave fp16 out",
        f"s.yaml:10:3: serve.stage: {refused}vLLM engine only supports auto-regressive models.; leave stage out",
    ]


def verdicts(llamafactory: Imported, folder: Path, asked: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What LLaMA-Factory's parser says to each: '' where it takes it."""
    (folder / "asked.json").write_text(json.dumps(asked))
    done = llamafactory.run(VERDICTS, "asked.json", "verdicts.json", cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads((folder / "verdicts.json").read_text())
    assert len(said) == len(asked)
    return said


@pytest.mark.integration
def test_llamafactory_s_parser_gives_the_same_verdicts(
    llamafactory: Imported, arguments: dict[str, Argument], tmp_path: Path
) -> None:
    """Each case, mended and not, and pairs of them: refused with a message of ours, or taken by both."""
    cases = tried(arguments)
    single = [(command, given) for command, _, broken, mended in cases for given in (broken, mended)]
    pairs = []
    for one, other in random.Random(3).sample(list(itertools.combinations(cases, 2)), 400):
        if one[0] == other[0]:
            pairs.append((one[0], {**one[2], **other[2]}))
            pairs.append((one[0], {**one[2], **other[3]}))
    asked = single + pairs
    wrong = []
    for (command, given), said in zip(asked, verdicts(llamafactory, tmp_path, asked), strict=True):
        ours = [rule.beginning for rule, _ in broken_rules(command, given, arguments)]
        missing = "No package metadata was found" in said  # not of the table: use_galore without galore_torch, say
        if not (any(map(said.startswith, ours)) if ours else not said or missing):
            wrong.append((command, given, said, ours))
    assert wrong == []


def test_every_field_of_a_rule_is_an_argument(arguments: dict[str, Argument]) -> None:
    """A rule is never dead by a slip of the pen."""
    assert [(rule, name) for rule in RULES for name in rule.fields if name not in arguments] == []
