"""A checkpoint in, an Endpoint out, for the length of a with-block: `llamafactory-cli api` as a child.

Covered: a port that is free; a random API key; a model name that says what is served, checked when it answers;
waiting until GET /v1/models answers; a child that dies early is reported at once with its log's tail; the child is
gone on every way out of the block, and if we are killed (Linux).
Not covered: several replicas, restarts, servers of others (client.py takes their URL).
Leaves api.yaml and the log, where it is told to.
"""

import json
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.benchmark.client import Endpoint, list_models
from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.processes.family import RUN_ENV
from orchestrator.processes.interruptible import uninterrupted
from orchestrator.processes.process import Child, by_hand, child_environment, start
from orchestrator.runs.rundir import atomic_write
from orchestrator.specs.render import Checkpoint, Renderer, api_arguments
from orchestrator.specs.spec import ServeSpec
from orchestrator.upstream.installation import Installation

GRACE_S = 10  # uvicorn waits for requests under way without a limit, and generate cannot be interrupted
POLL_S = 0.2


def new_api_key() -> str:
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class ServePlan:
    """What is served, how, and where its files go."""

    checkpoint: Checkpoint
    settings: ServeSpec
    model_name: str
    """What the server calls the model: run and adapter hash, so that an answer can be told to come from it."""
    api_yaml: Path
    log: Path
    port: int
    api_key: str = field(default_factory=new_api_key, repr=False)
    devices: str | None = None
    run: Path | None = None
    """The run that the server is a part of; its processes bear that in their environment."""

    @property
    def base_url(self) -> str:
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "::") else self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"


@dataclass(frozen=True)
class Server:
    """A server of ours that is ready."""

    endpoint: Endpoint
    child: Child

    def ended(self) -> str:
        """How it ended, with its log's tail; '' while it runs."""
        status = self.child.poll()
        if status is None:
            return ""
        return f"the server ended with status {status}. Last lines of {self.child.log}:\n{self.child.log_tail()}"


@contextmanager
def serve(plan: ServePlan, installation: Installation, renderer: Renderer) -> Iterator[Server]:
    """Serve a checkpoint while the block lasts.

    Raises:
        PrerequisiteError: the port is taken.
        StageError: the server died before it answered, took too long, or serves something else; or it died later,
            and the block failed for it.
    """
    check_port(plan.settings.host, plan.port)
    plan.api_yaml.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(plan.api_yaml, renderer.api_yaml(api_arguments(plan.checkpoint, plan.settings)))
    own = {"API_KEY": plan.api_key} | ({} if plan.run is None else {RUN_ENV: str(plan.run)})
    child = None
    try:
        with uninterrupted():
            child = start(
                api_argv(plan, installation),
                log=plan.log,
                cwd=plan.api_yaml.parent,
                env=child_environment(installation.cli, {**api_environment(plan), **own}),
                death_signal=signal.SIGKILL,
                watched=True,  # engines have processes of their own, which no death signal of ours reaches
            )
        server = Server(Endpoint(plan.base_url, plan.api_key, plan.model_name), child)
        _wait_until_ready(server, plan)
        yield server
    except StageError as error:
        if (ended := server.ended()) and ended not in error.message:
            raise StageError(f"{error.message}\n{ended}", error.remedy) from error
        raise
    finally:
        if child is not None:
            child.stop(GRACE_S)


def api_argv(plan: ServePlan, installation: Installation) -> list[str]:
    return [str(installation.cli), "api", plan.api_yaml.name]


def api_environment(plan: ServePlan) -> Mapping[str, str]:
    """The environment variables of the server but its key. API_VERBOSE=0: texts do not go to its log."""
    environment = {
        "API_HOST": plan.settings.host,
        "API_PORT": str(plan.port),
        "API_MODEL_NAME": plan.model_name,
        "API_VERBOSE": "0",
        "MAX_CONCURRENT": str(plan.settings.max_concurrent),
    }
    devices = plan.devices if plan.devices is not None else plan.settings.devices
    return environment if devices is None else {**environment, "CUDA_VISIBLE_DEVICES": devices}


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
    remedy = by_hand(child.cwd, child.argv, api_environment(plan))
    deadline = time.monotonic() + plan.settings.start_timeout_s
    while True:
        if ended := server.ended():
            raise StageError(f"before it was ready {ended}", remedy)
        if time.monotonic() > deadline:
            raise StageError(
                f"the server did not answer within {plan.settings.start_timeout_s:g} s. "
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
    if served != [plan.model_name]:
        raise StageError(
            f"what answers on {plan.base_url} serves {', '.join(served) or 'nothing'}, not {plan.model_name}: "
            "another server took the port",
            "give another one: --port N, or serve.port in the spec",
        )
