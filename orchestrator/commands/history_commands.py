"""Commands for the runs of a workspace: list, tags and notes, the trash, old checkpoints."""

from dataclasses import asdict
from typing import Annotated

from typer import Argument, Option

from orchestrator.commands import options
from orchestrator.commands.options import app, say
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs import registry, trash
from orchestrator.runs.registry import Notes, add_note, change_tags
from orchestrator.runs.rundir import find_workspace
from orchestrator.text import size
from orchestrator.views.terminal import note_lines, run_table, show

DryRunOption = Annotated[bool, Option("--dry-run", help="Show what would be moved or deleted; change nothing.")]
_TO_TRASH = ("to the trash", "would go to the trash")  # done, or by --dry-run


@app.command("list", epilog="Example: orchestrator list --status done --since 7d --tag good")
def list_runs(
    status: Annotated[list[str] | None, Option(help="Only runs with this status; repeatable.")] = None,
    name: Annotated[str | None, Option(help="Only runs of specs with this name; * and ? match.")] = None,
    dataset: Annotated[str | None, Option(help="Only runs that train on this dataset; * and ? match.")] = None,
    model: Annotated[str | None, Option(help="Only runs of this model: path, id or its last part; * and ?.")] = None,
    tag: Annotated[list[str] | None, Option(help="Only runs with this tag; repeatable: with all of them.")] = None,
    group: Annotated[str | None, Option(help="Only runs of this group (a sweep): its id or name.")] = None,
    since: Annotated[str | None, Option(metavar="TIME", help="Only runs since 2026-11-24, 7d, 12h or 30m.")] = None,
    sort: Annotated[str, Option(metavar="ORDER", help="created, ended or name.")] = "created",
    limit: Annotated[int | None, Option(min=1, help="Only the last N runs of that order.")] = None,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """List runs with status and scores, oldest first. --json has all of their records."""
    place = find_workspace(workspace)
    moment = registry.since(since) if since is not None else None
    group_id = place.find_group(group).id if group is not None else None
    filters = registry.Filters(status or (), name, dataset, model, tag or (), moment, group_id)
    rows, problems = registry.read_rows(place)
    for problem in problems:  # one damaged record does not hide the others
        say(f"warning: {problem}")
    found = registry.sort_rows([row for row in rows if filters.matches(row)], sort)[-(limit or 0) :]
    if found or as_json:
        show([row.as_json() for row in found], run_table(found), as_json=as_json)
    else:
        say(f"none of {len(rows)} runs in {place.runs} matches" if rows else f"no runs in {place.runs} yet")


@app.command(epilog="Example: orchestrator tag demo baseline lora-16")
def tag(
    run: options.Run,
    tags: Annotated[list[str] | None, Argument(metavar="[TAG]...", help="Tags to add; none: show them.")] = None,
    remove: Annotated[list[str] | None, Option(metavar="TAG", help="Remove this tag; repeatable.")] = None,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Add tags to a run, for `list --tag`; prints all its tags."""
    found = find_workspace(workspace).find_run(run)
    notes = change_tags(found, tags or (), remove or ()) if tags or remove else Notes.load(found)
    show({"run": found.id, "tags": notes.tags}, *[" ".join(notes.tags)] * bool(notes.tags), as_json=as_json)
    if not notes.tags:
        say(f"{found.id} has no tags")


@app.command(epilog='Example: orchestrator note demo "the learning rate was too high"')
def note(
    run: options.Run,
    text: Annotated[list[str] | None, Argument(metavar="[TEXT]...", help="The note; none: show all.")] = None,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Add a note with the current time to a run; without a text, print its notes."""
    found = find_workspace(workspace).find_run(run)
    notes = Notes.load(found) if text is None else add_note(found, " ".join(text))
    document = {"run": found.id, "notes": notes.model_dump(mode="json")["notes"]}
    show(document, *([] if text else note_lines(notes)), as_json=as_json)
    say(f"{found.id} has {len(notes.notes) or 'no'} note{'' if len(notes.notes) == 1 else 's'}")


@app.command(epilog="Example: orchestrator rm demo --dry-run")
def rm(
    runs: Annotated[list[str], Argument(metavar="RUN...", help="Runs: ids, names of specs (the newest run), latest.")],
    everything: Annotated[bool, Option("--all", help="The entire run folder, with spec and record.")] = False,
    restore: Annotated[bool, Option("--restore", help="Put back what the trash holds of them.")] = False,
    dry_run: DryRunOption = False,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Move a run's weights, data and logs to the trash. Spec, record and benchmarks stay; it can be rerun."""
    place = find_workspace(workspace)
    if restore and everything:
        raise SpecError("--all and --restore exclude each other", "--restore puts back all that the trash holds")
    if restore:
        moved = [trash.restore(place, word, dry_run=dry_run) for word in dict.fromkeys(runs)]
        _show_moved(moved, "would be back from the trash" if dry_run else "back from the trash", as_json)
        return
    found = list({run.path: run for run in map(place.find_run, runs)}.values())
    moved = trash.remove(place, found, with_record=everything, dry_run=dry_run)
    _show_moved(moved, _TO_TRASH[dry_run], as_json)


@app.command(epilog="Example: orchestrator gc --keep-last 2 --dry-run")
def gc(
    runs: Annotated[list[str] | None, Argument(metavar="[RUN]...", help="Only these runs; none: all.")] = None,
    keep_last: Annotated[int | None, Option(min=1, help="Newest checkpoints to keep. Default: 1.")] = None,
    empty_trash: Annotated[bool, Option("--trash", help="Delete what is in the trash, for good.")] = False,
    dry_run: DryRunOption = False,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Move old checkpoints of ended runs to the trash; the best and the last stay. Or empty the trash."""
    place = find_workspace(workspace)
    if empty_trash:
        if keep_last is not None:
            raise SpecError("--keep-last is for checkpoints, --trash for what is in the trash already")
        deleted = trash.empty(place, words=runs or (), dry_run=dry_run)
        _show_moved(deleted, "would be deleted" if dry_run else "deleted", as_json)
        return
    moved = []
    for run in [place.find_run(word) for word in dict.fromkeys(runs or ())] or place.all_runs():
        try:
            moved.append(trash.take_checkpoints(place, run, keep_last=keep_last or 1, dry_run=dry_run))
        except PrerequisiteError as error:
            if runs:
                raise
            say(f"left as it is: {error.message}")
    _show_moved([each for each in moved if each.what], _TO_TRASH[dry_run], as_json)


def _show_moved(moved: list[trash.Moved], where: str, as_json: bool) -> None:
    lines = []
    for each in moved:
        what = ", ".join("all of it" if name == "." else name for name in each.what)
        lines.append(f"{each.run}: {f'{what} {where}, {size(each.bytes)}' if what else 'nothing to move'}")
    total = size(sum(each.bytes for each in moved))
    if len(moved) != 1:
        lines.append(f"in all: {total} of {sum(bool(each.what) for each in moved)} runs {where}")
    show([asdict(each) for each in moved], *lines, as_json=as_json)
    if where == _TO_TRASH[0] and any(each.what for each in moved):
        say("to put it back: orchestrator rm --restore RUN; to free the disk: orchestrator gc --trash")
