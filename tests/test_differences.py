"""What differs between two specs or runs, and what it can change. Run: pytest tests/test_differences.py."""

from typing import Any

import pytest

from orchestrator.runs.differences import Difference, Side, differences, effect
from orchestrator.runs.record_parts import DataFacts, Facts
from orchestrator.runs.run_checkpoints import resume_problems
from orchestrator.specs.spec import RunSpec

TRAIN = {"learning_rate": 1e-4, "lora_rank": 8, "report_to": ["a", "b"], "logging_steps": 5}
SPEC = RunSpec(name="toy", model={"name_or_path": "m"}, dataset="d", train=TRAIN, benchmark=[{"testset": "d"}])
FACTS = Facts(
    versions={"torch": "2.1"},
    platform="Linux x86_64",
    gpus=["NVIDIA H100, 550"],
    git_commit="a" * 40,
    data=[DataFacts(dataset="d", split=s, pairs=2, sha256=digit * 64) for s, digit in (("train", "1"), ("test", "3"))],
    model_sha256="2" * 64,
    adapter_sha256="4" * 64,
    chat_template_sha256="6" * 64,
)


def changed(**changes: object) -> RunSpec:
    return RunSpec.model_validate({**SPEC.model_dump(), **changes})


def trained(**changes: object) -> RunSpec:
    return changed(train={**TRAIN, **changes})


def data(train: str = "1", test: str = "3") -> list[DataFacts]:
    digits = (train, test)
    return [each.model_copy(update={"sha256": digit * 64}) for each, digit in zip(FACTS.data, digits, strict=True)]


def found(spec: RunSpec = SPEC, overrides: tuple[str, ...] = (), then: Facts = FACTS, **facts: Any) -> list[Difference]:
    """Of two runs: one of SPEC with the facts of `then`, and another."""
    now = Side("now", spec, then.model_copy(update=facts))
    return differences(Side("then", SPEC, then), now, overrides)


def only(spec: RunSpec = SPEC, overrides: tuple[str, ...] = (), then: Facts = FACTS, **facts: Any) -> Difference:
    (each,) = found(spec, overrides, then, **facts)
    return each


def test_nothing_differs_from_itself():
    assert found() == differences(Side("a", SPEC, FACTS), Side("a", SPEC)) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"seed": 1}, {"seed": 2}, "seed: 1 -> 2"),
        ({"train": {"x": 1}}, {"train": {"x": 1.0}}, "train.x: 1 -> 1.0"),
        ({"train": {"x": "1"}}, {"train": {"x": 1}}, 'train.x: "1" -> 1'),
        ({"train": {"lora_target": ["a", "b"]}}, {"train": {}}, 'train.lora_target: ["a", "b"] -> null'),
        ({}, {"benchmark": [{"testset": "d", "max_samples": 5}]}, "benchmark.0.max_samples: null -> 5"),
        ({"model": {"name_or_path": "a\x1b[2J"}}, {}, 'model.name_or_path: "a\\u001b[2J" -> "m"'),
    ],
)
def test_show_has_both_values_with_types(one, other, expected):
    (each,) = differences(Side("a", changed(**one)), Side("b", changed(**other)))
    assert each.arrow() == expected


@pytest.mark.parametrize(
    ("expected", "paths"),
    [
        ("trajectory", "seed train.learning_rate train.no_one_knows_it compute.nproc_per_node compute.nnodes"),
        ("rounding", "train.bf16 compute.devices compute.env.OMP_NUM_THREADS"),
        ("none", "train.logging_steps train.preprocessing_num_workers compute.slurm.partition serve.port name"),
    ],
)
def test_the_effect_of_a_field_on_the_losses(expected, paths):
    assert {path: effect(path) for path in paths.split()} == dict.fromkeys(paths.split(), expected)


@pytest.mark.parametrize("arguments", [{}, {"packing": True}, {"neat_packing": True}, {"stage": "pt"}])
def test_how_data_are_preprocessed_chooses_examples_where_they_are_packed(arguments):
    """LLaMA-Factory packs within each batch that it maps."""
    sides = [Side("a", trained(**arguments, preprocessing_batch_size=size)) for size in (1000, 500)]
    assert [each.effect for each in differences(*sides)] == ["trajectory" if arguments else "none"]


def test_what_chooses_examples_weights_or_steps_is_never_taken_for_less(arguments):
    """By LLaMA-Factory's own list of arguments: a prefix that is too short would be seen here."""
    kept = {name for name in arguments if effect(f"train.{name}") == "trajectory"}
    words = "learning_rate batch_size accumulation warmup lora_ quantization seed epoch optim max_steps adam"
    words += " weight_decay packing cutoff template max_samples val_size schedul"
    others = ("eval", "preprocessing", "export", "swanlab", "deepspeed", "profiler")
    chosen = {name for name in arguments if any(word in name for word in words.split())}
    named = {name for name in chosen if not any(other in name for other in others)}
    assert len(named) > 40
    assert named - kept == set()


@pytest.mark.parametrize(
    ("facts", "line", "severity", "expected"),
    [
        ({"data": data(train="9")}, "data d train: 111111111111 then, 999999999999 now", "error", "trajectory"),
        ({"data": data(test="9")}, "data d test: 333333333333 then, 999999999999 now", "error", "none"),
        ({"data": FACTS.data[:1]}, "data d test: 333333333333 then, none now", "warning", "none"),
        ({"model_sha256": "9" * 64}, "model hash: 222222222222 then, 999999999999 now", "error", "trajectory"),
        ({"versions": {"torch": "2.2"}}, "version of torch: 2.1 then, 2.2 now", "warning", "rounding"),
        ({"versions": {"torch": "2.1", "sacrebleu": "2"}}, "version of sacrebleu: none then, 2 now", "warning", "none"),
        ({"platform": "Darwin arm64"}, "platform: Linux x86_64 then, Darwin arm64 now", "warning", "rounding"),
        ({"gpus": []}, "GPUs: NVIDIA H100, 550 then, none now", "warning", "rounding"),
        ({"git_commit": "b" * 40}, "git commit: aaaaaaaaaaaa then, bbbbbbbbbbbb now", "warning", "none"),
    ],
)  # fmt: skip
def test_a_fact_that_differs_is_a_line_with_its_weight(facts, line, severity, expected):
    each = only(**facts)
    assert (each.line(), each.severity, each.effect) == (line, severity, expected)
    assert each.arrow() == line.replace(" then, ", " -> ").removesuffix(" now")


@pytest.mark.parametrize(
    ("name", "then", "now", "line"),
    [
        ("cpu", "Xeon, 2 threads", "EPYC, 8 threads", "processor: Xeon, 2 threads then, EPYC, 8 threads now"),
        ("environment", {}, {"OMP_NUM_THREADS": "2"}, "variable OMP_NUM_THREADS: none then, 2 now"),
        ("chat_template_sha256", "7" * 64, "8" * 64, "chat template hash: 777777777777 then, 888888888888 now"),
    ],
)
def test_what_only_one_side_knows_is_not_compared(name, then, now, line):
    known, unknown = FACTS.model_copy(update={name: then}), FACTS.model_copy(update={name: None})
    assert only(then=known, **{name: now}).line() == line
    assert found(then=unknown, **{name: now}) == found(then=known, **{name: None}) == []


@pytest.mark.parametrize(
    ("use", "split", "expected"),
    [
        ("train", "train_sft", "trajectory"),
        ("eval", "train", "none"),
        ("", "train", "trajectory"),
        ("", "test", "none"),
    ],
)
def test_data_count_by_their_use_or_in_earlier_records_by_their_split(use, split, expected):
    then, now = ([DataFacts(dataset="d", split=split, use=use, pairs=1, sha256=digit * 64)] for digit in "19")
    assert only(then=FACTS.model_copy(update={"data": then}), data=now).effect == expected


def test_hashes_of_an_earlier_version_which_took_samples_are_not_compared():
    for each in found(model_sha256="9" * 64, adapter_sha256="9" * 64, hash_version=2):
        assert (each.severity, each.effect) == ("note", "none") and "hashed by an earlier version" in each.line()
    assert only(model_sha256=None, hash_version=2).severity == "warning"
    renamed = changed(model={"name_or_path": "models/other"})
    assert [each.effect for each in found(renamed, hash_version=2)] == ["trajectory"]


@pytest.mark.parametrize(
    ("name", "then", "now", "expected"),
    [
        ("OMP_NUM_THREADS", {}, "2", "rounding"),
        ("CUDA_VISIBLE_DEVICES", {"CUDA_VISIBLE_DEVICES": "0"}, "1", "rounding"),
        ("CUDA_VISIBLE_DEVICES", {"CUDA_VISIBLE_DEVICES": "0"}, "0,1", "trajectory"),
        ("CUDA_VISIBLE_DEVICES", {}, "0,1", "rounding"),
        ("FORCE_TORCHRUN", {}, "1", "trajectory"),
    ],
)
def test_a_variable_of_the_environment_counts_by_what_it_can_change(name, then, now, expected):
    each = only(then=FACTS.model_copy(update={"environment": then}), environment={name: now})
    assert (each.path, each.severity, each.effect) == (f"variable {name}", "warning", expected)


def test_a_model_under_another_name_that_is_the_same_has_no_effect():
    other = changed(model={"name_or_path": "models/other"})
    assert only(other).effect == "none"
    assert only(other, then=FACTS.model_copy(update={"model_sha256": None})).effect == "trajectory"


def test_what_set_names_and_what_follows_from_it_is_a_note():
    for override in ("train.lora_rank=16", "train={lora_rank: 16}", "train.lora_rank.x=1"):
        assert only(trained(lora_rank=16), (override,)).severity == "note"
    assert only(trained(lora_rank=16), ("train.lora_ran=16", "seed=1")).severity == "warning"
    model = changed(model={"name_or_path": "models/other"})
    facts = {"model_sha256": "9" * 64, "chat_template_sha256": "9" * 64}
    assert {each.severity for each in found(model, ("model.name_or_path=models/other",), **facts)} == {"note"}
    other = [DataFacts(dataset="e", split="train", pairs=2, blank_pairs=0, sha256="5" * 64), FACTS.data[1]]
    assert {each.severity for each in found(changed(dataset="e"), ("dataset=e",), data=other)} == {"note"}
    assert only(overrides=("seed=42",), data=data(train="9")).severity == "error"


@pytest.mark.parametrize(
    ("spec", "facts", "expected"),
    [
        (SPEC, {}, []),
        (changed(seed=43), {}, [("error", "spec seed: 42 then, 43 now")]),
        (trained(deepspeed="ds.json"), {}, [("error", "spec train.deepspeed: none then, ds.json now")]),
        (SPEC, {"data": data(train="9")}, [("error", "data d train: 111111111111 then, 999999999999 now")]),
        (SPEC, {"data": data(test="9")}, [("note", "data d test: 333333333333 then, 999999999999 now")]),
        (SPEC, {"platform": "Darwin arm64"}, [("warning", "platform: Linux x86_64 then, Darwin arm64 now")]),
        (trained(logging_steps=1), {"git_commit": "b" * 40}, []),
    ],
)
def test_what_changed_since_the_run_began_is_weighed(spec, facts, expected):
    assert resume_problems(SPEC, spec, FACTS, FACTS.model_copy(update=facts)) == expected


def test_another_number_of_processes_is_an_error():
    then, now = (changed(compute={"devices": devices}) for devices in ("0,1", "0"))
    problem, devices = resume_problems(then, now, FACTS, FACTS)
    assert problem == ("error", "processes: 2 then, 1 now") and devices[0] == "warning"


def test_two_specs_a_spec_and_a_run_and_two_runs_can_be_compared(toy):
    spec, run = toy.spec(benchmark=[{"testset": "captions_en_de", "max_samples": 3}]), toy.only_run()
    other = toy.spec("other", train={"learning_rate": 1.0e-3})
    pairs = [(spec, other, "--set", "seed=7"), (run.name, spec, "--json"), ("toy", run.name)]
    specs, mixed, runs = toy.run_together([("show", one, "--diff", *two) for one, *two in pairs])
    rate = "train.learning_rate: 0.0005 -> 0.001"
    assert specs.out.splitlines()[:4] == [f"--- {spec}", f"+++ {other}", 'name: "toy" -> "other"', rate], specs.err
    document = mixed.json()
    assert (document["one"], document["other"]) == (run.name, str(spec))
    assert {"path": "benchmark.0.max_samples", "one": 6, "other": 3}.items() <= document["differences"][0].items()
    assert (runs.code, runs.out) == (0, "") and "nothing differs" in runs.err
