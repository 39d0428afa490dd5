"""A real server on the loopback that speaks as much of OpenAI's protocol as the tests need, faults included."""

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["_Handler"], None]


def completion(text: Any, model: str = "stub") -> Reply:
    """A chat completion as LLaMA-Factory's server writes it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
    return json_reply({**about, "choices": [choice], "usage": usage})


def json_reply(value: object, status: int = 200, **headers: str) -> Reply:
    return raw(json.dumps(value).encode(), status, **{"Content-Type": "application/json", **headers})


def raw(body: bytes, status: int = 200, **headers: str) -> Reply:
    def reply(handler: "_Handler") -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def cut_connection(handler: "_Handler") -> None:
    handler.close_connection = True


def cut_body(handler: "_Handler") -> None:
    raw(b'{"choices": [', Content_Length="1000")(handler)
    handler.close_connection = True


def no_http(handler: "_Handler") -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    handler.close_connection = True


def hang(handler: "_Handler") -> None:
    """Say nothing until the client goes away."""
    handler.close_connection = True
    handler.connection.settimeout(60)
    handler.connection.recv(1)


def drip(handler: "_Handler") -> None:
    """A byte now and then, for as long as the client listens."""
    raw(b"", Content_Length="100000")(handler)
    handler.close_connection = True
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.02)


class StubServer:
    def __init__(self) -> None:
        # By the source sentence and the number of the attempt at it.
        self.replies: Callable[[str, int], Reply] = lambda source, attempt: completion(source.upper())
        self.models: Reply = json_reply({"object": "list", "data": [{"id": "stub", "object": "model"}]})
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.attempts: Counter[str] = Counter()
        self.under_way = self.port = 0
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    stub: StubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing of a client that went away: what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self.server.stub.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.server.stub.models(self)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        source = body["messages"][-1]["content"].rpartition("\n")[2]
        stub = self.server.stub
        with stub.lock:
            stub.headers.append({name.lower(): value for name, value in self.headers.items()})
            stub.bodies.append(body)
            stub.attempts[source] += 1
            attempt = stub.attempts[source]
            stub.under_way += 1
        try:
            stub.replies(source, attempt)(self)
        finally:
            with stub.lock:
                stub.under_way -= 1

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[StubServer]:
    """A server; with a context one that speaks TLS."""
    stub = StubServer()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.stub = stub
        stub.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
