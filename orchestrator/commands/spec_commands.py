"""Commands around a spec: make one, import one, check it, show what it means."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from orchestrator.commands import options
from orchestrator.commands.options import app, find_run_or_group, is_spec, say
from orchestrator.errors import Finding, OrchestratorError, PrerequisiteError, SpecError, errors_of, raise_on_errors
from orchestrator.files import atomic_write, resolved
from orchestrator.importing.importer import import_draft, name_of, write_imported
from orchestrator.importing.sources import read_source
from orchestrator.planning.ask_llamafactory import Answer, ask_llamafactory, sample_lines, without_repeats
from orchestrator.planning.check import check as find
from orchestrator.planning.new_spec import new_spec, schema_text
from orchestrator.planning.plan import render_dataset_info, render_files, render_job, resolve, run_side, spec_side
from orchestrator.planning.session import Session
from orchestrator.runs.differences import Side
from orchestrator.runs.rundir import GroupDir, Workspace, find_workspace
from orchestrator.specs.render import spec_yaml
from orchestrator.specs.spec import spec_json
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.installation import find_installation
from orchestrator.views.terminal import print_file, print_text, show, show_differences, show_group, show_run


@app.command(epilog="Example: orchestrator init my-work")
def init(folder: Annotated[Path, Argument(help="The new workspace.")] = Path()) -> None:
    """Make a workspace: a folder with runs/ and dataset_info/."""
    place = Workspace(resolved(folder))
    for made in (place.runs, place.dataset_info):
        made.mkdir(parents=True, exist_ok=True)
    if not (place.runs / ".gitignore").exists():
        (place.runs / ".gitignore").write_text(f"# run folders; the specs are kept\n*/\n{place.schema.name}\n")
    _write_schema(place)
    say(f"workspace {place.root}: orchestrator new NAME writes a spec; then: orchestrator check runs/NAME.yaml")


@app.command(epilog="Example: orchestrator new my-run --from qlora --model Qwen/Qwen2.5-7B-Instruct")
def new(
    name: Annotated[str, Argument(help="Name of the spec: it is written to runs/NAME.yaml.")],
    kind: Annotated[str, Option("--from", help="lora-sft, full-sft, freeze-sft, qlora, dpo, kto, rm, pt")] = "lora-sft",
    model: Annotated[str | None, Option(help="A folder or a hub id.")] = None,
    dataset: Annotated[str, Option(help="A dataset of dataset_info/.")] = "captions_en_de",
    workspace: options.Workspace = None,
) -> None:
    """Write a commented spec to start from."""
    session = Session.open(workspace)
    place = session.workspace
    text = new_spec(session, name, kind, model, dataset)
    path = place.runs / f"{name}.yaml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise SpecError(f"{path} is there already", "give another name, or remove it") from error
    _write_schema(place)
    show(None, str(path))
    say(f"next: orchestrator check runs/{name}.yaml")


@app.command("import", epilog="Example: orchestrator import 'llamafactory-cli train qwen3_lora_sft.yaml'")
def import_spec(
    source: Annotated[
        list[str], Argument(metavar="FILE|FOLDER|COMMAND", help="YAML, script, output folder, command, or -: stdin.")
    ],
    name: Annotated[str | None, Option(help="Name of the spec. Default: the file's or folder's.")] = None,
    cwd: Annotated[Path | None, Option(help="Folder it was run in. Default: this one, or of the file.")] = None,
    line: Annotated[int | None, Option(min=1, help="Which command of a script that has several.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print the spec, write nothing.")] = False,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Make a spec of a LLaMA-Factory training: a command, script, YAML file or output folder."""
    session = Session.open(workspace)
    place, installation = session.workspace, session.llamafactory()
    draft = read_source(source, cwd=cwd, line=line, arguments=read_arguments(installation), installation=installation)
    called = name if name is not None else name_of(source, draft)
    found = import_draft(draft, called, workspace=place, folders=session.dataset_folders)
    for note in found.notes:
        say(f"note: {note}")
    if dry_run:
        document = {"spec": found.spec, "datasets": found.entries, "notes": found.notes}
        show(document, as_json=True) if as_json else print_text(found.spec)
        return
    spec, entries = write_imported(found, called, place)
    _write_schema(place)
    paths = [str(spec), *map(str, entries)]
    show({"spec": paths[0], "datasets": paths[1:], "notes": found.notes}, *paths, as_json=as_json)
    session.load_spec(spec)  # what is wrong with the original is wrong with the spec
    say(f"next: orchestrator check {shlex.quote(str(spec))}")


@app.command(epilog="Example: orchestrator schema > runs/.spec.schema.json")
def schema() -> None:
    """Print the JSON Schema of a spec, for editors: with every argument of the installed LLaMA-Factory."""
    typer.echo(schema_text(find_installation()), nl=False)


@app.command(epilog="Example: orchestrator check runs/demo.yaml --set train.lora_rank=16")
def check(
    spec: Annotated[Path, Argument(help="A spec file.")],
    overrides: options.Set = None,
    fast: Annotated[bool, Option("--fast", help="Without LLaMA-Factory's own check, which takes about 10 s.")] = False,
    workspace: options.Workspace = None,
    archives: options.Archives = None,
    as_json: options.Json = False,
) -> None:
    """Check all that can be checked without a GPU: the spec, the data, the model's files, the machine."""
    session = Session.open(workspace, archives)
    loaded = session.load_spec(spec, overrides or ())
    findings = find(session, loaded)
    _say_remarks(findings)
    answer = Answer()
    if not fast:
        try:
            (answer,) = ask_llamafactory(session, [resolve(session, loaded)[0]])
        except OrchestratorError:
            if not errors_of(findings):  # else no question can be made of it, for what the findings say
                raise
        added = without_repeats(answer, findings)
        _say_remarks(added)
        findings += added
    for name, sample in answer.samples.items():
        say("\n".join(sample_lines(name, sample)))
    if as_json:
        show({"findings": list(map(asdict, findings)), "datasets": answer.samples}, as_json=True)
    raise_on_errors(findings)
    say(f"{spec}: no errors")


@app.command("show", epilog="Example: orchestrator show runs/multi30k-en-de.yaml --command")
def show_command(
    what: Annotated[str, Argument(metavar="SPEC|RUN|GROUP", help="A spec file, a run, or a group.")],
    command: Annotated[bool, Option("--command", help="The training as one llamafactory-cli line.")] = False,
    file: Annotated[str | None, Option(help="A file, such as train.yaml, or spec.yaml with every default.")] = None,
    diff: Annotated[str | None, Option("--diff", metavar="OTHER", help="Differences to another spec or run.")] = None,
    overrides: options.Set = None,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Show what would run, or what ran: command line, rendered files, resolved spec, record, differences."""
    if sum([command, file is not None, diff is not None]) > 1:
        raise SpecError("--command, --file and --diff exclude each other")
    if as_json and (command or file is not None):
        raise SpecError("--json is for a spec, a record or differences; a file is printed as it is", "leave one out")
    if overrides and not is_spec(what):
        raise SpecError("--set is for a spec; a run is shown as it was")
    if diff is not None:
        session = Session.open(workspace)
        show_differences(_side(session, what, overrides or ()), _side(session, diff), as_json)
        return
    name = "command.txt" if command else file
    if is_spec(what):
        session = Session.open(workspace)
        spec, template = resolve(session, session.load_spec(Path(what), overrides or ()))
        files = render_files(session, spec) | render_job(session, spec) | {"spec.yaml": spec_yaml(spec, template)}
        if name == "dataset_info.json":  # the others can be shown without the datasets
            files |= render_dataset_info(session, spec)
        if as_json:
            show(spec_json(spec), as_json=True)
        else:
            print_file(files, name or "spec.yaml", what)
        return
    place = find_workspace(workspace)  # no session: to look for LLaMA-Factory takes as long as the rest
    found = place.find_run(what) if name is not None else find_run_or_group(place, what)
    if isinstance(found, GroupDir):
        show_group(found, as_json)
    elif name is not None:  # what begins with a dot is a lock, or a file that is being written
        print_file({path.name: path for path in sorted(found.path.glob("[!.]*")) if path.is_file()}, name, found.id)
    else:
        show_run(found, as_json)


def _say_remarks(findings: Sequence[Finding]) -> None:
    for each in findings:
        if each.severity != "error":
            say(f"{each.severity}: {each.field}: {each.message}")


def _side(session: Session, word: str, overrides: Sequence[str] = ()) -> Side:
    if is_spec(word):
        return spec_side(session, word, session.load_spec(Path(word), overrides))
    return run_side(session.workspace.find_run(word))


def _write_schema(place: Workspace) -> None:
    """The schema that specs of the workspace name in their first line; without LLaMA-Factory there is none."""
    try:
        atomic_write(place.schema, schema_text(find_installation()))
    except PrerequisiteError as error:
        say(f"note: editors do not know the arguments until `orchestrator schema` can run: {error.message}")
