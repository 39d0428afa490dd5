"""The checkpoints of a run, looked at before anything is resumed from one or thrown away.

Covered: whether a checkpoint-N is whole and holds what a resumed training reads; which one to resume from, and why not
a newer one; what may not have changed since; which ones a clean-up has to keep.
A whole one has trainer_state.json, which the Trainer writes last, with global_step N; no checkpoint-is-incomplete.txt;
safetensors of the size that their headers tell of; and the state of the optimizer, the schedule and the random numbers:
  plain, DDP   optimizer.pt, scheduler.pt, rng_state.pth or an rng_state_K.pth of each process
  DeepSpeed    global_stepN/, named by the file latest, which is written when all ranks are done, and rng_state as above
  FSDP         pytorch_model_fsdp_0/ and optimizer_0/, each with the .metadata that is written last, or
               pytorch_model_fsdp.bin and optimizer.bin; scheduler.pt and rng_state as above
Files of torch.save are zip archives: the directory at their end and the header of every entry are looked at.
Not covered: the values within (nothing is unpickled; a bit that flipped goes unseen), whether each rank's part of a
DeepSpeed or FSDP state is there, TPU and SageMaker.
Writes nothing.
"""

import json
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.models.model_files import MAX_JSON_BYTES, unchecked_weights, weight_problems
from orchestrator.models.tensorfile import read_header
from orchestrator.runs.drift import Severity, drifts
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.compute_spec import ComputeSpec
from orchestrator.specs.spec import RunSpec

SENTINEL = "checkpoint-is-incomplete.txt"  # transformers' trainer_jit_checkpoint.py
_LABEL = re.compile(r"checkpoint-([0-9]+)")
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


@dataclass(frozen=True)
class Problem:
    """Something that changed since a checkpoint was saved."""

    severity: Severity
    """error: the training would go on as another one, or not at all."""
    message: str


def inspect(folder: Path, *, world_size: int | None = None, ranks: range | None = None) -> Inspected:
    """Look at a checkpoint-N.

    Args:
        folder: the checkpoint.
        world_size: how many processes would go on with it. None: as many as saved it.
        ranks: of several machines, those of them that run on this one; the states of the others are not needed here.

    Raises:
        SpecError: the folder's name is another one.
    """
    match = _LABEL.fullmatch(folder.name)
    if match is None:
        raise SpecError(f"{folder} is no checkpoint: its name would be checkpoint-N")
    try:
        problems = _problems(folder, int(match[1]), world_size, ranks)
    except OSError as error:  # it went while it was looked at, or can't be read
        problems = [f"{error.filename} cannot be read: {error.strerror}"]
    short = [problem.replace(f"{folder}/", "") for problem in problems]
    return Inspected(folder, folder.name, int(match[1]), list(dict.fromkeys(short)))


def usable_checkpoints(run: RunDir, world_size: int | None = None, ranks: range | None = None) -> list[Inspected]:
    """Every checkpoint of a run, the newest first, whole or not."""
    return [inspect(folder, world_size=world_size, ranks=ranks) for folder in _folders(run)]


def choose_checkpoint(
    run: RunDir, label: str | None = None, world_size: int | None = None, ranks: range | None = None
) -> tuple[Inspected | None, list[str]]:
    """The checkpoint to resume from, and in lines why newer ones are passed over.

    Args:
        run: the run.
        label: checkpoint-N, that one and no other. None: the newest whole one.
        world_size: how many processes would go on with it. None: as many as saved it.
        ranks: of several machines, the processes on this one.

    Returns:
        None instead of a checkpoint where none is whole.

    Raises:
        SpecError: there is none of that label.
        PrerequisiteError: the one of that label is not whole.
    """
    if label is not None:
        return _named_checkpoint(run, label, world_size, ranks), []
    passed_over: list[str] = []
    for folder in _folders(run):
        found = inspect(folder, world_size=world_size, ranks=ranks)
        if found.whole:
            return found, passed_over
        passed_over.append(f"{found.label} is passed over: {'; '.join(found.problems)}")
    return None, passed_over


def planned_world_size(compute: ComputeSpec, facts: Facts) -> int | None:
    """How many processes a training has, as far as its spec tells. None: LLaMA-Factory decides by the devices it sees.

    Without nproc_per_node that is one for each device that the spec names, on a machine with GPUs. Of several machines
    it is not known either: each may keep the states of its own processes alone.
    """
    nodes = compute.slurm.nodes if compute.slurm is not None else compute.nnodes
    if nodes not in (None, 1) or compute.rdzv_id is not None:
        return None
    if compute.nproc_per_node is not None:
        return compute.nproc_per_node
    devices = [each for each in (compute.devices or "").split(",") if each.strip()]
    return len(devices) if devices and facts.gpus else None


def resume_problems(spec_then: RunSpec, spec_now: RunSpec, then: Facts, now: Facts) -> list[Problem]:
    """What changed since the run began that bears on going on with it, the worst first.

    A checkpoint holds the state of the optimizer and the schedule, and how far into the data it was. Other examples,
    other steps or other weights under it make a training that neither spec describes, mostly without a word.
    """
    problems = [
        Problem(severity, each.line() + _what_comes_of(each.name))
        for each in drifts(spec_then, then, spec_now, now)
        if (severity := _resume_severity(each.kind, each.name, each.effect, each.severity)) is not None
    ]
    sizes = [planned_world_size(spec.compute, facts) for spec, facts in ((spec_then, then), (spec_now, now))]
    if None not in sizes and sizes[0] != sizes[1]:
        problems.append(
            Problem("error", f"processes: {sizes[0]} then, {sizes[1]} now: a step is another set of examples")
        )
    return sorted(problems, key=lambda problem: ("error", "warning", "note").index(problem.severity))


def best_and_last(run: RunDir) -> set[str]:
    """The labels of the checkpoints that a clean-up has to keep.

    The newest whole one, or where none is, the newest whose weights are; the one that trainer_state.json names as the
    best, or the one of the lowest eval_loss; the best by each metric of each of our own benchmarks, and the chosen one.

    Raises:
        PrerequisiteError: the run's record is damaged.
    """
    found = usable_checkpoints(run)
    labels = {each.label for each in found}
    last = [each.label for each in found if each.whole] or [each.label for each in found if can_be_served(each)]
    state = next((state for each in found if (state := _json(each.folder / "trainer_state.json"))), {})
    record = RunRecord.load(run)
    chosen = {record.chosen_checkpoint or ""} & labels
    return {*last[:1], *(_best_by_trainer(state, labels) & labels), *_best_by_benchmarks(record, labels), *chosen}


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
    state = _json(path)
    if state is None:
        return ["trainer_state.json is no JSON mapping: cut off, or something else"]
    if state.get("global_step") != step:
        return [f"trainer_state.json is of step {state.get('global_step')!r}"]
    return []


def _weights_problems(folder: Path, *, needed: bool) -> list[str]:
    """Of the weights in ordinary files. Not needed: DeepSpeed and FSDP may hold them in files of their own alone."""
    problems = []
    for name in ("config.json", "adapter_config.json", "model.safetensors.index.json"):
        if (folder / name).is_file() and _json(folder / name) is None:
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


def _named_checkpoint(run: RunDir, label: str, world_size: int | None, ranks: range | None) -> Inspected:
    folders = {folder.name: folder for folder in _folders(run)}
    if label not in folders:
        have = f"it has: {', '.join(folders)}" if folders else "it has none"
        raise SpecError(f"run {run.id} has no {label}{did_you_mean(label, folders)}; {have}")
    found = inspect(folders[label], world_size=world_size, ranks=ranks)
    if found.whole:
        return found
    other, _ = choose_checkpoint(run, None, world_size, ranks)
    remedy = f"the newest whole one is {other.label}" if other else "no checkpoint of the run is whole"
    raise PrerequisiteError(f"{label} of {run.id} can't be resumed from: {'; '.join(found.problems)}", remedy)


def _folders(run: RunDir) -> list[Path]:
    """output/checkpoint-N, the newest first."""
    return [path for path in reversed(run.checkpoints()) if _LABEL.fullmatch(path.name) and path.is_dir()]


def _resume_severity(kind: str, name: str, effect: str, severity: Severity) -> Severity | None:
    if kind in ("data", "model", "adapter"):
        return severity if effect == "course" else "note"
    if kind == "spec":
        if name.startswith(("train.deepspeed", "train.fsdp")):
            return "error"  # the state is in another form
        return {"course": "error", "rounding": "warning"}.get(effect)  # type: ignore[return-value]
    return "warning" if effect == "rounding" else None


def _what_comes_of(name: str) -> str:
    """For the changes that are made in good faith."""
    if name in ("train.num_train_epochs", "train.max_steps"):
        return ": the schedule would jump to where it would have been"
    if name == "train.learning_rate":
        return ": the checkpoint's own would be taken all the same"
    if name in ("train.per_device_train_batch_size", "train.gradient_accumulation_steps"):
        return ": a step is another set of examples"
    return ""


def _best_by_trainer(state: dict[str, Any], labels: set[str]) -> set[str]:
    named = state.get("best_model_checkpoint")
    if isinstance(named, str):
        return {Path(named).name}
    history = state.get("log_history")
    losses = {
        f"checkpoint-{event.get('step')}": float(event["eval_loss"])
        for event in (history if isinstance(history, list) else [])
        if isinstance(event, dict) and isinstance(event.get("eval_loss"), int | float)
    }
    saved = {label: loss for label, loss in losses.items() if label in labels and loss == loss}  # NaN is none
    return {min(saved, key=lambda label: saved[label])} if saved else set()


def _best_by_benchmarks(record: RunRecord, labels: set[str]) -> set[str]:
    """The best of each group of scores that may be compared; of equal ones, the later benchmark's."""
    best: dict[tuple[object, ...], tuple[float, str]] = {}
    for each in record.benchmarks:
        if each.of not in labels or each.status != "complete":
            continue
        for score in each.scores:
            group = (each.testset, each.split, each.n_segments, score.metric, score.signature)
            worth = -score.score if score.metric == "ter" else score.score
            if group not in best or worth >= best[group][0]:
                best[group] = (worth, each.of)
    return {label for _, label in best.values()}


def _json(path: Path) -> dict[str, Any] | None:
    """A file's JSON mapping; None where it is no such thing."""
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return None
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
