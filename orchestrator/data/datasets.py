"""Datasets: the entries of dataset_info/, their parallel texts, and the one place where a prompt is made."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from random import Random
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from orchestrator.data.archives import MAX_BYTES, Archive, Sha256, read_members
from orchestrator.data.archives import ArchiveStore as ArchiveStore
from orchestrator.data.llamafactory_data import (
    Columns,
    DatasetInfo,
    LlamaFactoryDataset,
    LlamaFactoryEntry,
    Tags,
    validated,
)
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write, read_file, sha256_json, shipped
from orchestrator.specs.yamlfile import read_yaml

log = logging.getLogger("orchestrator")


def _stays_inside(path: str) -> str:
    if not path or path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path:
        raise ValueError("expected a path inside dataset_info/, such as NAME/train.en")
    return path


InsidePath = Annotated[str, AfterValidator(_stays_inside)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sums(_Part):
    source: Sha256
    target: Sha256


class FileSplit(_Part):
    """Two text files, line N of one being the translation of line N of the other.

    They are in the folder of the entry, and must have these checksums, or members of an archive.
    """

    source: InsidePath
    target: InsidePath
    pairs: int = Field(gt=0)
    """How many there must be, those with a blank side left out."""
    sha256: Sums | None = None
    archive: str | None = None

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if (self.sha256 is None) is (self.archive is None):
            raise ValueError("expected sha256, of files in the entry's folder, or archive, the one that they are in")
        return self


class Entry(_Part):
    """A file dataset_info/NAME.yaml with parallel texts; the dataset's name is the file's."""

    description: str = Field(min_length=1)
    license: str = Field(min_length=1)
    homepage: str | None = None
    source_lang: Language
    target_lang: Language
    """It chooses BLEU's tokenizer."""
    instruction: str = Field(pattern=r"\S")
    """What the model is told to do, on the line before the source sentence, in training and in benchmarks."""
    splits: dict[Name, FileSplit] = Field(min_length=1)
    """train is the one that is trained on."""
    archives: dict[Name, Archive] = {}


@dataclass(frozen=True)
class Dataset:
    """An entry of parallel texts with its name and the folder that its files are relative to."""

    name: str
    folder: Path
    entry: Entry

    @property
    def path(self) -> Path:
        """The entry's file."""
        return self.folder / f"{self.name}.yaml"


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations, without the pairs that have a blank side."""

    sources: list[str]
    references: list[str]
    blank_pairs: int
    """How many pairs were left out, one side or both being blank."""
    sha256: str
    """Of the sentences as read, wherever they were read from."""
    origin: str = ""
    """Dataset and split, for messages."""


def entry_folders(workspace_dataset_info: Path) -> list[Path]:
    """Where entries are looked for: the workspace's folder before the shipped one."""
    folders = [workspace_dataset_info, shipped("dataset_info")]
    return folders[:1] if folders[0].resolve() == folders[1].resolve() else folders


def list_entries(folders: Sequence[Path]) -> dict[str, Path]:
    """The entries' files by dataset name; an earlier folder hides a later one's entry of the same name."""
    found = {path.stem: path for folder in reversed(folders) for path in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def load_entry(name: str, folders: Sequence[Path]) -> Dataset | LlamaFactoryDataset:
    """Read the entry of a dataset, of either kind; SpecError has every problem in it with its place."""
    entries = list_entries(folders)
    if name not in entries:
        known = f"known datasets: {', '.join(entries)}" if entries else f"no entry in {', '.join(map(str, folders))}"
        raise SpecError(f"no dataset {name!r}{did_you_mean(name, entries)}", known)
    source, folder = read_yaml(entries[name]), entries[name].parent
    if "llamafactory" in source.value:
        entry = validated(LlamaFactoryEntry, source, (LlamaFactoryEntry, DatasetInfo, Columns, Tags))
        return LlamaFactoryDataset(name, folder, entry)
    return Dataset(name, folder, validated(Entry, source, (Entry, FileSplit, Sums, Archive)))


def load_parallel(name: str, folders: Sequence[Path]) -> Dataset:
    """The same for what only parallel texts can be used for; SpecError too where it is in another format."""
    dataset = load_entry(name, folders)
    if isinstance(dataset, LlamaFactoryDataset):
        what = f"{name} is in LLaMA-Factory's own format: it can be trained on, not benchmarked"
        raise SpecError(what, "name a dataset of parallel texts")
    return dataset


def evaluated_split(dataset: Dataset) -> str:
    """The split that an eval_dataset means; SpecError where the entry has none of that name."""
    if "validation" not in dataset.entry.splits:
        what = f"{dataset.name} has no split validation; it has: {', '.join(dataset.entry.splits)}"
        raise SpecError(what, "train.val_size holds rows of the training data out")
    return "validation"


def load_split(dataset: Dataset, split: str, archives: ArchiveStore) -> ParallelText:
    """Read one split of a dataset, checked against the entry's checksums and number of pairs.

    Raises:
        SpecError: no such split; the texts are not UTF-8, not parallel, or not what the entry says.
        PrerequisiteError: a file or an archive is missing, is another one, or cannot be had.
    """
    splits, known = dataset.entry.splits, dataset.entry.archives
    if split not in splits:
        hint = did_you_mean(split, splits)
        raise SpecError(f"{dataset.name} has no split {split!r}{hint}", f"its splits: {', '.join(splits)}")
    part = splits[split]
    sides = (part.source, part.target)
    if part.sha256 is not None:
        places = [str(dataset.folder / name) for name in sides]
        raw = [read_regular(Path(place)) for place in places]
        for place, data, sha256 in zip(places, raw, (part.sha256.source, part.sha256.target), strict=True):
            if (found := hashlib.sha256(data).hexdigest()) != sha256:
                what = f"{place} is not the file that {dataset.path} means: its sha256 is {found}, not {sha256}"
                raise PrerequisiteError(what, "restore it, or, if the change is meant, put the new sum into the entry")
    elif part.archive in known:
        archive = archives.path(part.archive, known[part.archive])
        raw = read_members(archive, sides)
        places = [f"{archive}, {name}" for name in sides]
    else:
        raise SpecError(f"{dataset.path}: archives has no {part.archive!r}, of split {split}", f"edit {dataset.path}")
    sources, references, n_blank = read_pairs(raw, places)
    if len(sources) != part.pairs:
        found = f"expected {part.pairs} pairs, found {len(sources)} (and {n_blank} with a blank side)"
        raise SpecError(f"{dataset.path}: splits.{split}.pairs: {found}", f"edit {dataset.path}")
    digest = text_sha256(sources, references)
    return ParallelText(sources, references, n_blank, digest, origin=f"{dataset.name} {split}")


def read_pairs(raw: Sequence[bytes], places: Sequence[str]) -> tuple[list[str], list[str], int]:
    """Sources, references, and how many pairs were left out because a side is blank.

    `raw` is the content of the source's and of the reference's file, `places` what the two are called in messages.
    """
    sources, references = (_lines(data, place) for data, place in zip(raw, places, strict=True))
    if len(sources) != len(references):
        what = f"{places[0]} has {len(sources)} lines, {places[1]} has {len(references)}"
        raise SpecError(what, "edit them: line N of one must be the translation of line N of the other")
    pairs = list(zip(sources, references, strict=True))
    kept = [(source, reference) for source, reference in pairs if source.strip() and reference.strip()]
    half = [str(n) for n, pair in enumerate(pairs, start=1) if len([side for side in pair if side.strip()]) == 1]
    if half:
        lines = ", ".join(half[:3]) + (", ..." if len(half) > 3 else "")
        _warn(f"{len(half)} lines of {places[0]} and {places[1]} have text on one side only and are left out: {lines}")
    return [source for source, _ in kept], [reference for _, reference in kept], len(pairs) - len(kept)


@cache
def _warn(message: str) -> None:
    """Once: a text is read by the check, for the facts, and again where it is used."""
    log.warning(message)


def sample_pairs(text: ParallelText, max_samples: int | None, seed: int | None = None) -> ParallelText:
    """The first max_samples pairs, or as many drawn with a seed, in the text's order; all for None."""
    if max_samples is None or max_samples >= len(text.sources):
        return text
    numbers: Sequence[int] = range(max_samples)
    if seed is not None:
        numbers = sorted(Random(seed).sample(range(len(text.sources)), max_samples))
    sources, references = [text.sources[i] for i in numbers], [text.references[i] for i in numbers]
    return replace(text, sources=sources, references=references, sha256=text_sha256(sources, references))


def text_sha256(sources: Sequence[str], references: Sequence[str]) -> str:
    """Hash of the sentences of a text, in order."""
    return sha256_json([list(sources), list(references)])


def prompt(instruction: str, source: str) -> str:
    """The user's turn, as AlpacaDatasetConverter (LLaMA-Factory 0.9.5) joins instruction and input, neither blank."""
    return f"{instruction}\n{source}"


def write_training_file(text: ParallelText, instruction: str, path: Path) -> None:
    """Write a text as the file that LLaMA-Factory trains on: alpaca records, a JSON object per line.

    Pure ASCII, so that no reader's locale or idea of a line end matters. OSError where it cannot be written.
    """
    pairs = zip(text.sources, text.references, strict=True)
    records = ({"instruction": instruction, "input": source, "output": reference} for source, reference in pairs)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in records))


def normalize(sentence: str) -> str:
    """A sentence as it is compared: letter case and white space aside."""
    return " ".join(sentence.split()).casefold()


def read_regular(path: Path) -> bytes:
    """A file's content; PrerequisiteError where it cannot be read, or would never end, such as a pipe."""
    try:
        return read_file(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error


def _lines(data: bytes, place: str) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{place}, line {line}: not UTF-8 text ({error.reason})") from error
    # Not splitlines(): U+0085, U+2028 and the like are text, and one side may have them where the other has not.
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
