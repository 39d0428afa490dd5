"""Endpoints, the list of models, and the faults of one request. Run: pytest tests/test_client.py."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import openai_stub as stub
import pytest

from orchestrator.benchmark.client import RETRY_AFTER_MAX_S, Fault, connected
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.serving.endpoint import Endpoint, is_vllm, list_models

KEY = "sk-secret-of-the-test"


@pytest.fixture
def server():
    with stub.serving() as running:
        yield running


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask_once(server):
    async def ask():
        async with connected(Endpoint(server.base_url, KEY, "m"), {"temperature": 0}) as client:
            return await client.ask(7, [{"role": "user", "content": "a"}])

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (stub.json_reply({}, 429), "busy"),
        (stub.json_reply({}, 503), "busy"),
        (stub.json_reply({}, 500), "broken"),
        (stub.raw(b"", 408), "broken"),
        (stub.cut_connection, "broken"),
        (stub.cut_body, "broken"),
        (stub.json_reply({"choices": []}), "broken"),
        (stub.json_reply({}, 400), "refused"),
        (stub.json_reply({}, 422), "refused"),
    ],
)
def test_a_fault_has_a_kind(server, fault, kind):
    server.replies = lambda source, attempt: fault
    with pytest.raises(Fault) as error:
        ask_once(server)
    assert error.value.kind == kind
    assert len(server.bodies) == 1, "one attempt is one request"


def test_nobody_is_a_kind_too():
    class Gone:
        base_url = f"http://127.0.0.1:{free_port()}/v1"

    with pytest.raises(Fault) as error:
        ask_once(Gone)
    assert error.value.kind == "nobody"


@pytest.mark.parametrize(
    ("said", "wait_s"),
    [
        ("2", 2), ("0.5", 0.5), ("0", 0), ("-3", 0), ("86400", RETRY_AFTER_MAX_S), ("inf", RETRY_AFTER_MAX_S),
        ("nan", None), ("soon", None), ("", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", None),
    ],
)  # fmt: skip
def test_how_long_the_server_says_to_wait_is_bounded(server, said, wait_s):
    server.replies = lambda source, attempt: stub.json_reply({}, 429, Retry_After=said)
    with pytest.raises(Fault) as error:
        ask_once(server)
    assert error.value.retry_after_s == wait_s


def test_a_date_says_how_long_to_wait_as_well(server):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server.replies = lambda source, attempt: stub.json_reply({}, 503, Retry_After=date)
    with pytest.raises(Fault) as error:
        ask_once(server)
    assert 20 < error.value.retry_after_s <= 30


def test_a_server_says_that_it_is_vllm(server):
    endpoint = Endpoint(server.base_url, KEY, "m")
    assert not is_vllm(endpoint)
    for owner, answer in (("vllm", True), ("owner", False), (None, False), (["vllm"], False)):
        server.models = stub.json_reply({"data": [{"id": "stub", "owned_by": owner}]})
        assert is_vllm(endpoint) is answer


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:6006", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(SpecError):
        Endpoint(url, "", "m")


@pytest.mark.parametrize("key", ["abc\n", "a b", "schlüssel", "\x00"])
def test_a_key_that_no_header_carries_is_refused_without_showing_it(key):
    with pytest.raises(PrerequisiteError) as error:
        Endpoint("http://127.0.0.1:1/v1", key, "m")
    assert key not in error.value.message


@pytest.mark.parametrize(
    "url", ["https://user:pw@host:8000/v1", "https://host/v1?key=pw", "https://host/v1#pw", "ftp://u:pw@host"]
)
def test_an_address_that_may_hold_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(SpecError) as error:
        Endpoint(url, "", "m")
    assert "pw" not in error.value.message
    assert "ORCHESTRATOR_API_KEY" in error.value.remedy


def test_list_models_gives_names(server):
    assert list_models(Endpoint(server.base_url, KEY, "m")) == ["stub"]
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
    list_models(Endpoint(server.base_url, "", "m"))
    assert "authorization" not in server.headers[-1]


def test_list_models_gives_none_where_nobody_answers(server):
    assert list_models(Endpoint(f"http://127.0.0.1:{free_port()}/v1", KEY, "m")) is None
    server.models = stub.cut_connection
    assert list_models(Endpoint(server.base_url, KEY, "m")) is None
    server.models = stub.hang
    assert list_models(Endpoint(server.base_url, KEY, "m"), timeout_s=0.2) is None


@pytest.mark.parametrize(
    "reply",
    [
        stub.json_reply({"detail": f"Invalid API key {KEY}."}, 401),
        stub.raw(b"<html>", Content_Type="text/html"),
        stub.json_reply({"data": None}),
        stub.no_http,
        stub.cut_body,
        stub.raw(b"", 302, Location="http://elsewhere.invalid/v1/models"),
        stub.raw(b"", 404),
    ],
)
def test_list_models_says_so_where_something_else_answers(server, reply):
    server.models = reply
    with pytest.raises(PrerequisiteError) as error:
        list_models(Endpoint(server.base_url, KEY, "m"))
    assert server.base_url in error.value.message
    assert KEY not in error.value.message
    assert error.value.remedy
