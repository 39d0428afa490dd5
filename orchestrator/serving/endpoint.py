"""An OpenAI-compatible server: its address and key, and the models that it has."""

import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.specs.spec import API_KEY_ENV
from orchestrator.text import escape_controls


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


def list_models(endpoint: Endpoint, timeout_s: float = 10) -> list[str] | None:
    """Names of the models that a server has (GET /models), in one attempt; None where nobody answers (yet).

    Raises:
        PrerequisiteError: it answers, but refuses the key, or it is no OpenAI-compatible server.
    """
    cards = _cards(endpoint, timeout_s)
    return None if cards is None else [card.id for card in cards]


def is_vllm(endpoint: Endpoint) -> bool:
    """Whether a server says that it is `vllm serve`: its list of models does (owned_by)."""
    return any(card.owned_by == "vllm" for card in _cards(endpoint, timeout_s=10) or ())


def _cards(endpoint: Endpoint, timeout_s: float) -> "list[_ModelCard] | None":
    """Entries of the list of models; None where nobody answers.

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
            return _ModelList.model_validate_json(reply.read(1 << 24)).data
    except urllib.error.HTTPError as error:
        with error:
            said = excerpt(endpoint, error.read(4096).decode("utf-8", "replace"))
        raise refusal(endpoint, error.code, said) from None
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


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _ModelCard(Strict):
    id: str
    owned_by: Any = None


class _ModelList(Strict):
    data: list[_ModelCard]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def refusal(endpoint: Endpoint, status: int, said: str) -> PrerequisiteError:
    """What every request would meet: no use to go on."""
    message = f"{endpoint.base_url} refuses the requests: HTTP {status}: {said}"
    if status in (401, 403):
        return PrerequisiteError(message, f"set {API_KEY_ENV} to the server's key")
    if status < 400:
        return PrerequisiteError(message, "give the address that the server redirects to")
    return PrerequisiteError(
        message, f"check the address (most end in /v1) and the model's name on the server ({endpoint.model!r})"
    )


def excerpt(endpoint: Endpoint, text: str) -> str:
    """The beginning of what a server said, on one line, without our key in it."""
    line = " ".join(text.split())
    if endpoint.api_key:
        line = line.replace(endpoint.api_key, "***")
    return escape_controls(line[:300]) or "(nothing)"
