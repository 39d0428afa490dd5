"""An OpenAI-compatible server: its address, the one client that all requests go through, and the models that it lists.

openai is imported where it is used: it costs most of a second, and every command imports this module.
"""

import asyncio
import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic_core import from_json

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.processes.interruptible import run_interruptible
from orchestrator.specs.spec import API_KEY_ENV
from orchestrator.text import escape_controls

if TYPE_CHECKING:
    import openai

CONNECT_TIMEOUT_S = 30.0
_ADDRESS = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(?::([1-9]\d{0,4}))?(/[^@?#\s]*)?")


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server, and one of its models."""

    base_url: str  # up to and including /v1
    api_key: str = field(repr=False)  # '' where the server wants none
    model: str

    def __post_init__(self) -> None:
        found = _ADDRESS.fullmatch(self.base_url)
        if found is None or int(found[2] or 0) > 65535:
            # what follows a user, a ? or a # may be a secret
            shown = "" if {*"@?#"} & {*self.base_url} else f" {self.base_url!r}"
            what = f"the server's address{shown} is not http(s)://HOST:PORT/PATH"
            raise SpecError(what, f"one is http://127.0.0.1:6006/v1, say; a key goes into {API_KEY_ENV}")
        if any(not "!" <= char <= "~" for char in self.api_key):
            what = f"the API key for {self.base_url} holds a character that no HTTP header carries (a newline?)"
            raise PrerequisiteError(what, "set the key again, without it")

    @property
    def is_local(self) -> bool:
        return urlsplit(self.base_url).hostname in ("127.0.0.1", "localhost", "::1")

    @property
    def described(self) -> str:
        """The address, and the proxy between, where the environment names one for it."""
        parts = urlsplit(self.base_url)
        if self.is_local or parts.scheme not in getproxies() or proxy_bypass(parts.netloc):
            return self.base_url
        return f"{self.base_url} (through {parts.scheme}_proxy; NO_PROXY={parts.hostname} leaves it out)"


def open_client(endpoint: Endpoint, silence_s: float | None = None) -> "openai.AsyncOpenAI":
    """A client for `async with`. `silence_s` is the longest time between two pieces of a stream; None: no limit.

    Raises PrerequisiteError: SSL_CERT_FILE names no certificates.
    """
    import openai

    client = openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key or "none",  # '' would make it look for OPENAI_API_KEY
        http_client=openai.DefaultAioHttpClient(
            trust_env=not endpoint.is_local,  # a proxy is not for this machine, whatever NO_PROXY forgot
            verify=_certificates(),
            follow_redirects=False,  # they would turn POST into GET, and carry the key to wherever the server says
        ),
        timeout=openai.Timeout(silence_s, connect=CONNECT_TIMEOUT_S),
        max_retries=0,  # ours are counted
    )
    client.organization = client.project = None  # of OPENAI_ORG_ID and OPENAI_PROJECT_ID: not this server's business
    return client


def _certificates() -> Any:
    """What a server's certificate is checked by: without trust_env the client leaves SSL_CERT_FILE out."""
    import ssl

    cafile = os.environ.get("SSL_CERT_FILE")
    try:
        return ssl.create_default_context(cafile=cafile) if cafile else True
    except OSError as error:
        what = f"SSL_CERT_FILE={cafile}: no certificates there: {error}"
        raise PrerequisiteError(what, "correct it, or unset it") from error


def connect(url: str, api_key: str, model_name: str | None) -> Endpoint:
    """A server that runs already; its list of models is needed only where no model is named.

    Raises PrerequisiteError: it does not answer; or no model was named, and it does not list exactly one.
    """
    endpoint = Endpoint(url, api_key, model_name or "")
    try:
        models = list_models(endpoint)
    except PrerequisiteError as error:
        if model_name is not None:
            return endpoint
        raise PrerequisiteError(error.message, f"{error.remedy}; or name the model: --model-name NAME") from error
    if models is None:
        what = f"no server answers at {endpoint.described}"
        raise PrerequisiteError(what, "start it, or correct the address (most end in /v1)")
    if model_name is None and len(models) != 1:
        what = f"{url} serves {len(models)} models: {escape_controls(', '.join(models))}"
        raise PrerequisiteError(what, "name one: --model-name NAME")
    return replace(endpoint, model=model_name or next(iter(models)))


def list_models(endpoint: Endpoint, timeout_s: float = 10) -> dict[str, object] | None:
    """The models of GET /models, each with its `owned_by` (vllm, of `vllm serve`); None where nobody answers (yet).

    Raises PrerequisiteError: it answers, but refuses, or it is no OpenAI-compatible server.
    """
    import aiohttp
    import openai

    async def get() -> bytes:
        async with asyncio.timeout(timeout_s), open_client(endpoint) as client:
            return await client.get("/models", cast_to=bytes)

    try:
        return {str(card["id"]): card.get("owned_by") for card in from_json(run_interruptible(get()))["data"]}
    except openai.APIStatusError as error:
        raise refusal(endpoint, error.status_code, excerpt(endpoint, error.response.text)) from None
    except openai.APIConnectionError as error:
        connection_problem(endpoint, error)
        return None
    except TimeoutError:
        return None
    except (aiohttp.ClientError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"what answers at {endpoint.described} is no OpenAI-compatible server: its GET /models is no list"
        raise PrerequisiteError(what, "check the address (most end in /v1)") from error


def refusal(endpoint: Endpoint, status: int, words: str) -> PrerequisiteError:
    """What every request would meet: a wrong key, address or model."""
    if status < 400:
        remedy = "give the address that the server redirects to"
    elif status in (401, 403):
        remedy = f"set {API_KEY_ENV} to the server's key"
    elif status < 500:
        remedy = f"check the address (most end in /v1) and the model's name on the server ({endpoint.model!r})"
    else:
        remedy = "try again when it has loaded its model"
    return PrerequisiteError(f"{endpoint.described} refuses the requests: HTTP {status}: {words}", remedy)


def excerpt(endpoint: Endpoint, text: str) -> str:
    """The beginning of a server's reply, on one line, without our key in it."""
    line = " ".join(text[:100_000].split())
    if endpoint.api_key:
        line = line.replace(endpoint.api_key, "***")
    return escape_controls(line[:300]) or "(nothing)"


def connection_problem(endpoint: Endpoint, error: BaseException) -> tuple[Literal["connect", "server_error"], str]:
    """Whether there was no connection, or one that broke, and why.

    Raises PrerequisiteError: the server's certificate is not trusted, which no repetition mends.
    """
    import aiohttp

    # The client's transport calls a cut connection a timeout: aiohttp, beneath it, knows better.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, aiohttp.ClientError | TimeoutError):
        cause = cause.__cause__
    if isinstance(cause, aiohttp.ClientSSLError):
        what = f"no safe connection to {endpoint.described}: {cause}"
        raise PrerequisiteError(what, "SSL_CERT_FILE names a file with the certificate to trust") from error
    if isinstance(cause, TimeoutError):
        return "connect", f"no connection within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(cause, aiohttp.ClientConnectorError):
        return "connect", f"no connection: {cause}"
    return "server_error", f"the connection broke: {cause or error}"
