"""Which benchmarks words mean, and which cannot be compared. Run: pytest tests/test_finished.py."""

import json
import shutil

import pytest

from orchestrator.benchmark.finished import SCORES_VERSION, find_benchmarks
from orchestrator.errors import PrerequisiteError, SpecError
from tests.benchmark_folders import REFERENCES, STAMP, add_benchmark, workspace

GOOD, BAD = REFERENCES, [line.replace("e", "a") for line in REFERENCES]


@pytest.fixture
def place(tmp_path):
    return workspace(tmp_path)


def found(place, *words, testset=None):
    return [each.folder.name for each in find_benchmarks(words, place, testset)]


def test_a_run_is_its_output_and_a_label_is_what_it_says(place):
    for of in ("base", "checkpoint-5", "output"):
        add_benchmark(place, GOOD, of=of)
    assert found(place, "demo@base", "demo") == ["base-toy-test", "output-toy-test"]
    assert found(place, "demo@checkpoint-5", f"demo-{STAMP}@output") == ["checkpoint-5-toy-test", "output-toy-test"]


def test_of_a_run_that_trained_nothing_the_run_is_what_there_is(place):
    add_benchmark(place, GOOD)
    add_benchmark(place, BAD, run="other", of="server")
    assert found(place, "demo", "other") == ["output-toy-test", "server-toy-test"]


def test_several_checkpoints_and_no_output_is_a_question(place):
    for of in ("checkpoint-5", "checkpoint-10"):
        add_benchmark(place, GOOD, of=of)
    with pytest.raises(SpecError, match="which of demo") as error:
        found(place, "demo", "demo@checkpoint-5")
    assert error.value.remedy == "one of: demo@checkpoint-5, demo@checkpoint-10"


def test_the_newest_of_the_same_test_set_and_prompt_is_taken(place):
    """Not the newest of each: base has no benchmark of the newer prompt, nor of the whole test set."""
    add_benchmark(place, GOOD, of="base")
    add_benchmark(place, GOOD, of="base")
    add_benchmark(place, GOOD)
    add_benchmark(place, GOOD, prompts="another")
    add_benchmark(place, GOOD[:5], references=REFERENCES[:5])
    assert found(place, "demo@base", "demo") == ["base-toy-test-2", "output-toy-test"]
    assert found(place, "demo", "demo@base") == ["output-toy-test", "base-toy-test-2"]


def test_an_incomplete_benchmark_is_none(place):
    add_benchmark(place, GOOD, of="base")
    add_benchmark(place, GOOD)
    add_benchmark(place, GOOD, status="incomplete")
    assert found(place, "demo@base", "demo") == ["base-toy-test", "output-toy-test"]
    add_benchmark(place, GOOD, run="broken", status="incomplete")
    with pytest.raises(SpecError) as error:
        found(place, "demo", "broken")
    assert error.value.message == "broken has no complete benchmark; it has: toy:test (incomplete)"
    assert error.value.remedy == "orchestrator benchmark broken"


def test_the_test_set_can_be_named_with_its_split(place):
    for of in ("base", "output"):
        for testset, split in (("toy", "test"), ("toy", "valid"), ("news", "test")):
            add_benchmark(place, GOOD, of=of, testset=testset, split=split)
    assert found(place, "demo@base", "demo") == ["base-news-test", "output-news-test"]
    assert found(place, "demo@base", "demo", testset="toy") == ["base-toy-valid", "output-toy-valid"]
    assert found(place, "demo@base", "demo", testset="toy:test") == ["base-toy-test", "output-toy-test"]
    with pytest.raises(SpecError) as error:
        found(place, "demo@base", "demo", testset="tiy:test")
    assert (
        "demo@base has no complete benchmark of tiy:test; did you mean 'toy'?; it has: news:test" in error.value.message
    )
    assert error.value.remedy == "orchestrator benchmark demo@base --testset tiy --split test"


def test_a_folder_is_that_benchmark_also_outside_a_workspace(place, tmp_path):
    one, other = add_benchmark(place, GOOD), add_benchmark(place, BAD, of="base")
    shutil.copytree(other, tmp_path / "elsewhere")
    assert found(place, str(one), "demo@base") == ["output-toy-test", "base-toy-test"]
    assert found(place, f"runs/demo-{STAMP}/benchmarks/base-toy-test", "demo") == ["base-toy-test", "output-toy-test"]
    names = [each.name for each in find_benchmarks([str(one), str(tmp_path / "elsewhere")], place, None)]
    assert names == [f"demo-{STAMP}/output-toy-test", "elsewhere"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"testset": "news"}, "test set: demo@base toy, demo news"),
        ({"split": "valid"}, "split: demo@base test, demo valid"),
        ({"prompts": "another"}, "hash of the prompts: demo@base 148de9c5a7a4, demo ae448ac86c4e"),
        ({"references": [*REFERENCES[:-1], "Anders."]}, "hash of the test set's text: demo@base "),
        ({"hypotheses": GOOD[:5], "references": REFERENCES[:5]}, "number of segments: demo@base 45, demo 5"),
    ],
    ids=["test set", "split", "prompt", "text", "segments"],
)
def test_what_cannot_be_compared_is_refused_with_what_differs(place, changes, said):
    add_benchmark(place, GOOD, of="base")
    add_benchmark(place, **{"hypotheses": GOOD, **changes})
    with pytest.raises(SpecError) as error:
        found(place, "demo@base", "demo")
    assert error.value.message.startswith("these cannot be compared:\n")
    assert f"  {said}" in error.value.message


def test_three_that_agree_only_two_by_two_are_refused(place):
    for of, testsets in (("a", ("x", "y")), ("b", ("y", "z")), ("c", ("z", "x"))):
        for testset in testsets:
            add_benchmark(place, GOOD, of=of, testset=testset)
    with pytest.raises(SpecError, match="cannot be compared"):
        found(place, "demo@a", "demo@b", "demo@c")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo"], "two benchmarks or more"),
        (["demo", "demo@output"], "demo and demo@output are the same benchmark"),
        (["demo", "dmo"], "no run 'dmo'.*did you mean 'demo'"),
        (["demo", "demo@bass"], "no benchmark of bass; did you mean 'base'"),
        (["demo", ""], "no run ''"),
    ],
)
def test_words_that_mean_no_two_benchmarks(place, words, message):
    add_benchmark(place, GOOD)
    add_benchmark(place, BAD, of="base")
    with pytest.raises(SpecError, match=message):
        found(place, *words)


def test_scores_of_the_first_version_are_read_and_those_of_a_later_one_refused(place):
    add_benchmark(place, GOOD, of="base", version=1)
    add_benchmark(place, BAD)
    one, other = find_benchmarks(["demo@base", "demo"], place, None)
    assert (one.stored.triage, other.stored.triage.empty.count) == (None, 0)
    add_benchmark(place, BAD, run="later", version=SCORES_VERSION + 1)
    with pytest.raises(PrerequisiteError, match=f"of version {SCORES_VERSION + 1}"):
        found(place, "demo", "later")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema_version": "x"}', "\xff"])
def test_a_damaged_result_says_which(place, content):
    add_benchmark(place, GOOD, of="base")
    path = add_benchmark(place, GOOD) / "scores.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(PrerequisiteError, match=r"scores\.json cannot be read"):
        found(place, "demo@base", "demo")


def test_a_benchmark_that_was_cleared_away_is_passed_over(place):
    add_benchmark(place, GOOD, of="base")
    add_benchmark(place, GOOD)
    shutil.rmtree(add_benchmark(place, GOOD))
    assert found(place, "demo@base", "demo") == ["base-toy-test", "output-toy-test"]


def test_texts_that_are_not_all_there_are_refused(place):
    add_benchmark(place, GOOD, of="base")
    path = add_benchmark(place, GOOD)
    (path / "hypotheses.txt").write_text("one\n")
    benchmark = find_benchmarks(["demo@base", "demo"], place, None)[1]
    with pytest.raises(PrerequisiteError, match="has 1 lines, but 45 segments were scored"):
        benchmark.lines("hypotheses")
    (path / "sources.txt").unlink()
    with pytest.raises(PrerequisiteError, match=r"sources\.txt cannot be read"):
        benchmark.lines("sources")
    (path / "benchmark.yaml").write_text("source_lang: en\n")
    with pytest.raises(PrerequisiteError, match="says no source_lang"):
        benchmark.asked()
    assert json.loads((path / "scores.json").read_text())["status"] == "complete"
