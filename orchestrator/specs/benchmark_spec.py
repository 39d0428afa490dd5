"""The benchmark section of a spec: which test set, how it is asked, how it is scored."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Metric = Literal["bleu", "chrf", "chrf++", "ter"]
METRICS: tuple[Metric, ...] = ("bleu", "chrf", "chrf++", "ter")


class BenchmarkSpec(BaseModel):
    """One benchmark: a test set, translated greedily and scored by sacrebleu."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    testset: str
    """A dataset of dataset_info/, or one of sacrebleu's sets, which sacrebleu fetches: sacrebleu:wmt14/en-de."""
    instruction: str | None = Field(None, pattern=r"\S")
    """What the model is to do, on the line before each sentence. None: the dataset's own, as in training; of
    sacrebleu's sets that of the dataset that was trained on."""
    split: str = "test"
    """Which of the dataset's splits."""
    max_samples: int | None = Field(None, gt=0)
    """Only N sentences: the first, unless sample_seed draws them. None: all."""
    sample_seed: int | None = Field(None, ge=0)
    """Draw the max_samples sentences at random with this seed, kept in the test set's order. None: the first ones."""
    metrics: list[Metric] = Field(default=list(METRICS), min_length=1)
    """sacrebleu's metrics."""
    comet: str | None = Field(None, min_length=1)
    """Score by this COMET model too: Unbabel/wmt22-comet-da, say, or the path of a .ckpt file. It is computed by the
    environment that ORCHESTRATOR_COMET names. None: no COMET."""
    base_model: bool = False
    """Benchmark the model as it was before training too."""
    max_tokens: int = Field(256, gt=0)
    """Longest answer, in tokens of the model."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy: the most likely token each time."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the most likely tokens that make up this probability. None: 1, all of them."""
    repetition_penalty: float | None = Field(None, gt=0)
    """Above 1: words of the answer so far are less likely again. None: 1, no penalty, if the server takes it."""
    stop: list[str] | None = Field(None, min_length=1, max_length=4)
    """Texts that end an answer. None: only the model's own end."""
    request: dict[str, Any] = {}
    """Fields of each request for a server that wants others, merged in last, and out by null: {max_tokens: null,
    max_completion_tokens: 256}, say, or {chat_template_kwargs: {enable_thinking: false}}."""
    concurrency: int | None = Field(None, ge=1)
    """Requests under way at once. None: what suits the backend (LLaMA-Factory's huggingface engine: max_concurrent and
    one; vllm: 256; else 32). Halved while the server says that it is busy."""
    request_timeout_s: float = Field(600, gt=0)
    """How long one request may take, in seconds, its wait in the server's queue included."""
    n_bootstrap: int = Field(1000, ge=2)
    """Resamples for the 95 % interval."""

    @field_validator("request")
    @classmethod
    def _leaves_alone_what_is_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if owned := sorted(value.keys() & {"model", "messages", "stream", "n"}):
            raise ValueError(f"{', '.join(owned)}: the benchmark itself says that")
        return value
