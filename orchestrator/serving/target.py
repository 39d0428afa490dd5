"""What a TARGET on the command line means: a run, RUN@LABEL, a folder, a hub id, a spec, or a server's URL."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import expanded, json_mapping
from orchestrator.models.model_files import absolute_model, base_checkpoint, trained_checkpoint
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.serving.endpoint import Endpoint
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, RunSpec
from orchestrator.specs.spec_file import load_spec

EXPORT_NOTE = "orchestrator.json"  # beside an exported model: its run, and the model section to serve it with
# All that a note is believed: it may have come with a download, and must not turn trust_remote_code on.
_OF_A_NOTE = ("template", "default_system", "enable_thinking")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_KINDS = "a run, RUN@checkpoint-N, RUN@base, a folder, a hub id, an http(s) URL, a spec file without a train section"


@dataclass(frozen=True)
class Target:
    """Something that can be benchmarked, served or talked to."""

    name: str  # for file names and tables
    checkpoint: Checkpoint | None  # None: it is a server, at `url`
    url: str | None = None
    run: RunDir | None = None  # the run that it belongs to
    spec: RunSpec | None = None  # that run's spec, or the spec file that was named


def resolve_target(word: str, workspace: Workspace) -> Target:
    """Find what a word means.

    Raises SpecError: nothing of that name. PrerequisiteError: a run that has no weights yet.
    """
    if re.match(r"https?://", word):
        Endpoint(word, "", "")  # SpecError where it is no address, or holds a secret that would go into a run's name
        return Target(re.sub(r"[^A-Za-z0-9.-]+", "-", word.partition("://")[2]).strip("-"), None, url=word)
    if re.match(r"localhost[:/]|[\d.]+:\d+(/|$)", word):
        raise SpecError(f"{word!r} is a server's address without http://", f"write http://{word}")
    if word.endswith((".yaml", ".yml")):
        return _spec_target(Path(word), workspace)
    name, _, label = word.partition("@")
    if workspace.lookup_run(name) or workspace.lookup_group(name):
        return run_target(workspace.find_run(name), label or None, workspace)  # SpecError: it is a group
    for path in (expanded(word), workspace.root / expanded(word)) if word else ():
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a name is too long
            return _folder_target(path.resolve(), workspace)
    if _HUB_ID.fullmatch(word) and not (workspace.root / word.partition("/")[0]).exists():
        return Target(word.replace("/", "--"), Checkpoint(word.rpartition("/")[2], ModelSpec(name_or_path=word)))
    hint = did_you_mean(name, workspace.run_words())
    raise SpecError(f"{word!r} is none of these: {_KINDS}{hint}", "orchestrator list shows the runs")


def every_checkpoint(word: str, workspace: Workspace) -> Target | None:
    """The run of RUN@all, with all its checkpoints; None: the word is something else."""
    name, _, label = word.rpartition("@")
    if label != "all" or not name:
        return None
    run = workspace.find_run(name)
    return Target(f"{run.id}@all", None, run=run, spec=load_spec(run.spec))


def run_target(run: RunDir, label: str | None, workspace: Workspace) -> Target:
    """A run's checkpoint by label: output, checkpoint-N, base, export.

    None: what the training left, output before its newest checkpoint; of a run that trains nothing, its model.
    """
    spec = load_spec(run.spec)
    available = run_checkpoints(run, spec, workspace)
    if label is None:
        trained = [key for key in available if spec.train is None or key not in ("base", "export")]
        label = trained[0] if trained else None
    if label is None or label not in available:
        have = ", ".join(available) or "nothing yet"
        error = SpecError if label is not None and available else PrerequisiteError
        hint = did_you_mean(label, available) if label else ""
        raise error(f"run {run.id} has no {label or 'checkpoint'}{hint}; it has: {have}", f"orchestrator show {run.id}")
    return Target(run.id if label == "output" else f"{run.id}@{label}", available[label], run=run, spec=spec)


def run_checkpoints(run: RunDir, spec: RunSpec, workspace: Workspace) -> dict[str, Checkpoint]:
    """All checkpoints of a run by label: output first, then checkpoints, newest first, base, export."""
    if spec.model is None:
        return {}
    base = base_checkpoint(spec.model, workspace.root)
    found: dict[str, Checkpoint] = {}
    for folder in [run.output, *reversed(run.checkpoints())]:
        if spec.train is not None and any(folder.glob("*.safetensors")):
            found[folder.name] = trained_checkpoint(folder, base.model)
    found["base"] = base
    if (run.export / EXPORT_NOTE).is_file():
        own = {"name_or_path": str(run.export), "adapter_name_or_path": None, "revision": None}
        found["export"] = Checkpoint("export", base.model.model_copy(update=own))
    return found


def _spec_target(path: Path, workspace: Workspace) -> Target:
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
    note, config = folder / EXPORT_NOTE, folder / "adapter_config.json"
    if note.is_file():
        found: Any = (json_mapping(note) or {}).get("model")
        try:
            model = ModelSpec(name_or_path=str(folder), **{name: found[name] for name in _OF_A_NOTE if name in found})
        except (TypeError, ValidationError) as error:
            raise SpecError(f"{note} is damaged: {error}", "remove it, and give --template") from error
    elif config.is_file():  # an adapter of no run of ours
        base = (json_mapping(config) or {}).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise SpecError(f"{config}: base_model_name_or_path is {base!r}, expected a folder or a hub id")
        model = ModelSpec(name_or_path=absolute_model(base, workspace.root), adapter_name_or_path=str(folder))
    elif (folder / "config.json").is_file():
        model = ModelSpec(name_or_path=str(folder))
    else:
        raise SpecError(f"{folder} holds neither a model (config.json) nor an adapter (adapter_config.json)")
    return Target(folder.name, Checkpoint(folder.name, model))
