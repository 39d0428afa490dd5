"""One request to an OpenAI-compatible server, and what can come of it.

Covered: the client, of which a benchmark has one; an answer that is checked; every fault as one of a few kinds, which
decide what is done about it (translate.py); what stands still (key, URL, model) ends it at once.
Not covered: many requests and repeated ones (translate.py), conversations (talk.py), the request's fields
(decoding.py).
"""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from orchestrator.serving.endpoint import Endpoint, Strict, excerpt, refusal

if TYPE_CHECKING:
    import openai

# openai is imported where it is used: it costs most of a second, and every command imports this module.

RETRY_AFTER_MAX_S = 60.0
CONNECT_TIMEOUT_S = 30.0

Kind = Literal["busy", "broken", "late", "nobody", "refused"]
Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one prompt."""

    index: int
    hypothesis: str
    finish_reason: str | None
    """The server's word. LLaMA-Factory's huggingface engine says length for some models that did stop."""
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_s: float
    """Of the attempt that succeeded, its wait in the server's queue included."""
    attempts: int
    cached: bool = False
    """Whether it was not asked for now: an earlier benchmark had the same answer from the same model."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A prompt that got no answer."""

    index: int
    error: str
    """What the last attempt met."""
    attempts: int
    """0: not asked, because the server had been given up on."""


class Fault(Exception):
    """An attempt that came to nothing."""

    def __init__(self, kind: Kind, reason: str, retry_after_s: float | None = None) -> None:
        """What happened.

        Args:
            kind: busy (the server says so: 429, 503), broken (5xx, a cut connection, a reply that is no chat
                completion), late (no answer in time), nobody (no connection), refused (what no repetition mends).
            reason: in words, with nothing of the key in them.
            retry_after_s: how long the server says to wait.
        """
        super().__init__(reason)
        self.kind, self.reason, self.retry_after_s = kind, reason, retry_after_s


class Client:
    """A connection pool to one server, for the fields that every request has."""

    def __init__(self, endpoint: Endpoint, inner: "openai.AsyncOpenAI", fields: Mapping[str, Any]) -> None:
        self._endpoint, self._inner = endpoint, inner
        self._fields = {"model": endpoint.model, **fields}

    async def ask(self, index: int, messages: list[Message]) -> Answer:
        """One attempt. Cancelled, it drops the request.

        Raises:
            Fault: it came to nothing.
            PrerequisiteError: the server refuses every request alike: a wrong key, URL or model.
        """
        import aiohttp
        import openai

        began = time.monotonic()
        try:
            # Not chat.completions.create: it takes as long again to look through messages that are plain text, and to
            # build objects of a reply that has to be checked anyway.
            content = await self._inner.post(
                "/chat/completions", cast_to=bytes, body={**self._fields, "messages": messages}
            )
            latency_s = time.monotonic() - began
            reply = _Reply.model_validate_json(content)
        except openai.APIStatusError as error:
            raise self._status_fault(error) from error
        except (openai.APIError, aiohttp.ClientError, TimeoutError, ValidationError) as error:
            kind, reason = _fault(error)
            raise Fault(kind, excerpt(self._endpoint, reason)) from error
        usage, choice = reply.usage or _Usage(), reply.choices[0]
        return Answer(
            index,
            choice.message.content,
            choice.finish_reason,
            usage.prompt_tokens,
            usage.completion_tokens,
            round(latency_s, 6),
            attempts=1,
        )

    async def stream(self, messages: list[Message]) -> AsyncIterator[str]:
        """One attempt, streamed: the pieces of its text, as they come.

        Raises:
            Fault: it breaks off, or is no stream of an answer.
            PrerequisiteError: as in ask().
        """
        import openai

        said: Any = messages
        try:
            async with await self._inner.chat.completions.create(
                model=self._endpoint.model, messages=said, stream=True, extra_body=self._fields
            ) as stream:
                async for chunk in stream:
                    if text := streamed_text(chunk):
                        yield text
        except openai.APIStatusError as error:
            raise self._status_fault(error) from error
        except (openai.APIError, ValueError) as error:  # ValueError: an event is no JSON, or no UTF-8
            raise Fault("broken", excerpt(self._endpoint, f"the stream broke: {error}")) from error

    def _status_fault(self, error: "openai.APIStatusError") -> Exception:
        status, said = error.status_code, excerpt(self._endpoint, error.response.text)
        if status in (401, 403, 404, 405) or status < 400:
            return refusal(self._endpoint, status, said)
        reason = f"HTTP {status}: {said}"
        if status in (425, 429, 503):
            return Fault("busy", reason, _retry_after_s(error.response.headers.get("retry-after", "")))
        return Fault("broken" if status == 408 or status >= 500 else "refused", reason)


def streamed_text(chunk: Any) -> str:
    """The text in one event of a stream; '' where it has none. The openai client lets any JSON pass.

    Raises:
        ValueError: it is no event of a chat completion.
    """
    try:
        text = chunk.choices[0].delta.content if chunk.choices else None
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError("an event is no part of a chat completion") from error
    if not isinstance(text, str | None):
        raise ValueError(f"an event holds {text!r} for text")
    return text or ""


@asynccontextmanager
async def connected(endpoint: Endpoint, fields: Mapping[str, Any]) -> AsyncIterator[Client]:
    """A client for the length of the block. How long a request may take is its user's business."""
    import openai

    # A proxy of the environment is not for 127.0.0.1, whatever NO_PROXY forgot. Redirects would turn POST into GET.
    http_client = openai.DefaultAioHttpClient(trust_env=not endpoint.is_local, follow_redirects=False)
    async with openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key or "none",  # '' would make it look for OPENAI_API_KEY
        http_client=http_client,
        timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT_S),
        max_retries=0,  # ours are counted
    ) as inner:
        inner.organization = inner.project = None  # of OPENAI_ORG_ID and OPENAI_PROJECT_ID: not this server's business
        yield Client(endpoint, inner, fields)


class _Message(Strict):
    content: str


class _Choice(Strict):
    message: _Message
    finish_reason: str | None = None


class _Usage(Strict):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Reply(Strict):
    """What we need of a chat completion. The openai client checks nothing: an HTML page would come back as a str."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def _retry_after_s(text: str) -> float | None:
    """Seconds of a Retry-After header, as a number or a date; bounded, for it is a stranger's wish."""
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = (parsedate_to_datetime(text).astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            return None
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S) if wait_s == wait_s else None  # NaN is a number to float()


def _fault(error: Exception) -> tuple[Kind, str]:
    """What went wrong beneath a request."""
    import aiohttp

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "body"
        return "broken", f"the reply is no chat completion: {place}: {first['msg']}"
    # The client's transport calls a cut connection a timeout: aiohttp, beneath it, knows better.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, aiohttp.ClientError | TimeoutError):
        cause = cause.__cause__
    if isinstance(cause, TimeoutError):
        return "nobody", f"no connection within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(cause, aiohttp.ClientConnectorError):
        return "nobody", f"no connection: {cause}"
    return "broken", f"the connection broke: {cause or error}"
