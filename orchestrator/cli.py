"""The command line with all its commands, in the order in which --help lists them."""

from typing import Annotated

import typer

from orchestrator import __version__

from orchestrator.commands import spec_commands as spec_commands  # isort: skip
from orchestrator.commands import run_commands as run_commands  # isort: skip
from orchestrator.commands import history_commands as history_commands  # isort: skip
from orchestrator.commands import benchmark_commands as benchmark_commands  # isort: skip
from orchestrator.commands import model_commands as model_commands  # isort: skip
from orchestrator.commands import help_commands as help_commands  # isort: skip
from orchestrator.commands.app import app as app


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"orchestrator {__version__}")
        raise typer.Exit
