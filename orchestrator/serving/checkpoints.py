"""Which server serves which checkpoints, under which model name."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.models.hashes import model_sha256
from orchestrator.models.model_files import locate_model
from orchestrator.planning.check import check_model
from orchestrator.planning.plan import raise_or_log, resolve_model
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import RunDir
from orchestrator.serving.llamafactory import export, llamafactory_plan
from orchestrator.serving.server import ServePlan, Server, Serving, serve
from orchestrator.serving.target import Target
from orchestrator.serving.vllm import vllm_plan
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ExportSpec, ModelSpec, RunSpec, ServeSpec, model_arguments
from orchestrator.upstream.vllm import chat_prompt, find_vllm

log = logging.getLogger("orchestrator")


def group_by_server(settings: ServeSpec, checkpoints: Sequence[Checkpoint]) -> list[list[Checkpoint]]:
    """The checkpoints in groups that one server can hold, in their order: each group is one call of `served`."""
    groups: list[list[Checkpoint]] = []
    for checkpoint in checkpoints:
        shares = settings.backend == "vllm" and not settings.merge and groups
        if shares and _base(groups[-1][0]) == _base(checkpoint):  # vllm holds a model with any number of adapters
            groups[-1].append(checkpoint)
        else:
            groups.append([checkpoint])
    return groups


@contextmanager
def served(
    session: Session,
    checkpoints: Mapping[str, Checkpoint],
    serving: Serving,
    started: Callable[[ServePlan], None] = lambda plan: None,
) -> Iterator[Server]:
    """Serve checkpoints that fit on one server (`group_by_server`) while the block lasts.

    They go by name, such as RUN@LABEL, and so do Server.endpoints; `started` is called before the server is started.
    Raises SpecError, PrerequisiteError, StageError: it cannot be served, or the server died.
    """
    if session.api_key:
        serving = replace(serving, api_key=session.api_key)
    names = {name: model_name(name, each, session.workspace.root) for name, each in checkpoints.items()}
    with ExitStack() as stack:
        if serving.settings.backend == "vllm":
            vllm, installation = find_vllm(), session.llamafactory()
            log.info("asking LLaMA-Factory for the prompt of training")
            prompt = chat_prompt(model_arguments(_base(next(iter(checkpoints.values())))), installation)
            if serving.settings.merge:
                checkpoints = {
                    name: stack.enter_context(_merged(session, checkpoint, serving.folder))
                    for name, checkpoint in checkpoints.items()
                }
            plan = vllm_plan(checkpoints, names, serving, vllm, prompt)
        else:
            (checkpoint,) = checkpoints.values()
            plan = llamafactory_plan(session, checkpoint, names, serving)
        started(plan)
        yield stack.enter_context(serve(plan))


def _base(checkpoint: Checkpoint) -> ModelSpec:
    return checkpoint.model.model_copy(update={"adapter_name_or_path": None})


@contextmanager
def _merged(session: Session, checkpoint: Checkpoint, folder: Path) -> Iterator[Checkpoint]:
    """The checkpoint as one model, which is removed after the block."""
    if checkpoint.model.adapter_name_or_path is None:
        yield checkpoint
        return
    place = RunDir(folder / "merged")
    shutil.rmtree(place.path, ignore_errors=True)  # of an attempt that was killed
    place.path.mkdir(parents=True)
    try:
        log.info("merging %s into its model, for as long as it is served", checkpoint.label)
        to = place.path / "model"
        export(session, place, checkpoint, ExportSpec(), to)
        merged = {"name_or_path": str(to), "adapter_name_or_path": None, "revision": None}
        yield replace(checkpoint, model=checkpoint.model.model_copy(update=merged))
    finally:
        shutil.rmtree(place.path, ignore_errors=True)


def servable(session: Session, target: Target) -> Checkpoint:
    """A target's checkpoint, checked, with its chat template."""
    if target.checkpoint is None:
        raise SpecError(f"{target.url} is served already", f"orchestrator chat {target.url}")
    raise_or_log(check_model(session, target.checkpoint.model))
    model, _ = resolve_model(session, target.checkpoint.model)
    return replace(target.checkpoint, model=model)


def serving_devices(settings: ServeSpec, spec: RunSpec | None) -> str | None:
    return settings.devices if settings.devices is not None or spec is None else spec.compute.devices


def model_name(name: str, checkpoint: Checkpoint, root: Path) -> str:
    """'demo-20261124-101500@output:1a2b3c4d5e6f': run, label, and the hash of the weights."""
    model = checkpoint.model
    adapter = locate_model(model.adapter_name_or_path, root, None) if model.adapter_name_or_path else None
    folder = adapter or locate_model(model.name_or_path, root, model.revision)
    return f"{name}:{model_sha256(folder)[:12] if folder else 'hub'}"
