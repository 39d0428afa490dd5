"""Talk with a served model on the terminal: streaming, with history and a system text."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import StageError
from orchestrator.serving.endpoint import Endpoint, connection_problem, excerpt, open_client
from orchestrator.text import escape_controls

LEAVE = ("exit", "退出")
SILENCE_S = 300  # between two pieces of an answer; a fault within the server's generate leaves a stream open for ever


@dataclass
class Conversation:
    """The messages so far, and how answers are requested."""

    endpoint: Endpoint
    max_tokens: int
    temperature: float
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str, show: Callable[[str], None]) -> str:
        """Send a message and show the answer as it comes; Ctrl-C ends the answer, what came of it is kept.

        Raises:
            StageError: the server fails, or what it sends is no stream of an answer. The message is taken back, so
                that the conversation can go on.
        """
        import aiohttp  # here: they cost half a second
        import openai

        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            asyncio.run(self._stream(pieces, show))
        except KeyboardInterrupt:
            show(" [stopped]")
        except (openai.OpenAIError, aiohttp.ClientError, ValueError) as error:  # ValueError: no JSON, or no UTF-8
            self.messages.pop()
            raise StageError(self._words(error)) from error
        if answer := "".join(pieces):
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages.pop()  # LLaMA-Factory wants user and assistant in turn
        return "".join(pieces)

    async def _stream(self, pieces: list[str], show: Callable[[str], None]) -> None:
        messages: Any = self.messages
        async with open_client(self.endpoint, SILENCE_S) as client:
            stream = await client.chat.completions.create(
                model=self.endpoint.model,
                messages=messages,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                stream=True,
            )
            n_events = 0
            async for event in stream:
                n_events += 1
                if piece := streamed_text(event):
                    pieces.append(piece)
                    show("\n".join(map(escape_controls, piece.split("\n"))))
        if not n_events:
            raise ValueError("not one event came")

    def _words(self, error: Exception) -> str:
        import aiohttp
        import openai

        if isinstance(error, openai.APIStatusError):
            words = excerpt(self.endpoint, error.response.text)
            return f"the server did not answer: HTTP {error.status_code}: {words}"
        if isinstance(error, openai.APIConnectionError | aiohttp.ClientError):
            return f"the server did not answer: {excerpt(self.endpoint, connection_problem(self.endpoint, error)[1])}"
        return f"the reply is no stream of an answer: {excerpt(self.endpoint, str(error))}"


def streamed_text(event: Any) -> str:
    """The text in one event of a stream; '' where it has none. The openai client lets any JSON pass.

    Raises:
        ValueError: it is no event of a chat completion.
    """
    try:
        delta = event.choices[0].delta if event.choices else None
        text = None if delta is None else delta.content
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError("an event is no part of a chat completion") from error
    if not isinstance(text, str | None):
        raise ValueError(f"an event holds {text!r} for text")
    return text or ""


def chat(conversation: Conversation, read: Callable[[str], str], show: Callable[[str], None]) -> None:
    """Read messages and show answers until the user leaves.

    Args:
        conversation: with the system text as its first message where there is one.
        read: gives the next line for a prompt; raises EOFError at the end (the built-in `input`).
        show: writes a piece of text.
    """
    while True:
        try:
            text = read("> ").encode("utf-8", "replace").decode().strip()  # bytes that are no text come as surrogates
        except EOFError:
            return
        except KeyboardInterrupt:  # at the prompt: a fresh line, as in a shell
            show("\n")
            continue
        if text in LEAVE:
            return
        if not text:
            continue
        try:
            if not conversation.ask(text, show):
                show("[no text]")
        except StageError as error:
            show(f"error: {error.message}")
        show("\n")


def write_now(text: str) -> None:
    """Write a piece to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
