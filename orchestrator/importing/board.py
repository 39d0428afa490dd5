"""A form that LLaMA Board, LLaMA-Factory's web page, saved, as the arguments that it starts a training with.

Covered: llamaboard_config/NAME.yaml and an output folder's llamaboard_config.yaml, of the Train tab and of the
Evaluate & Predict tab; the model's path from its name, or from LLaMA Board's user_config.yaml.
Not covered: an output folder's training_args.yaml: that is an ordinary file of arguments. Whether the arguments are
right. Paths stay relative to the folder that LLaMA Board was started in.
Reads what it is given; nothing is executed.
"""

import ast
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.importing.board_form import PANELS, PLAIN, Form, short, wrong
from orchestrator.specs.compute_spec import is_secret
from orchestrator.specs.yamlfile import read_yaml
from orchestrator.upstream.chat_templates import _calls, _items
from orchestrator.upstream.installation import Installation, parse_source

# This is webui/runner.py's _parse_train_args and _parse_eval_args, and common.py's _clean_cmd, of LLaMA-Factory 0.9.5;
# 0.9.3 and 0.9.4 pass the same, but for report_to and ddp_timeout, which 0.9.3's evaluation leaves out.
_STAGES = {
    "Supervised Fine-Tuning": "sft",
    "Reward Modeling": "rm",
    "PPO": "ppo",
    "DPO": "dpo",
    "KTO": "kto",
    "Pre-Training": "pt",
}
_ADAPTERS = ("lora", "oft")
_CACHE_DIRS = ("llamaboard_cache", "cache")  # the second one up to 0.9.3
# Arguments that are passed even where they are false or empty; others are left out there.
_ALWAYS = frozenset({
    "packing", "enable_thinking", "use_reentrant_gc", "double_quantization", "freeze_vision_tower",
    "freeze_multi_modal_projector",
})  # fmt: skip


@dataclass(frozen=True)
class BoardRun:
    """What a saved form stands for."""

    arguments: dict[str, Any]
    """As LLaMA Board gives them to `llamafactory-cli train`: values that are false or empty left out, as it does."""
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What has no place in the arguments, or is not certain, each with the reason."""


def is_board_config(values: Mapping[str, Any]) -> bool:
    """Whether a file's values are LLaMA Board's fields: their names have a dot, an argument's has none."""
    return any(key.startswith(("top.", "train.", "eval.")) for key in values)


def read_board(
    values: Mapping[str, Any], installation: Installation, user_config: Mapping[str, Any] | None = None
) -> BoardRun:
    """The arguments of a saved form.

    Args:
        values: the file's values.
        installation: LLaMA-Factory, for its list of models.
        user_config: what find_user_config found.

    Raises:
        SpecError: a field is missing, or holds something that LLaMA Board itself would fail on.
        PrerequisiteError: LLaMA-Factory's source cannot be read.
    """
    form = Form(values)
    model = _model(form, read_listed_models(installation), user_config or {})
    is_training = any(key.startswith("train.") for key in values)
    passed = _train_arguments(form, model) if is_training else _evaluation_arguments(form, model)
    given = {key: value for key, value in passed.items() if key in _ALWAYS or not _is_left_out(value)}
    arguments, secrets = without_secrets(given)
    for note in secrets:
        form.note(note)
    if arguments.get("model_name_or_path") == model.path:  # else it is a checkpoint, which has its path
        form.note(model.note)
    environment = {**model.environment, **launcher_environment(arguments)}
    form.say_unused()
    return BoardRun(arguments, environment, form.notes)


def launcher_environment(arguments: Mapping[str, Any]) -> dict[str, str]:
    """What LLaMA Board adds to the environment of a training for its arguments' sake."""
    return {"FORCE_TORCHRUN": "1"} if arguments.get("deepspeed") is not None else {}


def without_secrets(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments but for those that are secrets by their names, such as swanlab_api_key; and a note for each."""
    secrets = [key for key in arguments if is_secret(key)]
    notes = [f"not taken over: {key}, a secret by its name (give it in the environment)" for key in secrets]
    return {key: value for key, value in arguments.items() if key not in secrets}, notes


def find_user_config(folders: Iterable[Path]) -> dict[str, Any]:
    """LLaMA Board's user_config.yaml, which knows the models' paths, of the first folder that has one; else {}.

    Args:
        folders: that LLaMA Board may have been started in.
    """
    for folder in folders:
        for name in _CACHE_DIRS:
            path = folder / name / "user_config.yaml"
            if path.is_file():
                try:
                    found = read_yaml(path).value
                except SpecError:
                    continue  # LLaMA Board, too, goes on without
                if "path_dict" in found:  # another program's cache/user_config.yaml has none
                    return found
    return {}


@dataclass(frozen=True)
class _Model:
    name: str
    path: str | None
    multimodal: bool
    cache_dir: Any
    environment: Mapping[str, str]
    note: str
    """How its path was found, or that it was not."""


def _model(form: Form, listed: "Mapping[str, ListedModel]", user_config: Mapping[str, Any]) -> _Model:
    """The model. Its path stands beside its name in LLaMA Board, and is not saved with the form."""
    name = form.text("top.model_name")
    if not name:
        raise SpecError("top.model_name is missing: this is no file that LLaMA Board saved whole")
    known = listed.get(name)
    hub = user_config.get("hub_name")
    key, environment = {
        "modelscope": ("MODELSCOPE", {"USE_MODELSCOPE_HUB": "1"}),
        "openmind": ("OPENMIND", {"USE_OPENMIND_HUB": "1"}),
    }.get(hub if isinstance(hub, str) else "", ("DEFAULT", {}))
    default = known.hub_ids.get("DEFAULT") if known else None
    paths = user_config.get("path_dict")
    own = paths.get(name) if isinstance(paths, Mapping) else None
    path = own if isinstance(own, str) and own else default
    if known and path == default:
        path = known.hub_ids.get(key, path)
    saved = "LLaMA Board saves the model's name alone"
    if path is None:
        near = did_you_mean(name, listed) if name != "Custom" else ""
        note = f"model_name_or_path is not known: {saved}, {short(name)}{near}"
    else:
        source = "its user_config.yaml has for it" if path == own else "LLaMA-Factory lists for it"
        note = f"model_name_or_path: {saved}, {name}; {path} is what {source}"
    multimodal = known is not None and known.multimodal
    return _Model(name, path, multimodal, user_config.get("cache_dir"), environment, note)


def _shared(form: Form, model: _Model) -> dict[str, Any]:
    """What both tabs take from the top of the page."""
    scaling, booster = form.text("top.rope_scaling"), form.text("top.booster")
    return {
        "model_name_or_path": model.path,
        "cache_dir": model.cache_dir,
        "preprocessing_num_workers": 16,
        "finetuning_type": form.text("top.finetuning_type"),
        "template": form.text("top.template"),
        "rope_scaling": scaling if scaling != "none" else None,
        "flash_attn": "fa2" if booster == "flashattn2" else "auto",
        "use_unsloth": booster == "unsloth",
        "trust_remote_code": True,
        "ddp_timeout": 180000000,
    }


def _train_arguments(form: Form, model: _Model) -> dict[str, Any]:
    stage = form.text("train.training_stage")
    if stage not in _STAGES:
        raise wrong("train.training_stage", stage, f"one of {', '.join(_STAGES)}")
    compute = form.text("train.compute_type")
    arguments: dict[str, Any] = {
        "stage": _STAGES[stage],
        "do_train": True,
        **_shared(form, model),
        "enable_liger_kernel": form.text("top.booster") == "liger_kernel",
        "dataset": ",".join(form.texts("train.dataset")),
        "learning_rate": form.number("train.learning_rate", float),
        "num_train_epochs": form.number("train.num_train_epochs", float),
        "max_samples": form.number("train.max_samples", int),
        "per_device_train_batch_size": form.get("train.batch_size"),
        "max_grad_norm": form.number("train.max_grad_norm", float),
        "neftune_noise_alpha": form.get("train.neftune_alpha") or None,
        **form.fields("train", PLAIN),
        "fp16": compute == "fp16",
        "bf16": compute == "bf16",
        "pure_bf16": compute == "pure_bf16",
        "plot_loss": True,
        "include_num_input_tokens_seen": True,
    }
    if "train.packing" in form.values or "train.neat_packing" in form.values:
        arguments["packing"] = form.get("train.packing") or form.get("train.neat_packing")
    # From here on, as there, what the extra arguments say decides too.
    arguments |= _extra_arguments(form)
    _add_checkpoints(arguments, form, model)
    _add_quantization(arguments, form)
    _add_method(arguments, form)
    _add_preferences(arguments, form, model)
    if model.multimodal:
        arguments |= form.fields("train", PANELS["multimodal"])
        arguments |= {name: _pixels(form, name) for name in PANELS["pixels"] if f"train.{name}" in form.values}
    for name in ("galore", "apollo", "badam"):
        if arguments.get(f"use_{name}"):
            arguments |= form.fields("train", PANELS[name])
    if form.get("train.use_swanlab"):
        arguments |= form.fields("train", PANELS["swanlab"])
    if (form.number("train.val_size", float) or 0) > 1e-6 and arguments.get("stage") != "ppo":
        arguments["val_size"] = form.get("train.val_size")
        arguments["eval_strategy"] = "steps"
        arguments["eval_steps"] = arguments.get("save_steps")
        arguments["per_device_eval_batch_size"] = arguments.get("per_device_train_batch_size")
    zero = form.text("train.ds_stage")
    if zero not in ("", "none"):
        offload = "offload_" if form.get("train.ds_offload") else ""
        path = f"{_CACHE_DIRS[0]}/ds_z{zero}_{offload}config.json"
        arguments["deepspeed"] = path
        form.note(f"deepspeed: LLaMA Board writes {path} into the folder that it is started in")
    return arguments


def _evaluation_arguments(form: Form, model: _Model) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "stage": "sft",
        **_shared(form, model),
        "quantization_method": form.text("top.quantization_method"),
        "eval_dataset": ",".join(form.texts("eval.dataset")),
        "max_samples": form.number("eval.max_samples", int),
        "per_device_eval_batch_size": form.get("eval.batch_size"),
        "predict_with_generate": True,
        "report_to": "none",
        **form.fields("eval", ("dataset_dir", "cutoff_len", "max_new_tokens", "top_p", "temperature")),
        "output_dir": _save_dir(model, form, form.text("eval.output_dir")),
        "do_predict" if form.get("eval.predict") else "do_eval": True,
    }
    _add_checkpoints(arguments, form, model)
    _add_quantization(arguments, form)
    return arguments


def _is_left_out(value: Any) -> bool:
    return value is None or value is False or value == ""


def _extra_arguments(form: Form) -> dict[str, Any]:
    text = form.text("train.extra_args")
    try:
        extra = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise SpecError(f"train.extra_args is no JSON: {error}") from error
    if not isinstance(extra, dict):
        raise wrong("train.extra_args", text, "a JSON mapping")
    for key, value in extra.items():
        if key not in _ALWAYS and _is_left_out(value):
            shown = f"{short(key)}: {json.dumps(value)} of train.extra_args"
            form.note(f"not taken over: {shown} (LLaMA Board leaves out such values: the default was in force)")
    return extra


def _add_checkpoints(arguments: dict[str, Any], form: Form, model: _Model) -> None:
    if not form.get("top.checkpoint_path"):
        return
    if form.text("top.finetuning_type") in _ADAPTERS:
        adapters = [_save_dir(model, form, name) for name in form.texts("top.checkpoint_path")]
        arguments["adapter_name_or_path"] = ",".join(adapters)
    else:
        arguments["model_name_or_path"] = _save_dir(model, form, form.text("top.checkpoint_path"))


def _add_quantization(arguments: dict[str, Any], form: Form) -> None:
    if form.text("top.quantization_bit") not in ("", "none"):
        arguments["quantization_bit"] = form.number("top.quantization_bit", int)
        arguments["quantization_method"] = form.text("top.quantization_method")
        arguments["double_quantization"] = True  # but on an NPU


def _add_method(arguments: dict[str, Any], form: Form) -> None:
    if arguments["finetuning_type"] == "freeze":
        arguments |= form.fields("train", PANELS["freeze"])
    if arguments["finetuning_type"] == "lora":
        arguments |= form.fields("train", PANELS["lora"])
        arguments["loraplus_lr_ratio"] = form.get("train.loraplus_lr_ratio") or None
        arguments["lora_target"] = form.text("train.lora_target") or "all"
        arguments["pissa_init"] = arguments["pissa_convert"] = form.get("train.use_pissa")
        if arguments.get("use_llama_pro"):
            arguments |= form.fields("train", PANELS["llama_pro"])


def _add_preferences(arguments: dict[str, Any], form: Form, model: _Model) -> None:
    if arguments["stage"] == "ppo":
        finetuning_type = form.text("top.finetuning_type")
        adapters = finetuning_type in _ADAPTERS
        names = form.texts("train.reward_model") if adapters else [form.text("train.reward_model")]
        arguments["reward_model"] = ",".join(_save_dir(model, form, name) for name in names)
        arguments["reward_model_type"] = "lora" if finetuning_type == "lora" else "full"
        arguments |= form.fields("train", PANELS["ppo"])
        arguments |= {"top_k": 0, "top_p": 0.9}
    elif arguments["stage"] in ("dpo", "kto"):
        arguments |= form.fields("train", PANELS["preferences"])


def _save_dir(model: _Model, form: Form, name: str) -> str:
    """Where LLaMA Board keeps a training of that name; a path is taken as it is."""
    if os.path.sep in name:
        return name
    parts = (model.name, form.text("top.finetuning_type"), name)
    return "/".join(["saves", *(part.replace(" ", "").strip() for part in parts)])


def _pixels(form: Form, name: str) -> int:
    """'768*768', or a number."""
    text = form.text(f"train.{name}")
    try:
        factors = [int(part) for part in text.split("*")[:2]]
    except ValueError as error:
        raise wrong(f"train.{name}", text, "a number of pixels, such as 768*768") from error
    return factors[0] * factors[-1] if len(factors) == 2 else factors[0]


@dataclass(frozen=True)
class ListedModel:
    """A model as LLaMA-Factory lists it, and LLaMA Board offers it."""

    hub_ids: Mapping[str, str]
    """DEFAULT (Hugging Face), MODELSCOPE, OPENMIND -> its id there."""
    multimodal: bool


def read_listed_models(installation: Installation) -> dict[str, ListedModel]:
    """The models of an installation by display name, such as Qwen2.5-7B-Instruct; empty where its source is not there.

    Raises:
        PrerequisiteError: its source cannot be read.
    """
    path = installation.package / "extras" / "constants.py" if installation.package else None
    listed: dict[str, ListedModel] = {}
    if path is None or not path.is_file():
        return listed
    for keywords in _calls(parse_source(path), "register_model_group"):
        flag = keywords.get("multimodal")
        multimodal = isinstance(flag, ast.Constant) and flag.value is True
        for name, sources in _items(keywords.get("models")):
            ids = {hub: str(value.value) for hub, value in _items(sources) if isinstance(value, ast.Constant)}
            before = listed.get(name)
            listed[name] = ListedModel(ids, multimodal or (before is not None and before.multimodal))
    return listed
