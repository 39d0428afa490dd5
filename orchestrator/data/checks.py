"""What our own process can tell about the datasets of a spec: entries, files, test sentences that are trained on."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.data.datasets import (
    EVALUATED,
    ArchiveStore,
    ParallelText,
    load_entry,
    load_split,
    normalize,
    sample_pairs,
)
from orchestrator.data.llamafactory_data import LlamaFactoryDataset, find_files, records
from orchestrator.data.testset import load_testset
from orchestrator.errors import Finding, OrchestratorError, PrerequisiteError, from_error
from orchestrator.specs.spec import RunSpec

Trained = ParallelText | LlamaFactoryDataset
Test = tuple[str, ParallelText]  # the spec's field, and the sentences


def check_data(spec: RunSpec, folders: Sequence[Path], archives: ArchiveStore) -> list[Finding]:
    """Check the datasets that a spec trains on, evaluates on and benchmarks; archives that it needs are fetched."""
    findings: list[Finding] = []
    trained: list[Trained] = []
    tests: list[Test] = []
    limit = spec.train.max_samples if spec.train is not None else None
    sections = {"dataset": spec.datasets, "eval_dataset": spec.eval_datasets} if spec.train is not None else {}
    for section, number, name in [(each, n, name) for each, names in sections.items() for n, name in enumerate(names)]:
        try:
            dataset = load_entry(name, folders)
            if isinstance(dataset, LlamaFactoryDataset):
                find_files(dataset)
                data: Trained = dataset
            else:
                split = "train" if section == "dataset" else EVALUATED
                data = sample_pairs(load_split(dataset, split, archives), limit)
            trained += [data] if section == "dataset" else []
        except OrchestratorError as error:
            findings.append(from_error(section if len(sections[section]) == 1 else f"{section}.{number}", error))
    for number, item in enumerate(spec.benchmark):
        field = f"benchmark.{number}.testset"
        try:
            text = load_split(load_testset(item, folders, spec.datasets), item.split, archives)
            tests.append((field, sample_pairs(text, item.max_samples, item.sample_seed)))
        except OrchestratorError as error:
            findings.append(from_error(field, error))
    return findings + [found for data in trained for found in _overlaps(data, tests, limit)]


def _overlaps(data: Trained, tests: Sequence[Test], max_samples: int | None) -> list[Finding]:
    """Test sentences that are trained on, letter case and white space aside."""
    name = data.origin if isinstance(data, ParallelText) else data.name
    wanted = {normalize(source) for _, test in tests for source in test.sources}
    try:
        found = wanted.intersection(_sentences(data, max_samples)) if wanted else set()
    except PrerequisiteError as error:
        what = f"whether sentences of test sets stand in {name} is not known: {error.message}"
        return [Finding("note", "missing", "dataset", what)]
    findings = []
    for field, test in tests:
        if count := sum(normalize(source) in found for source in test.sources):
            what = f"{count} of the {len(test.sources)} sentences of {test.origin} stand in {name} too"
            findings.append(Finding("warning", "spec", field, f"{what}: the score will be too high"))
    return findings


def _sentences(data: Trained, max_samples: int | None) -> Iterator[str]:
    """Source sentences; of LLaMA-Factory's formats each line of each text of each record."""
    if isinstance(data, ParallelText):
        yield from map(normalize, data.sources)
        return
    files = find_files(data)
    if not files:
        raise PrerequisiteError("it is not on this machine")
    for record in islice(records(files), max_samples if data.info.num_samples is None else None):
        for text in _texts(record):
            yield from map(normalize, text.split("\n"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
