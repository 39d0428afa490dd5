"""What the commands do with groups of runs: carry one out, show how far its runs are.

Not covered: the commands themselves; what carries a group out (turns.py).
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import typer

from orchestrator.commands.options import say
from orchestrator.errors import Interrupted, StageError

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.lifecycle.new_run import How
    from orchestrator.lifecycle.sweep import Sweep
    from orchestrator.planning.session import Session
    from orchestrator.runs.groups import Group
    from orchestrator.runs.rundir import GroupDir

# The modules of the stages are imported within the functions: --help and a mistyped flag answer at once.


def carry_out_group(
    session: "Session", folder: "GroupDir", how: "How", words: Sequence[str], *, detach: bool, as_json: bool
) -> None:
    """Carry a group out here, and show what came of it; or in the background."""
    from orchestrator.lifecycle.scheduler import detach_group, submit_group, take_turns

    job = submit_group(session, folder, how, [*words, "--slurm", "--cwd", str(Path.cwd())])
    if job is not None or detach:
        pid = detach_group(folder, words) if job is None else None
        say(f"{folder.id} {f'is Slurm job {job}' if job else f'goes on in the background, in process {pid}'}")
        say(f"to see how far it is: orchestrator show {folder.id}")
        say(f"to follow it:         orchestrator logs {folder.id} -f")
        say(f"to stop it:           orchestrator stop {folder.id}")
        if as_json:
            print_group(folder, as_json=True)
        else:
            typer.echo(folder.id)
        return
    try:
        take_turns(session, folder, how, words)
    except (StageError, Interrupted):
        print_group(folder, as_json=as_json)
        raise
    print_group(folder, as_json=as_json)


def print_group(folder: "GroupDir", *, as_json: bool) -> None:
    """A group and its runs, with what was swept beside each."""
    from orchestrator.runs.groups import Group, group_json, members, owner
    from orchestrator.text import escape_controls
    from orchestrator.views import terminal

    group = Group.load(folder)
    if as_json:
        terminal.print_json(group_json(folder, group))
        return
    terminal.console().print(_table(folder, group))
    found = owner(folder)
    at_work = f", carried out by process {found.pid} on {found.host}" if found else ""
    done = sum(each.is_finished(group.with_benchmarks) for each in members(folder, group))
    typer.echo(f"\n{len(group.points)} runs, {done} done{at_work}: {escape_controls(str(folder.path))}")


def print_next_step(folder: "GroupDir") -> None:
    """How a group is gone on with that nobody carries out."""
    from orchestrator.runs.groups import Group, killed_owner, members, owner, what_is_left

    group, killed = Group.load(folder), killed_owner(folder)
    found = members(folder, group)
    active = [each.run.id for each in found if each.record is not None and each.record.is_active()]
    left = what_is_left(folder, group)
    if killed is not None and (active or left):
        stopping = f"; under way still: {', '.join(active)}" if active else ""
        typer.echo(f"interrupted: its process {killed.pid} is gone without a word{stopping}")
    if left and owner(folder) is None:
        typer.echo(left)


def _table(folder: "GroupDir", group: "Group") -> "Table":
    from orchestrator.runs.axes import short_keys
    from orchestrator.runs.groups import members
    from orchestrator.runs.notes import Notes
    from orchestrator.runs.registry import row_of
    from orchestrator.views import terminal

    rows = []
    for each in members(folder, group):
        row = row_of(each.run, each.record, Notes()) if each.record is not None else None
        status = "not begun" if each.record is not None and each.record.awaits_turn else each.status
        said = row.last if row else ""
        if not said and each.record is not None and each.record.error:
            said = shorten(each.record.error.splitlines()[0], 80, placeholder=" ...")
        rows.append([*each.point.values, status, row.steps if row else "", each.run.id, said])
    return terminal.table([*short_keys(group.axes), "status", "steps", "run", "last benchmark, or error"], rows)


def print_points(session: "Session", sweep: "Sweep", as_json: bool) -> None:
    """What each point would be trained with."""
    from orchestrator.planning.plan import render_files
    from orchestrator.runs.axes import point_overrides
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
