"""A past run that is to be run in another workspace: what its spec needs of the old one, taken along.

Covered: entries of datasets that the new workspace lacks, with their files; a model or an adapter at a path relative to
the old workspace; a spec.yaml without a record beside it.
Not covered: archives (they have their own cache), templates/, files that arguments of `train` name.
Leaves entries and their files in the new workspace's dataset_info/.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.data.datasets import FileSplit, list_entries, load_entry
from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.errors import SpecError
from orchestrator.paths import expanded
from orchestrator.plan import Session
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.specs.spec import RunSpec

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
    """Copy the datasets' entries that the session's workspace lacks.

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
    return overrides


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
