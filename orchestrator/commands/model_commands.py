"""Commands around a model, trained here or not: serve it, chat with it, export it."""

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from orchestrator.commands import options
from orchestrator.commands.options import app, open_target, say, serve_settings
from orchestrator.errors import Interrupted, StageError
from orchestrator.lifecycle.benchmark_target import export_target
from orchestrator.planning.session import Session
from orchestrator.processes.ports import free_port
from orchestrator.serving.checkpoints import servable, served, serving_devices
from orchestrator.serving.endpoint import Endpoint, connect, excerpt, open_client
from orchestrator.serving.server import Server, Serving, example_request
from orchestrator.serving.target import Target
from orchestrator.specs.spec import ServeSpec
from orchestrator.text import escape_controls
from orchestrator.views.terminal import show

SILENCE_S = 300  # between two pieces of an answer; a failure within the server's generate leaves a stream open for ever


@app.command(epilog="Example: orchestrator serve demo --port 6006")
def serve(
    target: options.TargetName,
    port: options.Port = None,
    backend: options.Backend = None,
    merge: options.Merge = None,
    devices: options.Devices = None,
    template: options.Template = None,
    workspace: options.Workspace = None,
) -> None:
    """Serve a model on an OpenAI-compatible API until Ctrl-C. ORCHESTRATOR_API_KEY sets the key."""
    session = Session.open(workspace)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices=devices, port=port, backend=backend, merge=merge)
    with _server(session, found, settings, settings.port or 6006) as server:
        typer.echo(example_request(server.endpoint, is_own_key=bool(session.api_key)))
        say("Ctrl-C ends it.")
        try:
            while not (ended := server.ended()):
                time.sleep(0.5)
        except Interrupted as error:
            say("stopping the server")
            raise typer.Exit(error.exit_code) from error
        raise StageError(ended)


@app.command(epilog="Example: orchestrator chat demo --system 'You translate into German.'")
def chat(
    target: options.TargetName,
    system: Annotated[str | None, Option(help="System prompt.")] = None,
    max_tokens: Annotated[int, Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, Option(min=0, help="0: always the most likely token.")] = 0.0,
    port: options.Port = None,
    backend: options.Backend = None,
    merge: options.Merge = None,
    devices: options.Devices = None,
    template: options.Template = None,
    model_name: options.ModelName = None,
    workspace: options.Workspace = None,
) -> None:
    """Chat with a model in the terminal. exit, Ctrl-D or 退出 ends the chat; Ctrl-C stops an answer."""
    session = Session.open(workspace)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices=devices, port=port, model_name=model_name, backend=backend, merge=merge)
    messages = [{"role": "system", "content": system}] if system else []

    with ExitStack() as stack:
        if settings.url is not None and found.checkpoint is None:
            endpoint = connect(settings.url, session.api_key, settings.model_name)
        else:
            server = _server(session, found, settings, port or free_port(settings.host))
            endpoint = stack.enter_context(server).endpoint
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C stops an answer, not the program
        stack.callback(signal.signal, signal.SIGINT, handler)
        sampling = {"max_tokens": max_tokens, "temperature": temperature}
        converse(Conversation(endpoint, sampling, messages), input, partial(typer.echo, nl=False))


@app.command(epilog="Example: orchestrator export demo")
def export(
    run: Annotated[str, Argument(metavar="TARGET", help="A run, RUN@checkpoint-N, or a spec that only exports.")],
    to: Annotated[Path | None, Option(help="The new model's folder. Default: export/ in the run folder.")] = None,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Merge a run's adapter into a full model, for benchmark, serve, chat and other programs."""
    session = Session.open(workspace)
    folder = export_target(session, open_target(session, run), to.resolve() if to else None)
    show({"folder": str(folder)}, str(folder), as_json=as_json)


@dataclass
class Conversation:
    """The messages so far, and how answers are requested."""

    endpoint: Endpoint
    sampling: Mapping[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str, write: Callable[[str], None]) -> str:
        """Send a message and write the answer as it comes; Ctrl-C ends the answer, what came of it is kept.

        Raises StageError: the server failed; the message is taken back.
        """
        import aiohttp  # these two take half a second
        import openai

        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            asyncio.run(self._stream(pieces, write))
        except KeyboardInterrupt:
            write(" [stopped]")
        # the last ones: no JSON, no UTF-8, JSON of another form
        except (openai.OpenAIError, aiohttp.ClientError, ValueError, AttributeError, LookupError, TypeError) as error:
            self.messages.pop()
            words = str(error.__cause__ or error)
            if isinstance(error, openai.APIStatusError):
                words = f"HTTP {error.status_code}: {error.response.text}"
            raise StageError(f"the server did not answer: {excerpt(self.endpoint, words)}") from error
        if answer := "".join(pieces):
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages.pop()  # LLaMA-Factory wants user and assistant in turn
        return answer

    async def _stream(self, pieces: list[str], write: Callable[[str], None]) -> None:
        about: dict[str, Any] = {"model": self.endpoint.model, "messages": self.messages, **self.sampling}
        async with open_client(self.endpoint, SILENCE_S) as client:
            stream = await client.chat.completions.create(**about, stream=True)
            async for event in stream:  # the client lets any JSON pass
                delta = event.choices[0].delta if event.choices else None
                if piece := delta and delta.content:
                    write("\n".join(map(escape_controls, piece.split("\n"))))
                    pieces.append(piece)


def converse(conversation: Conversation, read: Callable[[str], str], write: Callable[[str], None]) -> None:
    """Read messages and write answers until the user leaves; `read` raises EOFError at the end, as `input` does."""
    while True:
        try:
            text = read("> ").encode("utf-8", "replace").decode().strip()  # bytes that are no text come as surrogates
        except EOFError:
            return
        except KeyboardInterrupt:  # at the prompt: a fresh line, as in a shell
            write("\n")
            continue
        if text in ("exit", "退出"):
            return
        if text:
            try:
                write("" if conversation.ask(text, write) else "[no text]")
            except StageError as error:
                write(f"error: {error.message}")
            write("\n")


@contextmanager
def _server(session: Session, target: Target, settings: ServeSpec, port: int) -> Iterator[Server]:
    """A model's server. Its folder stays where it failed: the error names its log and api.yaml."""
    checkpoints = {target.name: servable(session, target)}
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-"))
    say(f"loading {target.name}; the server's output: {folder / 'api.log'}")
    how = Serving(settings, folder, port, serving_devices(settings, target.spec))
    keep = False
    try:
        with served(session, checkpoints, how) as server:
            yield server
    except StageError:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
