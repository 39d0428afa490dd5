"""Ports to listen on, probed by listening there for a moment."""

import socket

from orchestrator.errors import PrerequisiteError


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.create_server((host, 0), family=_family(host)) as probe:
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """PrerequisiteError where a port is taken: LLaMA-Factory finds out only after it has loaded the model."""
    try:
        socket.create_server((host, port), family=_family(host)).close()
    except OSError as error:
        what = f"port {port} on {host} is not available: {error.strerror}"
        remedy = "stop the program that listens there, or take another port: --port N, or serve.port in the spec"
        raise PrerequisiteError(what, remedy) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
