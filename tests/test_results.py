"""scores.json of every version, and which benchmarks names mean."""

import shutil
from datetime import UTC, datetime

import pytest

from orchestrator.benchmark.compare import compare
from orchestrator.benchmark.results import SCHEMA_VERSION, find_benchmarks, find_compared, read_result
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.groups import Group, read_axes
from orchestrator.runs.groups import Point as GroupPoint
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import GroupDir, RunDir
from tests.benchmark_folders import REFERENCES, STAMP, add_benchmark, workspace

GOOD, BAD = REFERENCES, [line.replace("e", "a") for line in REFERENCES]
GROUP = f"demo-sweep-{STAMP}"


@pytest.fixture
def place(tmp_path):
    return workspace(tmp_path)


def found(place, *names, testset=None):
    return [each.folder.name for each in find_benchmarks(names, place, testset)]


def test_a_run_is_its_output_and_a_label_is_what_it_says(place):
    for of in ("base", "checkpoint-5", "output"):
        add_benchmark(place, GOOD, of=of)
    add_benchmark(place, BAD, run="other", of="server")
    assert found(place, "demo@base", "demo") == ["base-toy-test", "output-toy-test"]
    assert found(place, "demo@checkpoint-5", f"demo-{STAMP}@output") == ["checkpoint-5-toy-test", "output-toy-test"]
    assert found(place, "demo", "other") == ["output-toy-test", "server-toy-test"], "a run that trained nothing"


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
    shutil.rmtree(add_benchmark(place, GOOD))
    add_benchmark(place, GOOD, status="incomplete")
    assert found(place, "demo@base", "demo") == ["base-toy-test-2", "output-toy-test"]


def test_an_incomplete_benchmark_is_none(place):
    add_benchmark(place, GOOD)
    add_benchmark(place, GOOD, run="broken", status="incomplete")
    with pytest.raises(SpecError) as error:
        found(place, "demo", "broken")
    assert error.value.message == "broken has no complete benchmark; it has: toy:test (incomplete)"
    assert error.value.remedy == "orchestrator benchmark broken"


def test_the_test_set_can_be_named_with_its_split(place):
    for of in ("base", "output"):
        for testset, split in (("sacrebleu:wmt14/en-de", "test"), ("toy", "test"), ("toy", "valid"), ("news", "test")):
            add_benchmark(place, GOOD, of=of, testset=testset.replace("/", "-"), split=split)
    assert found(place, "demo@base", "demo") == ["base-news-test", "output-news-test"]
    assert found(place, "demo@base", "demo", testset="toy") == ["base-toy-valid", "output-toy-valid"]
    assert found(place, "demo@base", "demo", testset="toy:test") == ["base-toy-test", "output-toy-test"]
    assert "wmt14" in found(place, "demo@base", "demo", testset="sacrebleu:wmt14-en-de:test")[0]
    with pytest.raises(SpecError) as error:
        found(place, "demo@base", "demo", testset="tiy:test")
    assert "demo@base has no complete benchmark of tiy:test; did you mean 'toy'?" in error.value.message
    assert error.value.remedy == "orchestrator benchmark demo@base --testset tiy --split test"


def test_a_folder_is_that_benchmark_also_outside_a_workspace(place, tmp_path):
    one, other = add_benchmark(place, GOOD), add_benchmark(place, BAD, of="base")
    shutil.copytree(other, tmp_path / "elsewhere")
    assert found(place, f"runs/demo-{STAMP}/benchmarks/base-toy-test", "demo") == ["base-toy-test", "output-toy-test"]
    names = [each.name for each in find_benchmarks([str(one), str(tmp_path / "elsewhere")], place, None)]
    assert names == [f"demo-{STAMP}/output-toy-test", "elsewhere"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"testset": "news"}, "test set: demo@base toy, demo news"),
        ({"split": "valid"}, "split: demo@base test, demo valid"),
        ({"prompts": "another"}, "hash of the prompts: demo@base 148de9c5a7a4, demo ae448ac86c4e"),
        ({"references": [*REFERENCES[:-1], "Anders."]}, "hash of the test set's text: demo@base "),
        ({"hypotheses": GOOD[:5], "references": REFERENCES[:5]}, "number of segments: demo@base 45, demo 5"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_differs(place, changes, words):
    add_benchmark(place, GOOD, of="base")
    add_benchmark(place, **{"hypotheses": GOOD, **changes})
    with pytest.raises(SpecError) as error:
        found(place, "demo@base", "demo")
    assert error.value.message.startswith("these cannot be compared:\n") and f"  {words}" in error.value.message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["demo"], "two benchmarks or more"),
        (["demo", "demo@output"], "demo and demo@output are the same benchmark"),
        (["demo", "dmo"], "no run 'dmo'.*did you mean 'demo'"),
        (["demo", "demo@bass"], "no benchmark of bass; did you mean 'base'"),
        (["demo", ""], "no run ''"),
    ],
)
def test_names_that_mean_no_two_benchmarks(place, names, message):
    add_benchmark(place, GOOD)
    add_benchmark(place, BAD, of="base")
    with pytest.raises(SpecError, match=message):
        found(place, *names)


def test_results_of_earlier_versions_are_read_and_of_a_later_one_refused(place):
    first, second = (add_benchmark(place, GOOD, of=f"v{version}", version=version) for version in (1, 2))
    add_benchmark(place, BAD)
    assert (read_result(first).diagnostics, read_result(first).n_requested) == ({}, None)
    old = read_result(second)
    assert (old.n_requested, old.diagnostics["empty"].count, "numbers_lost" in old.diagnostics) == (45, 0, False)
    assert (old.request["target_lang"], old.speed) == ("de", None)
    comparison = compare(
        find_compared(["demo@v1", "demo@v2", "demo"], place, None), n_bootstrap=20, n_randomizations=64
    )
    assert [each.name for each in comparison.systems] == ["demo@v1", "demo@v2", "demo"]
    later = add_benchmark(place, BAD, run="later", version=SCHEMA_VERSION + 1)
    with pytest.raises(PrerequisiteError, match=f"of version {SCHEMA_VERSION + 1}"):
        read_result(later)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema_version": "x"}', "\xff"])
def test_a_damaged_result_says_which(place, content):
    path = add_benchmark(place, GOOD) / "scores.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(PrerequisiteError, match=r"scores\.json cannot be read"):
        read_result(path.parent)


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


def spoiled(every):
    """The references with each so-manieth made worse."""
    return [line if number % every else "Etwas anderes" for number, line in enumerate(REFERENCES, start=1)]


@pytest.fixture
def swept(place):
    """A group of three runs, the second the best, the third without a benchmark."""
    add_benchmark(place, spoiled(2), run="low")
    add_benchmark(place, spoiled(9), run="high")
    failed, at = RunDir(place.runs / f"none-{STAMP}"), datetime(2026, 11, 24, 10, 15, tzinfo=UTC)
    failed.path.mkdir()
    fields = {"created_at": at, "ended_at": at, "status": "failed", "spec_sha256": "0", "seed": 1}
    RunRecord(id=failed.id, name="none", **fields).save(failed)
    names = [f"{name}-{STAMP}" for name in ("low", "high", "none")]
    for name in names:
        RunRecord.load(RunDir(place.runs / name)).update(RunDir(place.runs / name), group=GROUP)
    folder = GroupDir(place.runs / GROUP)
    folder.path.mkdir()
    points = [GroupPoint(run=name, values=[str(r)], overrides=[]) for name, r in zip(names, (4, 8, 16), strict=True)]
    axes = read_axes(["train.lora_rank=4,8,16"])
    Group(id=GROUP, created_at=at, spec_file="x", axes=axes, points=points, with_benchmarks=True).save(folder)
    return place


def test_a_groups_runs_are_ranked_and_compared_with_the_best_for_all_pairs(swept):
    add_benchmark(swept, spoiled(3), run="base")
    ranked = find_compared([GROUP, "base"], swept, None)
    comparison = compare(ranked, ["bleu"], n_examples=0, n_bootstrap=50, n_randomizations=200)
    assert [each.name for each in comparison.systems] == ["lora_rank=8", "lora_rank=4", "base"]
    assert comparison.group == GROUP and comparison.systems[0].values == {"train.lora_rank": "8"}
    assert comparison.baseline == "lora_rank=8" and comparison.verdicts[0].startswith("lora_rank=4 is worse: ")
    assert comparison.n_comparisons == 3, "all pairs of three: these data picked the baseline"
    assert any("flatters it" in note for note in comparison.notes)
    assert f"not ranked: none-{STAMP} (lora_rank=16), failed: it has no complete benchmark" in comparison.notes


def test_the_metric_that_is_named_ranks_and_of_ter_the_lowest_is_best(swept):
    ranked = find_compared(["demo-sweep"], swept, "toy", ("ter",))
    assert [each.name for each in ranked.benchmarks] == ["lora_rank=8", "lora_rank=4"]
    assert ranked.notes[0].startswith("ranked by TER")


def test_a_group_with_one_benchmark_and_two_groups_are_refused(swept):
    with pytest.raises(SpecError, match="one group at a time"):
        find_compared([GROUP, GROUP], swept, None)
    (swept.runs / f"low-{STAMP}" / "record.json").unlink()
    with pytest.raises(SpecError, match=r"1 of 3 runs .* have a complete benchmark: a comparison takes two"):
        find_compared([GROUP], swept, None)
