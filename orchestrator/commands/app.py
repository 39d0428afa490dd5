"""The program's command line, before it has commands.

Not covered: the commands (cli.py names their modules); errors, signals and exit codes (__main__.py).
"""

import os
import signal
import sys
from typing import Annotated, Any

import typer
import typer.core

from orchestrator import __version__


class _Commands(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # `orchestrator list | head`; Typer would make exit code 1, a bug, of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + signal.SIGPIPE) from error


app = typer.Typer(
    cls=_Commands,
    help="A thin layer over LLaMA-Factory: run specs, reruns, and benchmarks with an honest BLEU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"orchestrator {__version__}")
        raise typer.Exit
