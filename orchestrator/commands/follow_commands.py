"""Commands for a run that is under way, or was: follow it, stop it.

Flags in, one call, results on stdout, everything else on stderr.
"""

from typing import Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import JsonOption, RunOrGroupArgument, WorkspaceOption, say
from orchestrator.errors import Interrupted, SpecError

# The modules behind the commands are imported within them: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator logs latest -f")
def logs(
    run: RunOrGroupArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=0, help="Only the last N lines.")] = None,
    file: Annotated[
        str | None, typer.Option(help="train, supervisor, or a benchmark's id. Default: the one written to last.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """What LLaMA-Factory wrote: the training, or the server of a benchmark. Ctrl-C ends following, not the run.

    Of a group, the log of the run that is under way, or was last; `--file supervisor` is what carries it out.
    """
    from orchestrator.commands import logs as run_logs
    from orchestrator.runs.groups import lookup_group
    from orchestrator.runs.rundir import GroupDir, find_workspace

    place = find_workspace(workspace)
    found = lookup_group(place, run) or place.find_run(run)
    if not follow:
        for line in run_logs.tail(run_logs.choose_log(found, file), lines):
            typer.echo(line)
        return
    try:
        run_logs.follow(found, file, lines)
    except Interrupted as error:
        what = "group" if isinstance(found, GroupDir) else "run"
        say(f"the {what} goes on; orchestrator stop {found.id} ends it")
        raise typer.Exit(error.exit_code) from error


@app.command(epilog="Example: orchestrator stop demo")
def stop(
    run: RunOrGroupArgument,
    grace: Annotated[
        float | None, typer.Option(min=0, help="Seconds that it may take to save a checkpoint. Default: 100.")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="End all its processes at once, without a checkpoint.")] = False,
    host_is_gone: Annotated[
        bool,
        typer.Option(
            "--host-is-gone", help="Of a run on another host that will not come back: it reads as interrupted then."
        ),
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a run: a checkpoint is saved, and no process of it is left. One that is not running is left as it is.

    Of a group, what is under way, and none of its runs begins after.
    """
    from orchestrator.commands import sweeps
    from orchestrator.lifecycle import stop as stopping
    from orchestrator.lifecycle.scheduler import stop_group
    from orchestrator.runs.groups import lookup_group
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.rundir import find_workspace
    from orchestrator.views import terminal

    if now and grace is not None:
        raise SpecError("--now is a grace of 0: leave --grace out")
    if host_is_gone and (now or grace is not None):
        raise SpecError("--host-is-gone ends no process: leave --now and --grace out")
    grace_s = 0 if now else stopping.DEFAULT_GRACE_S if grace is None else grace
    place = find_workspace(workspace)
    if (group := lookup_group(place, run)) is not None:
        if host_is_gone:
            raise SpecError(f"{run} is a group: --host-is-gone is said of a run", "orchestrator show GROUP lists them")
        for line in stop_group(group, grace_s):
            say(line)
        if as_json:
            sweeps.print_group(group, as_json=True)
        return
    found = place.find_run(run)
    for line in stopping.host_is_gone(found) if host_is_gone else stopping.stop_run(found, grace_s):
        say(line)
    record = RunRecord.load(found)
    if record.status in ("stopped", "interrupted", "failed"):
        say(f"to go on: orchestrator resume {found.id}")
    if as_json:
        terminal.print_json(record.as_json())
