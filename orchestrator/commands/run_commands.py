"""Commands around all runs: list them.

Flags in, one call, results on stdout, everything else on stderr.
"""

from typing import Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import JsonOption, WorkspaceOption, say
from orchestrator.text import escape_controls

# The modules of the stages are imported within the commands: --help and a mistyped flag answer at once.


@app.command("list", epilog="Example: orchestrator list --status done --since 7d --sort bleu")
def list_runs(
    status: Annotated[list[str] | None, typer.Option(help="Only runs of this status; repeatable.")] = None,
    name: Annotated[str | None, typer.Option(help="Only runs of specs of this name; * and ? may stand in it.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only runs that train on this dataset; * and ? too.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Only runs of this model, by its folder or id or the last part of it; * and ? too."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only runs with this tag; repeatable: with all of them.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Only runs of this group, a sweep: by its id or name.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only runs made since: 2026-11-24, 7d, 12h or 30m.")
    ] = None,
    sort: Annotated[
        str,
        typer.Option(metavar="ORDER", help="created, ended, or the best first: bleu, chrf or ter, or bleu:TESTSET."),
    ] = "created",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many: the newest, or in an order by a score the best.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs with status and scores, the oldest first."""
    from orchestrator.runs import registry
    from orchestrator.runs.groups import find_group
    from orchestrator.runs.workspace import find_workspace
    from orchestrator.views import terminal

    place = find_workspace(workspace)
    moment = registry.since(since) if since is not None else None
    group_id = find_group(place, group).id if group is not None else None
    filters = registry.Filters(status or (), name, dataset, model, tag or (), moment, group_id)
    filters.check()
    rows, problems = registry.read_rows(place)
    for problem in problems:  # one damaged record does not hide the others
        say(f"warning: {escape_controls(problem)}")
    found = registry.sort_rows([row for row in rows if filters.matches(row)], sort, limit)
    for note in found.notes:
        say(escape_controls(note))
    if as_json:
        terminal.print_json(list(registry.rows_json(place, found.rows)))
    elif found.rows:
        terminal.print_runs(found.rows)
    elif rows:
        say(f"none of {len(rows)} runs in {place.runs} is such a run")
    else:
        say(f"no runs in {place.runs} yet: orchestrator launch SPEC")
