"""What held a benchmark back. Run: pytest tests/test_speed.py."""

import pytest

from orchestrator.benchmark.client import Answer
from orchestrator.benchmark.concurrency import Limit
from orchestrator.benchmark.speed import speed
from orchestrator.benchmark.translate import Load


def answers(n, latency_s=0.1, tokens=20):
    return [Answer(index, "x", "stop", 10, tokens, latency_s, 1) for index in range(n)]


def load(wall_s, in_flight, *, cpu=0.1, idle_s=0.0, limit=None):
    return Load(wall_s, cpu * wall_s, in_flight * wall_s, idle_s, int(in_flight) + 1, limit or settled(64))


def settled(now):
    limit = Limit()
    limit.phase, limit.now = "settled", now
    return limit


def growing(now):
    limit = Limit()
    limit.now = now
    return limit


def found(given, how, backend="openai", at_once=None):
    return speed(given, how, backend, at_once=at_once, load_s=None)


def test_the_figures_are_those_of_the_requests():
    given = [Answer(index, "x", "stop", 10, 20, (index + 1) / 100, 1 + (index < 3)) for index in range(100)]
    result = speed(given, load(10.0, 32.0, idle_s=1.0), "openai", at_once=None, load_s=3.0)
    assert (result.latency_p50_s, result.latency_p95_s, result.latency_p99_s) == (0.5, 0.95, 0.99)
    assert (result.sentences_per_s, result.output_tokens_per_s) == (10.0, 200.0)
    assert (result.mean_in_flight, result.server_idle, result.load_s, result.retried) == (32.0, 0.1, 3.0, 3)


def test_nothing_answered_has_no_speed():
    assert found([], load(1.0, 0.0)) is None


def test_no_token_count_is_none_and_not_0():
    given = [*answers(5), Answer(6, "x", "stop", None, None, 0.1, 1)]
    assert found(given, load(1.0, 4.0)).output_tokens_per_s is None


@pytest.mark.parametrize(
    ("given", "how", "backend", "at_once", "binds"),
    [
        (answers(1000), load(10.0, 60.0, cpu=0.95), "vllm", None, "client"),
        (answers(1000, 2.0), load(100.0, 8.0), "llamafactory-huggingface", 1, "one at a time"),
        (answers(1000, 2.0), load(100.0, 8.0), "llamafactory-sglang", None, "one at a time"),
        (answers(1000, 2.0), load(31.0, 64.0), "llamafactory-huggingface", 4, "server"),
        # 0.1 s alone, 0.8 s behind seven others: 1,000 took 100 s
        (answers(999, 0.8) + answers(1, 0.1), load(100.0, 8.0), "openai", None, "one at a time"),
        (answers(1000, 0.1), load(1.6, 62.0), "vllm", None, "server"),
        (answers(1000, 0.1), load(3.1, 31.9, limit=Limit(32)), "vllm", None, "concurrency"),
        (answers(3000, 0.1), load(1.2, 250.0, limit=growing(256)), "vllm", None, "concurrency"),
        (answers(100, 0.1), load(0.4, 25.0, limit=growing(64)), "vllm", None, "test set"),
    ],
)
def test_what_binds_is_named_with_what_to_do(given, how, backend, at_once, binds):
    result = found(given, how, backend, at_once)
    assert result.binds == binds
    assert len(result.advice) > 40
    assert result.line().endswith("server idle 0%")
