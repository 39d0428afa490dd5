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


def find_comet() -> tuple[Path, str]:
    """The program comet-score of ORCHESTRATOR_COMET, and its version; PrerequisiteError where there is none."""
    environment = expanded(os.environ.get(VARIABLE) or "/none")
    sites = [str(path) for path in environment.glob("lib*/python3*/site-packages")]
    package = next(iter(Distribution.discover(name="unbabel-comet", path=sites)), None)
    if package is None:
        what = f"COMET needs an environment with unbabel-comet; {VARIABLE} is {os.environ.get(VARIABLE, 'not set')}"
        raise PrerequisiteError(what, _REMEDY)
    return (environment / "bin" / "comet-score").absolute(), package.version


def comet_segments(folder: Path, program: Path, model: str, n_refs: int, devices: str | None) -> list[float]:
    """Each segment's score of a benchmark's folder. StageError: comet-score failed."""
    argv = [str(program), "-s", "sources.txt", "-t", "hypotheses.txt", *["-r", "references.txt"][: 2 * n_refs]]
    argv += ["--model", model, "--only_system", "--to_json", "comet.json"]
    extra, log = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}, folder / "comet.log"
    (folder / "comet.json").unlink(missing_ok=True)  # of an attempt before
    environment = child_environment(program, extra)
    child = start(argv, log=log, cwd=folder, env=environment, death_signal=signal.SIGKILL, watched=True)
    try:
        while child.poll() is None:
            child.wait(0.2)
        return [float(row["COMET"]) for row in json.loads((folder / "comet.json").read_bytes())["hypotheses.txt"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"comet-score ended with status {child.poll()}; last lines of {log}:\n{child.log_tail()}"
        raise StageError(what, repro_command(folder, argv, extra)) from error
    finally:
        child.stop(5)
