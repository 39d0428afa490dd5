"""A server and a test set in, scores out. Run: pytest tests/test_evaluate.py."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import openai_stub as stub
import pytest
import stamina

from orchestrator.benchmark.evaluate import Asking, BenchmarkResult, evaluate
from orchestrator.benchmark.identity import Identity
from orchestrator.benchmark.question import ask_about
from orchestrator.data.datasets import Dataset, Entry, FileSplit, ParallelText, Sums, text_sha256
from orchestrator.errors import PrerequisiteError, SpecError, StageError
from orchestrator.serving.endpoint import Endpoint
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.specs.yamlfile import read_yaml

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-secret-of-the-test"
SENTENCES = [("A dog runs.", "Ein Hund läuft."), ("Two men talk.", "Zwei Männer reden."), ("It rains.", "Es regnet.")]
INSTRUCTION = "Translate the following English sentence into German."


@pytest.fixture
def server():
    with stub.serving() as running:
        running.replies = lambda source, attempt: stub.completion(dict(SENTENCES)[source])
        yield running


@pytest.fixture(autouse=True)
def no_waits():
    with stamina.set_testing(True, attempts=4):
        yield


def parallel(pairs):
    sources, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return ParallelText(sources, references, blank_pairs=0, sha256=text_sha256(sources, references))


def dataset():
    split = FileSplit(source="t/test.en", target="t/test.de", sha256=Sums(source="0" * 64, target="0" * 64), pairs=3)
    entry = Entry(
        description="Three sentences.",
        license="CC0-1.0",
        source_lang="en",
        target_lang="de",
        instruction=INSTRUCTION,
        splits={"test": split},
    )
    return Dataset("three", Path(), entry)


def run(server, folder, pairs=SENTENCES, *, system=None, identity=None, how=None, connect=None, **bench):
    spec = BenchmarkSpec(testset="three", **{"n_bootstrap": 20, "concurrency": 4, **bench})
    who = identity or Identity()
    question = ask_about(
        "demo-1", dataset(), parallel(pairs), spec, identity=who, server=server.base_url, system=system
    )
    endpoint = Endpoint(server.base_url, KEY, "the-model")
    return evaluate(question, connect or (lambda: endpoint), folder, how or Asking())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(folder))
    return folder


def lines_of(folder):
    return [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_perfect_translation_scores_100_and_all_files_are_there(server, tmp_path):
    result = run(server, tmp_path / "b")
    assert {score.metric: round(score.score, 6) for score in result.scores} == {
        "bleu": 100, "chrf": 100, "chrf++": 100, "ter": 0,
    }  # fmt: skip
    assert result.mean_sentence_bleu.score == pytest.approx(100)
    assert (result.status, result.n_asked, result.n_segments, result.failed) == ("complete", 3, 3, 0)
    assert (result.prompt_tokens, result.completion_tokens) == (30, 15)
    assert BenchmarkResult.model_validate_json((tmp_path / "b" / "scores.json").read_bytes()) == result
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "benchmark.yaml", "hypotheses.jsonl", "hypotheses.txt", "references.txt", "scores.json", "sources.txt",
    ]  # fmt: skip


def test_the_prompt_is_that_of_the_training(server, tmp_path):
    run(server, tmp_path / "b", SENTENCES[:1])
    assert server.bodies[0]["messages"] == [{"role": "user", "content": f"{INSTRUCTION}\nA dog runs."}]
    run(server, tmp_path / "c", SENTENCES[:1], system="Be brief.")
    assert server.bodies[1]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_every_answer_is_a_line_with_its_source_reference_and_figures(server, tmp_path):
    run(server, tmp_path)
    lines = sorted(lines_of(tmp_path), key=lambda line: line["index"])
    assert [(line["source"], line["reference"]) for line in lines] == SENTENCES
    assert list(lines[0]) == [
        "index", "source", "reference", "hypothesis", "finish_reason", "prompt_tokens", "completion_tokens",
        "latency_s", "attempts", "cached",
    ]  # fmt: skip
    assert lines[1]["hypothesis"] == "Zwei Männer reden."


def test_answers_are_scored_in_the_order_of_the_test_set_however_they_come(server, tmp_path):
    """And in the end the file has that order too."""
    seen = []

    def slow_first(source, attempt):
        if source == SENTENCES[0][0]:
            while len(seen) < 2:
                seen[:] = lines_of(tmp_path)
                time.sleep(0.01)
        return stub.completion(dict(SENTENCES)[source])

    server.replies = slow_first
    result = run(server, tmp_path)
    assert sorted(line["index"] for line in seen) == [1, 2], "on the disk before the last one was answered"
    assert [line["index"] for line in lines_of(tmp_path)] == [0, 1, 2]
    assert result.scores[0].score == pytest.approx(100)


def test_the_longest_is_asked_first(server, tmp_path):
    run(server, tmp_path, concurrency=1)
    assert [body["messages"][0]["content"].rpartition("\n")[2] for body in server.bodies] == [
        "Two men talk.", "A dog runs.", "It rains.",
    ]  # fmt: skip


def test_the_text_files_give_the_same_score_on_sacrebleus_command_line(server, tmp_path):
    """Also where an answer has line breaks, and for a part of the test set."""
    answers = {"A dog runs.": "Der Hund\nläuft\u2028schnell. \n", "Two men talk.": "Zwei Männer\x85reden viel."}
    server.replies = lambda source, attempt: stub.completion(answers[source])
    result = run(server, tmp_path, max_samples=2)
    argv = [sys.executable, "-m", "sacrebleu", "references.txt", "-i", "hypotheses.txt", "-m", "bleu", "chrf", "ter"]
    done = subprocess.run([*argv, "-f", "json", "-w", "10"], cwd=tmp_path, capture_output=True, check=True)
    printed = sorted(item["score"] for item in json.loads(done.stdout))
    assert printed == sorted(round(score.score, 10) for score in result.scores if score.metric != "chrf++")
    assert (tmp_path / "hypotheses.txt").read_text(encoding="utf-8").splitlines() == [
        "Der Hund läuft schnell.", "Zwei Männer reden viel.",
    ]  # fmt: skip
    assert result.n_segments == 2
    assert result.text_sha256 == parallel(SENTENCES[:2]).sha256


def test_benchmark_yaml_says_what_was_asked_and_no_secret(server, tmp_path):
    run(server, tmp_path, metrics=["bleu"], max_tokens=99, max_samples=2)
    asked = read_yaml(tmp_path / "benchmark.yaml").value
    assert len(asked.pop("key")) == 64
    assert asked.pop("identity")["model_sha256"] is None
    assert asked == {
        "target": "demo-1", "testset": "three", "split": "test", "n_asked": 2, "n_testset": 3, "sample_seed": None,
        "source_lang": "en", "target_lang": "de", "system": None, "instruction": INSTRUCTION,
        "base_url": server.base_url, "model": "the-model", "sent": {"temperature": 0.0, "max_tokens": 99},
        "overridden": {}, "in_force": {}, "concurrency": 4, "request_timeout_s": 600.0, "metrics": ["bleu"],
        "n_bootstrap": 20,
    }  # fmt: skip
    sent = {key: value for key, value in server.bodies[0].items() if key not in ("model", "messages")}
    assert sent == asked["sent"], "what was sent is what is said"
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY.encode() not in everything


def test_a_failed_sentence_is_no_empty_one_and_there_is_no_score(server, tmp_path):
    server.replies = lambda source, attempt: (
        stub.raw(b"CUDA out of memory", 500) if source == "Two men talk." else stub.completion("x")
    )
    with pytest.raises(StageError) as error:
        run(server, tmp_path)
    assert "1 of 3 sentences got no answer" in error.value.message
    assert "sentence 2: HTTP 500: CUDA out of memory" in error.value.message
    assert str(tmp_path / "hypotheses.jsonl") in error.value.remedy
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert (saved["status"], saved["failed"], saved["scores"]) == ("incomplete", 1, [])
    assert (saved["n_asked"], saved["n_segments"], saved["errors"]) == (3, 2, {"HTTP 500: CUDA out of memory": 1})
    assert saved["mean_sentence_bleu"] is None
    assert not (tmp_path / "hypotheses.txt").exists()
    [failure] = [line for line in lines_of(tmp_path) if "error" in line]
    assert (failure["index"], failure["error"], failure["attempts"]) == (1, "HTTP 500: CUDA out of memory", 4)
    assert len(lines_of(tmp_path)) == 3


def test_an_empty_answer_is_an_answer(server, tmp_path):
    server.replies = lambda source, attempt: stub.completion(" \n")
    result = run(server, tmp_path)
    assert (result.status, result.triage.empty.count) == ("complete", 3)
    assert result.scores[0].score == 0
    assert (tmp_path / "hypotheses.txt").read_text() == "\n\n\n"


def test_answers_that_were_cut_or_retried_are_counted(server, tmp_path):
    server.replies = lambda source, attempt: (
        stub.raw(b"", 503)
        if attempt == 1 and source == "It rains."
        else stub.completion("x", finish_reason="length", completion_tokens=16 if source == "It rains." else 3)
    )
    result = run(server, tmp_path, max_tokens=16)
    assert (result.triage.cut_off.count, result.retried) == (1, 1)


def test_a_server_that_counts_no_tokens_has_no_token_count_rather_than_0(server, tmp_path):
    reply = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}
    server.replies = lambda source, attempt: stub.json_reply(reply)
    result = run(server, tmp_path)
    assert (result.prompt_tokens, result.completion_tokens, result.triage.cut_off) == (None, None, None)


def test_another_prompt_or_text_has_another_hash(server, tmp_path):
    server.replies = lambda source, attempt: stub.completion("x")
    plain = run(server, tmp_path / "a")
    again = run(server, tmp_path / "b")
    system = run(server, tmp_path / "c", system="Be brief.")
    other = run(server, tmp_path / "d", [*SENTENCES[:2], ("It rains.", "Es gießt.")])
    assert (plain.prompts_sha256, plain.text_sha256) == (again.prompts_sha256, again.text_sha256)
    assert system.prompts_sha256 != plain.prompts_sha256
    assert system.text_sha256 == plain.text_sha256
    assert other.prompts_sha256 == plain.prompts_sha256
    assert other.text_sha256 != plain.text_sha256


def test_a_text_without_sentences_is_refused_before_anything_is_written(server, tmp_path):
    with pytest.raises(SpecError, match="three test has no sentence"):
        run(server, tmp_path / "b", [])
    assert not (tmp_path / "b").exists()


def test_a_wrong_key_ends_it_and_keeps_what_was_answered(server, tmp_path):
    server.replies = lambda source, attempt: (
        stub.completion("x") if source == "Two men talk." else stub.json_reply({"detail": "Invalid API key."}, 401)
    )
    with pytest.raises(PrerequisiteError, match="Invalid API key"):
        run(server, tmp_path, concurrency=1)
    assert [line["hypothesis"] for line in lines_of(tmp_path)] == ["x"]


WHO = Identity(backend="llamafactory-huggingface", model_sha256="1" * 64, arguments={"template": "qwen"})


def test_what_is_on_disk_is_not_asked_again(server, tmp_path):
    """An attempt that failed for a sentence goes on with that one alone, and ends as if nothing had been."""
    well = server.replies
    server.replies = lambda source, attempt: stub.raw(b"", 500) if source == "It rains." else well(source, attempt)
    with pytest.raises(StageError, match="1 of 3 sentences got no answer"):
        run(server, tmp_path)
    server.replies = well
    before = len(server.bodies)
    result = run(server, tmp_path)
    assert len(server.bodies) == before + 1
    assert (result.status, result.from_before, result.failed, result.speed.sentences) == ("complete", 2, 0, 1)
    assert result.scores[0].score == pytest.approx(100)
    assert [line["index"] for line in lines_of(tmp_path)] == [0, 1, 2]
    assert json.loads((tmp_path / "scores.json").read_text())["status"] == "complete"


def test_where_all_is_answered_no_server_is_needed(server, tmp_path):
    run(server, tmp_path, identity=WHO)
    (tmp_path / "scores.json").unlink()

    def connect():
        raise AssertionError("no server is started")

    result = run(server, tmp_path, identity=WHO, connect=connect)
    assert (result.status, result.from_before, result.speed) == ("complete", 3, None)


def test_the_same_answers_of_the_same_model_come_from_the_cache(server, tmp_path):
    first = run(server, tmp_path / "a", identity=WHO)
    asked = len(server.bodies)

    def connect():
        raise AssertionError("no server is started")

    again = run(server, tmp_path / "b", identity=WHO, connect=connect)
    assert len(server.bodies) == asked
    assert (again.from_cache, again.speed, again.scores) == (3, None, first.scores)
    assert all(line["cached"] for line in lines_of(tmp_path / "b"))


def test_a_test_set_that_grew_asks_for_what_is_new(server, tmp_path):
    run(server, tmp_path / "a", SENTENCES[:2], identity=WHO)
    result = run(server, tmp_path / "b", identity=WHO)
    assert (result.from_cache, result.speed.sentences, len(server.bodies)) == (2, 1, 3)


def test_fresh_asks_all_anew(server, tmp_path):
    run(server, tmp_path / "a", identity=WHO)
    result = run(server, tmp_path / "b", identity=WHO, how=Asking(fresh=True))
    assert (result.from_cache, len(server.bodies)) == (0, 6)


def test_two_adapters_never_share_an_answer_whatever_the_server_calls_them(server, tmp_path):
    for number, adapter in enumerate(("2" * 64, "3" * 64)):
        server.replies = lambda source, attempt, number=number: stub.completion(f"{source} {number}")
        result = run(server, tmp_path / adapter, identity=replace(WHO, adapter_sha256=adapter, has_adapter=True))
        assert result.from_cache == 0
        assert {line["hypothesis"][-1] for line in lines_of(tmp_path / adapter)} == {str(number)}
    assert len(server.bodies) == 6


def test_sampled_answers_and_those_of_an_unknown_model_are_not_cached(server, tmp_path, cache):
    for name, identity, temperature in (("a", WHO, 0.7), ("b", Identity(), 0.0), ("c", Identity(backend="vllm"), 0.0)):
        run(server, tmp_path / name, identity=identity, temperature=temperature)
    assert len(server.bodies) == 9
    assert list(cache.rglob("*.jsonl")) == []


def test_a_part_is_scored_where_that_is_asked_for_and_it_says_over_how_many(server, tmp_path):
    well = server.replies
    server.replies = lambda source, attempt: stub.raw(b"", 500) if source == "A dog runs." else well(source, attempt)
    result = run(server, tmp_path, how=Asking(allow_incomplete=True))
    assert (result.status, result.n_segments, result.n_asked, result.failed) == ("incomplete", 2, 3, 1)
    assert {score.n_segments for score in result.scores} == {2}
    assert (tmp_path / "references.txt").read_text("utf-8").splitlines() == ["Zwei Männer reden.", "Es regnet."]
    assert result.triage.empty.count == 0


def test_triage_names_sentences_as_the_journal_does_also_where_one_is_missing(server, tmp_path):
    server.replies = lambda source, attempt: stub.raw(b"", 500) if source == "A dog runs." else stub.completion("")
    result = run(server, tmp_path, how=Asking(allow_incomplete=True))
    assert result.triage.empty.indices == [1, 2]


def test_no_answer_at_all_has_no_score_whatever_is_allowed(server, tmp_path):
    server.replies = lambda source, attempt: stub.raw(b"", 500)
    with pytest.raises(StageError, match="3 of 3"):
        run(server, tmp_path, how=Asking(allow_incomplete=True))


def test_a_seeded_sample_is_said(server, tmp_path):
    result = run(server, tmp_path, max_samples=2, sample_seed=1)
    assert (result.n_asked, result.n_testset, result.sample_seed) == (2, 3, 1)
    assert run(server, tmp_path / "all", max_samples=3, sample_seed=1).sample_seed is None


def test_what_the_server_would_drop_is_refused_before_it_is_started(server, tmp_path):
    def connect():
        raise AssertionError("no server is started")

    with pytest.raises(SpecError, match="drops stop"):
        run(server, tmp_path / "b", identity=WHO, connect=connect, stop=["x"])
    assert not (tmp_path / "b").exists()


def test_what_the_model_decides_beside_the_request_is_said(server, tmp_path, caplog):
    caplog.set_level("INFO", "orchestrator")
    own = {"no_repeat_ngram_size": 3, "repetition_penalty": 1.05}
    result = run(server, tmp_path / "hf", identity=replace(WHO, model_config=own))
    assert result.in_force == {"no_repeat_ngram_size": 3}
    assert "in force, though no request says so: no_repeat_ngram_size 3" in caplog.text
    result = run(server, tmp_path / "vllm", identity=Identity(backend="vllm", model_config=own))
    assert (result.in_force, result.overridden) == ({}, {"repetition_penalty": 1.05})
    assert "not as the model's generation_config.json has it, but as sent: repetition_penalty" in caplog.text


def test_a_server_that_says_it_is_vllm_is_sent_all_that_decides(server, tmp_path):
    server.models = stub.json_reply({"data": [{"id": "stub", "owned_by": "vllm"}]})
    result = run(server, tmp_path)
    assert result.sent["repetition_penalty"] == server.bodies[0]["repetition_penalty"] == 1.0
    assert server.bodies[0]["top_k"] == -1


def test_speed_stands_beside_what_held_it_back(server, tmp_path):
    result = run(server, tmp_path, identity=WHO)
    assert result.speed.binds == "one at a time"
    assert "vllm" in result.speed.advice
    assert result.speed.load_s is not None


CHILD = """
import json, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from orchestrator.errors import Interrupted, StageError
import test_evaluate as t

def stop(number, frame):
    raise Interrupted("SIGTERM")

signal.signal(signal.SIGTERM, stop)
if sys.argv[4]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
server = t.stub.StubServer()
server.port = int(sys.argv[2])
pairs = [(f"{number:04}", f"{number:04}") for number in range(5000)]
try:
    t.run(server, Path(sys.argv[3]), pairs, concurrency=8)
except (KeyboardInterrupt, Interrupted, StageError) as error:
    print(type(error).__name__, error)
"""


def start_child(server, folder, limit_bytes=""):
    """evaluate in a process of its own, which warns of everything that it leaves open."""
    tests = str(Path(__file__).parent)
    argv = [sys.executable, "-X", "dev", "-c", CHILD, tests, str(server.port), str(folder), limit_bytes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 30 s in vain")


@pytest.mark.parametrize(
    ("number", "printed"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Interrupted SIGTERM")]
)
@pytest.mark.parametrize("busy", [False, True], ids=["waiting", "busy"])
def test_a_signal_cancels_the_requests_and_keeps_the_answers(server, tmp_path, number, printed, busy):
    """While all requests wait for the server, and while answers come in without a pause."""
    folder = tmp_path / "b"

    def replies(source, attempt):
        if not busy and int(source) >= 20:
            return stub.hang
        if busy:
            time.sleep(0.03)
        return stub.completion(source)

    server.replies = replies
    with start_child(server, folder) as child:
        try:
            if busy:
                wait_for(lambda: (folder / "hypotheses.jsonl").exists() and len(lines_of(folder)) >= 10)
            else:
                wait_for(lambda: server.hanging == 8)
            child.send_signal(number)
            stdout, stderr = child.communicate(timeout=30)
        finally:
            child.kill()
    assert (stdout.strip(), child.returncode) == (printed, 0), stderr
    for word in ("Traceback", "Warning", "nclosed", "never retrieved", "was destroyed", "exception"):
        assert word not in stderr, stderr
    lines = lines_of(folder)
    assert all(line["hypothesis"] == line["source"] for line in lines)
    assert not (folder / "scores.json").exists()
    if not busy:
        assert sorted(line["index"] for line in lines) == list(range(20))
        wait_for(lambda: server.gone_away == 8)


def test_a_full_disk_says_so_and_keeps_the_answers(server, tmp_path):
    """RLIMIT_FSIZE: no file may grow beyond 2000 bytes."""
    server.replies = lambda source, attempt: stub.completion("x" * 30)
    with start_child(server, tmp_path / "b", "2000") as child:
        stdout, stderr = child.communicate(timeout=60)
    assert "StageError" in stdout, stderr
    assert "hypotheses.jsonl cannot be written: File too large" in stdout
    whole = (tmp_path / "b" / "hypotheses.jsonl").read_text().splitlines()[:-1]
    assert len(whole) > 5
    assert all(json.loads(line)["hypothesis"] for line in whole)
