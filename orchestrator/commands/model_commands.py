"""Commands around a model, trained here or not: serve it, talk to it, export it.

Flags in, one call, results on stdout, everything else on stderr.
"""

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import (
    BackendOption,
    DevicesOption,
    MergeOption,
    ModelNameOption,
    PortOption,
    TemplateOption,
    WorkspaceOption,
    open_session,
    open_target,
    say,
    serve_settings,
)
from orchestrator.errors import StageError

if TYPE_CHECKING:
    from orchestrator.commands.talk import Conversation
    from orchestrator.serving.server import ServePlan

# The modules of the stages are imported within the commands: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator serve demo --port 6006")
def serve(
    target: Annotated[str, typer.Argument(help="A run, RUN@checkpoint-N, RUN@base, a folder, a hub id, or a spec.")],
    port: PortOption = None,
    backend: BackendOption = None,
    merge: MergeOption = None,
    devices: DevicesOption = None,
    template: TemplateOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve a model on an OpenAI-compatible API until Ctrl-C. ORCHESTRATOR_API_KEY sets the key."""
    from orchestrator.serving.checkpoints import servable, served, serving_devices
    from orchestrator.serving.server import Serving, example_requests

    session = open_session(workspace, None)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices, port, None, backend, merge)
    with _work_folder() as folder:
        how = Serving(settings, folder, settings.port or 6006, serving_devices(settings, found.spec))
        checkpoint = servable(session, found)
        with served(session, {found.name: checkpoint}, how, _say_loading) as server:
            typer.echo(example_requests(server.endpoint, is_own_key=bool(session.api_key)))
            say("Ctrl-C ends it.")
            while not (ended := server.ended()):
                time.sleep(0.5)
            raise StageError(ended)


@app.command(epilog="Example: orchestrator chat demo --system 'You translate into German.'")
def chat(
    target: Annotated[str, typer.Argument(help="A run, RUN@checkpoint-N, RUN@base, a folder, hub id, URL, or spec.")],
    system: Annotated[str | None, typer.Option(help="System text.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0: the most likely word each time.")] = 0.0,
    port: PortOption = None,
    backend: BackendOption = None,
    merge: MergeOption = None,
    devices: DevicesOption = None,
    template: TemplateOption = None,
    model_name: ModelNameOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Talk to a model: streaming, with history. exit, Ctrl-D or 退出 ends it; Ctrl-C stops an answer."""
    from orchestrator.commands import talk
    from orchestrator.serving.checkpoints import connect, servable, served, serving_devices
    from orchestrator.serving.server import Serving, free_port

    session = open_session(workspace, None)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices, port, model_name, backend, merge)
    messages = [{"role": "system", "content": system}] if system else []
    if found.checkpoint is None:
        endpoint = connect(session, settings)
        _converse(talk.Conversation(endpoint, max_tokens, temperature, messages))
        return
    with _work_folder() as folder:
        port = settings.port if port is not None and settings.port else free_port()
        how = Serving(settings, folder, port, serving_devices(settings, found.spec))
        checkpoint = servable(session, found)
        with served(session, {found.name: checkpoint}, how, _say_loading) as server:
            _converse(talk.Conversation(server.endpoint, max_tokens, temperature, messages))


@app.command(epilog="Example: orchestrator export demo")
def export(
    run: Annotated[str, typer.Argument(metavar="TARGET", help="A run, RUN@checkpoint-N, or a spec that only exports.")],
    to: Annotated[Path | None, typer.Option(help="The new model's folder. Default: export/ in the run folder.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Merge a run's adapter into a full model, which benchmark, serve and chat take like any other."""
    from orchestrator.lifecycle.benchmark_target import export_target

    session = open_session(workspace, None)
    folder = export_target(session, open_target(session, run, None), to.resolve() if to else None)
    typer.echo(folder)


def _say_loading(plan: "ServePlan") -> None:
    say(f"loading {plan.model_name}; the server's output: {plan.log}")


def _converse(conversation: "Conversation") -> None:
    from orchestrator.commands import talk

    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C stops an answer, not the program
    try:
        talk.chat(conversation, input, talk.write_now)
    finally:
        signal.signal(signal.SIGINT, ours)


@contextmanager
def _work_folder() -> Iterator[Path]:
    """A folder for a server's files. It stays where the server failed: the error names its log and api.yaml."""
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-"))
    keep = False
    try:
        yield folder
    except StageError:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
