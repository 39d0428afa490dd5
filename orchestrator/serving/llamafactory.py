"""`llamafactory-cli api` and `llamafactory-cli export`: how a checkpoint is served, or written as one model folder."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import Interrupted, SpecError, StageError
from orchestrator.files import atomic_write
from orchestrator.models.model_files import model_problems
from orchestrator.planning.session import Session
from orchestrator.processes.process import child_environment, repro_command, start
from orchestrator.processes.process_tree import RUN_ENV
from orchestrator.runs.rundir import RunDir
from orchestrator.serving.server import ServePlan, Serving
from orchestrator.serving.target import EXPORT_NOTE
from orchestrator.specs.render import Checkpoint, api_arguments, export_arguments
from orchestrator.specs.spec import ExportSpec

GRACE_S = 5


def llamafactory_plan(
    session: Session, checkpoint: Checkpoint, names: Mapping[str, str], serving: Serving
) -> ServePlan:
    """How a checkpoint is served; `names` has our name of it and its name on the server."""
    (name,) = names.values()
    environment = {"API_HOST": serving.settings.host, "API_PORT": str(serving.port), "API_MODEL_NAME": name}
    environment |= {"MAX_CONCURRENT": str(serving.settings.max_concurrent), "API_VERBOSE": "0"}  # no texts in its log
    return ServePlan(
        serving,
        argv=[str(session.llamafactory().cli), "api", "api.yaml"],
        environment=environment,
        key_variable="API_KEY",
        files={serving.folder / "api.yaml": session.renderer.api_yaml(api_arguments(checkpoint, serving.settings))},
        model_names=names,
    )


def export(session: Session, run: RunDir, checkpoint: Checkpoint, settings: ExportSpec, folder: Path) -> Path:
    """Write a run's checkpoint as a model folder of its own, with a note of its run and chat template beside it.

    Raises SpecError: the folder is not empty; LLaMA-Factory would overwrite it without a question. StageError: no
    complete model came out.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder} already exists and is not empty", "remove it, or give another: --to DIR")
    atomic_write(run.export_yaml, session.renderer.export_yaml(export_arguments(checkpoint, settings, folder)))
    cli = session.llamafactory().cli
    argv = [str(cli), "export", run.export_yaml.name]
    environment = child_environment(cli, {RUN_ENV: str(run.path)})
    child = start(argv, log=run.export_log, cwd=run.path, env=environment, death_signal=signal.SIGKILL)
    try:
        while child.poll() is None:
            child.wait(0.2)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(f"the export was stopped; {folder} is incomplete", f"remove {folder}") from error
    finally:
        child.stop(GRACE_S)
    problems = [f"llamafactory-cli ended with status {child.poll()}"] if child.poll() != 0 else []
    problems += model_problems(folder) if folder.is_dir() else [f"{folder} was not made"]
    if problems:
        what = f"the export failed: {'; '.join(problems)}. Last lines of {run.export_log}:\n{child.log_tail()}"
        raise StageError(what, repro_command(run.path, argv, {}))
    note = {"run": run.id, "of": checkpoint.label, "model": checkpoint.model.model_dump(mode="json")}
    atomic_write(folder / EXPORT_NOTE, json.dumps(note, indent=2) + "\n")
    return folder
