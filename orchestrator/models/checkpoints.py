"""Whether a checkpoint-N is complete and holds all that a resumed training reads. Nothing is unpickled.

A complete one has trainer_state.json with global_step N, which the Trainer writes last, complete safetensors, no
checkpoint-is-incomplete.txt, and the state of the optimizer, the schedule and the random numbers:
  plain, DDP   optimizer.pt, scheduler.pt, rng_state.pth or an rng_state_K.pth of each process
  DeepSpeed    global_stepN/, named by the file `latest`, which is written when all ranks are done; rng_state as above
  FSDP         pytorch_model_fsdp_0/ and optimizer_0/, each with the .metadata that is written last, or
               pytorch_model_fsdp.bin and optimizer.bin; scheduler.pt and rng_state as above
"""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import json_mapping
from orchestrator.models.model_files import read_header, weight_problems

SENTINEL = "checkpoint-is-incomplete.txt"  # transformers' trainer_jit_checkpoint.py
CHECKPOINT_LABEL = re.compile(r"checkpoint-([0-9]+)")
_ONLY_MODEL = "it holds no optimizer state (save_only_model): it can be served, not resumed from"


@dataclass(frozen=True)
class Inspected:
    """A checkpoint and what is wrong with it."""

    folder: Path
    label: str  # checkpoint-N
    step: int
    problems: list[str]  # why it can't be resumed from; empty where it can

    @property
    def complete(self) -> bool:
        return not self.problems

    @property
    def is_saved(self) -> bool:
        """Whether it was written to its end: a training that is under way may be writing one."""
        return self.problems in ([], [_ONLY_MODEL])


def inspect(folder: Path, *, ranks: range | None = None) -> Inspected:
    """Look at a checkpoint-N, with the random states of `ranks` (None: all); SpecError where it has another name."""
    match = CHECKPOINT_LABEL.fullmatch(folder.name)
    if match is None:
        raise SpecError(f"{folder} is no checkpoint: its name would be checkpoint-N")
    try:
        problems = _problems(folder, int(match[1]), ranks)
    except OSError as error:  # it went while it was looked at, or can't be read
        problems = [f"{error.filename} cannot be read: {error.strerror}"]
    short = [problem.replace(f"{folder}/", "") for problem in problems]
    return Inspected(folder, folder.name, int(match[1]), list(dict.fromkeys(short)))


def _problems(folder: Path, step: int, ranks: range | None) -> list[str]:
    problems = [f"{SENTINEL} is there: it was being saved when the training ended"] * (folder / SENTINEL).exists()
    state = json_mapping(folder / "trainer_state.json")
    if state is None:
        problems.append("trainer_state.json is missing or cut off: it is written last, so the saving did not end")
    elif state.get("global_step") != step:
        problems.append(f"trainer_state.json is of step {state.get('global_step')!r}")
    weights = []
    for path in folder.glob("*.safetensors"):  # the value head of rm and ppo too
        try:
            read_header(path)
        except PrerequisiteError as error:
            weights.append(error.message)
    plain = [folder / "optimizer.pt", folder / "scheduler.pt"]
    if any(folder.glob("global_step*")):
        needed = _deepspeed_files(folder)
    elif any(folder.glob("pytorch_model_fsdp*")):
        needed = [*_fsdp_files(folder), folder / "scheduler.pt"]
    else:
        weights += [*weight_problems(folder), *_archive_problems(sorted(folder.glob("*_model*.bin")))]
        if not problems and not any(path.exists() for path in [*plain, *folder.glob("rng_state*.pth")]):
            return [*weights, _ONLY_MODEL]
        needed = plain
    scaler = folder.glob("scaler.pt")  # of fp16
    return [*problems, *weights, *_archive_problems([*needed, *_rng_states(folder, ranks), *scaler])]


def _deepspeed_files(folder: Path) -> list[Path]:
    latest = folder / "latest"
    tag = latest.read_text("utf-8", "replace").strip() if latest.is_file() else ""
    if tag not in {path.name for path in folder.glob("global_step*")}:
        return [folder / "the folder global_stepN that the file latest has to name"]
    return sorted((folder / tag).glob("*.pt")) or [folder / tag / "*.pt"]


def _fsdp_files(folder: Path) -> list[Path]:
    names = ("pytorch_model_fsdp", "optimizer")
    shards = {name: folder / f"{name}_0" for name in names}
    return [shards[name] / ".metadata" if shards[name].is_dir() else folder / f"{name}.bin" for name in names]


def _rng_states(folder: Path, own: range | None) -> list[Path]:
    saved = sorted(int(path.stem.removeprefix("rng_state_")) for path in folder.glob("rng_state_*[0-9].pth"))
    if own is None and not saved:
        return [folder / "rng_state.pth"]
    # Of a later one of several machines the first is not 0.
    return [folder / f"rng_state_{rank}.pth" for rank in own or range(saved[0], saved[-1] + 1)]


def _archive_problems(paths: list[Path]) -> list[str]:
    """Of files that torch.save wrote: zip archives, whose directory stands at the end. .metadata is none."""
    problems = []
    for path in paths:
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.name != ".metadata" and not zipfile.is_zipfile(path):
            problems.append(f"{path} is empty, cut off, or no file of torch.save")
    return problems
