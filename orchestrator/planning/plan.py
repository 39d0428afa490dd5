"""A spec that is about to run: checked, with all that it reads, and as the files that LLaMA-Factory is given."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.data.datasets import EVALUATED, Dataset, ParallelText, load_entry, load_split
from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.data.testset import load_testset
from orchestrator.errors import Finding, raise_on_errors
from orchestrator.models.model_files import base_checkpoint
from orchestrator.planning.ask_llamafactory import ask_llamafactory, dataset_infos
from orchestrator.planning.check import check
from orchestrator.planning.session import Session
from orchestrator.runs.differences import Side
from orchestrator.runs.facts import collect_facts
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.render import Checkpoint, api_arguments, train_arguments, train_environment
from orchestrator.specs.spec import ModelSpec, RunSpec
from orchestrator.specs.spec_file import load_spec
from orchestrator.upstream.chat_templates import resolve_template

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class Plan:
    """A spec that was checked, with all that it reads."""

    spec: RunSpec
    datasets: dict[str, Dataset]  # those of parallel texts, by name
    own: dict[str, LlamaFactoryDataset]  # those in LLaMA-Factory's own formats
    texts: dict[tuple[str, str], ParallelText]  # (dataset, split) -> its text
    facts: Facts
    found: str = ""  # how the model's template was found; '' where the spec says it


def plan_run(session: Session, spec: RunSpec, *, ask: bool = False) -> Plan:
    """Check a spec and read what it needs; with `ask` LLaMA-Factory is asked about it too, unless its answer is kept.

    Raises SpecError or PrerequisiteError: everything that is wrong with it, at once.
    """
    raise_or_log(check(session, spec))
    trained = {name: load_entry(name, session.dataset_folders) for name in [*spec.datasets, *spec.eval_datasets]}
    own = {name: dataset for name, dataset in trained.items() if isinstance(dataset, LlamaFactoryDataset)}
    datasets = {name: dataset for name, dataset in trained.items() if isinstance(dataset, Dataset)}
    datasets |= {item.testset: load_testset(item, session.dataset_folders, spec.datasets) for item in spec.benchmark}
    wanted = [(name, "train") for name in spec.datasets if name in datasets]
    wanted += [(name, EVALUATED) for name in spec.eval_datasets if name in datasets]
    wanted += [(item.testset, item.split) for item in spec.benchmark]
    texts = {(name, split): load_split(datasets[name], split, session.archives) for name, split in wanted}
    spec, found = resolve(session, spec)
    if ask:
        raise_or_log(ask_llamafactory(session, [spec])[0].findings)
    facts = collect_facts(spec, session.workspace.root, session.llamafactory_or_none(), texts, own)
    return Plan(spec, datasets, own, texts, facts, found)


def resolve(session: Session, spec: RunSpec) -> tuple[RunSpec, str]:
    """The spec with the chat template that it left to be found, and how that was found ('' where it was given)."""
    if spec.model is None:
        return spec, ""
    model, found = resolve_model(session, spec.model)
    return spec.model_copy(update={"model": model}), found


def resolve_model(session: Session, model: ModelSpec) -> tuple[ModelSpec, str]:
    """The same for a model that is served."""
    installation = session.llamafactory_or_none()
    return resolve_template(model, session.workspace.root, installation) if installation else (model, "")


def raise_or_log(findings: Sequence[Finding]) -> None:
    """Raise the errors, all at once; else log warnings and notes."""
    raise_on_errors(findings)
    for finding in findings:
        log.warning("%s: %s: %s", finding.severity, finding.field, finding.message)


def render_files(session: Session, spec: RunSpec, output_dir: str = "output") -> dict[str, str]:
    """train.yaml, command.txt, and api.yaml where it serves, by name; none for a server that runs already."""
    if spec.model is None:
        return {}
    start = base_checkpoint(spec.model, session.workspace.root)
    files: dict[str, str] = {}
    served = start
    if spec.train is not None:
        arguments = train_arguments(spec, start, output_dir)
        known = session.arguments or {}
        lists = {name for name, argument in known.items() if argument.kinds == {"list"}}
        files["train.yaml"] = session.renderer.train_yaml(arguments)
        files["command.txt"] = session.renderer.command("train", arguments, train_environment(spec), lists)
        is_adapter = spec.train.finetuning_type not in ("full", "freeze")
        served = Checkpoint("output", start.model.trained("output", is_adapter=is_adapter))
    if spec.serve.backend == "llamafactory":
        files["api.yaml"] = session.renderer.api_yaml(api_arguments(served, spec.serve))
    return files


def render_job(session: Session, spec: RunSpec) -> dict[str, str]:
    """The script that would be submitted to Slurm, with another run's folder; nothing for a run that stays here."""
    if spec.compute.slurm is None:
        return {}
    folder, root = session.workspace.runs / spec.name, session.workspace.root
    return {"sbatch.sh": session.renderer.sbatch(spec.compute.slurm, [folder], workspace=root, name=spec.name)}


def render_dataset_info(session: Session, spec: RunSpec) -> dict[str, str]:
    """dataset_info.json, the one file that needs the entries; SpecError where one is missing or wrong."""
    if spec.train is None:
        return {}
    return {"dataset_info.json": session.renderer.dataset_info(dataset_infos(spec, session.dataset_folders))}


def spec_side(session: Session, name: str, spec: RunSpec) -> Side:
    """A spec that would run here, to be compared."""
    return Side(name, resolve(session, spec)[0])


def run_side(run: RunDir) -> Side:
    """A run, to be compared."""
    return Side(run.id, load_spec(run.spec), RunRecord.load(run).facts)
