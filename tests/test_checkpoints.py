"""Whether a checkpoint is complete. Run: pytest tests/test_checkpoints.py."""

import json
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.models.checkpoints import SENTINEL, inspect
from orchestrator.models.model_files import weight_problems
from tests.checkpoint_folders import checkpoint, deepspeed_checkpoint, fsdp_checkpoint

READ_BY_A_RESUME = ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt"]
READ_BY_A_RESUME += ["rng_state.pth", "trainer_state.json"]


def problem(folder: Path, **keywords: range) -> str:
    (found,) = inspect(folder, **keywords).problems
    return found


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (checkpoint, {}),
        (checkpoint, {"full": True, "processes": 3}),
        (deepspeed_checkpoint, {}),
        (fsdp_checkpoint, {}),
        (fsdp_checkpoint, {"sharded": False}),
    ],
)
def test_a_checkpoint_as_the_trainer_leaves_it_is_complete(run, make, how):
    folder = make(run, 100, **how)
    for name in ("README.md", "training_args.bin"):  # a resume does not read them
        (folder / name).unlink()
    found = inspect(folder)
    assert (found.label, found.step, found.problems, found.complete) == ("checkpoint-100", 100, [], True)
    assert found.is_saved
    (folder / SENTINEL).write_text("Checkpoint started at step 100 and in progress...")
    assert SENTINEL in problem(folder) and not inspect(folder).is_saved


@pytest.mark.parametrize("name", READ_BY_A_RESUME)
def test_a_file_that_is_missing_or_cut_off_anywhere_is_named(run, name):
    folder = checkpoint(run, 100)
    content = (folder / name).read_bytes()
    n_bytes = len(content.rstrip())  # without a line end JSON says the same
    for length in {*range(0, n_bytes, 7), n_bytes - 1}:
        (folder / name).write_bytes(content[:length])
        assert name in problem(folder)
    assert (not weight_problems(folder)) is (not name.startswith("adapter"))
    (folder / name).unlink()
    assert inspect(folder).problems


@pytest.mark.parametrize("step", [99, None, "100"])
def test_the_step_is_that_of_the_folder_s_name(run, step):
    folder = checkpoint(run, 100)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert problem(folder) == f"trainer_state.json is of step {step!r}"


def test_one_that_kept_the_model_alone_is_told_from_a_broken_one(run):
    folder = checkpoint(run, 100)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()
    assert "save_only_model" in problem(folder) and inspect(folder).is_saved and not weight_problems(folder)
    (folder / "trainer_state.json").unlink()  # it may have been going to be more
    assert "save_only_model" not in "; ".join(inspect(folder).problems)


@pytest.mark.parametrize("name", ["scaler.pt", "value_head.safetensors"])
def test_the_scaler_of_fp16_and_the_value_head_of_ppo_are_looked_at_where_there_is_one(run, name):
    folder = checkpoint(run, 100)
    (folder / name).write_bytes(b"PK" + bytes(20))
    assert problem(folder).startswith(name)


def test_the_random_numbers_of_each_process_are_missed(run):
    folder = checkpoint(run, 100, processes=3)
    (folder / "rng_state_1.pth").unlink()
    assert problem(folder) == "rng_state_1.pth is missing"
    assert problem(folder, ranks=range(1, 3)) == "rng_state_1.pth is missing"
    assert inspect(folder, ranks=range(2, 3)).complete
    (folder / "rng_state_0.pth").unlink()  # of the second of two machines
    assert inspect(folder).complete


def test_another_folder_is_no_checkpoint(run):
    with pytest.raises(SpecError, match="checkpoint-N"):
        inspect(run.output)


def test_what_a_deepspeed_checkpoint_lacks_is_named(run):
    folder = deepspeed_checkpoint(run, 100)
    part = folder / "global_step100" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    part.write_bytes(part.read_bytes()[:-1])
    assert problem(folder).startswith("global_step100/zero_pp_rank_1_mp_rank_00_optim_states.pt is empty, cut off")
    assert weight_problems(folder)
    (folder / "latest").unlink()
    assert "latest" in problem(folder)


@pytest.mark.parametrize("tag", ["global_step7", "../checkpoint-50/global_step50", "", "..", "global_step0"])
def test_latest_names_a_folder_beside_it_that_holds_the_model(run, tag):
    deepspeed_checkpoint(run, 50)
    folder = deepspeed_checkpoint(run, 100)
    (folder / "global_step0").mkdir()
    (folder / "latest").write_text(tag)
    assert problem(folder).endswith("is missing")


FSDP_FILES = ["optimizer_0/.metadata", "pytorch_model_fsdp_0/.metadata", "scheduler.pt"]


@pytest.mark.parametrize("name", [*FSDP_FILES, "optimizer.bin", "pytorch_model_fsdp.bin"])
def test_what_an_fsdp_checkpoint_lacks_is_named(run, name):
    folder = fsdp_checkpoint(run, 100, sharded=not name.endswith(".bin"))
    (folder / name).unlink()
    if name != "pytorch_model_fsdp.bin":  # without it there is no sign of FSDP
        assert problem(folder).startswith(f"{name} is missing")
    assert not inspect(folder).complete
