"""What `accelerate launch` tells a training by environment variables, from its configuration and its options.

Covered: FSDP, several GPUs or machines, DeepSpeed, one process, as accelerate 1.11 does it (utils/launch.py): with
these variables `llamafactory-cli train`, which starts torchrun, sets the same up.
Not covered: TPUs, SageMaker, Megatron-LM, fp8 and mpirun: they get a note.
Opens no file: whoever has the configuration passes its values.
"""

from collections.abc import Mapping
from typing import Any

# Options of `accelerate launch` that take no value.
FLAGS = frozenset({
    "quiet", "cpu", "multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_parallelism_config", "use_megatron_lm",
    "use_xpu", "enable_cpu_affinity", "dynamo_use_fullgraph", "dynamo_use_dynamic", "dynamo_use_regional_compilation",
    "same_network", "module", "no_python", "tpu_cluster", "no_tpu_cluster", "tpu_use_sudo", "downcast_bf16",
    "fp8_use_autocast_during_eval", "debug", "help",
})  # fmt: skip
# accelerate launch's own defaults, where it has any.
_DEFAULTS: dict[str, Any] = {
    "dynamo_mode": "default",
    "dynamo_use_fullgraph": False,
    "dynamo_use_dynamic": False,
    "dynamo_use_regional_compilation": False,
    "fsdp_version": "1",
    "fsdp_offload_params": "false",
    "fsdp_min_num_params": 1e8,
    "fsdp_sharding_strategy": "FULL_SHARD",
    "fsdp_reshard_after_forward": "true",
    "fsdp_forward_prefetch": "false",
    "fsdp_use_orig_params": "true",
    "fsdp_cpu_ram_efficient_loading": "true",
    "fsdp_sync_module_states": "true",
    "fsdp_activation_checkpointing": "false",
    "parallelism_config_dp_replicate_size": 1,
    "parallelism_config_tp_size": 1,
    "parallelism_config_cp_size": 1,
    "parallelism_config_dp_shard_size": 1,
    "parallelism_config_cp_comm_strategy": "allgather",
}
_DYNAMO = {
    "dynamo_mode": "ACCELERATE_DYNAMO_MODE",
    "dynamo_use_fullgraph": "ACCELERATE_DYNAMO_USE_FULLGRAPH",
    "dynamo_use_dynamic": "ACCELERATE_DYNAMO_USE_DYNAMIC",
    "dynamo_use_regional_compilation": "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
}
_FSDP = {
    "fsdp_version": "FSDP_VERSION",
    "fsdp_sharding_strategy": "FSDP_SHARDING_STRATEGY",
    "fsdp_min_num_params": "FSDP_MIN_NUM_PARAMS",
    "fsdp_auto_wrap_policy": "FSDP_AUTO_WRAP_POLICY",
    "fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP",
    "fsdp_backward_prefetch": "FSDP_BACKWARD_PREFETCH",
    "fsdp_state_dict_type": "FSDP_STATE_DICT_TYPE",
    "fsdp_ignored_modules": "FSDP_IGNORED_MODULES",
}
_FSDP_LOWER = {
    "fsdp_reshard_after_forward": "FSDP_RESHARD_AFTER_FORWARD",
    "fsdp_offload_params": "FSDP_OFFLOAD_PARAMS",
    "fsdp_forward_prefetch": "FSDP_FORWARD_PREFETCH",
    "fsdp_use_orig_params": "FSDP_USE_ORIG_PARAMS",
    "fsdp_cpu_ram_efficient_loading": "FSDP_CPU_RAM_EFFICIENT_LOADING",
    "fsdp_sync_module_states": "FSDP_SYNC_MODULE_STATES",
    "fsdp_activation_checkpointing": "FSDP_ACTIVATION_CHECKPOINTING",
}
_DEEPSPEED = {
    "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    "deepspeed_moe_layer_cls_names": "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES",
}
_DEEPSPEED_LOWER = {
    "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "zero3_init_flag": "ACCELERATE_DEEPSPEED_ZERO3_INIT",
    "zero3_save_16bit_model": "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
}
_PARALLELISM = {
    "parallelism_config_dp_replicate_size": "PARALLELISM_CONFIG_DP_REPLICATE_SIZE",
    "parallelism_config_tp_size": "PARALLELISM_CONFIG_TP_SIZE",
    "parallelism_config_cp_size": "PARALLELISM_CONFIG_CP_SIZE",
    "parallelism_config_dp_shard_size": "PARALLELISM_CONFIG_DP_SHARD_SIZE",
}
# Read here, or of no effect as they are written by `accelerate config`.
_SILENT = frozenset({
    "compute_environment", "distributed_type", "mixed_precision", "fp16", "use_cpu", "debug", "num_processes",
    "machine_rank", "num_machines", "gpu_ids", "main_process_ip", "main_process_port", "same_network",
    "main_training_function", "fsdp_config", "deepspeed_config", "parallelism_config", "dynamo_config",
    "dynamo_backend", "num_cpu_threads_per_process", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic",
    "dynamo_use_regional_compilation", "quiet", "multi_gpu", "use_fsdp", "use_deepspeed", "use_parallelism_config",
    "parallelism_config_cp_comm_strategy", "cpu", "enable_cpu_affinity",
})  # fmt: skip
_PARADIGMS = ("multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm")
_REASONS = {
    "kt_config": "accelerate has no variables for it; LLaMA-Factory is told by use_kt and kt_weight_path",
    "rdzv_backend": "accelerate launch ignores it in a configuration",
    "fp8_config": "its variables are not taken over; LLaMA-Factory has an argument fp8",
}


def accelerate_environment(
    config: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> tuple[dict[str, str], list[str]]:
    """The variables by which `accelerate launch` tells a training what it is part of, and LLaMA-Factory's launcher's.

    Args:
        config: the values of its configuration file; {} where there is none.
        options: what stood on its command line, by name, True for a flag; they win.

    Returns:
        Variables, and a note for each value that has none.
    """
    given = dict(options or {})
    sections = {name: dict(value) for name, value in config.items() if isinstance(value, Mapping)}
    inner = {
        _prefixed(section, str(key)): value
        for section, values in sections.items()
        if section in ("fsdp_config", "deepspeed_config", "parallelism_config", "dynamo_config")
        for key, value in values.items()
    }
    top = {key: value for key, value in config.items() if key not in sections and value is not None}
    values = {**_DEFAULTS, **top, **inner, **{key: value for key, value in given.items() if value is not None}}
    kind = _kind(config, given)
    environment = _common(values, kind)
    if kind == "one":
        environment |= {"ACCELERATE_USE_CPU": str(bool(values.get("use_cpu") or values.get("cpu")))}
        environment |= {"KMP_AFFINITY": "granularity=fine,compact,1,0", "KMP_BLOCKTIME": "1"}
    elif kind != "unsaid":
        environment |= _launcher(values)
    if given.get("enable_cpu_affinity"):
        environment["ACCELERATE_CPU_AFFINITY"] = "1"
    if kind == "fsdp":
        environment |= {
            "ACCELERATE_USE_FSDP": "true",
            **_named(_FSDP, values),
            **_named(_FSDP_LOWER, values, lower=True),
        }
    elif kind == "deepspeed":
        fields = [*sections.get("deepspeed_config", {}), *(["mixed_precision"] if _from_config(config, given) else [])]
        environment |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_CONFIG_DS_FIELDS": ",".join(fields).lower()}
        environment |= _named(_DEEPSPEED, values) | _named(_DEEPSPEED_LOWER, values, lower=True)
    if kind == "fsdp" and (sections.get("parallelism_config") or given.get("use_parallelism_config")):
        environment |= {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", **_named(_PARALLELISM, values)}
        if (_number(values["parallelism_config_cp_size"]) or 1) > 1:
            strategy = values["parallelism_config_cp_comm_strategy"]
            environment["PARALLELISM_CONFIG_CP_COMM_STRATEGY"] = str(strategy)
    return environment, _notes(config, given, {**top, **inner, **given}, kind)


def _prefixed(section: str, key: str) -> str:
    return f"fsdp_{key}" if section == "fsdp_config" and not key.startswith("fsdp") else key


def _kind(config: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """one, several, fsdp or deepspeed; unsaid: by the devices it sees; '' where it is something else."""
    said = str(config.get("distributed_type", "NO"))
    if any(given.get(name) for name in _PARADIGMS):
        said = next(name for name in _PARADIGMS if given.get(name))
    elif not config and not given.get("cpu"):
        processes = given.get("num_processes")
        said = "NO" if str(processes) == "1" else "multi_gpu"
        if processes is None:
            return "unsaid"
    if given.get("cpu") or said in ("NO", "MULTI_CPU"):
        return "one"
    kinds = {"FSDP": "fsdp", "use_fsdp": "fsdp", "DEEPSPEED": "deepspeed", "use_deepspeed": "deepspeed"}
    return kinds.get(said, "several" if said == "multi_gpu" or said.startswith("MULTI_") else "")


def _from_config(config: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the precision is the configuration's."""
    return "mixed_precision" not in given and config.get("mixed_precision") is not None


def _common(values: Mapping[str, Any], kind: str) -> dict[str, str]:
    precision = values.get("mixed_precision") or ("fp16" if values.get("fp16") else "no")
    environment = {"ACCELERATE_MIXED_PRECISION": str(precision).lower()}
    if kind != "deepspeed":
        environment["ACCELERATE_DYNAMO_BACKEND"] = str(values.get("dynamo_backend") or "no").upper()
        environment |= _named(_DYNAMO, values)
        environment["OMP_NUM_THREADS"] = str(values.get("num_cpu_threads_per_process") or 1)
    if values.get("debug"):
        environment["ACCELERATE_DEBUG_MODE"] = "true"
    if str(values.get("gpu_ids", "all")) != "all":
        environment["CUDA_VISIBLE_DEVICES"] = str(values["gpu_ids"])
    return environment


def _launcher(values: Mapping[str, Any]) -> dict[str, str]:
    """What LLaMA-Factory's launcher.py, which starts torchrun, is told; the port is left to it where none is given."""
    environment = {"FORCE_TORCHRUN": "1"}
    processes, machines = _number(values.get("num_processes")), _number(values.get("num_machines")) or 1
    if processes is not None and processes > 0:
        environment["NPROC_PER_NODE"] = str(processes // machines)
    if machines > 1:
        environment |= {"NNODES": str(machines), "NODE_RANK": str(values.get("machine_rank") or 0)}
    port = values.get("main_process_port")
    named = {"MASTER_ADDR": values.get("main_process_ip") if machines > 1 else None, "MASTER_PORT": port or None}
    return environment | {name: str(value) for name, value in named.items() if value is not None}


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _named(names: Mapping[str, str], values: Mapping[str, Any], *, lower: bool = False) -> dict[str, str]:
    texts = {variable: str(values[key]) for key, variable in names.items() if values.get(key) is not None}
    return {variable: text.lower() if lower else text for variable, text in texts.items()}


def _notes(config: Mapping[str, Any], given: Mapping[str, Any], values: Mapping[str, Any], kind: str) -> list[str]:
    notes = []
    if not kind:
        what = str(config.get("distributed_type") or next((name for name in _PARADIGMS if given.get(name)), ""))
        notes.append(f"accelerate's {what}: how it sets that up is not taken over")
    used = {"fsdp": {*_FSDP, *_FSDP_LOWER, *_PARALLELISM}, "deepspeed": {*_DEEPSPEED, *_DEEPSPEED_LOWER}}
    known = _SILENT | used.get(kind, set())
    for key, value in values.items():
        if key in known or (key not in given and _is_nothing(key, value)):
            continue
        reason = _REASONS.get(key, "it has no environment variable") if key not in given else "no variable tells it"
        notes.append(f"accelerate's {key}: {value!r}: {reason}")
    for section, inner in config.items():
        if isinstance(inner, Mapping) and inner and section not in _SILENT:
            notes.append(f"accelerate's {section}: {_REASONS.get(section, 'it has no environment variable')}")
    processes = _number(values.get("num_processes"))
    if kind not in ("one", "") and (processes is None or processes < 1):
        notes.append("accelerate's num_processes is not said: LLaMA-Factory takes all devices that it sees")
    return notes


def _is_nothing(key: str, value: Any) -> bool:
    """Whether a value of a configuration says nothing: what `accelerate config` writes for what was not chosen."""
    return value in (None, False, "no", "", [], "static") or (key, value) == ("main_training_function", "main")
