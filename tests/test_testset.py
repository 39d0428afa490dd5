"""Which sentences a benchmark asks: an entry's, a pair of files, a set of sacrebleu's."""

import pytest

from orchestrator.data.datasets import ArchiveStore, Entry, FileSplit, Sums, load_entry, load_split
from orchestrator.data.testset import describe_subset, entry_of_files, load_testset
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import shipped
from orchestrator.specs.benchmark_spec import BenchmarkSpec

LIKE = Entry(
    description="d", license="l", source_lang="en", target_lang="de", instruction="Translate.",
    splits={"test": FileSplit(source="a", target="b", sha256=Sums(source="0" * 64, target="0" * 64), pairs=1)},
)  # fmt: skip
SOURCES = ["A dog runs over the green meadow.", "Two men talk in the street.", "It rains."]
TARGETS = ["Ein Hund läuft über die grüne Wiese.", "Zwei Männer reden auf der Straße.", "Es regnet."]


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(name, folder):
    return load_split(load_entry(name, [folder]), "test", ArchiveStore(None, folder))


def test_a_subset_is_described():
    assert describe_subset(100, 100, 7) == "all 100"
    assert describe_subset(99, 100, None) == "the first 99 of 100"
    assert describe_subset(10, 100, 0) == "drawn with seed 0: 10 of 100"


def test_a_pair_of_files_is_a_dataset_like_any_other(tmp_path):
    source = write(tmp_path, 'it\'s a "test"; 日本.en', "A dog.\n\nTwo men.\nIt rains.\n")
    reference = write(tmp_path, "news.de", "Ein Hund.\n\nZwei Männer.\n \n")
    name, folder = entry_of_files(source, reference, LIKE)
    entry = load_entry(name, [folder]).entry
    assert (entry.source_lang, entry.target_lang, entry.instruction) == ("en", "de", "Translate.")
    text = read(name, folder)
    assert (text.sources, text.references) == (["A dog.", "Two men."], ["Ein Hund.", "Zwei Männer."])


def test_another_text_or_instruction_has_another_name(tmp_path):
    source, reference = write(tmp_path, "a.en", "A dog.\n"), write(tmp_path, "a.de", "Ein Hund.\n")
    names = {entry_of_files(source, reference, LIKE, instruction=word)[0] for word in ("One.", "Two.", "Two.")}
    write(tmp_path, "a.de", "Ein Hund!\n")
    names.add(entry_of_files(source, reference, LIKE, instruction="One.")[0])
    assert len(names) == 3


def test_files_that_cannot_be_used_are_named_as_the_user_wrote_them(tmp_path):
    for source, reference, expected in (
        ("A dog.\nTwo.\n", "Ein Hund.\n", r"a\.en has 2 lines, .*a\.de has 1"),
        ("A dog.\n".encode("utf-16"), "Ein Hund.\n", r"a\.en, line 1: not UTF-8"),
        ("\n", " \n", r"no line has text in both .*a\.en and .*a\.de"),
    ):
        with pytest.raises(SpecError, match=expected):
            entry_of_files(write(tmp_path, "a.en", source), write(tmp_path, "a.de", reference), LIKE)
    with pytest.raises(PrerequisiteError, match=r"none\.en cannot be read: No such file"):
        entry_of_files(tmp_path / "none.en", tmp_path / "a.de", LIKE)


def test_what_is_not_known_is_asked_for(tmp_path):
    for names, given, missing in (
        (("a.txt", "a.de"), {}, "source lang"),
        (("a.en", "a.txt"), {"source_lang": "en"}, "target lang"),
        (("a.en", "a.de"), {}, "instruction"),
    ):
        source, reference = (write(tmp_path, name, "x\n") for name in names)
        with pytest.raises(SpecError, match=f"{missing} of .* is not known") as error:
            entry_of_files(source, reference, None, **given)
        assert f"--{missing.replace(' ', '-')}" in error.value.remedy


def put(folder, name, pair, **fields):
    """Files as sacrebleu leaves them when it has fetched a set."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for field, lines in {"docid": ["1"] * 3, "genre": ["x"] * 3, "origlang": ["en"] * 3, **fields}.items():
        path = place / f"{name.replace('/', '_')}.{pair}.{field.replace('_', '-')}"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """sacrebleu reads $SACREBLEU once, when it is imported: its sets are given another folder here."""
    from sacrebleu.dataset import DATASETS

    folder = tmp_path / "it's sacrebleu"
    for name in ("wmt14", "wmt14/full", "wmt20/tworefs"):
        monkeypatch.setattr(DATASETS[name], "_outdir", str(folder / name))
        monkeypatch.setattr(DATASETS[name], "_rawdir", str(folder / name / "raw"))
    return folder


def load(name, *trained_on, **fields):
    item = BenchmarkSpec(testset=f"sacrebleu:{name}", **fields)
    return load_testset(item, [shipped("dataset_info")], trained_on)


def test_a_set_that_cannot_be_fetched_comes_with_the_command_that_fetches_it(cache):
    with pytest.raises(PrerequisiteError, match=r"wmt14 en-de is not in .*, and cannot be fetched") as error:
        load("wmt14/en-de", instruction="Translate.")
    assert "sacrebleu -t wmt14 -l en-de --echo src" in error.value.remedy


def test_a_name_that_sacrebleu_does_not_have_is_refused():
    for name, expected, remedy in (
        ("wmt14/en-dd", "names no language pair of the set's", "cs-en"),
        ("wmt144/en-de", "no test set 'wmt144'; did you mean 'wmt14'", "sacrebleu --list"),
        ("../../etc/passwd", "no test set", "sacrebleu --list"),
    ):
        with pytest.raises(SpecError, match=expected) as error:
            load(name, instruction="Translate.")
        assert remedy in error.value.remedy


def test_several_references_and_a_damaged_cache_are_refused(cache):
    put(cache, "wmt20/tworefs", "en-de", src=SOURCES, ref_0=TARGETS, ref_1=TARGETS)
    put(cache, "wmt14", "en-de", src=SOURCES, ref=TARGETS[:2])
    for name, expected in (("wmt20/tworefs", "2 references for each"), ("wmt14", "has 3 lines, .*has 2")):
        with pytest.raises(SpecError, match=expected):
            load(f"{name}/en-de", instruction="Translate.")


def test_the_instruction_is_its_own_or_that_of_the_training_in_the_same_languages(cache, tmp_path):
    put(cache, "wmt14", "en-de", src=SOURCES, ref=TARGETS)
    put(cache, "wmt14", "de-en", src=TARGETS, ref=SOURCES)
    trained = load("wmt14/en-de", "captions_en_de").entry.instruction
    assert trained == "Translate the following English sentence into German."
    own = load("wmt14/en-de", "captions_en_de", instruction="Say it in German.")
    assert own.entry.instruction == "Say it in German."
    text = load_split(own, "test", ArchiveStore(None, tmp_path))
    assert (text.sources, text.references) == (SOURCES, TARGETS)
    for pair, trained_on in (("de-en", ["captions_en_de"]), ("en-de", [])):
        with pytest.raises(SpecError, match="is not known") as error:
            load(f"wmt14/{pair}", *trained_on)
        assert "--instruction" in error.value.remedy


def test_benchmark_asks_a_set_under_its_own_name(toy, tmp_path):
    cache = tmp_path / "sets"
    put(cache, "wmt14", "en-de", src=SOURCES, ref=TARGETS)
    done = toy.run("benchmark", "toy", "--testset", "sacrebleu:wmt14/en-de", "--json", SACREBLEU=str(cache))
    assert done.code == 0, done.err
    [result] = done.json()
    assert (result["testset"], result["n_requested"], result["n_testset"]) == ("sacrebleu:wmt14/en-de", 3, 3)
    assert list(toy.runs.glob("*/benchmarks/output-sacrebleu-wmt14-en-de-test*"))
