"""sacrebleu's own test sets, out of its cache. Run: pytest tests/test_sacrebleu_sets.py."""

import subprocess
import sys

import pytest

from orchestrator.benchmark.results import find_benchmarks
from orchestrator.data.archives import ArchiveStore
from orchestrator.data.datasets import load_split
from orchestrator.data.sacrebleu_sets import sacrebleu_set
from orchestrator.data.testset import load_testset, told
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import shipped
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from tests.benchmark_folders import REFERENCES, add_benchmark, workspace

SOURCES = ["A dog runs over the green meadow.", "Two men talk in the street.", "It rains."]
TARGETS = ["Ein Hund läuft über die grüne Wiese.", "Zwei Männer reden auf der Straße.", "Es regnet."]


def put(folder, name, pair, **fields):
    """Files as sacrebleu leaves them when it has fetched a set."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for field, lines in fields.items():
        path = place / f"{name.replace('/', '_')}.{pair}.{field.replace('_', '-')}"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """sacrebleu reads $SACREBLEU once, when it is imported: its sets are told of another folder here."""
    from sacrebleu.dataset import DATASETS

    folder = tmp_path / "it's sacrebleu"
    for name in ("wmt14", "wmt14/full", "wmt21", "wmt20/tworefs"):
        monkeypatch.setattr(DATASETS[name], "_outdir", str(folder / name))
    return folder


@pytest.mark.parametrize(("name", "reference"), [("wmt14", "ref"), ("wmt14/full", "ref"), ("wmt21", "ref_A")])
def test_a_set_in_the_cache_is_a_dataset_like_any_other(cache, name, reference):
    put(cache, name, "en-de", **{"src": SOURCES, reference: TARGETS, "docid": ["1", "1", "1"]})
    found = sacrebleu_set(f"sacrebleu:{name}/en-de", "Translate.")
    assert (found.entry.source_lang, found.entry.target_lang) == ("en", "de")
    text = load_split(found, "test", ArchiveStore.from_environment(None))
    assert (text.sources, text.references) == (SOURCES, TARGETS)


def test_what_is_not_there_is_never_fetched_but_said_how(cache):
    with pytest.raises(PrerequisiteError, match="wmt14 en-de is not in sacrebleu's cache") as error:
        sacrebleu_set("sacrebleu:wmt14/en-de", "Translate.")
    assert "sacrebleu -t wmt14 -l en-de --echo src" in error.value.remedy
    put(cache, "wmt21", "en-de", src=SOURCES)
    with pytest.raises(PrerequisiteError, match=r"no .*wmt21\.en-de\.ref-A"):
        sacrebleu_set("sacrebleu:wmt21/en-de", "Translate.")
    assert not (cache / "wmt14").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sacrebleu:wmt14", "which language pair of wmt14"),
        ("sacrebleu:wmt14/en-dd", "no pair 'en-dd'; did you mean"),
        ("sacrebleu:wmt144/en-de", "no test set 'wmt144'; did you mean 'wmt14'"),
        ("sacrebleu:", "no test set ''"),
        ("sacrebleu:../../etc/passwd", "no test set"),
    ],
)
def test_a_name_that_sacrebleu_does_not_have_is_refused(cache, name, said):
    with pytest.raises(SpecError, match=said):
        sacrebleu_set(name, "Translate.")


def test_several_references_and_a_damaged_cache_are_refused(cache):
    put(cache, "wmt20/tworefs", "en-de", src=SOURCES, ref_0=TARGETS, ref_1=TARGETS)
    with pytest.raises(SpecError, match="2 references for each sentence"):
        sacrebleu_set("sacrebleu:wmt20/tworefs/en-de", "Translate.")
    put(cache, "wmt14", "en-de", src=SOURCES, ref=TARGETS[:2])
    with pytest.raises(PrerequisiteError, match=r"damaged: .*has 3 lines, .*has 2"):
        sacrebleu_set("sacrebleu:wmt14/en-de", "Translate.")


def test_the_instruction_is_its_own_or_that_of_the_training_in_the_same_languages(cache):
    put(cache, "wmt14", "en-de", src=SOURCES, ref=TARGETS)
    put(cache, "wmt14", "de-en", src=TARGETS, ref=SOURCES)

    def instruction(pair, trained_on, **fields):
        item = BenchmarkSpec(testset=f"sacrebleu:wmt14/{pair}", **fields)
        return load_testset(item, [shipped("dataset_info")], trained_on).entry.instruction

    assert instruction("en-de", ["captions_en_de"]) == "Translate the following English sentence into German."
    assert instruction("en-de", ["captions_en_de"], instruction="Say it in German.") == "Say it in German."
    for pair, trained_on in (("de-en", ["captions_en_de"]), ("en-de", [])):
        with pytest.raises(SpecError, match="is not known") as error:
            instruction(pair, trained_on)
        assert "--instruction" in error.value.remedy


def test_an_instruction_of_a_benchmark_changes_the_prompt_alone(cache):
    put(cache, "wmt14", "en-de", src=SOURCES, ref=TARGETS)
    plain = sacrebleu_set("sacrebleu:wmt14/en-de", "Translate.")
    other = told(plain, "Say it in German.")
    assert told(plain, None) is plain
    assert other.entry.instruction == "Say it in German."
    assert told(other, "Translate.") == plain


def test_benchmark_asks_a_set_as_the_run_was_trained_and_scores_as_sacrebleu_does(toy, tmp_path):
    cache = tmp_path / "cache"
    put(cache, "wmt14", "en-de", src=SOURCES, ref=TARGETS, docid=["1"] * 3, genre=["x"] * 3, origlang=["en"] * 3)
    words = ("benchmark", "toy", "--testset", "sacrebleu:wmt14")
    done = toy.run(*words, "--langpair", "en-de", "--json", SACREBLEU=str(cache))
    assert done.code == 0, done.err
    [result] = done.json()
    assert (result["testset"], result["n_requested"], result["n_testset"]) == ("sacrebleu:wmt14/en-de", 3, 3)
    folder = max(toy.runs.glob("*/benchmarks/*"), key=lambda path: path.stat().st_mtime)
    assert folder.name.startswith("output-sacrebleu-wmt14-en-de-test")
    assert result["request"]["instruction"] == "Translate the following English sentence into German."
    argv = [sys.executable, "-m", "sacrebleu", "-t", "wmt14", "-l", "en-de", "-i", "hypotheses.txt", "-w", "10", "-b"]
    environment = toy.full_environment({"SACREBLEU": str(cache)})
    said = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert float(said.stdout) == pytest.approx(result["scores"][0]["score"], abs=1e-9)
    for wrong, code in (((), 2), (("--langpair", "en-fr"), 2), (("--langpair", "fr-en"), 2)):
        assert toy.run(*words, *wrong, SACREBLEU=str(cache)).code == code
    missing = toy.run(*words, "--langpair", "en-de", SACREBLEU=str(tmp_path / "empty"))
    assert missing.code == 3 and "--echo src" in missing.err


def test_a_language_pair_is_for_a_set_of_sacrebleus(toy):
    done = toy.run("benchmark", "toy", "--langpair", "en-de")
    assert done.code == 2 and "--testset sacrebleu:wmt14 --langpair en-de" in done.err


def test_compare_knows_such_a_name_with_and_without_a_split(tmp_path):
    place, name = workspace(tmp_path), "sacrebleu:wmt14-en-de"
    for run in ("one", "two"):
        for testset in ("toy", name):
            add_benchmark(place, [f"{run} {line}" for line in REFERENCES], run=run, testset=testset)
    for word in (name, f"{name}:test"):
        assert {each.result.testset for each in find_benchmarks(["one", "two"], place, word)} == {name}
    with pytest.raises(SpecError, match="no complete benchmark"):
        find_benchmarks(["one", "two"], place, f"{name}:dev")
