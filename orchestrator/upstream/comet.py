"""`comet-score` of an environment of its own: unbabel-comet pins torch and transformers. Tried with a stand-in only."""

import json
import os
import signal
from importlib.metadata import Distribution
from pathlib import Path

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.files import expanded
from orchestrator.processes.process import child_environment, repro_command, start

VARIABLE = "ORCHESTRATOR_COMET"
_REMEDY = f"python3 -m venv DIR && DIR/bin/pip install unbabel-comet, then {VARIABLE}=DIR; not beside LLaMA-Factory"


def find_comet(model: str, root: Path) -> tuple[Path, str, str]:
    """The program comet-score of ORCHESTRATOR_COMET, its version, and the model as it is given (a .ckpt file absolute).

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
    return program, package.version, str(path) if model.endswith(".ckpt") else model


def comet_segments(folder: Path, program: Path, model: str, n_refs: int, devices: str | None, log: Path) -> list[float]:
    """Each segment's score of a benchmark's folder. StageError: comet-score failed."""
    output = log.with_suffix(".json")
    output.unlink(missing_ok=True)  # of an attempt before
    argv = [str(program), "-s", "sources.txt", "-t", "hypotheses.txt", *["-r", "references.txt"][: 2 * n_refs]]
    argv += ["--model", model, "--only_system", "--to_json", output.name]
    extra = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    environment = child_environment(program, extra)
    child = start(argv, log=log, cwd=folder, env=environment, death_signal=signal.SIGKILL, watched=True)
    try:
        while child.poll() is None:
            child.wait(0.2)
        return [float(row["COMET"]) for row in json.loads(output.read_bytes())["hypotheses.txt"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"comet-score ended with status {child.poll()}; last lines of {log}:\n{child.log_tail()}"
        raise StageError(what, repro_command(folder, argv, extra)) from error
    finally:
        child.stop(5)
