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
TWO = {"dataset": "d,e", "mix_strategy": "interleave_under", "interleave_probs": "0.5,0.5"}
BEST = {"val_size": 0.1, "eval_strategy": "steps", "load_best_model_at_end": True}
PREDICT = {"val_size": 2, "predict_with_generate": True}
REPORTED = {"stage": "ppo", "reward_model": "r", "report_to": ["wandb", "mlflow"]}
FSDP = {"fsdp": "full_shard", "fsdp_config": {"min_num_params": 1, "fsdp_transformer_layer_cls_to_wrap": "A"}}
NO_VLLM = {"infer_backend": "huggingface"}

# What breaks a rule, what mends it, and the words of LLaMA-Factory, transformers or another library by their beginning:
# of each of their classes some, and each of those where our stand-ins for the launch matter.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("train", {"image_max_pixels": 10, "image_min_pixels": 11}, {"image_min_pixels": 10}, "`image_max_pixels` cannot"),
    ("train", {"eval_dataset": "e", "val_size": 5}, {"val_size": 0.0}, "Cannot specify `val_size` if `eval"),
    ("train", {**TWO, "dataset": "d"}, {"dataset": ["d", "e"]}, "The length of dataset and"),
    ("train", {"streaming": True, "max_steps": 1, "val_size": 0.1}, {"val_size": 100}, "Streaming mode"),
    ("train", {"save_steps": 1.5}, {"save_strategy": "epoch"}, "--save_steps must"),
    ("train", {**BEST, "eval_steps": 3, "save_steps": 10}, {"save_steps": 9},
     "--load_best_model_at_end requires the saving steps to be a round"),
    ("train", {"fp16": True, "bf16": True}, {"fp16": False}, "At most one of fp16 and bf16 can be True, but"),
    ("train", {"dataloader_prefetch_factor": 2}, {"dataloader_num_workers": 1}, "--dataloader_prefetch_factor"),
    ("train", {"fsdp": "offload"}, {"fsdp": ""}, "`--fsdp offload`"),
    ("train", FSDP, {"fsdp_config": {"transformer_layer_cls_to_wrap": ["A"]}}, "`min_num_params` and"),
    ("train", {"stage": "ppo"}, {"reward_model": "r"}, "`reward_model` is"),
    ("train", {"use_dora": True, "finetuning_type": "freeze"}, {"finetuning_type": "lora"}, "`use_dora` is"),
    ("train", REPORTED, {"report_to": ["wandb", "tensorboard"]}, "PPO only accepts"),
    ("train", {"do_eval": True}, {"val_size": 0.1}, "Please make sure eval"),
    ("train", {"adapter_name_or_path": "a", "finetuning_type": "full"}, {"finetuning_type": "lora"}, "Adapter is only"),
    ("api", {"infer_backend": "vllm", "stage": "rm"}, NO_VLLM, "vLLM engine only"),
    ("api", {"infer_backend": "vllm", "adapter_name_or_path": "a,b"}, NO_VLLM, "vLLM only accepts"),
    ("train", {"lora_dropout": 1.5}, {"lora_dropout": 1.0}, "dropout probability has to be between 0 and 1"),
    ("train", {"learning_rate": -1e-4}, {"learning_rate": 0.0}, "Invalid learning rate: -0.0001"),
    ("train", {"adam_beta1": 1.0}, {"adam_beta1": 0.0}, "Invalid beta parameter at index 0: 1.0"),
    ("train", {"per_device_train_batch_size": 0}, {"per_device_train_batch_size": 1}, "batch_size should be a"),
    ("train", {"per_device_eval_batch_size": 0, "val_size": 2, "do_eval": True}, {"per_device_eval_batch_size": 1},
     "batch_size should be a positive"),
    ("train", {"dataloader_persistent_workers": True}, {"dataloader_num_workers": 1}, "persistent_workers option"),
    ("train", {"preprocessing_num_workers": 0}, {"preprocessing_num_workers": 1}, "num_proc must be an integer > 0."),
    ("train", {"val_size": 1.0}, {"val_size": 1}, "test_size=1.0 should be either positive and smaller"),
    ("train", {**PREDICT, "temperature": 2}, {"temperature": 2.0}, "`temperature` (=2) has to be a strictly positive"),
    ("api", {"temperature": -1.0}, {"temperature": 0}, "`temperature` (=-1.0) has to be a strictly positive float"),
    ("api", {"top_p": -0.5}, {"top_p": 0.0}, "`top_p` has to be a float > 0 and < 1, but is -0.5"),
    ("api", {"repetition_penalty": 2}, {"repetition_penalty": 2.0}, "`penalty` has to be a strictly positive float"),
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


def test_what_breaks_a_rule_is_refused_by_its_arguments_and_what_mends_it_is_not(llamafactory, tmp_path):
    asked = [(command, {**base(command), **given}, "", set()) for command, given in TAKEN]
    for command, breaks, mends, words in CASES:
        broken = {**base(command), **breaks}
        asked += [(command, broken, words, {*breaks}), (command, {**broken, **mends}, "", set())]
    found = problems(llamafactory, tmp_path, [{command: given} for command, given, _, _ in asked])
    wrong = []
    for (command, given, words, names), mine in zip(asked, found, strict=True):
        refused = [each for each in mine if each["kind"] == "refused"]  # a package that is missing mends nothing
        fits = [each["message"].startswith(words) and {*each["arguments"][:1]} <= names for each in refused[:1]]
        if fits != [True] * bool(words):
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
