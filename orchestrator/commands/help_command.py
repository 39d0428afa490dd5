"""`help`: the pages of docs/, which come with the package."""

from typing import Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.errors import SpecError, did_you_mean
from orchestrator.files import docs_folder


@app.command("help", epilog="Example: orchestrator help specs")
def show_page(
    topic: Annotated[str | None, typer.Argument(metavar="[TOPIC]", help="A page. Default: list them.")] = None,
) -> None:
    """Print a page of the documentation."""
    pages = {path.stem: path for path in sorted(docs_folder().glob("*.md"))}
    if topic is None:
        width = max(map(len, pages))
        for name, path in pages.items():
            title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            typer.echo(f"{name:{width}}  {title}")
        return
    if topic not in pages:
        hint = did_you_mean(topic, pages) or f"; there are: {', '.join(pages)}"
        raise SpecError(f"no page {topic!r}{hint}", "orchestrator help lists the pages; a command has --help")
    typer.echo(pages[topic].read_text(encoding="utf-8"), nl=False)
