"""Many requests against a real server with real faults."""

import socket
import ssl
import subprocess
import time

import openai_stub as stub
import pytest

from orchestrator.benchmark import requests
from orchestrator.benchmark.requests import FAILED_IN_A_ROW, SILENT_IN_A_ROW, Hypothesis, translate
from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.processes.interruptible import run_interruptible
from orchestrator.serving.endpoint import Endpoint, connect, list_models

KEY = "sk-secret-of-the-test"
NUMBERS = [str(number) for number in range(200)]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(requests, "FIRST_WAIT_S", 0.0)


def ask(server, sentences, *, concurrency=4, timeout_s=20, on_result=None, base_url=None):
    """Results by index."""
    results = []
    endpoint, fields = Endpoint(base_url or server.base_url, KEY, "the-model"), {"temperature": 0.0, "max_tokens": 77}
    prompts = [(index, [{"role": "user", "content": f"Translate.\n{text}"}]) for index, text in enumerate(sentences)]
    how = {"concurrency": concurrency, "timeout_s": timeout_s, "on_result": on_result or results.append}
    run_interruptible(translate(endpoint, prompts, fields, **how))
    results.sort(key=lambda result: result.index)
    assert [result.index for result in results] == list(range(len(sentences))), "one result for each prompt"
    return results


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def choice(**fields):
    return stub.json_reply({"choices": [{"index": 0, **fields}]})


THOUGHTS = stub.json_reply({
    "choices": [{"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}],
    "usage": {"completion_tokens": 256},
})  # fmt: skip


def test_each_prompt_gets_its_own_answer_with_counts_and_time(server):
    results = ask(server, [f"satz {number}" for number in range(50)], concurrency=8)
    for index, answer in enumerate(results):
        assert (answer.hypothesis, answer.finish_reason, answer.model) == (f"SATZ {index}", "stop", "stub")
        assert (answer.prompt_tokens, answer.completion_tokens, answer.attempts) == (10, 5, 1)
        assert answer.latency_s > 0


def test_a_request_says_what_is_requested_and_no_more(server, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/of-openai")
    ask(server, ["a"])
    messages = [{"role": "user", "content": "Translate.\na"}]
    assert server.bodies == [{"model": "the-model", "messages": messages, "temperature": 0.0, "max_tokens": 77}]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "of-openai" not in str(server.headers)


def test_what_is_no_answer_costs_one_more_attempt_where_it_passes(server):
    faults = [
        stub.raw(b"Internal Server Error", 500), stub.json_reply({"error": "slow down"}, 429, Retry_After="0"),
        stub.raw(b"", 408), stub.cut_connection, stub.cut_body, stub.no_http, stub.raw(b'{"choices": [{"mess'),
        stub.raw(b"\xff\xfe"), stub.raw(b"garbage", Content_Encoding="gzip"),
        choice(message="hello"),
        choice(message={"content": None}),
        choice(message={"content": ""}, finish_reason="content_filter"),
        choice(message={"content": "x"}, finish_reason="abort"),
        choice(message={"content": "x"}, error={"code": 502}),
        stub.json_reply({"error": {"message": "overloaded"}}),
        stub.completion("half an emoji: \ud83d"),
    ]  # fmt: skip
    server.replies = lambda source, attempt: faults[int(source)] if attempt == 1 else stub.completion("A")
    for answer in ask(server, NUMBERS[: len(faults)], concurrency=1):
        assert (answer.index, answer.hypothesis, answer.attempts) == (answer.index, "A", 2)


FAULTS = [
    (stub.raw(b"Internal\nServer\x1b[31m Error", 500), 4, r"HTTP 500: Internal Server\x1b[31m Error"),
    (stub.raw(f"wrong key {KEY}".encode(), 502), 4, "HTTP 502: wrong key ***"),
    (stub.json_reply({"error": "busy"}, 429), 8, 'HTTP 429: {"error": "busy"}'),
    (stub.json_reply({"error": "Your input was flagged"}, 403), 1, "Your input was flagged"),
    (stub.cut_connection, 4, "the connection broke: Server disconnected"),
    (stub.json_reply({"error": {"message": "CUDA\nerror"}}), 4, "the reply is an error: CUDA error"),
    (stub.json_reply({"error": {"message": "slow", "code": 429}}), 8, "the reply is an error: slow"),
    (stub.raw(b"<html><title>Log in</title>" + b"x" * 999), 4, "no JSON: <html><title>Log in</title>xxx"),
    (stub.json_reply({"ok": True}), 4, 'no chat completion with a text: {"ok": true}'),
    (THOUGHTS, 1, "no text, 256 tokens went into reasoning: raise max_tokens"),
]


def test_a_sentence_that_fails_says_why_and_the_others_are_answered(server):
    server.replies = lambda source, _: stub.completion("A") if source == "a" else FAULTS[int(source)][0]
    results = ask(server, ["a", *map(str, range(len(FAULTS))), "a"], concurrency=1)
    assert results[0].hypothesis == results[len(FAULTS) + 1].hypothesis == "A"
    for number, (_, attempts, words) in enumerate(FAULTS):
        failed = results[number + 1]
        assert words in failed.error and len(failed.error) < 340
        assert (number, failed.attempts) == (number, attempts) == (number, server.attempts[str(number)])


@pytest.mark.parametrize(
    ("header", "wait_s"), [("0.5", 0.5), ("86400", 60), ("-3", 0), ("nan", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)]
)
def test_the_server_says_how_long_to_wait_within_bounds(server, monkeypatch, header, wait_s):
    """FIRST_WAIT_S is 0 here, so what is no number of seconds leaves no wait."""
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(requests.asyncio, "sleep", sleep)
    busy = stub.json_reply({}, 429, Retry_After=header)
    server.replies = lambda source, attempt: busy if attempt == 1 else stub.completion("x")
    assert ask(server, ["a"])[0].attempts == 2
    assert waits == [wait_s]


@pytest.mark.parametrize(
    ("reply", "remedy"),
    [
        (stub.json_reply({"detail": f"wrong key {KEY}"}, 401), "ORCHESTRATOR_API_KEY"),
        (stub.json_reply({"detail": "Forbidden"}, 403), "ORCHESTRATOR_API_KEY"),
        (stub.json_reply({"detail": "Not Found"}, 404), "/v1"),
        (stub.raw(b"", 307, Location="http://elsewhere.invalid/v1"), "redirects"),
    ],
)
def test_a_server_that_answers_nothing_and_refuses_all_is_an_error_with_its_remedy(server, reply, remedy):
    server.replies = lambda *_: reply
    with pytest.raises(PrerequisiteError) as error:
        ask(server, NUMBERS)
    assert server.base_url in error.value.message and remedy in error.value.remedy
    assert KEY not in error.value.message
    assert len(server.bodies) <= FAILED_IN_A_ROW + 4


def test_a_server_that_sends_no_answer_in_time_is_waited_for_no_longer(server):
    silent = {"hang": stub.hang, "drip": stub.drip}
    server.replies = lambda source, _: silent.get(source, stub.completion("A"))
    results = ask(server, ["hang", "drip", "a"], timeout_s=0.3)
    assert [(results[index].error, results[index].attempts) for index in (0, 1)] == [("no answer within 0.3 s", 3)] * 2
    assert results[2].hypothesis == "A"


def test_a_server_that_is_gone_is_given_up_on(server, free_port):
    results = ask(server, ["a"] * 100, concurrency=2, base_url=f"http://127.0.0.1:{free_port}/v1")
    tried = [result for result in results if result.error.startswith("no connection: Cannot connect")]
    assert SILENT_IN_A_ROW <= len(tried) <= SILENT_IN_A_ROW + 1, "what is under way may end"
    assert results[99].attempts == 0 and results[99].error.startswith("not requested: ")


def test_a_server_that_fails_whatever_it_is_asked_is_given_up_on_and_an_answer_keeps_it_in_use(server):
    server.replies = lambda *_: stub.raw(b"CUDA error", 500)
    results = ask(server, NUMBERS[:60], concurrency=1)
    assert sum(result.attempts > 0 for result in results) == FAILED_IN_A_ROW
    server.replies = lambda source, _: stub.cut_connection if int(source) % FAILED_IN_A_ROW else stub.completion("A")
    assert all(result.attempts for result in ask(server, NUMBERS[:60], concurrency=1))


def test_an_error_in_on_result_ends_all_and_is_raised_as_it_is(server):
    def full(result):
        raise StageError("disk full")

    with pytest.raises(StageError, match="disk full"):
        ask(server, NUMBERS, on_result=full)
    assert len(server.bodies) < 50


def test_a_busy_server_is_sent_half_as_many_at_once(server):
    def replies(source, attempt):
        time.sleep(0.01)
        return stub.json_reply({}, 429) if server.under_way > 4 else stub.completion(source)

    server.replies = replies
    results = ask(server, NUMBERS, concurrency=32)
    assert all(isinstance(result, Hypothesis) for result in results)
    assert len(server.bodies) < 330, "few are turned away, once it is known how many it takes"


def test_a_certificate_counts_where_ssl_cert_file_names_it(tmp_path, monkeypatch):
    pem = tmp_path / "it's a.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    argv += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(pem), "-out", str(tmp_path / "cert")]
    subprocess.run(argv, check=True, capture_output=True)
    pem.write_bytes(pem.read_bytes() + (tmp_path / "cert").read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with stub.serving(context) as server:
        url = f"https://localhost:{server.port}/v1"
        with pytest.raises(PrerequisiteError, match="no safe connection") as error:
            ask(server, ["a"], base_url=url)
        assert "SSL_CERT_FILE" in error.value.remedy
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
        assert ask(server, ["a"], base_url=url)[0].hypothesis == "A"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(PrerequisiteError, match=r"SSL_CERT_FILE=.*none"):
        ask(server, ["a"], base_url=url)


def test_a_proxy_of_the_environment_is_for_other_machines_alone_and_named(server, monkeypatch, free_port):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    assert isinstance(ask(server, ["a"])[0], Hypothesis)
    assert "stub" in list_models(Endpoint(server.base_url, KEY, "m"))
    far = Endpoint("http://gpu-7:6006/v1", KEY, "m")
    assert far.described == "http://gpu-7:6006/v1 (through http_proxy; NO_PROXY=gpu-7 leaves it out)"
    with pytest.raises(PrerequisiteError, match="through http_proxy"):
        connect("http://gpu-7:6006/v1", KEY, None)
    monkeypatch.setenv("no_proxy", "gpu-7")
    assert far.described == "http://gpu-7:6006/v1"
