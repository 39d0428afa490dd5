"""What differs between two specs or runs. Run: pytest tests/test_diff.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.runs.diff import Side, defaults_json, differences, known_defaults, run_defaults
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.arguments import COMPUTED, Argument
from orchestrator.specs.spec import RunSpec

NEW = {"optim": "fused", "lora_rank": 8, "bf16": False, "only_new": 1}
OLD = {"optim": "torch", "lora_rank": 8, "bf16": False, "only_old": 1}


def side(name: str = "a", defaults: dict[str, Any] | None = NEW, facts: Facts | None = None, **changes: Any) -> Side:
    spec = {"name": "x", "model": {"name_or_path": "m"}, "dataset": "toy", "train": {"stage": "sft"}}
    versions = {"llamafactory": "0.9.4" if defaults is OLD else "0.9.5"}
    return Side(name, RunSpec.model_validate({**spec, **changes}), versions, defaults, facts)


def lines(one: Side, other: Side) -> list[str]:
    return [each.line() for each in differences(one, other)]


def test_the_same_differs_in_nothing() -> None:
    assert lines(side(), side("b")) == []
    assert lines(side(defaults=OLD), side(defaults=OLD)) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"seed": 1}, {"seed": 2}, ["seed: 1 -> 2"]),
        ({"train": {"x": 1}}, {"train": {"x": 1.0}}, ["train.x: 1 -> 1.0"]),
        ({"train": {"x": "1"}}, {"train": {"x": 1}}, ['train.x: "1" -> 1']),
        ({"train": {}}, {"train": {"x": None}}, ["train.x: not set -> null"]),
        ({"train": {}}, {"train": {"lora_rank": 16}}, ["train.lora_rank: 8 (by default) -> 16"]),
        ({"train": {"bf16": True}}, {"train": {}}, ["train.bf16: true -> false (by default)"]),
        ({"train": {"lora_target": ["a", "b"]}}, {}, ['train.lora_target: ["a", "b"] -> null']),
        (
            {"benchmark": [{"testset": "t"}]},
            {"benchmark": [{"testset": "t", "max_samples": 5}]},
            ["benchmark.0.max_samples: null -> 5"],
        ),
        ({"model": {"name_or_path": "a\x1b[2J"}}, {}, ['model.name_or_path: "a\\u001b[2J" -> "m"']),
    ],
)
def test_a_difference_of_the_specs_is_a_line(one: dict[str, Any], other: dict[str, Any], expected: list[str]) -> None:
    """With its dotted path, both values and their types; where one side is silent, with the default."""
    assert lines(side(**one), side(**other)) == expected


def test_a_default_that_changed_is_named_as_such() -> None:
    """Only where it counts: neither spec sets it, both versions have it, both train."""
    changed = 'train.optim: "torch" -> "fused"; the default changed, neither spec sets it'
    assert lines(side(defaults=OLD), side()) == [changed]
    assert lines(side(defaults=OLD, train={"optim": "torch"}), side(train={"optim": "torch"})) == []
    assert lines(side(defaults=OLD), side(train={"optim": "torch"})) == ['train.optim: "torch" (by default) -> "torch"']
    assert lines(side(defaults=None), side()) == []
    bench = {"train": None, "dataset": None, "benchmark": [{"testset": "t"}]}
    assert lines(side(defaults=OLD, **bench), side(**bench)) == []


def test_the_facts_of_two_runs_are_compared_those_of_a_spec_are_not_there() -> None:
    one, other = Facts(versions={"torch": "1"}, model_sha256="a" * 64), Facts(versions={"torch": "2"})
    assert lines(side(facts=one), side(facts=other)) == ["model hash: aaaaaaaaaaaa -> none", "version of torch: 1 -> 2"]
    assert lines(side(facts=one), side()) == []


def test_a_side_is_headed_by_its_name_and_versions() -> None:
    assert side("x.yaml").heading() == "x.yaml (LLaMA-Factory 0.9.5)"
    assert Side("x", side().spec, {}, None).heading() == "x"


def test_a_run_keeps_the_defaults_that_are_known(tmp_path: Path) -> None:
    """Those that only a running LLaMA-Factory knows, and those of other commands, are left out."""
    train, api = frozenset({"train"}), frozenset({"api"})
    arguments = {
        "b": Argument("b", frozenset({"str"}), None, True, train, default=None),
        "a": Argument("a", frozenset({"int"}), None, True, train | api, default=3),
        "computed": Argument("computed", frozenset(), None, True, train, default=COMPUTED),
        "other": Argument("other", frozenset(), None, True, api, default=1),
    }
    run = RunDir(tmp_path)
    assert run_defaults(run) is None
    run.defaults.write_text(defaults_json(arguments))
    assert run_defaults(run) == known_defaults(arguments) == {"a": 3, "b": None}
    run.defaults.write_text("{")
    with pytest.raises(PrerequisiteError, match=r"defaults\.json"):
        run_defaults(run)


# The command


def test_two_specs_a_spec_and_a_run_and_two_runs_can_be_compared(toy):
    """Each way round; what a launch resolved is no difference to its spec."""
    spec, run = toy.spec(benchmark=[{"testset": "captions_en_de", "max_samples": 3}]), toy.only_run()
    other = toy.spec("other", train={"learning_rate": 1.0e-3})
    done = toy.run("show", spec, "--diff", other, "--set", "seed=7")
    assert done.code == 0, done.err
    assert done.out.splitlines()[2:] == [
        'name: "toy" -> "other"',
        "train.learning_rate: 0.0005 -> 0.001",
        "benchmark.0.max_samples: 3 -> 6",
        "benchmark.0.n_bootstrap: 1000 -> 10",
        "seed: 7 -> 42",
    ]
    assert done.out.startswith(f"--- {spec} (LLaMA-Factory ")
    done = toy.run("show", run.name, "--diff", spec, "--json")
    found = json.loads(done.out)
    assert (found["one"], found["other"]) == (run.name, str(spec))
    paths = {each["path"] for each in found["differences"]}
    assert {"benchmark.0.max_samples", "benchmark.0.base_model"} <= paths <= {f"benchmark.0.{name}" for name in (
        "max_samples", "base_model", "n_bootstrap",
    )}  # fmt: skip
    done = toy.run("show", "toy", "--diff", run.name)
    assert (done.code, done.out) == (0, "") and "nothing differs" in done.err


def test_a_run_of_older_versions_shows_changed_defaults(toy):
    """From what it kept; without that it is said that they are not known. A rerun says them too, and goes on."""
    run = toy.only_run()
    spec = toy.spec(benchmark=[{"testset": "captions_en_de", "max_samples": 6, "n_bootstrap": 10, "base_model": True}])
    record = json.loads((run / "record.json").read_bytes())
    record["facts"]["versions"]["llamafactory"] = "0.9.4"
    (run / "record.json").write_text(json.dumps(record))
    kept = json.loads((run / "defaults.json").read_bytes())
    assert kept["lora_rank"] == 8 and len(kept) > 250
    (run / "defaults.json").write_text(json.dumps({**kept, "optim": "adamw_torch", "lora_rank": 4}))
    done = toy.run("show", run.name, "--diff", spec)
    assert "(LLaMA-Factory 0.9.4, transformers" in done.out.splitlines()[0]
    assert "train.lora_rank: 4 -> 8; the default changed, neither spec sets it" in done.out.splitlines()
    done = toy.run("rerun", "toy", "--strict", "--no-benchmark")
    assert done.code == 0 and "(warning): default of train.lora_rank: 4 then, 8 now" in done.err
    (run / "defaults.json").unlink()
    done = toy.run("show", run.name, "--diff", spec)
    assert done.code == 0 and f"{run.name} kept no defaults" in done.err and "lora_rank" not in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/toy.yaml", "--diff", "runs/gone.yaml"], "no such file"),
        (["runs/toy.yaml", "--diff", "gone"], "no run 'gone'"),
        (["runs/toy.yaml", "--diff", "toy", "--command"], "exclude each other"),
        (["toy", "--diff", "toy", "--set", "seed=1"], "--set is for a spec"),
    ],
)
def test_what_cannot_be_compared_is_named(words, said, toy):
    done = toy.run("show", *words)
    assert done.code == 2 and said in done.err and done.out == ""
