"""A past run that is to be run in another workspace: what its spec needs of the old one.

The old workspace may be a stranger's: only files below its dataset_info/ are copied, and only after the check.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.data.datasets import FileSplit, list_entries, load_entry
from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.errors import SpecError
from orchestrator.files import expanded, resolved
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.specs.spec import RunSpec

MAX_PATH = 4096  # bytes, of Linux
log = logging.getLogger("orchestrator")


def saved_run(selector: str, workspace: Workspace | None) -> RunDir | Path:
    """The run that a selector means, or the spec.yaml that has no record beside it; paths need no workspace.

    Raises SpecError: there is neither.
    """
    is_path = "/" in selector or selector.endswith((".yaml", ".yml"))  # else a spec's name would mean what lies here
    if is_path and len(selector) < MAX_PATH:
        path = Path(selector)
        spec = path / "spec.yaml" if path.is_dir() else path
        if spec.is_file():
            beside = RunDir(spec.parent.resolve())
            return beside if spec.name == "spec.yaml" and beside.record.is_file() else spec
    if workspace is None:
        raise SpecError(f"no run folder and no spec.yaml {selector!r}", "name one by its path; or --workspace DIR")
    return workspace.find_run(selector)


@dataclass(frozen=True)
class Dependencies:
    """What a spec needs of its old workspace; nothing is copied yet."""

    session: Session
    """Of the new workspace; it finds the old one's datasets too, where it has none of that name."""
    overrides: list[str] = field(default_factory=list)
    """KEY=VALUE for what the spec names relative to the old workspace."""
    datasets: list[str] = field(default_factory=list)
    old: Path = Path()
    """The old workspace's dataset_info/."""

    def copy(self) -> None:
        """Copy the datasets' entries and their files; the entry last: with it the dataset is there."""
        new = self.session.workspace.dataset_info
        files = {name: list(_files(name, self.old, new)) for name in self.datasets}  # refused before one is copied
        for name, (entry, *pairs) in files.items():
            for source, target in pairs:
                if target.exists() or not source.exists():  # of another dataset too; reading it says what is wrong
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, target, symlinks=True)
                else:
                    shutil.copy2(source, target)
            shutil.copy2(*entry)
            log.info("dataset %s is copied from %s", name, self.old)


def dependencies(past: Path, spec: RunSpec, session: Session) -> Dependencies:
    """What a run, whose folder is `past`, needs of its old workspace, where that is not the session's."""
    root = past.parent.parent
    if not (root / "dataset_info").is_dir() or root == session.workspace.root:
        return Dependencies(session)
    names = dict.fromkeys([*spec.datasets, *spec.eval_datasets, *(item.testset for item in spec.benchmark)])
    known, old = list_entries(session.dataset_folders), root / "dataset_info"
    missing = [name for name in names if name not in known and name in list_entries([old])]
    overrides = []
    for key in ("name_or_path", "adapter_name_or_path"):
        given = getattr(spec.model, key, None)
        if given is None or (session.workspace.root / expanded(given)).is_dir():
            continue
        if (found := root / expanded(given)).is_dir():
            log.info("model.%s is the old workspace's: %s", key, found)
            overrides.append(f"model.{key}={json.dumps(str(found))}")
    wider = replace(session, dataset_folders=[*session.dataset_folders, old]) if missing else session
    return Dependencies(wider, overrides, missing, old)


def _files(name: str, old: Path, new: Path) -> Iterator[tuple[Path, Path]]:
    """The files of a dataset, and where each is copied to. Raises SpecError: one is outside dataset_info/."""
    dataset = load_entry(name, [old])
    given = [old / f"{name}.yaml"]
    if isinstance(dataset, LlamaFactoryDataset):
        path = dataset.local_path
        given += [path] if path is not None and not Path(dataset.info.source()[1]).is_absolute() else []
    else:
        splits = [split for split in dataset.entry.splits.values() if isinstance(split, FileSplit)]
        given += [old / side for split in splits for side in (split.source, split.target)]
    for path in given:
        source, target = resolved(path), resolved(new / os.path.relpath(path, old))
        if not source.is_relative_to(resolved(old)) or not target.is_relative_to(resolved(new)):
            raise SpecError(
                f"dataset {name} of the old workspace is not copied: {path} is outside its dataset_info/",
                f"look at it, and write an entry {name} into this workspace's dataset_info/ by hand",
            )
        yield source, target
