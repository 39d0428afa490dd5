"""comet-score in an environment of its own."""

import os
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

from orchestrator.errors import PrerequisiteError
from orchestrator.files import expanded

VARIABLE = "ORCHESTRATOR_COMET"


COMMAND = "comet-score"


_PACKAGE = "unbabel-comet"


_REMEDY = (
    f"python3 -m venv DIR && DIR/bin/pip install {_PACKAGE}, then {VARIABLE}=DIR; not into the environment of "
    "LLaMA-Factory: it needs transformers below 5 and numpy below 2"
)


@dataclass(frozen=True)
class Comet:
    """The comet-score to use."""

    program: Path
    version: str
    """Of the package unbabel-comet beside it."""


def find_comet() -> Comet:
    """The environment that ORCHESTRATOR_COMET names. Nothing of it is started.

    Raises:
        PrerequisiteError: there is none, or no comet-score in it.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise PrerequisiteError(f"COMET is asked for, and {VARIABLE} names no environment that has it", _REMEDY)
    given = expanded(named).absolute()
    candidates = [given / COMMAND, given / "bin" / COMMAND] if given.is_dir() else [given]
    program = next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)
    if program is None:
        raise PrerequisiteError(f"{VARIABLE}={named}: no program {' or '.join(map(str, candidates))}", _REMEDY)
    sites = [str(path) for path in program.parent.parent.glob("lib*/python3*/site-packages")]
    found = next(iter(Distribution.discover(name=_PACKAGE, path=sites)), None)
    if found is None:
        what = f"{program} is there, but no package {_PACKAGE} in {program.parent.parent}: its version is not known"
        raise PrerequisiteError(what, _REMEDY)
    return Comet(program, found.version)


def located(model: str, root: Path) -> str:
    """The model as comet-score is given it: a .ckpt file by its absolute path, any other by its name.

    Raises:
        PrerequisiteError: there is no such file.
    """
    if not model.endswith(".ckpt"):
        return model
    path = root / expanded(model)
    if not path.is_file():
        raise PrerequisiteError(f"no COMET model {path}")
    return str(path.resolve())
