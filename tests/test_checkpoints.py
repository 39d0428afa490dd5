"""Whether a checkpoint is whole. Run: pytest tests/test_checkpoints.py."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.models.checkpoints import SENTINEL, inspect
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
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
