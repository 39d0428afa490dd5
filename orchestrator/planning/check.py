"""Everything about a run that shows within a second, before it starts and without a GPU.

What LLaMA-Factory itself says to it is ask_llamafactory's. Whether it fits into GPU memory is not known. Downloads
archives that the data need, and nothing else.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from orchestrator.data.archives import ArchiveStore
from orchestrator.data.checks import check_data
from orchestrator.errors import Finding, PrerequisiteError, SpecError, did_you_mean, errors_of, from_error
from orchestrator.models.model_files import (
    adapter_problems,
    locate_model,
    lora_target_problem,
    model_problems,
    unchecked_weights,
)
from orchestrator.planning.compute import check_compute, port_problem
from orchestrator.planning.slurm import check_slurm
from orchestrator.runs.slurm import own_job
from orchestrator.specs.spec import ModelSpec, RunSpec
from orchestrator.upstream.chat_templates import has_chat_template, read_templates, suggest_template
from orchestrator.upstream.comet import find_comet, locate_comet_model
from orchestrator.upstream.installation import Installation
from orchestrator.upstream.vllm import find_vllm

_Found = Installation | PrerequisiteError
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
RUNS_CODE = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH")


def check(
    spec: RunSpec, root: Path, folders: Sequence[Path], archives: ArchiveStore, installation: _Found
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
    findings = _risks(spec)
    if spec.model is not None:
        findings += [*check_model(spec.model, root, installation), *_lora_target(spec, spec.model, root)]
    findings += [*check_data(spec, folders, archives), *_comet(spec, root)]
    if spec.serve.url is None:
        findings += [*_files(spec, root, installation), *_vllm(spec)]
    if spec.compute.slurm is not None and not own_job():
        findings += check_slurm(spec.compute.slurm)
    elif spec.serve.url is None:
        findings += [*check_compute(spec), *_port(spec)]
    return findings


def check_model(model: ModelSpec, root: Path, installation: _Found) -> list[Finding]:
    """Check a model that is to be trained or served: LLaMA-Factory, the files, the adapter, the template."""
    field = "model.name_or_path"
    findings, folder = _located(field, model.name_or_path, root, model.revision)
    if folder is not None:
        findings += [Finding("error", "missing", field, problem) for problem in model_problems(folder)]
        findings += [_unchecked(field, folder, name) for name in unchecked_weights(folder)]
    return [*findings, *_adapter(model, root), *_template(model, folder, installation)]


def _risks(spec: RunSpec) -> list[Finding]:
    """What a spec that came from somebody else could do here; in one's own it is meant."""
    findings = []
    if spec.model is not None and spec.model.trust_remote_code:
        what = "Python code that comes with the model is run"
        findings.append(Finding("warning", "spec", "model.trust_remote_code", what))
    for name in spec.compute.env:
        if name in RUNS_CODE:
            what = f"{spec.compute.env[name]!r}: it decides which code the training runs"
            findings.append(Finding("warning", "spec", f"compute.env.{name}", what))
    if spec.serve.url is None and spec.serve.host not in _LOOPBACK:
        what = f"{spec.serve.host}: the server can be reached from the network, by whoever has its key"
        findings.append(Finding("warning", "spec", "serve.host", what))
    return findings


def _template(model: ModelSpec, folder: Path | None, installation: _Found) -> list[Finding]:
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
        match = suggest_template(model.name_or_path, folder, templates)
        template = match.template
        if template is not None:
            taken = f"none given; {match.reason}, which is taken: write template: {template}"
            findings.append(Finding("warning", "spec", field, taken))
        else:
            what = f"none given, and {match.reason}: {_without_template(folder)}"
            findings.append(Finding("warning", "spec", field, what))
    elif template is None and folder is not None and not has_chat_template(folder):
        findings.append(Finding("warning", "spec", field, f"null: {_without_template(folder)}"))
    if template in templates.reasoning and model.enable_thinking is None:
        nothink = f"{template}_nothink"
        other = f", or template: {nothink}, which leaves it out" if nothink in templates.names else ""
        what = (
            f"not given, and {template} is for models that think: by default LLaMA-Factory puts an empty thought "
            "before each answer and trains the model to write it, so that it is in every translation too; with false "
            f"it stands in the prompt instead. Write enable_thinking: true or false{other}"
        )
        findings.append(Finding("warning", "spec", "model.enable_thinking", what))
    return findings


def _without_template(folder: Path | None) -> str:
    """What LLaMA-Factory does without a template (get_template_and_fix_tokenizer)."""
    if folder is None:
        return "LLaMA-Factory takes the tokenizer's own chat template, or where it has none no template at all"
    if has_chat_template(folder):
        return "LLaMA-Factory takes the tokenizer's own chat template, without stop words beyond its end of text"
    return (
        f"{folder} is a base model, without a chat template of its own. LLaMA-Factory then writes question and answer "
        "one behind the other with nothing between them (its template empty): the model cannot see where the answer "
        "begins, and learns no end for it. Write template: default, or start from the model's chat version"
    )


def _files(spec: RunSpec, root: Path, installation: _Found) -> list[Finding]:
    """Files that LLaMA-Factory opens itself, in the run's folder; and its own path."""
    findings: list[Finding] = []
    package = installation.package if isinstance(installation, Installation) else None
    if spec.compute.nproc_per_node is not None and any(char.isspace() for char in str(package)):
        what = f"LLaMA-Factory is in {package}: it splits torchrun's command at the blank in that path"
        remedy = "install it in a path without blanks, and name that: ORCHESTRATOR_LLAMAFACTORY=FOLDER"
        findings.append(Finding("error", "missing", "compute.nproc_per_node", what, remedy))
    arguments = spec.train.arguments() if spec.train is not None else {}
    for name in ("deepspeed", "fsdp_config"):
        value, field = arguments.get(name), f"train.{name}"
        if not isinstance(value, str) or not value.strip() or value.lstrip().startswith("{"):
            continue  # a text that begins with a brace is the configuration itself
        if not Path(value).is_absolute():
            what, remedy = f"{value!r} is a relative path", f"write {(root / value).absolute()}"
            findings.append(Finding("error", "spec", field, what, remedy))
        elif not Path(value).is_file():
            findings.append(Finding("error", "missing", field, f"no file {value}"))
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
    """Whether vLLM is there and can serve what is trained."""
    if not spec.benchmark or spec.serve.backend != "vllm":
        return []
    findings: list[Finding] = []
    try:
        find_vllm()
    except PrerequisiteError as error:
        findings.append(from_error("serve.backend", error))
    arguments = spec.train.arguments() if spec.train is not None and not spec.serve.merge else {}
    refused = [name for name in ("use_dora", "additional_target", "pissa_init") if arguments.get(name)]
    refused += ["finetuning_type"] if arguments.get("finetuning_type") == "oft" else []
    for name in refused:
        what = f"vLLM serves no adapter trained with {name} ({arguments[name]}) beside its model"
        remedy = "write serve.merge: true, so that it is served as one model"
        findings.append(Finding("error", "spec", f"train.{name}", what, remedy))
    return findings


def _lora_target(spec: RunSpec, model: ModelSpec, root: Path) -> list[Finding]:
    train = spec.train
    if train is None or train.finetuning_type != "lora" or train.lora_target in (None, "all"):
        return []
    located, folder = _located("", model.name_or_path, root, model.revision)
    if folder is None or errors_of(located) or model_problems(folder):
        return []
    problem = lora_target_problem(train.lora_target, folder)
    return [Finding("error", "spec", "train.lora_target", problem, "write lora_target: all")] if problem else []


def _adapter(model: ModelSpec, root: Path) -> list[Finding]:
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
    is_path = (root / name).parent != root and (root / name).parent.is_dir()
    severity: Literal["warning", "note"] = "warning" if is_path else "note"
    return [Finding(severity, "missing", field, f"{absent}: LLaMA-Factory will try to download it")], None


def _port(spec: RunSpec) -> list[Finding]:
    host, port = spec.serve.host, spec.serve.port
    problem = port_problem(host, port) if spec.benchmark and port is not None else ""
    remedy = "stop what listens there, or leave serve.port out: then a free one is taken"
    return [Finding("error", "missing", "serve.port", f"{host}:{port} {problem}", remedy)] if problem else []


def _unchecked(field: str, folder: Path, name: str) -> Finding:
    return Finding("note", "missing", field, f"{folder / name} is pickled: whether it is complete is not known")
