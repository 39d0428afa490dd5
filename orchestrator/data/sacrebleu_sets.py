"""Test sets that sacrebleu knows, where they are in its cache: `sacrebleu:wmt14/en-de`.

Covered: a set and a language pair of sacrebleu's list, read from the text files that sacrebleu made when it fetched
them ($SACREBLEU, or ~/.sacrebleu), so that `sacrebleu -t SET -l PAIR` scores the same sentences.
Not covered: fetching them, which is sacrebleu's; sets with several references for each sentence. A pair with a blank
side is left out, as of every dataset; sacrebleu counts it.
Writes nothing.
"""

import hashlib
from pathlib import Path
from typing import Any

from orchestrator.data.datasets import Dataset, Entry, FileSplit, Sums
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean

PREFIX = "sacrebleu:"
SPLIT = "test"


def is_sacrebleu(name: str) -> bool:
    """Whether a test set's name means one of sacrebleu's."""
    return name.startswith(PREFIX)


def sacrebleu_set(name: str, instruction: str) -> Dataset:
    """A set of sacrebleu's as a dataset with one split, test.

    Args:
        name: sacrebleu:SET/PAIR. A set's own name may have a slash in it: sacrebleu:wmt14/full/en-de.
        instruction: what the model is told to do.

    Raises:
        SpecError: sacrebleu has no such set or pair, or several references for each sentence.
        PrerequisiteError: it is not in sacrebleu's cache.
    """
    source, reference = _files(name)
    pair = name.rpartition("/")[2]
    source_lang, _, target_lang = pair.partition("-")
    data = [_read(path) for path in (source, reference)]
    lines = [side.decode("utf-8", "replace").removesuffix("\n").split("\n") for side in data]
    if len(lines[0]) != len(lines[1]):
        counts = f"{source} has {len(lines[0])} lines, {reference} has {len(lines[1])}"
        raise PrerequisiteError(
            f"sacrebleu's cache is damaged: {counts}", f"remove {source.parent}, and fetch it again"
        )
    sums = [hashlib.sha256(side).hexdigest() for side in data]
    split = FileSplit(
        source=source.name,
        target=reference.name,
        sha256=Sums(source=sums[0], target=sums[1]),
        pairs=max(1, sum(all(map(str.strip, sides)) for sides in zip(*lines, strict=True))),
    )
    entry = Entry(
        description=f"{name.removeprefix(PREFIX)}, from sacrebleu's cache",
        license="not known",
        source_lang=source_lang,
        target_lang=target_lang,
        instruction=instruction,
        splits={SPLIT: split},
    )
    return Dataset(name, source.parent, entry)


def languages(name: str) -> tuple[str, str]:
    """Of the source and of the target side.

    Raises:
        SpecError: sacrebleu has no such set, or it has no such pair.
    """
    _, pair = _found(name)
    source, _, target = pair.partition("-")
    return source, target


def _found(name: str) -> tuple[Any, str]:
    """Sacrebleu's object of a set, and the language pair."""
    from sacrebleu.dataset import DATASETS

    said = name.removeprefix(PREFIX)
    if said in DATASETS:
        pairs = ", ".join(sorted(DATASETS[said].langpairs))
        raise SpecError(f"which language pair of {said}?", f"{PREFIX}{said}/PAIR, or --langpair PAIR; it has: {pairs}")
    known, _, pair = said.rpartition("/")
    if known not in DATASETS:
        raise SpecError(
            f"sacrebleu has no test set {(known or said)!r}{did_you_mean(known or said, DATASETS)}",
            "sacrebleu --list names them",
        )
    pairs = DATASETS[known].langpairs
    if pair not in pairs:
        raise SpecError(
            f"{known} has no pair {pair!r}{did_you_mean(pair, pairs)}", f"it has: {', '.join(sorted(pairs))}"
        )
    return DATASETS[known], pair


def _files(name: str) -> tuple[Path, Path]:
    """The texts. sacrebleu's own get_source_file would fetch what is missing, so the paths alone are asked of it."""
    dataset, pair = _found(name)
    if hasattr(dataset, "_get_langpair_allowed_refs"):  # WMT's XML, whose fields stand in the file itself
        fields = dataset._get_langpair_allowed_refs(pair)
    else:
        fields = [field for field in dataset.fieldnames(pair) if field.startswith("ref")]
    source, *references = (Path(dataset._get_txt_file_path(pair, field)) for field in ("src", *fields))
    here = [path for path in references if path.is_file()]
    if not source.is_file() or not here:
        missing = references[0] if source.is_file() else source
        raise PrerequisiteError(
            f"{dataset.name} {pair} is not in sacrebleu's cache: no {missing}",
            f"fetch it: sacrebleu -t {dataset.name} -l {pair} --echo src > /dev/null",
        )
    if len(here) > 1:
        raise SpecError(
            f"{dataset.name} {pair} has {len(here)} references for each sentence; a benchmark here has one",
            "choose a set with one (sacrebleu --list)",
        )
    return source, here[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}") from error
