"""Commands around a model, trained here or not: benchmark it, serve it, talk to it, export it.

Flags in, one call, results on stdout, everything else on stderr.
"""

import json
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
    DevicesOption,
    FromOption,
    JsonOption,
    ModelNameOption,
    PortOption,
    TemplateOption,
    WorkspaceOption,
    open_session,
    open_target,
    say,
    serve_settings,
    with_files,
)
from orchestrator.errors import SpecError, StageError

if TYPE_CHECKING:
    from orchestrator.commands.talk import Conversation

# The modules of the stages are imported within the commands: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator benchmark demo@base --testset captions_en_de --max-samples 20")
def benchmark(
    target: Annotated[str, typer.Argument(help="A run, RUN@checkpoint-N, RUN@base, a folder, hub id, URL, or spec.")],
    testset: Annotated[str | None, typer.Option(help="A dataset. Default: the run's benchmarks.")] = None,
    split: Annotated[str | None, typer.Option(help="Its split. Default: test.")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Only the first N sentences.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests under way at once. Default: adapted to the server.")
    ] = None,
    sample_seed: Annotated[
        int | None, typer.Option(min=0, help="Draw the --max-samples sentences with this seed.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="A text file to translate, instead of --testset; with --reference.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Its translation, line by line.")] = None,
    source_lang: Annotated[
        str | None, typer.Option(help="Language code of --source. Default: its ending, as in test.en.")
    ] = None,
    target_lang: Annotated[str | None, typer.Option(help="Language code of --reference, likewise.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="What the model is told to do with --source. Default: as it was trained.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask every sentence anew, whatever was answered before.")
    ] = False,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Score what was answered, where some sentences were not.")
    ] = False,
    template: TemplateOption = None,
    devices: DevicesOption = None,
    port: PortOption = None,
    model_name: ModelNameOption = None,
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
    as_json: JsonOption = False,
) -> None:
    """Translate a test set with a model and score it: BLEU, chrF2, TER with signatures and intervals."""
    from orchestrator import pipeline
    from orchestrator.benchmark.evaluate import Asking
    from orchestrator.commands import terminal
    from orchestrator.data.testset import FilePair
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.rundir import RunDir
    from orchestrator.specs.spec import BenchmarkSpec

    session = open_session(workspace, archives)
    found = open_target(session, target, template)
    if source is not None or reference is not None:
        if source is None or reference is None or testset is not None:
            raise SpecError("--source and --reference go together, and without --testset")
        pair = FilePair(source, reference, source_lang, target_lang, instruction)
        session, testset = with_files(session, found, pair)
    changes = {
        "split": split,
        "max_samples": max_samples,
        "sample_seed": sample_seed,
        "max_tokens": max_tokens,
        "concurrency": concurrency,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    if testset is not None:
        items = [BenchmarkSpec.model_validate({"testset": testset, **given})]
    else:
        own = found.spec.benchmark if found.spec else []
        items = [item.model_copy(update=given) for item in own]
    settings = serve_settings(found, devices, port, model_name)
    how = Asking(fresh=fresh, allow_incomplete=allow_incomplete)
    folders = pipeline.benchmark(session, found, items, settings, how)
    if as_json:
        terminal.print_json([json.loads((folder / "scores.json").read_bytes()) for folder in folders])
        return
    record = RunRecord.load(RunDir(folders[0].parent.parent))
    terminal.print_scores([item for item in record.benchmarks if item.id in {folder.name for folder in folders}])
    for folder in folders:
        say(f"every sentence: {folder / 'hypotheses.jsonl'}")


@app.command(epilog="Example: orchestrator serve demo --port 6006")
def serve(
    target: Annotated[str, typer.Argument(help="A run, RUN@checkpoint-N, RUN@base, a folder, a hub id, or a spec.")],
    port: PortOption = None,
    devices: DevicesOption = None,
    template: TemplateOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve a model on an OpenAI-compatible API until Ctrl-C. ORCHESTRATOR_API_KEY sets the key."""
    from orchestrator import serve as serving
    from orchestrator.serving import serve_plan

    session = open_session(workspace, None)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices, port, None)
    with _work_folder() as folder:
        plan = serve_plan(session, found, settings, port=settings.port or 6006, folder=folder)
        say(f"loading {plan.model_name}; the server's output: {plan.log}")
        with serving.serve(plan, session.llamafactory(), session.renderer) as server:
            typer.echo(serving.how_to_ask(server.endpoint))
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
    devices: DevicesOption = None,
    template: TemplateOption = None,
    model_name: ModelNameOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Talk to a model: streaming, with history. exit, Ctrl-D or 退出 ends it; Ctrl-C stops an answer."""
    from orchestrator import serve as serving
    from orchestrator.commands import talk
    from orchestrator.serving import connect, serve_plan

    session = open_session(workspace, None)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices, port, model_name)
    messages = [{"role": "system", "content": system}] if system else []
    if found.checkpoint is None:
        endpoint = connect(session, settings)
        _converse(talk.Conversation(endpoint, max_tokens, temperature, messages))
        return
    with _work_folder() as folder:
        port = settings.port if port is not None and settings.port else serving.free_port()
        plan = serve_plan(session, found, settings, port=port, folder=folder)
        say(f"loading {plan.model_name}")
        with serving.serve(plan, session.llamafactory(), session.renderer) as server:
            _converse(talk.Conversation(server.endpoint, max_tokens, temperature, messages))


@app.command(epilog="Example: orchestrator export demo")
def export(
    run: Annotated[str, typer.Argument(metavar="TARGET", help="A run, RUN@checkpoint-N, or a spec that only exports.")],
    to: Annotated[Path | None, typer.Option(help="The new model's folder. Default: export/ in the run folder.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Merge a run's adapter into a full model, which benchmark, serve and chat take like any other."""
    from orchestrator import pipeline

    session = open_session(workspace, None)
    folder = pipeline.export_target(session, open_target(session, run, None), to.resolve() if to else None)
    typer.echo(folder)


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
