"""What decides a run's outcome beside its spec: collected before it starts, compared before it is repeated.

Covered: package versions, platform, GPUs, environment variables, git commit of the workspace, hashes of data, model
and adapter, their commits on the hub.
Not covered: how much a difference matters (drift.py); whether two runs came to the same (verdict.py).
Writes nothing.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator import __version__
from orchestrator.data.data_files import count_records, files_sha256, find_files
from orchestrator.data.datasets import ParallelText
from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.models.model_files import adapter_sha256, hub_revision, locate_model, model_sha256
from orchestrator.runs import machine
from orchestrator.runs.environment import that_matter
from orchestrator.runs.record_parts import DataFacts, Facts
from orchestrator.runs.worktree import patch_sha256, read_worktree
from orchestrator.specs.spec import RunSpec
from orchestrator.upstream.installation import Installation


def collect_facts(
    spec: RunSpec,
    root: Path,
    installation: Installation | None,
    texts: Mapping[tuple[str, str], ParallelText],
    own: Mapping[str, LlamaFactoryDataset] | None = None,
) -> Facts:
    """The facts of a run that is about to start.

    Args:
        spec: what is about to run.
        root: the workspace.
        installation: LLaMA-Factory; None where only a server of others is asked.
        texts: (dataset, split) -> its text, for all that the run reads.
        own: name -> dataset in LLaMA-Factory's own formats, likewise.

    Raises:
        PrerequisiteError: a file of such a dataset cannot be read.
    """
    worktree = read_worktree(root)
    return Facts(
        versions=_versions(installation),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=machine.processor(),
        gpus=machine.gpus(),
        cuda=_cuda(installation),
        environment=that_matter(os.environ),
        git_commit=worktree.commit,
        git_dirty=worktree.dirty,
        git_diff_sha256=patch_sha256(worktree),
        data=[
            DataFacts(
                dataset=dataset,
                split=split,
                use=_use(spec, dataset, split),
                pairs=len(text.sources),
                blank_pairs=text.blank_pairs,
                sha256=text.sha256,
            )
            for (dataset, split), text in texts.items()
        ]
        + [_own_data(spec, dataset) for dataset in (own or {}).values()],
        **_files(spec, root),
    )


def complete_facts(facts: Facts, spec: RunSpec, root: Path) -> Facts:
    """The facts with the hashes of what was on the hub when the run started, and has been downloaded since."""
    found = _files(spec, root)
    return facts.model_copy(update={name: getattr(facts, name) or value for name, value in found.items()})


def fact_differences(then: Facts, now: Facts) -> list[tuple[str, str, str]]:
    """Each fact that differs: what it is, and both values, hashes cut short."""
    return [(each.what, short(each.then), short(each.now)) for each in differing_facts(then, now)]


Kind = Literal["data", "model", "adapter", "version", "machine", "environment", "git"]


@dataclass(frozen=True)
class DifferingFact:
    """One fact that differs; None: not known."""

    kind: Kind
    name: str
    """Of the kind: 'captions train' of data, 'torch' of versions; else empty."""
    what: str
    """The whole of it in words: 'version of torch'."""
    then: Any
    now: Any


def differing_facts(then: Facts, now: Facts) -> list[DifferingFact]:
    """Each fact that differs, by kind."""
    old_data = {f"{data.dataset} {data.split}": data.sha256 or data.origin for data in then.data}
    new_data = {f"{data.dataset} {data.split}": data.sha256 or data.origin for data in now.data}
    packages = dict.fromkeys([*then.versions, *now.versions])
    facts = [
        *(
            DifferingFact("data", name, f"data {name}", old_data.get(name), new_data.get(name))
            for name in {**old_data, **new_data}
        ),
        DifferingFact("model", "", "model hash", then.model_sha256, now.model_sha256),
        DifferingFact("adapter", "", "adapter hash", then.adapter_sha256, now.adapter_sha256),
        *(
            DifferingFact("version", name, f"version of {name}", then.versions.get(name), now.versions.get(name))
            for name in packages
        ),
        DifferingFact("machine", "", "platform", then.platform, now.platform),
        *_known("machine", "processor", then.cpu, now.cpu),
        DifferingFact("machine", "", "GPUs", ", ".join(then.gpus) or None, ", ".join(now.gpus) or None),
        *_each("version", "version of {}", then.cuda, now.cuda),
        *_each("environment", "variable {}", then.environment, now.environment),
        DifferingFact("git", "", "git commit", then.git_commit, now.git_commit),
        *_changes_in_git(then, now),
    ]
    return [each for each in facts if each.then != each.now]


def _known(kind: Kind, what: str, then: Any, now: Any) -> list[DifferingFact]:
    """A fact that records of before lack: where one side does not know it, nothing is compared."""
    return [] if then is None or now is None else [DifferingFact(kind, "", what, then, now)]


def _each(kind: Kind, what: str, then: Mapping[str, str] | None, now: Mapping[str, str] | None) -> list[DifferingFact]:
    """The same for a mapping: each of its names."""
    if then is None or now is None:
        return []
    return [DifferingFact(kind, name, what.format(name), then.get(name), now.get(name)) for name in {**then, **now}]


def _changes_in_git(then: Facts, now: Facts) -> list[DifferingFact]:
    """Other changes, where there are some now and then; else whether there are any."""
    what = "uncommitted changes in git"
    if then.git_diff_sha256 is not None and now.git_diff_sha256 is not None:
        return [DifferingFact("git", "", what, then.git_diff_sha256, now.git_diff_sha256)]
    return [DifferingFact("git", "", what, then.git_dirty, now.git_dirty)]


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists by dotted path."""
    if isinstance(value, Mapping) and value:
        return {k: v for key, item in value.items() for k, v in flat(item, f"{at}.{key}" if at else str(key)).items()}
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return {k: v for index, item in enumerate(value) for k, v in flat(item, f"{at}.{index}").items()}
    return {at: value}


def short(value: Any) -> str:
    """A value as a line shows it: a hash cut to 12 digits."""
    if value is None:
        return "none"
    text = str(value)
    is_hash = len(text) >= 40 and all(char in "0123456789abcdef" for char in text)
    return text[:12] if is_hash else text


def _versions(installation: Installation | None) -> dict[str, str]:
    import sacrebleu

    ours = {"orchestrator": __version__, "sacrebleu": sacrebleu.__version__}
    if installation is None:
        return {**ours, "python": platform.python_version()}
    return {**ours, "python": installation.python_version, **installation.versions}


def _cuda(installation: Installation | None) -> dict[str, str]:
    driver = machine.driver_cuda()
    used = {} if installation is None else installation.cuda
    return used if driver is None else {**used, "the driver's CUDA": driver}


def _use(spec: RunSpec, dataset: str, split: str) -> str:
    """What a run reads a split for; of several uses the one that decides most."""
    if dataset in spec.datasets and split == "train":
        return "train"
    tested = any((item.testset, item.split) == (dataset, split) for item in spec.benchmark)
    return "benchmark" if tested else "eval"


def _own_data(spec: RunSpec, dataset: LlamaFactoryDataset) -> DataFacts:
    """LLaMA-Factory's own formats: by the files where they are here, else by where it takes the data from."""
    files = find_files(dataset)
    key, value = dataset.info.source()
    subset = ", ".join(part for part in (dataset.info.subset, dataset.info.folder) if part)
    return DataFacts(
        dataset=dataset.name,
        split=dataset.info.split,
        use="train" if dataset.name in spec.datasets else "eval",
        pairs=count_records(files) if files else None,
        sha256=files_sha256(dataset, files) if files else None,
        origin=None if files else f"{key} {value}" + (f" ({subset})" if subset else ""),
    )


def _files(spec: RunSpec, root: Path) -> dict[str, str | None]:
    """Fields of Facts that tell the model's and the adapter's files, where these are on this machine."""
    if spec.model is None:
        return {}
    found: dict[str, str | None] = {}
    if folder := locate_model(spec.model.name_or_path, root, spec.model.revision):
        found = {"model_sha256": model_sha256(folder), "model_revision": hub_revision(folder)}
    start = spec.model.adapter_name_or_path
    if start is not None and (folder := locate_model(start, root, None)):
        found |= {"adapter_sha256": adapter_sha256(folder), "adapter_revision": hub_revision(folder)}
    return found
