"""Small checkpoint folders, as the Trainer leaves them, written byte by byte."""

import json
import zipfile
from pathlib import Path

from orchestrator.runs.rundir import RunDir
from tests.model_folders import adapter_folder, model_folder

PROCESSES = 2


def archive(path: Path, text: bytes = b"values") -> Path:
    """A file as torch.save writes it: entries below a folder of the file's name, nothing compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name in ("data.pkl", "byteorder", "data/0", "version"):
            file.writestr(f"{path.stem}/{name}", text)
    return path


def trainer_state(folder: Path, step: int, **more: object) -> Path:
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"global_step": step, "max_steps": 300, "log_history": [], **more}, indent=2) + "\n")
    return path


def checkpoint(run: RunDir, step: int, *, full: bool = False, processes: int = 1, **state: object) -> Path:
    """A whole checkpoint-N of an adapter, or of a full model."""
    folder = run.output / f"checkpoint-{step}"
    (model_folder if full else adapter_folder)(folder)
    (folder / "README.md").write_text("# Model card")
    archive(folder / "training_args.bin")
    archive(folder / "optimizer.pt")
    archive(folder / "scheduler.pt")
    for name in ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]:
        archive(folder / name)
    trainer_state(folder, step, **state)
    return folder


def deepspeed_checkpoint(run: RunDir, step: int) -> Path:
    """Of ZeRO-3 with two ranks: the weights are in DeepSpeed's files alone."""
    folder = checkpoint(run, step, full=True, processes=PROCESSES)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        (folder / name).unlink()
    tag = f"global_step{step}"
    for rank in range(PROCESSES):
        archive(folder / tag / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        archive(folder / tag / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (folder / "latest").write_text(tag)
    return folder


def fsdp_checkpoint(run: RunDir, step: int, *, sharded: bool = True) -> Path:
    folder = checkpoint(run, step, full=True, processes=PROCESSES)
    for name in ("model.safetensors", "optimizer.pt"):
        (folder / name).unlink()
    for name in ("pytorch_model_fsdp", "optimizer"):
        if not sharded:
            archive(folder / f"{name}.bin")
            continue
        (folder / f"{name}_0").mkdir()
        for part in (".metadata", "__0_0.distcp", "__1_0.distcp"):
            (folder / f"{name}_0" / part).write_bytes(b"values")
    return folder
