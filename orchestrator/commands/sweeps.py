"""What the commands do with groups of runs: carry one out, show how far its runs are.

Not covered: the commands themselves; what carries a group out (turns.py).
"""

from textwrap import shorten
from typing import TYPE_CHECKING

import typer

from orchestrator.commands.options import say
from orchestrator.errors import Interrupted, StageError

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.lifecycle.sweep import Sweep
    from orchestrator.planning.session import Session
    from orchestrator.runs.groups import Group
    from orchestrator.runs.rundir import GroupDir

# The modules of the stages are imported within the functions: --help and a mistyped flag answer at once.


def carry_out_group(session: "Session", folder: "GroupDir", *, detach: bool, as_json: bool) -> None:
    """Carry a group out here, and show what came of it; or in the background."""
    from orchestrator.lifecycle.scheduler import detach_group, run_group, submit_group

    job = submit_group(session, folder)
    if job or detach:
        where = f"is Slurm job {job}" if job else f"runs in the background, in process {detach_group(folder)}"
        say(f"{folder.id} {where}")
        say(f"to see how far it is: orchestrator show {folder.id}")
        say(f"to follow it:         orchestrator logs {folder.id} -f")
        say(f"to stop it:           orchestrator stop {folder.id}")
        if as_json:
            print_group(folder, as_json=True)
        else:
            typer.echo(folder.id)
        return
    try:
        run_group(session, folder)
    except (StageError, Interrupted):
        print_group(folder, as_json=as_json)
        raise
    print_group(folder, as_json=as_json)


def print_group(folder: "GroupDir", *, as_json: bool) -> None:
    """A group and its runs, with what was swept beside each."""
    from orchestrator.runs.groups import Group, group_json, members
    from orchestrator.text import escape_controls
    from orchestrator.views import terminal

    group = Group.load(folder)
    if as_json:
        terminal.print_json(group_json(folder, group))
        return
    terminal.console().print(_table(folder, group))
    done = sum(each.is_finished() for each in members(folder, group))
    typer.echo(f"\n{len(group.points)} runs, {done} done: {escape_controls(str(folder.path))}")


def print_next_step(folder: "GroupDir") -> None:
    """How a group is continued that nobody carries out."""
    from orchestrator.runs.groups import Group, remaining

    if left := remaining(folder, Group.load(folder)):
        typer.echo(left)


def _table(folder: "GroupDir", group: "Group") -> "Table":
    from orchestrator.runs.groups import members, short_keys
    from orchestrator.runs.notes import Notes
    from orchestrator.runs.registry import row_of
    from orchestrator.views import terminal

    rows = []
    for each in members(folder, group):
        row = row_of(each.run, each.record, Notes()) if each.record is not None else None
        last = row.last if row else ""
        if not last and each.record is not None and each.record.error:
            last = shorten(each.record.error.splitlines()[0], 80, placeholder=" ...")
        rows.append([*each.point.values, each.status, row.steps if row else "", each.run.id, last])
    return terminal.table([*short_keys(group.axes), "status", "steps", "run", "last benchmark, or error"], rows)


def print_points(session: "Session", sweep: "Sweep", as_json: bool) -> None:
    """What each point would be trained with."""
    from orchestrator.planning.plan import render_files
    from orchestrator.runs.groups import point_overrides
    from orchestrator.text import escape_controls
    from orchestrator.views import terminal

    found = []
    for values, plan in zip(sweep.values, sweep.plans, strict=True):
        files = render_files(session, plan.spec)
        command = files.get("command.txt", files.get("api.yaml", ""))
        found.append({"set": point_overrides(sweep.axes, values), "command": command})
    if as_json:
        terminal.print_json(found)
        return
    for number, each in enumerate(found, start=1):
        typer.echo(escape_controls(f"# {number} of {len(found)}: {' '.join(each['set'])}"))
        typer.echo(each["command"])
    say(f"{len(found)} points, no errors; nothing was started")
