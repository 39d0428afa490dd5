"""The program `orchestrator`, and `python -m orchestrator`: runs the command line and exits with its code.

Exit codes: 0 done; 1 a bug, with traceback; 2 the spec or the command line is wrong; 3 something is missing; 4 a
stage failed; 130 interrupted.
"""

import contextlib
import errno
import io
import logging
import os
import re
import signal
import sys

from orchestrator.cli import app
from orchestrator.errors import Interrupted, OrchestratorError, PrerequisiteError
from orchestrator.processes.interruptible import raise_interrupted
from orchestrator.text import escape_controls

# What a person can mend at a path: no right, something else there, or nothing any more.
_OF_THE_MACHINE = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY,
    errno.ELOOP, errno.ENAMETOOLONG, errno.EBUSY, errno.ESTALE,
)  # fmt: skip

# The word error, the arrow, the carets and the help of a problem in a file.
_RED = re.compile(r"^error:|^ +-->|(?<=\|) +\^+$|^ +=(?= help: )")


def main() -> None:
    """Run the command line."""
    _prepare_streams()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("orchestrator").setLevel(logging.INFO)
    # Typer would make exit code 1 of a KeyboardInterrupt.
    received = raise_interrupted(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    code = 0
    try:
        app()
    except (OrchestratorError, Interrupted) as error:
        code = _report(error)
    except OSError as error:
        code = _report(_of_the_machine(error))
    except Exception as error:
        # pydantic-core makes a SchemaError of whatever is raised while it builds a model, at an import say, and keeps
        # no context. What fails in our own cleaning up has one, and is a bug.
        if not received or error.__context__ is not None or error.__cause__ is not None:
            raise
        code = _report(received[0])
    sys.exit(code)


def _of_the_machine(error: OSError) -> PrerequisiteError:
    """What a person can mend; anything else is raised again: a bug of ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno in _OF_THE_MACHINE and error.filename):
        where = error.filename or "cannot write"
        return PrerequisiteError(
            f"{where}: {error.strerror}", "correct that and repeat the command; files written before are complete"
        )
    if error.errno == errno.ENOENT and not error.filename:  # of getcwd()
        return PrerequisiteError("the current folder is not there any more", "cd to one that is")
    raise error


def _prepare_streams() -> None:
    """What the shell closed (`>&-`) is /dev/null: the next file that is opened would be what children write into."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
    # Whatever the locale: bytes that are no text come in as surrogates, what goes into a file is YAML or JSON, and a
    # terminal shows what it can.
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _report(error: OrchestratorError | Interrupted) -> int:
    lines = [escape_controls(line) for line in f"error: {error.message}".split("\n")]
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        lines = [_RED.sub("\033[1;31m\\g<0>\033[0m", line) for line in lines]
    lines += [escape_controls(line) for line in f"  try: {error.remedy}".split("\n") if error.remedy]
    with contextlib.suppress(BrokenPipeError):  # nobody reads it any more: `launch 2>&1 | tee log`, and Ctrl-C
        sys.stderr.write("\n".join(lines) + "\n")
    return error.exit_code


if __name__ == "__main__":
    main()
