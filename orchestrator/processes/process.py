"""Child processes: start, watch, stop. The only module that starts any.

A child is a session of its own, without a terminal and stdin, and its output goes to a log file: a pipe that nobody
reads would block it. Never a shell.
"""

import ctypes
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.processes.process_tree import CHILD_ENV, RUN_ENV, child_processes, terminate, wait_until_gone
from orchestrator.text import escape_controls

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
# They would change what LLaMA-Factory is (USE_V1), hide a wrong argument, or write elsewhere.
_NOT_INHERITED = ("USE_V1", "ALLOW_EXTRA_ARGS", "LLAMABOARD_ENABLED", "LLAMABOARD_WORKDIR")


def own_argv(*words: str, module: str = "") -> list[str]:
    """How this package starts itself: its command line, or a module with a main of its own (processes.watch)."""
    # -P: what lies in the current folder (a psutil.py, another orchestrator) is not imported
    return [sys.executable, "-P", "-m", ".".join(filter(None, ["orchestrator", module])), *words]


@dataclass
class Child:
    """A running child process with its log."""

    argv: list[str]
    cwd: Path
    log: Path
    log_start_bytes: int  # where this child's output begins in the log
    popen: "subprocess.Popen[bytes]"
    marker: str  # in the environment of all that it starts
    watcher: "subprocess.Popen[bytes] | None" = None  # ends what is left of the child when its stdin closes: watch.py

    @property
    def pid(self) -> int:
        return self.popen.pid

    def poll(self) -> int | None:
        """The exit status, or None while it runs; a negative number is the signal that ended it."""
        return self.popen.poll()

    def wait(self, timeout_s: float) -> None:
        """Sleep, but not beyond the child's end."""
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout_s)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of this child's own output, control characters made visible."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.log_start_bytes, size - 64 * 1024))
            text = file.read().decode("utf-8", "replace")
        # A progress bar redraws its line with \r: only what it showed last counts.
        shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n") if line.strip()]
        return "\n".join(f"  | {escape_controls(line)}" for line in shown[-lines:]) or "  | (no output)"

    def log_holds(self, text: str) -> bool:
        """Whether a line of this child's own output holds a text."""
        with self.log.open("rb") as file:
            file.seek(self.log_start_bytes)
            return any(text.encode() in line for line in file)

    def stop(self, grace_s: float, is_enough: Callable[[], bool] = lambda: False) -> int:
        """Ask the child to end (SIGTERM), wait, then kill what is left of it and its descendants; the exit status."""
        is_ours = self.poll() is None or not psutil.pid_exists(self.pid)  # of a living session no pid is used again
        left = terminate(lambda: child_processes(self.pid if is_ours else None, self.marker), grace_s, is_enough)
        status = self.popen.wait()
        wait_until_gone(left)
        if self.watcher is not None:
            self.watcher.communicate()
        return status


def start(
    argv: Sequence[str], *, log: Path, cwd: Path | None, env: Mapping[str, str], death_signal: int | None,
    watched: bool = False, locks: Sequence[int] = (), pass_fds: Sequence[int] = (),
) -> Child:  # fmt: skip
    """Start a child whose output goes to the end of a log file. Nothing of our environment is added to `env`.

    death_signal: what the child gets when this process dies without stopping it (Linux only); None: it outlives us.
    watched: a second process, which keeps `locks` open, waits for our death to end what the child has started: torchrun
    and its ranks. pass_fds: files that the child keeps open. Raises PrerequisiteError: the program cannot be started.
    """
    parent, marker = os.getpid(), uuid.uuid4().hex

    def die_with_parent() -> None:
        if _LIBC is not None:
            _LIBC.prctl(1, death_signal or 0, 0, 0, 0)  # PR_SET_PDEATHSIG of linux/prctl.h
            if os.getppid() != parent:  # it died in between
                os._exit(1)

    log.parent.mkdir(parents=True, exist_ok=True)
    # a link would have us write to a file outside of the run
    with open(log, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666)) as output:
        begin = output.tell()
        try:
            popen = subprocess.Popen(
                list(argv), cwd=cwd, env={**env, CHILD_ENV: marker}, pass_fds=pass_fds, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent if death_signal is not None else None,
            )  # fmt: skip
        except (FileNotFoundError, PermissionError) as error:
            raise PrerequisiteError(f"{argv[0]} cannot be started: {error.strerror}") from error
    child = Child(list(argv), cwd or Path.cwd(), log, begin, popen, marker)
    if watched:
        child.watcher = subprocess.Popen(
            own_argv(str(popen.pid), marker, module="processes.watch"),
            env={**os.environ, **({RUN_ENV: env[RUN_ENV]} if RUN_ENV in env else {})}, pass_fds=locks,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,  # neither a terminal's Ctrl-C nor its end is for it
        )  # fmt: skip
    return child


def repro_command(cwd: Path, argv: Sequence[str], environment: Mapping[str, str]) -> str:
    assignments = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return f"to repeat it by hand: cd {shlex.quote(str(cwd))} && {' '.join([*assignments, shlex.join(argv)])}"


def child_environment(program: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment with `extra`. LLaMA-Factory's launcher looks torchrun up on PATH: its own folder comes first."""
    inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    path = os.pathsep.join([str(program.parent), inherited.get("PATH", os.defpath)])
    return {**inherited, "PATH": path, **extra}


def run_short(
    argv: Sequence[str], *, timeout_s: float = 30, input_text: str = "",
    environment: Mapping[str, str] | None = None, errors: str = "replace",
) -> str:  # fmt: skip
    """A program's stdout, decoded from UTF-8 by `errors`; PrerequisiteError: it is not there; StageError: it fails."""
    env = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(list(argv), env=env, input=input_text.encode(), capture_output=True, timeout=timeout_s)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise PrerequisiteError(f"{argv[0]} cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise StageError(f"{argv[0]} did not answer within {timeout_s:g} s") from error
    if done.returncode != 0:
        message = done.stderr.decode("utf-8", "replace").strip()[-400:]
        raise StageError(f"{argv[0]} ended with status {done.returncode}: {escape_controls(message)}")
    return done.stdout.decode("utf-8", errors)
