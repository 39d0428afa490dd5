"""Where things are: the workspace, and every file of a run folder. Nobody else joins these paths.

Covered: finding the workspace; a run folder of its own for each launch, by an atomic mkdir; finding a past run;
writing a file whole or not at all.
Not covered: what stands in the files (record.py, render.py).
"""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.files import expanded, resolved


def prepared_file(name: str) -> str:
    """The file of a dataset that is prepared for training, relative to the run folder."""
    return f"data/{name}.jsonl"


@dataclass(frozen=True)
class RunDir:
    """The folder of one run; each property names one of its files."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def notes(self) -> Path:
        """Tags and notes: what people say of a run, apart from the record, which its owner writes."""
        return self.path / "notes.json"

    @property
    def train_yaml(self) -> Path:
        return self.path / "train.yaml"

    @property
    def api_yaml(self) -> Path:
        return self.path / "api.yaml"

    @property
    def export_yaml(self) -> Path:
        return self.path / "export.yaml"

    @property
    def dataset_info(self) -> Path:
        return self.path / "dataset_info.json"

    @property
    def workspace_diff(self) -> Path:
        """What of the workspace was in no commit when the run started."""
        return self.path / "workspace.diff"

    @property
    def command(self) -> Path:
        return self.path / "command.txt"

    @property
    def defaults(self) -> Path:
        """LLaMA-Factory's defaults when the run started."""
        return self.path / "defaults.json"

    @property
    def data(self) -> Path:
        """What was prepared for the training."""
        return self.path / "data"

    def training_file(self, name: str) -> Path:
        """The prepared file of a dataset, by its name in dataset_info.json."""
        return self.path / prepared_file(name)

    @property
    def train_log(self) -> Path:
        return self.path / "logs" / "train.log"

    @property
    def export_log(self) -> Path:
        return self.path / "logs" / "export.log"

    @property
    def gpu_log(self) -> Path:
        """Memory and power of the training's GPUs, a line each every few seconds."""
        return self.path / "logs" / "gpu.csv"

    @property
    def supervisor_log(self) -> Path:
        """What the process says that carries out a detached run."""
        return self.path / "logs" / "supervisor.log"

    @property
    def sbatch(self) -> Path:
        """The script of the job of Slurm that carries the run out."""
        return self.path / "sbatch.sh"

    @property
    def sbatch_benchmark(self) -> Path:
        return self.path / "sbatch-benchmark.sh"

    @property
    def output(self) -> Path:
        """LLaMA-Factory's output_dir."""
        return self.path / "output"

    def new_set_aside(self) -> Path:
        """A new folder output-1, output-2, ...: for what would stand in a resumed training's way."""
        for number in range(1, 10_000):
            path = self.path / f"output-{number}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
        raise SpecError(f"{self.path} has 10,000 folders output-N", "clear some away")

    @property
    def trainer_log(self) -> Path:
        return self.output / "trainer_log.jsonl"

    @property
    def export(self) -> Path:
        """The merged model that `export` writes unless told otherwise."""
        return self.path / "export"

    @property
    def benchmarks(self) -> Path:
        return self.path / "benchmarks"

    @property
    def curve(self) -> Path:
        """The checkpoints' scores by step, as they were last compared."""
        return self.path / "curve.json"

    @property
    def during_log(self) -> Path:
        """What the process says that benchmarks checkpoints beside the training."""
        return self.path / "logs" / "during.log"

    def benchmark_log(self, folder: Path) -> Path:
        """The output of the server that was started for a benchmark, and for those after it."""
        return folder / "api.log"

    def checkpoints(self) -> list[Path]:
        """output/checkpoint-N, by N."""
        found = [path for path in self.output.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def new_benchmark(self, name: str) -> Path:
        """A new folder benchmarks/<name>, with a number where that is taken."""
        return _new_folder(self.benchmarks, name)


@dataclass(frozen=True)
class GroupDir:
    """The folder of a group of runs; theirs lie beside it."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def file(self) -> Path:
        """What the group is: written once, before the first of its runs begins."""
        return self.path / "group.json"

    @property
    def owner_lock(self) -> Path:
        """Held by the process that carries the group out."""
        return self.path / ".owner.lock"

    @property
    def supervisor_log(self) -> Path:
        """What that process says where the group is carried out in the background."""
        return self.path / "logs" / "supervisor.log"


@dataclass(frozen=True)
class Workspace:
    """A folder with runs/ and dataset_info/ (and templates/, where it overrides the shipped ones)."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def schema(self) -> Path:
        """The specs' JSON Schema, beside them, so that a spec's first line names it by a path that always holds.

        Not in git: it is made for the LLaMA-Factory of this machine.
        """
        return self.runs / ".spec.schema.json"

    @property
    def trash(self) -> Path:
        """Beside the run folders, so that moving something there is a rename."""
        return self.runs / ".trash"

    @property
    def dataset_info(self) -> Path:
        return self.root / "dataset_info"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    def new_run(self, name: str, now: datetime) -> RunDir:
        """A new, empty run folder runs/<name>-<YYYYMMDD-HHMMSS>, with a suffix where that is taken."""
        run = RunDir(_new_folder(self.runs, f"{name}-{now:%Y%m%d-%H%M%S}"))
        if not os.path.lexists(self.trash):
            self.trash.mkdir(exist_ok=True)  # now: on a disk that is full there is no room for a folder
        return run

    def new_group(self, name: str, now: datetime) -> GroupDir:
        """A new, empty folder runs/<name>-sweep-<YYYYMMDD-HHMMSS> for a group of runs."""
        return GroupDir(_new_folder(self.runs, f"{name}-sweep-{now:%Y%m%d-%H%M%S}"))

    def lookup_group(self, word: str) -> GroupDir | None:
        """The group that a word means: its id, its folder, or its id without the time (the newest such group)."""
        for folder in (Path(word), self.root / word, self.runs / word):
            if word and _has_file(folder, "group.json"):
                return GroupDir(folder.resolve())
        names = [path.name for path in self.runs.iterdir()] if self.runs.is_dir() else []
        named = [self.runs / name for name in names if _spec_name(name) == word and not name.startswith(".")]
        found = [path for path in named if _has_file(path, "group.json")]
        return GroupDir(max(found, key=_age)) if found else None

    def all_runs(self) -> list[RunDir]:
        """Every run folder, oldest first."""
        paths = self.runs.iterdir() if self.runs.is_dir() else ()
        found = [path for path in paths if _has_record(path) and not path.name.startswith(".")]
        return [RunDir(path) for path in sorted(found, key=_age)]

    def lookup_run(self, word: str) -> RunDir | None:
        """The run that a word means: an id, a run folder, a spec's name (its newest run), or latest.

        Raises:
            SpecError: it is a group, or may be one as well.
        """
        for folder in (Path(word), self.root / word):
            if word and _has_record(folder):
                return RunDir(folder.resolve())
        runs = self.all_runs()
        for run in runs:
            if run.id == word:
                return run
        named = runs if word == "latest" else [run for run in runs if _spec_name(run.id) == word]
        group = self.lookup_group(word)
        if group is not None:
            also = f" is the newest run {named[-1].id}, but also" if named else " is"
            raise SpecError(
                f"{word!r}{also} a group of runs, {group.id}: this takes a run",
                f"orchestrator show {group.id} lists its runs; name one by its id",
            )
        return named[-1] if named else None

    def find_run(self, word: str) -> RunDir:
        """The same; SpecError where there is none."""
        run = self.lookup_run(word)
        if run is None:
            hint = did_you_mean(word, self.run_words())
            raise SpecError(f"no run {word!r} in {self.runs}{hint}", "orchestrator list shows the runs")
        return run

    def run_words(self) -> set[str]:
        """Every word that lookup_run knows but paths."""
        runs = self.all_runs()
        return {run.id for run in runs} | {_spec_name(run.id) for run in runs}


def find_workspace(given: Path | None = None, start: Path | None = None) -> Workspace:
    """The workspace: `given`, or $ORCHESTRATOR_WORKSPACE, or the nearest folder upwards with runs/ and dataset_info/.

    Raises:
        SpecError: there is none.
    """
    named = given or (Path(value) if (value := os.environ.get("ORCHESTRATOR_WORKSPACE")) else None)
    if named is not None:
        root = resolved(expanded(named))
        if not _is_workspace(root):
            raise SpecError(f"{root} is no workspace: it has no runs/ and dataset_info/", f"orchestrator init {named}")
        return Workspace(root)
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if _is_workspace(folder):
            return Workspace(folder)
    raise SpecError(
        f"no workspace here: neither {here} nor a folder above it has runs/ and dataset_info/",
        "orchestrator init makes one here; --workspace DIR names one elsewhere",
    )


def _is_workspace(folder: Path) -> bool:
    return (folder / "runs").is_dir() and (folder / "dataset_info").is_dir()


def _has_record(folder: Path) -> bool:
    return _has_file(folder, "record.json")


def _has_file(folder: Path, name: str) -> bool:
    return os.path.isfile(folder / name)  # noqa: PTH113 - Path.is_file raises where a name is too long


def _new_folder(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()  # atomic: of two launches in one second, one gets it
        except FileExistsError:
            continue
        return path
    raise SpecError(f"{parent} has 10,000 folders that begin with {name}", "clear some away")


def _spec_name(run_id: str) -> str:
    """'demo' for demo-20261124-101500 and demo-20261124-101500-2."""
    parts = run_id.split("-")
    for end in range(len(parts) - 1, 1, -1):
        day, time = parts[end - 1 : end + 1]
        if len(day) == 8 and len(time) == 6 and (day + time).isdecimal():
            return "-".join(parts[: end - 1])
    return run_id


def _age(path: Path) -> tuple[str, int, float]:
    """Day and time of the run's id, its number within that second, and for other folders when they were changed."""
    stamp = path.name.removeprefix(_spec_name(path.name))
    moment, number = stamp[:16], stamp[17:]  # -20261124-101500, and 2 of -2
    return moment, int(number) if number.isdecimal() else 1, path.stat().st_mtime
