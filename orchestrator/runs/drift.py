"""What differs between a run and the one that it repeats or goes on with, and what each difference can do.

Covered: severity (is it a run of the same thing?), effect (can it change the losses, and how much?), spec changes that
were asked for by --set.
Not covered: how the facts are found (facts.py); whether the losses did change (verdict.py).
Writes nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.runs.facts import DifferingFact, differing_facts, flat, short
from orchestrator.runs.record_parts import Facts
from orchestrator.specs.spec import RunSpec, spec_json

Severity = Literal["error", "warning", "note"]
"""error: it is another thing that runs (data, model). warning: it may matter. note: asked for, or of no effect."""

Effect = Literal["course", "rounding", "none"]
"""On the losses. course: other examples, weights or steps. rounding: the same sums, taken in another way."""

Kind = Literal["spec", "default", "data", "model", "adapter", "version", "machine", "environment", "git"]

# Arguments of the training that leave its losses as they are, by the beginning of their names.
_NO_EFFECT = (
    *("logging_", "log_", "save_", "report_to", "run_name", "project", "trackio_", "swanlab", "use_swanlab"),
    *("plot_loss", "disable_tqdm", "push_to_hub", "hub_", "hf_hub_token", "ms_hub_token", "om_hub_token", "cache_dir"),
    *("eval_", "per_device_eval_batch_size", "do_eval", "load_best_model_at_end", "metric_for_best_model"),
    *("greater_is_better", "early_stopping_steps", "prediction_loss_only", "include_", "batch_eval_metrics"),
    *("compute_accuracy", "do_predict", "predict_with_generate", "generation_", "print_param_status"),
    *("preprocessing_", "overwrite_cache", "data_shared_file_system", "ddp_timeout", "debug", "skip_memory_metrics"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("profile", "enable_torch_profiler", "torch_empty_cache_steps"),
)
# Arguments that change how the same sums are taken.
_ROUNDING = (
    *("bf16", "fp16", "pure_bf16", "fp8", "tf32", "flash_attn", "use_cpu", "infer_dtype", "full_determinism"),
    *("disable_gradient_checkpointing", "gradient_checkpointing", "use_reentrant_gc", "use_unsloth", "torch_compile"),
    *("enable_liger_kernel", "use_liger_kernel", "liger_kernel_config", "upcast_", "use_v1_kernels", "use_kv_cache"),
    *("use_cache", "low_cpu_mem_usage", "ddp_backend", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "deepspeed"),
    *("ddp_find_unused_parameters", "ddp_static_graph", "fsdp"),
)
_PROCESSES = ("nproc_per_node", "nnodes")
_SCORING = ("sacrebleu", "openai")  # of the benchmarks only
# Variables of the environment: which decide how many examples make a step, and which change no sum.
_LAUNCHING = ("FORCE_TORCHRUN", "NNODES", "NPROC_PER_NODE", "MIN_NNODES", "MAX_NNODES", "USE_RAY", "USE_KT", "USE_MCA")
_QUIET = re.compile(
    r"HF_(HOME|TOKEN_PATH|ENDPOINT|.*(CACHE|OFFLINE|TRANSFER|TIMEOUT|TELEMETRY|DISABLE|XET).*)|HUGGINGFACE_.*|"
    r".*(VERBOSITY|DEBUG|_LOG|LOG_|_CACHE|OFFLINE).*|TOKENIZERS_PARALLELISM|MASTER_(ADDR|PORT)|NODE_RANK|RDZV_ID|"
    r"MAX_RESTARTS|RECORD_VRAM|MODELSCOPE_.*|PYTHONPATH|NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES|REQUIRE_.*)"
)


@dataclass(frozen=True)
class Drift:
    """One thing that differs."""

    kind: Kind
    name: str
    """Dotted path of a spec's field or a default, 'DATASET SPLIT' of data, package of a version; else empty."""
    what: str
    """In words: 'version of torch'."""
    then: str
    now: str
    severity: Severity
    effect: Effect

    def line(self) -> str:
        return f"{self.what}: {self.then} then, {self.now} now"


def drifts(spec_then: RunSpec, then: Facts, spec_now: RunSpec, now: Facts, *, asked: Sequence[str] = ()) -> list[Drift]:
    """Each thing that differs: the spec's fields in their order, then the facts.

    Args:
        spec_then: what ran.
        then: its facts.
        spec_now: what is to run.
        now: its facts.
        asked: the KEY=VALUE of --set that made one spec of the other.
    """
    paths = [override.partition("=")[0].strip() for override in asked]
    old, new = flat(spec_json(spec_then)), flat(spec_json(spec_now))
    changed = [path for path in dict.fromkeys([*old, *new]) if old.get(path) != new.get(path)]
    facts = differing_facts(then, now)
    return [
        *(_spec_drift(path, old.get(path), new.get(path), paths, _same_files(path, then, now)) for path in changed),
        *(_fact_drift(each, paths) for each in facts),
    ]


def by_severity(found: Sequence[Drift]) -> list[Drift]:
    """Errors first, then warnings, then notes."""
    return sorted(found, key=lambda each: ("error", "warning", "note").index(each.severity))


def default_drift(path: str, then: Any, now: Any) -> Drift:
    """An argument that neither spec sets, and whose default changed."""
    what = f"default of {path}"
    return Drift("default", path, what, short(then), short(now), "warning", effect(path))


def effect(path: str) -> Effect:
    """What another value of a spec's field does to the losses. What is not known changes the course."""
    section, _, name = path.partition(".")
    if section in ("name", "serve", "benchmark", "export", "eval_dataset"):
        return "none"
    if section == "compute":
        leaf = name.partition(".")[0]
        return "course" if leaf in _PROCESSES else "rounding" if leaf in ("devices", "env") else "none"
    if section == "train" and name.startswith(_NO_EFFECT):
        return "none"
    if (section == "train" and name.startswith(_ROUNDING)) or path == "model.trust_remote_code":
        return "rounding"
    return "course"


def _spec_drift(path: str, then: Any, now: Any, asked: Sequence[str], same_files: bool) -> Drift:
    severity: Severity = "note" if _is_asked(path, asked) else "warning"
    return Drift(
        "spec", path, f"spec {path}", short(then), short(now), severity, "none" if same_files else effect(path)
    )


def _fact_drift(fact: DifferingFact, asked: Sequence[str]) -> Drift:
    severity: Severity = "warning"
    changes: Effect = "rounding"
    if fact.kind in ("data", "model", "adapter"):
        sections = {"data": ("dataset", "eval_dataset", "benchmark"), "model": ("model",), "adapter": ("model",)}
        if any(path.partition(".")[0] in sections[fact.kind] for path in asked):
            severity = "note"
        elif fact.then is not None and fact.now is not None:
            severity = "error"  # where one is not known, they may be the same
        is_test = fact.kind == "data" and not fact.name.endswith(" train")
        changes = "none" if is_test else "course"
    elif fact.kind == "environment":
        changes = _variable_effect(fact)
        severity = "note" if changes == "none" else "warning"
    elif fact.kind == "git" or (fact.kind == "version" and fact.name in _SCORING):
        changes = "none"  # what a commit can change of a run, its spec and its data, is compared itself
    return Drift(fact.kind, fact.name, fact.what, short(fact.then), short(fact.now), severity, changes)


def _variable_effect(fact: DifferingFact) -> Effect:
    if fact.name == "CUDA_VISIBLE_DEVICES" and None not in (fact.then, fact.now):
        return "rounding" if fact.then.count(",") == fact.now.count(",") else "course"
    if fact.name in _LAUNCHING:
        return "course"
    return "none" if _QUIET.fullmatch(fact.name) else "rounding"


def _is_asked(path: str, asked: Sequence[str]) -> bool:
    """Whether a --set names a field, a section that it is in, or something within it."""
    return any(path == each or path.startswith(f"{each}.") or each.startswith(f"{path}.") for each in asked)


def _same_files(path: str, then: Facts, now: Facts) -> bool:
    """Whether a model that is named otherwise is the same one, by its hash."""
    if path in ("model.name_or_path", "model.revision"):
        return then.model_sha256 is not None and then.model_sha256 == now.model_sha256
    if path == "model.adapter_name_or_path":
        return then.adapter_sha256 is not None and then.adapter_sha256 == now.adapter_sha256
    return False
