"""A server of ours as a child, for the length of a with-block."""

import json
import secrets
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.files import atomic_write
from orchestrator.processes.interruptible import defer_signals
from orchestrator.processes.ports import check_port
from orchestrator.processes.process import Child, child_environment, repro_command, start
from orchestrator.processes.process_tree import RUN_ENV
from orchestrator.serving.endpoint import Endpoint, list_models
from orchestrator.specs.spec import API_KEY_ENV, ServeSpec

GRACE_S = 10  # uvicorn waits for running requests without a limit, and generate cannot be interrupted
POLL_S = 0.2


@dataclass(frozen=True)
class Serving:
    """How and where checkpoints are served."""

    settings: ServeSpec
    folder: Path  # for the server's files and its log
    port: int
    devices: str | None = None  # CUDA_VISIBLE_DEVICES. None: as in our environment.
    run: Path | None = None  # the run that the server is a part of
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)


@dataclass(frozen=True)
class ServePlan:
    """A backend's program and files, and how to recognise the server when it answers."""

    serving: Serving
    argv: Sequence[str]
    environment: Mapping[str, str]  # the server's variables, without devices and key
    key_variable: str  # the variable that it reads its key from: everybody can read a command line
    files: Mapping[Path, str]  # path -> text, written before the server starts
    model_names: Mapping[str, str]  # our name of a checkpoint -> its name on the server; the first is the default

    @property
    def log(self) -> Path:
        """The server runs in the log's folder."""
        return self.serving.folder / "api.log"

    @property
    def model_name(self) -> str:
        return next(iter(self.model_names.values()))

    @property
    def base_url(self) -> str:
        given = self.serving.settings.host
        host = "127.0.0.1" if given in ("0.0.0.0", "::") else given
        return f"http://{f'[{host}]' if ':' in host else host}:{self.serving.port}/v1"


@dataclass(frozen=True)
class Server:
    """A server of ours that is ready."""

    child: Child
    endpoints: Mapping[str, Endpoint]  # by our names of the checkpoints; the first is the default

    @property
    def endpoint(self) -> Endpoint:
        return next(iter(self.endpoints.values()))

    def ended(self) -> str:
        """How it ended, with its log's tail; '' while it runs."""
        status = self.child.poll()
        if status is None:
            return ""
        return f"the server ended with status {status}. Last lines of {self.child.log}:\n{self.child.log_tail()}"


@contextmanager
def serve(plan: ServePlan) -> Iterator[Server]:
    """Serve while the block lasts. The server ends with the block, and with us if we are killed.

    Raises PrerequisiteError: the port is taken. StageError: the server died before it answered, took too long, or
    serves something else; or it died later, and the block failed because of that.
    """
    serving = plan.serving
    check_port(serving.settings.host, serving.port)
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    for path, text in plan.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text)
    own = {plan.key_variable: serving.api_key}
    own |= {} if serving.run is None else {RUN_ENV: str(serving.run)}
    own |= {} if serving.devices is None else {"CUDA_VISIBLE_DEVICES": serving.devices}
    child = None
    try:
        with defer_signals():
            child = start(
                plan.argv,
                log=plan.log,
                cwd=plan.log.parent,
                env=child_environment(Path(plan.argv[0]), {**plan.environment, **own}),
                death_signal=signal.SIGKILL,
                watched=True,  # no death signal reaches an engine's own processes
            )
        endpoints = {ours: Endpoint(plan.base_url, serving.api_key, name) for ours, name in plan.model_names.items()}
        server = Server(child, endpoints)
        _wait_until_ready(server, plan)
        yield server
    except StageError as error:
        if (ended := server.ended()) and ended not in error.message:
            raise StageError(f"{error.message}\n{ended}", error.remedy) from error
        raise
    finally:
        if child is not None:
            child.stop(GRACE_S)


def example_request(endpoint: Endpoint, *, is_own_key: bool) -> str:
    """A curl line that works as it is; the user's own key is named, not printed."""
    body = json.dumps({"model": endpoint.model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64})
    header = f'"Authorization: Bearer ${API_KEY_ENV}"' if is_own_key else f"'Authorization: Bearer {endpoint.api_key}'"
    url = f"{shlex.quote(endpoint.base_url)}/chat/completions"
    return f"curl {url} -H 'Content-Type: application/json' -H {header} -d {shlex.quote(body)}"


def _wait_until_ready(server: Server, plan: ServePlan) -> None:
    child, models = server.child, None
    timeout_s = plan.serving.settings.start_timeout_s
    remedy = repro_command(child.cwd, child.argv, plan.environment)
    deadline = time.monotonic() + timeout_s
    while models is None:
        if ended := server.ended():
            raise StageError(f"before it was ready, {ended}", remedy)
        problem = f"the server did not answer within {timeout_s:g} s"
        try:
            models = list_models(server.endpoint, timeout_s=5)
        except PrerequisiteError as error:  # its remedies are for servers of others
            problem, deadline = error.message, 0
        if models is None and time.monotonic() > deadline:
            slow = f"a large model takes longer: serve.start_timeout_s in the spec; {remedy}"
            raise StageError(f"{problem}. Last lines of {plan.log}:\n{child.log_tail()}", slow)
        time.sleep(POLL_S)  # the port is bound once the model is loaded
    if not {*plan.model_names.values()} <= models.keys():
        what = f"the server at {plan.base_url} serves {', '.join(models) or 'nothing'}, not {plan.model_name}"
        raise StageError(what, "another server took the port: give another one, --port N, or serve.port in the spec")
