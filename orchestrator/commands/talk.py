"""A chat with a served model on the terminal: answers are streamed, earlier messages are sent along."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import StageError
from orchestrator.serving.endpoint import Endpoint, connection_problem, excerpt, open_client
from orchestrator.text import escape_controls

LEAVE = ("exit", "退出")
SILENCE_S = 300  # between two pieces of an answer; a failure within the server's generate leaves a stream open for ever


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
            StageError: the server failed; the message is taken back.
        """
        import aiohttp  # here: they cost half a second
        import openai

        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            asyncio.run(self._stream(pieces, show))
        except KeyboardInterrupt:
            show(" [stopped]")
        except openai.APIStatusError as error:
            raise self._failure(f"did not answer: HTTP {error.status_code}", error.response.text) from error
        except (openai.APIConnectionError, aiohttp.ClientError) as error:
            raise self._failure("did not answer", connection_problem(self.endpoint, error)[1]) from error
        except (openai.OpenAIError, ValueError, AttributeError, LookupError, TypeError) as error:  # no JSON, no UTF-8
            raise self._failure("sent no stream of an answer", str(error)) from error
        answer = "".join(pieces)
        if answer:
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages.pop()  # LLaMA-Factory wants user and assistant in turn
        return answer

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
            event = None
            async for event in stream:  # the client lets any JSON pass
                delta = event.choices[0].delta if event.choices else None
                if piece := delta and delta.content:
                    show("\n".join(map(escape_controls, piece.split("\n"))))
                    pieces.append(piece)
        if event is None:
            raise ValueError("not one event came")

    def _failure(self, what: str, words: str) -> StageError:
        self.messages.pop()
        return StageError(f"the server {what}: {excerpt(self.endpoint, words)}")


def chat(conversation: Conversation, read: Callable[[str], str], show: Callable[[str], None]) -> None:
    """Read messages and show answers until the user leaves.

    Args:
        conversation: with the system prompt as its first message where there is one.
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
