"""How a target is served: with which model name, on which devices, or by which server that runs already.

Covered: the plan of a server; the name that says what is served; a server of others, asked for its model.
Not covered: starting the server (serve.py).
"""

from dataclasses import replace
from pathlib import Path

from orchestrator.benchmark.client import Endpoint, list_models
from orchestrator.check import check_model
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.models.model_files import adapter_sha256, locate_model, model_sha256
from orchestrator.models.target import Target
from orchestrator.plan import Session, heed, resolve_model
from orchestrator.serve import ServePlan, new_api_key
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import RunSpec, ServeSpec


def serve_plan(session: Session, target: Target, settings: ServeSpec, *, port: int, folder: Path) -> ServePlan:
    """How a target is served: for `serve` and `chat`, files in the folder given."""
    if target.checkpoint is None:
        raise SpecError(f"{target.url} is served already", f"orchestrator chat {target.url}")
    heed(check_model(target.checkpoint.model, session.workspace.root, session.installation))
    model, _ = resolve_model(session, target.checkpoint.model)
    return ServePlan(
        checkpoint=replace(target.checkpoint, model=model),
        settings=settings,
        model_name=model_name(target.name, target.checkpoint, session.workspace.root),
        api_yaml=folder / "api.yaml",
        log=folder / "api.log",
        port=port,
        api_key=session.api_key or new_api_key(),
        devices=serving_devices(settings, target.spec),
    )


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
