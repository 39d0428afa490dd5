"""Everything about a run that shows within a second, without a GPU; archives that the data need are downloaded.

What LLaMA-Factory itself says to it is ask_llamafactory's. Whether it fits into GPU memory is not known.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator.data.checks import check_data
from orchestrator.errors import Finding, PrerequisiteError, SpecError, did_you_mean, from_error
from orchestrator.files import expanded
from orchestrator.models.model_files import adapter_problems, locate_model, lora_target_problem, model_problems
from orchestrator.planning.session import Session
from orchestrator.processes.ports import check_port
from orchestrator.runs import slurm
from orchestrator.runs.machine import this_machine
from orchestrator.specs.render import train_environment
from orchestrator.specs.spec import ModelSpec, RunSpec
from orchestrator.upstream.chat_templates import has_chat_template, read_templates, suggest_template
from orchestrator.upstream.comet import find_comet
from orchestrator.upstream.vllm import find_vllm

# GPUs and other accelerators as Linux shows them: NVIDIA, NVIDIA under WSL, AMD, Ascend.
_ACCELERATORS = ("nvidia[0-9]*", "dxg", "kfd", "davinci[0-9]*")


def check(session: Session, spec: RunSpec) -> list[Finding]:
    """All findings about a spec, in its order."""
    findings: list[Finding] = []
    root, train = session.workspace.root, spec.train
    if spec.model is not None:
        target = train.lora_target if train is not None and train.finetuning_type == "lora" else None
        findings += check_model(session, spec.model, target)
    findings += [*check_data(spec, session.dataset_folders, session.archives), *_comet(spec, root)]
    if spec.serve.url is None:
        findings += [*_vllm(spec), *_compute(spec, root)]
    return findings


def check_model(session: Session, model: ModelSpec, lora_target: str | list[str] | None = None) -> list[Finding]:
    """Check a model that is to be trained or served: LLaMA-Factory, the files, the adapter, the template."""
    field, root = "model.name_or_path", session.workspace.root
    findings, folder = _located(field, model.name_or_path, root, model.revision)
    problems = model_problems(folder) if folder is not None else []
    findings += [Finding("error", "missing", field, each) for each in problems]
    if model.adapter_name_or_path is not None:
        field = "model.adapter_name_or_path"
        found, adapter = _located(field, model.adapter_name_or_path, root, None)
        wrong = adapter_problems(adapter) if adapter else []
        findings += [*found, *(Finding("error", "missing", field, each) for each in wrong)]
    findings += _template(session, model, folder)
    if lora_target is not None and folder is not None and not problems:
        if problem := lora_target_problem(lora_target, folder):
            findings.append(Finding("error", "spec", "train.lora_target", problem, "write lora_target: all"))
    return findings


def _located(field: str, name: str, root: Path, revision: str | None) -> tuple[list[Finding], Path | None]:
    try:
        folder = locate_model(name, root, revision)
    except SpecError as error:
        return [from_error(field, error)], None
    if folder is not None:
        return [], folder
    absent = f"no folder {root / name}, and the hub's {name} is not in the local cache: "
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):  # huggingface_hub's constants.py
        absent += "HF_HUB_OFFLINE forbids to download it"
        return [Finding("error", "missing", field, absent, f"unset HF_HUB_OFFLINE, or first: hf download {name}")], None
    return [Finding("warning", "missing", field, absent + "LLaMA-Factory will download it")], None


def _template(session: Session, model: ModelSpec, folder: Path | None) -> list[Finding]:
    installation = session.installation
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
    if "template" not in model.model_fields_set:
        template, reason = suggest_template(model.name_or_path, folder, templates)
        taken = f"which is taken: write template: {template}" if template else _without_template(folder)
        findings.append(Finding("warning", "spec", field, f"none given; {reason}; {taken}"))
    elif template is None and folder is not None and not has_chat_template(folder):
        findings.append(Finding("warning", "spec", field, f"null: {_without_template(folder)}"))
    if template in templates.reasoning and model.enable_thinking is None:
        what = f"not given, and {template} is for models that think: each translation will begin with an empty thought"
        what += "; write enable_thinking: false to have it in the prompt instead, or true"
        findings.append(Finding("warning", "spec", "model.enable_thinking", what))
    return findings


def _without_template(folder: Path | None) -> str:
    if folder is None or has_chat_template(folder):  # as get_template_and_fix_tokenizer has it
        return "LLaMA-Factory takes the tokenizer's own chat template, or where it has none no template at all"
    what = f"{folder} is a base model, without a chat template: LLaMA-Factory writes question and answer with nothing"
    return f"{what} between or after them; write template: default, or start from the model's chat version"


def _comet(spec: RunSpec, root: Path) -> list[Finding]:
    for number, item in enumerate(spec.benchmark):
        if item.comet is not None:
            try:
                find_comet()
            except PrerequisiteError as error:
                return [from_error(f"benchmark.{number}.comet", error)]
            if item.comet.endswith(".ckpt") and not (root / expanded(item.comet)).is_file():
                missing = f"no file {root / expanded(item.comet)}"
                return [Finding("error", "missing", f"benchmark.{number}.comet", missing, "name COMET's file or model")]
    return []


def _vllm(spec: RunSpec) -> list[Finding]:
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


def _compute(spec: RunSpec, root: Path) -> list[Finding]:
    """Where the training is to run. What a job asks of Slurm, sbatch itself refuses at once."""
    if spec.compute.slurm is not None and not slurm.own_job():
        what, remedy = "sbatch is not here: Slurm's programs are not installed", "--set compute.slurm=null runs it here"
        return [] if shutil.which("sbatch") else [Finding("error", "missing", "compute.slurm", what, remedy)]
    findings = _port(spec)
    if spec.train is not None:
        arguments = spec.train.arguments()
        findings += [*_devices(spec, arguments), *_several_machines(spec), *_relative_files(arguments, root)]
    return findings


def _port(spec: RunSpec) -> list[Finding]:
    machine = this_machine(spec.compute, os.environ)
    if not spec.benchmark or spec.serve.port is None or not (machine is None or machine.rank == 0):
        return []
    try:
        check_port(spec.serve.host, spec.serve.port)
    except PrerequisiteError as error:
        return [from_error("serve.port", error)]
    return []


def _relative_files(arguments: Mapping[str, object], root: Path) -> list[Finding]:
    findings = []
    for name in ("deepspeed", "fsdp_config"):  # LLaMA-Factory opens them itself, in the run folder
        value = str(arguments.get(name) or "/")
        if not Path(value).is_absolute() and not value.lstrip().startswith(("{", "[")):  # those are no paths
            what, remedy = f"{value!r} is a relative path", f"write {(root / value).absolute()}"
            findings.append(Finding("error", "spec", f"train.{name}", what, remedy))
    return findings


def _devices(spec: RunSpec, arguments: Mapping[str, object]) -> list[Finding]:
    visible = spec.compute.devices if spec.compute.devices is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    is_hidden = visible is not None and visible.strip() in ("", "-1")
    has_gpu = sys.platform != "linux" or any(any(Path("/dev").glob(pattern)) for pattern in _ACCELERATORS)
    if arguments.get("use_cpu") is True or (has_gpu and not is_hidden):
        return []
    refused = [name for name in ("bf16", "fp16", "pure_bf16", "tf32") if arguments.get(name) is True]
    what = "no GPU is seen here: this trains on the CPU"
    if not refused:
        return [Finding("note", "missing", "train", what)]
    what += f", and LLaMA-Factory refuses {refused[0]} there: write use_cpu: true in its place"
    return [Finding("warning", "missing", f"train.{refused[0]}", what)]


def _several_machines(spec: RunSpec) -> list[Finding]:
    machine, nodes = this_machine(spec.compute, os.environ), os.environ.get("NNODES", "1")
    if machine is None:  # with NNODES of the environment torchrun would wait for other machines for ever
        if spec.compute.slurm is not None or spec.compute.nnodes is not None or nodes == "1":
            return []
        is_sure = "FORCE_TORCHRUN" in {**os.environ, **train_environment(spec)}
        what = f"not given, and NNODES={nodes} in the environment makes LLaMA-Factory's torchrun wait for others"
        remedy = f"compute: {{nnodes: {nodes}, ...}}; to train on this machine alone: unset NNODES"
        return [Finding("error" if is_sure else "warning", "spec", "compute.nnodes", what, remedy)]
    findings = []
    if machine.rank is not None and machine.rank >= int(machine.count):
        what = f"rank {machine.rank} of {machine.count} machines: ranks are 0 to {int(machine.count) - 1}"
        findings.append(Finding("error", "spec", "compute.node_rank", what, "correct compute.node_rank or NODE_RANK"))
    for field in ("master_addr", "master_port"):
        if getattr(spec.compute, field) is None:
            what = f"not given, and there are {machine.count} machines: each would wait for the others somewhere else"
            findings.append(Finding("error", "spec", f"compute.{field}", what, f"the same on each: {field}: ..."))
    if machine.rank is None:
        what = f"which of the {machine.count} machines is this? Two with rank 0 wait for each other for ever"
        remedy = "NODE_RANK=0 orchestrator launch SPEC on the first, NODE_RANK=1 on the second; or compute.node_rank"
        findings.append(Finding("error", "spec", "compute.node_rank", what, remedy))
    return findings
