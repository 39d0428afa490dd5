"""Talk with a served model on the terminal: streaming, with history and a system text.

Covered: `exit`, `退出`, Ctrl-D and end of input end it; Ctrl-C stops the answer, not the conversation; the model's
text is shown with its control characters made visible.
Not covered: tools, images.
Leaves nothing.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.benchmark.client import streamed_text
from orchestrator.errors import StageError
from orchestrator.serving.endpoint import Endpoint
from orchestrator.text import escape_controls

LEAVE = ("exit", "退出")
SILENCE_S = 300  # between two pieces of an answer; a fault within the server's generate leaves a stream open for ever


@dataclass
class Conversation:
    """The messages so far, and how answers are asked for."""

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
        import openai  # here: it costs half a second

        self.messages.append({"role": "user", "content": text})
        answer = ""
        is_stream = False
        try:
            with openai.OpenAI(
                base_url=self.endpoint.base_url,
                api_key=self.endpoint.api_key or "none",  # '' would make it look for OPENAI_API_KEY
                # A proxy of the environment is not for 127.0.0.1, and a redirect would carry the key elsewhere.
                http_client=openai.DefaultHttpxClient(trust_env=not self.endpoint.is_local, follow_redirects=False),
                max_retries=0,
                timeout=SILENCE_S,
            ) as client:
                client.organization = client.project = None  # of OPENAI_ORG_ID: not this server's business
                messages: Any = self.messages
                with client.chat.completions.create(
                    model=self.endpoint.model,
                    messages=messages,
                    max_tokens=self.max_tokens,
                    temperature=self.temperature,
                    stream=True,
                ) as stream:
                    for chunk in stream:
                        piece = streamed_text(chunk)
                        is_stream = True
                        if piece:
                            answer += piece
                            show("\n".join(escape_controls(line) for line in piece.split("\n")))
            if not is_stream:
                raise ValueError("not one event came")
        except KeyboardInterrupt:
            show(" [stopped]")
        except ValueError as error:  # of the client, where an event is no JSON, or no UTF-8
            self.messages.pop()
            raise StageError(f"the reply is no stream of an answer: {escape_controls(str(error))[:300]}") from error
        except openai.OpenAIError as error:
            self.messages.pop()
            raise StageError(f"the server did not answer: {escape_controls(str(error))[:300]}") from error
        if answer:
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages.pop()  # LLaMA-Factory wants user and assistant in turn
        return answer


def chat(conversation: Conversation, read: Callable[[str], str], show: Callable[[str], None]) -> None:
    """Read messages and show answers until the user leaves.

    Args:
        conversation: whom to ask, with the system text as its first message where there is one.
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
