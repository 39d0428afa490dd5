"""What a TARGET on the command line means: a run, RUN@LABEL, a folder, a hub id, or a server's URL.

Covered: finding the files, and with them how a conversation is put to the model (template, system text): from the
run that made it, or from the note that `export` leaves beside a merged model.
Not covered: whether the files are whole (check.py).
Writes nothing.
"""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import expanded
from orchestrator.models.model_files import _absolute, base_checkpoint, trained_checkpoint
from orchestrator.planning.spec_file import load_spec
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.serving.endpoint import Endpoint
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, RunSpec

EXPORT_NOTE = "orchestrator.json"
"""Beside an exported model: the run it comes from, and the model section to serve it with."""

EVERY = "all"
"""The label that stands for every checkpoint of a run."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_KINDS = (
    "a run, RUN@checkpoint-N, RUN@base, a folder with an adapter or a model, a hub id, an http(s) URL, or a spec file "
    "without a train section"
)


@dataclass(frozen=True)
class Target:
    """Something that can be benchmarked, served or talked to."""

    name: str
    """For file names and tables."""
    checkpoint: Checkpoint | None
    """None: it is a server, at `url`."""
    url: str | None = None
    run: RunDir | None = None
    """The run that it belongs to."""
    spec: RunSpec | None = None
    """That run's spec, or the spec file that was named."""


def resolve_target(word: str, workspace: Workspace) -> Target:
    """Find what a word means.

    Raises:
        SpecError: nothing of that name.
        PrerequisiteError: a run that has no weights yet.
    """
    if re.match(r"https?://", word):
        Endpoint(word, "", "")  # SpecError where it is no address, or holds a secret that would go into a run's name
        return Target(re.sub(r"[^A-Za-z0-9.-]+", "-", word.partition("://")[2]).strip("-"), None, url=word)
    if word.endswith((".yaml", ".yml")):
        return _spec_target(Path(word), workspace)
    name, _, label = word.partition("@")
    run = workspace.lookup_run(name)
    if run is not None:
        return run_target(run, label or None, workspace)
    folder = _folder(word, workspace.root) if word else None
    if folder is not None:
        return _folder_target(folder, workspace)
    if _HUB_ID.fullmatch(word) and not (workspace.root / word.partition("/")[0]).exists():
        model = ModelSpec(name_or_path=word)
        return Target(word.replace("/", "--"), Checkpoint(word.rpartition("/")[2], model))
    hint = did_you_mean(name, workspace.run_words())
    raise SpecError(f"{word!r} is none of these: {_KINDS}{hint}", "orchestrator list shows the runs")


def every_checkpoint_of(word: str, workspace: Workspace) -> RunDir | None:
    """The run of RUN@all; None: the word is something else."""
    name, _, label = word.rpartition("@")
    return workspace.find_run(name) if label == EVERY and name else None


def every_checkpoint_target(run: RunDir) -> Target:
    """A run as a whole: none of its checkpoints in particular."""
    return Target(f"{run.id}@{EVERY}", None, run=run, spec=load_spec(run.spec))


def with_template(target: Target, template: str | None) -> Target:
    """The target with a chat template for a model whose own is not known from a run.

    Raises:
        SpecError: the run says which template its model was trained with; another one would be another prompt.
    """
    if template is None:
        return target
    if target.checkpoint is None:
        raise SpecError(f"--template is for a model that is served here, not for {target.url}")
    known = target.checkpoint.model.template
    if known is not None and known != template:
        raise SpecError(f"{target.name} was trained with template {known}, not {template}", "leave --template out")
    model = target.checkpoint.model.model_copy(update={"template": template})
    return replace(target, checkpoint=replace(target.checkpoint, model=model))


def run_target(run: RunDir, label: str | None, workspace: Workspace) -> Target:
    """A run's checkpoint by label: output, checkpoint-N, base, export.

    None: what the training left, output before its newest checkpoint; of a run that trains nothing, its model.
    """
    if label == EVERY:
        raise SpecError(f"{run.id}@{EVERY} means every checkpoint: that is for benchmark alone", "name one of them")
    spec = load_spec(run.spec)
    available = run_checkpoints(run, spec, workspace)
    if label is None:
        own = [key for key in available if spec.train is None or key not in ("base", "export")]
        label = own[0] if own else None
    if label is None or label not in available:
        have = ", ".join(available) or "nothing yet"
        error = SpecError if label is not None and available else PrerequisiteError
        hint = did_you_mean(label, [*available, EVERY]) if label else ""
        raise error(f"run {run.id} has no {label or 'checkpoint'}{hint}; it has: {have}", f"orchestrator show {run.id}")
    return Target(run.id if label == "output" else f"{run.id}@{label}", available[label], run=run, spec=spec)


def run_checkpoints(run: RunDir, spec: RunSpec, workspace: Workspace) -> dict[str, Checkpoint]:
    """Everything of a run that can be served, by label: output first, then checkpoints, newest first, base, export."""
    if spec.model is None:
        return {}
    base = base_checkpoint(spec.model, workspace.root)
    found: dict[str, Checkpoint] = {}
    for folder in [run.output, *reversed(run.checkpoints())]:
        if spec.train is not None and _has_weights(folder):
            found[folder.name] = trained_checkpoint(folder, base.model)
    found["base"] = base
    if (run.export / EXPORT_NOTE).is_file():
        found["export"] = _exported(run.export)
    return found


def _spec_target(path: Path, workspace: Workspace) -> Target:
    """The model of a spec that trains nothing."""
    spec = load_spec(path)
    if spec.train is not None:
        raise SpecError(f"{path} is a spec with a train section: its runs have the models", f"name one: {spec.name}")
    if spec.model is None:
        return Target(spec.name, None, url=spec.serve.url, spec=spec)
    return Target(spec.name, base_checkpoint(spec.model, workspace.root), spec=spec)


def _folder_target(folder: Path, workspace: Workspace) -> Target:
    for run_folder in (folder.parent, folder.parent.parent):
        if (run_folder / "record.json").is_file():
            return run_target(RunDir(run_folder), folder.name, workspace)
    if (folder / EXPORT_NOTE).is_file():
        return Target(folder.name, _exported(folder))
    if (folder / "adapter_config.json").is_file():
        return Target(folder.name, _foreign_adapter(folder, workspace.root))
    if (folder / "config.json").is_file():
        return Target(folder.name, Checkpoint(folder.name, ModelSpec(name_or_path=str(folder))))
    raise SpecError(f"{folder} holds neither a model (config.json) nor an adapter (adapter_config.json)")


def _foreign_adapter(folder: Path, root: Path) -> Checkpoint:
    """An adapter of no run of ours: its own configuration names the base model."""
    config = folder / "adapter_config.json"
    try:
        base = json.loads(config.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{config} names no base_model_name_or_path: {error!r}") from error
    if not isinstance(base, str) or not base:
        raise SpecError(f"{config}: base_model_name_or_path is {base!r}, expected a folder or a hub id")
    return Checkpoint(folder.name, ModelSpec(name_or_path=_absolute(base, root), adapter_name_or_path=str(folder)))


def _exported(folder: Path) -> Checkpoint:
    note = folder / EXPORT_NOTE
    try:
        model = ModelSpec.model_validate(json.loads(note.read_bytes())["model"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise SpecError(
            f"{note} is damaged: {error}", f"remove it, or give --template: orchestrator serve {folder}"
        ) from error
    return Checkpoint(folder.name, model.trained(str(folder), is_adapter=False))


def _folder(word: str, root: Path) -> Path | None:
    given = expanded(word)
    for path in (given, root / given):
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a name is too long
            return path.resolve()
    return None


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))
