"""A past run that is to be run in another workspace: what its spec needs of the old one, taken along.

Covered: entries of datasets that the new workspace lacks, with their files; a model or an adapter at a path relative to
the old workspace; files and folders that arguments name relative to the run folder; a spec.yaml without a record beside
it. What is not taken along is said: templates/, what lies outside the old workspace, what is there already but another.
Not covered: archives (they have their own cache).
Leaves what is copied at the same place in the new workspace.
"""

import filecmp
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.data.datasets import FileSplit, list_entries, load_entry
from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.errors import SpecError
from orchestrator.files import expanded, shipped
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.workspace import Workspace
from orchestrator.specs.spec import OPEN_SECTIONS, RunSpec

MAX_PATH = 4096  # bytes, of Linux
log = logging.getLogger("orchestrator")


def saved_run(word: str, workspace: Workspace | None) -> RunDir | Path:
    """The run that a word means, or the spec.yaml that has no record beside it; paths need no workspace.

    Raises:
        SpecError: there is neither.
    """
    is_path = "/" in word or word.endswith((".yaml", ".yml"))  # else a spec's name would mean what lies here
    if is_path and len(word) < MAX_PATH:
        path = Path(word)
        spec = path / "spec.yaml" if path.is_dir() else path
        if spec.is_file():
            beside = RunDir(spec.parent.resolve())
            return beside if spec.name == "spec.yaml" and beside.record.is_file() else spec
    if workspace is None:
        raise SpecError(f"no run folder and no spec.yaml {word!r}", "name one by its path; or --workspace DIR")
    return workspace.find_run(word)


def take_along(past: Path, spec: RunSpec, session: Session) -> list[str]:
    """Copy the datasets' entries and the arguments' files that the session's workspace lacks; say what is left out.

    Args:
        past: the run's folder; its workspace is looked for above it.
        spec: what its spec.yaml says.
        session: of the new workspace.

    Returns:
        KEY=VALUE for what the spec names relative to the old workspace.
    """
    root = past.parent.parent
    if not (root / "dataset_info").is_dir() or root == session.workspace.root:
        return []
    names = dict.fromkeys([*spec.datasets, *spec.eval_datasets, *(item.testset for item in spec.benchmark)])
    known = list_entries(session.dataset_folders)
    for name in names:
        if name not in known and name in list_entries([root / "dataset_info"]):
            _copy(name, root / "dataset_info", session.workspace.dataset_info)
    overrides = []
    for field in ("name_or_path", "adapter_name_or_path"):
        given = getattr(spec.model, field, None)
        if given is None or (session.workspace.root / expanded(given)).is_dir():
            continue
        if (found := root / expanded(given)).is_dir():
            log.info("model.%s is the old workspace's: %s", field, found)
            overrides.append(f"model.{field}={json.dumps(str(found))}")
    for field, value in _texts(spec):
        _take_file(field, value, past, root, session.workspace.root)
    _say_templates(root / "templates", session.workspace.templates)
    return overrides


def _texts(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """The arguments of every section that may be paths, with their fields."""
    for section in OPEN_SECTIONS:
        given = getattr(spec, section)
        for key, value in given.extra_arguments().items() if given is not None else ():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and 0 < len(text) < MAX_PATH and "\n" not in text:
                    yield f"{section}.{key}", text


def _take_file(field: str, value: str, past: Path, root: Path, new_root: Path) -> None:
    """LLaMA-Factory opens it where it is started, in the run folder: the new one is as deep in the new workspace."""
    given = expanded(value)
    source = Path(os.path.normpath(past / given))
    if source.is_relative_to(past) or source in (root, root / "runs") or not os.path.lexists(source):
        return  # what the run made itself, what the new workspace has, or no path
    if not source.is_relative_to(root):
        if not given.is_absolute():
            log.warning("%s is not taken along: %s is outside the old workspace; write it absolute", field, source)
        return
    if given.is_absolute():
        log.info("%s is the old workspace's: %s", field, source)
        return
    target = new_root / source.relative_to(root)
    if os.path.lexists(target):
        if source.is_dir() and target.is_dir():  # to compare them may take hours
            log.info("%s is not taken along: the folder %s is there already", field, target)
        elif not (source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False)):
            log.warning("%s is not taken along: there is another %s", field, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)
    log.info("%s is copied from %s", field, source)


def _say_templates(old: Path, new: Path) -> None:
    """Templates that the old workspace rendered with, and the new one does not."""
    for path in sorted(old.glob("*.j2")) if old.is_dir() else ():
        used = next((each for each in (new / path.name, shipped("templates") / path.name) if each.is_file()), None)
        if used is not None and path.is_file() and not filecmp.cmp(path, used, shallow=False):
            log.warning("the old workspace's templates/%s is not taken along: %s is used", path.name, used)


def _copy(name: str, old: Path, new: Path) -> None:
    """The entry last: with it the dataset is there."""
    for relative in _files(name, old):
        source, target = old / relative, new / relative
        if target.exists() or not source.exists():  # of another dataset too; what is wrong is said when it is read
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    log.info("dataset %s is copied from %s", name, old)
    shutil.copy2(old / f"{name}.yaml", new / f"{name}.yaml")


def _files(name: str, folder: Path) -> Iterator[Path]:
    dataset = load_entry(name, [folder])
    if isinstance(dataset, LlamaFactoryDataset):
        path = dataset.local_path
        if path is not None and path.is_relative_to(folder.absolute()):
            yield path.relative_to(folder.absolute())
        return
    for split in dataset.entry.splits.values():
        if isinstance(split, FileSplit):
            yield from (Path(split.source), Path(split.target))
