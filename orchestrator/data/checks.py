"""What our own process can tell about the datasets of a spec: entries, files, and test sentences that are trained on.

What LLaMA-Factory makes of the records it is asked itself (upstream/scripts/datasets_probe.py).
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.data.archives import ArchiveStore
from orchestrator.data.data_files import find_files, records
from orchestrator.data.datasets import ParallelText, evaluated_split, load_entry, load_split, normalize, sample_pairs
from orchestrator.data.llamafactory_data import DatasetInfo, LlamaFactoryDataset
from orchestrator.data.testset import load_testset
from orchestrator.errors import Finding, OrchestratorError, PrerequisiteError, from_error
from orchestrator.specs.spec import RunSpec, TrainSpec

_AS_TRANSLATIONS = DatasetInfo(file_name="-")  # with its default columns
Trained = ParallelText | LlamaFactoryDataset
Test = tuple[str, ParallelText]  # the spec's field, and the sentences


def check_data(spec: RunSpec, folders: Sequence[Path], archives: ArchiveStore) -> list[Finding]:
    """Check the datasets that a spec trains on, evaluates on and benchmarks; archives that it needs are fetched."""
    findings: list[Finding] = []
    trained: list[Trained] = []
    tests: list[Test] = []
    sections = {"dataset": spec.datasets, "eval_dataset": spec.eval_datasets} if spec.train is not None else {}
    for section, number, name in [(each, n, name) for each, names in sections.items() for n, name in enumerate(names)]:
        field = section if len(sections[section]) == 1 else f"{section}.{number}"
        try:
            data, found = _load(field, name, spec.train or TrainSpec(), folders, archives)
        except OrchestratorError as error:
            findings.append(from_error(field, error))
            continue
        findings += found
        trained += [data] if section == "dataset" else []
    for number, item in enumerate(spec.benchmark):
        field = f"benchmark.{number}.testset"
        try:
            text = load_split(load_testset(item, folders, spec.datasets), item.split, archives)
            tests.append((field, sample_pairs(text, item.max_samples, item.sample_seed)))
        except OrchestratorError as error:
            findings.append(from_error(field, error))
    limit = spec.train.max_samples if spec.train is not None else None
    return findings + [found for data in trained for found in _overlaps(data, tests, limit)]


def _load(
    field: str, name: str, train: TrainSpec, folders: Sequence[Path], archives: ArchiveStore
) -> tuple[Trained, list[Finding]]:
    """A dataset as the training would use it, and what its entry shows."""
    dataset = load_entry(name, folders)
    if isinstance(dataset, LlamaFactoryDataset):
        find_files(dataset)
        data: Trained = dataset
        info, remedy = dataset.info, f"edit {dataset.path}"
    else:
        split = "train" if field.startswith("dataset") else evaluated_split(dataset)
        data = sample_pairs(load_split(dataset, split, archives), train.max_samples)
        info, remedy = _AS_TRANSLATIONS, "stage sft learns from translations"
    found = [Finding("error", "spec", field, f"{name}: {what}", remedy) for what in _entry_errors(info, train.stage)]
    if info.formatting == "openai":
        what = 'LLaMA-Factory puts "detailed thinking off" into the system text of each record without tools'
        found.append(
            Finding("warning", "spec", field, f"{name} has formatting: openai: {what}", "formatting: sharegpt")
        )
    return data, found


def _entry_errors(info: DatasetInfo, stage: str) -> Iterator[str]:
    """What a stage needs and the entry does not name, so that LLaMA-Factory ends, or has no record left."""
    ranking = stage in ("rm", "dpo")
    if info.ranking is not ranking:
        learns = "from pairs of a chosen and a rejected answer" if ranking else "from no such pairs"
        yield f"ranking is {str(info.ranking).lower()}, and stage {stage} learns {learns}"
    if info.ranking and not (info.column("chosen") and info.column("rejected")):
        yield "ranking: true needs columns chosen and rejected"
    if (stage == "kto") is not bool(info.column("kto_tag")) and stage in ("kto", "sft"):
        yield "stage kto needs a column kto_tag, and stage sft drops each record that has one"


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
