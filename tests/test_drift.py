"""What differs between two runs, how much it matters, and what it can change. Run: pytest tests/test_drift.py."""

import pytest

from orchestrator.runs.drift import Drift, default_drift, drifts, effect
from orchestrator.runs.record_parts import DataFacts, Facts
from orchestrator.specs.spec import RunSpec
from orchestrator.upstream.arguments import read_arguments

SPEC = RunSpec(
    name="toy",
    model={"name_or_path": "models/tiny"},
    dataset="d",
    train={"learning_rate": 1e-4, "lora_rank": 8, "report_to": ["a", "b"]},
    benchmark=[{"testset": "d"}],
)
FACTS = Facts(
    versions={"torch": "2.1", "python": "3.11"},
    platform="Linux x86_64",
    gpus=["NVIDIA H100, 550"],
    git_commit="a" * 40,
    git_dirty=False,
    data=[
        DataFacts(dataset="d", split="train", pairs=2, blank_pairs=0, sha256="1" * 64),
        DataFacts(dataset="d", split="test", pairs=2, blank_pairs=0, sha256="3" * 64),
    ],
    model_sha256="2" * 64,
    adapter_sha256="4" * 64,
)


def changed(**changes: object) -> RunSpec:
    return RunSpec.model_validate({**SPEC.model_dump(), **changes})


def trained(**changes: object) -> RunSpec:
    return changed(train={**SPEC.model_dump()["train"], **changes})


def data(train: str = "1", test: str = "3") -> list[DataFacts]:
    return [
        each.model_copy(update={"sha256": digit * 64}) for each, digit in zip(FACTS.data, (train, test), strict=True)
    ]


def found(spec: RunSpec = SPEC, *, asked: tuple[str, ...] = (), **changes: object) -> list[Drift]:
    return drifts(SPEC, FACTS, spec, FACTS.model_copy(update=changes), asked=asked)


def only(spec: RunSpec = SPEC, *, asked: tuple[str, ...] = (), **changes: object) -> Drift:
    (each,) = found(spec, asked=asked, **changes)
    return each


def test_nothing_differs_from_itself():
    assert found() == []


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (changed(seed=43), "spec seed: 42 then, 43 now"),
        (changed(name="other"), "spec name: toy then, other now"),
        (trained(learning_rate=2e-4), "spec train.learning_rate: 0.0001 then, 0.0002 now"),
        (trained(packing=True), "spec train.packing: none then, True now"),
        (trained(report_to=["b"]), "spec train.report_to: ['a', 'b'] then, ['b'] now"),
        (changed(benchmark=[{"testset": "e"}]), "spec benchmark.0.testset: d then, e now"),
    ],
)  # fmt: skip
def test_a_change_of_the_spec_is_one_line(spec, line):
    assert only(spec).line() == line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"versions": {"torch": "2.2", "python": "3.11"}}, "version of torch: 2.1 then, 2.2 now"),
        ({"versions": {"torch": "2.1"}}, "version of python: 3.11 then, none now"),
        ({"platform": "Darwin arm64"}, "platform: Linux x86_64 then, Darwin arm64 now"),
        ({"gpus": []}, "GPUs: NVIDIA H100, 550 then, none now"),
        ({"git_commit": "b" * 40}, "git commit: aaaaaaaaaaaa then, bbbbbbbbbbbb now"),
        ({"git_dirty": True}, "uncommitted changes in git: False then, True now"),
        ({"model_sha256": "9" * 64}, "model hash: 222222222222 then, 999999999999 now"),
        ({"adapter_sha256": None}, "adapter hash: 444444444444 then, none now"),
        ({"data": data(train="9")}, "data d train: 111111111111 then, 999999999999 now"),
    ],
)
def test_a_fact_that_differs_is_one_line(changes, line):
    assert only(**changes).line() == line


@pytest.mark.parametrize(
    "changes",
    [{"model_sha256": "9" * 64}, {"adapter_sha256": "9" * 64}, {"data": data(train="9")}, {"data": data(test="9")}],
)
def test_other_data_or_another_model_is_an_error(changes):
    assert only(**changes).severity == "error"


@pytest.mark.parametrize("changes", [{"model_sha256": None}, {"adapter_sha256": None}, {"data": FACTS.data[:1]}])
def test_what_can_t_be_compared_is_a_warning(changes):
    assert only(**changes).severity == "warning"


@pytest.mark.parametrize(
    "changes",
    [
        {"versions": {"torch": "2.2", "python": "3.11"}},
        {"platform": "Darwin arm64"},
        {"gpus": []},
        {"git_commit": None},
        {"git_dirty": True},
    ],
)
def test_versions_machine_and_git_are_warnings(changes):
    assert only(**changes).severity == "warning"


def test_a_default_that_changed_is_a_warning_with_the_effect_of_its_argument():
    each = default_drift("train.learning_rate", 1e-4, 5e-5)
    assert (each.line(), each.severity) == ("default of train.learning_rate: 0.0001 then, 5e-05 now", "warning")
    assert (each.effect, default_drift("train.logging_steps", 500, 10).effect) == ("course", "none")


@pytest.mark.parametrize("asked", ["train.lora_rank=16", "train={lora_rank: 16}", "train.lora_rank.x=1"])
def test_what_was_asked_for_by_set_is_a_note(asked):
    assert only(trained(lora_rank=16), asked=(asked,)).severity == "note"
    assert only(trained(lora_rank=16), asked=("train.lora_ran=16", "seed=1")).severity == "warning"


def test_what_follows_from_what_was_asked_for_is_a_note_too():
    model = changed(model={"name_or_path": "models/other"})
    assert {
        each.severity for each in found(model, asked=("model.name_or_path=models/other",), model_sha256="9" * 64)
    } == {"note"}
    other = [DataFacts(dataset="e", split="train", pairs=2, blank_pairs=0, sha256="5" * 64), FACTS.data[1]]
    assert {each.severity for each in found(changed(dataset="e"), asked=("dataset=e",), data=other)} == {"note"}
    assert only(asked=("seed=42",), data=data(train="9")).severity == "error"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("seed", "course"),
        ("dataset", "course"),
        ("model.template", "course"),
        ("train.learning_rate", "course"),
        ("train.per_device_train_batch_size", "course"),
        ("train.no_one_knows_it", "course"),
        ("compute.nproc_per_node", "course"),
        ("train.bf16", "rounding"),
        ("train.flash_attn", "rounding"),
        ("train.gradient_checkpointing_kwargs.use_reentrant", "rounding"),
        ("compute.devices", "rounding"),
        ("train.logging_steps", "none"),
        ("train.save_total_limit", "none"),
        ("train.eval_strategy", "none"),
        ("benchmark.0.testset", "none"),
        ("serve.port", "none"),
        ("name", "none"),
    ],
)
def test_the_effect_of_a_field_on_the_losses(path, expected):
    assert effect(path) == expected


def test_what_chooses_examples_weights_or_steps_is_never_taken_for_less(installed):
    """By LLaMA-Factory's own list of arguments: a prefix that is too short would be seen here."""
    course = {name for name in installed if effect(f"train.{name}") == "course"}
    words = ("learning_rate", "batch_size", "accumulation", "warmup", "lora_", "quantization", "seed", "epoch", "optim")
    words += (
        "max_steps",
        "adam",
        "weight_decay",
        "packing",
        "cutoff",
        "template",
        "max_samples",
        "val_size",
        "schedul",
    )
    others = ("eval", "preprocessing", "export", "swanlab", "deepspeed", "profiler")
    named = {name for name in installed if any(word in name for word in words) and not any(o in name for o in others)}
    assert len(named) > 40
    assert named - course == set()


@pytest.fixture(scope="module")
def installed() -> set[str]:
    from orchestrator.upstream.installation import find_installation

    return set(read_arguments(find_installation()))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": data(train="9")}, "course"),
        ({"data": data(test="9")}, "none"),
        ({"model_sha256": "9" * 64}, "course"),
        ({"versions": {"torch": "2.2", "python": "3.11"}}, "rounding"),
        ({"versions": {**FACTS.versions, "sacrebleu": "2.9"}}, "none"),
        ({"gpus": []}, "rounding"),
        ({"git_commit": None}, "none"),
    ],
)
def test_the_effect_of_a_fact_on_the_losses(changes, expected):
    assert only(**changes).effect == expected


def test_a_model_that_is_named_otherwise_and_is_the_same_has_no_effect():
    assert only(changed(model={"name_or_path": "models/other"})).effect == "none"
    unknown = FACTS.model_copy(update={"model_sha256": None})
    (each,) = drifts(SPEC, unknown, changed(model={"name_or_path": "models/other"}), unknown)
    assert each.effect == "course"


@pytest.mark.parametrize(
    ("name", "then", "now", "severity", "expected"),
    [
        ("OMP_NUM_THREADS", "1", "2", "warning", "rounding"),
        ("PYTORCH_CUDA_ALLOC_CONF", None, "expandable_segments:True", "warning", "rounding"),
        ("CUDA_VISIBLE_DEVICES", "0", "1", "warning", "rounding"),
        ("CUDA_VISIBLE_DEVICES", "0", "0,1", "warning", "course"),
        ("FORCE_TORCHRUN", None, "1", "warning", "course"),
        ("HF_HUB_OFFLINE", "1", None, "note", "none"),
        ("NCCL_DEBUG", None, "INFO", "note", "none"),
        ("TOKENIZERS_PARALLELISM", "false", None, "note", "none"),
    ],
)
def test_a_variable_of_the_environment_counts_by_what_it_can_change(name, then, now, severity, expected):
    sides = [{} if value is None else {name: value} for value in (then, now)]
    old, new = (FACTS.model_copy(update={"environment": side}) for side in sides)
    (each,) = drifts(SPEC, old, SPEC, new)
    assert (each.what, each.severity, each.effect) == (f"variable {name}", severity, expected)


def test_weights_of_which_a_byte_changed_are_an_error():
    old, new = (FACTS.model_copy(update={"model_full_sha256": digit * 64}) for digit in "78")
    (each,) = drifts(SPEC, old, SPEC, new)
    assert (each.severity, each.effect) == ("error", "course")
