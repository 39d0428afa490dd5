"""The sentences of a benchmark: all of a split, its first ones or a seeded sample; or a pair of files.

Covered: which dataset a benchmark means, and what the model is told; which sentences, in the test set's order; files on
the command line as an entry of their own.
Not covered: reading an entry's texts (datasets.py); sacrebleu's cache (sacrebleu_sets.py).
Leaves the entry of a pair of files, with copies of them, in the cache: $ORCHESTRATOR_CACHE, or the user's.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from orchestrator.data.datasets import Dataset, Entry, ParallelText, first, load_entry, load_parallel, text_sha256
from orchestrator.data.sacrebleu_sets import is_sacrebleu, languages, sacrebleu_set
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import atomic_write, cache_folder
from orchestrator.specs.benchmark_spec import BenchmarkSpec

SPLIT = "test"
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")


def load_testset(item: BenchmarkSpec, folders: Sequence[Path], trained_on: Sequence[str]) -> Dataset:
    """The dataset that a benchmark means.

    Args:
        item: the benchmark.
        folders: where dataset entries are.
        trained_on: the datasets of the same run. A set of sacrebleu's has no instruction; theirs is taken.

    Raises:
        SpecError: there is no such dataset, or nobody says what the model is to do with it.
        PrerequisiteError: it is one of sacrebleu's, and not in its cache.
    """
    if not is_sacrebleu(item.testset):
        return load_parallel(item.testset, folders)
    return sacrebleu_set(item.testset, str(with_instruction(item, folders, trained_on).instruction))


def with_instruction(item: BenchmarkSpec, folders: Sequence[Path], trained_on: Sequence[str]) -> BenchmarkSpec:
    """The benchmark with an instruction, where it needs one: that of the first dataset with the same languages.

    Raises:
        SpecError: there is none.
    """
    if item.instruction is not None or not is_sacrebleu(item.testset):
        return item
    wanted = languages(item.testset)
    for dataset in (load_entry(name, folders) for name in trained_on):
        if isinstance(dataset, Dataset) and (dataset.entry.source_lang, dataset.entry.target_lang) == wanted:
            return item.model_copy(update={"instruction": dataset.entry.instruction})
    raise SpecError(
        f"what the model is told to do with {item.testset} is not known: it was trained on no dataset of {wanted[0]} "
        f"and {wanted[1]}",
        "give it: --instruction TEXT, or instruction: TEXT beside testset in a spec",
    )


def told(dataset: Dataset, instruction: str | None) -> Dataset:
    """The dataset under another instruction; as it is for None."""
    if instruction is None:
        return dataset
    return replace(dataset, entry=dataset.entry.model_copy(update={"instruction": instruction}))


def chosen(text: ParallelText, max_samples: int | None, sample_seed: int | None) -> ParallelText:
    """The sentences that a benchmark asks: the first max_samples, or as many drawn with a seed; all for None."""
    if sample_seed is None or max_samples is None or max_samples >= len(text.sources):
        return first(text, max_samples)
    # Of a seed of its own, for the state of the global generator is nobody's business; in order, to be read beside it.
    kept = sorted(random.Random(sample_seed).sample(range(len(text.sources)), max_samples))
    sources, references = [text.sources[i] for i in kept], [text.references[i] for i in kept]
    lines = [text.lines[i] for i in kept] if text.lines else []
    digest = text_sha256(sources, references)
    return replace(text, sources=sources, references=references, sha256=digest, lines=lines)


def said(n_asked: int, n_testset: int, sample_seed: int | None) -> str:
    """Which sentences they are, in words."""
    if n_asked == n_testset:
        return f"all {n_testset}"
    drawn = "the first" if sample_seed is None else f"drawn with seed {sample_seed}:"
    return f"{drawn} {n_asked} of {n_testset}"


@dataclass(frozen=True)
class FilePair:
    """Two text files, line N of one being the translation of line N of the other."""

    source: Path
    reference: Path
    source_lang: str | None = None
    """None: the file's ending, where that is a language's code (test.en)."""
    target_lang: str | None = None
    instruction: str | None = None
    """None: that of the entry given beside."""

    def entry(self, like: Entry | None) -> tuple[str, Path]:
        """Make an entry of them.

        Args:
            like: an entry whose instruction and languages are taken where the pair does not say its own.

        Returns:
            Its name and the folder that it is in, to be looked into like dataset_info/.

        Raises:
            SpecError: a language or the instruction is missing.
            PrerequisiteError: a file cannot be read.
        """
        source, reference = _read(self.source), _read(self.reference)
        said = {
            "source_lang": self.source_lang or _language(self.source) or (like.source_lang if like else None),
            "target_lang": self.target_lang or _language(self.reference) or (like.target_lang if like else None),
            "instruction": self.instruction or (like.instruction if like else None),
        }
        for name, word in said.items():
            if not word:
                raise SpecError(
                    f"{name.replace('_', ' ')} of {self.source} is not known", f"give it: --{name.replace('_', '-')}"
                )
        digests = [hashlib.sha256(data).hexdigest() for data in (source, reference)]
        pairs = sum(all(map(str.strip, sides)) for sides in zip(_lines(source), _lines(reference), strict=False))
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", self.source.stem).strip("._-") or "pair"
        name = f"{stem[:40]}-{hashlib.sha256(repr((digests, said)).encode()).hexdigest()[:8]}"
        folder = _folder() / name
        value = {
            "description": f"{self.source.name} and {self.reference.name}, given on the command line",
            "license": "not known",
            **said,
            "splits": {
                SPLIT: {
                    "source": f"{name}/source.txt",
                    "target": f"{name}/reference.txt",
                    "sha256": dict(zip(("source", "target"), digests, strict=True)),
                    "pairs": max(pairs, 1),
                }
            },
        }
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
            atomic_write(folder / name / "source.txt", source)
            atomic_write(folder / name / "reference.txt", reference)
            atomic_write(folder / f"{name}.yaml", yaml.safe_dump(value, allow_unicode=True, sort_keys=False))
        except OSError as error:
            raise PrerequisiteError(f"{folder} cannot be written: {error.strerror}") from error
        return name, folder


def _language(path: Path) -> str | None:
    code = path.suffix[1:]
    return code if len(code) == 2 and _LANGUAGE.fullmatch(code) else None


def _lines(data: bytes) -> list[str]:
    return data.decode("utf-8-sig", "replace").split("\n")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error


def _folder() -> Path:
    return cache_folder() / "testsets"
