"""How checkpoints are served: with which model name, on which devices, or by which server that runs already.

Covered: the server for the backend that the spec names; the name that says what is served; a server of others, asked
for its model.
Not covered: starting and stopping the process (serve.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.benchmark.client import Endpoint, list_models
from orchestrator.check import check_model
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.models.model_files import adapter_sha256, locate_model, model_sha256
from orchestrator.models.target import Target
from orchestrator.plan import Session, heed, resolve_model
from orchestrator.serve import ServePlan, Server, new_api_key, serve
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import RunSpec, ServeSpec
from orchestrator.upstream.llamafactory_server import llamafactory_plan


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
    return [[checkpoint] for checkpoint in checkpoints]


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
        PrerequisiteError, StageError: it cannot be served, or died.
    """
    ((name, checkpoint),) = checkpoints.items()
    root = session.workspace.root
    plan = llamafactory_plan(
        checkpoint,
        {name: model_name(name, checkpoint, root)},
        serving.settings,
        session.llamafactory(),
        session.renderer,
        folder=serving.folder,
        port=serving.port,
        devices=serving.devices,
        api_key=session.api_key or new_api_key(),
        run=serving.run,
    )
    started(plan)
    with serve(plan) as server:
        yield server


def servable(session: Session, target: Target) -> Checkpoint:
    """What a target is served from, checked, its template found."""
    if target.checkpoint is None:
        raise SpecError(f"{target.url} is served already", f"orchestrator chat {target.url}")
    heed(check_model(target.checkpoint.model, session.workspace.root, session.installation))
    model, _ = resolve_model(session, target.checkpoint.model)
    return replace(target.checkpoint, model=model)


def connect(session: Session, settings: ServeSpec) -> Endpoint:
    """A server that runs already, at settings.url.

    Raises:
        PrerequisiteError: it does not answer, or lists several models and none was named.
    """
    url = settings.url or ""
    served = list_models(Endpoint(url, session.api_key, ""))
    if served is None:
        raise PrerequisiteError(f"no server answers at {url}", "start it, or correct the address (most end in /v1)")
    if settings.model_name is None and len(served) != 1:
        raise PrerequisiteError(
            f"{url} serves {len(served)} models: {', '.join(served[:8])}", "name one: --model-name NAME"
        )
    return Endpoint(url, session.api_key, settings.model_name or served[0])


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
