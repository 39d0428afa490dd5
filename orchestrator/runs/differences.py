"""What differs between two specs or runs, what that can do to the losses, and whether a repeated run came to the same.

The band of known nondeterminism was measured by tests/loss_band.py. Where a logged loss is the mean of hundreds of
examples another seed can lie within it: other examples, weights or steps make any difference "different".
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator.models.model_files import read_header
from orchestrator.runs.record_parts import BenchmarkSummary, Facts
from orchestrator.runs.trainer_log import FIRST_LOSSES
from orchestrator.specs.spec import RunSpec, spec_json
from orchestrator.text import escape_controls

Severity = Literal["error", "warning", "note"]
"""error: other data or another model. warning: it may matter. note: requested by --set, or without effect."""

Effect = Literal["trajectory", "rounding", "none"]
"""On the losses. trajectory: other examples, weights or steps. rounding: the same sums, taken in another way."""

# Arguments of the training that leave its losses as they are, by the beginning of their names.
_NO_EFFECT = tuple(
    "logging_ log_ save_ report_to run_name project trackio_ swanlab use_swanlab plot_loss disable_tqdm push_to_hub "
    "hub_ hf_hub_token ms_hub_token om_hub_token cache_dir eval_ per_device_eval_batch_size do_eval "
    "load_best_model_at_end metric_for_best_model greater_is_better early_stopping_steps prediction_loss_only include_ "
    "batch_eval_metrics compute_accuracy do_predict predict_with_generate generation_ print_param_status "
    "overwrite_cache data_shared_file_system ddp_timeout debug skip_memory_metrics dataloader_num_workers "
    "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor profile "
    "enable_torch_profiler torch_empty_cache_steps".split()
)
# Arguments that change how the same sums are taken.
_ROUNDING = tuple(
    "bf16 fp16 pure_bf16 fp8 tf32 flash_attn use_cpu infer_dtype full_determinism disable_gradient_checkpointing "
    "gradient_checkpointing use_reentrant_gc use_unsloth torch_compile enable_liger_kernel use_liger_kernel "
    "liger_kernel_config upcast_ use_v1_kernels use_kv_cache use_cache low_cpu_mem_usage ddp_backend "
    "ddp_bucket_cap_mb ddp_broadcast_buffers deepspeed ddp_find_unused_parameters ddp_static_graph fsdp".split()
)
_SCORING = ("version of sacrebleu", "version of openai")  # of the benchmarks only
# Variables of the environment that can change a run's sums, and those of them that say how many examples make a step.
RELEVANT = re.compile(
    r"(?!.*(DEBUG|LOG|CACHE))((CUDA|NCCL|GLOO|HIP|ROCR|ASCEND|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|CUBLAS|CUDNN|"
    r"OMP|GOMP|KMP|MKL|OPENBLAS|DNNL|ONEDNN|NUMEXPR|FLASH|XFORMERS|BNB|ACCELERATE|FSDP|DEEPSPEED|DS|PEFT|UNSLOTH|"
    r"LIGER|VLLM|RAY|FP8)_.*|FORCE_TORCHRUN|NNODES|NPROC_PER_NODE|M(IN|AX)_NNODES|OPTIM_TORCH|USE_(RAY|KT|MCA)|"
    r"NVIDIA_TF32_OVERRIDE|PYTHONHASHSEED|LD_PRELOAD|LD_LIBRARY_PATH|MALLOC_CONF)"
)
_LAUNCHING = re.compile("FORCE_TORCHRUN|NPROC_PER_NODE|.*NNODES|USE_(RAY|KT|MCA)")
# Sections of a spec that choose what a fact is of.
_SECTIONS: dict[str, tuple[str, ...]] = {"data": ("dataset", "eval_dataset", "benchmark")}
_SECTIONS |= dict.fromkeys(("model", "adapter", "template"), ("model",))
# Fields of a spec that name files -> the hash of what they name.
_HASHES = {
    "model.name_or_path": "model_sha256",
    "model.revision": "model_sha256",
    "model.adapter_name_or_path": "adapter_sha256",
}
FULL, REDUCED = 5e-4, 2e-2
"""The largest relative difference of a logged loss that counts as rounding, in float32 and in less."""
_LESS_THAN_FLOAT32 = ("bf16", "fp16", "pure_bf16", "fp8", "tf32", "quantization_bit", "deepspeed", "fsdp")
_SMALLEST = 0.1  # of a loss near 0 a fraction says nothing
_LOGGING = ("train.logging_steps", "train.logging_strategy", "train.logging_first_step")
# The likeliest causes of what rounds otherwise.
_PACKAGES = ("torch", "transformers", "peft", "llamafactory", "accelerate", "trl", "datasets", "tokenizers")


@dataclass(frozen=True)
class Side:
    """A spec, or a run, as one of two that are compared."""

    name: str
    spec: RunSpec
    facts: Facts | None = None  # of a run


@dataclass(frozen=True)
class Difference:
    """One thing that differs."""

    kind: str  # spec: a field; or of a fact data, model, adapter, template, version, machine, environment, git
    path: str  # dotted path in the spec; of a fact its name in words: 'version of torch', 'data captions train'
    then: Any
    now: Any
    effect: Effect
    severity: Severity

    def as_json(self) -> dict[str, Any]:
        sides = {"one": self.then, "other": self.now}
        return {"kind": self.kind, "path": self.path, **sides, "effect": self.effect, "severity": self.severity}

    def line(self) -> str:
        """'spec seed: 42 then, 43 now'."""
        what = f"spec {self.path}" if self.kind == "spec" else self.path
        return escape_controls(f"{what}: {_short(self.then)} then, {_short(self.now)} now")

    def arrow(self) -> str:
        """'seed: 42 -> 43'."""
        sides = (json.dumps(v, ensure_ascii=False) if self.kind == "spec" else _short(v) for v in (self.then, self.now))
        return escape_controls(f"{self.path}: {' -> '.join(sides)}")


def differences(one: Side, other: Side, overrides: Sequence[str] = ()) -> list[Difference]:
    """The specs' fields that differ, in their order, then the facts of two runs; what --set names is a note."""
    flats = [_flat(spec_json(side.spec)) for side in (one, other)]
    keys = [override.partition("=")[0].strip() for override in overrides]
    packs = any(_maps_in_batches(side.spec) for side in (one, other))
    found: list[Difference] = []
    for path in dict.fromkeys([*flats[0], *flats[1]]):
        then, now = (flat.get(path) for flat in flats)
        if then == now and type(then) is type(now):
            continue
        changes: Effect = "none" if _same_files(path, one.facts, other.facts) else effect(path, packs=packs)
        severity: Severity = "note" if _is_named(path, keys) else "warning"
        found.append(Difference("spec", path, then, now, changes, severity))
    if one.facts is not None and other.facts is not None:
        found += _fact_differences(one.facts, other.facts, keys)
    return found


def by_severity(found: Sequence[Difference]) -> list[Difference]:
    """The worst first."""
    return sorted(found, key=lambda each: get_args(Severity).index(each.severity))


def effect(path: str, *, packs: bool = False) -> Effect:
    """What another value of a spec's field does to the losses; packs: how data are preprocessed chooses examples."""
    section, _, name = path.partition(".")
    if section in ("name", "serve", "benchmark", "export", "eval_dataset"):
        return "none"
    if section == "compute":
        effects: dict[str, Effect] = {"nproc_per_node": "trajectory", "nnodes": "trajectory"}
        effects |= {"devices": "rounding", "env": "rounding"}
        return effects.get(name.partition(".")[0], "none")
    if section == "train" and name.startswith("preprocessing_"):
        return "trajectory" if packs else "none"
    if section == "train" and name.startswith(_NO_EFFECT):
        return "none"
    if (section == "train" and name.startswith(_ROUNDING)) or path == "model.trust_remote_code":
        return "rounding"
    return "trajectory"


def _fact_differences(then: Facts, now: Facts, keys: Sequence[str]) -> list[Difference]:
    data = [{f"{each.dataset} {each.split}": each.sha256 or each.origin for each in side.data} for side in (then, now)]
    facts: list[tuple[str, str, Any, Any]] = [
        *_each("data", "data", *data),
        ("model", "model hash", then.model_sha256, now.model_sha256),
        ("adapter", "adapter hash", then.adapter_sha256, now.adapter_sha256),
        ("template", "chat template hash", then.chat_template_sha256, now.chat_template_sha256),
        *_each("version", "version of", then.versions, now.versions),
        ("machine", "platform", then.platform, now.platform),
        ("machine", "processor", then.cpu, now.cpu),
        ("machine", "GPUs", ", ".join(then.gpus) or None, ", ".join(now.gpus) or None),
        *_each("version", "version of", then.cuda, now.cuda),
        *_each("environment", "variable", then.environment, now.environment),
        ("git", "git commit", then.git_commit, now.git_commit),
        ("git", "uncommitted changes in git", then.git_diff_sha256, now.git_diff_sha256),
    ]
    trained = {f"data {each.dataset} {each.split}" for each in [*then.data, *now.data] if each.is_trained_on}
    found = []
    for kind, path, old, new in facts:
        is_unknown = old is None or new is None
        is_optional = kind == "template" or path == "processor"  # records of earlier versions lack these
        if old == new or (is_unknown and is_optional):
            continue
        changes: Effect = "rounding"
        severity: Severity = "warning"
        if kind in ("model", "adapter") and then.hash_version != now.hash_version and not is_unknown:
            path += " (one was hashed by an earlier version: not compared)"
            changes, severity = "none", "note"
        elif kind in _SECTIONS:
            changes = "none" if kind == "data" and path not in trained else "trajectory"
            is_named = any(key.partition(".")[0] in _SECTIONS[kind] for key in keys)
            severity = "note" if is_named else "warning" if is_unknown else "error"
        elif kind == "environment" and not RELEVANT.fullmatch(path.removeprefix("variable ")):
            continue  # of a record of an earlier version
        elif path == "variable CUDA_VISIBLE_DEVICES" and not is_unknown:
            changes = "rounding" if old.count(",") == new.count(",") else "trajectory"
        elif kind == "environment":
            changes = "trajectory" if _LAUNCHING.fullmatch(path.removeprefix("variable ")) else "rounding"
        elif kind == "git" or path in _SCORING:
            changes = "none"  # what a commit can change of a run, its spec and its data, is compared itself
        found.append(Difference(kind, path, old, new, changes, severity))
    return found


def _each(
    kind: str, what: str, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> list[tuple[str, str, Any, Any]]:
    if then is None or now is None:  # a record of an earlier version
        return []
    return [(kind, f"{what} {name}", then.get(name), now.get(name)) for name in {**then, **now}]


def _maps_in_batches(spec: RunSpec) -> bool:
    """Whether LLaMA-Factory packs examples, which it does within each batch that it preprocesses."""
    arguments = spec.train.arguments() if spec.train is not None else {}
    return arguments.get("stage") == "pt" or bool(arguments.get("packing") or arguments.get("neat_packing"))


def _is_named(path: str, keys: Sequence[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") or key.startswith(f"{path}.") for key in keys)


def _same_files(path: str, then: Facts | None, now: Facts | None) -> bool:
    name = _HASHES.get(path)
    if name is None or then is None or now is None or then.hash_version != now.hash_version:
        return False
    return getattr(then, name) is not None and getattr(then, name) == getattr(now, name)


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    """{'train.lora_rank': 8}: a list of mappings is numbered, another list is a value."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        return {at: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{at}.{key}" if at else str(key)).items()}


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{40,}", text) else text


@dataclass(frozen=True)
class Verdict:
    """What the first logged losses say about a repeated run, with the likely cause in the message."""

    verdict: Literal["same", "within", "different", "unknown"]  # within: the band of known nondeterminism
    message: str


def compare_losses(
    then: Sequence[float], now: Sequence[float], *, drift: Sequence[Difference] = (), band: float = REDUCED
) -> Verdict:
    """The verdict on the first logged losses of two runs, with what differs between them and their loss_band()."""
    then, now = then[:FIRST_LOSSES], now[:FIRST_LOSSES]
    if relogged := [each for each in drift if each.path in _LOGGING]:
        return Verdict("unknown", f"the losses were logged at other steps: {relogged[0].line()}")
    found = [_difference(one, other) for one, other in zip(then, now, strict=False)]
    if not found:
        when = "now" if then else "then"
        return Verdict("unknown", f"no losses to compare: none was logged {when} (fewer steps than logging_steps)")
    likely = _likely(drift)
    changes_trajectory = any(each.effect == "trajectory" for each in drift)
    if not any(found):
        equal = f"the first {len(found)} logged losses are" if len(found) > 1 else "the first logged loss is"
        shown = f"; what differs has not shown in them: {likely}" if changes_trajectory else ""
        return Verdict("same", f"{equal} the same{shown}")
    first = next(number for number, difference in enumerate(found) if difference)
    beyond = next((number for number, difference in enumerate(found) if difference > band), None)
    worst = found.index(max(found)) if beyond is None else beyond
    share = "" if math.isinf(found[worst]) else f" ({100 * found[worst]:.2g} %)"
    message = (
        f"the losses differ from logged loss {first + 1} on: {then[worst]:.6g} then, {now[worst]:.6g} now at logged "
        f"loss {worst + 1}{share}"
    )
    if beyond is None and not changes_trajectory:
        likely = likely or "sums taken in another order, by other threads, another processor or a GPU's kernels"
        return Verdict("within", f"{message}, within the band of known nondeterminism; likely cause: {likely}")
    message += ", more than rounding makes" if beyond is not None else ""
    unknown = "nothing in the record explains it: other environment variables, or files that it has no hash of"
    return Verdict("different", f"{message}; {f'likely cause: {likely}' if likely else unknown}")


def loss_band(specs: Iterable[RunSpec], model: Path | None) -> float:
    """FULL where both runs train in float32: no spec says less, and no weight in the model's folder is in less."""
    arguments = [spec.train.arguments() for spec in specs if spec.train is not None]
    if model is None or any(each.get(name) for each in arguments for name in _LESS_THAN_FLOAT32):
        return REDUCED
    dtypes = {dtype for path in model.glob("*.safetensors") for dtype, _ in read_header(path).values()}
    return FULL if dtypes == {"F32"} else REDUCED


def compare_scores(then: Sequence[BenchmarkSummary], now: Sequence[BenchmarkSummary]) -> list[str]:
    """A line for each complete benchmark that both runs have: its scores then and now, where signatures are alike."""
    old = {(each.of, each.testset, each.split, each.n_segments): each for each in then if each.status == "complete"}
    lines = []
    for each in (item for item in now if item.status == "complete"):
        before = old.get((each.of, each.testset, each.split, each.n_segments))
        pairs = [(b, n) for b in (before.scores if before else ()) for n in each.scores if b.signature == n.signature]
        shown = [f"{n.metric} {b.score:.2f} then, {n.score:.2f} now" for b, n in pairs if b.metric == n.metric]
        lines += [f"{each.testset} {each.split}, {each.of}: {'; '.join(shown)}"] if shown else []
    return lines


def _difference(then: float, now: float) -> float:
    if then == now or (math.isnan(then) and math.isnan(now)):
        return 0.0
    if not math.isfinite(then) or not math.isfinite(now):
        return math.inf
    return abs(now - then) / max(abs(then), _SMALLEST)


def _likely(drift: Sequence[Difference]) -> str:
    """What can have changed the losses, the likeliest first; '' where nothing can."""
    specs = [each for each in drift if each.kind == "spec"]
    packages = [each for name in _PACKAGES for each in drift if each.path == f"version of {name}"]
    found = [each for each in dict.fromkeys([*specs, *packages, *drift]) if each.effect != "none"]
    lines = [each.line() for each in sorted(found, key=lambda each: each.effect != "trajectory")]
    others = f"; it may also be: {'; '.join(lines[1:3])}" if lines[1:] else ""
    more = f"; and {len(lines) - 3} more" if lines[3:] else ""
    return f"{lines[0]}{others}{more}" if lines else ""
