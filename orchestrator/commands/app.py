"""The command line before it has commands; cli.py imports the modules that add them."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
import typer.core


@contextmanager
def _quiet_broken_pipe() -> Iterator[None]:
    """`orchestrator list | head` ends as in a shell; Typer would make exit code 1, a bug, of it."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from error


class _Commands(typer.core.TyperGroup):
    @_quiet_broken_pipe()
    def make_context(self, *args: Any, **keywords: Any) -> Any:  # prints --help
        return super().make_context(*args, **keywords)

    @_quiet_broken_pipe()
    def invoke(self, ctx: Any) -> Any:
        return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="A thin layer over LLaMA-Factory: run specs, reruns, and benchmarks with an honest BLEU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
