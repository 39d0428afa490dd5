"""How checkpoints are served: with which model name, on which devices, or by which server that runs already.

Covered: the server for the backend that the spec names; the name that says what is served; a server of others, asked
for its model.
Not covered: starting and stopping the process (serve.py).
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.errors import SpecError, StageError
from orchestrator.models.model_files import adapter_sha256, locate_model, model_sha256
from orchestrator.planning.check import check_model
from orchestrator.planning.plan import heed, resolve_model
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import RunDir
from orchestrator.serving import endpoint
from orchestrator.serving.endpoint import Endpoint
from orchestrator.serving.export import export
from orchestrator.serving.llamafactory import llamafactory_plan
from orchestrator.serving.server import ServePlan, Server, new_api_key, serve
from orchestrator.serving.target import Target
from orchestrator.serving.vllm_serve import one_group, vllm_plan
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ExportSpec, RunSpec, ServeSpec, model_arguments
from orchestrator.upstream.chat_prompt import chat_prompt
from orchestrator.upstream.vllm import find_vllm

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class Serving:
    """What a server of ours has to know beside the checkpoints."""

    settings: ServeSpec
    folder: Path
    """For its files and its log."""
    port: int
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES. None: as in our environment."""
    run: Path | None = None
    """The run that it is a part of."""


def together(settings: ServeSpec, checkpoints: Sequence[Checkpoint]) -> list[list[Checkpoint]]:
    """The checkpoints in groups that one server can hold, in their order: each group is one call of `served`."""
    groups: list[list[Checkpoint]] = []
    for checkpoint in checkpoints:
        fits = settings.backend == "vllm" and not settings.merge and groups and one_group([groups[-1][0], checkpoint])
        if fits:
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
    """Serve checkpoints that fit on one server (`together`) while the block lasts.

    Args:
        session: of the command.
        checkpoints: what is served, by name, such as RUN@LABEL; Server.endpoints has these names too.
        serving: how, and where.
        started: told the plan before the server is started.

    Raises:
        SpecError, PrerequisiteError, StageError: it cannot be served, or died.
    """
    root, settings = session.workspace.root, serving.settings
    names = {name: model_name(name, checkpoint, root) for name, checkpoint in checkpoints.items()}
    with ExitStack() as stack:
        if settings.backend == "vllm":
            vllm, installation = find_vllm(), session.llamafactory()
            log.info("asking LLaMA-Factory for the prompt of training")
            model = next(iter(checkpoints.values())).model
            prompt = chat_prompt(model_arguments(model.model_copy(update={"adapter_name_or_path": None})), installation)
            if settings.merge:
                merged = {
                    name: stack.enter_context(_merged(session, checkpoint, serving.folder))
                    for name, checkpoint in checkpoints.items()
                }
                checkpoints = merged
            plan = vllm_plan(
                checkpoints,
                names,
                settings,
                vllm,
                prompt,
                folder=serving.folder,
                port=serving.port,
                devices=serving.devices,
                api_key=session.api_key or new_api_key(),
                run=serving.run,
            )
        else:
            (checkpoint,) = checkpoints.values()
            plan = llamafactory_plan(
                checkpoint,
                names,
                settings,
                session.llamafactory(),
                session.renderer,
                folder=serving.folder,
                port=serving.port,
                devices=serving.devices,
                api_key=session.api_key or new_api_key(),
                run=serving.run,
            )
        plan = replace(plan, reads=[each for checkpoint in checkpoints.values() for each in _folders(checkpoint)])
        started(plan)
        yield stack.enter_context(serve(plan))


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
        export(place, checkpoint, ExportSpec(), to, session.llamafactory(), session.renderer)
        model = checkpoint.model.model_copy(
            update={"name_or_path": str(to), "adapter_name_or_path": None, "revision": None}
        )
        yield replace(checkpoint, model=model)
    except StageError as error:
        if place.export_log.is_file() and not (place.path / "model" / "config.json").is_file():
            kept = folder / "export.log"
            place.export_log.replace(kept)
            raise StageError(error.message.replace(str(place.export_log), str(kept)), error.remedy) from error
        raise
    finally:
        shutil.rmtree(place.path, ignore_errors=True)


def _folders(checkpoint: Checkpoint) -> list[str]:
    adapters = (checkpoint.model.adapter_name_or_path or "").split(",")
    return [name for name in (checkpoint.model.name_or_path, *adapters) if Path(name).is_absolute()]


def servable(session: Session, target: Target) -> Checkpoint:
    """What a target is served from, checked, its template found."""
    if target.checkpoint is None:
        raise SpecError(f"{target.url} is served already", f"orchestrator chat {target.url}")
    heed(check_model(target.checkpoint.model, session.workspace.root, session.installation))
    model, _ = resolve_model(session, target.checkpoint.model)
    return replace(target.checkpoint, model=model)


def connect(session: Session, settings: ServeSpec) -> Endpoint:
    """A server that runs already, at settings.url; as endpoint.connect."""
    return endpoint.connect(settings.url or "", session.api_key, settings.model_name)


def serving_devices(settings: ServeSpec, spec: RunSpec | None) -> str | None:
    return settings.devices if settings.devices is not None or spec is None else spec.compute.devices


def model_name(name: str, checkpoint: Checkpoint, root: Path) -> str:
    """'demo-20261124-101500@output:1a2b3c4d5e6f': run, label, and the hash of what is served."""
    model = checkpoint.model
    if model.adapter_name_or_path is not None and (folder := locate_model(model.adapter_name_or_path, root, None)):
        return f"{name}:{adapter_sha256(folder)[:12]}"
    if folder := locate_model(model.name_or_path, root, model.revision):
        return f"{name}:{model_sha256(folder)[:12]}"
    return f"{name}:hub"
