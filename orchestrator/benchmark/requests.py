"""Translations from an OpenAI-compatible server: what each kind of server is sent, and many requests at a time.

What a server supports is sent with every request, also where it is the default: no server's own default decides. What
it would drop is refused. What is no answer is repeated, counted, and named; a server that only fails is given up on.

Sources. LLaMA-Factory 0.9.5: api/chat.py (presence_penalty becomes repetition_penalty), api/protocol.py (unknown fields
are dropped in silence), chat/hf_engine.py (temperature 0 turns sampling off; stop: a warning, no more). vLLM:
config/model.py, get_diff_sampling_param (what is not sent comes from the model's generation_config.json).
"""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.serving.endpoint import Endpoint, connection_problem, excerpt, open_client, refusal
from orchestrator.specs.benchmark_spec import BenchmarkSpec

Kind = Literal["rate_limited", "server_error", "timeout", "connect", "rejected"]
Message = dict[str, str]

ATTEMPTS: Mapping[Kind, int] = {"rate_limited": 8, "server_error": 4, "connect": 4, "timeout": 3, "rejected": 1}
# Sentences in a row that found no server or a silent one, or that failed in any way: it is given up on.
SILENT_IN_A_ROW, FAILED_IN_A_ROW = 3, 20
# Between two attempts: 0.5, 2, 8, 8, ... s, or as long as the server says, within bounds.
FIRST_WAIT_S, LONGEST_WAIT_S, RETRY_AFTER_MAX_S = 0.5, 8.0, 60.0

Backend = Literal["llamafactory-huggingface", "llamafactory-vllm", "llamafactory-sglang", "vllm", "openai"]

DECODING_PARAMS = ("temperature", "max_tokens", "top_p", "repetition_penalty", "stop")  # the spec's
_RENAMED = {"repetition_penalty": "presence_penalty"}  # by LLaMA-Factory's server
_LLAMAFACTORY_FIELDS = ("tools", "do_sample", "temperature", "top_p", "presence_penalty", "max_tokens", "stop")
# The spec's parameters besides temperature and max_tokens; what is sent where the spec has none (None: nothing).
SUPPORTED: dict[Backend, dict[str, Any]] = {
    "llamafactory-huggingface": {"top_p": 1.0, "repetition_penalty": 1.0},
    "llamafactory-vllm": {"top_p": 1.0, "repetition_penalty": 1.0, "stop": None},
    "llamafactory-sglang": {"top_p": 1.0, "repetition_penalty": 1.0, "stop": None},
    "vllm": {"top_p": 1.0, "repetition_penalty": 1.0, "stop": None},
    "openai": {"top_p": None, "stop": None},  # some refuse top_p beside a temperature
}
_VLLM_CONSTANT = {
    "top_k": -1, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "skip_special_tokens": True,
}  # fmt: skip
# Requests under way at once, unless the spec says it; of the others 32. LLaMA-Factory's huggingface engine works on
# MAX_CONCURRENT at a time: that and one that waits.
CONCURRENCY: dict[Backend, int] = {"llamafactory-huggingface": 2, "llamafactory-vllm": 256, "vllm": 256}


@dataclass(frozen=True)
class Decoding:
    """How the model chooses its words."""

    sent: dict[str, Any]  # fields of every request, but model and messages
    effective_defaults: dict[str, Any]  # values that no request says and that hold all the same

    @property
    def greedy(self) -> bool:
        return self.sent.get("temperature") == 0

    @property
    def max_tokens(self) -> int | None:
        found = self.sent.get("max_tokens", self.sent.get("max_completion_tokens"))
        return found if isinstance(found, int) else None


def decode(backend: Backend, bench: BenchmarkSpec, given: Mapping[str, Any]) -> Decoding:
    """What a benchmark sends to a kind of server; the spec's `request` is merged in last.

    Of `given`, which the server was started with, its repetition_penalty is kept where the spec has none. Raises
    SpecError: the server would drop something of the spec.
    """
    is_ours, samples = backend.startswith("llamafactory"), bench.temperature > 0
    _refuse_dropped(backend, bench)
    sent: dict[str, Any] = {"temperature": bench.temperature, "max_tokens": bench.max_tokens}
    for name, value in SUPPORTED[backend].items():
        if is_ours and name in _RENAMED:
            name, value = _RENAMED[name], bench.repetition_penalty or given.get(name, value)
        else:
            value = value if getattr(bench, name) is None else getattr(bench, name)
        sent[name] = value
    if backend == "vllm":
        sent |= _VLLM_CONSTANT
    elif backend == "openai" and samples and sent["top_p"] is None:
        sent["top_p"] = 1.0
    elif backend == "llamafactory-huggingface":
        sent["do_sample"] = samples  # with the server's do_sample false, a temperature alone samples not
    sent = {key: value for key, value in {**sent, **bench.request}.items() if value is not None}
    effective: dict[str, Any] = {}
    if is_ours:  # what no request can say
        effective = {name: given.get(name) for name in ("num_beams", "length_penalty", "skip_special_tokens")}
        effective |= {"top_k": given.get("top_k", 50)} if samples else {}  # hparams/generating_args.py
    return Decoding(sent, {name: value for name, value in effective.items() if value is not None})


def _refuse_dropped(backend: Backend, bench: BenchmarkSpec) -> None:
    dropped = {
        f"benchmark.{name}": f"it works with {', '.join(each for each, able in SUPPORTED.items() if name in able)}"
        for name in ("top_p", "repetition_penalty", "stop")
        if name not in SUPPORTED[backend] and getattr(bench, name) is not None
    }
    if backend.startswith("llamafactory"):
        takes = f"LLaMA-Factory's server takes {', '.join(_LLAMAFACTORY_FIELDS)}"
        dropped |= {f"benchmark.request.{name}": takes for name in bench.request if name not in _LLAMAFACTORY_FIELDS}
    for place, remedy in dropped.items():
        raise SpecError(f"{place}: a server of kind {backend} drops it without a word", f"leave it out; {remedy}")


class Hypothesis(BaseModel):
    """A model's answer to one prompt; a line of hypotheses.jsonl, with its source and reference."""

    model_config = ConfigDict(frozen=True, strict=True)

    index: int
    hypothesis: str
    finish_reason: str | None = None  # as the server says it
    prompt_tokens: int | None = None
    completion_tokens: int | None = None  # those of reasoning among them
    reasoning_tokens: int | None = None
    model: str | None = None  # what the server calls the model that answered
    latency_s: float  # of the attempt that succeeded, its wait in the server's queue included
    attempts: int
    cached: bool = False  # whether an earlier benchmark had the same answer from the same model


class FailedSegment(BaseModel):
    model_config = ConfigDict(frozen=True)

    index: int
    error: str  # what the last attempt met
    attempts: int  # 0: never requested, because the server had been given up on


class RequestError(Exception):
    """An attempt without an answer. `refused`: a status that every request would meet."""

    def __init__(self, kind: Kind, reason: str, retry_after_s: float | None = None, refused: int = 0) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.retry_after_s, self.refused = kind, reason, retry_after_s, refused


async def translate(
    endpoint: Endpoint,
    prompts: Iterable[tuple[int, list[Message]]],
    fields: Mapping[str, Any],
    *,
    concurrency: int,
    timeout_s: float,
    on_result: Callable[[Hypothesis | FailedSegment], None],
    n_answered: int = 0,
) -> None:
    """Request the answer to every prompt, an index and messages. Cancelled, it drops the requests under way.

    `fields` go with each request. So many are under way at once, fewer where the server is busy or does not answer;
    timeout_s is for one attempt. `on_result` is called once for each prompt; what it raises ends all. After
    `n_answered` earlier answers of this server a refusal is one sentence's alone.

    Raises PrerequisiteError: the server answered nothing and refuses every request alike: a wrong key, URL or model.
    """
    pool, remaining = _Pool(endpoint, fields, timeout_s, concurrency, n_answered), iter(prompts)

    async def work(client: Any) -> None:
        for index, messages in remaining:
            on_result(await pool.answer(client, index, messages))

    async with open_client(endpoint) as client:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(concurrency):
                    workers.create_task(work(client))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group.exceptions[0].__cause__
    if pool.refused and not pool.n_answered:
        raise pool.refused


class _Pool:
    """What the requests to one server share."""

    def __init__(
        self, endpoint: Endpoint, fields: Mapping[str, Any], timeout_s: float, limit: int, n_answered: int
    ) -> None:
        self.endpoint, self.fields, self.timeout_s, self.n_answered = endpoint, fields, timeout_s, n_answered
        self.slots, self.limit, self.surplus, self.halved_at = asyncio.Semaphore(limit), limit, 0, 0.0
        self.failed = self.silent = 0  # sentences in a row, since the last answer
        self.given_up = ""  # why
        self.refused: PrerequisiteError | None = None

    async def answer(self, client: Any, index: int, messages: list[Message]) -> Hypothesis | FailedSegment:
        met = Counter[Kind]()
        while True:
            await self.slots.acquire()
            try:
                if self.given_up:
                    return FailedSegment(index=index, error=self.given_up, attempts=met.total())
                began = time.monotonic()
                found = await self._attempt(client, messages)
                self.n_answered, self.failed, self.silent = self.n_answered + 1, 0, 0
                latency_s = round(time.monotonic() - began, 6)
                return Hypothesis(index=index, latency_s=latency_s, attempts=met.total() + 1, **found)
            except RequestError as caught:
                error = caught
                if error.kind in ("rate_limited", "timeout") and began > self.halved_at:  # once for a batch
                    self.surplus += self.limit - max(1, self.limit // 2)
                    self.limit, self.halved_at = max(1, self.limit // 2), time.monotonic()
            finally:
                if self.surplus:
                    self.surplus -= 1
                else:
                    self.slots.release()
            met[error.kind] += 1
            if met[error.kind] >= ATTEMPTS[error.kind]:
                self._note_failure(error)
                return FailedSegment(index=index, error=error.reason, attempts=met.total())
            wait_s = min(FIRST_WAIT_S * 4 ** (met.total() - 1), LONGEST_WAIT_S) * random.uniform(0.8, 1.2)
            await asyncio.sleep(wait_s if error.retry_after_s is None else error.retry_after_s)

    def _note_failure(self, error: RequestError) -> None:
        self.failed += 1
        self.silent = self.silent + 1 if error.kind in ("timeout", "connect") else 0
        if self.silent >= SILENT_IN_A_ROW or self.failed >= FAILED_IN_A_ROW:
            self.given_up = f"not requested: {self.failed} sentences in a row had failed, the last by: {error.reason}"
        if error.refused and self.refused is None:
            self.refused = refusal(self.endpoint, error.refused, error.reason.partition(": ")[2])

    async def _attempt(self, client: Any, messages: list[Message]) -> dict[str, Any]:
        import aiohttp
        import openai

        body = {"model": self.endpoint.model, **self.fields, "messages": messages}
        try:
            async with asyncio.timeout(self.timeout_s):
                # Not chat.completions.create: it takes as long again to look through messages that are plain text.
                return read_reply(await client.post("/chat/completions", cast_to=bytes, body=body))
        except RequestError as error:
            raise RequestError(error.kind, excerpt(self.endpoint, error.reason)) from error
        except openai.APIStatusError as error:
            status, words = error.status_code, excerpt(self.endpoint, error.response.text)
            header = error.response.headers.get("retry-after", "")  # bounded, for it is a stranger's wish
            wait_s = min(float(header), RETRY_AFTER_MAX_S) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", header) else None
            refused = status if status in (401, 403, 404, 405) or status < 400 else 0
            raise RequestError(_kind_of(status), f"HTTP {status}: {words}", wait_s, refused) from error
        except TimeoutError as error:
            raise RequestError("timeout", f"no answer within {self.timeout_s:g} s") from error
        except ValueError as error:
            raise RequestError("server_error", f"the reply is no answer: {error}") from error
        except (openai.APIError, aiohttp.ClientError) as error:
            kind, reason = connection_problem(self.endpoint, error)
            raise RequestError(kind, excerpt(self.endpoint, reason)) from error


def read_reply(content: bytes) -> dict[str, Any]:
    """The fields of a Hypothesis that a reply has: text, why it ended, tokens, model.

    Raises RequestError: the reply holds no answer; its own words are in the reason.
    """
    raw = content.decode("utf-8", "replace")
    try:
        reply = _mapping(from_json(content))
    except ValueError:
        raise RequestError("server_error", f"the reply is no JSON: {raw}") from None
    choices, usage, model = reply.get("choices"), _mapping(reply.get("usage")), reply.get("model")
    choice = _mapping(choices[0] if isinstance(choices, list) and choices else None)
    message, finish = _mapping(choice.get("message")), choice.get("finish_reason")
    text, reasoning = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    tokens = _count(usage.get("completion_tokens"))
    error = choice.get("error") or reply.get("error")
    if error or finish in ("error", "content_filter", "abort"):
        code = _mapping(error).get("code")
        kind = _kind_of(code) if isinstance(code, int) and 400 <= code < 600 else "server_error"
        words = _mapping(error).get("message") or error or f"finish_reason {finish}"
        raise RequestError(kind, f"the reply is an error: {words}")
    if not text and (reasoning or (text is None and finish == "length")):
        spent = "everything" if tokens is None else f"{tokens} tokens"
        raise RequestError("rejected", f"no text, {spent} went into reasoning: raise max_tokens, or turn thinking off")
    if not isinstance(text, str):
        raise RequestError("server_error", f"the reply is no chat completion with a text: {raw}")
    return {
        "hypothesis": text,
        "finish_reason": finish if isinstance(finish, str) else None,
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": tokens,
        "reasoning_tokens": _count(_mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")),
        "model": model if isinstance(model, str) else None,
    }


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    """A number of tokens, which some servers write as 9.0."""
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e12 else None


def _kind_of(status: int) -> Kind:
    if status in (425, 429, 503):
        return "rate_limited"
    return "server_error" if status == 408 or status >= 500 else "rejected"
