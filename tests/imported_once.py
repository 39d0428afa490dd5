"""Python processes forked from one that has imported what they need: most of a start's cost is its imports.

Two such servers: our own Python with the orchestrator (`nursery`), and LLaMA-Factory's with LLaMA-Factory (`Imported`),
which takes 8 s. A fork is a process and a session of its own, with its own streams, variables and folder. No GPU is
seen, and Python reads no variables as it does at its start (workshop.py).
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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = str(ROOT / "orchestrator" / "__main__.py")
LATE = (  # what the orchestrator imports within functions
    "aiohttp", "jinja2", "numpy", "omegaconf", "openai.resources.chat", "platformdirs", "sacrebleu.metrics",
    "sacrebleu.significance", "tqdm.contrib.logging", "urllib.request",
)  # fmt: skip
MAX_BYTES = 1 << 17  # of a request: the code, with the environment
ORCHESTRATOR = """
import time
from orchestrator.__main__ import main
from orchestrator.runs import slurm
slurm._started = time.monotonic()
main()
"""
LLAMAFACTORY = """
import sys
from llamafactory.cli import main
sys.argv[0] = "llamafactory-cli"
main()
"""


class Forked:
    """As a Popen, of a process whose parent is the server."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status  # where the server writes how the process ended

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
            status = os.read(self._status, 16)
            assert status, "the server is gone"
            os.close(self._status)
            self.returncode = int(status)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Server:
    """The process that forks the others; it ends with the tests' own process."""

    def __init__(self, python: str | Path, imports: str, variables: Mapping[str, str], log: IO[bytes] | None) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(
                [str(python), __file__, str(theirs.fileno()), imports],
                env={**os.environ, **variables}, stdout=log, stderr=log,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        atexit.register(self.end)

    def start(
        self, code: str, argv: Sequence[str], cwd: Path, env: Mapping[str, str], streams: Sequence[int]
    ) -> Forked:
        """Fork a process that runs code with these variables alone, and with stdin, stdout and stderr."""
        request = json.dumps([code, list(argv), str(cwd), dict(env)]).encode()
        assert len(request) < MAX_BYTES
        ours, theirs = os.pipe()
        socket.send_fds(self._socket, [request], [*streams, theirs])
        os.close(theirs)
        pid = self._socket.recv(16)
        assert pid, "the server is gone; its log or stderr says why"
        return Forked(int(pid), ours)

    def run(
        self, code: str, argv: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: str, timeout_s: float
    ) -> "subprocess.CompletedProcess[str]":
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", newline="")) for _ in range(3)]
            given, out, err = files
            given.write(stdin)
            given.seek(0)
            forked = self.start(code, argv, cwd, env, [file.fileno() for file in files])
            stack.callback(forked.kill)  # a test's time is over, say
            status = forked.wait(timeout_s)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(argv, status, out.read(), err.read())

    def end(self) -> None:
        self._socket.close()
        self._popen.wait()


@cache
def nursery() -> Server:
    """The orchestrator's, one for all tests of a pytest process."""
    return Server(sys.executable, "orchestrator", {"OPENBLAS_NUM_THREADS": "1"}, None)  # a thread would not be forked


def start(words: Sequence[str], cwd: Path, env: Mapping[str, str], streams: Sequence[int]) -> Forked:
    return nursery().start(ORCHESTRATOR, [PROGRAM, *words], cwd, env, streams)


def run(*words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """`orchestrator WORDS` as by subprocess.run, in this process's own folder and environment."""
    return nursery().run(ORCHESTRATOR, [PROGRAM, *words], Path.cwd(), os.environ, stdin, 120)


class Imported:
    def __init__(self, python: Path, folder: Path) -> None:
        self._variables = {
            "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False",
            "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with (folder / "import.log").open("wb") as log:
            self._server = Server(python, "llamafactory", self._variables, log)
        self.end = self._server.end

    def run(
        self, code: str, *arguments: str | Path, cwd: Path, input: str = "", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """What `python -c code arguments` gives with these variables beside those that all share."""
        argv, env = ["-c", *map(str, arguments)], {**os.environ, **self._variables, **environment}
        return self._server.run(code, argv, cwd, env, input, 600)

    def script(self, script: Path, *, cwd: Path, input: str = "", **environment: str) -> Any:
        """The answer of a script of orchestrator/upstream/scripts, as ask gives it."""
        code = f"import runpy, sys\nsys.path[0] = {str(script.parent)!r}\n"
        code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
        done = self.run(code, cwd=cwd, input=input, **environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.strip().rpartition("\n")[2])

    def cli(self, *words: str | Path, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        return self.run(LLAMAFACTORY, *words, cwd=cwd, **environment)


def _import(what: str) -> None:
    """This and what follows is the server, in the Python that it forks."""
    gc.disable()
    if what == "llamafactory":
        import llamafactory.api.app
        import llamafactory.train.tuner  # noqa: F401
    else:
        import orchestrator

        for found in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
            importlib.import_module(found.name)
        for name in LATE:
            importlib.import_module(name)
        assert threading.active_count() == len([*Path("/proc/self/task").iterdir()]) == 1
    gc.freeze()  # no fork looks through what was imported
    gc.enable()


def _next_fork(requests: socket.socket) -> tuple[list[Any], list[int]] | None:
    """In each fork its request and its streams; in the server itself None, when nobody can ask any more."""
    living: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is requests:
                    message, numbers, _, _ = socket.recv_fds(requests, MAX_BYTES, 4)
                    if not message:
                        return None
                    *streams, status = numbers
                    pid = os.fork()
                    if not pid:
                        return json.loads(message), streams
                    for number in streams:
                        os.close(number)
                    watched = os.pidfd_open(pid)
                    living[watched] = pid, status
                    selector.register(watched, selectors.EVENT_READ)
                    requests.sendall(str(pid).encode())
                else:
                    pid, status = living.pop(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with contextlib.suppress(BrokenPipeError):
                        os.write(status, str(code).encode())
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    os.close(status)


def _become(argv: list[str], cwd: str, env: dict[str, str], streams: list[int]) -> None:
    """What exec and the start of Python would do."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0] = cwd
    sys.argv = argv
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # strict, as in most locales
    # The same objects: a logger that was made before writes to them, and must not do so in between.
    sys.stdout.reconfigure(encoding="utf-8")
    sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    tempfile.tempdir = None


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    _requests = socket.socket(fileno=int(sys.argv[1]))
    _import(sys.argv[2])
    if _found := _next_fork(_requests):
        (_code, *_rest), _streams = _found
        _requests.detach()
        _become(*_rest, _streams)
        exec(compile(_code, "<forked>", "exec"), {"__name__": "__main__"})
