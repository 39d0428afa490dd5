"""Whether a checkpoint is whole, which one is resumed from, which are kept. Run: pytest tests/test_checkpoints.py."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.models.checkpoints import SENTINEL, inspect
from orchestrator.runs.record import RunRecord, now
from orchestrator.runs.record_parts import BenchmarkSummary, DataFacts, Facts
from orchestrator.runs.run_checkpoints import (
    best_and_last,
    choose_checkpoint,
    planned_world_size,
    resume_problems,
    usable_checkpoints,
)
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import Score
from orchestrator.specs.compute_spec import ComputeSpec
from orchestrator.specs.spec import RunSpec
from tests.checkpoint_folders import archive, checkpoint, deepspeed_checkpoint, fsdp_checkpoint
from tests.imported_once import Imported
from tests.loss_band import BASE, write_data

READ_BY_A_RESUME = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)
SPEC = RunSpec(
    name="toy",
    model={"name_or_path": "models/tiny", "template": "qwen"},
    dataset="d",
    train={"learning_rate": 1e-4, "lora_rank": 8, "per_device_train_batch_size": 4, "logging_steps": 5},
    benchmark=[{"testset": "d"}],
)
FACTS = Facts(
    versions={"torch": "2.1", "sacrebleu": "2.5"},
    platform="Linux x86_64",
    gpus=["H100, 550", "H100, 550"],
    git_commit="a" * 40,
    data=[
        DataFacts(dataset="d", split="train", pairs=2, blank_pairs=0, sha256="1" * 64),
        DataFacts(dataset="d", split="test", pairs=2, blank_pairs=0, sha256="3" * 64),
    ],
    model_sha256="2" * 64,
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "it's a run")
    made.output.mkdir(parents=True)
    return made


def problem(folder: Path, **keywords: int) -> str:
    """The one thing that is wrong."""
    (found,) = inspect(folder, **keywords).problems
    return found


# Whole or not


@pytest.mark.parametrize("full", [False, True])
def test_a_checkpoint_as_the_trainer_leaves_it_is_whole(run, full):
    found = inspect(checkpoint(run, 100, full=full))
    assert (found.label, found.step, found.problems, found.whole) == ("checkpoint-100", 100, [], True)
    assert found.line() == "checkpoint-100: whole"


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"]
)
def test_a_file_that_is_missing_or_empty_is_named(run, name):
    folder = checkpoint(run, 100)
    (folder / name).write_bytes(b"")
    assert name in problem(folder)
    (folder / name).unlink()
    assert name in "; ".join(inspect(folder).problems)


@pytest.mark.parametrize("name", READ_BY_A_RESUME)
def test_a_file_cut_off_anywhere_is_noticed(run, name):
    folder = checkpoint(run, 100)
    content = (folder / name).read_bytes()
    for length in range(len(content)):
        (folder / name).write_bytes(content[:length])
        if name.endswith(".json") and says_the_same(content[:length], content):
            continue  # all that is gone is white space
        assert name in problem(folder)


def says_the_same(some: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(some) == json.loads(other))
    except ValueError:
        return False


def test_a_file_with_zeros_in_the_middle_is_noticed(run):
    """As after a power cut, where the length was written and the content was not."""
    folder = checkpoint(run, 100)
    path = archive(folder / "optimizer.pt", b"values" * 100)
    with zipfile.ZipFile(path) as file:
        begin = file.infolist()[2].header_offset
    content = path.read_bytes()
    path.write_bytes(content[:begin] + bytes(64) + content[begin + 64 :])
    assert problem(folder).startswith("optimizer.pt is cut off, or no file of torch.save")


def test_what_a_resume_does_not_read_may_be_missing(run):
    folder = checkpoint(run, 100)
    (folder / "README.md").unlink()
    (folder / "training_args.bin").unlink()
    assert inspect(folder).whole


def test_a_checkpoint_that_was_being_saved_at_the_end_is_not_whole(run):
    folder = checkpoint(run, 100)
    (folder / SENTINEL).write_text("Checkpoint started at step 100 and in progress...")
    assert SENTINEL in problem(folder)


@pytest.mark.parametrize("state", [{"global_step": 99}, {"global_step": None}, {"global_step": "100"}])
def test_the_step_is_that_of_the_folder_s_name(run, state):
    folder = checkpoint(run, 100)
    (folder / "trainer_state.json").write_text(json.dumps(state))
    assert problem(folder) == f"trainer_state.json is of step {state['global_step']!r}"


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_trainer_state_that_is_no_mapping_is_said(run, content):
    folder = checkpoint(run, 100)
    (folder / "trainer_state.json").write_bytes(content)
    assert problem(folder).startswith("trainer_state.json is no JSON mapping")


def test_one_that_kept_the_model_alone_is_told_from_a_broken_one(run):
    folder = checkpoint(run, 100)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()
    assert "save_only_model" in problem(folder)
    (folder / "trainer_state.json").unlink()  # it may have been going to be more
    assert "save_only_model" not in "; ".join(inspect(folder).problems)


def test_the_scaler_of_fp16_is_looked_at_where_there_is_one(run):
    folder = checkpoint(run, 100)
    archive(folder / "scaler.pt")
    assert inspect(folder).whole
    (folder / "scaler.pt").write_bytes(b"PK")
    assert problem(folder).startswith("scaler.pt")


def test_the_value_head_of_ppo_is_looked_at(run):
    folder = checkpoint(run, 100)
    (folder / "value_head.safetensors").write_bytes(b"\0" * 20)
    assert problem(folder).startswith("value_head.safetensors")


def test_pickled_weights_are_looked_at_as_archives(run):
    folder = checkpoint(run, 100)
    (folder / "adapter_model.safetensors").unlink()
    archive(folder / "adapter_model.bin")
    assert inspect(folder).whole
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02")
    assert problem(folder).startswith("adapter_model.bin is cut off")


@pytest.mark.parametrize(("world_size", "said"), [(1, "it is of 3 processes, and 1 would"), (4, "and 4 would go on")])
def test_random_numbers_are_those_of_as_many_processes(run, world_size, said):
    folder = checkpoint(run, 100, processes=3)
    assert inspect(folder).whole and inspect(folder, world_size=3).whole
    assert said in problem(folder, world_size=world_size)


def test_the_random_numbers_of_a_rank_are_missed(run):
    folder = checkpoint(run, 100, processes=3)
    (folder / "rng_state_1.pth").unlink()
    assert problem(folder) == "rng_state_1.pth is missing"
    (folder / "rng_state_1.pth").write_bytes(b"")
    assert problem(folder) == "rng_state_1.pth is empty"


def test_a_folder_of_another_name_is_no_checkpoint(run):
    with pytest.raises(SpecError, match="checkpoint-N"):
        inspect(run.output)


def test_a_folder_that_went_is_said(run):
    assert problem(run.output / "checkpoint-5").endswith("is no folder")


def test_what_may_not_be_read_is_a_problem_and_no_traceback(run):
    folder = checkpoint(run, 100)
    (folder / "trainer_state.json").unlink()
    (folder / "trainer_state.json").symlink_to(folder / "trainer_state.json")  # a loop
    assert any("trainer_state.json" in each for each in inspect(folder).problems)


# DeepSpeed and FSDP


@pytest.mark.parametrize("world_size", [None, 2])
def test_a_deepspeed_checkpoint_is_whole(run, world_size):
    assert inspect(deepspeed_checkpoint(run, 100), world_size=world_size).whole


def test_what_a_deepspeed_checkpoint_lacks_is_said(run):
    folder = deepspeed_checkpoint(run, 100)
    part = folder / "global_step100" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    part.write_bytes(part.read_bytes()[:-1])
    assert problem(folder).startswith("global_step100/zero_pp_rank_1_mp_rank_00_optim_states.pt is cut off")
    (folder / "latest").unlink()
    assert problem(folder) == "latest is missing: global_step100 was not finished"


@pytest.mark.parametrize("tag", ["global_step7", "../checkpoint-50/global_step50", "", "\x1b[2J", ".."])
def test_latest_names_a_folder_beside_it(run, tag):
    deepspeed_checkpoint(run, 50)
    folder = deepspeed_checkpoint(run, 100)
    (folder / "latest").write_text(tag)
    assert problem(folder) == f"latest names {tag!r}, which is no folder beside it"


def test_the_folder_that_latest_names_holds_the_model(run):
    folder = deepspeed_checkpoint(run, 100)
    for path in (folder / "global_step100").glob("*model_states.pt"):
        path.unlink()
    assert problem(folder) == "global_step100 has no *model_states.pt"


@pytest.mark.parametrize("sharded", [True, False])
def test_an_fsdp_checkpoint_is_whole(run, sharded):
    assert inspect(fsdp_checkpoint(run, 100, sharded=sharded)).whole


@pytest.mark.parametrize(
    "name", ["optimizer_0/.metadata", "pytorch_model_fsdp_0/.metadata", "optimizer_0/__1_0.distcp", "scheduler.pt"]
)
def test_what_a_sharded_fsdp_checkpoint_lacks_is_said(run, name):
    folder = fsdp_checkpoint(run, 100)
    (folder / name).write_bytes(b"")
    assert name in problem(folder)


@pytest.mark.parametrize("name", ["optimizer.bin", "pytorch_model_fsdp.bin"])
def test_what_a_whole_fsdp_checkpoint_lacks_is_said(run, name):
    folder = fsdp_checkpoint(run, 100, sharded=False)
    (folder / name).write_bytes(b"PK\x03\x04")
    assert problem(folder).startswith(f"{name} is cut off")


# Which one


def test_the_newest_whole_one_is_chosen_and_the_newer_ones_are_explained(run):
    for step in (5, 90, 100, 1000):
        checkpoint(run, step)
    (run.output / "checkpoint-1000" / "trainer_state.json").unlink()
    (run.output / "checkpoint-100" / "optimizer.pt").write_bytes(b"")
    found, said = choose_checkpoint(run)
    assert found is not None and found.label == "checkpoint-90"
    assert [line.partition(":")[0] for line in said] == [
        "checkpoint-1000 is passed over",
        "checkpoint-100 is passed over",
    ]
    assert "trainer_state.json is missing" in said[0] and "optimizer.pt is empty" in said[1]


def test_of_nothing_whole_nothing_is_chosen(run):
    assert choose_checkpoint(run) == (None, [])
    checkpoint(run, 5)
    (run.output / "checkpoint-5" / "optimizer.pt").unlink()
    found, said = choose_checkpoint(run)
    assert found is None and len(said) == 1


def test_of_all_the_newest_comes_first_and_other_names_are_left_out(run):
    for step in (5, 90, 100):
        checkpoint(run, step)
    (run.output / "checkpoint-best-7").mkdir()
    (run.output / "checkpoint-200").write_text("a file")
    assert [each.label for each in usable_checkpoints(run)] == ["checkpoint-100", "checkpoint-90", "checkpoint-5"]


def test_the_one_that_is_named_is_chosen_and_no_other(run):
    for step in (5, 90):
        checkpoint(run, step)
    found, said = choose_checkpoint(run, "checkpoint-5")
    assert found is not None and (found.label, said) == ("checkpoint-5", [])
    (run.output / "checkpoint-5" / "optimizer.pt").unlink()
    with pytest.raises(PrerequisiteError, match=r"optimizer\.pt is missing") as error:
        choose_checkpoint(run, "checkpoint-5")
    assert "checkpoint-90" in error.value.remedy
    with pytest.raises(SpecError, match=r"no checkpoint-50; did you mean .*it has: checkpoint-90, checkpoint-5"):
        choose_checkpoint(run, "checkpoint-50")


# What may not have changed


def changed(**changes: object) -> RunSpec:
    return RunSpec.model_validate({**SPEC.model_dump(), **changes})


def trained(**changes: object) -> RunSpec:
    return changed(train={**SPEC.model_dump()["train"], **changes})


def resumed(spec: RunSpec = SPEC, **facts: object) -> list[tuple[str, str]]:
    found = resume_problems(SPEC, spec, FACTS, FACTS.model_copy(update=facts))
    return [(each.severity, each.message) for each in found]


def test_nothing_is_in_the_way_where_nothing_changed():
    assert resumed() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 2e-4),
        ("lr_scheduler_type", "cosine"),
        ("num_train_epochs", 5),
        ("max_steps", 10),
        ("warmup_steps", 3),
        ("warmup_ratio", 0.1),
        ("per_device_train_batch_size", 2),
        ("gradient_accumulation_steps", 2),
        ("cutoff_len", 128),
        ("finetuning_type", "full"),
        ("lora_rank", 16),
        ("lora_alpha", 16),
        ("lora_target", "q_proj"),
        ("quantization_bit", 4),
        ("max_samples", 10),
        ("packing", True),
        ("optim", "sgd"),
        ("deepspeed", "ds.json"),
        ("an_argument_of_a_later_version", 1),
    ],
)
def test_what_makes_another_training_of_it_is_an_error_with_both_values(name, value):
    then = SPEC.train.arguments().get(name, "none") if SPEC.train else None
    ((severity, message),) = resumed(trained(**{name: value}))
    assert severity == "error"
    assert message.startswith(f"spec train.{name}: {then} then, {value} now")


@pytest.mark.parametrize(
    ("spec", "begin"),
    [
        (changed(seed=43), "spec seed: 42 then, 43 now"),
        (
            changed(model={"name_or_path": "models/tiny", "template": "llama3"}),
            "spec model.template: qwen then, llama3",
        ),
        (changed(dataset="e"), "spec dataset: d then, e now"),
    ],
)
def test_another_seed_template_or_dataset_is_an_error(spec, begin):
    ((severity, message),) = resumed(spec)
    assert severity == "error" and message.startswith(begin)


@pytest.mark.parametrize(
    ("facts", "begin"),
    [
        (
            {"data": [FACTS.data[0].model_copy(update={"sha256": "9" * 64}), FACTS.data[1]]},
            "data d train: 111111111111",
        ),
        ({"model_sha256": "9" * 64}, "model hash: 222222222222 then, 999999999999 now"),
    ],
)
def test_other_data_or_another_model_is_an_error(facts, begin):
    ((severity, message),) = resumed(**facts)
    assert severity == "error" and message.startswith(begin)


def test_a_hash_that_is_not_known_is_a_warning():
    assert resumed(model_sha256=None) == [("warning", "model hash: 222222222222 then, none now")]


def test_a_model_that_moved_is_the_same_by_its_hash():
    assert resumed(changed(model={"name_or_path": "/else/where", "template": "qwen"})) == []


def test_versions_and_machines_are_warnings_and_what_scores_is_none():
    assert resumed(versions={"torch": "2.2", "sacrebleu": "2.6"}, git_commit="b" * 40) == [
        ("warning", "version of torch: 2.1 then, 2.2 now")
    ]
    assert resumed(platform="Darwin arm64") == [("warning", "platform: Linux x86_64 then, Darwin arm64 now")]


def test_another_test_set_is_a_note_and_how_it_is_logged_and_saved_none():
    data = [FACTS.data[0], FACTS.data[1].model_copy(update={"sha256": "9" * 64})]
    assert [severity for severity, _ in resumed(data=data)] == ["note"]
    assert resumed(trained(logging_steps=1, save_steps=10, report_to="none")) == []
    assert resumed(changed(name="other", benchmark=[])) == []


def test_another_number_of_processes_is_an_error():
    then = changed(compute={"devices": "0,1"})
    found = resume_problems(then, changed(compute={"devices": "0"}), FACTS, FACTS)
    assert [each.severity for each in found] == ["error", "warning"]
    assert found[0].message.startswith("processes: 2 then, 1 now")


@pytest.mark.parametrize(
    ("compute", "gpus", "expected"),
    [
        ({"nproc_per_node": 3}, [], 3),
        ({"devices": "0,1"}, ["a", "b"], 2),
        ({"devices": "0,1", "nproc_per_node": 1}, ["a", "b"], 1),
        ({"devices": "0,1"}, [], None),
        ({"devices": ""}, ["a"], None),
        ({}, ["a", "b"], None),
    ],
)
def test_the_number_of_processes_is_known_where_the_spec_tells(compute, gpus, expected):
    assert planned_world_size(ComputeSpec(**compute), Facts(gpus=gpus)) == expected


# Which ones are kept


def recorded(run: RunDir, *scores: tuple[str, str, float], status: str = "complete") -> None:
    """A record with benchmarks: label, metric, score."""
    record = RunRecord(id=run.id, name="x", created_at=now(), spec_sha256="0" * 64, seed=1)
    record.benchmarks = [
        BenchmarkSummary(
            id=f"b{number}",
            of=label,
            testset="d",
            split="test",
            status=status,
            n_segments=10,
            scores=[Score(metric=metric, score=score, signature="s", n_segments=10)],
        )
        for number, (label, metric, score) in enumerate(scores)
    ]
    record.save(run)


def four(run: RunDir, **state: object) -> None:
    for step in (100, 200, 300, 400):
        checkpoint(run, step, **state)


def test_the_last_one_is_kept(run):
    four(run)
    recorded(run)
    assert best_and_last(run) == {"checkpoint-400"}
    (run.output / "checkpoint-400" / "optimizer.pt").unlink()
    assert best_and_last(run) == {"checkpoint-300"}


def test_where_none_can_be_resumed_from_the_last_with_whole_weights_is_kept(run):
    four(run)
    recorded(run)
    for step in (100, 200, 300, 400):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (run.output / f"checkpoint-{step}" / name).unlink()
    (run.output / "checkpoint-400" / "adapter_model.safetensors").write_bytes(b"cut")
    assert best_and_last(run) == {"checkpoint-300"}


def test_the_one_that_the_trainer_calls_the_best_is_kept_wherever_it_was_then(run):
    four(run, best_model_checkpoint="/elsewhere/output/checkpoint-200", best_metric=1.5)
    recorded(run)
    assert best_and_last(run) == {"checkpoint-400", "checkpoint-200"}


@pytest.mark.parametrize("best", ["/elsewhere/checkpoint-7", "..", "", 5])
def test_a_best_one_that_is_not_there_is_none(run, best):
    four(run, best_model_checkpoint=best)
    recorded(run)
    assert best_and_last(run) == {"checkpoint-400"}


def test_the_one_of_the_lowest_eval_loss_is_kept(run):
    losses = {50: 0.1, 100: float("nan"), 200: 2.0, 300: 1.0, 400: 1.5}
    four(run, log_history=[{"step": step, "eval_loss": loss} for step, loss in losses.items()])
    recorded(run)
    assert best_and_last(run) == {"checkpoint-400", "checkpoint-300"}


def test_the_best_by_each_metric_of_our_benchmarks_is_kept(run):
    four(run)
    recorded(run, ("checkpoint-100", "bleu", 30.0), ("checkpoint-200", "bleu", 29.0), ("output", "bleu", 40.0))
    assert best_and_last(run) == {"checkpoint-400", "checkpoint-100"}
    recorded(run, ("checkpoint-100", "ter", 30.0), ("checkpoint-200", "ter", 29.0))
    assert best_and_last(run) == {"checkpoint-400", "checkpoint-200"}
    recorded(run, ("checkpoint-100", "bleu", 30.0), status="incomplete")
    assert best_and_last(run) == {"checkpoint-400"}


def test_a_run_without_checkpoints_has_none_to_keep(run):
    recorded(run)
    assert best_and_last(run) == set()


# Real ones


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, llamafactory: Imported) -> Path:
    """output/ of a training by the real llamafactory-cli: checkpoint-1 and checkpoint-2."""
    return train(llamafactory, tmp_path_factory.mktemp("real"), tiny_model)


def train(llamafactory: Imported, place: Path, model: Path, **arguments: object) -> Path:
    write_data(place)
    settings = {"model_name_or_path": str(model), "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    (place / "train.yaml").write_text(json.dumps({**BASE, **settings, **arguments}))
    done = llamafactory.cli("train", "train.yaml", cwd=place)
    assert done.returncode == 0, done.stderr[-4000:]
    return place / "output"


@pytest.mark.integration
def test_real_checkpoints_are_whole_and_the_output_folder_is_none(real):
    assert [each.line() for each in usable_checkpoints(RunDir(real.parent))] == [
        "checkpoint-2: whole",
        "checkpoint-1: whole",
    ]
    with pytest.raises(SpecError):
        inspect(real)


@pytest.mark.integration
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(READ_BY_A_RESUME), share=st.floats(0, 1, exclude_max=True))
def test_a_real_file_cut_off_anywhere_is_noticed(real, tmp_path, name, share):
    folder = tmp_path / "checkpoint-2"
    if not folder.exists():
        shutil.copytree(real / "checkpoint-2", folder)
    content = (folder / name).read_bytes()
    try:
        with (folder / name).open("r+b") as file:
            file.truncate(int(len(content) * share))
        same = name.endswith(".json") and says_the_same((folder / name).read_bytes(), content)
        assert inspect(folder).whole == same
    finally:
        (folder / name).write_bytes(content)
    assert inspect(folder).whole


@pytest.mark.integration
def test_a_real_one_that_kept_the_model_alone_is_told(llamafactory, tiny_model, tmp_path):
    output = train(llamafactory, tmp_path, tiny_model, save_only_model=True, max_steps=1)
    assert "save_only_model" in problem(output / "checkpoint-1")
