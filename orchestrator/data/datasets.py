"""Datasets: the entries of dataset_info/, their parallel texts, and the one place where a prompt is made."""

import hashlib
import json
import logging
import lzma
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from random import Random
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from orchestrator.data.llamafactory_data import DatasetInfo, LlamaFactoryDataset, LlamaFactoryEntry, Part, validated
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write, cache_folder, expanded, read_file, sha256_file, sha256_json, shipped
from orchestrator.specs.yamlfile import read_yaml

MAX_BYTES = 256 << 20  # most that a text may have: it is held in memory
EVALUATED = "validation"  # the split that an eval_dataset means
log = logging.getLogger("orchestrator")


def _stays_inside(path: str) -> str:
    if not path or path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path:
        raise ValueError("expected a path inside dataset_info/, such as NAME/train.en")
    return path


InsidePath = Annotated[str, AfterValidator(_stays_inside)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Archive(Part):
    """A tar archive on the web, plain or packed by gzip, bzip2 or xz. No more than its size is downloaded."""

    url: str = Field(pattern=r"^https?://[!-.0-~]+/[!-~]+$")
    sha256: Sha256
    size_bytes: int = Field(gt=0)


class Sums(Part):
    source: Sha256
    target: Sha256


class FileSplit(Part):
    """Two parallel text files in the folder of the entry, with these checksums, or else members of an archive."""

    source: InsidePath
    target: InsidePath
    pairs: int = Field(gt=0)  # how many there must be, those with a blank side left out
    sha256: Sums | None = None
    archive: str | None = None

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        if (self.sha256 is None) == (self.archive is None):
            raise ValueError("give one of sha256 (files beside the entry) and archive (members of an archive)")
        return self


class Entry(Part):
    """A file dataset_info/NAME.yaml with parallel texts; the dataset's name is the file's."""

    description: str = Field(min_length=1)
    license: str = Field(min_length=1)
    homepage: str | None = None
    source_lang: Language
    target_lang: Language  # it chooses BLEU's tokenizer
    instruction: str = Field(pattern=r"\S")  # on the line before the source sentence, in training and benchmarks
    splits: dict[Name, FileSplit] = Field(min_length=1)  # train is the one that is trained on
    archives: dict[Name, Archive] = Field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """An entry of parallel texts with its name and the folder that its files are relative to."""

    name: str
    folder: Path
    entry: Entry

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.yaml"


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations, without the pairs that have a blank side."""

    sources: list[str]
    references: list[str]
    blank_pairs: int
    sha256: str  # of the sentences as read, wherever they were read from
    origin: str = ""  # dataset and split, for messages


@dataclass(frozen=True)
class ArchiveStore:
    """Archives by name, each verified before it is used."""

    from_folder: Path | None  # the user's, looked at first
    cache: Path

    @classmethod
    def from_environment(cls, from_folder: Path | None = None) -> "ArchiveStore":
        """The store of `--from DIR`, else of $ORCHESTRATOR_ARCHIVES, with the default cache."""
        given = os.environ.get("ORCHESTRATOR_ARCHIVES")
        return cls(from_folder or (expanded(given) if given else None), cache_folder() / "archives")

    def path(self, name: str, archive: Archive) -> Path:
        """A verified archive, fetched where it is not here; PrerequisiteError: it can't be had, or is another file."""
        remedy = f"put {name} into a folder and name it: --from DIR, or ORCHESTRATOR_ARCHIVES=DIR in the environment"
        path = self.cache / archive.sha256 / name
        if self.from_folder is not None and (given := self.from_folder / name).exists():
            path = given
        try:
            if not path.exists():
                _fetch(name, archive, path)
            found = sha256_file(path)
        except (OSError, ValueError) as error:
            what = f"{path} is not there and cannot be had from {archive.url}: {error}"
            raise PrerequisiteError(what, remedy) from error
        if found != archive.sha256:
            what = f"{path} is not the archive that the entry means: its sha256 is {found}, not {archive.sha256}"
            raise PrerequisiteError(what, f"rm '{path}' to have it fetched, or put the right one there")
        return path


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
        return LlamaFactoryDataset(name, folder, validated(LlamaFactoryEntry, source, [DatasetInfo]))
    return Dataset(name, folder, validated(Entry, source, [FileSplit, Sums, Archive]))


def load_split(dataset: Dataset, split: str, archives: ArchiveStore) -> ParallelText:
    """One split, checked; SpecError: it is not as the entry says; PrerequisiteError: a file is another one, or none."""
    splits, known = dataset.entry.splits, dataset.entry.archives
    if split not in splits:
        what = f"{dataset.name} has no split {split!r}{did_you_mean(split, splits)}"
        raise SpecError(f"{what}; it has: {', '.join(splits)}", f"edit {dataset.path}, or name another")
    part = splits[split]
    sides = (part.source, part.target)
    if part.sha256 is not None:
        places = [str(dataset.folder / name) for name in sides]
        raw = [read_text_file(Path(place)) for place in places]
        for place, data, sha256 in zip(places, raw, (part.sha256.source, part.sha256.target), strict=True):
            if (found := hashlib.sha256(data).hexdigest()) != sha256:
                what = f"{place} is not the file that {dataset.path} means: its sha256 is {found}, not {sha256}"
                raise PrerequisiteError(what, "restore it, or, if the change is meant, put the new sum into the entry")
    elif part.archive in known:
        archive = archives.path(part.archive, known[part.archive])
        raw = read_members(archive, sides)
        places = [f"{archive}, {name}" for name in sides]
    else:
        what = f"{dataset.path}: splits.{split}.archive: archives has no {part.archive!r}"
        raise SpecError(what, f"edit {dataset.path}")
    text = read_pairs(raw, places, origin=f"{dataset.name} {split}")
    if len(text.sources) != part.pairs:
        found = f"expected {part.pairs} pairs, found {len(text.sources)} (and {text.blank_pairs} with a blank side)"
        raise SpecError(f"{dataset.path}: splits.{split}.pairs: {found}", f"edit {dataset.path}")
    return text


def read_pairs(raw: Sequence[bytes], places: Sequence[str], origin: str = "") -> ParallelText:
    """The text of the contents of two files, source and reference; `places` is what they are called in messages."""
    sides = [_lines(data, place) for data, place in zip(raw, places, strict=True)]
    if len(sides[0]) != len(sides[1]):
        what = f"{places[0]} has {len(sides[0])} lines, {places[1]} has {len(sides[1])}"
        raise SpecError(what, "edit them: line N of one must be the translation of line N of the other")
    kept = [pair for pair in zip(*sides, strict=True) if pair[0].strip() and pair[1].strip()]
    sources, references = [source for source, _ in kept], [reference for _, reference in kept]
    return ParallelText(sources, references, len(sides[0]) - len(kept), text_sha256(sources, references), origin)


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
    """Write a text as alpaca records, a JSON object per line: ASCII, so that no reader's idea of a line end matters."""
    pairs = zip(text.sources, text.references, strict=True)
    records = ({"instruction": instruction, "input": source, "output": reference} for source, reference in pairs)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in records))


def normalize(sentence: str) -> str:
    """A sentence as it is compared: letter case and white space aside."""
    return " ".join(sentence.split()).casefold()


def read_text_file(path: Path) -> bytes:
    """A file's content; PrerequisiteError where it cannot be read, or would never end, such as a pipe."""
    try:
        return read_file(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error


def read_members(path: Path, names: Sequence[str], max_bytes: int = MAX_BYTES) -> list[bytes]:
    """Members of a tar archive, by name with or without ./; SpecError: it is damaged, or has no such small file."""
    contents = []
    try:
        with tarfile.open(path) as tar:
            members = {member.name.removeprefix("./"): member for member in tar}
            for name in (name.removeprefix("./") for name in names):
                if name not in members:
                    has = ", ".join(repr(each) for each in list(members)[:12])
                    raise SpecError(f"{path} has no member {name!r}{did_you_mean(name, members)}", f"it has {has}")
                member = members[name]
                stream = tar.extractfile(member) if member.isreg() else None  # a link would be followed
                if stream is None or member.size > max_bytes:
                    raise SpecError(f"{path}: {name!r} is no plain file of at most {max_bytes} bytes")
                contents.append(stream.read())
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError) as error:
        raise SpecError(f"{path} cannot be read as a tar archive: {error}") from error
    return contents


def _fetch(name: str, archive: Archive, target: Path) -> None:
    from http.client import HTTPException  # here: seldom needed, and slow to import
    from urllib.request import urlopen

    log.info("fetching %s (%.1f MB) from %s", name, archive.size_bytes / 1e6, archive.url)
    try:
        with urlopen(archive.url, timeout=60) as answer:
            data = answer.read(archive.size_bytes + 1)
    except HTTPException as error:
        raise ValueError(str(error)) from error
    if (found := hashlib.sha256(data).hexdigest()) != archive.sha256:
        raise ValueError(f"it is another file: {len(data)} bytes of sha256 {found}, not {archive.sha256}")
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, data)


def _lines(data: bytes, place: str) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{place}, line {line}: not UTF-8 text ({error.reason})") from error
    # Not splitlines(): U+0085, U+2028 and the like are text, and one side may have them where the other has not.
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
