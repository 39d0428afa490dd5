"""What decides a run's outcome beside its spec: collected before it starts. differences.py compares it."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.data.datasets import ParallelText
from orchestrator.data.llamafactory_data import LlamaFactoryDataset, count_records, files_sha256, find_files
from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.files import atomic_write
from orchestrator.models.hashes import model_sha256
from orchestrator.models.model_files import hub_revision, locate_model
from orchestrator.processes.process import run_short
from orchestrator.runs.differences import RELEVANT
from orchestrator.runs.machine import driver_cuda, gpu_names, processor
from orchestrator.runs.record_parts import DataFacts, Facts
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.places import is_secret
from orchestrator.specs.spec import RunSpec
from orchestrator.upstream.chat_templates import read_templates
from orchestrator.upstream.installation import Installation

HASH_VERSION = 2
MAX_PATCH_BYTES = 1_000_000


def collect_facts(
    spec: RunSpec,
    root: Path,
    installation: Installation | None,
    texts: Mapping[tuple[str, str], ParallelText],
    own: Mapping[str, LlamaFactoryDataset] | None = None,
) -> Facts:
    """The facts of a run that is about to start in the workspace `root`.

    installation: None where only a server given by URL is asked. texts: by dataset and split. own: datasets in
    LLaMA-Factory's own formats. Raises PrerequisiteError: a file of the model or of such a dataset cannot be read.
    """
    import sacrebleu

    git, _ = _read_git(root)
    versions = {"orchestrator": __version__, "sacrebleu": sacrebleu.__version__, "python": platform.python_version()}
    cuda = {} if (driver := driver_cuda()) is None else {"the driver's CUDA": driver}
    template = None
    if installation is not None:
        versions |= {"python": installation.python_version, **installation.versions}
        cuda = {**installation.cuda, **cuda}
        if spec.model is not None and spec.model.template is not None:
            template = read_templates(installation).names.get(spec.model.template)
    return Facts(
        versions=versions,
        platform=f"{platform.system()} {platform.machine()}",
        cpu=processor(),
        gpus=gpu_names(),
        cuda=cuda,
        environment=relevant_variables(os.environ),
        **git,
        data=[
            *(_parallel_data(spec, dataset, split, text) for (dataset, split), text in texts.items()),
            *(_own_data(spec, dataset) for dataset in (own or {}).values()),
        ],
        chat_template_sha256=template,
        hash_version=HASH_VERSION,
        **_files(spec, root),
    )


def keep_patch(run: RunDir, root: Path, facts: Facts) -> Facts:
    """Write workspace.diff, for `git apply` on the commit, where anything differs; the facts with what it holds."""
    if facts.git_commit is None:
        return facts
    git, patch = _read_git(root)
    if patch:
        atomic_write(run.workspace_diff, patch)
    return facts.model_copy(update=git)


def complete_facts(facts: Facts, spec: RunSpec, root: Path) -> Facts:
    """The facts with the hashes of what was on the hub when the run started, and has been downloaded since."""
    known = {name: value for name, value in _files(spec, root).items() if getattr(facts, name) is None}
    if facts.hash_version != HASH_VERSION and (facts.model_sha256 or facts.adapter_sha256):
        return facts  # an earlier version began the run: two kinds of hashes would stand in one record
    return facts.model_copy(update={**known, "hash_version": HASH_VERSION})


def relevant_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that reach LLaMA-Factory and can change a run, in order; without secrets."""
    names = [name for name in sorted(environment) if RELEVANT.fullmatch(name) and not is_secret(name)]
    values = {name: environment[name].encode("utf-8", "backslashreplace").decode() for name in names}
    return {name: value for name, value in values.items() if not is_secret(name, value)}


def _read_git(root: Path) -> tuple[dict[str, Any], bytes]:
    """The facts of a workspace in git, and what is in no commit. None, where git is slow or there is no commit yet."""
    git = ["git", "--literal-pathspecs", "-C", str(root)]
    settings = {"core.fsmonitor": "false", "core.hooksPath": "/dev/null"}  # nothing that a stranger's .git names is run
    diff = ["diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--binary", "--ignore-submodules=dirty"]
    others = ["ls-files", "-z", "--others", "--exclude-standard", "--", "runs", "dataset_info", "templates"]
    try:
        commit = run_short([*git, "rev-parse", "HEAD"]).strip()
        names = run_short([*git, "config", "-z", "--name-only", "--list"]).split("\0")
        settings |= dict.fromkeys([name for name in names if name.startswith("filter.")], "")
        off = {"GIT_CONFIG_COUNT": str(len(settings)), "GIT_OPTIONAL_LOCKS": "0"}
        for number, (name, value) in enumerate(settings.items()):
            off |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
        prefixes = ["--src-prefix=a/", "--dst-prefix=b/"]
        text = run_short([*git, *diff, *prefixes], environment=off, errors="surrogateescape")
        new = run_short([*git, *others], environment=off).split("\0")
    except (PrerequisiteError, StageError):
        return {}, b""
    patch = text.encode(errors="surrogateescape")
    if len(patch) > MAX_PATCH_BYTES:
        note = f"\n# cut here: {len(patch):,} bytes in all, sha256 {hashlib.sha256(patch).hexdigest()}\n"
        patch = patch[:MAX_PATCH_BYTES] + note.encode()
    names = [name for name in new if name.endswith((".yaml", ".yml", ".j2"))]
    patch += "".join(f"# new, in no commit: {name!a}\n" for name in names).encode()
    digest = hashlib.sha256(patch).hexdigest() if patch else None
    return {"git_commit": commit, "git_dirty": bool(text), "git_diff_sha256": digest}, patch


def _parallel_data(spec: RunSpec, dataset: str, split: str, text: ParallelText) -> DataFacts:
    tested = any((item.testset, item.split) == (dataset, split) for item in spec.benchmark)
    return DataFacts(
        dataset=dataset,
        split=split,
        # of several uses the one that decides most
        use="train" if dataset in spec.datasets and split == "train" else "benchmark" if tested else "eval",
        pairs=len(text.sources),
        blank_pairs=text.blank_pairs,
        sha256=text.sha256,
    )


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


def _files(spec: RunSpec, root: Path) -> dict[str, Any]:
    model, found = spec.model, dict[str, Any]()
    if model is not None:
        for kind, name in (("model", model.name_or_path), ("adapter", model.adapter_name_or_path)):
            revision = model.revision if kind == "model" else None
            if name is not None and (folder := locate_model(name, root, revision)):
                found |= {f"{kind}_sha256": model_sha256(folder), f"{kind}_revision": hub_revision(folder)}
    return found
