"""Whether a checkpoint-N is complete and holds all that a resumed training reads. Nothing is unpickled.

A complete one has trainer_state.json with global_step N, which the Trainer writes last, complete safetensors, no
checkpoint-is-incomplete.txt, and the state of the optimizer, the schedule and the random numbers:
  plain, DDP   optimizer.pt, scheduler.pt, rng_state.pth or an rng_state_K.pth of each process
  DeepSpeed    global_stepN/, named by the file `latest`, which is written when all ranks are done; rng_state as above
  FSDP         pytorch_model_fsdp_0/ and optimizer_0/, each with the .metadata that is written last, or
               pytorch_model_fsdp.bin and optimizer.bin; scheduler.pt and rng_state as above
"""

import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import json_mapping
from orchestrator.models.model_files import unchecked_weights, weight_problems
from orchestrator.models.safetensors_header import read_header

SENTINEL = "checkpoint-is-incomplete.txt"  # transformers' trainer_jit_checkpoint.py
CHECKPOINT_LABEL = re.compile(r"checkpoint-([0-9]+)")
_RNG = re.compile(r"rng_state_([0-9]+)\.pth")
# One that can't be resumed from, though it is whole otherwise.
_ONLY_MODEL = "it holds no optimizer state (save_only_model): it can be served, not resumed from"


@dataclass(frozen=True)
class Inspected:
    """A checkpoint and what is wrong with it."""

    folder: Path
    label: str
    """checkpoint-N."""
    step: int
    problems: list[str]
    """Why it can't be resumed from; empty where it can."""

    @property
    def whole(self) -> bool:
        return not self.problems

    def line(self) -> str:
        return f"{self.label}: {'; '.join(self.problems) or 'whole'}"


def inspect(folder: Path, *, world_size: int | None = None, ranks: range | None = None) -> Inspected:
    """Look at a checkpoint-N.

    Args:
        folder: the checkpoint.
        world_size: how many processes would go on with it. None: as many as saved it.
        ranks: of several machines, those of them that run on this one; the states of the others are not needed here.

    Raises:
        SpecError: the folder's name is another one.
    """
    match = CHECKPOINT_LABEL.fullmatch(folder.name)
    if match is None:
        raise SpecError(f"{folder} is no checkpoint: its name would be checkpoint-N")
    try:
        problems = _problems(folder, int(match[1]), world_size, ranks)
    except OSError as error:  # it went while it was looked at, or can't be read
        problems = [f"{error.filename} cannot be read: {error.strerror}"]
    short = [problem.replace(f"{folder}/", "") for problem in problems]
    return Inspected(folder, folder.name, int(match[1]), list(dict.fromkeys(short)))


def is_saved(found: Inspected) -> bool:
    """Whether it was written to its end: a training that is under way may be writing one."""
    return found.whole or found.problems == [_ONLY_MODEL]


def can_be_served(found: Inspected) -> bool:
    """Whether its weights are whole, whatever else of it is not."""
    return found.problems == [_ONLY_MODEL] or not _weights_problems(found.folder, needed=True)


def _problems(folder: Path, step: int, world_size: int | None, ranks: range | None) -> list[str]:
    if not folder.is_dir():
        return [f"{folder} is no folder"]
    problems = [f"{SENTINEL} is there: it was being saved when the training ended"] * (folder / SENTINEL).exists()
    problems += _trainer_state_problems(folder, step)
    has_state = not problems
    sharded = _deepspeed_problems(folder)
    if sharded is None:
        sharded = _fsdp_problems(folder)
    problems += _weights_problems(folder, needed=sharded is None)
    rng = _rng_problems(folder, world_size, ranks)
    if sharded is None:
        parts = [folder / "optimizer.pt", folder / "scheduler.pt"]
        if has_state and not any(path.exists() for path in [*parts, *folder.glob("rng_state*.pth")]):
            return [*problems, _ONLY_MODEL]
        sharded = [problem for path in parts for problem in _archive_problems(path)]
    scaler = folder / "scaler.pt"  # of fp16
    return [*problems, *sharded, *rng, *(_archive_problems(scaler) if scaler.exists() else [])]


def _trainer_state_problems(folder: Path, step: int) -> list[str]:
    path = folder / "trainer_state.json"
    if not path.is_file():
        return ["trainer_state.json is missing: it is written last, so the checkpoint was not finished"]
    state = json_mapping(path)
    if state is None:
        return ["trainer_state.json is no JSON mapping: cut off, or something else"]
    if state.get("global_step") != step:
        return [f"trainer_state.json is of step {state.get('global_step')!r}"]
    return []


def _weights_problems(folder: Path, *, needed: bool) -> list[str]:
    """Of the weights in ordinary files. Not needed: DeepSpeed and FSDP may hold them in files of their own alone."""
    problems = []
    for name in ("config.json", "adapter_config.json", "model.safetensors.index.json"):
        if (folder / name).is_file() and json_mapping(folder / name) is None:
            problems.append(f"{name} is no JSON mapping: cut off, or something else")
    if needed and not problems:
        problems += weight_problems(folder)
        problems += [problem for name in unchecked_weights(folder) for problem in _archive_problems(folder / name)]
    for path in sorted(folder.glob("*.safetensors")):  # the value head of rm and ppo, and what sharded states have
        try:
            read_header(path)
        except PrerequisiteError as error:
            problems.append(error.message)
    return problems


def _deepspeed_problems(folder: Path) -> list[str] | None:
    """Of DeepSpeed's state; None where there is no sign of one."""
    latest = folder / "latest"
    if not latest.is_file():
        tags = sorted(path.name for path in folder.glob("global_step*"))
        return [f"latest is missing: {tags[0]} was not finished"] if tags else None
    tag = latest.read_bytes()[:200].decode("utf-8", "replace").strip()
    state = folder / tag
    if state.name != tag or tag in ("", "..") or not state.is_dir():
        return [f"latest names {tag!r}, which is no folder beside it"]
    parts = sorted(state.glob("*.pt"))
    if not any(path.name.endswith("model_states.pt") for path in parts):
        return [f"{tag} has no *model_states.pt"]
    return [problem for path in parts for problem in _archive_problems(path)]


def _fsdp_problems(folder: Path) -> list[str] | None:
    """Of FSDP's state, whole in two files or sharded in two folders; None where there is no sign of one."""
    if not any(folder.glob("pytorch_model_fsdp*")):
        return None
    problems = []
    for name in ("pytorch_model_fsdp", "optimizer"):
        shards, whole = folder / f"{name}_0", folder / f"{name}.bin"
        if not shards.is_dir():
            problems += _archive_problems(whole)
            continue
        parts = [shards / ".metadata", *sorted(shards.glob("*.distcp"))]
        if len(parts) == 1:
            problems.append(f"{shards} has no *.distcp")
        problems += [f"{path} is missing or empty" for path in parts if not path.is_file() or not path.stat().st_size]
    return problems + _archive_problems(folder / "scheduler.pt")


def _rng_problems(folder: Path, world_size: int | None, own: range | None) -> list[str]:
    """Of the states of the random numbers: one file of each process that saved it."""
    if own is not None:
        return [problem for rank in own for problem in _archive_problems(folder / f"rng_state_{rank}.pth")]
    ranks = sorted(int(match[1]) for path in folder.glob("rng_state_*.pth") if (match := _RNG.fullmatch(path.name)))
    saved_by = len(ranks) or int((folder / "rng_state.pth").is_file())
    expected = world_size or saved_by or 1
    if saved_by and expected != saved_by:
        return [f"it is of {saved_by} process{'es' * (saved_by > 1)}, and {expected} would go on with it"]
    first = ranks[0] if ranks and world_size is None else 0  # of a later one of several machines it is not 0
    numbers = range(first, ranks[-1] + 1) if ranks and world_size is None else range(expected)
    names = ["rng_state.pth"] if expected == 1 and not ranks else [f"rng_state_{rank}.pth" for rank in numbers]
    return [problem for name in names for problem in _archive_problems(folder / name)]


def _archive_problems(path: Path) -> list[str]:
    """Of a file that torch.save wrote: a zip archive, whose directory stands at the end."""
    if not path.is_file():
        return [f"{path} is missing"]
    if not path.stat().st_size:
        return [f"{path} is empty"]
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                archive.open(entry).close()  # reads the entry's own header, which names it again
            if archive.infolist():
                return []
    except (zipfile.BadZipFile, struct.error, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        return [f"{path} is cut off, or no file of torch.save ({error})"]
    return [f"{path} holds nothing"]
