"""A chat with a real server that streams, and with its failures."""

import json
import os
import signal

import openai_stub as stub
import pytest

from orchestrator.commands.model_commands import Conversation, converse
from orchestrator.errors import StageError
from orchestrator.serving.endpoint import Endpoint

KEY = "sk-secret-of-the-test"
DONE = b"data: [DONE]\n\n"


def event(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(text):
    """As LLaMA-Factory's server writes it."""
    choices = [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]
    return event({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "stub", "choices": choices})


def stream(*parts, cut=False):
    def reply(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in parts:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"" if cut else b"0\r\n\r\n")
        handler.close_connection = cut

    return reply


def words(text):
    """A first event without text, the text word by word, and a last one that counts tokens."""
    parts = [piece(f"{word} ") for word in text.split()]
    return stream(piece(""), *parts, event({"choices": [], "usage": {"total_tokens": 3}}), DONE)


@pytest.fixture
def conversation(server):
    server.replies = lambda source, attempt: words(source.upper())
    return Conversation(Endpoint(server.base_url, KEY, "toy@output"), {"max_tokens": 40, "temperature": 0.0})


def talk(conversation, *texts, watch=str):
    """What is shown to a user who types this, then ends the input."""
    remaining, shown = iter([*texts, EOFError]), []

    def read(prompt):
        text = next(remaining)
        if isinstance(text, str):
            return text
        raise text

    converse(conversation, read, lambda text: (shown.append(text), watch(text)))
    return shown


def contents(conversation):
    return [message["content"] for message in conversation.messages]


def test_an_answer_is_shown_as_it_comes_and_history_and_system_text_go_with_the_next_message(conversation, server):
    conversation.messages.append({"role": "system", "content": "Be brief."})
    assert talk(conversation, "guten tag", "two") == ["GUTEN ", "TAG ", "", "\n", "TWO ", "", "\n"]
    messages = [("system", "Be brief."), ("user", "guten tag"), ("assistant", "GUTEN TAG "), ("user", "two")]
    expected = [{"role": role, "content": text} for role, text in messages]
    fields = {"model": "toy@output", "max_tokens": 40, "temperature": 0.0, "stream": True}
    assert server.bodies[1] == {**fields, "messages": expected}
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_control_characters_of_a_model_are_shown_not_obeyed_but_kept_in_the_history(conversation, server):
    server.replies = lambda *_: stream(piece("a\nb\x1b[31m"), piece("\tKäse😀\r"), DONE)
    assert "".join(talk(conversation, "x")) == "a\nb\\x1b[31m\tKäse😀\\r\n"
    assert contents(conversation)[-1] == "a\nb\x1b[31m\tKäse😀\r"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (stub.json_reply({"detail": f"Invalid {KEY}."}, 401), r'HTTP 401: {"detail": "Invalid \*\*\*."}'),
        (stub.raw(b"", 302, Location="http://127.0.0.1:9/"), "HTTP 302"),
        (stream(piece("par"), cut=True), ""),
        (stream(piece("par"), event({"error": {"message": "CUDA\x1b out of memory"}})), r"CUDA\\x1b out of memory"),
        (stream(piece("par"), b"data: {oops\n\n", DONE), ""),
    ],
)
def test_a_failure_of_the_server_is_an_error_and_the_chat_can_continue(reply, message, conversation, server):
    """LLaMA-Factory refuses two messages of the user in a row: one without an answer is taken back."""
    server.replies = lambda source, attempt: words("fine") if source == "again" else reply
    with pytest.raises(StageError, match=f"the server did not answer: {message}"):
        conversation.ask("x", lambda text: None)
    assert "".join(talk(conversation, "again")) == "fine \n" and contents(conversation) == ["again", "fine "]
    assert server.attempts["x"] == 1  # no retry behind the user's back


def test_an_error_is_shown_and_the_next_message_is_sent(conversation, server):
    empty = stream(piece(""), piece(None), event({"choices": [{"delta": None}]}), DONE)
    replies = {"bad": stub.raw(b"", 500), "empty": empty}
    server.replies = lambda source, attempt: replies.get(source, words("good"))
    shown = "".join(talk(conversation, "bad", "empty", "again"))
    assert shown == "error: the server did not answer: HTTP 500:\n[no text]\ngood \n"
    assert contents(conversation) == ["again", "good "]


@pytest.mark.parametrize("leave", [["exit", "not reached"], ["退出", "not reached"], []])
def test_the_user_leaves_with_a_word_or_the_end_of_input_and_blank_lines_are_not_sent(leave, conversation, server):
    assert "".join(talk(conversation, "", "  \t", KeyboardInterrupt, "a\udcffb", *leave)) == "\nA?B \n"
    assert list(server.attempts) == ["a?b"], "bytes that are no text do not end the conversation"


def test_ctrl_c_ends_an_answer_and_keeps_what_came_of_it(conversation, server):
    """A real signal while the server goes on and on, and one before the first word."""

    def interrupt(text):
        if text == "two ":
            os.kill(os.getpid(), signal.SIGINT)

    def endless(handler):
        if handler.server.stub.attempts["slow"]:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            stream(piece("one "), piece("two "), cut=True)(handler)
        stub.hang(handler)

    server.replies = lambda source, attempt: words("fine") if source == "next" else endless
    shown = talk(conversation, "long", "slow", "next", watch=interrupt)
    assert "".join(shown) == "one two  [stopped]\n [stopped][no text]\nfine \n"
    assert contents(conversation) == ["long", "one two ", "next", "fine "]
