"""The compute section of a spec: where the training runs.

Covered: the fields, their limits, and the environment variables that have their place elsewhere.
Not covered: what LLaMA-Factory's launcher makes of them (train.py); whether the devices are there (check.py).
"""

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.specs.slurm_spec import SlurmSpec

# Variables that a spec says elsewhere, or that would change what LLaMA-Factory is.
OWNED_VARIABLES: dict[str, str] = {
    "CUDA_VISIBLE_DEVICES": "write it as compute.devices",
    "NPROC_PER_NODE": "write it as compute.nproc_per_node",
    "NNODES": "write it as compute.nnodes",
    "NODE_RANK": "write it as compute.node_rank",
    "MASTER_ADDR": "write it as compute.master_addr",
    "MASTER_PORT": "write it as compute.master_port",
    "RDZV_ID": "write it as compute.rdzv_id",
    "MIN_NNODES": "write it as compute.min_nnodes",
    "MAX_NNODES": "write it as compute.max_nnodes",
    "MAX_RESTARTS": "write it as compute.max_restarts",
    "USE_RAY": "write it as compute.ray",
    "USE_V1": "LLaMA-Factory's v1 has other commands and arguments",
    "ALLOW_EXTRA_ARGS": "it would hide a mistyped argument",
    "LLAMABOARD_ENABLED": "it is LLaMA Board's own",
    "LLAMABOARD_WORKDIR": "it is LLaMA Board's own",
}
# LLaMA-Factory's launcher splits torchrun's command at blanks.
_ONE_WORD = r"^\S+$"
# Fields that are known when the job has its nodes.
_SLURM_SAYS = (
    "devices", "nnodes", "node_rank", "master_addr", "rdzv_id", "min_nnodes", "max_nnodes",
)  # fmt: skip


class CloudSpec(BaseModel):
    """What `show SPEC --file sky.yaml` or `--file dstack.yaml` asks SkyPilot or dstack for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accelerators: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]*(:[1-9][0-9]*)?$")
    """The GPUs of each machine: A100:8, or H100 for one."""
    secrets: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = []
    """Names of variables that the run needs there, such as HF_TOKEN; their values are taken from your environment."""
    install: str | None = Field(None, min_length=1)
    """What pip installs there to have orchestrator, such as git+https://... None: the workspace, a checkout."""


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
    rdzv_id: str | None = Field(None, pattern=_ONE_WORD)
    """Elastic training: an id that the machines share. Others take part by `orchestrator join RUN`; all go on from the
    newest checkpoint as machines come and processes fail, and a stop saves none."""
    min_nnodes: int | None = Field(None, ge=1)
    """Elastic: how few machines are enough."""
    max_nnodes: int | None = Field(None, ge=1)
    """Elastic: how many there may be."""
    max_restarts: int | None = Field(None, ge=0)
    """Elastic: how often failed processes are started again."""
    cloud: CloudSpec | None = None
    """Machines that SkyPilot or dstack rent: only for the files that `show` writes for them."""
    slurm: SlurmSpec | None = None
    """The run is submitted to Slurm with these resources. None: it runs here."""
    ray: bool = False
    """Whether Ray places the processes, on the machines of its cluster (USE_RAY). LLaMA-Factory's four arguments for it
    stand in train: ray_num_workers, ray_init_kwargs, master_addr, master_port."""
    ray_timeout_s: float = Field(600, gt=0)
    """How long Ray may take to place them, in seconds; LLaMA-Factory itself waits without end."""
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    """Other environment variables of the training, such as OMP_NUM_THREADS. Secrets stay in your own environment."""

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

    @model_validator(mode="after")
    def _one_way_of_starting_processes(self) -> Self:
        torchrun = ("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port", "rdzv_id")
        if self.ray and (given := [name for name in torchrun if getattr(self, name) is not None]):
            raise ValueError(
                f"ray is on, and {given[0]} is torchrun's: Ray is told by train.ray_num_workers, train.master_addr and "
                "train.master_port"
            )
        return self


def is_secret(name: str) -> bool:
    """Whether a variable holds a key or a token, by its name."""
    return bool(re.search(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", name.upper()))
