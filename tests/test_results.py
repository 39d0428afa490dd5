"""scores.json of every version, and which benchmarks names mean."""

import shutil

import pytest

from orchestrator.benchmark.compare import compare
from orchestrator.benchmark.results import SCHEMA_VERSION, find_benchmarks, read_result
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.groups import Group, read_axes
from orchestrator.runs.groups import Point as GroupPoint
from orchestrator.runs.record import now
from orchestrator.runs.rundir import GroupDir
from tests.benchmark_folders import REFERENCES, STAMP, add_benchmark

GOOD, BAD = REFERENCES, [line.replace("e", "a") for line in REFERENCES]


def found(workspace, *names, testset=None):
    return [each.folder.name for each in find_benchmarks(names, workspace, testset)]


def test_a_run_is_its_output_and_a_label_is_what_it_says(workspace):
    for of in ("base", "checkpoint-5", "output"):
        add_benchmark(workspace, GOOD, of=of)
    add_benchmark(workspace, BAD, run="other", of="server")
    assert found(workspace, "demo@base", "demo") == ["base-toy-test", "output-toy-test"]
    assert found(workspace, "demo@checkpoint-5", f"demo-{STAMP}@output") == ["checkpoint-5-toy-test", "output-toy-test"]
    assert found(workspace, "demo", "other") == ["output-toy-test", "server-toy-test"], "a run that trained nothing"


def test_the_newest_complete_one_of_the_same_test_set_and_prompt_is_taken(workspace):
    for of in ("base", "base", "output"):
        add_benchmark(workspace, GOOD, of=of)
    add_benchmark(workspace, GOOD, prompts="another")
    add_benchmark(workspace, GOOD[:5], references=REFERENCES[:5])
    shutil.rmtree(add_benchmark(workspace, GOOD))
    add_benchmark(workspace, GOOD, status="incomplete")
    assert found(workspace, "demo@base", "demo") == ["base-toy-test-2", "output-toy-test"]
    add_benchmark(workspace, GOOD, run="broken", status="incomplete")
    with pytest.raises(SpecError) as error:
        found(workspace, "demo", "broken")
    assert error.value.message == "broken has no complete benchmark; it has: toy:test (incomplete)"
    assert error.value.remedy == "orchestrator benchmark broken"


def test_the_test_set_can_be_named_with_its_split(workspace):
    for of in ("base", "output"):
        for testset, split in (("sacrebleu:wmt14-en-de", "test"), ("toy", "test"), ("toy", "valid"), ("news", "test")):
            add_benchmark(workspace, GOOD, of=of, testset=testset, split=split, metrics=("chrf",))
    for testset, folder in ((None, "news-test"), ("toy", "toy-valid"), ("toy:test", "toy-test")):
        assert found(workspace, "demo@base", "demo", testset=testset) == [f"base-{folder}", f"output-{folder}"]
    for testset in ("sacrebleu:wmt14-en-de", "sacrebleu:wmt14-en-de:test"):
        assert "wmt14" in found(workspace, "demo@base", "demo", testset=testset)[0]
    with pytest.raises(SpecError) as error:
        found(workspace, "demo@base", "demo", testset="tiy:test")
    assert "demo@base has no complete benchmark of tiy:test; did you mean 'toy'?" in error.value.message
    assert error.value.remedy == "orchestrator benchmark demo@base --testset tiy --split test"


def test_a_folder_is_that_benchmark_also_outside_a_workspace_and_no_two_have_one_name(workspace, tmp_path):
    one, other = add_benchmark(workspace, GOOD), add_benchmark(workspace, BAD, of="base")
    for name in ("a", "b"):
        shutil.copytree(other, tmp_path / name / "same")
    of_base = f"runs/demo-{STAMP}/benchmarks/base-toy-test"
    assert found(workspace, of_base, "demo") == ["base-toy-test", "output-toy-test"]
    names = [each.name for each in find_benchmarks([str(one), str(tmp_path / "a" / "same")], workspace, None)]
    assert names == [f"demo-{STAMP}/output-toy-test", "same"]
    paths = [str(tmp_path / name / "same") for name in "ab"]
    assert [each.name for each in find_benchmarks(paths, workspace, None)] == paths


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"testset": "news"}, "test set: demo@base toy, demo news"),
        ({"prompts": "another"}, "hash of the prompts: demo@base 148de9c5a7a4, demo ae448ac86c4e"),
        ({"references": [*REFERENCES[:-1], "Anders."]}, "hash of the test set's text: demo@base "),
        ({"hypotheses": GOOD[:5], "references": REFERENCES[:5]}, "number of segments: demo@base 45, demo 5"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_differs(workspace, changes, words):
    add_benchmark(workspace, GOOD, of="base")
    add_benchmark(workspace, **{"hypotheses": GOOD, **changes})
    with pytest.raises(SpecError) as error:
        found(workspace, "demo@base", "demo")
    assert error.value.message.startswith("these cannot be compared:\n") and f"  {words}" in error.value.message


def test_names_that_mean_no_two_benchmarks(workspace):
    add_benchmark(workspace, GOOD)
    add_benchmark(workspace, BAD, of="base")
    cases = {
        ("demo",): "two benchmarks or more",
        ("demo", "demo@output"): "demo and demo@output are the same benchmark",
        ("demo", "demo@bass"): "no benchmark of bass; did you mean 'base'",
        ("demo", ""): "no run ''",
    }
    for names, message in cases.items():
        with pytest.raises(SpecError, match=message):
            found(workspace, *names)


def test_results_of_earlier_versions_are_read_and_of_a_later_one_refused(workspace):
    first, second = (add_benchmark(workspace, GOOD, of=f"v{version}", version=version) for version in (1, 2))
    add_benchmark(workspace, BAD)
    assert (read_result(first).diagnostics, read_result(first).n_requested) == ({}, None)
    old = read_result(second)
    assert (old.n_requested, old.diagnostics["empty"].count, "numbers_lost" in old.diagnostics) == (45, 0, False)
    assert (old.request["target_lang"], old.speed) == ("de", None)
    names = ["demo@v1", "demo@v2", "demo"]
    comparison = compare(find_benchmarks(names, workspace, None), ["ter"])
    assert [each.name for each in comparison.systems] == names
    later = add_benchmark(workspace, BAD, run="later", version=SCHEMA_VERSION + 1)
    with pytest.raises(PrerequisiteError, match=f"of version {SCHEMA_VERSION + 1}"):
        read_result(later)


def test_a_damaged_result_says_which(tmp_path):
    for content in ("", "{}", "[1]", '{"schema_version": "x"}', "\xff"):
        (tmp_path / "scores.json").write_text(content, encoding="latin-1")
        with pytest.raises(PrerequisiteError, match=r"scores\.json cannot be read"):
            read_result(tmp_path)


def test_a_group_stands_for_its_runs(workspace):
    group, runs = GroupDir(workspace.runs / f"demo-sweep-{STAMP}"), [f"{name}-{STAMP}" for name in ("low", "high")]
    for name, lines in (("low", BAD), ("high", GOOD), ("base", BAD)):
        add_benchmark(workspace, lines, run=name)
    group.path.mkdir()
    points = [GroupPoint(run=name, values=[value], overrides=[]) for name, value in zip(runs, "48", strict=True)]
    axes = read_axes(["train.lora_rank=4,8"])
    Group(id=group.id, created_at=now(), spec_file="x", axes=axes, points=points, with_benchmarks=True).save(group)
    assert [each.name for each in find_benchmarks(["base", "demo-sweep"], workspace, None)] == ["base", *runs]
