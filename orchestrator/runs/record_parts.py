"""What a run's record is made of, as it stands in record.json; a field of a later version is kept."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from orchestrator.errors import PrerequisiteError
from orchestrator.scoring.metrics import Score

Status = Literal[
    "planned", "queued", "preparing", "running", "trained", "benchmarking", "done", "failed", "stopped", "interrupted"
]
STORED = ConfigDict(
    extra="allow",
    ser_json_inf_nan="strings",  # a loss can be NaN; null would not be read back as a number
)


def damage(error: OSError | PrerequisiteError | ValidationError) -> str:
    """Why a stored file cannot be read, in a line; of many problems the first."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, PrerequisiteError):
        return error.message.rpartition("cannot be read: ")[2]
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


class _Part(BaseModel):
    model_config = STORED


class Request(_Part):
    """What is to be done of a run, as the command line had it."""

    with_benchmarks: bool = True
    wait: bool = False  # for devices that another run holds
    checkpoint: str | None = None  # checkpoint-N to resume from; None: the newest complete one
    archives: str | None = None  # the folder that datasets' archives are taken from, absolute; None: the network


class DataFacts(_Part):
    """One split of a dataset, as it was read."""

    dataset: str
    split: str
    use: str = ""  # train, eval or benchmark; '' in records of earlier versions
    pairs: int | None  # without blank ones; in LLaMA-Factory's own formats, records. None: not counted
    blank_pairs: int = 0
    sha256: str | None  # hash of the text, or of the files. None: they are not on this machine
    origin: str | None = None  # where LLaMA-Factory takes data from that are not here: the hub's id, say

    @property
    def is_trained_on(self) -> bool:
        return (self.use or self.split) == "train"


class Facts(_Part):
    """What decides a run's outcome beside its spec. A rerun compares these."""

    versions: dict[str, str] = {}
    """Packages that compute, in LLaMA-Factory's environment; python, and orchestrator, which is ours."""
    platform: str = ""
    cpu: str | None = None  # its name, and how many threads of it we may use. None: not known
    gpus: list[str] = []  # name and driver of each NVIDIA GPU
    cuda: dict[str, str] | None = None
    """The CUDA that torch was built for, cuDNN, NCCL, triton; and the newest CUDA that the driver takes."""
    environment: dict[str, str] | None = None  # variables that reach LLaMA-Factory from ours; secrets left out
    git_commit: str | None = None  # None: outside git
    git_dirty: bool | None = None
    git_diff_sha256: str | None = None  # of workspace.diff
    data: list[DataFacts] = []
    hash_version: int = 1
    """Of the two hashes below. 1: samples of a model's weights, as earlier versions took them. 2: every byte."""
    model_sha256: str | None = None  # None: not on this machine
    model_revision: str | None = None  # the hub's commit
    adapter_sha256: str | None = None  # of the adapter that training started from
    adapter_revision: str | None = None
    chat_template_sha256: str | None = None
    """Of the template's text in LLaMA-Factory's source. None: not known, or the tokenizer's own."""


class Training(_Part):
    """What llamafactory-cli train left."""

    steps: int
    total_steps: int
    train_loss: float | None = None  # None after a resume: transformers sums up the losses since then alone
    train_runtime_s: float | None = None
    tokens_seen: int | None = None  # input tokens, where include_num_input_tokens_seen counted them
    logged_losses: list[float] = []  # the first ten losses that were logged: a rerun shows the same
    weights_sha256: str | None = None  # of the weights that it left, as the facts' hash_version says


class BenchmarkSummary(_Part):
    """One finished benchmark; all of it is in benchmarks/<id>/."""

    id: str
    of: str  # output, checkpoint-N, base, or the target's own name
    testset: str
    split: str
    status: Literal["complete", "incomplete"]
    n_segments: int  # sentences that were answered, and scored where there are scores
    n_asked: int | None = None  # sentences that were asked, more than n_segments in an incomplete benchmark
    text_sha256: str = ""
    prompts_sha256: str = ""  # both as in scores.json; '' in an older record
    scores: list[Score] = []
    mean_sentence_bleu: float | None = None
    llamafactory_bleu4: float | None = None
    comet: list[Score] = []
    faults: dict[str, int | None] = {}  # answers that are no translation, by fault; None: not known


class PeakMemory(_Part):
    """Of a training: of its processes together, and of each GPU, by number, whoever used it; by samples."""

    peak_rss_bytes: int | None = None
    gpu_peak_memory_mib: dict[str, int] = {}


class Attempt(_Part):
    """One launch or resume of a run."""

    started_at: datetime
    ended_at: datetime | None = None  # None: it is under way, or its process was gone before it could say so
    status: Annotated[Status, BeforeValidator(lambda value: "preparing" if value == "created" else value)]
    """preparing until the devices are held and nothing has changed, running then, and how it ended."""
    from_checkpoint: str | None = None
    """The checkpoint that the training was resumed from; None: it began at step 0, or nothing was left to train."""
    from_step: int | None = None
    log_start_bytes: int = 0  # where this attempt's lines begin in trainer_log.jsonl
    drift: list[str] = []  # what differed from the run's facts when it was resumed
    stages_s: dict[str, float] = {}  # prepare, train, benchmark -> how long it took
    usage: PeakMemory | None = None
    pid: int
    host: str
