"""Datasets: the entries of dataset_info/, their parallel texts, and the one place where a prompt is made.

Covered: entries checked as a whole, every problem at its place; parallel texts read strictly from files or archives,
by checksum; the training file for LLaMA-Factory; the overlap of two texts.
Not covered: data in LLaMA-Factory's own formats (llamafactory_data.py and data_files.py), which can be trained on, not
benchmarked; more than one reference per sentence; near-duplicates.
Leaves the training file where it is told to (and archives.py what it fetches in the cache).
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from orchestrator.data.archives import MAX_BYTES, Archive, Sha256, read_members
from orchestrator.data.archives import ArchiveStore as ArchiveStore
from orchestrator.data.llamafactory_data import DatasetInfo, LlamaFactoryDataset, checked_entry
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write, shipped
from orchestrator.specs.yamlfile import Location, YamlSource, read_yaml

# No comma (LLaMA-Factory splits its dataset argument on it), no space, no slash.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def _stays_inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise ValueError("expected a path inside dataset_info/, such as NAME/train.en")
    return path


InsidePath = Annotated[str, AfterValidator(_stays_inside)]
Name = Annotated[str, Field(pattern=f"^{_NAME}$")]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sums(_Part):
    """Checksums of a split's two files."""

    source: Sha256
    """sha256 of the source file, in hex."""
    target: Sha256
    """sha256 of the target file, in hex."""


class FileSplit(_Part):
    """Two text files in dataset_info/, line N of one being the translation of line N of the other."""

    source: InsidePath
    """The source side, relative to the folder of the entry."""
    target: InsidePath
    """The target side, likewise."""
    sha256: Sums
    """What the two files must hash to."""
    pairs: int = Field(gt=0)
    """How many pairs there must be, those with a blank side left out."""


class ArchiveSplit(_Part):
    """Two text files in a tar archive."""

    archive: str
    """Which of the entry's archives."""
    source: str = Field(min_length=1)
    """The archive's member with the source side; a leading ./ may be left out."""
    target: str = Field(min_length=1)
    """The member with the target side, likewise."""
    pairs: int = Field(gt=0)
    """How many pairs there must be, those with a blank side left out."""


def _kind_of_split(value: Any) -> str:
    return "archive" if isinstance(value, Mapping) and "archive" in value else "files"


Split = Annotated[
    Annotated[FileSplit, Tag("files")] | Annotated[ArchiveSplit, Tag("archive")], Discriminator(_kind_of_split)
]


class Entry(_Part):
    """A file dataset_info/NAME.yaml with parallel texts; the dataset's name is the file's."""

    description: str = Field(min_length=1)
    """What the texts are and where they come from."""
    license: str = Field(min_length=1)
    """Under which terms they may be used."""
    homepage: str | None = None
    """Where to read more."""
    source_lang: Language
    """ISO 639-1 code of the source side."""
    target_lang: Language
    """ISO 639-1 code of the target side; chooses BLEU's tokenizer."""
    instruction: str = Field(pattern=r"\S")
    """What the model is told to do. Training and benchmarks put it on the line before the source sentence."""
    splits: dict[Name, Split] = Field(min_length=1)
    """The texts by name; train is the one that is trained on."""
    archives: dict[Name, Archive] = {}
    """The archives that splits are in, by file name."""


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
    """How many pairs were dropped, one side or both being blank."""
    sha256: str
    """Hash of the sentences as read, wherever they were read from."""
    origin: str = ""
    """Dataset and split, for messages."""
    lines: list[int] = field(default_factory=list)
    """The line, from 1, that each pair has in its files."""


def entry_folders(workspace_dataset_info: Path) -> list[Path]:
    """Where entries are looked for: the workspace's folder before the shipped one."""
    folders = [workspace_dataset_info, shipped("dataset_info")]
    return folders[:1] if folders[0].resolve() == folders[1].resolve() else folders


def list_entries(folders: Sequence[Path]) -> dict[str, Path]:
    """The entries' files by dataset name; an earlier folder hides a later one's entry of the same name."""
    found = {path.stem: path for folder in reversed(folders) for path in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def load_entry(name: str, folders: Sequence[Path]) -> Dataset | LlamaFactoryDataset:
    """Read the entry of a dataset, of either kind.

    Raises:
        SpecError: no entry of that name, or every problem in it, each with file:line:column and dotted path.
    """
    entries = list_entries(folders)
    if name not in entries:
        known = f"known datasets: {', '.join(entries)}" if entries else f"no entry in {', '.join(map(str, folders))}"
        raise SpecError(f"no dataset {name!r}{did_you_mean(name, entries)}", known)
    path = entries[name]
    if not re.fullmatch(_NAME, name):
        reason = "letters, digits, dot, underscore and hyphen, at most 64, the first a letter or a digit"
        raise SpecError(f"{path}: {name!r} cannot be the name of a dataset: {reason}", f"rename {path}")
    source = read_yaml(path)
    if "llamafactory" in source.value:
        return LlamaFactoryDataset(name, path.parent, checked_entry(source))
    return Dataset(name, path.parent, _checked(source))


def load_parallel(name: str, folders: Sequence[Path]) -> Dataset:
    """The same for what only parallel texts can be used for.

    Raises:
        SpecError: as load_entry, or it is in LLaMA-Factory's own format.
    """
    dataset = load_entry(name, folders)
    if isinstance(dataset, LlamaFactoryDataset):
        what = f"{name} is in LLaMA-Factory's own format, without source and reference sides"
        raise SpecError(f"{what}: it can be trained on, not benchmarked", "name a dataset of parallel texts")
    return dataset


def evaluated_split(dataset: Dataset) -> str:
    """The split that an eval_dataset means.

    Raises:
        SpecError: the entry has none of that name.
    """
    if "validation" not in dataset.entry.splits:
        has = ", ".join(dataset.entry.splits)
        raise SpecError(
            f"{dataset.name} has no split validation, which its loss during training is taken on; it has: {has}",
            "train.val_size holds rows of the training data out",
        )
    return "validation"


def load_split(dataset: Dataset, split: str, archives: ArchiveStore) -> ParallelText:
    """Read one split of a dataset, checked against the entry's checksums and number of pairs.

    Args:
        dataset: as load_entry gives it.
        split: one of the entry's splits.
        archives: where the entry's archives are, or go.

    Raises:
        SpecError: no such split; the texts are not UTF-8, not parallel, or not what the entry says.
        PrerequisiteError: a file or an archive is missing, is another one, or cannot be had.
    """
    splits = dataset.entry.splits
    if split not in splits:
        hint = did_you_mean(split, splits)
        raise SpecError(f"{dataset.name} has no split {split!r}{hint}", f"its splits: {', '.join(splits)}")
    part = splits[split]
    names = (part.source, part.target)
    if isinstance(part, ArchiveSplit):
        archive = archives.path(part.archive, dataset.entry.archives[part.archive])
        raw = read_members(archive, names)
        places = [f"{archive}, {name}" for name in names]
    else:
        raw = [_read_file(dataset, *side) for side in zip(names, (part.sha256.source, part.sha256.target), strict=True)]
        places = [str(dataset.folder / name) for name in names]
    sources, references = (_lines(data, place) for data, place in zip(raw, places, strict=True))
    if len(sources) != len(references):
        counts = f"{places[0]} has {len(sources)} lines, {places[1]} has {len(references)}"
        raise SpecError(f"the sides of {dataset.name} {split} are not parallel: {counts}", f"edit {dataset.path}")
    kept = [number for number, sides in enumerate(zip(sources, references, strict=True)) if all(map(str.strip, sides))]
    blank_pairs = len(sources) - len(kept)
    if len(kept) != part.pairs:
        found = f"expected {part.pairs} pairs, found {len(kept)} (and {blank_pairs} with a blank side)"
        raise SpecError(f"{dataset.path}: splits.{split}.pairs: {found}", f"edit {dataset.path}")
    sources, references = [sources[number] for number in kept], [references[number] for number in kept]
    return ParallelText(
        sources,
        references,
        blank_pairs=blank_pairs,
        sha256=text_sha256(sources, references),
        origin=f"{dataset.name} {split}",
        lines=[number + 1 for number in kept],
    )


def first(text: ParallelText, max_samples: int | None) -> ParallelText:
    """The first pairs of a text, all for None; the hash is that of the pairs that are left."""
    if max_samples is None or max_samples >= len(text.sources):
        return text
    sources, references = text.sources[:max_samples], text.references[:max_samples]
    digest = text_sha256(sources, references)
    return replace(text, sources=sources, references=references, sha256=digest, lines=text.lines[:max_samples])


def text_sha256(sources: Sequence[str], references: Sequence[str]) -> str:
    """Hash of the sentences of a text, in order."""
    return hashlib.sha256(json.dumps([list(sources), list(references)]).encode()).hexdigest()


def prompt(instruction: str, source: str) -> str:
    """The user's turn, as LLaMA-Factory joins an alpaca record's instruction and input.

    It leaves out a part that is empty, and the newline with it: an Entry has no blank instruction, a ParallelText no
    blank source. Source: AlpacaDatasetConverter in llamafactory/data/converter.py, 0.9.5.
    """
    return f"{instruction}\n{source}"


def media_problem(text: ParallelText, instruction: str) -> str | None:
    """What LLaMA-Factory would take for an image, a video or a sound in a text, or None.

    It counts these words in every message, also for models that know text only, and fails in the middle of training
    or with status 500 where no file comes with them (mm_plugin.py, _validate_messages).
    """
    words = [os.environ.get(f"{kind}_PLACEHOLDER", f"<{kind.lower()}>") for kind in ("IMAGE", "VIDEO", "AUDIO")]
    for word in words:
        if word in instruction:
            return f"the instruction {instruction!r} has {word!r}, which LLaMA-Factory takes for a media file"
    for side, sentences in (("source", text.sources), ("target", text.references)):
        for index, sentence in enumerate(sentences):
            for word in words:
                if word in sentence:
                    where = f"line {text.lines[index]}" if text.lines else f"pair {index + 1}"
                    place = f"{text.origin}, {where} of the {side}".removeprefix(", ")
                    return f"{place} has {word!r}, which LLaMA-Factory takes for a media file"
    return None


def write_training_file(text: ParallelText, instruction: str, path: Path, max_samples: int | None = None) -> None:
    """Write a text as the file that LLaMA-Factory trains on: alpaca records, a JSON object per line.

    Pure ASCII, so that no reader's locale or idea of a line end matters.

    Raises:
        SpecError: LLaMA-Factory would take a word in it for a media file.
        OSError: it cannot be written; an old file is whole.
    """
    text = first(text, max_samples)
    problem = media_problem(text, instruction)
    if problem:
        remedy = (
            "take it out, or set IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER or AUDIO_PLACEHOLDER to a word the data lacks"
        )
        raise SpecError(problem, remedy)
    records = (
        {"instruction": instruction, "input": source, "output": reference}
        for source, reference in zip(text.sources, text.references, strict=True)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in records))


def folded(sentence: str) -> str:
    """A sentence as it is compared: letter case and white space aside."""
    return " ".join(sentence.split()).casefold()


def overlap(train: ParallelText, test: ParallelText) -> int:
    """How many test pairs have a source that is trained on, letter case and white space aside."""
    trained = set(map(folded, train.sources))
    return sum(folded(source) in trained for source in test.sources)


def _checked(source: YamlSource) -> Entry:
    entry = None
    problems: list[tuple[Location, str]] = []
    try:
        entry = Entry.model_validate(source.value)
    except ValidationError as error:
        problems = [_explain(detail) for detail in error.errors()]
    for name, split in entry.splits.items() if entry else ():
        if isinstance(split, ArchiveSplit) and split.archive not in (entry.archives if entry else ()):
            hint = did_you_mean(split.archive, entry.archives if entry else ())
            problems.append((("splits", name, "archive"), f"archives has no {split.archive!r}{hint}"))
        if split.source == split.target:
            problems.append((("splits", name, "target"), f"the source is {split.source!r} too"))
    if problems or entry is None:
        raise SpecError(source.report(problems), f"edit {source.path}")
    return entry


def _explain(detail: Any) -> tuple[Location, str]:
    """A problem of Pydantic's, at the place that the file has it."""
    at = tuple(step for step in detail["loc"] if step != "[key]")
    model: type[BaseModel] = Entry
    if at[:1] == ("splits",) and len(at) > 2:  # Pydantic adds the kind of split after its name
        model = ArchiveSplit if at[2] == "archive" else Sums if at[3:4] == ("sha256",) and len(at) > 4 else FileSplit
        at = (*at[:2], *at[3:])
    if at[:1] == ("archives",):
        model = Archive
    if detail["type"] == "extra_forbidden":
        if model is Entry and at[-1] in DatasetInfo.model_fields:
            return at, f"unknown field\nfor a dataset in LLaMA-Factory's own format, write {at[-1]} under llamafactory"
        return at, "unknown field" + did_you_mean(str(at[-1]), model.model_fields)
    if detail["type"] == "missing":
        return at, "missing"
    shown = repr(detail["input"])
    is_scalar = not isinstance(detail["input"], Mapping | list) and len(shown) <= 80
    message = str(detail["msg"]).removeprefix("Value error, ")
    return at, f"{message} (got {shown})" if is_scalar else message


def _read_file(dataset: Dataset, name: str, sha256: str) -> bytes:
    path = dataset.folder / name
    try:
        if not path.resolve().is_relative_to(dataset.folder.resolve()):
            raise SpecError(f"{path} leads out of {dataset.folder}", "put the file itself there, not a link to it")
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_BYTES} that are read")
        data = path.read_bytes()
    except OSError as error:
        what = f"{path}, a file of {dataset.name}, cannot be read: {error.strerror}"
        raise PrerequisiteError(what, f"put it there, or edit {dataset.path}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        what = f"{path} is not the file that {dataset.path} means: its sha256 is {found}, not {sha256}"
        raise PrerequisiteError(what, f"restore it, or, if the change is meant, put the new sum into {dataset.path}")
    return data


def _lines(data: bytes, place: str) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = f"byte {error.object[error.start]:#04x}"
        raise SpecError(f"{place}, line {line}: not UTF-8 text ({byte}: {error.reason})") from error
    # Not splitlines(): U+0085, U+2028 and the like are text, and one side may have them where the other has not.
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
