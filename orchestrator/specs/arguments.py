"""One argument of LLaMA-Factory, and whether a value fits it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from orchestrator.errors import did_you_mean


class Computed(Enum):
    """Stands where a default is no plain value of the source."""

    COMPUTED = "computed"


COMPUTED = Computed.COMPUTED


@dataclass(frozen=True)
class Argument:
    """One argument of llamafactory-cli."""

    name: str
    kinds: frozenset[str]
    """Of int, float, bool, str, list, dict: what it may be. Empty: unknown, nothing is checked."""
    choices: tuple[str | int | float | bool, ...] | None
    """The only values that it may have. None: any."""
    optional: bool
    """Whether it may be null."""
    commands: frozenset[str]
    """Of train, api, export: which take it."""
    default: Any = COMPUTED
    """What it is where nothing is said, as a JSON value. COMPUTED: known when LLaMA-Factory starts, or required."""
    help: str = ""
    """LLaMA-Factory's or transformers' own sentence about it, on one line."""

    def typed(self, value: Any) -> Any:
        """The value in the declared type: 1e5 is an int where only an int will do. An int does for a float as it is."""
        if isinstance(value, float) and value.is_integer() and "int" in self.kinds and "float" not in self.kinds:
            return int(value)
        return value


def kind_of(value: object) -> str:
    """The value's type, under the name that Argument.kinds has for it."""
    return type(value).__name__


_RAY = "Ray is told by ray_num_workers, ray_init_kwargs, master_addr and master_port alone"


_KT = "KTransformers is told by use_kt and kt_weight_path now"


_GONE = "leave it out, it has no successor"


# What people copy from old scripts: version -> names that it removed, and what to do. A name that the installation
# in use still has is never looked up here.
_REMOVED: dict[str, dict[str, str]] = {
    "LLaMA-Factory 0.9.3": {"new_special_tokens": "write add_special_tokens"},
    "LLaMA-Factory 0.9.4": {"use_cache": "write use_kv_cache"},
    "LLaMA-Factory 0.9.5": {
        "ray_run_name": _RAY,
        "ray_storage_path": _RAY,
        "ray_storage_filesystem": _RAY,
        "resources_per_worker": _RAY,
        "placement_strategy": _RAY,
        "chunk_size": _KT,
        "cpu_infer": _KT,
        "mode": _KT,
        "kt_optimize_rule": _KT,
        "kt_mode": _KT,
        "kt_maxlen": _KT,
        "kt_use_cuda_graph": _KT,
        "kt_force_think": _KT,
    },
    "transformers 4.46": {"evaluation_strategy": "write eval_strategy"},
    "transformers 5": {
        "group_by_length": "write train_sampling_strategy: group_by_length",
        "no_cuda": "write use_cpu",
        "use_mps_device": "leave it out, or write use_cpu where MPS is not wanted",
        "save_safetensors": "leave it out, weights are always saved so",
        "adafactor": "write optim: adafactor",
        "fsdp_min_num_params": "write fsdp_config: {min_num_params: N}",
        "fsdp_transformer_layer_cls_to_wrap": "write fsdp_config: {transformer_layer_cls_to_wrap: [NAME]}",
        "include_inputs_for_metrics": "write include_for_metrics: [inputs]",
        "per_gpu_train_batch_size": "write per_device_train_batch_size",
        "per_gpu_eval_batch_size": "write per_device_eval_batch_size",
        "push_to_hub_model_id": "write hub_model_id",
        "push_to_hub_organization": "write hub_model_id: OWNER/NAME",
        "push_to_hub_token": "write hub_token",
        "torchdynamo": "write torch_compile_backend",
        "tpu_metrics_debug": "write debug: tpu_metrics_debug",
        "fp16_backend": _GONE,
        "fp16_opt_level": _GONE,
        "half_precision_backend": _GONE,
        "include_tokens_per_second": _GONE,
        "jit_mode_eval": _GONE,
        "mp_parameters": _GONE,
        "past_index": _GONE,
        "ray_scope": _GONE,
        "tpu_num_cores": _GONE,
        "use_ipex": _GONE,
        "use_legacy_prediction_loop": _GONE,
    },
}


_SAID = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}


def argument_problem(
    key: str,
    value: Any,
    command: str,
    arguments: Mapping[str, Argument],
    also_known: Iterable[str] = (),
    program: str = "LLaMA-Factory",
) -> str | None:
    """What is wrong with one argument, or None; a second line is what to do.

    Args:
        key: its name.
        value: its value, as YAML gave it.
        command: train, api or export.
        arguments: what read_arguments found.
        also_known: names that the place takes beside these, for "did you mean".
        program: whose arguments they are.
    """
    argument = arguments.get(key)
    if argument is None:
        removed = _removal(key) if program == "LLaMA-Factory" else ""
        if removed:
            return f"no argument of this {program}: {removed}"
        known = [*also_known, *(name for name, each in arguments.items() if command in each.commands)]
        return f"no argument of this {program}" + did_you_mean(key, known)
    if command not in argument.commands:
        removed = _removal(key)  # use_cache: transformers has taken the name for something else
        takers = " and ".join(sorted(argument.commands))
        return f"llamafactory-cli {command} does not take it, only {takers}" + (f": {removed}" if removed else "")
    if value is None:
        return None if argument.optional or not argument.kinds else f"expected {_said(argument)}, got null"
    if argument.choices is not None:
        if any(type(value) is type(choice) and value == choice for choice in argument.choices):
            return None
        near = did_you_mean(value, map(str, argument.choices)) if isinstance(value, str) else ""
        if near and len(argument.choices) > 12:
            return f"{_shown(value)} is none of its {len(argument.choices)} choices{near}"
        return f"expected one of {', '.join(map(_shown, argument.choices))}; got {_shown(value)}{near}"
    kinds = argument.kinds
    kind = kind_of(argument.typed(value))
    if not kinds or kind in kinds or (kind == "int" and "float" in kinds):
        return None
    hint = ""
    if isinstance(value, str) and not kinds & {"str", "list", "dict"}:
        hint = " (text: write it without quotes)" if _is_number(value) or value in ("true", "false") else ""
    elif "str" in kinds and not isinstance(value, list | dict):
        hint = ' (write it in quotes: "...")'
    return f"expected {_said(argument)}, got {_shown(value)}{hint}"


def _removal(key: str) -> str:
    for version, names in _REMOVED.items():
        if key in names:
            return f"removed in {version}\n{names[key]}"
    return ""


def _said(argument: Argument) -> str:
    kinds = [
        said
        for kind, said in _SAID.items()
        if kind in argument.kinds and not (kind == "int" and "float" in argument.kinds)
    ]
    return " or ".join(kinds) if kinds else "a value"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
