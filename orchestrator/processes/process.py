"""Child processes: start, watch, stop. The only module that starts any.

Covered: argv lists (never a shell); stdin closed; output appended to a log file, never a pipe that nobody reads;
a session of its own, so that a terminal's Ctrl-C reaches us alone and we decide; on Linux a child gets a signal
when we die, however we die; stopping reaches torchrun's workers, which live in sessions of their own, and what a
child that ended by itself left behind in its session.
Not covered: machines without sessions and process groups (Windows).
"""

import ctypes
import os
import select
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.processes import family
from orchestrator.text import escape_controls

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# They would change what LLaMA-Factory is (USE_V1), hide a wrong argument, or write elsewhere.
_NOT_INHERITED = ("USE_V1", "ALLOW_EXTRA_ARGS", "LLAMABOARD_ENABLED", "LLAMABOARD_WORKDIR")


@dataclass
class Child:
    """A running child process with its log."""

    argv: list[str]
    cwd: Path
    log: Path
    log_start_bytes: int
    """Where this child's output begins in the log."""
    popen: "subprocess.Popen[bytes]"
    word: str
    """In the environment of all that it starts."""
    watcher: "subprocess.Popen[bytes] | None" = None
    """watch.py: when its stdin closes, because we do it or because we die, it ends what is left of the session."""

    @property
    def pid(self) -> int:
        return self.popen.pid

    def poll(self) -> int | None:
        """The exit status, or None while the child runs; a negative number is the signal that ended it."""
        return self.popen.poll()

    def wait(self, timeout_s: float) -> None:
        """Sleep, but not beyond the child's end; where the system cannot tell that end, the whole time."""
        if self.poll() is not None:
            return
        try:
            descriptor = os.pidfd_open(self.pid) if sys.platform == "linux" else None
        except OSError:  # a kernel before 5.3, or a sandbox
            descriptor = None
        if descriptor is None:
            time.sleep(timeout_s)
            return
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(timeout_s * 1000)
        finally:
            os.close(descriptor)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of this child's own output, control characters made visible."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.log_start_bytes, size - 64 * 1024))
            text = file.read().decode("utf-8", "replace")
        # A progress bar redraws its line with \r: only what it showed last counts.
        shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n") if line.strip()]
        return "\n".join(f"  | {escape_controls(line)}" for line in shown[-lines:]) or "  | (no output)"

    def log_holds(self, *texts: str) -> bool:
        """Whether this child's own output holds one of some texts."""
        with self.log.open("rb") as file:
            file.seek(self.log_start_bytes)
            return any(text.encode() in line for line in file for text in texts)

    def stop(self, grace_s: float, is_enough: Callable[[], bool] = lambda: False) -> int:
        """Ask the child to end (SIGTERM), wait, then kill what is left of it and its descendants.

        Args:
            grace_s: how long it is waited for.
            is_enough: asked meanwhile whether there is nothing more to wait for.

        Returns:
            The exit status.
        """
        is_ours = self.poll() is None or not psutil.pid_exists(self.pid)  # of a living session no pid is used again
        left = family.end(lambda: family.child_family(self.pid if is_ours else None, self.word), grace_s, is_enough)
        status = self.popen.wait()
        family.wait_until_gone(left)
        if self.watcher is not None:
            self.watcher.communicate()
        return status


def start(
    argv: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    env: Mapping[str, str],
    death_signal: int | None,
    watched: bool = False,
    held: Sequence[int] = (),
) -> Child:
    """Start a child whose output goes to the end of a log file.

    Args:
        argv: program and arguments.
        log: file that stdout and stderr are appended to.
        cwd: the child's working folder.
        env: the child's whole environment.
        death_signal: what the child gets when this process dies without stopping it (Linux only). None: nothing, it
            is meant to outlive us.
        watched: whether a second process waits for our death, to end what the child has started by then (torchrun
            and its ranks, which no death signal of ours reaches).
        held: files that this second process keeps open until then: locks of what the child uses.

    Raises:
        PrerequisiteError: the program cannot be started.
    """
    parent, word = os.getpid(), uuid.uuid4().hex

    def die_with_parent() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal or 0, 0, 0, 0)
            if os.getppid() != parent:  # it died in between
                os._exit(1)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        begin = output.tell()
        try:
            popen = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env={**env, family.CHILD_ENV: word},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent if death_signal is not None else None,
            )
        except (FileNotFoundError, PermissionError) as error:
            raise PrerequisiteError(f"{argv[0]} cannot be started: {error.strerror}") from error
    return Child(list(argv), cwd, log, begin, popen, word, _watch(popen.pid, word, env, held) if watched else None)


def _watch(leader: int, word: str, env: Mapping[str, str], held: Sequence[int]) -> "subprocess.Popen[bytes]":
    package = Path(__file__).resolve().parent.parent
    run = {family.RUN_ENV: env[family.RUN_ENV]} if family.RUN_ENV in env else {}
    return subprocess.Popen(
        [sys.executable, "-m", f"{package.name}.processes.watch", str(leader), word],
        env={**os.environ, **run, "PYTHONPATH": str(package.parent)},
        pass_fds=held,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # neither a terminal's Ctrl-C nor its end is for it
    )


def by_hand(cwd: Path, argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """The line for a shell that does again what a child was started for."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return f"to repeat it by hand: cd {shlex.quote(str(cwd))} && {' '.join([*assignments, shlex.join(argv)])}"


def child_environment(program: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment for a child of LLaMA-Factory's, with `extra`, and PATH led by the program's own folder.

    LLaMA-Factory's launcher looks torchrun up on PATH; another environment's torchrun would be the wrong one.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    path = os.pathsep.join([str(program.parent), inherited.get("PATH", os.defpath)])
    return {**inherited, "PATH": path, **extra}


def run_short(
    argv: Sequence[str],
    *,
    timeout_s: float = 30,
    cwd: Path | None = None,
    input_text: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program that answers at once; its stdout as text.

    Args:
        argv: program and arguments.
        timeout_s: how long it may take.
        cwd: its working folder; ours by default.
        input_text: what it reads from stdin.
        environment: variables set beside ours.

    Raises:
        PrerequisiteError: it is not there.
        StageError: it fails or takes too long.
    """
    return run_short_bytes(argv, timeout_s=timeout_s, cwd=cwd, input_text=input_text, environment=environment).decode(
        "utf-8", "replace"
    )


def run_short_bytes(
    argv: Sequence[str],
    *,
    timeout_s: float = 30,
    cwd: Path | None = None,
    input_text: str = "",
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """The same; its stdout as it is."""
    try:
        done = subprocess.run(
            list(argv),
            cwd=cwd,
            env={**os.environ, **environment} if environment else None,
            input=input_text.encode(),
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise PrerequisiteError(f"{argv[0]} cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise StageError(f"{argv[0]} did not answer within {timeout_s:g} s") from error
    if done.returncode != 0:
        said = escape_controls(done.stderr.decode("utf-8", "replace").strip())[-400:]
        raise StageError(f"{argv[0]} ended with status {done.returncode}: {said}")
    return done.stdout
