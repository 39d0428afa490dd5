"""A chat with a real server that streams, and with its failures."""

import json
import os
import signal
from collections.abc import Callable, Iterator

import openai_stub as stub
import pytest

from orchestrator.commands.model_commands import Conversation, converse
from orchestrator.errors import StageError
from orchestrator.serving.endpoint import Endpoint

KEY = "sk-secret-of-the-test"
DONE = b"data: [DONE]\n\n"
NO_STREAM = "the server sent no stream of an answer: "


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(text: object) -> bytes:
    """As LLaMA-Factory's server writes it."""
    choices = [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]
    return event({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "stub", "choices": choices})


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


def typed(*texts: str | type[BaseException]) -> Callable[[str], str]:
    """What a user types, then the end of input."""
    remaining = iter([*texts, EOFError])

    def read(prompt: str) -> str:
        text = next(remaining)
        if isinstance(text, str):
            return text
        raise text

    return read


def talk(conversation: Conversation, *texts: str | type[BaseException]) -> str:
    shown: list[str] = []
    converse(conversation, typed(*texts), shown.append)
    return "".join(shown)


def test_an_answer_is_shown_as_it_comes_and_history_and_system_text_go_with_the_next_message(conversation, server):
    conversation.messages.append({"role": "system", "content": "Be brief."})
    shown: list[str] = []
    assert conversation.ask("guten tag", shown.append) == "GUTEN TAG "
    assert shown == ["GUTEN ", "TAG "]
    conversation.ask("two", shown.append)
    messages = [("system", "Be brief."), ("user", "guten tag"), ("assistant", "GUTEN TAG "), ("user", "two")]
    expected = [{"role": role, "content": text} for role, text in messages]
    fields = {"model": "toy@output", "max_tokens": 40, "temperature": 0.0, "stream": True}
    assert server.bodies[1] == {**fields, "messages": expected}
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_control_characters_of_a_model_are_shown_not_obeyed_but_kept_in_the_history(conversation, server):
    server.replies = lambda *_: stream(piece("a\nb\x1b[31m"), piece("\tKäse\N{NO-BREAK SPACE}😀\r"), DONE)
    shown: list[str] = []
    answer = conversation.ask("x", shown.append)
    assert "".join(shown) == "a\nb\\x1b[31m\tKäse\N{NO-BREAK SPACE}😀\\x0d"
    assert answer == conversation.messages[-1]["content"] == "a\nb\x1b[31m\tKäse\N{NO-BREAK SPACE}😀\r"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (stub.json_reply({"detail": f"Invalid {KEY}."}, 401), r'HTTP 401: {"detail": "Invalid \*\*\*."}'),
        (stub.raw(b"", 302, Location="http://127.0.0.1:9/"), "the server did not answer: HTTP 302"),
        (stream(piece("par"), cut=True), "the server did not answer: "),
        (stream(piece("par"), event({"error": {"message": "CUDA\x1b out of memory"}})), r"CUDA\\x1b out of memory"),
        (stream(piece("par"), b"data: {oops\n\n", DONE), NO_STREAM),
        (stream(event([1]), DONE), NO_STREAM),
        (stream(DONE), f"{NO_STREAM}not one event came"),
    ],
)
def test_a_failure_of_the_server_is_an_error_and_the_chat_can_continue(reply, message, conversation, server):
    server.replies = lambda source, attempt: words("fine") if source == "again" else reply
    with pytest.raises(StageError, match=message):
        conversation.ask("x", lambda text: None)
    assert conversation.messages == []
    assert conversation.ask("again", lambda text: None) == "fine "
    assert server.attempts["x"] == 1  # no retry behind the user's back


def test_an_error_is_shown_and_the_next_message_is_sent(conversation, server):
    """LLaMA-Factory refuses two messages of the user in a row: one without an answer is taken back."""
    empty = stream(piece(""), piece(None), event({"choices": [{"delta": None}]}), DONE)
    replies = {"bad": stub.raw(b"", 500), "empty": empty}
    server.replies = lambda source, attempt: replies.get(source, words("good"))
    shown = talk(conversation, "bad", "empty", "again")
    assert shown == "error: the server did not answer: HTTP 500: (nothing)\n[no text]\ngood \n"
    assert [message["content"] for message in conversation.messages] == ["again", "good "]
    gone = Conversation(Endpoint("http://127.0.0.1:9/v1", "", "m"), 5, 0.0)
    assert talk(gone, "x").startswith("error: the server did not answer: no connection: ")


@pytest.mark.parametrize("leave", [["exit", "not reached"], ["  exit "], ["退出", "not reached"], []])
def test_the_user_leaves_with_exit_or_the_end_of_input_and_blank_lines_are_not_sent(leave, conversation, server):
    assert talk(conversation, "", "  \t", KeyboardInterrupt, "a\udcffb", *leave) == "\nA?B \n"
    assert list(server.attempts) == ["a?b"], "bytes that are no text do not end the conversation"


def test_ctrl_c_ends_an_answer_and_keeps_what_came_of_it(conversation, server):
    """A real signal while the server goes on and on, and one before the first word."""

    def endless(handler: stub._Handler) -> None:
        stream(piece("one "), piece("two "), cut=True)(handler)
        stub.hang(handler)

    def slow(handler: stub._Handler) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stub.hang(handler)

    server.replies = lambda source, attempt: {"long": endless, "slow": slow}.get(source, words("fine"))
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if text == "two ":
            os.kill(os.getpid(), signal.SIGINT)

    converse(conversation, typed("long", "slow", "next"), show)
    assert "".join(shown) == "one two  [stopped]\n [stopped][no text]\nfine \n"
    assert [message["content"] for message in conversation.messages] == ["long", "one two ", "next", "fine "]
