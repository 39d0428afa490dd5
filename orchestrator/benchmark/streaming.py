"""How soon an answer begins, and how fast it comes: a few sentences streamed, one at a time, on a server that is warm.

Covered: time to first token, time per output token; a stream that breaks or falls silent ends it with what came so far.
Not covered: many streams at once: a rate under load is speed.py's, and no answer is scored from a stream, which in
LLaMA-Factory's server hides faults (a 200 is sent before anything is computed).
LLaMA-Factory's huggingface engine sends whole words: its first piece of text comes a token or two after the first.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from orchestrator.benchmark.client import Answer, Client, Fault, Message, connected
from orchestrator.runs.record_parts import Streaming
from orchestrator.serving.endpoint import Endpoint

SAMPLE = 20


async def stream_one_by_one(
    endpoint: Endpoint,
    asked: Sequence[tuple[list[Message], Answer]],
    fields: Mapping[str, Any],
    *,
    timeout_s: float,
    on_answer: Callable[[], None],
) -> Streaming:
    """Stream answers, one after another.

    Args:
        endpoint: the server.
        asked: prompts, with the answers that were scored.
        fields: sent with each request, as with those.
        timeout_s: for one answer. A fault within LLaMA-Factory's generate leaves a stream open for ever.
        on_answer: called after each.

    Raises:
        PrerequisiteError: the server refuses every request alike.
    """
    ttft_s: list[float] = []
    tpot_s: list[float] = []
    error = None
    async with connected(endpoint, fields) as client:
        try:
            await _stream(client, asked[0][0], timeout_s)
            for messages, scored in asked:
                text, first_s, total_s = await _stream(client, messages, timeout_s)
                ttft_s.append(first_s)
                tokens = scored.completion_tokens or 0
                if text.strip() == scored.hypothesis.strip() and tokens > 1:
                    tpot_s.append((total_s - first_s) / (tokens - 1))
                on_answer()
        except Fault as fault:
            error = fault.reason
    return Streaming(
        sentences=len(ttft_s),
        ttft_p50_s=quantile(ttft_s, 0.50),
        ttft_p95_s=quantile(ttft_s, 0.95),
        tpot_p50_s=quantile(tpot_s, 0.50),
        tpot_p95_s=quantile(tpot_s, 0.95),
        with_tpot=len(tpot_s),
        error=error,
    )


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that so many are not above (nearest rank); None of nothing."""
    rank = max(1, -int(-share * len(values) // 1))
    return round(sorted(values)[rank - 1], 6) if values else None


async def _stream(client: Client, messages: list[Message], timeout_s: float) -> tuple[str, float, float]:
    """The text of an answer, when it began, and when it ended.

    Raises:
        Fault: it did not come to its end, or has no text.
    """
    began, first_s, pieces = monotonic(), None, []
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in client.stream(messages):
                first_s = first_s or monotonic() - began
                pieces.append(piece)
    except TimeoutError as error:
        raise Fault("late", f"a stream did not end within {timeout_s:g} s") from error
    if first_s is None:
        raise Fault("broken", "a stream had no text in it")
    return "".join(pieces), first_s, monotonic() - began
