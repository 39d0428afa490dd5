"""The commands: flags in, one call into the pipeline, results on stdout, everything else on stderr.

Not covered: errors, signals and exit codes (__main__.py).
"""

import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from orchestrator import __version__
from orchestrator.errors import PrerequisiteError, SpecError, StageError
from orchestrator.options import (
    DevicesOption,
    FromOption,
    JsonOption,
    ModelNameOption,
    NoBenchmarkOption,
    PortOption,
    SetOption,
    TemplateOption,
    WorkspaceOption,
    is_spec,
    open_session,
    open_side,
    open_target,
    say,
    serve_settings,
)

if TYPE_CHECKING:
    from orchestrator.rundir import RunDir, Workspace
    from orchestrator.talk import Conversation

# The modules of the stages are imported within the commands: --help and a mistyped flag answer at once.


class _Commands(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # `orchestrator list | head`; Typer would make exit code 1, a bug, of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + signal.SIGPIPE) from error


app = typer.Typer(
    cls=_Commands,
    help="A thin layer over LLaMA-Factory: run specs, reruns, and benchmarks with an honest BLEU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"orchestrator {__version__}")
        raise typer.Exit


@app.command(epilog="Example: orchestrator init my-work")
def init(folder: Annotated[Path, typer.Argument(help="The new workspace.")] = Path()) -> None:
    """Make a workspace: a folder with runs/ and dataset_info/."""
    from orchestrator.rundir import Workspace

    place = Workspace(folder.resolve())
    for made in (place.runs, place.dataset_info):
        made.mkdir(parents=True, exist_ok=True)
    if not (place.runs / ".gitignore").exists():
        (place.runs / ".gitignore").write_text(f"# run folders; the specs are kept\n*/\n{place.schema.name}\n")
    _write_schema(place)
    say(f"workspace {place.root}: orchestrator new NAME writes a spec; then: orchestrator check runs/NAME.yaml")


@app.command(epilog="Example: orchestrator new my-run --from qlora --model Qwen/Qwen2.5-7B-Instruct")
def new(
    name: Annotated[str, typer.Argument(help="Name of the spec: it is written to runs/NAME.yaml.")],
    kind: Annotated[
        str, typer.Option("--from", help="lora-sft, full-sft, freeze-sft, qlora, dpo, kto, rm or pt.")
    ] = "lora-sft",
    model: Annotated[str | None, typer.Option(help="A folder or a hub id.")] = None,
    dataset: Annotated[str, typer.Option(help="A dataset of dataset_info/.")] = "captions_en_de",
    workspace: WorkspaceOption = None,
) -> None:
    """Write a commented spec to start from."""
    from orchestrator.new import new_spec

    session = open_session(workspace, None)
    place = session.workspace
    text = new_spec(
        name,
        kind,
        model,
        dataset,
        workspace=place,
        folders=session.dataset_folders,
        renderer=session.renderer,
        installation=session.llamafactory_or_none(),
        arguments=session.arguments(),
    )
    path = place.runs / f"{name}.yaml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise SpecError(f"{path} is there already", "give another name, or remove it") from error
    _write_schema(place)
    typer.echo(path)
    say(f"next: orchestrator check runs/{name}.yaml")


@app.command(epilog="Example: orchestrator schema --output runs/.spec.schema.json")
def schema(
    output: Annotated[Path | None, typer.Option(help="Write it to this file instead of stdout.")] = None,
) -> None:
    """The JSON Schema of a spec, for editors: with every argument of the LLaMA-Factory that is installed."""
    from orchestrator.installation import find_installation
    from orchestrator.rundir import atomic_write
    from orchestrator.schema import schema_text

    text = schema_text(find_installation())
    if output is None:
        typer.echo(text, nl=False)
    else:
        atomic_write(output, text)


@app.command(epilog="Example: orchestrator check runs/demo.yaml --set train.lora_rank=16")
def check(
    spec: Annotated[Path, typer.Argument(help="A spec file.")],
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
    as_json: JsonOption = False,
) -> None:
    """Everything that can be known before a GPU is used: the spec, the data, the model's files, the machine."""
    from orchestrator import terminal
    from orchestrator.check import check as find
    from orchestrator.check import raise_on_errors

    session = open_session(workspace, archives)
    findings = find(
        session.load_spec(spec, overrides or ()),
        session.workspace.root,
        session.dataset_folders,
        session.archives,
        session.installation,
    )
    if as_json:
        terminal.print_json([dataclasses.asdict(finding) for finding in findings])
    for finding in findings:
        if finding.severity != "error":
            say(f"{finding.severity}: {finding.field}: {finding.message}")
    raise_on_errors(findings)
    say(f"{spec}: no errors")


@app.command(epilog="Example: orchestrator show runs/multi30k-en-de.yaml --command")
def show(
    what: Annotated[str, typer.Argument(metavar="SPEC|RUN", help="A spec file, or a run.")],
    command: Annotated[bool, typer.Option("--command", help="The training as one llamafactory-cli line.")] = False,
    file: Annotated[str | None, typer.Option(help="A rendered file, such as train.yaml.")] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="The spec with every default written out.")] = False,
    diff: Annotated[
        str | None, typer.Option("--diff", metavar="OTHER", help="What differs in another spec or run.")
    ] = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What would run, or what ran: command line, rendered files, resolved spec, record, differences."""
    from orchestrator import terminal
    from orchestrator.plan import render_files, resolve
    from orchestrator.record import RunRecord
    from orchestrator.render import spec_yaml
    from orchestrator.spec import spec_json

    if sum([command, file is not None, resolved, diff is not None]) > 1:
        raise SpecError("--command, --file, --resolved and --diff exclude each other")
    session = open_session(workspace, None)
    if diff is not None:
        terminal.print_differences(open_side(session, what, overrides), open_side(session, diff, None), as_json)
        return
    if is_spec(what):
        spec, found = resolve(session, session.load_spec(Path(what), overrides or ()))
        files = render_files(session, spec) | {"spec.yaml": spec_yaml(spec, found)}
        if as_json:
            terminal.print_json(spec_json(spec))
            return
        terminal.print_file(files, "command.txt" if command else file or "spec.yaml", what)
        return
    if overrides:
        raise SpecError("--set is for a spec; a run is shown as it was")
    run = session.workspace.find_run(what)
    wanted = "command.txt" if command else "spec.yaml" if resolved else file
    if wanted is not None:
        texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(run.path.iterdir()) if path.is_file()}
        terminal.print_file(texts, wanted, run.id)
    elif as_json:
        terminal.print_json(RunRecord.load(run).as_json())
    else:
        terminal.print_run(RunRecord.load(run), run.path)


@app.command(epilog="Example: orchestrator launch runs/demo.yaml --set train.num_train_epochs=1")
def launch(
    spec: Annotated[Path, typer.Argument(help="A spec file.")],
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, show the command, start nothing.")] = False,
    no_benchmark: NoBenchmarkOption = False,
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prepare the data, train, and benchmark, as the spec says."""
    from orchestrator import pipeline, terminal
    from orchestrator.plan import plan_run, render_files

    session = open_session(workspace, archives)
    checked = session.load_spec(spec, overrides or ())
    plan = plan_run(session, checked)
    if dry_run:
        files = render_files(session, plan.spec)
        if files:
            terminal.print_file(files, "command.txt" if "command.txt" in files else "api.yaml", str(spec))
        else:
            say(f"nothing would be started: {checked.serve.url} is asked")
        return
    run = pipeline.launch(session, plan, pipeline.Origin(str(spec), overrides or ()), with_benchmarks=not no_benchmark)
    _print_result(run, as_json)


@app.command(epilog="Example: orchestrator rerun demo --strict")
def rerun(
    run: Annotated[str, typer.Argument(help="A run's id, a spec's name (its newest run), or latest.")],
    overrides: SetOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse when anything differs.")] = False,
    no_benchmark: NoBenchmarkOption = False,
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a past run's saved spec again, under a new id; what differs now is said first."""
    from orchestrator import pipeline

    session = open_session(workspace, archives)
    past = session.workspace.find_run(run)
    again = pipeline.rerun(session, past, overrides or (), strict=strict, with_benchmarks=not no_benchmark)
    _print_result(again, as_json)


@app.command(epilog="Example: orchestrator benchmark demo@base --testset captions_en_de --max-samples 20")
def benchmark(
    target: Annotated[str, typer.Argument(help="A run, RUN@checkpoint-N, RUN@base, a folder, a hub id, or a URL.")],
    testset: Annotated[str | None, typer.Option(help="A dataset. Default: the run's benchmarks.")] = None,
    split: Annotated[str | None, typer.Option(help="Its split. Default: test.")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Only the first N sentences.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests under way at once.")] = None,
    template: TemplateOption = None,
    devices: DevicesOption = None,
    port: PortOption = None,
    model_name: ModelNameOption = None,
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
    as_json: JsonOption = False,
) -> None:
    """Translate a test set with a model and score it: BLEU, chrF2, TER with signatures and intervals."""
    from orchestrator import pipeline, terminal
    from orchestrator.record import RunRecord
    from orchestrator.rundir import RunDir
    from orchestrator.spec import BenchmarkSpec

    session = open_session(workspace, archives)
    found = open_target(session, target, template)
    changes = {"split": split, "max_samples": max_samples, "max_tokens": max_tokens, "concurrency": concurrency}
    given = {key: value for key, value in changes.items() if value is not None}
    if testset is not None:
        items = [BenchmarkSpec.model_validate({"testset": testset, **given})]
    else:
        own = found.spec.benchmark if found.spec else []
        items = [item.model_copy(update=given) for item in own]
    settings = serve_settings(found, devices, port, model_name)
    folders = pipeline.benchmark(session, found, items, settings)
    if as_json:
        terminal.print_json([json.loads((folder / "scores.json").read_bytes()) for folder in folders])
        return
    record = RunRecord.load(RunDir(folders[0].parent.parent))
    terminal.print_scores([item for item in record.benchmarks if item.id in {folder.name for folder in folders}])
    for folder in folders:
        say(f"every sentence: {folder / 'hypotheses.jsonl'}")


@app.command(epilog="Example: orchestrator serve demo --port 6006")
def serve(
    target: Annotated[str, typer.Argument(help="A run, RUN@checkpoint-N, RUN@base, a folder, or a hub id.")],
    port: PortOption = None,
    devices: DevicesOption = None,
    template: TemplateOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve a model on an OpenAI-compatible API until Ctrl-C. ORCHESTRATOR_API_KEY sets the key."""
    from orchestrator import pipeline
    from orchestrator import serve as serving

    session = open_session(workspace, None)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices, port, None)
    with _work_folder() as folder:
        plan = pipeline.serve_plan(session, found, settings, port=settings.port or 6006, folder=folder)
        say(f"loading {plan.model_name}; the server's output: {plan.log}")
        with serving.serve(plan, session.llamafactory(), session.renderer) as server:
            typer.echo(serving.how_to_ask(server.endpoint))
            say("Ctrl-C ends it.")
            while not (ended := server.ended()):
                time.sleep(0.5)
            raise StageError(ended)


@app.command(epilog="Example: orchestrator chat demo --system 'You translate into German.'")
def chat(
    target: Annotated[str, typer.Argument(help="A run, RUN@checkpoint-N, RUN@base, a folder, a hub id, or a URL.")],
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
    from orchestrator import pipeline, talk
    from orchestrator import serve as serving

    session = open_session(workspace, None)
    found = open_target(session, target, template)
    settings = serve_settings(found, devices, port, model_name)
    messages = [{"role": "system", "content": system}] if system else []
    if found.checkpoint is None:
        endpoint = pipeline.connect(session, settings)
        _converse(talk.Conversation(endpoint, max_tokens, temperature, messages))
        return
    with _work_folder() as folder:
        port = settings.port if port is not None and settings.port else serving.free_port()
        plan = pipeline.serve_plan(session, found, settings, port=port, folder=folder)
        say(f"loading {plan.model_name}")
        with serving.serve(plan, session.llamafactory(), session.renderer) as server:
            _converse(talk.Conversation(server.endpoint, max_tokens, temperature, messages))


@app.command(epilog="Example: orchestrator export demo")
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, or RUN@checkpoint-N.")],
    to: Annotated[Path | None, typer.Option(help="The new model's folder. Default: export/ in the run folder.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Merge a run's adapter into a full model, which benchmark, serve and chat take like any other."""
    from orchestrator import pipeline

    session = open_session(workspace, None)
    folder = pipeline.export_run(session, open_target(session, run, None), to.resolve() if to else None)
    typer.echo(folder)


@app.command("list", epilog="Example: orchestrator list --json")
def list_runs(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Runs with status and scores, oldest first."""
    from orchestrator import terminal
    from orchestrator.record import RunRecord
    from orchestrator.rundir import find_workspace

    place = find_workspace(workspace)
    records = []
    for run in place.all_runs():
        try:
            records.append(RunRecord.load(run))
        except PrerequisiteError as error:  # one damaged record does not hide the others
            say(f"warning: {error.message}")
    if as_json:
        terminal.print_json([record.as_json() for record in records])
    elif records:
        terminal.console().print(terminal.run_table(records))
    else:
        say(f"no runs in {place.runs} yet: orchestrator launch SPEC")


def _converse(conversation: "Conversation") -> None:
    from orchestrator import talk

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


def _write_schema(place: "Workspace") -> None:
    """The schema that specs of the workspace name in their first line; without LLaMA-Factory there is none."""
    from orchestrator.installation import find_installation
    from orchestrator.rundir import atomic_write
    from orchestrator.schema import schema_text

    try:
        atomic_write(place.schema, schema_text(find_installation()))
    except PrerequisiteError as error:
        say(f"note: editors will know no arguments until `orchestrator schema` can be run: {error.message}")


def _print_result(run: "RunDir", as_json: bool) -> None:
    from orchestrator import terminal
    from orchestrator.record import RunRecord

    record = RunRecord.load(run)
    if as_json:
        terminal.print_json(record.as_json())
        return
    terminal.print_scores(record.benchmarks)
    typer.echo(f"\n{record.status}: {run.path}")
