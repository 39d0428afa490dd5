"""How close a benchmark comes to what a server can give, beside a bare loop of the OpenAI client. Run: make bench.

One server of a fixed delay for each request, however many there are, and the same sentences to both clients, each in a
process of its own. The ratios of one run are what counts: the absolute figures are this machine's.
"""

import argparse
import asyncio
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DELAY_S = 0.1
INSTRUCTION = "Translate the following English sentence into German."
REPLY = "Ein Hund läuft über die Wiese und bellt laut."


def sentences(n: int) -> list[str]:
    words = "a dog runs over the green meadow and barks at two men in blue shirts who talk".split()
    return [" ".join(words[: 4 + number % 13]) + f" {number}." for number in range(n)]


def messages(sentence: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{INSTRUCTION}\n{sentence}"}]


def serve(port: int) -> None:
    """The server: an answer after DELAY_S."""
    from aiohttp import web

    choice = {"index": 0, "message": {"role": "assistant", "content": REPLY}, "finish_reason": "stop"}
    about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "stub"}
    body = json.dumps({**about, "choices": [choice]}).encode()

    async def completions(request: web.Request) -> web.StreamResponse:
        await request.read()
        await asyncio.sleep(DELAY_S)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def ask_as_this_project(url: str, n: int, concurrency: int) -> None:
    import aiohttp  # noqa: F401 - before the clock starts, as in the bare loop
    import openai  # noqa: F401

    from orchestrator.benchmark.answers import AnswerCache, Identity, Journal
    from orchestrator.benchmark.requests import Hypothesis, decode, translate
    from orchestrator.processes.interruptible import run_interruptible
    from orchestrator.serving.endpoint import Endpoint
    from orchestrator.specs.benchmark_spec import BenchmarkSpec

    asked, who = sentences(n), Identity(backend="openai", model_sha256="0" * 64)
    decoding = decode("openai", BenchmarkSpec(testset="made-up"))
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder), asked, [REPLY] * n) as journal:
        cache = AnswerCache(who, decoding.sent, Path(folder) / "cache")

        def take(result: object) -> None:
            assert isinstance(result, Hypothesis)
            journal.add(result)
            cache.add(messages(asked[result.index]), result)

        prompts = ((index, messages(sentence)) for index, sentence in enumerate(asked))
        with measured(n):
            run_interruptible(
                translate(
                    Endpoint(url, "", "stub"), prompts, decoding.sent, timeout_s=60, on_result=take,
                    concurrency=concurrency,
                )
            )  # fmt: skip
        assert len(journal.answers) == n


def ask_in_a_bare_loop(url: str, n: int, concurrency: int) -> None:
    import openai

    texts: list[str | None] = [None] * n

    async def ask() -> None:
        queue = iter(enumerate(sentences(n)))
        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", http_client=openai.DefaultAioHttpClient(), max_retries=0
        ) as client:

            async def work() -> None:
                for index, sentence in queue:
                    reply = await client.chat.completions.create(
                        model="stub", messages=messages(sentence), temperature=0, max_tokens=256
                    )
                    texts[index] = reply.choices[0].message.content

            with measured(n):
                await asyncio.gather(*(work() for _ in range(concurrency)))

    asyncio.run(ask())
    assert None not in texts


CLIENTS = {"this project": ask_as_this_project, "bare OpenAI loop": ask_in_a_bare_loop}


@contextmanager
def measured(n: int) -> Iterator[None]:
    began, cpu_began = time.perf_counter(), time.process_time()
    yield
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"n": n, "wall_s": wall_s, "cpu_ms": 1000 * cpu_s / n, "peak_mib": peak_mib}))


def run_client(name: str, url: str, n: int, concurrency: int) -> dict[str, Any]:
    """A client in a process of its own; what it measured."""
    argv = [sys.executable, __file__, "--client", name, "--url", url, "--n", str(n), "--concurrency", str(concurrency)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


@contextmanager
def server() -> Iterator[str]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen([sys.executable, __file__, "--serve", str(port)])
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--serve", "--client", "--url", "--n", "--concurrency"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(int(given.serve))
    elif given.client:
        CLIENTS[given.client](given.url, int(given.n), int(given.concurrency))
    else:
        print(f"A server that answers after {1000 * DELAY_S:g} ms, however many ask.")
        print("client            at once  sentences  wall s  ratio to ideal  CPU ms each  peak MiB", flush=True)
        with server() as url:
            for n, at_once in ((300, 1), (1000, 32), (3000, 32), (3000, 256), (10_000, 256)):
                for name in CLIENTS:
                    found = run_client(name, url, n, at_once)
                    ratio = found["wall_s"] / (math.ceil(n / at_once) * DELAY_S)
                    figures = f"{found['wall_s']:7.2f} {ratio:15.2f} {found['cpu_ms']:12.3f} {found['peak_mib']:9.0f}"
                    print(f"{name:17} {at_once:7} {n:10} {figures}", flush=True)


if __name__ == "__main__":
    main()
