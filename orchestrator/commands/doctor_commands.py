"""The command that looks at the installation, the machine and the workspace.

Flags in, one call, results on stdout, everything else on stderr.
"""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import JsonOption, WorkspaceOption, say
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.text import escape_controls

if TYPE_CHECKING:
    from orchestrator.runs.workspace import Workspace

# The modules of the stages are imported within the commands: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator doctor --clean")
def doctor(
    clean: Annotated[
        bool, typer.Option("--clean", help="End what killed runs left running, and remove what killed writers left.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """The installation, the machine and the workspace: what works, what does not, and the next step. 3: an error."""
    from orchestrator.lifecycle.doctor import diagnose
    from orchestrator.runs.workspace import find_workspace
    from orchestrator.views import terminal

    try:
        place = find_workspace(workspace)
    except SpecError:
        if workspace is not None or clean:  # it was named, or it is what is to be cleaned
            raise
        place = None
    cleaned = _clean(place) if clean and place is not None else []
    found = []
    area = ""
    for each in diagnose(place):
        found.append(each)
        if as_json:
            continue
        if each.area != area:
            area = each.area
            typer.echo(area)
        typer.echo(f"  {each.severity:<8} {escape_controls(each.message)}")
        if each.remedy:
            typer.echo(f"           {escape_controls(each.remedy)}")
    if as_json:
        terminal.print_json({"findings": [dataclasses.asdict(each) for each in found], "cleaned": cleaned})
    if any(each.severity == "error" for each in found):
        raise typer.Exit(PrerequisiteError.exit_code)


def _clean(place: "Workspace") -> list[str]:
    """End and remove what was left; each thing, before it is done, in a line."""
    from orchestrator.files import cache_folder
    from orchestrator.lifecycle.orphans import orphans, remove, unfinished_files
    from orchestrator.processes.process_tree import GRACE_S

    lines = []
    for left in orphans(place):
        lines.append(f"ending what {left.run.id} left running: {left.names()}")
        say(escape_controls(lines[-1]))
        if not left.end(GRACE_S):
            say(f"warning: not all of it ended: {left.names()}")
    for path in unfinished_files(place, cache_folder()):
        lines.append(f"removing {path}")
        say(escape_controls(lines[-1]))
        remove(path)
    if not lines:
        say("nothing to clean")
    return lines
