"""The compute section of a spec: where the training runs, and what it asks of Slurm, in sbatch's own words."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.specs.places import RESERVED_ENV, reason

_Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]  # each is a line of the script
_Count = Annotated[int, Field(ge=1)]
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+)(?::(\d+))?)?")  # sbatch --time
SIGNAL_MARGIN_S = 60  # sbatch(1), --signal: up to 60 s earlier than specified
# Options of sbatch that the run sets, or that would take the job out of its hands.
RESERVED_SBATCH = frozenset(
    "signal no-requeue time-min array ntasks ntasks-per-node job-name output error open-mode input export export-file "
    "dependency clusters parsable wait test-only wrap help usage version hold".split()
)


class SlurmSpec(BaseModel):
    """A job of Slurm that runs the spec. It is signalled before its time limit, requeued, and resumes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: int = Field(1, ge=1)
    """Nodes; on each one process starts the training's."""
    partition: _Text | None = None
    """Partition, or several, comma-separated. Here and below, None: what the cluster gives by default."""
    account: _Text | None = None
    """Account that is charged."""
    qos: _Text | None = None
    """Quality of service."""
    constraint: _Text | None = None
    """Features that the nodes must have, such as a100."""
    gpus_per_node: _Count | Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]+$")] | None = None
    """GPUs on each node: a number, or a type and a number such as a100:4."""
    gres: _Text | None = None
    """Generic resources on each node, such as gpu:4, where the cluster has no gpus_per_node."""
    cpus_per_task: _Count | None = None
    """CPU cores on each node."""
    mem: Annotated[str, Field(pattern=r"^[0-9]+[KMGT]?$")] | Annotated[int, Field(ge=0)] | None = None
    """Memory on each node, such as 64G; a number without a unit is in MB. 0: all of it."""
    time: _Text | _Count | None = None
    """Time limit: minutes, HH:MM:SS, or DAYS-HH:MM:SS."""
    signal_s: int = Field(180, ge=1, le=65535)
    """How long before the time limit the training is signalled to save a checkpoint and end, in seconds. Slurm may be a
    minute early."""
    requeue: bool = True
    """Whether the job is queued again after its time limit, after preemption and when a node fails."""
    max_requeues: int = Field(20, ge=0)
    """How often a time limit may queue it again. It ends before that where no step was made since the last time."""
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")], _Text | int | Literal[True]] = {}
    """Other options of sbatch by their long names, such as mail-type: END; true: one without a value."""

    @model_validator(mode="after")
    def _check_options_and_time(self) -> Self:
        for name in self.options:
            if name.replace("-", "_") in type(self).model_fields:
                raise ValueError(f"options holds {name}: write it as {name.replace('-', '_')}")
            if name in RESERVED_SBATCH:
                raise ValueError(f"options holds {name}, which is managed by orchestrator: leave it out")
        limit = self.time_limit_s
        if limit == 0:
            raise ValueError(f"time is {self.time!r}, which is no time limit: minutes, HH:MM:SS or DAYS-HH:MM:SS")
        if limit is not None and limit <= self.signal_s + SIGNAL_MARGIN_S:
            what = f"a time limit of {limit} s with signal_s {self.signal_s}: the signal may come before the run"
            raise ValueError(f"{what} has begun; raise time, or lower signal_s")
        return self

    @property
    def time_limit_s(self) -> int | None:
        """The time limit in seconds; None: the cluster's, or none. 0: the text is none."""
        text = str(self.time).strip() if self.time is not None else ""
        return None if text.upper() in ("", "UNLIMITED", "INFINITE") else parse_slurm_time(text) or 0


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


def parse_slurm_time(text: str) -> int | None:
    """Seconds of a time of Slurm's: '90' is minutes, '1:30:00' hours first, '2-12' days and hours; None: it is none."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is not None or match[4] is not None:
        return ((days * 24 + first) * 60 + second) * 60 + third
    return first * 60 + second
