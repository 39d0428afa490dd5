"""The datasets of a spec: all that can be known about them before LLaMA-Factory loads them.

Covered: entries, files and texts; whether they fit the stage; sentences of test sets in the data that are trained on.
Not covered: what entry and records of one dataset show (data_records.py); near-duplicates; hubs.
Downloads archives that parallel texts need, and nothing else.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.data_files import (
    MAX_SEARCH_BYTES,
    READABLE,
    find_files,
    first_records,
    records,
    total_bytes,
    type_of,
)
from orchestrator.data.data_records import entry_findings, media_columns, record_findings
from orchestrator.data.datasets import (
    ArchiveStore,
    Dataset,
    ParallelText,
    evaluated_split,
    first,
    folded,
    load_entry,
    load_split,
    media_problem,
    overlap,
)
from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.data.testset import load_testset
from orchestrator.errors import Finding, OrchestratorError, errors_of, from_error
from orchestrator.specs.spec import RunSpec, TrainSpec

_LOOK_RECORDS = 100
_LEARNS_FROM = {
    "dpo": "a chosen and a rejected answer to each prompt",
    "rm": "a chosen and a rejected answer to each prompt",
    "kto": "answers that are marked good or bad",
}


def check_data(spec: RunSpec, folders: Sequence[Path], archives: ArchiveStore) -> list[Finding]:
    """Check the datasets that a spec trains on, evaluates on and benchmarks."""
    findings: list[Finding] = []
    texts: list[ParallelText] = []
    own: list[LlamaFactoryDataset] = []
    if spec.train is not None:
        for field, name in _numbered("dataset", spec.datasets):
            trained = _trained_on(findings, field, name, "train", spec.train, folders, archives)
            if isinstance(trained, ParallelText):
                texts.append(trained)
            elif trained is not None:
                own.append(trained)
        for field, name in _numbered("eval_dataset", spec.eval_datasets):
            _trained_on(findings, field, name, "", spec.train, folders, archives)
    tests: list[tuple[str, ParallelText]] = []
    for number, benchmark in enumerate(spec.benchmark):
        field = f"benchmark.{number}.testset"
        try:
            dataset = load_testset(benchmark, folders, spec.datasets)
            test = _text(findings, field, dataset, benchmark.split, benchmark.max_samples, archives)
        except OrchestratorError as error:
            findings.append(from_error(field, error))
            continue
        tests.append((field, test))
        counts = [(overlap(text, test), text.origin) for text in texts]
        findings += [_overlap(field, count, test, origin) for count, origin in counts if count]
    limit = spec.train.max_samples if spec.train is not None else None
    return findings + [found for dataset in own for found in _overlaps(dataset, tests, limit)]


def _numbered(field: str, names: Sequence[str]) -> list[tuple[str, str]]:
    return [(field if len(names) == 1 else f"{field}.{number}", name) for number, name in enumerate(names)]


def _trained_on(
    findings: list[Finding],
    field: str,
    name: str,
    split: str,
    train: TrainSpec,
    folders: Sequence[Path],
    archives: ArchiveStore,
) -> ParallelText | LlamaFactoryDataset | None:
    """A dataset as the training would use it, or None with what is wrong added to the findings.

    Args:
        findings: what is found is added here.
        field: of the spec.
        name: of the dataset.
        split: of a parallel one. '': the one that is evaluated on.
        train: how it is trained.
        folders: where entries are.
        archives: where their archives are, or go.
    """
    try:
        dataset = load_entry(name, folders)
        if isinstance(dataset, LlamaFactoryDataset):
            found = _look(field, dataset, train)
            findings += found
            return None if errors_of(found) else dataset
        if train.stage in _LEARNS_FROM:
            what = f"stage {train.stage} learns from {_LEARNS_FROM[train.stage]}; {name} has one translation of each"
            remedy = "stage sft learns from translations"
            findings.append(Finding("error", "missing", field, f"{what} sentence", remedy))
        return _text(findings, field, dataset, split or evaluated_split(dataset), train.max_samples, archives)
    except OrchestratorError as error:
        findings.append(from_error(field, error))
        return None


def _text(
    findings: list[Finding],
    field: str,
    dataset: Dataset,
    split: str,
    max_samples: int | None,
    archives: ArchiveStore,
) -> ParallelText:
    """A parallel text as the run would use it."""
    text = first(load_split(dataset, split, archives), max_samples)
    problem = media_problem(text, dataset.entry.instruction)
    if problem:
        findings.append(Finding("error", "spec", field, problem))
    return text


def _look(field: str, dataset: LlamaFactoryDataset, train: TrainSpec) -> list[Finding]:
    """The entry, the files and the first records of a dataset in LLaMA-Factory's own terms."""
    findings = entry_findings(field, dataset, train.stage)
    media_dir = train.arguments().get("media_dir")
    path = dataset.local_path
    if path is not None and media_columns(dataset.info):
        folder = path if path.is_dir() else path.parent
        named = ", ".join(media_columns(dataset.info))
        if not isinstance(media_dir, str):
            what = f"{dataset.name} names {named}, and without train.media_dir LLaMA-Factory looks in the run's folder"
            findings.append(Finding("error", "spec", field, what, f"add train.media_dir: {folder}"))
        elif not Path(media_dir).is_absolute():
            what = f"{media_dir!r} is a relative path, and the training starts in the run's folder"
            findings.append(Finding("error", "spec", "train.media_dir", what, f"write it in full, such as {folder}"))
    files = find_files(dataset)
    if not files:
        return findings
    kind = type_of(files)
    if kind not in READABLE:
        return [*findings, Finding("note", "missing", field, f"{dataset.name} is {kind}: it is not looked at")]
    if kind != "json" and dataset.info.formatting != "alpaca":
        what = f"formatting {dataset.info.formatting} needs lists of turns, which {kind} files cannot hold"
        return [*findings, Finding("error", "spec", field, f"{dataset.name}: {what}", f"edit {dataset.path}")]
    if errors_of(findings):
        return findings  # the records would be blamed for what the entry says
    start = first_records(files, _LOOK_RECORDS)
    if not start and total_bytes(files) > 1 << 20:
        return [
            *findings,
            Finding("note", "missing", field, f"{dataset.name}: its first record is too long to look at"),
        ]
    found = record_findings(
        field, dataset, train.stage, start, media_dir if isinstance(media_dir, str) else None, csv=kind == "csv"
    )
    return findings + found


def _overlaps(
    dataset: LlamaFactoryDataset, tests: Sequence[tuple[str, ParallelText]], max_samples: int | None
) -> list[Finding]:
    """Test sentences that stand in a dataset as a line of any of its texts."""
    if not tests:
        return []
    files = find_files(dataset)
    why_not = ""
    if not files:
        why_not = "it is not on this machine"
    elif type_of(files) not in READABLE:
        why_not = f"it is {type_of(files)}"
    elif total_bytes(files) > MAX_SEARCH_BYTES:
        why_not = f"it has more than {MAX_SEARCH_BYTES >> 20} MiB"
    wanted = {folded(source) for _, test in tests for source in test.sources}
    found: set[str] = set()
    if not why_not:
        try:
            found = _found(files, wanted, max_samples if dataset.info.num_samples is None else None)
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            why_not = f"it cannot be read to its end: {error}"
    if why_not:
        what = f"whether sentences of test sets stand in {dataset.name} is not known: {why_not}"
        return [Finding("note", "missing", "dataset", what)]
    counts = [(field, sum(folded(source) in found for source in test.sources), test) for field, test in tests]
    return [_overlap(field, count, test, dataset.name) for field, count, test in counts if count]


def _found(files: Sequence[Path], wanted: set[str], max_samples: int | None) -> set[str]:
    """Which of some sentences stand as a line in a record's texts, letter case and white space aside."""
    found: set[str] = set()
    number = 0
    for file in files:
        for record in records(file):
            number += 1
            if max_samples is not None and number > max_samples:
                return found
            found |= {line for text in _texts(record) for line in map(folded, text.split("\n")) if line in wanted}
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _overlap(field: str, count: int, test: ParallelText, where: str) -> Finding:
    what = f"{count} of the {len(test.sources)} sentences of {test.origin} stand in {where} too"
    return Finding("warning", "spec", field, f"{what}: the score will be too high")
