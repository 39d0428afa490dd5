"""The program `orchestrator`, and `python -m orchestrator`: runs the command line and exits with its code.

Exit codes: 0 done; 1 a bug, with traceback; 2 the spec or the command line is wrong; 3 something is missing; 4 a
stage failed; 130 interrupted.
"""

import contextlib
import errno
import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import __version__
from orchestrator.commands.options import app
from orchestrator.errors import Interrupted, OrchestratorError, PrerequisiteError
from orchestrator.processes.interruptible import raise_interrupted
from orchestrator.text import escape_controls


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"orchestrator {__version__}")
        raise typer.Exit


class _Escaping(logging.Formatter):
    """A log line may hold a stranger's text: a model's name, say, as a server gives it."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(escape_controls, super().format(record).split("\n")))


def main() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller, such as 2>&-: the exit code stays what it is
            setattr(sys, name, Path(os.devnull).open(mode))
    # Bytes that are no text come in as surrogates, and a terminal shows what it can.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Escaping("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("orchestrator").setLevel(logging.INFO)
    # Typer would make exit code 1 of a KeyboardInterrupt.
    raise_interrupted(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    code = 0
    try:
        app()
    except (OrchestratorError, Interrupted) as error:
        code = _report(error)
    except OSError as error:
        if not error.filename and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):  # a bug of ours
            raise
        where = "the current folder" if error.errno == errno.ENOENT else "cannot write"  # ENOENT: of getcwd
        what = f"{error.filename or where}: {error.strerror}"
        code = _report(PrerequisiteError(what, "correct that and repeat the command"))
    sys.exit(code)


def _report(error: OrchestratorError | Interrupted) -> int:
    text = f"error: {error.message}" + (f"\n  try: {error.remedy}" if error.remedy else "")
    with contextlib.suppress(BrokenPipeError):  # nobody reads it any more: `launch 2>&1 | tee log`, and Ctrl-C
        sys.stderr.write("".join(f"{escape_controls(line)}\n" for line in text.split("\n")))
    return error.exit_code


if __name__ == "__main__":
    main()
