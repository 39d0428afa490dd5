"""Where the files of a run and of a group of runs are. Nobody else joins these paths."""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SpecError


def prepared_file(name: str) -> str:
    """The file of a dataset that is prepared for training, relative to the run folder."""
    return f"data/{name}.jsonl"


class _InFolder:
    """A path in the folder of the object that it is read from."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: "RunDir | GroupDir", owner: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    path: Path

    spec = _InFolder("spec.yaml")
    record = _InFolder("record.json")
    record_lock = _InFolder(".record.lock")
    owner_lock = _InFolder(".owner.lock")  # held by the process that carries the run out
    notes = _InFolder("notes.json")  # tags and notes; apart from the record, which the run's owner writes
    notes_lock = _InFolder(".notes.lock")
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

    @property
    def id(self) -> str:
        return self.path.name

    def training_file(self, name: str) -> Path:
        """The prepared file of a dataset, by its name in dataset_info.json."""
        return self.path / prepared_file(name)

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


@dataclass(frozen=True)
class GroupDir:
    """The folder of a group of runs; their own folders lie beside it."""

    path: Path

    file = _InFolder("group.json")
    supervisor_log = _InFolder("logs/supervisor.log")

    @property
    def id(self) -> str:
        return self.path.name


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
