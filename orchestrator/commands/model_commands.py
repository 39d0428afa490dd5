"""Commands around a model, trained here or not: serve it, chat with it, export it."""

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from orchestrator.commands import options
from orchestrator.commands.app import app
from orchestrator.commands.options import open_session, open_target, say, serve_settings, show
from orchestrator.errors import Interrupted, StageError

if TYPE_CHECKING:
    from orchestrator.planning.session import Session
    from orchestrator.serving.endpoint import Endpoint
    from orchestrator.serving.server import ServePlan, Server
    from orchestrator.serving.target import Target
    from orchestrator.specs.spec import ServeSpec


@app.command(epilog="Example: orchestrator serve demo --port 6006")
def serve(
    target: options.TargetName,
    port: options.Port = None,
    backend: options.BackendName = None,
    merge: options.Merge = None,
    devices: options.Devices = None,
    template: options.Template = None,
    workspace: options.Workspace = None,
) -> None:
    """Serve a model on an OpenAI-compatible API until Ctrl-C. ORCHESTRATOR_API_KEY sets the key."""
    from orchestrator.serving.server import example_requests

    session = open_session(workspace)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices=devices, port=port, backend=backend, merge=merge)
    with _server(session, found, settings, settings.port or 6006) as server:
        typer.echo(example_requests(server.endpoint, is_own_key=bool(session.api_key)))
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
    backend: options.BackendName = None,
    merge: options.Merge = None,
    devices: options.Devices = None,
    template: options.Template = None,
    model_name: options.ModelName = None,
    workspace: options.Workspace = None,
) -> None:
    """Chat with a model in the terminal. exit, Ctrl-D or 退出 ends the chat; Ctrl-C stops an answer."""
    from orchestrator.commands import talk
    from orchestrator.serving.checkpoints import connect
    from orchestrator.serving.server import free_port

    def converse(endpoint: "Endpoint") -> None:
        messages = [{"role": "system", "content": system}] if system else []
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C stops an answer, not the program
        try:
            talk.chat(
                talk.Conversation(endpoint, max_tokens, temperature, messages),
                input,
                lambda text: typer.echo(text, nl=False),
            )
        finally:
            signal.signal(signal.SIGINT, handler)

    session = open_session(workspace)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices=devices, port=port, model_name=model_name, backend=backend, merge=merge)
    if found.checkpoint is None:
        converse(connect(session, settings))
    else:
        with _server(session, found, settings, port or free_port()) as server:
            converse(server.endpoint)


@app.command(epilog="Example: orchestrator export demo")
def export(
    run: Annotated[str, Argument(metavar="TARGET", help="A run, RUN@checkpoint-N, or a spec that only exports.")],
    to: Annotated[Path | None, Option(help="The new model's folder. Default: export/ in the run folder.")] = None,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Merge a run's adapter into a full model, for benchmark, serve, chat and other programs."""
    from orchestrator.lifecycle.benchmark_target import export_target

    session = open_session(workspace)
    folder = export_target(session, open_target(session, run), to.resolve() if to else None)
    show({"folder": str(folder)}, str(folder), as_json=as_json)


@contextmanager
def _server(session: "Session", target: "Target", settings: "ServeSpec", port: int) -> "Iterator[Server]":
    """A model's server. Its folder stays where it failed: the error names its log and api.yaml."""
    from orchestrator.serving.checkpoints import servable, served, serving_devices
    from orchestrator.serving.server import Serving

    def loading(plan: "ServePlan") -> None:
        say(f"loading {plan.model_name}; the server's output: {plan.log}")

    folder = Path(tempfile.mkdtemp(prefix="orchestrator-"))
    keep = False
    try:
        how = Serving(settings, folder, port, serving_devices(settings, target.spec))
        with served(session, {target.name: servable(session, target)}, how, loading) as server:
            yield server
    except StageError:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
