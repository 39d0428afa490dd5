"""LLaMA-Factory's parser and libraries asked about arguments that break their rules, and mended ones.

Run: pytest tests/test_check_arguments.py. All cases are one question to the real LLaMA-Factory.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.upstream.installation import SCRIPTS
from tests.imported_once import Imported

pytestmark = pytest.mark.integration

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

# What LLaMA-Factory or transformers says, by its beginning; what breaks that rule, and what mends it. It is asked about
# the server where it speaks of vLLM's engine, else about the training.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("`image_max_pixels` cannot", {"image_max_pixels": 10, "image_min_pixels": 11}, {"image_min_pixels": 10}),
    ("`video_max_pixels` cannot", {"video_max_pixels": 100}, {"video_max_pixels": 256}),
    ("Quantization dataset is", {"export_quantization_bit": 4}, {"export_quantization_dataset": "c4"}),
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


PREDICT = {"val_size": 2, "predict_with_generate": True}
# (command, argument, a value that a library refuses, one beside it that it takes, what else is given, its words)
VALUES: list[tuple[str, str, Any, Any, dict[str, Any], str]] = [
    ("train", "lora_dropout", 1.5, 1.0, {}, "dropout probability has to be between 0 and 1, but got 1.5"),
    ("train", "learning_rate", -1e-4, 0.0, {}, "Invalid learning rate: -0.0001"),
    ("train", "learning_rate", -1.0, 0.0, {"optim": "sgd"}, "Invalid learning rate: -1.0"),
    ("train", "adam_beta1", 1.0, 0.0, {}, "Invalid beta parameter at index 0: 1.0"),
    ("train", "adam_beta2", 0, 0.0, {}, "betas must be either both floats or both Tensors"),
    ("train", "adam_epsilon", -1e-8, 0.0, {}, "Invalid epsilon value: -1e-08"),
    ("train", "per_device_train_batch_size", 0, 1, {}, "batch_size should be a positive integer value, but got"),
    ("train", "per_device_eval_batch_size", 0, 1, {"val_size": 2, "do_eval": True}, "batch_size should be a positive"),
    ("train", "dataloader_num_workers", -1, 0, {}, "num_workers option should be non-negative"),
    ("train", "dataloader_num_workers", 0, 1, {"dataloader_persistent_workers": True}, "persistent_workers option"),
    ("train", "preprocessing_num_workers", 0, 1, {}, "num_proc must be an integer > 0."),
    ("train", "val_size", 1.0, 1, {}, "test_size=1.0 should be either positive and smaller than the number of samples"),
    ("train", "temperature", 2, 2.0, PREDICT, "`temperature` (=2) has to be a strictly positive float"),
    ("train", "top_p", -0.5, 0.0, PREDICT, "`top_p` has to be a float > 0 and < 1, but is -0.5"),
    ("train", "top_k", -1, 0, PREDICT, "`top_k` has to be a strictly positive integer, but is -1"),
    ("train", "num_beams", 0, 1, PREDICT, "ZeroDivisionError: integer division or modulo by zero"),
    ("train", "repetition_penalty", 0.0, 0.1, PREDICT, "`penalty` has to be a strictly positive float, but is 0.0"),
    ("api", "temperature", -1.0, 0, {}, "`temperature` (=-1.0) has to be a strictly positive float"),
    ("api", "top_p", -0.5, 0.0, {}, "`top_p` has to be a float > 0 and < 1, but is -0.5"),
    ("api", "top_k", -1, 0, {}, "`top_k` has to be a strictly positive integer, but is -1"),
    ("api", "num_beams", -1, 1, {}, "Trying to create tensor with negative dimension -1"),
    ("api", "repetition_penalty", 2, 2.0, {}, "`penalty` has to be a strictly positive float, but is 2"),
]  # fmt: skip
# Values that are off, or that nobody looks at there.
TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("train", {"lora_rank": 0, "lora_dropout": 2.0, "finetuning_type": "full"}),
    ("train", {"lora_dropout": -0.1, "weight_decay": -0.1, "lora_alpha": 0, "max_grad_norm": -1.0, "val_size": -1}),
    ("train", {"max_steps": 1, "num_train_epochs": 0, "per_device_eval_batch_size": 0, "temperature": 0, "top_k": -1}),
    ("train", {"optim": "adafactor", "learning_rate": -1.0, "adam_beta1": 1.5, "adam_epsilon": -1.0}),
    ("train", {**PREDICT, "temperature": 0, "top_p": -1.0, "top_k": -1, "do_sample": False}),
    ("api", {"lora_rank": 0, "cutoff_len": 0, "temperature": 0, "top_p": -0.5, "top_k": -1, "max_new_tokens": 0}),
    ("api", {"temperature": -1.0, "top_p": 1.5, "do_sample": False}),
]


def problems(llamafactory: Imported, folder: Path, points: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """By point; a model that is not on this machine is none."""
    question = json.dumps({"points": points, "limit": 0})
    answer = llamafactory.script(SCRIPTS / "check_arguments.py", cwd=folder, input=question)
    return [
        [each for each in answer["problems"] if each["point"] == number and each["kind"] != "unknown"]
        for number in range(len(points))
    ]


def base(command: str) -> dict[str, Any]:
    return dict(TRAIN) if command == "train" else {"model_name_or_path": "m", "template": "default"}


def test_what_breaks_a_rule_is_refused_by_its_arguments_and_what_mends_it_is_not(
    llamafactory: Imported, tmp_path: Path
) -> None:
    """All in one question: 16 s of CPU."""
    asked: list[tuple[str, dict[str, Any], str, set[str]]] = []  # command, arguments, words, those that may be named
    for words, breaks, mends in CASES:
        command = "api" if words.startswith(("vLLM engine", "vLLM only")) else "train"
        broken = {**base(command), **breaks}
        asked.append((command, broken, words, {*breaks}))
        mended = {**broken, **mends}
        asked.append((command, {key: value for key, value in mended.items() if value is not GONE}, "", set()))
    for command, name, refused, taken, others, words in VALUES:
        asked.append((command, {**base(command), **others, name: refused}, words, {name, *others}))
        asked.append((command, {**base(command), **others, name: taken}, "", set()))
    asked += [(command, {**base(command), **given}, "", set()) for command, given in TAKEN]
    wrong = []
    found = problems(llamafactory, tmp_path, [{command: given} for command, given, _, _ in asked])
    for (command, given, words, names), mine in zip(asked, found, strict=True):
        refused = [each for each in mine if each["kind"] == "refused"]  # a package that is missing mends nothing
        fits = bool(refused) and refused[0]["message"].startswith(words) and {*refused[0]["arguments"][:1]} <= names
        if not fits if words else refused:
            wrong.append((command, given, words, refused))
    assert wrong == []


def test_refusals_that_do_not_hang_together_are_all_found(llamafactory: Imported, tmp_path: Path) -> None:
    """And of those that do, one: without val_size there would be nothing to evaluate."""
    many = {**TRAIN, "fp16": True, "bf16": True, "save_steps": 1.5, "adam_beta1": 0, "report_to": "nothing"}
    one = {**TRAIN, "val_size": 0.1, "streaming": True, "max_steps": 1, "eval_strategy": "steps"}
    found = problems(llamafactory, tmp_path, [{"train": many}, {"train": one}])
    assert [each["arguments"] for each in found[0]] == [["save_steps"], ["fp16", "bf16"], ["report_to"], ["adam_beta1"]]
    assert [each["message"] for each in found[1]] == ["Streaming mode should have an integer val size."]


@pytest.mark.parametrize(
    ("given", "torchrun", "arguments", "words"),
    [
        ({}, False, ["deepspeed"], "Please use `FORCE_TORCHRUN=1`"),
        ({}, True, ["deepspeed"], "deepspeed"),  # the package
        ({}, None, ["deepspeed"], "deepspeed"),
        ({"predict_with_generate": True, "val_size": 2}, True, ["predict_with_generate", "deepspeed"], "ZeRO-3"),
        ({"pure_bf16": True}, None, ["pure_bf16", "deepspeed"], "incompatible with DeepSpeed ZeRO-3"),
        ({"finetuning_type": "full", "use_galore": True}, True, ["use_galore", "deepspeed"], "GaLore and APOLLO"),
    ],
)
def test_deepspeed_is_judged_as_it_would_be_launched(
    given: dict[str, Any],
    torchrun: bool | None,
    arguments: list[str],
    words: str,
    llamafactory: Imported,
    tmp_path: Path,
) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    asked = {**TRAIN, **given, "deepspeed": str(tmp_path / "ds.json")}
    ((first, *_),) = problems(llamafactory, tmp_path, [{"train": asked, "torchrun": torchrun}])
    assert words in first["message"] and {*first["arguments"]} >= {*arguments}


@pytest.mark.parametrize(
    ("given", "package"),
    [
        ({"enable_liger_kernel": True}, "liger_kernel"),
        ({"use_unsloth": True}, "unsloth"),
        ({"use_swanlab": True}, "swanlab"),
        ({"use_adam_mini": True}, "adam_mini"),
        ({"mixture_of_depths": "load"}, "MoD"),
        ({"report_to": "wandb"}, "wandb"),
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes"),
    ],
)
def test_a_package_that_an_argument_calls_for_is_missed(
    given: dict[str, Any], package: str, llamafactory: Imported, tmp_path: Path
) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    ((found,),) = problems(llamafactory, tmp_path, [{"train": {**TRAIN, **given}}])
    assert (found["kind"], found["arguments"]) == ("missing", list(given)) and "pip install" in found["message"]


def test_a_model_s_own_files_are_looked_at(llamafactory: Imported, tiny_model: Path, tmp_path: Path) -> None:
    """Its quantization's package, with ZeRO-3 its refusal; a tokenizer that is none; what is not on this machine."""
    for name, quantization in (("gptq", {"quant_method": "gptq", "bits": 4}), ("broken", None)):
        shutil.copytree(tiny_model, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        if quantization:
            (tmp_path / name / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    names = [str(tiny_model), str(tmp_path / "gptq"), str(tmp_path / "broken")]
    whole, gptq, broken = problems(
        llamafactory, tmp_path, [{"train": {**TRAIN, "model_name_or_path": n}} for n in names]
    )
    assert whole == []
    assert [(each["kind"], "gptqmodel" in each["message"]) for each in gptq] == [("missing", True)]
    assert [(each["kind"], each["arguments"]) for each in broken] == [("refused", ["model_name_or_path"])]
    question = json.dumps({"points": [{"train": {**TRAIN, "model_name_or_path": "a/b"}}], "limit": 100})
    answer = llamafactory.script(SCRIPTS / "check_arguments.py", cwd=tmp_path, input=question)
    assert [each["kind"] for each in answer["problems"]] == ["unknown"] and answer["datasets"] == [None]


def test_a_backend_of_torch_distributed_is_the_launchers_and_no_problem(llamafactory: Imported, tmp_path: Path) -> None:
    asked = {**TRAIN, "ddp_backend": "gloo"}
    assert problems(llamafactory, tmp_path, [{"train": asked, "torchrun": True}]) == [[]]
