"""Which sentences a benchmark asks, and pairs of files. Run: pytest tests/test_testset.py."""

import pytest

from orchestrator.data.archives import ArchiveStore
from orchestrator.data.datasets import Entry, FileSplit, ParallelText, Sums, load_entry, load_split, text_sha256
from orchestrator.data.testset import FilePair, chosen, said
from orchestrator.errors import PrerequisiteError, SpecError

SOURCES = [f"source {number}" for number in range(100)]
REFERENCES = [f"reference {number}" for number in range(100)]
TEXT = ParallelText(SOURCES, REFERENCES, blank_pairs=0, sha256="x", lines=list(range(1, 101)))
LIKE = Entry(
    description="d", license="l", source_lang="en", target_lang="de", instruction="Translate.",
    splits={"test": FileSplit(source="a", target="b", sha256=Sums(source="0" * 64, target="0" * 64), pairs=1)},
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_seed_they_are_the_first():
    assert chosen(TEXT, 3, None).sources == SOURCES[:3]
    assert chosen(TEXT, None, 5) is TEXT, "a seed without a number takes all"
    assert chosen(TEXT, 100, 5) is TEXT


def test_a_seed_draws_others_the_same_ones_each_time_in_the_test_sets_order():
    drawn = chosen(TEXT, 10, 7)
    assert drawn.sources == chosen(TEXT, 10, 7).sources != chosen(TEXT, 10, 8).sources
    places = [SOURCES.index(source) for source in drawn.sources]
    assert places == sorted(places) != list(range(10))
    assert [REFERENCES.index(reference) for reference in drawn.references] == places
    assert drawn.lines == [place + 1 for place in places]
    assert drawn.sha256 == text_sha256(drawn.sources, drawn.references)


def test_a_seed_draws_the_same_sentences_on_every_machine():
    assert chosen(TEXT, 5, 1).sources == [f"source {number}" for number in (8, 17, 32, 72, 97)]


def test_what_was_asked_is_said():
    assert said(100, 100, None) == "all 100"
    assert said(10, 100, None) == "the first 10 of 100"
    assert said(10, 100, 7) == "drawn with seed 7: 10 of 100"


def test_a_pair_of_files_is_a_dataset_like_any_other(tmp_path):
    source = write(tmp_path, "news.en", "A dog.\n\nTwo men.\n")
    reference = write(tmp_path, "news.de", "Ein Hund.\n\nZwei Männer.\n")
    name, folder = FilePair(source, reference).entry(LIKE)
    dataset = load_entry(name, [folder])
    assert (dataset.entry.source_lang, dataset.entry.target_lang) == ("en", "de")
    assert dataset.entry.instruction == "Translate."
    text = load_split(dataset, "test", ArchiveStore.from_environment(None))
    assert (text.sources, text.references) == (["A dog.", "Two men."], ["Ein Hund.", "Zwei Männer."])


def test_another_text_or_instruction_has_another_name(tmp_path):
    source, reference = write(tmp_path, "a.en", "A dog.\n"), write(tmp_path, "a.de", "Ein Hund.\n")
    names = {FilePair(source, reference, instruction=word).entry(LIKE)[0] for word in ("One.", "Two.")}
    write(tmp_path, "a.de", "Ein Hund!\n")
    names.add(FilePair(source, reference, instruction="One.").entry(LIKE)[0])
    assert len(names) == 3


def test_files_that_are_not_parallel_are_refused(tmp_path):
    source, reference = write(tmp_path, "a.en", "A dog.\nTwo.\n"), write(tmp_path, "a.de", "Ein Hund.\n")
    name, folder = FilePair(source, reference).entry(LIKE)
    with pytest.raises(SpecError, match="not parallel"):
        load_split(load_entry(name, [folder]), "test", ArchiveStore.from_environment(None))


@pytest.mark.parametrize(
    ("names", "given", "missing"),
    [
        (("a.txt", "a.de"), {}, "source lang"),
        (("a.en", "a.txt"), {"source_lang": "en"}, "target lang"),
        (("a.en", "a.de"), {}, "instruction"),
    ],
)
def test_what_is_not_known_is_asked_for(tmp_path, names, given, missing):
    source, reference = (write(tmp_path, name, "x\n") for name in names)
    with pytest.raises(SpecError, match=f"{missing} of .* is not known") as error:
        FilePair(source, reference, **given).entry(None)
    assert f"--{missing.replace(' ', '-')}" in error.value.remedy


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(PrerequisiteError, match=r"none\.en cannot be read"):
        FilePair(tmp_path / "none.en", tmp_path / "none.de").entry(LIKE)


@pytest.mark.parametrize("name", ['it\'s a "test".en', "日本.en", "..en", "a b; echo foo.en"])
def test_any_files_name_gives_a_name_that_a_dataset_may_have(tmp_path, name):
    source, reference = write(tmp_path, name, "A dog.\n"), write(tmp_path, "a.de", "Ein Hund.\n")
    found, folder = FilePair(source, reference, source_lang="en").entry(LIKE)
    assert load_entry(found, [folder]).name == found
