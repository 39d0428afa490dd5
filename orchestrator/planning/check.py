"""Everything that can be known about a run before it starts, all at once, without a GPU.

Covered: the data (data_check.py), LLaMA-Factory and its templates, the model's and the adapter's files, lora_target,
packages and files that arguments call for, COMET's environment, the GPU, the port.
Not covered: what the spec alone shows (spec.py, arguments.py); whether it fits into GPU memory; a server at serve.url.
Downloads archives that the data need, and nothing else.
"""

import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from orchestrator.data.archives import ArchiveStore
from orchestrator.data.data_check import check_data
from orchestrator.errors import Finding as Finding
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean, errors_of, from_error
from orchestrator.errors import raise_on_errors as raise_on_errors
from orchestrator.models.model_files import (
    adapter_mismatch,
    adapter_problems,
    locate_model,
    lora_target_problem,
    model_problems,
    unchecked_weights,
)
from orchestrator.planning.compute import check_compute
from orchestrator.planning.slurm import check_slurm
from orchestrator.runs.slurm import own_job
from orchestrator.specs.render import train_environment
from orchestrator.specs.spec import ModelSpec, RunSpec
from orchestrator.upstream.chat_templates import has_chat_template, propose, read_templates
from orchestrator.upstream.comet import find_comet, locate_comet_model
from orchestrator.upstream.installation import Installation
from orchestrator.upstream.vllm import find_vllm
from orchestrator.upstream.vllm_arguments import read_flags

# GPUs and other accelerators as Linux shows them: NVIDIA, NVIDIA under WSL, AMD, Ascend.
_ACCELERATORS = ("nvidia[0-9]*", "dxg", "kfd", "davinci[0-9]*")


def check(
    spec: RunSpec,
    root: Path,
    folders: Sequence[Path],
    archives: ArchiveStore,
    installation: Installation | PrerequisiteError | None,
) -> list[Finding]:
    """Check a run before it starts.

    Args:
        spec: what would run.
        root: the workspace, which the spec's paths are relative to.
        folders: where dataset entries are (datasets.entry_folders).
        archives: where their archives are, or go.
        installation: LLaMA-Factory, or the error that looking for it ended with.

    Returns:
        All findings in the order of the spec; none where all is well.
    """
    findings: list[Finding] = []
    if spec.model is not None:
        findings += [*check_model(spec.model, root, installation), *_training_start(spec, spec.model, root)]
    findings += [*check_data(spec, folders, archives), *_comet(spec, root)]
    if spec.serve.url is None:
        findings += _packages(spec, root, installation)
    if spec.compute.slurm is not None and not own_job():
        findings += check_slurm(spec.compute.slurm)
    elif spec.serve.url is None:
        findings += [*check_compute(spec), *_machine(spec)]
    return findings


def check_model(model: ModelSpec, root: Path, installation: Installation | PrerequisiteError | None) -> list[Finding]:
    """Check a model that is to be trained or served: LLaMA-Factory, the files, the adapter, the template."""
    field = "model.name_or_path"
    findings, folder = _located(field, model.name_or_path, root, model.revision)
    if folder is not None:
        findings += [Finding("error", "missing", field, problem) for problem in model_problems(folder)]
        findings += [_unchecked(field, folder, name) for name in unchecked_weights(folder)]
    findings += _adapter(model, root, folder if not errors_of(findings) else None)
    return findings + _template(model, folder, installation)


def _template(
    model: ModelSpec, folder: Path | None, installation: Installation | PrerequisiteError | None
) -> list[Finding]:
    if installation is None:
        return [Finding("error", "missing", "llamafactory-cli", "not found", "pip install llamafactory")]
    if isinstance(installation, PrerequisiteError):
        return [from_error("llamafactory-cli", installation)]
    findings = [Finding("note", "missing", "llamafactory-cli", installation.note)] if installation.note else []
    templates = read_templates(installation)
    if not templates.names:
        unchecked = f"{installation.python} has no package llamafactory: its templates cannot be checked"
        return [*findings, Finding("note", "missing", "llamafactory-cli", unchecked)]
    field, template = "model.template", model.template
    if template is not None and template not in templates.names:
        unknown = f"LLaMA-Factory has no template {template!r} among its {len(templates.names)}"
        findings.append(Finding("error", "spec", field, unknown + did_you_mean(template, templates.names)))
    if template is None and "template" not in model.model_fields_set:
        found = propose(model.name_or_path, folder, templates)
        template = found.template
        if template is not None:
            taken = f"none given; {found.reason}, which is taken: write template: {template}"
            findings.append(Finding("warning", "spec", field, taken))
        else:
            findings.append(Finding("warning", "spec", field, f"none given, and {found.reason}: {_without(folder)}"))
    elif template is None and folder is not None and not has_chat_template(folder):
        findings.append(Finding("warning", "spec", field, f"null: {_without(folder)}"))
    if template in templates.reasoning and model.enable_thinking is None:
        calm = f"{template}_nothink"
        other = f", or template: {calm}, which leaves it out" if calm in templates.names else ""
        findings.append(
            Finding(
                "warning",
                "spec",
                "model.enable_thinking",
                f"not given, and {template} is for models that think: by default LLaMA-Factory puts an empty thought "
                "before each answer and trains the model to write it, so that it is in every translation too; with "
                f"false it stands in the prompt instead. Write enable_thinking: true or false{other}",
            )
        )
    return findings


def _without(folder: Path | None) -> str:
    """What LLaMA-Factory does without a template (get_template_and_fix_tokenizer)."""
    if folder is None:
        return "LLaMA-Factory takes the tokenizer's own chat template, or where it has none no template at all"
    if has_chat_template(folder):
        return "LLaMA-Factory takes the tokenizer's own chat template, without stop words beyond its end of text"
    return (
        f"{folder} is a base model, without a chat template of its own. LLaMA-Factory then writes question and answer "
        "one behind the other with nothing between them (its template empty): the model is not told where the answer "
        "begins, and learns no end for it. Write template: default, or start from the model's chat version"
    )


def _packages(spec: RunSpec, root: Path, installation: Installation | PrerequisiteError | None) -> list[Finding]:
    """Packages and files that arguments call for."""
    if not isinstance(installation, Installation):
        return []  # check_model says so
    findings: list[Finding] = []
    arguments = spec.train.arguments() if spec.train is not None else {}
    wanted: dict[str, str] = {"train.deepspeed": "deepspeed"} if arguments.get("deepspeed") else {}
    if spec.benchmark and spec.serve.backend == "vllm":
        findings += _vllm(spec)
    elif spec.benchmark and spec.serve.infer_backend != "huggingface":
        wanted["serve.infer_backend"] = spec.serve.infer_backend
    if arguments.get("quantization_bit") and arguments.get("quantization_method", "bnb") in ("bnb", "bitsandbytes"):
        wanted["train.quantization_bit"] = "bitsandbytes"
    for field, package in wanted.items():
        if installation.package is not None and package not in installation.versions:
            what = f"the package {package} is not installed beside LLaMA-Factory"
            findings.append(Finding("error", "missing", field, what, f"{installation.python} -m pip install {package}"))
    if spec.compute.nproc_per_node is not None and any(char.isspace() for char in str(installation.package)):
        what = f"LLaMA-Factory is in {installation.package}: it splits torchrun's command at the blank in that path"
        remedy = "install it in a path without blanks, and name that: ORCHESTRATOR_LLAMAFACTORY=FOLDER"
        findings.append(Finding("error", "missing", "compute.nproc_per_node", what, remedy))
    for key in ("deepspeed", "fsdp_config"):
        value = arguments.get(key)
        # A text that begins with a brace is the configuration itself.
        if isinstance(value, str) and value.strip() and not value.lstrip().startswith("{"):
            findings += _file(f"train.{key}", value, root)
    return findings


def _comet(spec: RunSpec, root: Path) -> list[Finding]:
    """COMET's environment and model, before hours go into what it would score."""
    findings = []
    for number, item in enumerate(spec.benchmark):
        if item.comet is not None:
            try:
                find_comet()
                locate_comet_model(item.comet, root)
            except PrerequisiteError as error:
                findings.append(from_error(f"benchmark.{number}.comet", error))
    return findings


def _vllm(spec: RunSpec) -> list[Finding]:
    """VLLM itself, and whether it can serve what is trained."""
    findings: list[Finding] = []
    try:
        read_flags(find_vllm().package)
    except PrerequisiteError as error:
        findings.append(from_error("serve.backend", error))
    arguments = spec.train.arguments() if spec.train is not None else {}
    merge = "write serve.merge: true, so that it is served as one model"
    for name in ("use_dora", "additional_target", "pissa_init"):
        if arguments.get(name) and not spec.serve.merge:
            what = f"vLLM serves no adapter trained with {name} beside its model"
            findings.append(Finding("error", "spec", f"train.{name}", what, merge))
    if arguments.get("finetuning_type") == "oft" and not spec.serve.merge:
        findings.append(Finding("error", "spec", "train.finetuning_type", "vLLM serves no OFT adapter", merge))
    return findings


def _file(field: str, value: str, root: Path) -> list[Finding]:
    """A file that LLaMA-Factory opens itself, in the run's folder: only an absolute path is the same there."""
    if not Path(value).is_absolute():
        return [Finding("error", "spec", field, f"{value!r} is a relative path", f"write {(root / value).absolute()}")]
    if not Path(value).is_file():
        return [Finding("error", "missing", field, f"no file {value}")]
    return []


def _training_start(spec: RunSpec, model: ModelSpec, root: Path) -> list[Finding]:
    """Whether what is trained fits the model that it starts from."""
    train, findings = spec.train, []
    if train is None:
        return []
    if model.adapter_name_or_path is not None and train.finetuning_type != "lora":
        what = f"LLaMA-Factory goes on from an adapter with finetuning_type lora only, not {train.finetuning_type}"
        findings.append(Finding("error", "spec", "model.adapter_name_or_path", what))
    located, folder = _located("", model.name_or_path, root, model.revision)
    whole = folder is not None and not errors_of(located) and not model_problems(folder)
    if train.finetuning_type == "lora" and train.lora_target is not None and folder is not None and whole:
        problem = lora_target_problem(train.lora_target, folder)
        if problem:
            findings.append(Finding("error", "spec", "train.lora_target", problem, "write lora_target: all"))
    return findings


def _adapter(model: ModelSpec, root: Path, base: Path | None) -> list[Finding]:
    field, adapter = "model.adapter_name_or_path", model.adapter_name_or_path
    if adapter is None:
        return []
    if "," in adapter:
        reason = "LLaMA-Factory takes a comma for the end of one of several adapters; there can be one"
        return [Finding("error", "spec", field, f"{adapter!r} has a comma: {reason}")]
    findings, folder = _located(field, adapter, root, None)
    if folder is not None:
        findings += [Finding("error", "missing", field, problem) for problem in adapter_problems(folder)]
        findings += [_unchecked(field, folder, name) for name in unchecked_weights(folder)]
    if folder is not None and base is not None and not findings:
        mismatch = adapter_mismatch(folder, base)
        if mismatch:
            findings.append(Finding("error", "spec", field, mismatch, "name the base model that it was trained on"))
    return findings


def _located(field: str, name: str, root: Path, revision: str | None) -> tuple[list[Finding], Path | None]:
    try:
        folder = locate_model(name, root, revision)
    except SpecError as error:
        return [from_error(field, error)], None
    if folder is not None:
        return [], folder
    absent = f"no folder {root / name}, and the hub's {name} is not in the local cache"
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            what = f"{absent}, and {variable} is set"
            return [Finding("error", "missing", field, what, f"unset {variable}, or give a folder")], None
    folder_meant = (root / name).parent != root and (root / name).parent.is_dir()
    severity: Literal["warning", "note"] = "warning" if folder_meant else "note"
    return [Finding(severity, "missing", field, f"{absent}: LLaMA-Factory will try to download it")], None


def _machine(spec: RunSpec) -> list[Finding]:
    findings = []
    if spec.train is not None and not _has_accelerator(spec.compute.devices):
        arguments = spec.train.arguments()
        halves = [key for key in ("bf16", "fp16") if arguments.get(key) is True]
        if arguments.get("use_cpu") is not True and halves:
            what = f"no GPU is seen here: LLaMA-Factory ends at once with {halves[0]} and without use_cpu"
            findings.append(Finding("warning", "missing", f"train.{halves[0]}", what, "add train.use_cpu: true"))
        elif arguments.get("use_cpu") is not True:
            findings.append(Finding("note", "missing", "train", "no GPU is seen here: this trains on the CPU"))
        environment = {**os.environ, **train_environment(spec)}
        torchrun = environment.get("FORCE_TORCHRUN", "").lower() in ("true", "y", "1")  # its is_env_enabled
        if torchrun and "NPROC_PER_NODE" not in environment and spec.compute.slurm is None:
            what = "not given: LLaMA-Factory has torchrun start a process for each device, and no GPU is seen here"
            findings.append(Finding("error", "missing", "compute.nproc_per_node", what, "nproc_per_node: 2, say"))
    if spec.benchmark and spec.serve.port is not None:
        reason = _port_problem(spec.serve.host, spec.serve.port)
        if reason:
            remedy = "stop what listens there, or leave serve.port out: then a free one is taken"
            findings.append(Finding("error", "missing", "serve.port", reason, remedy))
    return findings


def _has_accelerator(devices: str | None) -> bool:
    visible = devices if devices is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    return sys.platform != "linux" or any(any(Path("/dev").glob(pattern)) for pattern in _ACCELERATORS)


def _port_problem(host: str, port: int) -> str | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does: TIME_WAIT is no hindrance
            probe.bind(address)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror}"
        return f"{host}:{port} {reason}"
    return None


def _unchecked(field: str, folder: Path, name: str) -> Finding:
    return Finding("note", "missing", field, f"{folder / name} is pickled: whether it is whole cannot be told")
