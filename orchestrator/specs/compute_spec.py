"""The compute section of a spec: where the training runs.

Covered: the fields, their limits, and the environment variables that have their place elsewhere.
Not covered: what LLaMA-Factory's launcher makes of them (train.py); whether the devices are there (check.py).
"""

import logging
import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.specs.slurm_spec import SlurmSpec

log = logging.getLogger("orchestrator")

# Variables that a spec says elsewhere, or that would change what LLaMA-Factory is.
OWNED_VARIABLES: dict[str, str] = {
    "CUDA_VISIBLE_DEVICES": "write it as compute.devices",
    "NPROC_PER_NODE": "write it as compute.nproc_per_node",
    "NNODES": "write it as compute.nnodes",
    "NODE_RANK": "write it as compute.node_rank",
    "MASTER_ADDR": "write it as compute.master_addr",
    "MASTER_PORT": "write it as compute.master_port",
    "USE_V1": "LLaMA-Factory's v1 has other commands and arguments",
    "ALLOW_EXTRA_ARGS": "it would hide a mistyped argument",
    "LLAMABOARD_ENABLED": "it is LLaMA Board's own",
    "LLAMABOARD_WORKDIR": "it is LLaMA Board's own",
}
# LLaMA-Factory's launcher splits torchrun's command at blanks.
_ONE_WORD = r"^\S+$"
# Fields that are known when the job has its nodes.
_SLURM_SAYS = ("devices", "nnodes", "node_rank", "master_addr")
# Fields of earlier versions: a saved spec.yaml that has them stays readable.
_GONE = ("rdzv_id", "min_nnodes", "max_nnodes", "max_restarts", "cloud", "ray", "ray_timeout_s")


class ComputeSpec(BaseModel):
    """Where the training runs, in the words of LLaMA-Factory's launcher.py, which makes torchrun's command of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    devices: str | None = None
    """CUDA_VISIBLE_DEVICES, such as "0" or "0,1". None: as in the environment."""
    nproc_per_node: int | None = Field(None, ge=1)
    """Processes that torchrun starts on this machine. None: LLaMA-Factory decides by the devices it sees."""
    nnodes: int | None = Field(None, ge=1)
    """Machines; the same spec is launched on each. None: this one alone."""
    node_rank: int | None = Field(None, ge=0)
    """Which of them this is, from 0. None: NODE_RANK of the environment, else 0."""
    master_addr: str | None = Field(None, pattern=_ONE_WORD)
    """Name or address of the machine with rank 0."""
    master_port: int | None = Field(None, ge=1, le=65535)
    """A port that is free there."""
    slurm: SlurmSpec | None = None
    """The run is submitted to Slurm with these resources. None: it runs here."""
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    """Other environment variables of the training, such as OMP_NUM_THREADS. Secrets stay in your own environment."""

    @model_validator(mode="before")
    @classmethod
    def _drop_fields_of_before(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name in _GONE:
                if name in value and value[name] not in (None, False, 600, 600.0):
                    log.warning("compute.%s is dropped: this version has no such field", name)
            return {key: item for key, item in value.items() if key not in _GONE}
        return value

    @model_validator(mode="after")
    def _slurm_says_where(self) -> Self:
        if self.slurm is not None:
            for name in _SLURM_SAYS:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is Slurm's to say: leave it out beside slurm")
        return self

    @model_validator(mode="after")
    def _variables_have_their_place(self) -> Self:
        for name in self.env:
            if name in OWNED_VARIABLES:
                raise ValueError(f"env holds {name}: {OWNED_VARIABLES[name]}")
            if is_secret(name):
                raise ValueError(f"env holds {name}, by its name a secret: it would be kept with the run; export it")
        return self


def is_secret(name: str) -> bool:
    """Whether a variable holds a key or a token, by its name."""
    return bool(re.search(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", name.upper()))
