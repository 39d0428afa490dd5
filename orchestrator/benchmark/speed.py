"""How fast a benchmark was, beside what held it back.

Covered: rates, latencies, the server's idle time; which of client, server, concurrency or test set is the limit, and
what to do about it.
Not covered: the hardware's own limits, which no client can see; time to first token (streaming.py).
Pure: it is given what was measured.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.benchmark.client import Answer
from orchestrator.benchmark.decoding import CONTRACTS, Backend
from orchestrator.benchmark.streaming import quantile
from orchestrator.benchmark.translate import Load

CLIENT_BOUND = 0.85  # of one core: a Python process has no more
PARALLEL = 1.3  # requests' worth of work done at once; below it the server answers one at a time
_SHARES = (0.50, 0.95, 0.99)
FEW = 3.0  # in flight on average; with fewer that cannot be told


class Speed(BaseModel):
    """Of the sentences that were asked in one go: without those of an earlier attempt or of the cache."""

    model_config = ConfigDict(frozen=True)

    sentences: int
    """Answered in this go."""
    wall_s: float
    """From the first request to the last answer; without loading."""
    load_s: float | None = None
    """Until the server was ready. None: it ran already."""
    sentences_per_s: float
    output_tokens_per_s: float | None = None
    """None: the server counts none."""
    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    mean_in_flight: float
    """Requests under way, on average over wall_s: Little's law."""
    most_in_flight: int
    concurrency: int
    """The limit on requests under way, as it was at the end."""
    server_idle: float
    """Share of wall_s with no request under way."""
    client_cpu: float
    """Share of one core that asking took here."""
    retried: int
    """Answers that took more than one attempt."""
    binds: Literal["client", "one at a time", "concurrency", "test set", "server"]
    """What held it back."""
    advice: str
    """What to do about it."""

    def line(self) -> str:
        """In one line, for a person; without the advice, which is the same for many benchmarks."""
        tokens = f", {self.output_tokens_per_s:.0f} output tokens/s" if self.output_tokens_per_s is not None else ""
        loading = f", after {self.load_s:.0f} s of loading" if self.load_s is not None else ""
        return (
            f"{self.sentences} sentences in {self.wall_s:.1f} s{loading}: {self.sentences_per_s:.3g}/s{tokens}; "
            f"latency {self.latency_p50_s:.3g} s (95 %: {self.latency_p95_s:.3g}, 99 %: {self.latency_p99_s:.3g}); "
            f"{self.mean_in_flight:.1f} in flight, server idle {self.server_idle:.0%}"
        )


def speed(
    answers: Sequence[Answer], load: Load, backend: Backend, *, at_once: int | None, load_s: float | None
) -> Speed | None:
    """The speed of a go; None where nothing was answered in it.

    Args:
        answers: those of this go.
        load: how the server was driven.
        backend: what kind of server it is.
        at_once: requests that it was told to work on at once (MAX_CONCURRENT). None: not known.
        load_s: until it was ready.
    """
    if not answers:
        return None
    wall_s = max(load.wall_s, 1e-9)
    p50_s, p95_s, p99_s = (quantile([answer.latency_s for answer in answers], share) or 0 for share in _SHARES)
    counts = [answer.completion_tokens for answer in answers if answer.completion_tokens is not None]
    tokens = sum(counts) if len(counts) == len(answers) else None
    binds, advice = _bound(answers, load, backend, at_once)
    return Speed(
        sentences=len(answers),
        wall_s=round(load.wall_s, 3),
        load_s=None if load_s is None else round(load_s, 3),
        sentences_per_s=round(len(answers) / wall_s, 3),
        output_tokens_per_s=None if tokens is None else round(tokens / wall_s, 1),
        latency_p50_s=p50_s,
        latency_p95_s=p95_s,
        latency_p99_s=p99_s,
        mean_in_flight=round(load.in_flight_s / wall_s, 2),
        most_in_flight=load.most_in_flight,
        concurrency=load.limit.now,
        server_idle=round(min(load.idle_s / wall_s, 1.0), 4),
        client_cpu=round(load.cpu_s / wall_s, 3),
        retried=sum(answer.attempts > 1 for answer in answers),
        binds=binds,
        advice=advice,
    )


def _bound(
    answers: Sequence[Answer], load: Load, backend: Backend, at_once: int | None
) -> tuple[Literal["client", "one at a time", "concurrency", "test set", "server"], str]:
    limit, mean_in_flight = load.limit, load.in_flight_s / max(load.wall_s, 1e-9)
    contract = CONTRACTS[backend]
    if load.cpu_s >= CLIENT_BOUND * load.wall_s and load.wall_s > 1:
        return "client", (
            "This process was the limit: it had no more of a core to give. Another one beside it, on another part of "
            "the test set, would be answered too."
        )
    if contract.one_at_a_time and at_once in (None, 1):
        return "one at a time", (
            f"{contract.described} works on one request at a time, which is the limit, whatever the concurrency. One "
            "that batches is many times as fast on a GPU: serve.backend: vllm (--backend vllm), with vLLM in an "
            "environment of its own, ORCHESTRATOR_VLLM."
        )
    if mean_in_flight >= FEW and _worth_at_once(answers, load) < PARALLEL:
        return "one at a time", (
            f"With {mean_in_flight:.0f} requests in flight the server did the work of one: it answers them one at a "
            "time. One that batches is many times as fast, such as serve.backend: vllm."
        )
    if limit.phase == "fixed" and mean_in_flight >= 0.8 * limit.now:
        return "concurrency", (
            f"It was held at {limit.now} requests at once; left out, --concurrency adapts to what the server can do."
        )
    if limit.phase == "growing" and limit.now >= limit.most:
        return "concurrency", f"The server still gained at {limit.now} requests at once, the most that are sent."
    if limit.phase in ("growing", "fixed"):
        return "test set", "The test set was over before the server was full: a longer one shows its real rate."
    busy = f" {limit.pushed_back} times it said that it was busy." if limit.pushed_back else ""
    return "server", f"The server was full: more than {limit.now} requests at once brought no more answers.{busy}"


def _worth_at_once(answers: Sequence[Answer], load: Load) -> float:
    """How many requests' worth of work was done at once, at the least.

    The quickest answer, by its length, shows how long a unit of text takes; all the text, at that pace, one after the
    other, would have taken so many times as long as it did.
    """
    sizes = [answer.completion_tokens or len(answer.hypothesis) + 1 for answer in answers]
    pace_s = min(answer.latency_s / size for answer, size in zip(answers, sizes, strict=True))
    busy_s = max(load.wall_s - load.idle_s, 1e-9)
    return pace_s * sum(sizes) / busy_s
