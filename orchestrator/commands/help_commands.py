"""`doctor` looks at the installation, the machine and the workspace; `help` prints pages of docs/."""

from dataclasses import asdict
from typing import Annotated

import typer
from typer import Argument, Option

from orchestrator.commands import options
from orchestrator.commands.options import app, say
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import shipped
from orchestrator.lifecycle.doctor import diagnose, names, orphans
from orchestrator.processes.process_tree import GRACE_S, alive, terminate_run
from orchestrator.runs.rundir import find_workspace
from orchestrator.views.terminal import show


@app.command(epilog="Example: orchestrator doctor --clean")
def doctor(
    clean: Annotated[bool, Option("--clean", help="End processes that killed runs left.")] = False,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Check the installation, the machine and the workspace, with the next step for each problem. Exit 3: an error."""
    try:
        place = find_workspace(workspace)
    except SpecError:
        if workspace is not None or clean:  # it was named, or it is what is to be cleaned
            raise
        place = None
    left = orphans(place) if clean and place else {}
    cleaned = [f"ending what {run} left running: {names(each)}" for run, each in left.items()]
    if clean:
        say("\n".join(cleaned) or "nothing to clean")
        terminate_run(lambda: [each for some in left.values() for each in some if alive(each)], GRACE_S)
    found, lines = list(diagnose(place)), []
    for each in found:
        lines.append(f"{each.severity:<8} {each.area}: {each.message}")
        lines += [f"         {each.remedy}"] if each.remedy else []
    show({"findings": list(map(asdict, found)), "cleaned": cleaned}, *lines, as_json=as_json)
    if any(each.severity == "error" for each in found):
        raise typer.Exit(PrerequisiteError.exit_code)


@app.command("help", epilog="Example: orchestrator help specs")
def show_page(
    topic: Annotated[str | None, Argument(metavar="[TOPIC]", help="A page. Default: list them.")] = None,
) -> None:
    """Print a page of the documentation."""
    pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted(shipped("docs").glob("*.md"))}
    if topic is None:
        for name, text in pages.items():
            typer.echo(f"{name:{max(map(len, pages))}}  {text.partition(chr(10))[0].removeprefix('# ')}")
    elif topic in pages:
        typer.echo(pages[topic], nl=False)
    else:
        hint = did_you_mean(topic, pages) or f"; there are: {', '.join(pages)}"
        raise SpecError(f"no page {topic!r}{hint}", "orchestrator help lists the pages; a command has --help")
