"""What decides an answer beside the prompt: the weights, how a conversation is put to them, and what computes.

Covered: models and adapters on this machine, by their content, under the backend that serves them.
Not covered: servers of others, whose weights nobody here has seen, and models still on the hub: they are `unknown`.
Reads the model's files; writes nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.benchmark.decoding import Backend
from orchestrator.errors import PrerequisiteError
from orchestrator.models.hashes import model_sha256
from orchestrator.models.model_files import locate_model
from orchestrator.runs.record_parts import Facts
from orchestrator.specs.render import Checkpoint, api_arguments
from orchestrator.specs.spec import ServeSpec, model_arguments
from orchestrator.upstream.vllm import find_vllm, settings_of_environment, with_defaults

_PATHS = ("model_name_or_path", "adapter_name_or_path", "model_revision")
_OURS = ("orchestrator", "sacrebleu", "python")  # they ask and score; they do not answer


@dataclass(frozen=True)
class Identity:
    """Who answers. Never a name: LLaMA-Factory's server calls every model gpt-3.5-turbo."""

    backend: Backend | None = None
    """None: the server runs already; it says what it is when it is asked."""
    model_sha256: str | None = None
    """Of the base model. None: not known."""
    adapter_sha256: str | None = None
    has_adapter: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the server is started with, template and system text among it, but for the paths of the weights."""
    versions: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    """GPUs with their drivers, and which of them are used: they decide the dtype, and how sums are rounded."""
    model_config: Mapping[str, Any] = field(default_factory=dict)
    """The model's generation_config.json."""

    @property
    def known(self) -> bool:
        """Whether it says all that decides an answer."""
        return self.model_sha256 is not None and (self.adapter_sha256 is not None) == self.has_adapter

    def parts(self) -> dict[str, Any]:
        """As plain JSON values, to be hashed and shown."""
        return {
            "backend": self.backend,
            "model_sha256": self.model_sha256,
            "adapter_sha256": self.adapter_sha256,
            "arguments": dict(sorted(self.arguments.items())),
            "versions": dict(sorted(self.versions.items())),
            "devices": list(self.devices),
        }


def identity_of(checkpoint: Checkpoint, settings: ServeSpec, root: Path, facts: Facts, devices: str | None) -> Identity:
    """Who answers when a checkpoint is served here.

    Args:
        checkpoint: what is served.
        settings: how.
        root: the workspace.
        facts: for the versions of what computes, and the GPUs.
        devices: CUDA_VISIBLE_DEVICES of the server.

    Raises:
        PrerequisiteError: a file of the model cannot be read.
    """
    model = checkpoint.model
    base = locate_model(model.name_or_path, root, model.revision)
    adapter = locate_model(model.adapter_name_or_path, root, None) if model.adapter_name_or_path else None
    arguments = api_arguments(checkpoint, settings)
    backend, versions = f"llamafactory-{settings.infer_backend}", dict(facts.versions)
    if settings.backend == "vllm":
        # LLaMA-Factory's part is the prompt alone, and the merging
        backend, versions = "vllm", {"llamafactory": facts.versions.get("llamafactory", ""), **find_vllm().versions}
        set_here = settings_of_environment()
        arguments = {
            **model_arguments(model),
            **with_defaults(settings.extra_arguments()),
            "merge": settings.merge,
            **set_here,
        }
    return Identity(
        backend=backend,  # type: ignore[arg-type]
        model_sha256=model_sha256(base) if base else None,
        adapter_sha256=model_sha256(adapter) if adapter else None,
        has_adapter=model.adapter_name_or_path is not None,
        arguments={key: value for key, value in arguments.items() if key not in _PATHS},
        versions={name: version for name, version in versions.items() if name not in _OURS},
        devices=(*facts.gpus, f"CUDA_VISIBLE_DEVICES={devices}"),
        model_config=_generation_config(base) if base and backend != "vllm" else {},  # it is given one of ours
    )


def sha256_of(value: Any) -> str:
    """Hash of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PrerequisiteError(f"{path} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
