"""How close a benchmark comes to what a server can give, beside other ways to ask it. Run: make bench.

One server of a fixed delay for each request, however many there are, and the same sentences to every client, each in a
process of its own: this project (with its journal, cache and progress), a bare loop of the OpenAI client, a loop that
streams one answer after another, and lm-evaluation-harness where LM_EVAL names a Python that has it
(python -m venv X; X/bin/pip install 'lm_eval[api]'; LM_EVAL=X/bin/python make bench). The ratios of one run are what
counts: the absolute figures are this machine's.
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
STREAMED = 100  # sentences of the sequential loop: its rate does not depend on how many there are


def sentences(n: int) -> list[str]:
    words = "a dog runs over the green meadow and barks at two men in blue shirts who talk".split()
    return [" ".join(words[: 4 + number % 13]) + f" {number}." for number in range(n)]


def messages(sentence: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{INSTRUCTION}\n{sentence}"}]


def serve(port: int) -> None:
    """The server: an answer after DELAY_S, streamed where that is asked for."""
    from aiohttp import web

    choice = {"index": 0, "message": {"role": "assistant", "content": REPLY}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 40, "completion_tokens": 15, "total_tokens": 55}
    about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "stub"}
    body = json.dumps({**about, "choices": [choice], "usage": usage}).encode()

    async def completions(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        await asyncio.sleep(DELAY_S)
        if not asked.get("stream"):
            return web.Response(body=body, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in REPLY.split():
            piece = {**about, "choices": [{"index": 0, "delta": {"content": f"{word} "}}]}
            await response.write(f"data: {json.dumps(piece)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def ask_as_this_project(url: str, n: int, concurrency: int) -> None:
    import aiohttp  # noqa: F401 - before the clock starts, as in the bare loop
    import openai  # noqa: F401

    from orchestrator.benchmark.answers import AnswerCache, Identity, Journal
    from orchestrator.benchmark.decoding import decode
    from orchestrator.benchmark.requests import Hypothesis, translate
    from orchestrator.processes.interruptible import run_interruptible
    from orchestrator.serving.endpoint import Endpoint
    from orchestrator.specs.benchmark_spec import BenchmarkSpec

    asked = sentences(n)
    who, decoding = (
        Identity(backend="openai", model_sha256="0" * 64),
        decode("openai", BenchmarkSpec(testset="made-up")),
    )
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


def ask_one_after_another(url: str, n: int, concurrency: int) -> None:
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    n = min(n, STREAMED)
    with measured(n):
        for sentence in sentences(n):
            stream = client.chat.completions.create(
                model="stub", messages=messages(sentence), temperature=0, max_tokens=256, stream=True
            )
            "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def ask_as_lm_eval(url: str, n: int, concurrency: int) -> None:
    """In a Python of its own, which has lm-evaluation-harness and not this project."""
    import logging

    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion

    logging.disable(logging.WARNING)
    model = LocalChatCompletion(
        base_url=f"{url}/chat/completions", model="stub", num_concurrent=concurrency, tokenizer_backend=None,
        tokenized_requests=False, timeout=600,
    )  # fmt: skip
    wish = {"temperature": 0, "max_gen_toks": 256, "until": []}
    requests = [
        Instance("generate_until", {}, (model.apply_chat_template(messages(sentence)), wish), index)
        for index, sentence in enumerate(sentences(n))
    ]
    with measured(n):
        assert len(model.generate_until(requests, disable_tqdm=True)) == n


CLIENTS = {
    "this project": ask_as_this_project,
    "bare OpenAI loop": ask_in_a_bare_loop,
    "lm-evaluation-harness": ask_as_lm_eval,
    "streaming, one by one": ask_one_after_another,
}


@contextmanager
def measured(n: int) -> Iterator[None]:
    began, cpu_began = time.perf_counter(), time.process_time()
    yield
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"n": n, "wall_s": wall_s, "cpu_ms": 1000 * cpu_s / n, "peak_mib": peak_mib}))


def run_client(name: str, url: str, n: int, concurrency: int) -> dict[str, Any]:
    """A client in a process of its own; what it measured."""
    python = os.environ.get("LM_EVAL", "") if name == "lm-evaluation-harness" else sys.executable
    argv = [python, __file__, "--client", name, "--url", url, "--n", str(n), "--concurrency", str(concurrency)]
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


def compare(cases: list[tuple[int, int]], names: list[str]) -> None:
    heads = ["client", "at once", "sentences", "wall s", "ideal s", "ratio", "sentences/s", "CPU ms each", "peak MiB"]
    print(f"A server that answers after {1000 * DELAY_S:g} ms, however many ask.\n" + "  ".join(heads), flush=True)
    with server() as url:
        for n, concurrency in cases:
            for name in names:
                if name == "streaming, one by one" and concurrency != 1:
                    continue
                show(name, concurrency, run_client(name, url, n, concurrency))


def show(name: str, concurrency: int, found: dict[str, Any]) -> None:
    ideal_s = math.ceil(found["n"] / concurrency) * DELAY_S
    wall_s, n = found["wall_s"], found["n"]
    print(
        f"{name:22} {concurrency:>7} {n:>7} {wall_s:8.2f} {ideal_s:8.2f} {wall_s / ideal_s:6.2f} {n / wall_s:8.0f} "
        f"{found['cpu_ms']:7.3f} {found['peak_mib']:7.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="100,000 sentences too (some minutes)")
    parser.add_argument("--quick", action="store_true", help="3,000 sentences, 32 and 256 at once, and nothing else")
    for hidden in ("--serve", "--client", "--url", "--n", "--concurrency"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(int(given.serve))
    elif given.client:
        CLIENTS[given.client](given.url, int(given.n), int(given.concurrency))
    else:
        names = [name for name in CLIENTS if name != "lm-evaluation-harness" or os.environ.get("LM_EVAL")]
        cases = [(3000, 32), (3000, 256)]
        if not given.quick:
            cases = [(300, 1), (1000, 8), *cases, (1000, 32), (1000, 128), (1000, 256), (10_000, 128), (10_000, 256)]
        if given.large:
            cases.append((100_000, 256))
        compare(cases, names)


if __name__ == "__main__":
    main()
