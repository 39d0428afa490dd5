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
    ("Quantization dataset is", {"export_quantization_bit": 4}, {"export_quantization_dataset": "c4"}),
    ("Cannot specify `val_size` if `eval", {"eval_dataset": "e", "val_size": 5}, {"val_size": 0.0}),
    ("`interleave_probs` is only", {**TWO, "interleave_probs": "0.5,0.5", "mix_strategy": "concat"},
     {"mix_strategy": "interleave_over"}),
    ("Streaming mode", {"streaming": True, "max_steps": 1, "val_size": 0.1}, {"val_size": 100}),
    ("`max_samples` is", {"streaming": True, "max_steps": 1, "max_samples": 5}, {"max_samples": GONE}),
    ("--logging_steps must", {"logging_steps": 1.5}, {"logging_steps": 2.0}),
    ("--load_best_model_at_end requires the save and", {**BEST, "eval_strategy": "epoch"}, {"save_strategy": "epoch"}),
    ("--load_best_model_at_end requires the saving steps to be a multiple of the evaluation steps, which",
     {**BEST, "eval_steps": 0.4, "save_steps": 9}, {"save_steps": 0.8}),
    ("At most one of fp16 and bf16 can be True, but", {"fp16": True, "bf16": True}, {"fp16": False}),
    ("lr_scheduler_type reduce", {"lr_scheduler_type": "reduce_lr_on_plateau"}, {**EVAL}),
    ("warmup_steps must", {"warmup_steps": -1}, {"warmup_steps": 0}),
    ("`--fsdp full_shard` is not", {"fsdp": "full_shard shard_grad_op"}, {"fsdp": "full_shard"}),
    ("`reward_model` is", {"stage": "ppo"}, {"reward_model": "r"}),
    ("`dpo_label_smoothing` is", {"stage": "dpo", "pref_loss": "hinge", "dpo_label_smoothing": 0.1}, {"stage": "sft"}),
    ("Cannot use LoRA with", {"use_apollo": True}, {"use_apollo": False}),
    ("Cannot use PiSSA", {"pissa_init": True, "stage": "kto"}, {"stage": "sft"}),
    ("`train_on_prompt` or", {"stage": "dpo", "train_on_prompt": True}, {"stage": "sft"}),
    ("Please enable `predict", {"do_predict": True, "val_size": 0.1}, {"do_predict": False}),
    ("PPO only accepts", {**PPO, "report_to": "mlflow"}, {"report_to": "none"}),
    ("Please specify `max_steps`", {"streaming": True}, {"max_steps": 3}),
    ("Please make sure eval", {"do_eval": True}, {"val_size": 0.1}),
    ("vLLM engine only", {**VLLM, "stage": "rm"}, {"infer_backend": "huggingface"}),
    ("Quantization is only", {"quantization_bit": 8, "finetuning_type": "freeze"}, {"finetuning_type": "oft"}),
]  # fmt: skip


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
    wrong = []
    found = problems(llamafactory, tmp_path, [{command: given} for command, given, _, _ in asked])
    for (command, given, words, names), mine in zip(asked, found, strict=True):
        refused = [each for each in mine if each["kind"] == "refused"]  # a package that is missing mends nothing
        fits = bool(refused) and refused[0]["message"].startswith(words) and {*refused[0]["arguments"][:1]} <= names
        if not fits if words else refused:
            wrong.append((command, given, words, refused))
    assert wrong == []


def test_refusals_that_do_not_hang_together_are_all_found(llamafactory, tmp_path):
    """And of those that do, one: without val_size there would be nothing to evaluate."""
    many = {**TRAIN, "fp16": True, "bf16": True, "save_steps": 1.5, "report_to": "nothing"}
    one = {**TRAIN, "val_size": 0.1, "streaming": True, "max_steps": 1, "eval_strategy": "steps"}
    found = problems(llamafactory, tmp_path, [{"train": many}, {"train": one}])
    assert [each["arguments"] for each in found[0]] == [["save_steps"], ["fp16", "bf16"], ["report_to"]]
    assert [each["message"] for each in found[1]] == ["Streaming mode should have an integer val size."]


@pytest.mark.parametrize(
    ("given", "arguments", "words"),
    [
        ({}, ["deepspeed"], "deepspeed"),  # the package
        ({"predict_with_generate": True, "val_size": 2}, ["predict_with_generate", "deepspeed"], "ZeRO-3"),
        ({"pure_bf16": True}, ["pure_bf16", "deepspeed"], "incompatible with DeepSpeed ZeRO-3"),
    ],
)
def test_deepspeed_is_judged_as_it_would_be_launched(given, arguments, words, llamafactory, tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    asked = {**TRAIN, **given, "deepspeed": str(tmp_path / "ds.json")}
    ((first, *_),) = problems(llamafactory, tmp_path, [{"train": asked}])
    assert words in first["message"] and {*first["arguments"]} >= {*arguments}


@pytest.mark.parametrize(
    ("given", "package"),
    [
        ({"enable_liger_kernel": True}, "liger_kernel"),
        ({"report_to": "wandb"}, "wandb"),
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes"),
    ],
)
def test_a_package_that_an_argument_calls_for_is_missed(given, package, llamafactory, tmp_path):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    ((found,),) = problems(llamafactory, tmp_path, [{"train": {**TRAIN, **given}}])
    assert (found["kind"], found["arguments"]) == ("missing", list(given)) and "pip install" in found["message"]


def test_a_model_s_own_files_are_looked_at(llamafactory, tiny_model, tmp_path):
    """Its quantization's package; a tokenizer that is none; what is not on this machine."""
    config = json.loads((tiny_model / "config.json").read_text())
    quantized = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    for name, file, text in (("gptq", "config.json", json.dumps(quantized)), ("broken", "tokenizer.json", "{}")):
        shutil.copytree(tiny_model, tmp_path / name)
        (tmp_path / name / file).write_text(text)
    models = [str(tiny_model), str(tmp_path / "gptq"), str(tmp_path / "broken")]
    points = [{"train": {**TRAIN, "model_name_or_path": model}} for model in models]
    complete, gptq, broken = problems(llamafactory, tmp_path, points)
    assert complete == []
    assert [(each["kind"], "gptqmodel" in each["message"]) for each in gptq] == [("missing", True)]
    assert [(each["kind"], each["arguments"]) for each in broken] == [("refused", ["model_name_or_path"])]
    question = json.dumps({"points": [{"train": {**TRAIN, "model_name_or_path": "a/b"}}], "limit": 100})
    answer = llamafactory.script(SCRIPTS / "check_arguments.py", cwd=tmp_path, input=question)
    assert [each["kind"] for each in answer["problems"]] == ["unknown"] and answer["datasets"] == [None]
