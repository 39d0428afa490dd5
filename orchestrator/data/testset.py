"""The sentences of a benchmark: which dataset it means, with which instruction; files, and sacrebleu's own sets."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.datasets import Dataset, Entry, load_entry, read_pairs, read_text_file
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write, cache_folder, sha256_json
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.specs.render import quoted_yaml

PREFIX = "sacrebleu:"  # of the names of sacrebleu's own sets: `sacrebleu:wmt14/en-de`
SPLIT = "test"  # the split of sacrebleu's sets and of pairs of files
log = logging.getLogger("orchestrator")


def load_testset(item: BenchmarkSpec, folders: Sequence[Path], trained_on: Sequence[str]) -> Dataset:
    """The dataset that a benchmark means: an entry in one of the folders, or a set of sacrebleu's, which it fetches."""
    if item.testset.startswith(PREFIX):
        return _sacrebleu_set(item.testset, resolve_instruction(item, folders, trained_on).instruction)
    dataset = load_entry(item.testset, folders)
    if not isinstance(dataset, Dataset):
        what = f"{item.testset} is in LLaMA-Factory's own format: it can be trained on, not benchmarked"
        raise SpecError(what, "name a dataset of parallel texts")
    return dataset


def resolve_instruction(item: BenchmarkSpec, folders: Sequence[Path], trained_on: Sequence[str]) -> BenchmarkSpec:
    """The benchmark with the instruction that a set of sacrebleu lacks: of the first dataset in the same languages."""
    if item.instruction is not None or not item.testset.startswith(PREFIX):
        return item
    _, pair = _set_and_pair(item.testset)
    for dataset in (load_entry(name, folders) for name in trained_on):
        if isinstance(dataset, Dataset) and f"{dataset.entry.source_lang}-{dataset.entry.target_lang}" == pair:
            return item.model_copy(update={"instruction": dataset.entry.instruction})
    what = f"the instruction for {item.testset} is not known: it was trained on no dataset of {pair}"
    raise SpecError(what, "give it: --instruction TEXT, or instruction: TEXT beside testset in a spec")


def describe_subset(n_requested: int, n_testset: int, sample_seed: int | None) -> str:
    """Which sentences of a test set they are, in words."""
    if n_requested == n_testset:
        return f"all {n_testset}"
    drawn = "the first" if sample_seed is None else f"drawn with seed {sample_seed}:"
    return f"{drawn} {n_requested} of {n_testset}"


def _sacrebleu_set(name: str, instruction: str | None) -> Dataset:
    """A set as a dataset with one split, so that `sacrebleu -t SET -l PAIR` scores the same sentences."""
    import sacrebleu

    testset, pair = _set_and_pair(name)
    try:
        paths = [sacrebleu.get_source_file(testset, pair), *sacrebleu.get_reference_files(testset, pair)]
        files = {Path(path).name: Path(path).read_bytes() for path in paths}
    except (Exception, SystemExit) as error:  # it raises bare Exceptions, and exits where a checksum is wrong
        what = f"{testset} {pair} is not in sacrebleu's cache ($SACREBLEU, or ~/.sacrebleu), and cannot be fetched"
        remedy = f"try: sacrebleu -t {testset} -l {pair} --echo src > /dev/null"
        raise PrerequisiteError(f"{what}: {error}", remedy) from error
    if len(files) != 2:
        what = f"{testset} {pair} has {len(files) - 1} references for each sentence; a benchmark here has one"
        raise SpecError(what, "choose a set with one (sacrebleu --list)")
    source_lang, _, target_lang = pair.partition("-")
    given = {"source_lang": source_lang, "target_lang": target_lang, "instruction": instruction}
    n_pairs = len(read_pairs(list(files.values()), paths).sources)
    entry = Entry.model_validate(_entry(f"{testset} {pair}, from sacrebleu", given, files, n_pairs))
    return Dataset(name, Path(paths[0]).parent, entry)


def _set_and_pair(name: str) -> tuple[str, str]:
    """Of sacrebleu:SET/PAIR. A set's own name may have a slash in it: sacrebleu:wmt14/full/en-de."""
    from sacrebleu import get_available_testsets, get_langpairs_for_testset

    given = name.removeprefix(PREFIX)
    testset, _, pair = given.rpartition("/")
    known = {each: get_langpairs_for_testset(each) for each in get_available_testsets()}
    if pair in known.get(testset, ()):
        return testset, pair
    if pairs := known.get(given) or known.get(testset):
        raise SpecError(f"{name} names no language pair of the set's", f"it has: {', '.join(sorted(pairs))}")
    hint = did_you_mean(testset or given, known)
    raise SpecError(f"sacrebleu has no test set {(testset or given)!r}{hint}", "sacrebleu --list names them")


def _entry(description: str, given: Mapping[str, Any], files: Mapping[str, bytes], n_pairs: int) -> dict[str, Any]:
    """An entry with one split: two files by name, the source first."""
    sides = dict(zip(("source", "target"), files, strict=True))
    sums = {side: hashlib.sha256(files[name]).hexdigest() for side, name in sides.items()}
    split = {**sides, "sha256": sums, "pairs": n_pairs}
    return {"description": description, "license": "not known", **given, "splits": {SPLIT: split}}


def entry_of_files(
    source: Path,
    reference: Path,
    like: Entry | None,
    *,
    source_lang: str | None = None,
    target_lang: str | None = None,
    instruction: str | None = None,
) -> tuple[str, Path]:
    """Make an entry in the cache of two parallel texts: its name, and its folder, which is like dataset_info/.

    What is not given is a language by the file's ending (test.en), else as in `like`. SpecError: something is not
    known, or they are no parallel UTF-8 texts; PrerequisiteError: one cannot be read.
    """
    text = read_pairs([read_text_file(source), read_text_file(reference)], [str(source), str(reference)])
    if not text.sources:
        raise SpecError(f"no line has text in both {source} and {reference}")
    if text.blank_pairs:
        what = "%s and %s: %d of their pairs have a blank side and are left out"
        log.warning(what, source, reference, text.blank_pairs)
    given = {
        "source_lang": source_lang or _language(source) or (like.source_lang if like else None),
        "target_lang": target_lang or _language(reference) or (like.target_lang if like else None),
        "instruction": instruction or (like.instruction if like else None),
    }
    for field in [field for field, value in given.items() if not value]:
        what = f"{field.replace('_', ' ')} of {source} is not known"
        raise SpecError(what, f"give it: --{field.replace('_', '-')}")
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", source.stem).strip("._-") or "pair"
    name = f"{stem[:40]}-{sha256_json([[text.sources, text.references], given])[:8]}"
    folder = cache_folder() / "testsets" / name
    texts = ["".join(f"{line}\n" for line in side).encode() for side in (text.sources, text.references)]
    copies = dict(zip((f"{name}/source.txt", f"{name}/reference.txt"), texts, strict=True))
    description = f"{source.name} and {reference.name}, given on the command line"
    entry = quoted_yaml(_entry(description, given, copies, len(text.sources)))
    (folder / name).mkdir(parents=True, exist_ok=True)
    for file, content in {**copies, f"{name}.yaml": entry.encode()}.items():
        atomic_write(folder / file, content)
    return name, folder


def _language(path: Path) -> str | None:
    code = path.suffix[1:]
    return code if re.fullmatch("[a-z]{2}", code) else None
