"""`comet-score` of an environment of its own: unbabel-comet pins torch and transformers. Tried with a stand-in only."""

import json
import math
import os
import re
import signal
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.files import expanded, sha256_file
from orchestrator.processes.process import child_environment, repro_command, start

VARIABLE = "ORCHESTRATOR_COMET"
_REMEDY = f"python3 -m venv DIR && DIR/bin/pip install unbabel-comet, then {VARIABLE}=DIR; not beside LLaMA-Factory"


@dataclass(frozen=True)
class Comet:
    """A model of COMET and the program that computes it."""

    program: Path
    version: str
    model: str
    """A name of the hub's, or the absolute path of a .ckpt file."""

    @property
    def name(self) -> str:
        """The model's name; a file's with its hash."""
        path = Path(self.model)
        return f"{path.name}@{sha256_file(path)[:12]}" if path.is_absolute() else self.model

    @property
    def n_refs(self) -> int:
        return 0 if re.search(r"kiwi|\bqe\b", self.model, re.IGNORECASE) else 1

    def score(self, folder: Path, n_segments: int, devices: str | None) -> list[float]:
        """Each segment's score of a benchmark's folder; StageError where they are not all there. Leaves a log there."""
        output = folder / f"comet-{re.sub('[^A-Za-z0-9._-]+', '-', self.name)[-80:]}.json"
        output.unlink(missing_ok=True)  # of an attempt before
        argv = [str(self.program), "-s", "sources.txt", "-t", "hypotheses.txt"]
        argv += [*["-r", "references.txt"][: 2 * self.n_refs], "--model", self.model]
        argv += ["--only_system", "--to_json", output.name]
        extra = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
        environment, log = child_environment(self.program, extra), output.with_suffix(".log")
        child = start(argv, log=log, cwd=folder, env=environment, death_signal=signal.SIGKILL, watched=True)
        try:
            while child.poll() is None:
                child.wait(0.2)
            segments = [float(row["COMET"]) for row in json.loads(output.read_bytes())["hypotheses.txt"]]
        except (OSError, ValueError, KeyError, TypeError):
            segments = []
        finally:
            child.stop(5)
        if child.poll() == 0 and len(segments) == n_segments and all(map(math.isfinite, segments)):
            return segments
        what = f"comet-score ended with status {child.poll()}; {len(segments)} of {n_segments} segments are scored"
        raise StageError(f"{what}; last lines of {log}:\n{child.log_tail()}", repro_command(folder, argv, extra))


def find_comet(model: str, root: Path) -> Comet:
    """The comet-score of the environment that ORCHESTRATOR_COMET names; a .ckpt file is looked for in `root`.

    Raises PrerequisiteError: there is none, or no such file. Nothing is started.
    """
    environment = expanded(os.environ.get(VARIABLE, "")).absolute()
    program = environment / "bin" / "comet-score"
    sites = [str(path) for path in environment.glob("lib*/python3*/site-packages")]
    package = next(iter(Distribution.discover(name="unbabel-comet", path=sites)), None)
    if not os.environ.get(VARIABLE) or not os.access(program, os.X_OK) or package is None:
        what = f"COMET needs an environment with unbabel-comet; {VARIABLE} is {os.environ.get(VARIABLE, 'not set')}"
        raise PrerequisiteError(what, _REMEDY)
    path = (root / expanded(model)).resolve()
    if model.endswith(".ckpt") and not path.is_file():
        raise PrerequisiteError(f"no COMET model {path}")
    return Comet(program, package.version, str(path) if model.endswith(".ckpt") else model)
