"""Processes of the orchestrator forked from one that has imported everything: most of a start's cost is its imports.

Covered: each command is a process and a session of its own, with its streams, environment, working folder, signals and
exit status, and with modules that nothing has used yet.
Not covered: the start itself, and what Python makes of its environment then (workshop.py starts such commands afresh).
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LATE = (
    "aiohttp", "jinja2", "numpy", "omegaconf", "openai.resources.chat", "platformdirs", "sacrebleu.metrics",
    "sacrebleu.significance", "tqdm.contrib.logging", "urllib.request",
)  # fmt: skip
"""What the orchestrator imports within functions."""
CAN_FORK = hasattr(os, "pidfd_open")  # Linux
LARGEST = 1 << 17  # bytes; of a command with its environment


class Forked:
    """As a Popen, of a process whose parent is the nursery."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status
        """Where the nursery writes how the process ended."""

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            said = os.read(self._status, 16)
            assert said, "the nursery is gone"
            os.close(self._status)
            self.returncode = int(said)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """The process that forks the others; it ends with the tests' own process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # a thread would not be forked
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self.end)

    def start(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], streams: Sequence[int]) -> Forked:
        """Fork `orchestrator WORDS`, with stdin, stdout and stderr."""
        asked = json.dumps([list(words), str(cwd), dict(env)]).encode()
        assert len(asked) < LARGEST
        ours, theirs = os.pipe()
        socket.send_fds(self._socket, [asked], [*streams, theirs])
        os.close(theirs)
        pid = self._socket.recv(16)
        assert pid, "the nursery is gone; what it said is on stderr"
        return Forked(int(pid), ours)

    def end(self) -> None:
        self._socket.close()
        self._popen.wait()


@cache
def nursery() -> Nursery:
    """One for all tests of a pytest process."""
    return Nursery()


def run(*words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """As subprocess.run, in this process's own folder and environment."""
    if not CAN_FORK:
        argv = [sys.executable, "-m", "orchestrator", *words]
        return subprocess.run(argv, capture_output=True, text=True, input=stdin, timeout=120)
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", newline="")) for _ in range(3)]
        given, out, err = files
        given.write(stdin)
        for file in files:
            file.seek(0)
        code = nursery().start(words, Path.cwd(), os.environ, [file.fileno() for file in files]).wait(120)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


class _Asked(NamedTuple):
    words: list[str]
    cwd: str
    env: dict[str, str]
    streams: list[int]


def _asked_for(asking: socket.socket) -> _Asked | None:
    """In each child what it is to do; in the nursery None, when nobody can ask any more."""
    living: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(asking, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is asking:
                    message, numbers, _, _ = socket.recv_fds(asking, LARGEST, 4)
                    if not message:
                        return None
                    *streams, status = numbers
                    pid = os.fork()
                    if not pid:
                        return _Asked(*json.loads(message), streams)
                    for number in streams:
                        os.close(number)
                    watched = os.pidfd_open(pid)
                    living[watched] = pid, status
                    selector.register(watched, selectors.EVENT_READ)
                    asking.sendall(str(pid).encode())
                else:
                    pid, status = living.pop(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with contextlib.suppress(BrokenPipeError):
                        os.write(status, str(code).encode())
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    os.close(status)


def _become(asked: _Asked) -> None:
    """What exec and the start of Python would do."""
    os.setsid()
    for number, stream in enumerate(asked.streams):
        os.dup2(stream, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(asked.cwd)
    os.environ.clear()
    os.environ.update(asked.env)
    sys.path[0] = asked.cwd
    sys.argv = [str(ROOT / "orchestrator" / "__main__.py"), *asked.words]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # strict, as in most locales
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    tempfile.tempdir = None
    slurm._started = time.monotonic()


if __name__ == "__main__":
    import orchestrator
    from orchestrator.__main__ import main
    from orchestrator.runs import slurm

    for found in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
        importlib.import_module(found.name)
    for name in LATE:
        importlib.import_module(name)
    assert threading.active_count() == len([*Path("/proc/self/task").iterdir()]) == 1
    gc.freeze()
    asking = socket.socket(fileno=int(sys.argv[1]))
    if asked := _asked_for(asking):
        asking.detach()
        _become(asked)
        main()
