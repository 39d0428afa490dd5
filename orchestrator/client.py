"""Ask an OpenAI-compatible server for translations, many at a time.

Covered: one client with bounded workers; retries of what may pass (429, 5xx, lost connections, timeouts, replies
that are no chat completion); a fault that stands still (key, URL, model) ends it at once; a sentence that fails
stays failed and the others go on; a server that is gone is given up on.
Not covered: streaming (chat), what becomes of the answers (evaluate).
Never sent: presence_penalty (LLaMA-Factory reads it as repetition_penalty, and 0 as an error) and seed (ignored).
"""

import asyncio
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.process import visible

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# openai is imported where it is used: it costs most of a second, and every command imports this module.

ATTEMPTS = 4  # of one sentence; waits of about 0.5, 2 and 8 s between them
RETRY_AFTER_MAX_S = 60.0
CONNECT_TIMEOUT_S = 30.0
SILENT_IN_A_ROW = 3  # sentences in a row that found no server, or one that says nothing: it is given up on
FAILED_IN_A_ROW = 20  # sentences in a row that failed in any way: the same
API_KEY_ENV = "ORCHESTRATOR_API_KEY"  # not OPENAI_API_KEY: that one is for OpenAI's server alone

Message = dict[str, str]


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server, and the model to ask there."""

    base_url: str
    """Up to and including /v1."""
    api_key: str = field(repr=False)
    """'' where the server asks for none."""
    model: str

    def __post_init__(self) -> None:
        if any(mark in self.base_url for mark in "@?#"):  # not shown: what follows may be a secret
            raise SpecError(
                "the server's address has more than host, port and path: a user, a ? or a #",
                f"leave that out; a key goes into {API_KEY_ENV}",
            )
        try:
            parts = urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, an unclosed [
            usable = False
        if not usable:
            raise SpecError(f"{self.base_url!r} is no server's address", "one is http://127.0.0.1:6006/v1, say")
        if any(not "!" <= char <= "~" for char in self.api_key):
            raise PrerequisiteError(
                f"the API key for {self.base_url} holds a character that no HTTP header carries (a newline, a space?)",
                "set the key again, without it",
            )

    @property
    def is_local(self) -> bool:
        return urlsplit(self.base_url).hostname in ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Decoding:
    """How the model chooses its words."""

    temperature: float
    """0 is greedy."""
    max_tokens: int
    """Longest answer, in tokens of the model."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Failure:
    """A prompt that got no answer."""

    index: int
    error: str
    """What the last attempt met."""
    attempts: int
    """0: not asked, because the server had been given up on."""


async def translate(
    endpoint: Endpoint,
    prompts: Sequence[tuple[int, list[Message]]],
    decoding: Decoding,
    *,
    concurrency: int,
    timeout_s: float,
    on_result: Callable[[Answer | Failure], None],
) -> float:
    """Ask for every prompt's answer. Cancelled, it drops the requests under way and closes the client.

    Args:
        endpoint: the server.
        prompts: (index, messages); the index comes back with the result.
        decoding: sent with each request.
        concurrency: requests under way at once.
        timeout_s: for one attempt, its wait in the server's queue included.
        on_result: called once for each prompt, as results come, in the event loop's thread; what it raises ends all.

    Returns:
        Seconds from the first request to the last result.

    Raises:
        PrerequisiteError: the server refuses every request alike: a wrong key, URL or model.
    """
    import stamina

    # Each answer carries its number of attempts; a line per retry only where the program asked for logs.
    stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.LoggingOnRetryHook])
    if not (logger := logging.getLogger("stamina")).handlers:
        logger.addHandler(logging.NullHandler())
    queue = iter(prompts)
    health = _Health()
    try:
        async with _client(endpoint, timeout_s) as client:
            began = time.monotonic()
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(concurrency, len(prompts))):
                    workers.create_task(_work(client, endpoint, queue, decoding, timeout_s, health, on_result))
            return time.monotonic() - began
    except ExceptionGroup as group:
        raise group.exceptions[0] from group.exceptions[0].__cause__


def list_models(endpoint: Endpoint, timeout_s: float = 10) -> list[str] | None:
    """Names of the models that a server has (GET /models), in one attempt; None where nobody answers (yet).

    Raises:
        PrerequisiteError: it answers, but refuses the key, or it is no OpenAI-compatible server.
    """
    url = f"{endpoint.base_url.rstrip('/')}/models"
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    # No redirects: they would carry the key to wherever the server says.
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if endpoint.is_local:
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as reply:
            return [card.id for card in _ModelList.model_validate_json(reply.read(1 << 24)).data]
    except urllib.error.HTTPError as error:
        with error:
            said = _excerpt(endpoint, error.read(4096).decode("utf-8", "replace"))
        raise _refusal(endpoint, error.code, said) from None
    except OSError as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            message = f"no safe connection to {endpoint.base_url}: {error}"
            raise PrerequisiteError(message, "SSL_CERT_FILE names a file with the certificate to trust") from error
        return None  # refused, unknown host, timeout, cut off
    except (HTTPException, ValidationError) as error:
        raise PrerequisiteError(
            f"what answers at {endpoint.base_url} is no OpenAI-compatible server: GET /models gave no list of models",
            "check the address (most end in /v1)",
        ) from error


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Message(_Strict):
    content: str


class _Choice(_Strict):
    message: _Message
    finish_reason: str | None = None


class _Usage(_Strict):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Reply(_Strict):
    """What we need of a chat completion. The openai client checks nothing: an HTML page would come back as a str."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _ModelCard(_Strict):
    id: str


class _ModelList(_Strict):
    data: list[_ModelCard]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class _Health:
    """How the server has been doing since its last answer; shared by the workers."""

    failed: int = 0
    silent: int = 0
    given_up: str = ""
    """Why; '' while it is being asked."""

    def answered(self) -> None:
        self.failed = self.silent = 0

    def failure(self, error: str, silent: bool) -> None:
        self.failed += 1
        self.silent = self.silent + 1 if silent else 0
        if not self.given_up and (self.silent >= SILENT_IN_A_ROW or self.failed >= FAILED_IN_A_ROW):
            self.given_up = f"not asked: {self.failed} sentences in a row had failed, the last by: {error}"


def _client(endpoint: Endpoint, timeout_s: float) -> "AsyncOpenAI":
    import openai

    # A proxy of the environment is not for 127.0.0.1, whatever NO_PROXY forgot. Redirects would turn POST into GET.
    http_client = openai.DefaultAioHttpClient(trust_env=not endpoint.is_local, follow_redirects=False)
    client = openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key or "none",  # '' would make it look for OPENAI_API_KEY
        http_client=http_client,
        timeout=openai.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
        max_retries=0,  # ours are counted
    )
    client.organization = client.project = None  # of OPENAI_ORG_ID and OPENAI_PROJECT_ID: not this server's business
    return client


async def _work(
    client: "AsyncOpenAI",
    endpoint: Endpoint,
    queue: Iterator[tuple[int, list[Message]]],
    decoding: Decoding,
    timeout_s: float,
    health: _Health,
    on_result: Callable[[Answer | Failure], None],
) -> None:
    for index, messages in queue:
        if health.given_up:
            on_result(Failure(index, health.given_up, attempts=0))
        else:
            on_result(await _ask(client, endpoint, index, messages, decoding, timeout_s, health))


async def _ask(
    client: "AsyncOpenAI",
    endpoint: Endpoint,
    index: int,
    messages: list[Message],
    decoding: Decoding,
    timeout_s: float,
    health: _Health,
) -> Answer | Failure:
    import aiohttp
    import openai
    import stamina

    attempts = 0
    try:
        async for attempt in stamina.retry_context(
            on=_may_pass,
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=0.5,
            wait_exp_base=4,
            wait_jitter=0.5,
            wait_max=8,
        ):
            with attempt:
                attempts = attempt.num
                began = time.monotonic()
                async with asyncio.timeout(timeout_s):  # the client's own counts from byte to byte
                    reply = await client.chat.completions.with_raw_response.create(
                        model=endpoint.model,
                        messages=messages,  # type: ignore[arg-type]
                        temperature=decoding.temperature,
                        max_tokens=decoding.max_tokens,
                    )
                latency_s = time.monotonic() - began
                answer = _Reply.model_validate_json(reply.content)
    except openai.APIStatusError as error:
        said = _excerpt(endpoint, error.response.text)
        if error.status_code in (401, 403, 404, 405) or error.status_code < 400:
            raise _refusal(endpoint, error.status_code, said) from error
        reason, silent = f"HTTP {error.status_code}: {said}", False
    except (openai.APIError, aiohttp.ClientError, TimeoutError, ValidationError) as error:
        reason, silent = _fault(error, timeout_s)
        reason = _excerpt(endpoint, reason)
    else:
        health.answered()
        usage = answer.usage or _Usage()
        choice = answer.choices[0]
        return Answer(
            index,
            choice.message.content,
            choice.finish_reason,
            usage.prompt_tokens,
            usage.completion_tokens,
            round(latency_s, 6),
            attempts,
        )
    health.failure(reason, silent)
    return Failure(index, reason, attempts)


def _may_pass(error: Exception) -> bool | float:
    """Whether another attempt is worth it; seconds, where the server said how long to wait (stamina's backoff hook)."""
    import aiohttp
    import openai

    if isinstance(error, openai.APIStatusError):
        if error.status_code not in (408, 425, 429) and error.status_code < 500:
            return False
        wait_s = error.response.headers.get("retry-after", "")
        return min(float(wait_s), RETRY_AFTER_MAX_S) if wait_s.isdecimal() else True
    return isinstance(error, openai.APIError | aiohttp.ClientError | TimeoutError | ValidationError)


def _refusal(endpoint: Endpoint, status: int, said: str) -> PrerequisiteError:
    """What every request would meet: no use to go on."""
    message = f"{endpoint.base_url} refuses the requests: HTTP {status}: {said}"
    if status in (401, 403):
        return PrerequisiteError(message, f"set {API_KEY_ENV} to the server's key")
    if status < 400:
        return PrerequisiteError(message, "give the address that the server redirects to")
    return PrerequisiteError(
        message, f"check the address (most end in /v1) and the model's name on the server ({endpoint.model!r})"
    )


def _fault(error: Exception, timeout_s: float) -> tuple[str, bool]:
    """What went wrong beneath a request, and whether there was nobody to answer it."""
    import aiohttp

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "body"
        return f"the reply is no chat completion: {place}: {first['msg']}", False
    # The client's transport calls a cut connection a timeout: aiohttp, beneath it, knows better.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, aiohttp.ClientError | TimeoutError):
        cause = cause.__cause__
    if isinstance(cause, TimeoutError):
        return f"no answer within {timeout_s:g} s", True
    if isinstance(cause, aiohttp.ClientConnectorError):
        return f"no connection: {cause}", True
    return f"the connection broke: {cause or error}", False


def _excerpt(endpoint: Endpoint, text: str) -> str:
    """The beginning of what a server said, on one line, without our key in it."""
    line = " ".join(text.split())
    if endpoint.api_key:
        line = line.replace(endpoint.api_key, "***")
    return visible(line[:300]) or "(nothing)"
