"""A checkpoint as `llamafactory-cli api` serves it: the plan of that server.

Covered: its arguments, in api.yaml; its environment: address, model name, devices, requests at once.
Not covered: starting it (serve.py); what its arguments may be (upstream/).
Writes nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from orchestrator.serving.server import ServePlan
from orchestrator.specs.render import Checkpoint, Renderer, api_arguments
from orchestrator.specs.spec import ServeSpec
from orchestrator.upstream.installation import Installation


def llamafactory_plan(
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    settings: ServeSpec,
    installation: Installation,
    renderer: Renderer,
    *,
    folder: Path,
    port: int,
    devices: str | None,
    api_key: str,
    run: Path | None,
) -> ServePlan:
    """How a checkpoint is served.

    Args:
        checkpoint: what is served, with absolute paths.
        names: our name of it -> what the server calls it: with the weights' hash, so that an answer can be told to
            come from them.
        settings: how, as the spec says.
        installation: LLaMA-Factory.
        renderer: of api.yaml.
        folder: for api.yaml and api.log.
        port: a free one.
        devices: CUDA_VISIBLE_DEVICES. None: as in our environment.
        api_key: what it lets in.
        run: the run that it is a part of.
    """
    (name,) = names.values()
    # API_VERBOSE=0: texts do not go to its log
    environment = {
        "API_HOST": settings.host,
        "API_PORT": str(port),
        "API_MODEL_NAME": name,
        "API_VERBOSE": "0",
        "MAX_CONCURRENT": str(settings.max_concurrent),
    }
    return ServePlan(
        argv=[str(installation.cli), "api", "api.yaml"],
        environment=environment if devices is None else {**environment, "CUDA_VISIBLE_DEVICES": devices},
        key_variable="API_KEY",
        files={folder / "api.yaml": renderer.api_yaml(api_arguments(checkpoint, settings))},
        log=folder / "api.log",
        host=settings.host,
        port=port,
        model_names=names,
        api_key=api_key,
        start_timeout_s=settings.start_timeout_s,
        run=run,
    )
