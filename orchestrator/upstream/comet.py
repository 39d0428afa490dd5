"""comet-score in an environment of its own: unbabel-comet pins torch, transformers and numpy."""

import os
from importlib.metadata import Distribution
from pathlib import Path

from orchestrator.errors import PrerequisiteError
from orchestrator.files import expanded

VARIABLE = "ORCHESTRATOR_COMET"
COMMAND = "comet-score"
_PACKAGE = "unbabel-comet"
_REMEDY = f"python3 -m venv DIR && DIR/bin/pip install {_PACKAGE}, then {VARIABLE}=DIR; not beside LLaMA-Factory"


def find_comet() -> tuple[Path, str]:
    """The program comet-score of the environment that ORCHESTRATOR_COMET names, and the version of unbabel-comet.

    Raises:
        PrerequisiteError: there is none. Nothing is started.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise PrerequisiteError(f"COMET is wanted, and {VARIABLE} names no environment that has it", _REMEDY)
    program = expanded(named).absolute() / "bin" / COMMAND
    sites = [str(path) for path in program.parent.parent.glob("lib*/python3*/site-packages")]
    found = next(iter(Distribution.discover(name=_PACKAGE, path=sites)), None)
    if not os.access(program, os.X_OK) or found is None:
        what = "program" if found else f"package {_PACKAGE} for the program"
        raise PrerequisiteError(f"{VARIABLE}={named}: no {what} {program}", _REMEDY)
    return program, found.version


def locate_comet_model(model: str, root: Path) -> str:
    """The model as comet-score is given it: a .ckpt file by its absolute path, any other by its name.

    Raises:
        PrerequisiteError: there is no such file.
    """
    path = root / expanded(model)
    if model.endswith(".ckpt") and not path.is_file():
        raise PrerequisiteError(f"no COMET model {path}")
    return str(path.resolve()) if model.endswith(".ckpt") else model
