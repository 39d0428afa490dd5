"""The workspace, its runs and groups: where the files are, and how a run is found by what a user calls it."""

import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.files import expanded, json_mapping, resolved

_RUN_ID = re.compile(r"(.+)-([0-9]{8}-[0-9]{6})(?:-([0-9]+))?", re.DOTALL)


def prepared_file(name: str) -> str:
    """The file of a dataset that is prepared for training, relative to the run folder."""
    return f"data/{name}.jsonl"


class _InFolder:
    """A path in the folder of the object that it is read from."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: "_Folder | Workspace", owner: type) -> Path:
        return (folder.root if isinstance(folder, Workspace) else folder.path) / self.name


@dataclass(frozen=True)
class _Folder:
    path: Path

    @property
    def id(self) -> str:
        return self.path.name


class RunDir(_Folder):
    """The folder of one run."""

    spec = _InFolder("spec.yaml")
    record = _InFolder("record.json")
    record_lock = _InFolder(".record.lock")
    owner_lock = _InFolder(".owner.lock")  # held by the process that carries the run out
    notes = _InFolder("notes.json")  # tags and notes; apart from the record, which the run's owner writes
    notes_lock = _InFolder(".notes.lock")
    defaults = _InFolder("defaults.json")  # LLaMA-Factory's on the day when the training began
    train_yaml = _InFolder("train.yaml")
    api_yaml = _InFolder("api.yaml")
    export_yaml = _InFolder("export.yaml")
    workspace_diff = _InFolder("workspace.diff")  # what of the workspace was in no commit when the run started
    data = _InFolder("data")  # what was prepared for the training
    train_log = _InFolder("logs/train.log")
    export_log = _InFolder("logs/export.log")
    supervisor_log = _InFolder("logs/supervisor.log")  # of the process that carries out a detached run
    sbatch = _InFolder("sbatch.sh")  # the script of the Slurm job that carries the run out
    output = _InFolder("output")  # LLaMA-Factory's output_dir
    trainer_log = _InFolder("output/trainer_log.jsonl")
    export = _InFolder("export")  # the merged model, where `export` is given no other folder
    benchmarks = _InFolder("benchmarks")
    curve = _InFolder("curve.json")  # the checkpoints' scores by step, as they were last compared

    def checkpoints(self) -> list[Path]:
        """output/checkpoint-N, by N."""
        found = [path for path in self.output.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def new_set_aside(self) -> Path:
        """A new folder output-1, output-2, ...: for what would stand in a resumed training's way."""
        return new_folder(self.path, "output", numbered=True)

    def new_benchmark(self, name: str) -> Path:
        """A new folder benchmarks/<name>, with a number where that is taken."""
        return new_folder(self.benchmarks, name)


class GroupDir(_Folder):
    """The folder of a group of runs; their own folders lie beside it."""

    file = _InFolder("group.json")
    supervisor_log = _InFolder("logs/supervisor.log")


def new_folder(parent: Path, name: str, *, numbered: bool = False) -> Path:
    """A new folder NAME, or NAME-2, NAME-3, ... where that is taken; `numbered`: NAME-1, NAME-2, ..."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        path = parent / (name if number == 1 and not numbered else f"{name}-{number}")
        try:
            path.mkdir()  # atomic: of two launches in one second, one gets it
        except FileExistsError:
            continue
        return path
    raise SpecError(f"{parent} has 10,000 folders that begin with {name}", "clear some away")


@dataclass(frozen=True)
class Workspace:
    """A folder with runs/ and dataset_info/ (and templates/, where it overrides the shipped ones)."""

    root: Path

    runs = _InFolder("runs")
    schema = _InFolder("runs/.spec.schema.json")  # for the LLaMA-Factory of this machine; a spec's first line names it
    trash = _InFolder("runs/.trash")  # beside the run folders, so that moving something there is a rename
    dataset_info = _InFolder("dataset_info")
    templates = _InFolder("templates")

    def new_run(self, name: str, now: datetime) -> RunDir:
        """A new, empty run folder runs/<name>-<YYYYMMDD-HHMMSS>, with a suffix where that is taken."""
        return RunDir(new_folder(self.runs, f"{name}-{now:%Y%m%d-%H%M%S}"))

    def new_group(self, name: str, now: datetime) -> GroupDir:
        """The same for a group of runs: runs/<name>-sweep-<YYYYMMDD-HHMMSS>."""
        return GroupDir(new_folder(self.runs, f"{name}-sweep-{now:%Y%m%d-%H%M%S}"))

    def all_runs(self) -> list[RunDir]:
        """Every run folder, oldest first by its record's created_at."""
        return [RunDir(path) for path in self._folders_with("record.json")]

    def lookup_run(self, word: str) -> RunDir | None:
        """The run that a word means: an id, a run folder, a spec's name (its newest run), or latest."""
        found = self._lookup(word, "record.json")
        return RunDir(found) if found else None

    def find_run(self, word: str) -> RunDir:
        """The same; SpecError where there is none, or a name is a group's too."""
        run, group = self.lookup_run(word), self.lookup_group(word)
        if run is not None and group is not None and word != run.id:
            raise SpecError(f"{word!r} is a run, {run.id}, and a group, {group.id}", "name the one you mean by its id")
        if run is not None:
            return run
        if group is not None:
            remedy = f"orchestrator show {group.id} lists its runs; name one by its id"
            raise SpecError(f"{word!r} is a group of runs, {group.id}: this takes a run", remedy)
        what = f"no run {word!r} in {self.runs}{did_you_mean(word, self.run_words())}"
        raise SpecError(what, "orchestrator list shows the runs")

    def run_words(self) -> set[str]:
        """Every word that lookup_run knows but paths."""
        runs = self.all_runs()
        return {run.id for run in runs} | {spec_name(run.id) for run in runs}

    def lookup_group(self, word: str) -> GroupDir | None:
        """The group that a word means: its id, its folder, or its id without the time (the newest such group)."""
        found = self._lookup(word, "group.json")
        return GroupDir(found) if found else None

    def find_group(self, word: str) -> GroupDir:
        """The same; SpecError where there is none."""
        if (group := self.lookup_group(word)) is not None:
            return group
        known = [path.name for path in self._folders_with("group.json")]
        raise SpecError(f"no group {word!r} in {self.runs}{did_you_mean(word, known)}", "launch --sweep makes groups")

    def _lookup(self, word: str, file: str) -> Path | None:
        for path in (Path(word), self.root / word) if word else ():
            if _has_file(path, file):
                return resolved(path)
        if word and "/" not in word and _has_file(self.runs / word, file):
            return self.runs / word
        is_latest = word == "latest" and file == "record.json"
        named = [path for path in self._folders_with(file) if is_latest or spec_name(path.name) == word]
        return named[-1] if named else None

    def _folders_with(self, name: str) -> list[Path]:
        """Oldest first."""
        paths = self.runs.iterdir() if self.runs.is_dir() else ()
        found = [path for path in paths if not path.name.startswith(".") and _has_file(path, name)]
        return sorted(found, key=lambda path: _age(path, name))


def find_workspace(given: Path | None = None) -> Workspace:
    """The workspace: `given`, or $ORCHESTRATOR_WORKSPACE, or the nearest folder upwards; SpecError without one."""
    named = given or os.environ.get("ORCHESTRATOR_WORKSPACE")
    here = resolved(expanded(named)) if named else Path.cwd()
    for folder in (here,) if named else (here, *here.parents):
        if (folder / "runs").is_dir() and (folder / "dataset_info").is_dir():
            return Workspace(folder)
    message = f"no workspace: {here} has no runs/ and dataset_info/" + ("" if named else ", nor has a folder above it")
    raise SpecError(message, f"orchestrator init {here} makes one; --workspace DIR names one elsewhere")


def spec_name(run_id: str) -> str:
    """'demo' for demo-20261124-101500 and demo-20261124-101500-2."""
    return match[1] if (match := _RUN_ID.fullmatch(run_id)) else run_id


def _has_file(folder: Path, name: str) -> bool:
    return os.path.isfile(folder / name)  # noqa: PTH113 - Path.is_file raises where a name is too long


def _age(path: Path, file: str) -> tuple[datetime, int, str]:
    """When a run or a group was made, as its file has it: ids have local times; within a second by the id's number."""
    match = _RUN_ID.fullmatch(path.name)
    try:
        created = datetime.fromisoformat((json_mapping(path / file) or {})["created_at"]).astimezone()
    except (KeyError, TypeError, ValueError, OverflowError):  # damaged
        created = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    return created, int(match[3] or 1) if match else 1, path.name
