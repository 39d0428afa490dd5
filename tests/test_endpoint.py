"""A server's address, and the models that it lists."""

import time

import openai_stub as stub
import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.serving.endpoint import Endpoint, connect, list_models

KEY = "sk-secret-of-the-test"
GONE = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:6006", "ftp://host/v1", "http://", "http://host:port/v1", "http://host:99999/v1",
     "https://user:pw@host/v1", "https://h/v1?key=pw"],
)  # fmt: skip
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_showing_that(url):
    with pytest.raises(SpecError) as error:
        Endpoint(url, "", "m")
    assert "pw" not in error.value.message and "ORCHESTRATOR_API_KEY" in error.value.remedy
    for good in ("http://127.0.0.1:6006/v1", "https://api.example.org/a/v1", "http://[::1]:8000/v1", "http://gpu-7"):
        assert Endpoint(good, "", "m").base_url == good


@pytest.mark.parametrize("key", ["abc\n", "a b", "schlüssel"])
def test_a_key_that_no_header_carries_is_refused_without_showing_it(key):
    with pytest.raises(PrerequisiteError) as error:
        Endpoint(GONE, key, "m")
    assert key not in error.value.message


def test_a_server_lists_its_models_and_says_that_it_is_vllm(server):
    server.models = stub.json_reply({"data": [{"id": "a", "owned_by": "vllm"}, {"id": "b"}]})
    assert list_models(Endpoint(server.base_url, KEY, "m")) == {"a": "vllm", "b": None}
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"


def test_there_is_no_list_where_nobody_answers_in_time(server):
    assert list_models(Endpoint(GONE, KEY, "m")) is None
    for silent in (stub.cut_connection, stub.drip):
        server.models = silent
        began = time.monotonic()
        assert list_models(Endpoint(server.base_url, KEY, "m"), timeout_s=0.3) is None
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (stub.json_reply({"detail": f"Invalid API key {KEY}."}, 401), "HTTP 401"),
        (stub.raw(b"<html>"), "no OpenAI-compatible server"),
        (stub.json_reply({"data": [1]}), "no OpenAI-compatible server"),
        (stub.no_http, "no OpenAI-compatible server"),
        (stub.raw(b"", 302, Location="http://elsewhere.invalid/v1/models"), "HTTP 302"),
        (stub.json_reply({"error": "loading the model"}, 503), "loading the model"),
    ],
)
def test_a_list_that_is_refused_says_why_and_is_needed_only_without_a_models_name(server, reply, words):
    server.models = reply
    with pytest.raises(PrerequisiteError, match=words) as error:
        connect(server.base_url, KEY, None)
    assert server.base_url in error.value.message and KEY not in error.value.message
    assert "--model-name NAME" in error.value.remedy
    assert connect(server.base_url, KEY, "mine").model == "mine"


def test_a_server_is_connected_to_where_it_answers_and_its_model_is_clear(server):
    assert connect(server.base_url, KEY, None) == Endpoint(server.base_url, KEY, "stub")
    server.models = stub.json_reply({"data": [{"id": "a"}, {"id": "b"}]})
    with pytest.raises(PrerequisiteError, match="serves 2 models: a, b"):
        connect(server.base_url, KEY, None)
    with pytest.raises(PrerequisiteError, match="no server answers"):
        connect(GONE, KEY, "mine")
