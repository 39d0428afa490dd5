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

# What LLaMA-Factory or transformers says, by its beginning; what breaks that rule, and what mends it: of each of their
# classes some, and each of those where our stand-ins for the launch matter. The server is asked where vLLM's engine is
# meant, else the training.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("`image_max_pixels` cannot", {"image_max_pixels": 10, "image_min_pixels": 11}, {"image_min_pixels": 10}),
    ("Cannot specify `val_size` if `eval", {"eval_dataset": "e", "val_size": 5}, {"val_size": 0.0}),
    ("`interleave_probs` is only", {**TWO, "interleave_probs": "0.5,0.5", "mix_strategy": "concat"},
     {"mix_strategy": "interleave_over"}),
    ("The length of dataset and", {**TWO, "interleave_probs": "0.5,0.5", "dataset": "d"}, {"dataset": ["d", "e"]}),
    ("Streaming mode", {"streaming": True, "max_steps": 1, "val_size": 0.1}, {"val_size": 100}),
    ("`max_samples` is", {"streaming": True, "max_steps": 1, "max_samples": 5}, {"max_samples": GONE}),
    ("evaluation strategy", {**EVAL, "logging_steps": 0, "logging_strategy": "no"}, {"eval_steps": 5}),
    ("logging strategy", {"logging_steps": 0}, {"logging_strategy": "epoch"}),
    ("--save_steps must", {"save_steps": 1.5}, {"save_strategy": "epoch"}),
    ("--load_best_model_at_end requires the save and", {**BEST, "eval_strategy": "epoch"}, {"save_strategy": "epoch"}),
    ("--load_best_model_at_end requires the saving steps to be a round",
     {**BEST, "eval_steps": 3, "save_steps": 10}, {"save_steps": 9}),
    ("At most one of fp16 and bf16 can be True, but", {"fp16": True, "bf16": True}, {"fp16": False}),
    ("--dataloader_prefetch_factor", {"dataloader_prefetch_factor": 2}, {"dataloader_num_workers": 1}),
    ("`--fsdp offload`", {"fsdp": "offload"}, {"fsdp": ""}),
    ("`min_num_params` and",
     {"fsdp": "full_shard", "fsdp_config": {"min_num_params": 1, "fsdp_transformer_layer_cls_to_wrap": "A"}},
     {"fsdp_config": {"transformer_layer_cls_to_wrap": ["A"]}}),
    ("`reward_model` is", {"stage": "ppo"}, {"reward_model": "r"}),
    ("`use_llama_pro` is", {"use_llama_pro": True, "finetuning_type": "full"}, {"finetuning_type": "freeze"}),
    ("Cannot use LoRA with", {"use_apollo": True}, {"use_apollo": False}),
    ("Cannot use PiSSA", {"pissa_init": True, "stage": "dpo"}, {"pref_loss": "simpo"}),
    ("`use_dora` is", {"use_dora": True, "finetuning_type": "freeze"}, {"finetuning_type": "lora"}),
    ("`train_on_prompt` or", {"stage": "kto", "mask_history": True}, {"stage": "sft"}),
    ("PPO training does not", {**PPO, "do_train": False}, {"do_train": True}),
    ("PPO only accepts", {**PPO, "report_to": ["wandb", "mlflow"]}, {"report_to": ["wandb", "tensorboard"]}),
    ("Please specify `max_steps`", {"streaming": True}, {"max_steps": 3}),
    ("Please make sure eval", {"do_eval": True}, {"val_size": 0.1}),
    ("Cannot use device map", {"quantization_device_map": "auto"}, {"do_train": False}),
    ("vLLM/SGLang backend", {"infer_backend": "sglang"}, {"infer_backend": "huggingface"}),
    ("vLLM engine only", {**VLLM, "stage": "rm"}, {"infer_backend": "huggingface"}),
    ("vLLM only accepts", {**VLLM, "adapter_name_or_path": "a,b"}, {"infer_backend": "huggingface"}),
    ("Adapter is only", {"adapter_name_or_path": "a", "finetuning_type": "full"}, {"finetuning_type": "lora"}),
    ("Cannot resize", {"quantization_bit": 4, "resize_vocab": True}, {"resize_vocab": False}),
]  # fmt: skip


PREDICT = {"val_size": 2, "predict_with_generate": True}
# (command, argument, a value that a library refuses, one beside it that it takes, what else is given, its words)
VALUES: list[tuple[str, str, Any, Any, dict[str, Any], str]] = [
    ("train", "lora_dropout", 1.5, 1.0, {}, "dropout probability has to be between 0 and 1, but got 1.5"),
    ("train", "learning_rate", -1e-4, 0.0, {}, "Invalid learning rate: -0.0001"),
    ("train", "adam_beta1", 1.0, 0.0, {}, "Invalid beta parameter at index 0: 1.0"),
    ("train", "per_device_train_batch_size", 0, 1, {}, "batch_size should be a positive integer value, but got"),
    ("train", "per_device_eval_batch_size", 0, 1, {"val_size": 2, "do_eval": True}, "batch_size should be a positive"),
    ("train", "dataloader_num_workers", 0, 1, {"dataloader_persistent_workers": True}, "persistent_workers option"),
    ("train", "preprocessing_num_workers", 0, 1, {}, "num_proc must be an integer > 0."),
    ("train", "val_size", 1.0, 1, {}, "test_size=1.0 should be either positive and smaller than the number of samples"),
    ("train", "temperature", 2, 2.0, PREDICT, "`temperature` (=2) has to be a strictly positive float"),
    ("api", "temperature", -1.0, 0, {}, "`temperature` (=-1.0) has to be a strictly positive float"),
    ("api", "top_p", -0.5, 0.0, {}, "`top_p` has to be a float > 0 and < 1, but is -0.5"),
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
    torchrun = {**TRAIN, "ddp_backend": "gloo"}  # a process group would be opened for it
    assert problems(llamafactory, tmp_path, [{"train": torchrun, "torchrun": True}]) == [[]]


@pytest.mark.parametrize(
    ("given", "torchrun", "arguments", "words"),
    [
        ({}, False, ["deepspeed"], "Please use `FORCE_TORCHRUN=1`"),
        ({}, True, ["deepspeed"], "deepspeed"),  # the package
        ({"predict_with_generate": True, "val_size": 2}, True, ["predict_with_generate", "deepspeed"], "ZeRO-3"),
        ({"pure_bf16": True}, None, ["pure_bf16", "deepspeed"], "incompatible with DeepSpeed ZeRO-3"),
        ({"finetuning_type": "full", "use_galore": True}, True, ["use_galore", "deepspeed"], "GaLore and APOLLO"),
    ],
)
def test_deepspeed_is_judged_as_it_would_be_launched(given, torchrun, arguments, words, llamafactory, tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    asked = {**TRAIN, **given, "deepspeed": str(tmp_path / "ds.json")}
    ((first, *_),) = problems(llamafactory, tmp_path, [{"train": asked, "torchrun": torchrun}])
    assert words in first["message"] and {*first["arguments"]} >= {*arguments}


@pytest.mark.parametrize(
    ("given", "package"),
    [
        ({"enable_liger_kernel": True}, "liger_kernel"),
        ({"use_adam_mini": True}, "adam_mini"),
        ({"mixture_of_depths": "load"}, "MoD"),
        ({"report_to": "wandb"}, "wandb"),
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes"),
    ],
)
def test_a_package_that_an_argument_calls_for_is_missed(given, package, llamafactory, tmp_path):
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
