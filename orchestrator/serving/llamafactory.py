"""The plan of `llamafactory-cli api` for one checkpoint."""

from collections.abc import Mapping

from orchestrator.serving.server import ServePlan, Serving
from orchestrator.specs.render import Checkpoint, Renderer, api_arguments
from orchestrator.upstream.installation import Installation


def llamafactory_plan(
    checkpoint: Checkpoint, names: Mapping[str, str], serving: Serving, installation: Installation, renderer: Renderer
) -> ServePlan:
    """How a checkpoint is served; `names` has our name of it and its name on the server."""
    (name,) = names.values()
    environment = {
        "API_HOST": serving.settings.host,
        "API_PORT": str(serving.port),
        "API_MODEL_NAME": name,
        "API_VERBOSE": "0",  # keeps texts out of its log
        "MAX_CONCURRENT": str(serving.settings.max_concurrent),
    }
    return ServePlan(
        serving,
        argv=[str(installation.cli), "api", "api.yaml"],
        environment=environment,
        key_variable="API_KEY",
        files={serving.folder / "api.yaml": renderer.api_yaml(api_arguments(checkpoint, serving.settings))},
        model_names=names,
    )
