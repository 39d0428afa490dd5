"""LLaMA-Factory's parser and libraries asked about arguments that break their rules, and mended ones.

Run: pytest tests/test_check_arguments.py. All cases are one question to the real LLaMA-Factory.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.upstream.installation import SCRIPTS
from tests.imported_once import Imported

pytestmark = pytest.mark.integration

TRAIN = {
    "model_name_or_path": "m", "template": "default", "dataset": "d", "do_train": True, "output_dir": "o",
    "use_cpu": True,
}  # fmt: skip
CASES = yaml.safe_load((Path(__file__).parent / "data" / "refused_arguments.yaml").read_text("utf-8"))


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
    asked = [(command, {**base(command), **given}, "", set()) for command, given in CASES["taken"]]
    for command, breaks, mends, words in CASES["refused"]:
        broken = {**base(command), **breaks}
        mended = {key: value for key, value in {**broken, **mends}.items() if value is not None}
        asked += [(command, broken, words, {*breaks}), (command, mended, "", set())]
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
        ({"use_unsloth": True}, "unsloth"),
        ({"use_swanlab": True}, "swanlab"),
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
