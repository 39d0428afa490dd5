"""Time to first token and per token. Run: pytest tests/test_streaming.py."""

import asyncio
import json
import time

import openai_stub as stub
import pytest

from orchestrator.benchmark.client import Answer
from orchestrator.benchmark.streaming import quantile, stream_one_by_one
from orchestrator.errors import PrerequisiteError
from orchestrator.serving.endpoint import Endpoint

DONE = b"data: [DONE]\n\n"
FIRST_S, PIECE_S = 0.05, 0.02


def event(delta):
    return f"data: {json.dumps({'id': '1', 'model': 'm', 'choices': [{'index': 0, 'delta': delta}]})}\n\n".encode()


def streamed(*parts, cut=False):
    """Chunks as LLaMA-Factory's server writes them; a number is a pause in seconds."""

    def reply(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in parts:
            if isinstance(part, float):
                time.sleep(part)
            else:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if cut:
            handler.close_connection = True
        else:
            handler.wfile.write(b"0\r\n\r\n")

    return reply


def slowly(text):
    words = [part for word in text.split() for part in (PIECE_S, event({"content": f"{word} "}))]
    return streamed(event({"role": "assistant", "content": ""}), FIRST_S, *words, event({}), DONE)


@pytest.fixture
def server():
    with stub.serving() as running:
        yield running


def stream(server, sources, hypotheses=None, *, timeout_s=10.0):
    answers = [
        Answer(index, text, "stop", 9, len(text.split()) + 1, 0.1, 1)
        for index, text in enumerate(hypotheses or [f"{source} on" for source in sources])
    ]
    asked = [([{"role": "user", "content": source}], answer) for source, answer in zip(sources, answers, strict=True)]
    count = []
    endpoint = Endpoint(server.base_url, "sk-1", "the-model")
    fields = {"temperature": 0.0, "repetition_penalty": 1.0}
    found = asyncio.run(
        stream_one_by_one(endpoint, asked, fields, timeout_s=timeout_s, on_answer=lambda: count.append(1))
    )
    assert len(count) == found.sentences
    return found


def test_first_token_and_the_others_are_timed_apart(server):
    server.replies = lambda source, attempt: slowly(f"{source} on")
    found = stream(server, ["one two three four", "five six seven"])
    assert found.ttft_p50_s >= FIRST_S + PIECE_S
    assert found.tpot_p50_s >= PIECE_S * 3 / 5, "three pieces after the first, five tokens with the end"
    assert (found.sentences, found.with_tpot, found.error) == (2, 2, None)
    assert "2 sentences streamed one at a time, first token after" in found.line() and "ms a token" in found.line()


def test_they_are_asked_one_at_a_time_as_the_scored_ones_were_after_one_to_warm_up(server):
    server.replies = lambda source, attempt: slowly(source)
    stream(server, ["a", "b"])
    assert [body["messages"][0]["content"] for body in server.bodies] == ["a", "a", "b"]
    assert server.most_under_way == 1
    assert all(body["stream"] and body["model"] == "the-model" for body in server.bodies)
    assert all((body["temperature"], body["repetition_penalty"]) == (0.0, 1.0) for body in server.bodies)


def test_where_another_text_comes_its_tokens_are_not_known(server):
    server.replies = lambda source, attempt: slowly("something else")
    found = stream(server, ["a", "b"])
    assert (found.sentences, found.with_tpot, found.tpot_p50_s) == (2, 0, None)
    assert found.ttft_p50_s > 0 and "a token" not in found.line()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (streamed(event({"content": "a"}), cut=True), "the stream broke"),
        (streamed(), "no text in it"),
        (streamed(b"data: {x\n\n"), "the stream broke"),
        (streamed(b'data: {"choices": 5}\n\n'), "no part of a chat completion"),
        (streamed(b'data: {"error": {"message": "boom"}}\n\n'), "boom"),
        (stub.raw(b"<html>", 200), "no text in it"),
        (stub.raw(b"out of memory", 500), "HTTP 500: out of memory"),
        (stub.hang, "did not end within 0.5 s"),
    ],
)
def test_a_stream_that_fails_ends_it_with_what_came_before(server, reply, said):
    server.replies = lambda source, attempt: slowly("good on") if source == "good" else reply
    found = stream(server, ["good", "bad"], timeout_s=0.5)
    assert found.sentences == 1 and said in found.error
    assert said in found.line()
    none = stream(server, ["bad"], timeout_s=0.5)
    assert (none.sentences, none.ttft_p50_s) == (0, None)


def test_a_wrong_key_is_an_error(server):
    server.replies = lambda source, attempt: stub.json_reply({"detail": "Invalid API key."}, 401)
    with pytest.raises(PrerequisiteError, match="Invalid API key"):
        stream(server, ["a"])


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.95, 4), (0.99, 4), (0.25, 1)])
def test_quantiles_are_values_that_came(share, value):
    assert quantile([3.0, 1.0, 4.0, 2.0], share) == value
    assert quantile([], share) is None


def test_benchmark_takes_it_after_the_scores_and_shows_it(toy):
    """Also where every sentence comes from the cache: a server is started for it."""
    words = ("benchmark", "toy@base", "--testset", "captions_en_de", "--max-samples", "6", "--speed")
    for _ in range(2):
        done = toy.run(*words)
        assert done.code == 0, done.err
        assert "base: 6 sentences streamed one at a time, first token after" in done.out
    newest = max(toy.runs.glob("*/benchmarks/*/scores.json"), key=lambda path: path.stat().st_mtime)
    result = json.loads(newest.read_text())
    assert (result["from_cache"], result["streaming"]["sentences"]) == (6, 6)
    assert toy.record()["benchmarks"][-1]["streaming"] == result["streaming"]
