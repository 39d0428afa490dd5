"""Commands that keep the runs in order: tags and notes, the trash, old checkpoints.

Flags in, one call, results on stdout, everything else on stderr.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import JsonOption, RunArgument, WorkspaceOption, say
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.text import escape_controls

if TYPE_CHECKING:
    from orchestrator.runs.trash import Moved

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be moved or deleted, and do nothing.")]

# The modules behind the commands are imported within them: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator tag demo baseline lora-16")
def tag(
    run: RunArgument,
    tags: Annotated[list[str] | None, typer.Argument(metavar="[TAG]...", help="Tags to give it; none: show.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Take this tag from it; repeatable.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a run tags, by which `list --tag` finds it; prints those that it has then."""
    from orchestrator.runs.notes import Notes, change_tags
    from orchestrator.runs.workspace import find_workspace
    from orchestrator.views import terminal

    found = find_workspace(workspace).find_run(run)
    notes = change_tags(found, tags or (), remove or ()) if tags or remove else Notes.load(found)
    if as_json:
        terminal.print_json({"run": found.id, "tags": notes.tags})
    elif notes.tags:
        typer.echo(escape_controls(" ".join(notes.tags)))
    else:
        say(f"{found.id} has no tags")


@app.command(epilog='Example: orchestrator note demo "the learning rate was too high"')
def note(
    run: RunArgument,
    text: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="The note; none: show all.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Append a note to a run, with the time; without a text, print its notes."""
    from orchestrator.runs.notes import Notes, add_note
    from orchestrator.runs.workspace import find_workspace
    from orchestrator.views import terminal

    found = find_workspace(workspace).find_run(run)
    notes = Notes.load(found) if text is None else add_note(found, " ".join(text))
    if as_json:
        terminal.print_json({"run": found.id, "notes": notes.model_dump(mode="json")["notes"]})
    elif text is not None:
        say(f"{found.id} has {len(notes.notes)} note{'s' if len(notes.notes) > 1 else ''}")
    elif notes.notes:
        terminal.print_notes(notes)
    else:
        say(f"{found.id} has no notes")


@app.command(epilog="Example: orchestrator rm demo --dry-run")
def rm(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs: ids, spec's names (the newest run), latest.")
    ],
    whole: Annotated[bool, typer.Option("--all", help="The whole run folder, its spec and record too.")] = False,
    restore: Annotated[bool, typer.Option("--restore", help="Put back what the trash holds of them.")] = False,
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a run's weights, data and logs to the trash. Its spec, record and benchmarks stay; it can be run again."""
    from orchestrator.runs import trash
    from orchestrator.runs.workspace import find_workspace

    place = find_workspace(workspace)
    if restore and whole:
        raise SpecError("--all and --restore exclude each other", "--restore puts back all that the trash holds")
    if restore:
        moved = [trash.restore(place, word, dry_run=dry_run) for word in dict.fromkeys(runs)]
        _print_moved(moved, "would be back from the trash" if dry_run else "back from the trash", as_json)
        return
    found = list({run.path: run for run in map(place.find_run, runs)}.values())
    moved = trash.remove(place, found, whole=whole, dry_run=dry_run)
    _print_moved(moved, "would go to the trash" if dry_run else "to the trash", as_json)
    if not dry_run and any(each.what for each in moved):
        say("orchestrator rm --restore RUN puts it back; the disk is free after: orchestrator gc --trash")


@app.command(epilog="Example: orchestrator gc --keep-last 2 --dry-run")
def gc(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Only these runs; none: all.")] = None,
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="How many of the newest checkpoints stay. Default: 1.")
    ] = None,
    empty_trash: Annotated[bool, typer.Option("--trash", help="Delete what is in the trash, for good.")] = False,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="With --trash: only what was put there before: 7d, 12h, 2026-11-24."),
    ] = None,
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move old checkpoints of runs that have ended to the trash; the best and the last stay. Or empty the trash."""
    from orchestrator.runs import in_use, registry, trash
    from orchestrator.runs.workspace import find_workspace

    place = find_workspace(workspace)
    if empty_trash:
        if keep_last is not None:
            raise SpecError("--keep-last is for checkpoints, --trash for what is in the trash already")
        before = registry.since(older_than) if older_than is not None else None
        deleted = trash.empty(place, before=before, words=runs or (), dry_run=dry_run)
        _print_moved(deleted, "would be deleted" if dry_run else "deleted", as_json)
        return
    if older_than is not None:
        raise SpecError("--older-than is for what is in the trash", "orchestrator gc --trash --older-than 7d")
    users = in_use.process_users()
    moved = []
    for run in [place.find_run(word) for word in dict.fromkeys(runs or ())] or place.all_runs():
        try:
            moved.append(trash.take_checkpoints(place, run, users, keep_last=keep_last or 1, dry_run=dry_run))
        except PrerequisiteError as error:
            if runs:
                raise
            say(f"left as it is: {escape_controls(error.message)}")
    found = [each for each in moved if each.what or each.left]
    _print_moved(found, "would go to the trash" if dry_run else "to the trash", as_json)
    if found and not dry_run:
        say("orchestrator rm --restore RUN puts them back; the disk is free after: orchestrator gc --trash")


def _print_moved(moved: "list[Moved]", where: str, as_json: bool) -> None:
    from orchestrator.views import terminal

    if as_json:
        terminal.print_json([asdict(each) for each in moved])
        return
    for each in moved:
        what = ", ".join("all of it" if name == "." else name for name in each.what)
        said = f"{what} {where}, {_bytes(each.bytes)}" if each.what else "nothing to move"
        typer.echo(escape_controls(f"{each.run}: {said}"))
        for line in each.left:
            typer.echo(escape_controls(f"  left: {line}"))
    if len(moved) != 1:
        total = sum(each.bytes for each in moved)
        typer.echo(f"in all: {_bytes(total)} of {sum(1 for each in moved if each.what)} runs {where}")


def _bytes(count: int) -> str:
    """'1.2 GB (1234567890 bytes)'."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit} ({count} bytes)"
    return f"{count} bytes"
