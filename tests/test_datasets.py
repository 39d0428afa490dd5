"""Datasets: entries, archives, texts. Run: pytest tests/test_datasets.py."""

import hashlib
import io
import itertools
import json
import tarfile
import urllib.request
from urllib.error import URLError

import pytest

from orchestrator.data.datasets import (
    Archive,
    ArchiveStore,
    ParallelText,
    entry_folders,
    list_entries,
    load_entry,
    load_split,
    normalize,
    read_members,
    sample_pairs,
    text_sha256,
    write_training_file,
)
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import shipped
from tests.reports import flat

SHIPPED = shipped("dataset_info")
INSTRUCTION = "Translate the following English sentence into German."
# What readers that split on more than \n, or that trust a locale, get wrong.
HARD_SENTENCES = [
    "a\x85b", "a\u2028b", 'quote " and \\', "tab\tx", "größer 😀", "nul \0 x", "a\rb", " spaces ", "{{ x }}", "1e-4",
]  # fmt: skip
HEAD = f"description: a toy\nlicense: CC0-1.0\nsource_lang: en\ntarget_lang: de\ninstruction: {INSTRUCTION}\nsplits:\n"
ARCHIVE = f'{{url: "http://localhost/x", sha256: "{"0" * 64}", size_bytes: 1}}'


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def parallel(sources):
    references = [f"T {source}" for source in sources]
    return ParallelText(sources, references, 0, text_sha256(sources, references), "toy train")


@pytest.fixture
def toy(tmp_path):
    def make(source=b"a\nb\n", target=b"A\nB\n", pairs=2):
        (tmp_path / "toy").mkdir()
        (tmp_path / "toy" / "train.en").write_bytes(source)
        (tmp_path / "toy" / "train.de").write_bytes(target)
        sums = f'{{source: "{sha256(source)}", target: "{sha256(target)}"}}'
        split = f"  train: {{source: toy/train.en, target: toy/train.de, sha256: {sums}, pairs: {pairs}}}\n"
        (tmp_path / "toy.yaml").write_text(HEAD + split)
        return train_split("toy", tmp_path)

    return make


def train_split(name, folder):
    return load_split(load_entry(name, [folder]), "train", ArchiveStore(None, folder))


def test_the_shipped_entries_have_one_instruction_and_are_not_tested_on_what_they_train(tmp_path):
    entries = {name: load_entry(name, [SHIPPED]) for name in list_entries([SHIPPED])}
    assert {each.entry.instruction for each in entries.values()} == {INSTRUCTION}
    captions = entries["captions_en_de"]
    splits = {name: load_split(captions, name, ArchiveStore(None, tmp_path)) for name in captions.entry.splits}
    assert {name: len(text.sources) for name, text in splits.items()} == {"train": 500, "validation": 50, "test": 100}
    for one, other in itertools.combinations(splits.values(), 2):
        assert set(map(normalize, one.sources)).isdisjoint(map(normalize, other.sources))


def test_the_workspace_hides_a_shipped_entry_of_the_same_name(tmp_path):
    (tmp_path / "captions_en_de.yaml").write_text("")
    entries = list_entries(entry_folders(tmp_path))
    assert entries["captions_en_de"] == tmp_path / "captions_en_de.yaml"
    assert entries["multi30k_en_de"].parent == SHIPPED
    assert entry_folders(SHIPPED) == [SHIPPED]


@pytest.mark.parametrize("name", ["../toy", "", "toy.yaml", "multi30k_de_en"])
def test_an_unknown_dataset_brings_all_names(name):
    with pytest.raises(SpecError, match=f"no dataset '{name}'") as error:
        load_entry(name, [SHIPPED])
    assert "captions_en_de, multi30k_en_de" in error.value.remedy
    assert ("did you mean 'multi30k_en_de'?" in error.value.message) is (name == "multi30k_de_en")


def test_every_problem_of_an_entry_is_reported_at_its_place(tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_text("""\
description: a toy
licence: CC0-1.0
source_lang: English
target_lang: de
instruction: " "
splits:
  train: {archive: train.tgz, source: a, target: b, pairs: 0}
  test: {source: /etc/passwd, target: ../x, sha256: {sorce: abc}, pair: 3}
  t/1: {archive: x, source: a, target: b, pairs: 1}
archives:
  train.tgz: {url: "file:///etc/passwd", sha256: 00, size_bytes: 1}
""")
    with pytest.raises(SpecError) as error:
        load_entry("toy", [tmp_path])
    message = "\n".join(flat(error.value.message))
    for expected in (
        f"{file}:2:1: licence: unknown field; did you mean 'license'?",
        ": license: missing",
        f"{file}:5:1: instruction: ",
        "splits.test.source: expected a path inside dataset_info/",
        "splits.test.target: expected a path inside dataset_info/",
        "splits.test.sha256.sorce: unknown field; did you mean 'source'?",
        "splits.t/1: String should match",
        "archives.train.tgz.url: ",
        "archives.train.tgz.sha256: ",
    ):
        assert expected in message
    assert error.value.remedy == f"edit {file}"


def test_an_unknown_split_or_archive_brings_the_nearest_name(tmp_path):
    split = "  train: {archive: train.tgz, source: a, target: b, pairs: 1}\n"
    (tmp_path / "toy.yaml").write_text(f"{HEAD}{split}archives:\n  train.tar.gz: {ARCHIVE}\n")
    dataset = load_entry("toy", [tmp_path])
    with pytest.raises(SpecError, match=r"splits\.train\.archive: archives has no 'train\.tgz'"):
        load_split(dataset, "train", ArchiveStore(None, tmp_path))
    with pytest.raises(SpecError, match=r"toy has no split 'trian'; did you mean 'train'\?; it has: train"):
        load_split(dataset, "trian", ArchiveStore(None, tmp_path))


@pytest.mark.parametrize(
    ("source", "target", "sources", "references", "blank_pairs"),
    [
        (b"a\n\nc\nd\n\n", b"A\nB\n \t\nD\n\n", ["a", "d"], ["A", "D"], 3),
        ("a\x85b\u2028c\x0bd\x0c\n g \n".encode(), b"A\nB\n", ["a\x85b\u2028c\x0bd\x0c", " g "], ["A", "B"], 0),
        (b"\xef\xbb\xbfa\r\nb\r\n", b"A\nB", ["a", "b"], ["A", "B"], 0),
    ],
)  # fmt: skip
def test_only_a_newline_ends_a_line_and_blank_sides_are_left_out(source, target, sources, references, blank_pairs, toy):
    text = toy(source, target, len(sources))
    assert (text.sources, text.references, text.blank_pairs) == (sources, references, blank_pairs)
    assert (text.sha256, text.origin) == (text_sha256(sources, references), "toy train")


@pytest.mark.parametrize(
    ("source", "target", "pairs", "expected"),
    [
        (b"a\nb\n", b"A\n\xfcber\n", 2, r"toy/train\.de, line 2: not UTF-8 text \("),
        (b"a\nb\nc\n", b"A\nB\n", 2, r"train\.en has 3 lines, .*train\.de has 2"),
        (b"a\n\n", b"A\n\n", 2, r"splits\.train\.pairs: expected 2 pairs, found 1 \(and 1 with a blank"),
        (b"a\nb\n", b"A\nB\n", 1, r"expected 1 pairs, found 2"),
    ],
)
def test_texts_that_are_not_what_the_entry_says_are_reported_with_their_place(source, target, pairs, expected, toy):
    with pytest.raises(SpecError, match=expected):
        toy(source, target, pairs)


def test_a_file_that_is_not_the_one_of_the_entry_is_reported(toy, tmp_path):
    toy()
    path = tmp_path / "toy" / "train.de"
    meant, found = sha256(path.read_bytes()), sha256(b"A\n")
    path.write_bytes(b"A\n")
    with pytest.raises(PrerequisiteError, match=f"sha256 is {found}, not {meant}"):
        train_split("toy", tmp_path)
    path.unlink()
    with pytest.raises(PrerequisiteError, match=r"toy/train\.de cannot be read: No such file"):
        train_split("toy", tmp_path)


def test_without_a_seed_the_first_are_taken_and_with_one_the_same_on_every_machine():
    text = parallel([f"s {number}" for number in range(100)])
    assert sample_pairs(text, 3).sources == ["s 0", "s 1", "s 2"]
    for n, seed in ((None, 5), (100, 5), (101, None)):
        assert sample_pairs(text, n, seed) is text
    drawn = sample_pairs(text, 5, 1)
    assert drawn.sources == [f"s {number}" for number in (8, 17, 32, 72, 97)]
    assert drawn.references == [f"T {source}" for source in drawn.sources]
    assert drawn.sha256 == text_sha256(drawn.sources, drawn.references)


def test_the_training_file_has_a_record_for_each_pair_in_plain_ascii(tmp_path):
    path = tmp_path / "data" / "train.jsonl"
    write_training_file(parallel(HARD_SENTENCES), INSTRUCTION, path)
    assert path.read_bytes().isascii()
    records = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert records == [{"instruction": INSTRUCTION, "input": text, "output": f"T {text}"} for text in HARD_SENTENCES]


def tar_bytes(files, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_members_are_found_with_and_without_a_leading_dot(mode, tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes({"./a": b"A", "b": b"B"}, mode))
    assert read_members(path, ["a", "b", "./a"]) == [b"A", b"B", b"A"]
    with pytest.raises(SpecError, match=r"has no member 'c'") as error:
        read_members(path, ["c"])
    assert "'a', 'b'" in error.value.remedy
    assert [file.name for file in tmp_path.iterdir()] == ["x.tar"]


def special(kind, **fields):
    member = tarfile.TarInfo("a")
    member.type = kind
    for name, value in fields.items():
        setattr(member, name, value)
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *((special(kind, linkname="/etc/passwd"), "is no plain file") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)),
        *((special(kind), "is no plain file") for kind in (tarfile.CHRTYPE, tarfile.DIRTYPE)),
        (special(tarfile.REGTYPE, size=1 << 40), "unexpected end of data"),
        (tar_bytes({"a": bytes(1001)}), "is no plain file of at most 1000 bytes"),
        (b"<!DOCTYPE html><title>Sign in</title>" * 40, "cannot be read as a tar archive"),
        (tar_bytes({"a": bytes(100)})[:60], "cannot be read as a tar archive"),
        (b"\xfd7zXZ\x00" + bytes(100), "cannot be read as a tar archive"),
    ],
    ids=map(str, range(9)),  # gzip's header has the time
)
def test_a_hostile_archive_is_an_error_that_says_why(content, expected, tmp_path):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(SpecError, match=expected):
        read_members(tmp_path / "x.tar", ["a"], max_bytes=1000)


@pytest.fixture
def web(monkeypatch):
    """The pages there are, by address, and the addresses that were fetched."""
    pages, fetched = {}, []

    def urlopen(url, timeout):
        fetched.append(url)
        if url not in pages:
            raise URLError("no such page")
        return io.BytesIO(pages[url])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return pages, fetched


URL = "https://example.org/x.tgz"
CONTENT = tar_bytes({"train.en": b"a\nb\n", "train.de": b"A\nB\n"})
PACKED = Archive(url=URL, sha256=sha256(CONTENT), size_bytes=len(CONTENT))


def test_an_archive_is_fetched_once_and_then_taken_from_the_cache(web, tmp_path):
    pages, fetched = web
    pages[URL] = CONTENT
    store = ArchiveStore(None, tmp_path / "cache")
    path = store.path("x.tgz", PACKED)
    assert path == tmp_path / "cache" / PACKED.sha256 / "x.tgz" and path.read_bytes() == CONTENT
    assert store.path("x.tgz", PACKED) == path and fetched == [URL]
    assert [file.name for file in path.parent.iterdir()] == ["x.tgz"]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(PrerequisiteError, match=sha256(CONTENT[:-1])) as error:
        store.path("x.tgz", PACKED)
    assert f"rm '{path}'" in error.value.remedy


def test_the_folder_given_comes_before_cache_and_network_and_a_wrong_archive_in_it_is_reported(web, tmp_path):
    store = ArchiveStore(tmp_path / "given", tmp_path)
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "x.tgz").write_bytes(CONTENT)
    assert store.path("x.tgz", PACKED).parent == tmp_path / "given"
    (tmp_path / "given" / "x.tgz").write_bytes(b"other")
    with pytest.raises(PrerequisiteError, match="is not the archive that the entry means"):
        store.path("x.tgz", PACKED)
    assert web[1] == []


@pytest.mark.parametrize(
    ("pages", "expected"),
    [({URL: CONTENT + b"xx"}, f"it is another file: .*, not {sha256(CONTENT)}"), ({}, "cannot be had from .*no such")],
)
def test_what_is_not_the_archive_is_not_kept(pages, expected, web, tmp_path):
    web[0].update(pages)
    with pytest.raises(PrerequisiteError, match=expected) as error:
        ArchiveStore(None, tmp_path).path("x.tgz", PACKED)
    assert "put x.tgz into a folder and name it: --from DIR, or ORCHESTRATOR_ARCHIVES=DIR" in error.value.remedy
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_split_in_an_archive_loads_like_one_in_files(web, tmp_path, toy):
    web[0][URL] = CONTENT
    split = "  train: {archive: x.tgz, source: train.en, target: train.de, pairs: 2}\n"
    (tmp_path / "packed.yaml").write_text(f"{HEAD}{split}archives:\n  x.tgz: {PACKED.model_dump_json()}\n")
    packed = train_split("packed", tmp_path)
    assert packed.sources == ["a", "b"] and packed.sha256 == toy().sha256
