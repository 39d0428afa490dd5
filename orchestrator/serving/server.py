"""A plan in, an Endpoint out, for the length of a with-block: a server of ours as a child.

Covered: a port that is free; a random API key; a model name that says what is served, checked when it answers;
waiting until GET /v1/models answers; a child that dies early is reported at once with its log's tail; the child is
gone on every way out of the block, and if we are killed (Linux).
Not covered: which program, with what arguments (upstream/llamafactory_server.py); several replicas, restarts,
servers of others (client.py takes their URL).
Leaves the plan's files and the log, where it is told to.
"""

import json
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.files import atomic_write
from orchestrator.processes.interruptible import defer_signals
from orchestrator.processes.process import Child, child_environment, repro_command, start
from orchestrator.processes.process_tree import FOLDERS_ENV, RUN_ENV
from orchestrator.serving.endpoint import Endpoint, list_models

GRACE_S = 10  # uvicorn waits for requests under way without a limit, and generate cannot be interrupted
POLL_S = 0.2


def new_api_key() -> str:
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class ServePlan:
    """What is started, where its files go, and how to tell that it is this server that answers."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    """Variables of the server, but its key."""
    key_variable: str
    """The variable that it reads its key from: a command line can be read by everybody."""
    files: Mapping[Path, str]
    """Path -> text: what the program is given, written before it starts."""
    log: Path
    """The program's working folder is the log's."""
    host: str
    port: int
    model_names: Mapping[str, str]
    """Our name of a checkpoint -> what the server calls it; the first is what is asked where nothing is said."""
    also_listed: frozenset[str] = frozenset()
    """Names that it lists besides."""
    api_key: str = field(default_factory=new_api_key, repr=False)
    start_timeout_s: float = 900
    run: Path | None = None
    """The run that the server is a part of; its processes bear that in their environment."""
    reads: Sequence[str] = ()
    """Folders that it serves from, which may not be moved away under it; its processes bear them too."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """What its log may say before it dies -> what to do about that."""

    @property
    def model_name(self) -> str:
        return next(iter(self.model_names.values()))

    @property
    def base_url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"


@dataclass(frozen=True)
class Server:
    """A server of ours that is ready."""

    endpoint: Endpoint
    child: Child
    endpoints: Mapping[str, Endpoint]
    """By our names of the checkpoints."""

    def ended(self) -> str:
        """How it ended, with its log's tail; '' while it runs."""
        status = self.child.poll()
        if status is None:
            return ""
        return f"the server ended with status {status}. Last lines of {self.child.log}:\n{self.child.log_tail()}"


@contextmanager
def serve(plan: ServePlan) -> Iterator[Server]:
    """Serve while the block lasts.

    Raises:
        PrerequisiteError: the port is taken.
        StageError: the server died before it answered, took too long, or serves something else; or it died later,
            and the block failed for it.
    """
    check_port(plan.host, plan.port)
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    for path, text in plan.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text)
    folders = json.dumps([*plan.reads, str(plan.log.parent)])
    own = {plan.key_variable: plan.api_key, FOLDERS_ENV: folders} | (
        {} if plan.run is None else {RUN_ENV: str(plan.run)}
    )
    child = None
    try:
        with defer_signals():
            child = start(
                plan.argv,
                log=plan.log,
                cwd=plan.log.parent,
                env=child_environment(Path(plan.argv[0]), {**plan.environment, **own}),
                death_signal=signal.SIGKILL,
                watched=True,  # engines have processes of their own, which no death signal of ours reaches
            )
        endpoints = {ours: Endpoint(plan.base_url, plan.api_key, name) for ours, name in plan.model_names.items()}
        server = Server(next(iter(endpoints.values())), child, endpoints)
        _wait_until_ready(server, plan)
        yield server
    except StageError as error:
        if (ended := server.ended()) and ended not in error.message:
            raise StageError(f"{error.message}\n{ended}", error.remedy) from error
        raise
    finally:
        if child is not None:
            child.stop(GRACE_S)


def how_to_ask(endpoint: Endpoint) -> str:
    """A curl line and an OpenAI-client line that work as they are."""
    body = json.dumps({"model": endpoint.model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64})
    curl = [
        "curl", f"{endpoint.base_url}/chat/completions",
        "-H", "Content-Type: application/json",
        "-H", f"Authorization: Bearer {endpoint.api_key}",
        "-d", body,
    ]  # fmt: skip
    python = (
        f"from openai import OpenAI; print(OpenAI(base_url={endpoint.base_url!r}, api_key={endpoint.api_key!r})"
        f".chat.completions.create(model={endpoint.model!r}, max_tokens=64, "
        "messages=[{'role': 'user', 'content': 'Hello!'}]).choices[0].message.content)"
    )
    return f"{shlex.join(curl)}\n{shlex.join([sys.executable, '-c', python])}"  # our Python has openai


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(host: str, port: int) -> None:
    """PrerequisiteError where a port is taken: LLaMA-Factory itself finds out only after loading the model."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn: a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PrerequisiteError(
                f"port {port} on {host} cannot be had: {error.strerror}",
                "stop what listens there, or take another: --port N, or serve.port in the spec",
            ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _wait_until_ready(server: Server, plan: ServePlan) -> None:
    child = server.child
    remedy = repro_command(child.cwd, child.argv, plan.environment)
    deadline = time.monotonic() + plan.start_timeout_s
    while True:
        if ended := server.ended():
            said = [what for words, what in plan.advice.items() if words in child.log_tail(200)]
            raise StageError(f"before it was ready {ended}", "; ".join([*said[:1], remedy]))
        if time.monotonic() > deadline:
            raise StageError(
                f"the server did not answer within {plan.start_timeout_s:g} s. "
                f"Last lines of {plan.log}:\n{child.log_tail()}",
                f"a large model takes longer: serve.start_timeout_s in the spec; {remedy}",
            )
        try:
            served = list_models(server.endpoint, timeout_s=5)
        except PrerequisiteError as error:  # its remedies are for servers of others
            raise StageError(f"{error.message}. Last lines of {plan.log}:\n{child.log_tail()}", remedy) from error
        if served is not None:
            break
        time.sleep(POLL_S)  # the port is bound once the model is loaded
    if set(served) != {*plan.model_names.values(), *plan.also_listed}:
        raise StageError(
            f"what answers on {plan.base_url} serves {', '.join(served) or 'nothing'}, not {plan.model_name}: "
            "another server took the port",
            "give another one: --port N, or serve.port in the spec",
        )
