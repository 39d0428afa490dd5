"""What the installed LLaMA-Factory says to a spec: its parser to the arguments, its loader to the first records.

A start of its Python takes some 8 s. An answer without errors is kept for as long as nothing changes that it is about.
"""

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.data.datasets import EVALUATED, Dataset, load_entry, load_split, sample_pairs, write_training_file
from orchestrator.data.llamafactory_data import LlamaFactoryDataset, find_files
from orchestrator.errors import Finding, OrchestratorError, PrerequisiteError, errors_of
from orchestrator.files import atomic_write, cache_folder, json_mapping, sha256_json
from orchestrator.models.model_files import base_checkpoint, locate_model
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import prepared_file
from orchestrator.runs.slurm import own_job
from orchestrator.specs.places import MODEL_ARGUMENTS, RESERVED_ARGUMENTS, is_secret
from orchestrator.specs.render import (
    DATASET_COLUMNS,
    api_arguments,
    export_arguments,
    train_arguments,
    train_environment,
)
from orchestrator.specs.spec import RunSpec
from orchestrator.text import escape_controls
from orchestrator.upstream.installation import SCRIPTS, AskError, Installation, ask
from orchestrator.upstream.vllm import DEFAULTS, argument_words, find_vllm, parser_refusal

log = logging.getLogger("orchestrator")

RECORDS = 100  # of each dataset
# Arguments that are files which the parser reads, or their content.
_FILES = ("deepspeed", "fsdp_config", "accelerator_config", "new_special_tokens_config")
_SECTIONS = {"train": "train", "api": "serve", "export": "export"}
_NO_NETWORK = {
    **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1"),
    **dict.fromkeys(("USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB"), "0"),  # they download what is not here
}
# Variables that would have other code run here.
_RUNS_CODE = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH")
_NOT_ASKED = "could not be asked"

Sample = dict[str, Any]  # what upstream/scripts/datasets_probe.py found in one dataset


@dataclass(frozen=True)
class Answer:
    """About one spec."""

    findings: list[Finding] = field(default_factory=list)
    samples: dict[str, Sample] = field(default_factory=dict)  # by dataset, as dataset_info.json names it


@dataclass(frozen=True)
class _Question:
    spec: RunSpec
    commands: dict[str, dict[str, Any]]  # by command, the arguments without secrets
    environment: dict[str, str]  # the training's own variables; no GPU, no network
    torchrun: bool | None


def ask_llamafactory(session: Session, specs: Sequence[RunSpec]) -> list[Answer]:
    """Ask about resolved specs, at once about all whose answer is not kept; no answer is a warning in the findings."""
    installation = session.llamafactory_or_none()
    if installation is None or installation.package is None:
        return [Answer() for _ in specs]  # check says so
    questions = [_question(session, spec) for spec in specs]
    vllm = None
    if any("vllm" in each.commands for each in questions):
        with contextlib.suppress(PrerequisiteError):  # check says so
            vllm = find_vllm()
    files = [_answer_file(session, installation, vllm, each) for each in questions]
    kept = [json_mapping(file) if question.commands else {} for file, question in zip(files, questions, strict=True)]
    answers = [
        Answer([Finding(**each) for each in old["findings"]], old["samples"]) if old else Answer() for old in kept
    ]
    new = [number for number, old in enumerate(kept) if old is None]
    if new:
        log.info("asking LLaMA-Factory about the arguments and the first records, which takes some 10 s")
    while new:  # those with the same variables in one process
        group = [number for number in new if questions[number].environment == questions[new[0]].environment]
        found = _ask(session, installation, vllm, [questions[number] for number in group])
        for number, answer in zip(group, found, strict=True):
            answers[number] = answer
            if not any(each.severity == "error" or _NOT_ASKED in each.message for each in answer.findings):
                with contextlib.suppress(OSError):  # then it is asked for again
                    files[number].parent.mkdir(parents=True, exist_ok=True)
                    atomic_write(files[number], json.dumps(asdict(answer)))
        new = [number for number in new if number not in group]
    return answers


def without_repeats(answer: Answer, known: Sequence[Finding]) -> list[Finding]:
    """The answer's findings, but for those about an input that a fast check has found wrong already."""
    wrong = {each.field for each in errors_of(known)}
    inputs = {name.split(".")[0] for name in wrong} & {"model", "dataset", "eval_dataset"}
    return [each for each in answer.findings if each.field not in wrong and each.field.split(".")[0] not in inputs]


def sample_lines(name: str, sample: Sample) -> list[str]:
    """A dataset's sample for a terminal: how many records are trained on, their length, and the first of them."""
    tokens = sample["tokens"]
    counts = f"{name}: {sample['kept']} of the first {sample['read']} records are trained on"
    if tokens is None:
        return [counts]
    length = f"{tokens['min']} to {tokens['max']} tokens, median {tokens['median']:g}"
    lines = [f"{counts}; {length}; {sample['over_cutoff']} longer than cutoff_len"]
    for side, pieces in (sample["first"] or {}).items():
        lines.append(f"  the first as the model sees it{', rejected answer' if side == 'rejected' else ''}:")
        for text, is_trained in pieces:
            short = text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"
            escaped = escape_controls(short.replace("\n", "\\n"))
            lines.append(f"  {'trained' if is_trained else 'prompt':>9} | {escaped}")
    return lines


def dataset_infos(spec: RunSpec, folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The entries of dataset_info.json that a training reads; SpecError where one is missing or wrong."""
    infos: dict[str, dict[str, Any]] = {}
    for name, called in _datasets(spec):
        dataset = load_entry(name, folders)
        prepared = {"file_name": prepared_file(called), "columns": DATASET_COLUMNS}
        infos[called] = dataset.as_info() if isinstance(dataset, LlamaFactoryDataset) else prepared
    return infos


def _datasets(spec: RunSpec) -> list[tuple[str, str]]:
    return [*((name, name) for name in spec.datasets), *spec.eval_names.items()]


def _question(session: Session, spec: RunSpec) -> _Question:
    """No commands where there is nothing to ask."""
    commands: dict[str, dict[str, Any]] = {}
    if spec.model is not None:
        start = base_checkpoint(spec.model, session.workspace.root)
        if spec.train is not None:
            commands["train"] = train_arguments(spec, start)
        if spec.serve.url is None and (spec.benchmark or spec.serve.extra_arguments() or spec.train is None):
            if spec.serve.backend == "vllm":
                commands["vllm"] = {**DEFAULTS, **spec.serve.extra_arguments()}
            else:
                commands["api"] = api_arguments(start, spec.serve)
        if spec.export.extra_arguments():
            commands["export"] = export_arguments(start, spec.export, Path("export"))
    for command, arguments in commands.items():
        commands[command] = {name: value for name, value in arguments.items() if not is_secret(name, value)}
    own = {name: value for name, value in sorted(spec.compute.env.items()) if name not in _RUNS_CODE}
    return _Question(spec, commands, {**own, "CUDA_VISIBLE_DEVICES": "", **_NO_NETWORK}, _uses_torchrun(spec))


def _uses_torchrun(spec: RunSpec) -> bool | None:
    """Whether LLaMA-Factory's launcher starts the training by torchrun; None where only a node of Slurm could tell."""
    environment = {**os.environ, **train_environment(spec)}
    if environment.get("FORCE_TORCHRUN", "").lower() in ("true", "y", "1"):  # as is_env_enabled there
        return True
    if spec.compute.slurm is not None and not own_job():
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    devices = Path("/dev").glob("nvidia[0-9]*") if visible is None else visible.split(",")
    return len([each for each in devices if str(each).strip() not in ("", "-1")]) > 1


def _answer_file(session: Session, installation: Installation, vllm: Installation | None, question: _Question) -> Path:
    spec, files = question.spec, sorted(SCRIPTS.glob("*.py"))
    with contextlib.suppress(OrchestratorError):  # what is wrong with it, check says
        for name, _ in _datasets(spec):
            dataset = load_entry(name, session.dataset_folders)  # that of parallel texts holds their checksums
            files += [dataset.path, *(find_files(dataset) if isinstance(dataset, LlamaFactoryDataset) else ())]
        folder = spec.model and locate_model(spec.model.name_or_path, session.workspace.root, spec.model.revision)
        files += sorted(folder.iterdir()) if folder else []
    given = [each.get(name) for each in question.commands.values() for name in _FILES]
    files += [Path(each) for each in given if isinstance(each, str) and not each.lstrip().startswith("{")]
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()]
    programs = [__version__, str(installation.cli), str(installation.package), installation.versions]
    asked = [question.commands, question.environment, question.torchrun]
    key = sha256_json([*asked, stamps, programs, vllm and vllm.versions])
    return cache_folder() / "checks" / f"{key}.json"


def _ask(
    session: Session, installation: Installation, vllm: Installation | None, questions: Sequence[_Question]
) -> list[Answer]:
    with tempfile.TemporaryDirectory(prefix="orchestrator-check-") as parent:
        points: list[dict[str, Any]] = [{**each.commands, "torchrun": each.torchrun} for each in questions]
        for question, point in zip(questions, points, strict=True):
            if "train" in point:
                folder = _write_records(session, question.spec, Path(parent))
                point["train"] = {**point["train"], "dataset_dir": str(folder)}
        try:
            answer = ask(
                installation.python,
                "check_arguments",
                {"points": points, "limit": RECORDS},
                timeout_s=180 + 3 * len(points),
                environment=questions[0].environment,
            )
        except AskError as error:
            what = f"LLaMA-Factory {_NOT_ASKED} about the arguments: {error.message}"
            finding = Finding("warning", "missing", "llamafactory-cli", what, error.remedy)
            return [Answer([finding]) for _ in points]
    answers = []
    for number, question in enumerate(questions):
        samples: dict[str, Sample] = dict(enumerate(answer["datasets"])).get(number) or {}
        findings = [_finding(each, installation) for each in answer["problems"] if each["point"] == number]
        findings += [*_data_findings(question.spec, samples), *(_vllm_findings(vllm, question) if vllm else ())]
        once = {each.message: each for each in reversed(findings)}  # train and api say the same of the model
        answers.append(Answer(list(reversed(once.values())), samples))
    return answers


def _write_records(session: Session, spec: RunSpec, parent: Path) -> Path:
    """A dataset_dir with the first records, one for all specs that train on the same data."""
    datasets = _datasets(spec)
    folder = parent / sha256_json(datasets)[:16]
    if folder.is_dir():
        return folder
    folder.mkdir()
    infos: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OrchestratorError):  # what is wrong with them, check says
        for number, (name, called) in enumerate(datasets):
            dataset = load_entry(name, session.dataset_folders)
            if isinstance(dataset, Dataset):
                split = "train" if number < len(spec.datasets) else EVALUATED
                text = sample_pairs(load_split(dataset, split, session.archives), RECORDS)
                write_training_file(text, dataset.entry.instruction, folder / prepared_file(called))
        infos = dataset_infos(spec, session.dataset_folders)
    (folder / "dataset_info.json").write_text(json.dumps(infos), "utf-8")
    return folder


def _finding(problem: Mapping[str, Any], installation: Installation) -> Finding:
    message, section = problem["message"], _SECTIONS[problem["command"]]
    places = [_place(section, name) for name in problem["arguments"]]
    at = places[0] if places else section
    if problem["kind"] == "unknown":
        return Finding("note", "missing", at, f"not checked: {message}")
    if problem["kind"] == "missing":
        return Finding("error", "missing", at, message, f"install it for {installation.python}")
    remedy = f"change {' or '.join(places)}" if len(places) > 1 else ""
    return Finding("error", "spec", at, f"LLaMA-Factory refuses this: {message}", remedy)


def _place(section: str, argument: str) -> str:
    place = RESERVED_ARGUMENTS.get(argument)
    if isinstance(place, tuple):
        return ".".join(filter(None, place))
    return f"{'model.arguments' if argument in MODEL_ARGUMENTS else section}.{argument}"


def _data_findings(spec: RunSpec, samples: Mapping[str, Sample]) -> list[Finding]:
    findings = []
    for section, names in (("dataset", spec.datasets), ("eval_dataset", list(spec.eval_names.values()))):
        for number, name in enumerate(names):
            sample = samples.get(name) or {"problems": []}
            at = section if len(names) == 1 else f"{section}.{number}"
            fatal = [each for each in sample["problems"] if each["fatal"]]
            dropped = [each for each in sample["problems"] if not each["fatal"]]
            if fatal and not sample["read"] and sample["from"] not in (None, "file"):
                what = f"{name} was not read, since the network is not used here: {fatal[0]['message']}"
                findings.append(Finding("note", "missing", at, what))
            elif fatal:
                what = f"LLaMA-Factory cannot train on {name}: {_first_of(fatal)}"
                findings.append(Finding("error", "missing", at, what))
            if dropped:
                what = f"{len(dropped)} of the first {sample['read']} records of {name} are left out"
                findings.append(Finding("warning", "missing", at, f"{what}: {_first_of(dropped)}"))
    return findings


def _first_of(problems: Sequence[Mapping[str, Any]]) -> str:
    first, others = problems[0], len(problems) - 1
    record = "" if first["record"] is None else f"record {first['record']}: "
    return escape_controls(f"{record}{first['message']}" + (f" (and {others} more)" if others else ""))


def _vllm_findings(vllm: Installation, question: _Question) -> list[Finding]:
    model, given = question.spec.model, question.commands.get("vllm")
    if model is None or given is None:
        return []
    try:
        message = parser_refusal(vllm, [model.name_or_path, *argument_words(given)])
    except AskError as error:
        what = f"vLLM {_NOT_ASKED} about its arguments: {error.message}"
        return [Finding("warning", "missing", "serve.backend", what, error.remedy)]
    named = [name for name in given if re.search(rf"--(no-)?{name.replace('_', '-')}\b", message)]
    at = f"serve.{named[0]}" if named else "serve"
    return [Finding("error", "spec", at, f"`vllm serve` refuses this: {message}")] if message else []
