"""How close a benchmark comes to what a server can give, beside a bare loop of the OpenAI client. Run: make bench.

One server of a fixed delay for each request, however many there are, and the same sentences to each client, in a
process of its own: this project with its journal and cache, and asyncio with nothing around it. What counts is the
ratios of one run: the absolute figures are this machine's.
"""

import asyncio
import json
import math
import multiprocessing
import socket
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

DELAY_S = 0.1
REPLY = "Ein Hund läuft über die Wiese und bellt laut."
WORDS = "a dog runs over the green meadow and barks at two men in blue shirts who talk".split()


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Translate into German.\n{' '.join(WORDS[: 4 + number % 13])} {number}."}]


def serve(port: int) -> None:
    from aiohttp import web

    choice = {"index": 0, "message": {"role": "assistant", "content": REPLY}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 40, "completion_tokens": 15, "total_tokens": 55}
    about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "stub"}
    body = json.dumps({**about, "choices": [choice], "usage": usage}).encode()

    async def completions(request: web.Request) -> web.Response:
        await request.json()
        await asyncio.sleep(DELAY_S)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def this_project(url: str, n: int, concurrency: int) -> tuple[float, float]:
    import aiohttp  # noqa: F401 - before the clock starts, as in the bare loop
    import openai  # noqa: F401

    from orchestrator.benchmark.answers import AnswerCache, Identity, Journal
    from orchestrator.benchmark.requests import Hypothesis, decode, translate
    from orchestrator.processes.interruptible import run_interruptible
    from orchestrator.serving.endpoint import Endpoint
    from orchestrator.specs.benchmark_spec import BenchmarkSpec

    sent = decode("openai", BenchmarkSpec(testset="made-up")).sent
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder), ["source"] * n, [REPLY] * n) as journal:
        cache = AnswerCache(Identity(backend="openai", model_sha256="0" * 64), sent, Path(folder) / "cache")

        def take(result: object) -> None:
            assert isinstance(result, Hypothesis)
            journal.add(result)
            cache.add(messages(result.index), result)

        prompts, options = ((number, messages(number)) for number in range(n)), {"timeout_s": 60, "on_result": take}
        began = clocks()
        run_interruptible(translate(Endpoint(url, "", "stub"), prompts, sent, concurrency=concurrency, **options))
        took = since(began)
        assert len(journal.answers) == n
        return took


def bare_loop(url: str, n: int, concurrency: int) -> tuple[float, float]:
    import openai

    texts, queue = list[str | None](), iter(range(n))

    async def work(client: openai.AsyncOpenAI) -> None:
        options = {"model": "stub", "temperature": 0, "max_tokens": 256}
        for number in queue:
            reply = await client.chat.completions.create(messages=messages(number), **options)
            texts.append(reply.choices[0].message.content)

    async def ask() -> tuple[float, float]:
        http_client = openai.DefaultAioHttpClient()
        async with openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http_client, max_retries=0) as client:
            began = clocks()
            await asyncio.gather(*(work(client) for _ in range(concurrency)))
            return since(began)

    took = asyncio.run(ask())
    assert texts == [REPLY] * n
    return took


def clocks() -> tuple[float, float]:
    """Of the wall and of the CPU."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    wall_s, cpu_s = clocks()
    return wall_s - began[0], cpu_s - began[1]


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    server = spawn.Process(target=serve, args=(port,), daemon=True)
    server.start()
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.05)
    print("at once  sentences  ideal s  this project / ideal  bare loop / ideal  CPU of this project / bare loop")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for n, concurrency in [(100, 1), (800, 8), (3200, 32), (6400, 128)]:
            case, ideal_s = (f"http://127.0.0.1:{port}/v1", n, concurrency), math.ceil(n / concurrency) * DELAY_S
            (ours_s, ours_cpu_s), (bare_s, bare_cpu_s) = (
                pool.submit(client, *case).result() for client in (this_project, bare_loop)
            )
            ratios = f"{ours_s / ideal_s:20.2f}  {bare_s / ideal_s:17.2f}  {ours_cpu_s / bare_cpu_s:31.2f}"
            print(f"{concurrency:7}  {n:9}  {ideal_s:7.1f}  {ratios}", flush=True)
    server.terminate()


if __name__ == "__main__":
    main()
