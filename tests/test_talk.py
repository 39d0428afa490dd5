"""A conversation with a real server that streams, and with its faults."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai_stub as stub
import pytest

from orchestrator.commands.talk import Conversation, chat
from orchestrator.errors import StageError
from orchestrator.serving.endpoint import Endpoint

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-secret-of-the-test"
DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(text: object) -> bytes:
    """As LLaMA-Factory's server writes it."""
    choices = [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "stub", "choices": choices}
    return event(chunk)


def stream(*parts: bytes, cut: bool = False) -> stub.Reply:
    def reply(handler: stub._Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in parts:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            handler.wfile.flush()
        if cut:
            handler.close_connection = True
        else:
            handler.wfile.write(b"0\r\n\r\n")

    return reply


def words(text: str) -> stub.Reply:
    """A first event without text, the text word by word, and a last one that counts tokens."""
    parts = [piece(f"{word} ") for word in text.split()]
    return stream(piece(""), *parts, event({"choices": [], "usage": {"total_tokens": 3}}), DONE)


@pytest.fixture
def server() -> Iterator[stub.StubServer]:
    with stub.serving() as running:
        running.replies = lambda source, attempt: words(source.upper())
        yield running


@pytest.fixture
def conversation(server: stub.StubServer) -> Conversation:
    return Conversation(Endpoint(server.base_url, KEY, "toy@output"), 40, 0.0)


def lines(*said: str) -> Callable[[str], str]:
    """What a user types, then the end of input."""
    remaining = iter(said)

    def read(prompt: str) -> str:
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    return read


# An answer


def test_an_answer_is_shown_as_it_comes_and_returned_whole(conversation):
    shown: list[str] = []
    assert conversation.ask("guten tag auch", shown.append) == "GUTEN TAG AUCH "
    assert shown == ["GUTEN ", "TAG ", "AUCH "]


def test_the_request_says_what_was_asked_for_and_no_more(conversation, server, monkeypatch):
    """LLaMA-Factory reads presence_penalty as repetition_penalty; the user's OpenAI account is not its business."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "of-openai")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    conversation.ask("hallo", lambda text: None)
    assert server.bodies == [
        {
            "model": "toy@output",
            "messages": [{"role": "user", "content": "hallo"}],
            "max_tokens": 40,
            "temperature": 0.0,
            "stream": True,
        }
    ]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "of-openai" not in json.dumps(server.headers)


def test_history_and_system_text_go_with_every_message(conversation, server):
    conversation.messages.append({"role": "system", "content": "Be brief."})
    conversation.ask("one", lambda text: None)
    conversation.ask("two", lambda text: None)
    assert server.bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "ONE "},
        {"role": "user", "content": "two"},
    ]


def test_control_characters_of_a_model_are_shown_not_obeyed_but_kept_in_the_history(conversation, server):
    server.replies = lambda *_: stream(piece("a\nb\x1b[31m"), piece("\tKäse\N{NO-BREAK SPACE}😀\r"), DONE)
    shown: list[str] = []
    answer = conversation.ask("x", shown.append)
    assert "".join(shown) == "a\nb\\x1b[31m\tKäse\N{NO-BREAK SPACE}😀\\x0d"
    assert answer == conversation.messages[-1]["content"] == "a\nb\x1b[31m\tKäse\N{NO-BREAK SPACE}😀\r"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (stub.json_reply({"detail": f"Invalid {KEY}."}, 401), r'HTTP 401: {"detail": "Invalid \*\*\*."}'),
        (stub.json_reply({"detail": "x"}, 500), "the server did not answer: HTTP 500: "),
        (stub.raw(b"", 302, Location="http://127.0.0.1:9/"), "the server did not answer: HTTP 302"),
        (stub.cut_connection, "the server did not answer: "),
        (stub.no_http, "the server did not answer: "),
        (stream(piece("par"), cut=True), "the server did not answer: "),
        (stream(piece("par"), event({"error": {"message": "CUDA\x1b out of memory"}})), r"CUDA\\x1b out of memory"),
        (stream(piece("par"), b"data: {oops\n\n", DONE), "the reply is no stream of an answer: "),
        (stream(b"data: \xff\n\n", DONE), "the reply is no stream of an answer: "),
        (stream(event([1]), DONE), "the reply is no stream of an answer: "),
        (stream(event(3), DONE), "the reply is no stream of an answer: "),
        (stream(event({"choices": 3}), DONE), "the reply is no stream of an answer: "),
        (stream(piece(5), DONE), "the reply is no stream of an answer: an event holds 5 for text"),
        (stream(DONE), "the reply is no stream of an answer: not one event came"),
        (stub.raw(b"<html>hello</html>", Content_Type="text/html"), "not one event came"),
        (stub.completion("not streamed"), "not one event came"),
    ],
)
def test_a_fault_of_the_server_is_an_error_and_the_conversation_can_go_on(reply, said, conversation, server):
    server.replies = lambda source, attempt: words("fine") if source == "again" else reply
    with pytest.raises(StageError, match=said):
        conversation.ask("x", lambda text: None)
    assert conversation.messages == []
    assert conversation.ask("again", lambda text: None) == "fine "
    assert server.attempts["x"] == 1  # no retry behind the user's back


def test_nobody_there_is_an_error(conversation, server):
    gone = Conversation(Endpoint("http://127.0.0.1:9/v1", "", "m"), 5, 0.0)
    with pytest.raises(StageError, match="the server did not answer: no connection: "):
        gone.ask("x", lambda text: None)


def test_an_answer_without_text_leaves_no_message_behind(conversation, server):
    """LLaMA-Factory refuses two messages of the user in a row."""
    server.replies = lambda *_: stream(piece(""), piece(None), event({"choices": [{"delta": None}]}), DONE)
    assert conversation.ask("x", lambda text: None) == ""
    assert conversation.messages == []


# The loop


@pytest.mark.parametrize("leave", ["exit", "  exit ", "退出", None])
def test_the_user_leaves_with_exit_or_the_end_of_input(leave, conversation, server):
    said = ["hallo", *([] if leave is None else [leave, "not reached"])]
    shown: list[str] = []
    chat(conversation, lines(*said), shown.append)
    assert list(server.attempts) == ["hallo"]
    assert "".join(shown) == "HALLO \n"


def test_blank_lines_are_not_sent(conversation, server):
    chat(conversation, lines("", "   ", "\t"), lambda text: None)
    assert server.bodies == []


def test_an_error_is_shown_and_the_next_message_goes_on(conversation, server):
    server.replies = lambda source, attempt: stub.raw(b"", 500) if source == "bad" else words("good")
    shown: list[str] = []
    chat(conversation, lines("bad", "again"), shown.append)
    assert "".join(shown) == "error: the server did not answer: HTTP 500: (nothing)\ngood \n"
    assert [message["content"] for message in conversation.messages] == ["again", "good "]


def test_an_answer_without_text_is_said(conversation, server):
    server.replies = lambda *_: stream(piece(""), DONE)
    shown: list[str] = []
    chat(conversation, lines("x"), shown.append)
    assert "".join(shown) == "[no text]\n"


def test_bytes_that_are_no_text_do_not_end_the_conversation(conversation, server):
    chat(conversation, lines("a\udcffb"), lambda text: None)
    assert server.bodies[0]["messages"][0]["content"] == "a?b"


def test_ctrl_c_at_the_prompt_is_a_fresh_line(conversation, server):
    answers = iter([KeyboardInterrupt, "hallo", EOFError])

    def read(prompt: str) -> str:
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    shown: list[str] = []
    chat(conversation, read, shown.append)
    assert "".join(shown) == "\nHALLO \n"


def test_ctrl_c_ends_an_answer_and_keeps_what_came_of_it(conversation, server):
    """A real signal while the server goes on and on."""

    def endless(handler: stub._Handler) -> None:
        stream(piece("one "), piece("two "), cut=True)(handler)
        stub.hang(handler)

    server.replies = lambda source, attempt: endless if source == "long" else words("fine")
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if text == "two ":
            os.kill(os.getpid(), signal.SIGINT)

    chat(conversation, lines("long", "next"), show)
    assert "".join(shown) == "one two  [stopped]\nfine \n"
    assert [message["content"] for message in conversation.messages] == ["long", "one two ", "next", "fine "]


def test_ctrl_c_before_the_first_word_leaves_no_message_behind(conversation, server):
    def slow(handler: stub._Handler) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stub.hang(handler)

    server.replies = lambda *_: slow
    shown: list[str] = []
    assert conversation.ask("x", shown.append) == ""
    assert shown == [" [stopped]"]
    assert conversation.messages == []


CHAT = """
import sys
from orchestrator.serving.endpoint import Endpoint
from orchestrator.commands.talk import Conversation, chat, write_now

chat(Conversation(Endpoint(sys.argv[1], "", "m"), 40, 0.0), input, write_now)
"""


def test_on_a_terminal_ctrl_d_ends_it(server):
    """The program's own input and output, on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", CHAT, server.base_url], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    with child:
        os.write(ours, "grüße\n\x04".encode())
        while True:
            try:
                got = os.read(ours, 4096)
            except OSError:  # EIO: the other side is closed
                break
            if not got:
                break
            said += got
        os.close(ours)
    assert child.returncode == 0, said
    assert said.decode().replace("\r", "").endswith("> GRÜSSE \n> ")
    assert server.bodies[0]["messages"][-1]["content"] == "grüße"
