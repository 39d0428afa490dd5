"""The compute section of a spec: where the training runs."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.specs.places import RESERVED_ENV, reason
from orchestrator.specs.slurm_spec import SlurmSpec


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
    """Rank of this machine, 0-based. None: NODE_RANK of the environment, else 0."""
    master_addr: str | None = Field(None, pattern=r"^\S+$")  # launcher.py splits torchrun's command at blanks
    """Name or address of the machine with rank 0."""
    master_port: int | None = Field(None, ge=1, le=65535)
    """A port that is free there."""
    slurm: SlurmSpec | None = None
    """The run is submitted to Slurm with these resources. None: it runs here."""
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    """Other environment variables of the training, such as OMP_NUM_THREADS. Secrets stay in your own environment."""

    @model_validator(mode="after")
    def _check_slurm_and_env(self) -> Self:
        for name in ("devices", "nnodes", "node_rank", "master_addr") if self.slurm is not None else ():
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is set by Slurm: leave it out beside slurm")
        for name in self.env.keys() & RESERVED_ENV.keys():
            raise ValueError(f"env holds {name}: {reason(RESERVED_ENV[name])}")
        return self
