"""The program `orchestrator`, and `python -m orchestrator`: runs the command line and exits with its code.

Exit codes: 0 done; 1 a bug, with traceback; 2 the spec or the command line is wrong; 3 something is missing; 4 a
stage failed; 130 interrupted.
"""

import errno
import io
import logging
import os
import signal
import sys
from types import FrameType

from orchestrator.cli import app
from orchestrator.errors import Interrupted, OrchestratorError, PrerequisiteError
from orchestrator.processes.process import visible
from orchestrator.specs.excerpt import painted

# What the machine, not the program, is to blame for.
_NO_ROOM_OR_RIGHT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def main() -> None:
    """Run the command line."""
    _prepare_streams()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("orchestrator").setLevel(logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # Typer would make exit code 1 of a KeyboardInterrupt
    code = 0
    try:
        app()
    except (OrchestratorError, Interrupted) as error:
        code = _report(error)
    except OSError as error:
        if error.errno not in _NO_ROOM_OR_RIGHT:
            raise
        where = f": {error.filename}" if error.filename else ""
        message = f"cannot write{where}: {error.strerror}"
        code = _report(PrerequisiteError(message, "files written before are whole; make room"))
    sys.exit(code)


def _prepare_streams() -> None:
    """What the shell closed (`>&-`) is /dev/null: the next file that is opened would be what children write into."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
    # Whatever the locale: what goes into a file is YAML or JSON, and a terminal shows what it can.
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}")


def _report(error: OrchestratorError | Interrupted) -> int:
    lines = [visible(line) for line in f"error: {error.message}".split("\n")]
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        lines = [painted(line) for line in lines]
    lines += [visible(line) for line in f"  try: {error.remedy}".split("\n") if error.remedy]
    sys.stderr.write("\n".join(lines) + "\n")
    return error.exit_code


if __name__ == "__main__":
    main()
