"""Faults and kills change nothing about a result. Run: pytest tests/test_unbroken.py; KILLS=50 for the long form."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import openai_stub as stub
import pytest
import stamina

from orchestrator.benchmark.evaluate import Asking, evaluate
from orchestrator.benchmark.identity import Identity
from orchestrator.benchmark.question import ask_about
from orchestrator.data.datasets import Dataset, Entry, FileSplit, ParallelText, Sums, text_sha256
from orchestrator.errors import StageError
from orchestrator.serving.endpoint import Endpoint
from orchestrator.specs.benchmark_spec import BenchmarkSpec

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("KILLS", "4"))
SENTENCES = 300 if KILLS < 10 else 1000
WORDS = "a dog runs over the green meadow and barks at two men in blue shirts who talk".split()


def sentences(n):
    return [" ".join(WORDS[: 3 + number % 14]) + f" {number:04}" for number in range(n)]


def translated(source):
    """Now and then not quite right, so that scores tell one answer from another."""
    return source.upper() if zlib.crc32(source.encode()) % 3 else source.upper().replace("DOG", "CAT")


def question(n, *, target="demo", **bench):
    sources = sentences(n)
    references = [source.upper() for source in sources]
    split = FileSplit(source="t/a", target="t/b", sha256=Sums(source="0" * 64, target="0" * 64), pairs=n)
    entry = Entry(
        description="Made up.", license="CC0-1.0", source_lang="en", target_lang="de", instruction="Translate.",
        splits={"test": split},
    )  # fmt: skip
    text = ParallelText(sources, references, blank_pairs=0, sha256=text_sha256(sources, references))
    spec = BenchmarkSpec(testset="made-up", n_bootstrap=10, **bench)
    return ask_about(target, Dataset("made-up", Path(), entry), text, spec, identity=Identity(), server="it")


def run(base_url, folder, n, how=None, **bench):
    return evaluate(question(n, **bench), lambda: Endpoint(base_url, "", "stub"), folder, how or Asking())


def comparable(result):
    """All of a result but what depends on the clock, and on where answers came from."""
    return result.model_dump(exclude={"speed", "retried", "from_before", "from_cache"})


def lines_of(folder):
    return [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def server():
    with stub.serving() as running:
        running.replies = lambda source, attempt: stub.completion(translated(source))
        yield running


@pytest.fixture(autouse=True)
def no_waits():
    with stamina.set_testing(True, attempts=20):
        yield


FAULTS = [
    stub.raw(b"Internal Server Error", 500),
    stub.json_reply({}, 429, Retry_After="1"),
    stub.cut_connection,
    stub.cut_body,
    stub.json_reply({"choices": []}),
    stub.hang,
]


@pytest.mark.parametrize("concurrency", [None, 8], ids=["adaptive", "fixed"])
def test_faults_in_a_fifth_of_the_requests_change_nothing(server, tmp_path, concurrency):
    n = 120
    unbroken = run(server.base_url, tmp_path / "unbroken", n)
    server.attempts.clear()
    counted = {"requests": 0, "faults": 0}

    def replies(source, attempt):
        """By the sentence and the attempt alone; silence at the first one only, for it is waited for but twice."""
        chance = random.Random(f"{source} {attempt}")
        counted["requests"] += 1
        if attempt <= 3 and chance.random() < 0.2:
            counted["faults"] += 1
            return chance.choice(FAULTS if attempt == 1 else FAULTS[:-1])
        return stub.completion(translated(source))

    server.replies = replies
    result = run(server.base_url, tmp_path / "faults", n, concurrency=concurrency, request_timeout_s=1.0)
    assert counted["faults"] > 0.15 * counted["requests"]
    assert comparable(result) == comparable(unbroken)
    assert [line["index"] for line in lines_of(tmp_path / "faults")] == list(range(n)), "every sentence once"
    assert result.retried > 0


def test_one_sentence_that_always_fails_is_incomplete_and_the_rest_is_saved(server, tmp_path):
    bad = sentences(50)[17]
    server.replies = lambda source, attempt: (
        stub.raw(b"CUDA error", 500) if source == bad else stub.completion(translated(source))
    )
    with pytest.raises(StageError) as error:
        run(server.base_url, tmp_path, 50)
    assert "1 of 50 sentences got no answer" in error.value.message
    assert error.value.exit_code == 4
    lines = lines_of(tmp_path)
    assert [line["index"] for line in lines if "error" in line] == [17]
    assert len(lines) == 50
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == []


CHILD = """
import sys
from pathlib import Path
import stamina
from tests.test_unbroken import run
stamina.set_testing(True, attempts=20)
run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
"""


def start_child(server, folder, n):
    argv = [sys.executable, "-c", CHILD, server.base_url, str(folder), str(n)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def on_disk(folder):
    """Sources whose answers are in the journal; its last line may be torn."""
    path = folder / "hypotheses.jsonl"
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {json.loads(line)["source"] for line in whole}


def test_kills_at_random_moments_lose_nothing_and_ask_nothing_twice(server, tmp_path):
    n = SENTENCES
    unbroken = run(server.base_url, tmp_path / "unbroken", n)
    folder, chance = tmp_path / "killed", random.Random(7)
    left_s = 0.006 * n / KILLS  # so that the last kill still finds something to do

    def replies(source, attempt):
        time.sleep(0.05)
        return stub.completion(translated(source))

    server.replies = replies
    server.bodies.clear()
    killed_at_work = 0
    for _ in range(KILLS):
        saved, asked_before = on_disk(folder), len(server.bodies)
        child = start_child(server, folder, n)
        while len(server.bodies) == asked_before and child.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, left_s))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        killed_at_work += len(on_disk(folder)) < n
        asked = [body["messages"][0]["content"].rpartition("\n")[2] for body in server.bodies[asked_before:]]
        assert not saved & set(asked), "asked again, though its answer was on the disk"
        if chance.random() < 0.5 and (folder / "hypotheses.jsonl").exists():  # a power cut tears the last line
            path = folder / "hypotheses.jsonl"
            path.write_bytes(path.read_bytes()[: -chance.randrange(1, 40)] if len(saved) < n else path.read_bytes())
    assert killed_at_work > KILLS / 2
    result = run(server.base_url, folder, n)
    assert comparable(result) == comparable(unbroken)
    assert result.from_before > 0

    def said(place):
        return [{name: line[name] for name in ("index", "source", "hypothesis")} for line in lines_of(tmp_path / place)]

    assert said("killed") == said("unbroken")
