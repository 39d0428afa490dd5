"""Many requests against a real server with real faults. Run: pytest tests/test_translate.py."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai_stub as stub
import pytest
import stamina

from orchestrator.benchmark.client import Answer, Failure
from orchestrator.benchmark.translate import FAILED_IN_A_ROW, SILENT_IN_A_ROW, translate
from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.processes.interruptible import run_interruptible
from orchestrator.serving.endpoint import Endpoint, list_models

KEY = "sk-secret-of-the-test"


@pytest.fixture
def server():
    with stub.serving() as running:
        yield running


@pytest.fixture(autouse=True)
def no_waits():
    """stamina's own switch for tests: as many attempts, no waits between them."""
    with stamina.set_testing(True, attempts=4):
        yield


def ask(server, sentences, *, concurrency=4, timeout_s=20, on_result=None, base_url=None):
    """Results by index."""
    results: dict[int, Answer | Failure] = {}

    def keep(result):
        assert result.index not in results, "one result for each prompt"
        results[result.index] = result
        if on_result:
            on_result(result)

    prompts = [(index, [{"role": "user", "content": f"Translate.\n{text}"}]) for index, text in enumerate(sentences)]
    run_interruptible(
        translate(
            Endpoint(base_url or server.base_url, KEY, "the-model"),
            prompts,
            {"temperature": 0.0, "max_tokens": 77},
            concurrency=concurrency,
            timeout_s=timeout_s,
            on_result=keep,
        )
    )
    assert sorted(results) == list(range(len(sentences)))
    return results


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def first_then_well(fault):
    return lambda source, attempt: fault if attempt == 1 else stub.completion(source.upper())


def test_each_prompt_gets_its_own_answer_with_counts_and_time(server):
    results = ask(server, [f"satz {number}" for number in range(50)], concurrency=8)
    for index, answer in results.items():
        assert isinstance(answer, Answer)
        assert answer.hypothesis == f"SATZ {index}"
        assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("stop", 10, 5)
        assert answer.attempts == 1
        assert answer.latency_s > 0


def test_the_request_says_what_was_asked_and_nothing_that_llamafactory_reads_otherwise(server):
    ask(server, ["a"])
    [body] = server.bodies
    assert body == {
        "model": "the-model",
        "messages": [{"role": "user", "content": "Translate.\na"}],
        "temperature": 0.0,
        "max_tokens": 77,
    }
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_openais_environment_variables_go_to_no_other_server(server, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/of-openai")
    ask(server, ["a"])
    assert "of-openai" not in str(server.headers)


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(server, monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert isinstance(ask(server, ["a"])[0], Answer)
    assert list_models(Endpoint(server.base_url, KEY, "m")) == ["stub"]


def test_no_more_requests_are_under_way_than_asked_for(server):
    ask(server, [str(number) for number in range(40)], concurrency=3)
    assert 1 <= server.most_under_way <= 3


def test_no_prompt_no_request(server):
    assert ask(server, []) == {}
    assert server.bodies == []


@pytest.mark.parametrize(
    "fault",
    [
        stub.raw(b"Internal Server Error", 500),
        stub.json_reply({"error": "overloaded"}, 503),
        stub.json_reply({"error": "slow down"}, 429, Retry_After="1"),
        stub.raw(b"", 408),
        stub.cut_connection,
        stub.cut_body,
        stub.no_http,
        stub.raw(b'{"choices": [{"mess', Content_Type="application/json"),
        stub.raw(b"<html>Bad gateway</html>", Content_Type="text/html"),
        stub.raw(b"\xff\xfe", Content_Type="application/json"),
        stub.raw(b"[" * 100_000, Content_Type="application/json"),
        stub.raw(b"garbage", Content_Type="application/json", Content_Encoding="gzip"),
        stub.json_reply(None),
        stub.json_reply([]),
        stub.json_reply({}),
        stub.json_reply({"choices": []}),
        stub.json_reply({"choices": None}),
        stub.json_reply({"choices": [{"message": "hello"}]}),
        stub.json_reply({"choices": [{"message": {"content": None}}]}),
        stub.json_reply({"choices": [{"message": {"content": ["hello"]}}]}),
        stub.json_reply({"choices": [{"message": {"content": 5}}]}),
        stub.completion("half an emoji: \ud83d"),
    ],
)
def test_a_fault_that_passes_costs_one_more_attempt_and_no_answer(server, fault):
    server.replies = first_then_well(fault)
    answer = ask(server, ["a"])[0]
    assert isinstance(answer, Answer), answer
    assert (answer.hypothesis, answer.attempts) == ("A", 2)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (stub.raw(b"Internal\nServer\x1b[31m Error", 500), r"HTTP 500: Internal Server\x1b[31m Error"),
        (stub.json_reply({"error": "busy"}, 429), 'HTTP 429: {"error": "busy"}'),
        (stub.raw(b"", 502), "HTTP 502: (nothing)"),
        (stub.cut_connection, "the connection broke: Server disconnected"),
        (stub.cut_body, "the connection broke"),
        (stub.raw(b"<html>", Content_Type="text/html"), "no chat completion: body: Invalid JSON"),
        (stub.json_reply({"choices": []}), "no chat completion: choices: List should have at least 1 item"),
        (
            stub.json_reply({"choices": [{"message": {"content": None}}]}),
            "choices.0.message.content: Input should be a valid string",
        ),
    ],
)
def test_a_sentence_that_fails_four_times_is_a_failure_and_the_others_are_answered(server, fault, said):
    server.replies = lambda source, attempt: fault if source == "bad" else stub.completion(source.upper())
    results = ask(server, ["a", "bad", "b", "c"])
    assert [type(results[index]) for index in range(4)] == [Answer, Failure, Answer, Answer]
    assert said in results[1].error
    assert results[1].attempts == server.attempts["bad"] == 4


def test_the_server_may_say_how_long_to_wait(server, caplog):
    server.replies = first_then_well(stub.json_reply({}, 429, Retry_After="1"))
    with stamina.set_testing(False):
        assert isinstance(ask(server, ["a"])[0], Answer)
    [record] = [record for record in caplog.records if record.name == "stamina"]
    assert getattr(record, "stamina.wait_for") == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_cannot_take_is_not_repeated(server, status):
    too_long = stub.json_reply({"detail": "prompt too long"}, status)
    server.replies = lambda source, attempt: too_long if source == "bad" else stub.completion(source.upper())
    results = ask(server, ["bad", "b"])
    assert results[0] == Failure(0, f'HTTP {status}: {{"detail": "prompt too long"}}', 1)
    assert isinstance(results[1], Answer)


@pytest.mark.parametrize(
    ("reply", "remedy"),
    [
        (stub.json_reply({"detail": "Invalid API key."}, 401), "ORCHESTRATOR_API_KEY"),
        (stub.json_reply({"detail": "Forbidden"}, 403), "ORCHESTRATOR_API_KEY"),
        (stub.json_reply({"detail": "Not Found"}, 404), "/v1"),
        (stub.json_reply({"detail": "Not allowed"}, 405), "/v1"),
        (stub.raw(b"", 307, Location="http://elsewhere.invalid/v1"), "redirects"),
    ],
)
def test_what_every_request_would_meet_ends_all(server, reply, remedy):
    """401, 403, 404, 405 and redirects, also in the middle; what was answered before has been handed on."""
    server.replies = lambda source, attempt: stub.completion("A") if source == "0" else reply
    seen = []
    with pytest.raises(PrerequisiteError) as error:
        ask(server, [str(number) for number in range(500)], concurrency=1, on_result=seen.append)
    assert [result.hypothesis for result in seen] == ["A"]
    assert server.base_url in error.value.message
    assert remedy in error.value.remedy
    assert len(server.bodies) == 2


def test_the_key_is_in_no_message_and_no_repr(server):
    server.replies = lambda source, attempt: stub.json_reply({"error": f"wrong key {KEY}"}, 401)
    with pytest.raises(PrerequisiteError) as error:
        ask(server, ["a", "b"])
    assert "wrong key ***" in error.value.message
    assert KEY not in error.value.message + error.value.remedy
    server.replies = lambda source, attempt: stub.json_reply({"error": f"wrong key {KEY}"}, 500)
    assert KEY not in ask(server, ["a"])[0].error
    assert KEY not in repr(Endpoint(server.base_url, KEY, "m"))


def test_a_server_that_says_nothing_is_waited_for_so_long_and_no_longer(server):
    server.replies = first_then_well(stub.hang)
    answer = ask(server, ["a"], timeout_s=0.3)[0]
    assert (answer.hypothesis, answer.attempts) == ("A", 2)


def test_a_server_that_sends_a_byte_now_and_then_does_not_outwit_the_timeout(server):
    server.replies = lambda source, attempt: stub.drip if source == "bad" else stub.completion("A")
    results = ask(server, ["bad", "a"], timeout_s=0.3)
    assert results[0] == Failure(0, "no answer within 0.3 s", 2)
    assert results[1].hypothesis == "A"


def test_a_server_that_is_gone_is_given_up_on(server):
    """After three sentences in a row; the rest are failures that say why, with no attempt made."""
    results = ask(server, ["a"] * 100, concurrency=2, base_url=f"http://127.0.0.1:{free_port()}/v1")
    assert all(isinstance(result, Failure) for result in results.values())
    asked = [result for result in results.values() if result.attempts]
    assert SILENT_IN_A_ROW <= len(asked) <= SILENT_IN_A_ROW + 1, "what is under way may end"
    assert all("no connection: Cannot connect to host 127.0.0.1" in result.error for result in asked)
    assert results[99].error.startswith("not asked: ")
    assert "Cannot connect" in results[99].error


def test_a_server_that_fails_whatever_it_is_asked_is_given_up_on(server):
    server.replies = lambda source, attempt: stub.raw(b"CUDA error", 500)
    results = ask(server, [str(number) for number in range(100)], concurrency=1)
    assert sum(result.attempts > 0 for result in results.values()) == FAILED_IN_A_ROW


def test_an_answer_in_between_keeps_the_server_in_use(server):
    server.replies = lambda source, attempt: (
        stub.cut_connection if int(source) % FAILED_IN_A_ROW else stub.completion("A")
    )
    results = ask(server, [str(number) for number in range(100)], concurrency=1)
    assert all(result.attempts for result in results.values())


def test_an_error_in_on_result_ends_all_and_is_raised_as_it_is(server):
    def full(result):
        raise StageError("disk full")

    with pytest.raises(StageError, match="disk full"):
        ask(server, [str(number) for number in range(100)], on_result=full)
    assert len(server.bodies) < 50


@pytest.mark.parametrize("first_is_last", [False, True], ids=["in the order of arrival", "the first one last"])
def test_a_server_that_answers_one_at_a_time_is_not_slow(server, first_is_last):
    """Each request waits for others: some for longer than the time-out, and none is given up."""
    all_but_first = threading.Semaphore(0)
    with ThreadPoolExecutor(max_workers=1) as in_turn:  # a lock would let a late one pass those that wait

        def one_by_one(source, attempt):
            def reply(handler):
                if first_is_last and source == "0":
                    for _ in range(12):
                        all_but_first.acquire(timeout=60)
                in_turn.submit(time.sleep, 0.15).result()
                all_but_first.release()
                stub.completion(source)(handler)

            return reply

        server.replies = one_by_one
        results = ask(server, [str(number) for number in range(24)], concurrency=12, timeout_s=1)
    assert {source: attempts for source, attempts in server.attempts.items() if attempts > 1} == {}
    assert all(isinstance(result, Answer) for result in results.values()), results
    assert max(result.latency_s for result in results.values()) > 1.2


def test_a_request_that_is_lost_is_not_waited_for_while_others_are_answered(server):
    """The queue explains a wait of some turns, not one without an end."""

    def replies(source, attempt):
        if source == "lost" and attempt == 1:
            return stub.hang
        time.sleep(0.02)
        return stub.completion(source)

    server.replies = replies
    results = ask(server, ["lost", *(str(number) for number in range(150))], concurrency=4, timeout_s=0.3)
    assert (results[0].hypothesis, results[0].attempts) == ("lost", 2)


@pytest.mark.parametrize(
    ("fault", "attempts"), [(stub.json_reply({}, 429), 8), (stub.json_reply({}, 500), 4), (stub.json_reply({}, 400), 1)]
)
def test_how_often_a_sentence_is_asked_depends_on_what_it_met(server, fault, attempts):
    server.replies = lambda source, attempt: fault if source == "bad" else stub.completion(source)
    with stamina.set_testing(True, attempts=100):
        results = ask(server, ["bad", "a"])
    assert results[0].attempts == server.attempts["bad"] == attempts
    assert isinstance(results[1], Answer)


def test_a_busy_server_is_asked_less(server):
    def replies(source, attempt):
        time.sleep(0.01)
        return stub.json_reply({}, 429) if server.under_way > 4 else stub.completion(source)

    server.replies = replies
    with stamina.set_testing(True, attempts=100):
        results = ask(server, [str(number) for number in range(200)], concurrency=None)
    assert all(isinstance(result, Answer) for result in results.values())
    assert len(server.bodies) < 300, "few are turned away, once it is known how many it takes"


def test_the_load_is_said(server):
    """Little's law: requests under way on average, and the time in which none was."""

    def replies(source, attempt):
        time.sleep(0.05)
        return stub.completion(source)

    server.replies = replies
    prompts = [(index, [{"role": "user", "content": str(index)}]) for index in range(40)]
    seen = []
    endpoint = Endpoint(server.base_url, "", "m")
    load = run_interruptible(translate(endpoint, prompts, {}, concurrency=4, timeout_s=20, on_result=seen.append))
    assert len(seen) == 40
    assert 1 < load.in_flight_s / load.wall_s <= 4
    assert load.most_in_flight == 4
    assert 0 <= load.idle_s < load.wall_s
    assert load.in_flight_s >= sum(answer.latency_s for answer in seen)


def test_prompts_are_made_as_they_are_needed(server):
    made = []

    def prompts():
        for index in range(100):
            made.append(index)
            assert len(made) <= len(server.bodies) + 3 + 1
            yield index, [{"role": "user", "content": str(index)}]

    endpoint = Endpoint(server.base_url, "", "m")
    run_interruptible(translate(endpoint, prompts(), {}, concurrency=3, timeout_s=20, on_result=lambda result: None))
    assert len(made) == 100
