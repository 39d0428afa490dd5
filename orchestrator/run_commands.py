"""Commands around a run: start one, start one again, list them.

Flags in, one call, results on stdout, everything else on stderr.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.app import app
from orchestrator.errors import PrerequisiteError
from orchestrator.options import (
    FromOption,
    JsonOption,
    NoBenchmarkOption,
    SetOption,
    WorkspaceOption,
    open_session,
    say,
)

if TYPE_CHECKING:
    from orchestrator.rundir import RunDir

# The modules of the stages are imported within the commands: --help and a mistyped flag answer at once.


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


def _print_result(run: "RunDir", as_json: bool) -> None:
    from orchestrator import terminal
    from orchestrator.record import RunRecord

    record = RunRecord.load(run)
    if as_json:
        terminal.print_json(record.as_json())
        return
    terminal.print_scores(record.benchmarks)
    typer.echo(f"\n{record.status}: {run.path}")
