"""Commands around a spec: make one, check it, show what it means.

Flags in, one call, results on stdout, everything else on stderr.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import (
    FromOption,
    JsonOption,
    SetOption,
    WorkspaceOption,
    is_spec,
    open_session,
    open_side,
    say,
)
from orchestrator.errors import PrerequisiteError, SpecError

if TYPE_CHECKING:
    from orchestrator.planning.session import Session
    from orchestrator.runs.rundir import Workspace

# The modules of the stages are imported within the commands: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator init my-work")
def init(folder: Annotated[Path, typer.Argument(help="The new workspace.")] = Path()) -> None:
    """Make a workspace: a folder with runs/ and dataset_info/."""
    from orchestrator.files import resolved
    from orchestrator.runs.rundir import Workspace

    place = Workspace(resolved(folder))
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
    from orchestrator.planning.new_spec import new_spec

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


@app.command(
    "import", epilog="Example: orchestrator import 'llamafactory-cli train examples/train_lora/qwen3_lora_sft.yaml'"
)
def import_spec(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|FOLDER|COMMAND",
            help="A YAML file, a script, an output folder, a command (in quotes, or after --), or - for stdin.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the spec. Default: the file's or the output folder's.")
    ] = None,
    cwd: Annotated[
        Path | None, typer.Option(help="The folder it was run in. Default: this one, or the nearest above the file.")
    ] = None,
    line: Annotated[int | None, typer.Option(min=1, help="Which command of a script that holds several.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the spec, write nothing.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """A spec of what ran with LLaMA-Factory as it is: a command, script, YAML file, LLaMA Board file, output folder."""
    from orchestrator.importing.importer import import_draft, name_of, write_imported
    from orchestrator.importing.sources import read_source
    from orchestrator.upstream.arguments import read_arguments
    from orchestrator.views import terminal

    session = open_session(workspace, None)
    installation = session.llamafactory()
    known = read_arguments(installation)
    draft = read_source(source, cwd=cwd, line=line, arguments=known, installation=installation)
    called = name if name is not None else name_of(source, draft)
    found = import_draft(
        draft, called, workspace=session.workspace, folders=session.dataset_folders, renderer=session.renderer
    )
    for note in found.notes:
        say(f"note: {note}")
    if dry_run:
        typer.echo(found.spec, nl=False)
        return
    spec, entries = write_imported(found, called, session.workspace)
    _write_schema(session.workspace)
    if as_json:
        terminal.print_json({"spec": str(spec), "datasets": list(map(str, entries)), "notes": found.notes})
    else:
        for path in [spec, *entries]:
            typer.echo(path)
    session.load_spec(spec)  # what is wrong with the original is wrong with the spec: said, with the place
    say(f"next: orchestrator check {shlex.quote(str(spec))}")


@app.command(epilog="Example: orchestrator schema --output runs/.spec.schema.json")
def schema(
    output: Annotated[Path | None, typer.Option(help="Write it to this file instead of stdout.")] = None,
) -> None:
    """The JSON Schema of a spec, for editors: with every argument of the LLaMA-Factory that is installed."""
    from orchestrator.files import atomic_write
    from orchestrator.planning.schema import schema_text
    from orchestrator.upstream.installation import find_installation

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
    from orchestrator.planning.check import check as find
    from orchestrator.planning.check import raise_on_errors
    from orchestrator.views import terminal

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
    what: Annotated[str, typer.Argument(metavar="SPEC|RUN|GROUP", help="A spec file, a run, or a group.")],
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
    if sum([command, file is not None, resolved, diff is not None]) > 1:
        raise SpecError("--command, --file, --resolved and --diff exclude each other")
    if diff is not None:
        from orchestrator.views import terminal

        session = open_session(workspace, None)
        terminal.print_differences(open_side(session, what, overrides), open_side(session, diff, None), as_json)
    elif is_spec(what):
        _show_spec(open_session(workspace, None), what, overrides or (), "command.txt" if command else file, as_json)
    elif overrides:
        raise SpecError("--set is for a spec; a run is shown as it was")
    else:
        _show_run(workspace, what, "command.txt" if command else "spec.yaml" if resolved else file, as_json)


def _show_spec(session: "Session", what: str, overrides: Sequence[str], file: str | None, as_json: bool) -> None:
    from orchestrator.planning.plan import render_dataset_info, render_files, render_job, resolve
    from orchestrator.specs.render import spec_yaml
    from orchestrator.specs.spec import spec_json
    from orchestrator.views import terminal

    spec, found = resolve(session, session.load_spec(Path(what), overrides))
    files = render_files(session, spec) | render_job(session, spec) | {"spec.yaml": spec_yaml(spec, found)}
    if file == "dataset_info.json":  # the others can be shown without the datasets
        files |= render_dataset_info(session, spec)
    if as_json:
        terminal.print_json(spec_json(spec))
    else:
        terminal.print_file(files, file or "spec.yaml", what)


def _show_run(workspace: Path | None, what: str, file: str | None, as_json: bool) -> None:
    """A run or a group, or a file of a run. Without a Session: to look for LLaMA-Factory takes as long as the rest."""
    from orchestrator.commands import sweeps
    from orchestrator.runs import registry, state
    from orchestrator.runs.groups import lookup_group
    from orchestrator.runs.notes import Notes
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.rundir import find_workspace
    from orchestrator.views import terminal

    place = find_workspace(workspace)
    if file is None and (group := lookup_group(place, what)) is not None:
        sweeps.print_group(group, as_json=as_json)
        if not as_json:
            sweeps.print_next_step(group)
        return
    run = place.find_run(what)
    if file is not None:
        terminal.print_file_of(run.path, file, run.id)
    elif as_json:
        terminal.print_json(registry.run_json(run, RunRecord.load(run), Notes.load(run)))
    else:
        record = RunRecord.load(run)
        terminal.print_run(record, run.path, state.lines(run, record))


def _write_schema(place: "Workspace") -> None:
    """The schema that specs of the workspace name in their first line; without LLaMA-Factory there is none."""
    from orchestrator.files import atomic_write
    from orchestrator.planning.schema import schema_text
    from orchestrator.upstream.installation import find_installation

    try:
        atomic_write(place.schema, schema_text(find_installation()))
    except PrerequisiteError as error:
        say(f"note: editors will know no arguments until `orchestrator schema` can be run: {error.message}")
