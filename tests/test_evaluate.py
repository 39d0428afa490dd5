"""A server and a test set in, scores out; faults and kills change nothing about them. KILLS=50 for the long form."""

import json
import os
import random
import subprocess
import sys
import time
import zlib
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import openai_stub as stub
import pytest

from orchestrator.benchmark import requests
from orchestrator.benchmark.answers import Identity
from orchestrator.benchmark.evaluate import EvalOptions, EvalRequest, evaluate
from orchestrator.benchmark.results import read_result
from orchestrator.data.datasets import Dataset, Entry, FileSplit, ParallelText, Sums, sample_pairs, text_sha256
from orchestrator.errors import PrerequisiteError, SpecError, StageError
from orchestrator.serving.endpoint import Endpoint
from orchestrator.specs.benchmark_spec import BenchmarkSpec

KEY = "sk-secret-of-the-test"
SENTENCES = [("A dog runs.", "Ein Hund läuft."), ("Two men talk.", "Zwei Männer reden."), ("It rains.", "Es regnet.")]
INSTRUCTION = "Translate the following English sentence into German."
UNKNOWN = Identity()
WHO = Identity(backend="llamafactory-huggingface", known=True, model_sha256="1" * 64, arguments={"template": "qwen"})
KILLS = int(os.environ.get("KILLS", "1"))
WORDS = "a dog runs over the green meadow and barks at two men in blue shirts who talk".split()


@pytest.fixture
def server(server):
    server.replies = lambda source, attempt: stub.completion(dict(SENTENCES)[source])
    return server


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(requests, "FIRST_WAIT_S", 0.0)
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(folder))
    return folder


def run(
    server, folder, pairs=SENTENCES, *, identity=UNKNOWN, connect=None, target_lang="de", max_concurrent=1, **bench
):
    """evaluate; `bench` may have EvalOptions' fields too."""
    options = {name: bench.pop(name) for name in ("fresh", "allow_incomplete") if name in bench}
    sources, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    text = ParallelText(sources, references, blank_pairs=0, sha256=text_sha256(sources, references))
    split = FileSplit(source="t/test.en", target="t/test.de", sha256=Sums(source="0" * 64, target="0" * 64), pairs=3)
    about = {"description": "Three.", "license": "CC0-1.0", "source_lang": "en", "target_lang": target_lang}
    dataset = Dataset("three", Path(), Entry(**about, instruction=INSTRUCTION, splits={"test": split}))
    spec = BenchmarkSpec(testset="three", **{"n_bootstrap": 20, "concurrency": 4, **bench})
    part, url = sample_pairs(text, spec.max_samples, spec.sample_seed), server.base_url
    request = EvalRequest("demo-1", dataset, part, len(sources), spec, identity, url, max_concurrent)
    endpoint = Endpoint(server.base_url, KEY, "stub")
    return evaluate(request, connect or (lambda: endpoint), folder, EvalOptions(**options))


def no_server():
    raise AssertionError("no server is started")


def lines_of(folder):
    """Those of a journal, whose last one may be torn."""
    path = folder / "hypotheses.jsonl"
    return [json.loads(line) for line in (path.read_bytes().split(b"\n")[:-1] if path.exists() else [])]


def sources_of(bodies):
    return [body["messages"][-1]["content"].rpartition("\n")[2] for body in bodies]


CUDA = stub.raw(b"CUDA out of memory", 500)


def fails_at(server, sentence, fault=CUDA):
    well = server.replies
    server.replies = lambda source, attempt: fault if source == sentence else well(source, attempt)
    return well


def test_a_perfect_translation_scores_100_and_all_files_are_there(server, tmp_path):
    result = run(server, tmp_path / "b")
    scores = {score.metric: round(score.score, 6) for score in result.scores}
    assert scores == {"bleu": 100, "chrf": 100, "chrf++": 100, "ter": 0}
    assert result.mean_sentence_bleu.score == pytest.approx(100)
    assert (result.status, result.n_requested, result.n_segments, result.failed) == ("complete", 3, 3, 0)
    assert (result.prompt_tokens, result.completion_tokens, result.warnings) == (30, 15, [])
    assert read_result(tmp_path / "b") == result
    texts = ["hypotheses.txt", "references.txt", "scores.json", "sources.txt"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["hypotheses.jsonl", *texts]


def test_the_prompt_is_that_of_the_training_and_the_longest_is_requested_first(server, tmp_path):
    run(server, tmp_path / "b", concurrency=1)
    assert sources_of(server.bodies) == ["Two men talk.", "A dog runs.", "It rains."]
    assert server.bodies[1]["messages"] == [{"role": "user", "content": f"{INSTRUCTION}\nA dog runs."}]
    plain = run(server, tmp_path / "c", SENTENCES[:1])
    other = run(server, tmp_path / "e", [("A dog runs.", "Ein Hund rennt.")])
    assert (other.prompts_sha256, other.text_sha256 != plain.text_sha256) == (plain.prompts_sha256, True)


def test_how_many_requests_are_under_way_follows_from_the_backend(server, tmp_path):
    server.replies = lambda source, attempt: stub.completion(source)
    pairs, found = [(str(number), str(number)) for number in range(12)], []
    for identity, max_concurrent in ((WHO, 1), (WHO, 4), (Identity(backend="vllm"), 1), (UNKNOWN, 1)):
        options = {"concurrency": None, "max_concurrent": max_concurrent, "fresh": True}
        found.append(run(server, tmp_path / str(len(found)), pairs, identity=identity, **options).speed["concurrency"])
    assert found == [2, 5, 12, 12]


def test_every_answer_is_a_line_with_its_source_reference_and_figures_in_the_test_sets_order(server, tmp_path):
    seen = []

    def slow_first(source, attempt):
        if source == SENTENCES[0][0]:
            while len(seen) < 2:
                seen[:] = lines_of(tmp_path)
                time.sleep(0.01)
        return stub.completion(dict(SENTENCES)[source])

    server.replies = slow_first
    assert run(server, tmp_path).scores[0].score == pytest.approx(100)
    assert sorted(line["index"] for line in seen) == [1, 2], "on the disk before the last one was answered"
    lines = lines_of(tmp_path)
    assert [(line["source"], line["reference"]) for line in lines] == SENTENCES
    assert list(lines[0])[:4] == ["index", "source", "reference", "hypothesis"]


def test_the_text_files_give_the_same_score_on_sacrebleus_command_line(server, tmp_path):
    """Also where an answer has line breaks, and for a part of the test set."""
    answers = {"A dog runs.": "Der Hund\nläuft\u2028schnell. \n", "Two men talk.": "Zwei Männer\x85reden viel."}
    server.replies = lambda source, attempt: stub.completion(answers[source])
    result = run(server, tmp_path, max_samples=2)
    argv = [sys.executable, "-m", "sacrebleu", "references.txt", "-i", "hypotheses.txt", "-m", "bleu", "chrf", "ter"]
    done = subprocess.run([*argv, "-f", "json", "-w", "10"], cwd=tmp_path, capture_output=True, check=True)
    printed = sorted(item["score"] for item in json.loads(done.stdout))
    assert printed == sorted(round(score.score, 10) for score in result.scores if score.metric != "chrf++")
    assert (tmp_path / "hypotheses.txt").read_text("utf-8") == "Der Hund läuft schnell.\nZwei Männer reden viel.\n"
    assert (result.n_segments, result.text_sha256) == (2, text_sha256(*map(list, zip(*SENTENCES[:2], strict=True))))


def test_a_failed_sentence_is_no_empty_one_and_there_is_no_score(server, tmp_path):
    fails_at(server, "Two men talk.")
    with pytest.raises(StageError) as error:
        run(server, tmp_path)
    assert "1 of 3 sentences got no answer" in error.value.message
    assert "sentence 2: HTTP 500: CUDA out of memory" in error.value.message
    assert str(tmp_path / "hypotheses.jsonl") in error.value.remedy
    saved = read_result(tmp_path)
    assert (saved.status, saved.failed, saved.scores, saved.mean_sentence_bleu) == ("incomplete", 1, [], None)
    assert (saved.n_requested, saved.n_segments, saved.errors) == (3, 2, {"HTTP 500: CUDA out of memory": 1})
    assert not (tmp_path / "hypotheses.txt").exists()
    [failure] = [line for line in lines_of(tmp_path) if "error" in line]
    assert (failure["index"], failure["attempts"], len(lines_of(tmp_path))) == (1, 4, 3)


def test_a_part_is_scored_where_that_is_wanted_and_it_says_over_how_many(server, tmp_path):
    """Indices of issues are the test set's, also where a sentence is missing."""
    server.replies = lambda source, attempt: stub.completion("")
    fails_at(server, "A dog runs.")
    result = run(server, tmp_path, allow_incomplete=True)
    assert (result.status, result.n_segments, result.n_requested, result.failed) == ("incomplete", 2, 3, 1)
    assert {score.n_segments for score in result.scores} == {2}
    assert (tmp_path / "references.txt").read_text("utf-8").splitlines() == ["Zwei Männer reden.", "Es regnet."]
    assert result.diagnostics["empty"].indices == [1, 2], "an empty answer is an answer"
    server.replies = lambda source, attempt: CUDA
    with pytest.raises(StageError, match="3 of 3"):
        run(server, tmp_path / "none", allow_incomplete=True)


def test_an_answer_was_cut_off_where_the_server_says_so_and_llamafactorys_engine_by_its_tokens(server, tmp_path):
    cases = [
        (UNKNOWN, "length", 3, 0, 3), (UNKNOWN, None, None, 0, None), (UNKNOWN, None, 16, 0, 3),
        (UNKNOWN, None, 20, 10, 0), (WHO, "length", 3, 0, 0), (WHO, "length", 16, 0, 3),
    ]  # fmt: skip
    for number, (identity, reason, tokens, reasoning, cut_off) in enumerate(cases):
        usage = {"completion_tokens": tokens, "completion_tokens_details": {"reasoning_tokens": reasoning}}
        choices = [{"message": {"content": "x"}, "finish_reason": reason}]
        answer = stub.json_reply({"choices": choices, "usage": usage})
        server.replies = lambda source, attempt, answer=answer: answer
        options = {"max_tokens": 16, "metrics": ["ter"], "fresh": True}
        flagged = run(server, tmp_path / str(number), identity=identity, **options).diagnostics["cut_off"]
        assert (number, flagged and flagged.count) == (number, cut_off)


def test_what_cannot_be_benchmarked_is_refused_before_anything_is_written(server, tmp_path):
    with pytest.raises(SpecError, match="three test has no sentence"):
        run(server, tmp_path / "b", [])
    with pytest.raises(PrerequisiteError, match="needs MeCab"):
        run(server, tmp_path / "b", target_lang="jpn")
    with pytest.raises(SpecError, match=r"benchmark\.stop: "):
        run(server, tmp_path / "c", identity=WHO, connect=no_server, stop=["x"])
    assert not (tmp_path / "b").exists() and not (tmp_path / "c" / "scores.json").exists()


def test_what_is_on_disk_is_not_requested_again(server, tmp_path):
    """An attempt that failed for a sentence goes on with that one alone, and ends as if nothing had been."""
    well = fails_at(server, "It rains.")
    with pytest.raises(StageError):
        run(server, tmp_path, identity=WHO)
    server.replies = well
    before = len(server.bodies)
    result = run(server, tmp_path, identity=WHO)
    assert sources_of(server.bodies[before:]) == ["It rains."]
    assert (result.status, result.n_resumed, result.failed, result.speed["segments"]) == ("complete", 2, 0, 1)
    assert result.scores[0].score == pytest.approx(100)
    assert [line["index"] for line in lines_of(tmp_path)] == [0, 1, 2]
    (tmp_path / "scores.json").unlink()
    result = run(server, tmp_path, identity=WHO, connect=no_server)
    assert (result.status, result.n_resumed, result.speed) == ("complete", 3, None)


@pytest.mark.parametrize(
    ("model", "text", "warned"), [("stub", None, False), ("other", None, True), ("stub", "anders", True)]
)
def test_another_model_at_the_same_address_is_warned_of(server, tmp_path, model, text, warned):
    fails_at(server, "It rains.")
    with pytest.raises(StageError):
        run(server, tmp_path)
    server.replies = lambda source, attempt: stub.completion(text or dict(SENTENCES)[source], model=model)
    result = run(server, tmp_path)
    assert result.status == "complete"
    assert any("may be another model" in each and "--fresh" in each for each in result.warnings) == warned
    named = [each for each in result.warnings if "replies name the" in each]
    assert named == (["1 of 3 replies name the model 'other'; 'stub' was requested"] if model == "other" else [])


def test_a_warning_of_several_models_outlasts_an_attempt_that_fails(server, tmp_path):
    """The third attempt meets the second one's model, and has answers of the first one's all the same."""
    for model, failing in (("stub", ("A dog runs.", "It rains.")), ("other", ("It rains.",)), ("other", ())):
        server.replies = lambda source, _, model=model, failing=failing: (
            CUDA if source in failing else stub.completion({"A dog runs.": "x"}.get(source, "Regen"), model=model)
        )
        if failing:
            with pytest.raises(StageError):
                run(server, tmp_path)
    result = run(server, tmp_path)
    assert ["its replies named stub, now other" in each for each in result.warnings] == [True, False]


def test_a_sentence_that_is_refused_alone_leaves_the_others_their_score(server, tmp_path):
    fails_at(server, "It rains.", stub.json_reply({"error": "Your input was flagged"}, 403))
    for _ in range(2):
        with pytest.raises(StageError, match=r"sentence 3: HTTP 403: .*flagged"):
            run(server, tmp_path)
    assert run(server, tmp_path, allow_incomplete=True).n_segments == 2


def test_the_same_answers_of_the_same_model_come_from_the_cache(server, tmp_path):
    first = run(server, tmp_path / "a", SENTENCES[:2], identity=WHO)
    again = run(server, tmp_path / "b", SENTENCES[:2], identity=WHO, connect=no_server)
    assert (again.n_cache_hits, again.speed, again.scores) == (2, None, first.scores)
    assert all(line["cached"] for line in lines_of(tmp_path / "b"))
    server.replies = lambda source, attempt: stub.completion(dict(SENTENCES)[source], model="served-now")
    endpoint = Endpoint(server.base_url, KEY, "served-now")
    grown = run(server, tmp_path / "c", identity=WHO, connect=lambda: endpoint)
    assert (grown.n_cache_hits, grown.speed["segments"], len(server.bodies)) == (2, 1, 3)
    assert grown.warnings == [], "cached answers name another server's model"
    fresh = run(server, tmp_path / "d", identity=WHO, fresh=True)
    assert (fresh.n_cache_hits, len(server.bodies)) == (0, 6)


def test_sampled_answers_and_those_of_an_unknown_model_are_not_cached(server, tmp_path, cache):
    for name, identity, temperature in (("a", WHO, 0.7), ("b", Identity(), 0.0), ("c", Identity(backend="vllm"), 0.0)):
        run(server, tmp_path / name, identity=identity, temperature=temperature)
    assert len(server.bodies) == 9 and list(cache.rglob("*.jsonl")) == []


def test_a_server_that_says_it_is_vllm_is_sent_all_that_decides(server, tmp_path):
    server.models = stub.json_reply({"data": [{"id": "stub", "owned_by": "vllm"}]})
    result = run(server, tmp_path)
    assert result.request["sent"]["repetition_penalty"] == server.bodies[0]["repetition_penalty"] == 1.0
    assert server.bodies[0]["top_k"] == -1


def many(n):
    sources = [f"{' '.join(WORDS[: 3 + number % 14])} {number:04}" for number in range(n)]
    return [(source, source.upper()) for source in sources]


def translated(source):
    """Now and then not quite right, so that scores tell one answer from another."""
    return source.upper() if zlib.crc32(source.encode()) % 3 else source.upper().replace("DOG", "CAT")


def test_kills_change_nothing_and_no_answer_on_the_disk_is_requested_again(server, tmp_path):
    """But one, by which a server of others is known again."""
    n = 60 if KILLS < 10 else 1000
    server.replies = lambda source, attempt: stub.completion(translated(source))
    unbroken = run(server, tmp_path / "unbroken", many(n), concurrency=8)
    folder, chance = tmp_path / "killed", random.Random(7)

    def replies(source, attempt):
        time.sleep(0.05)
        return stub.completion(translated(source))

    server.replies = replies
    server.bodies.clear()
    killed_at_work = 0
    for _ in range(KILLS):
        before = len(server.bodies)
        saved = {line["source"] for line in lines_of(folder)}
        own = SimpleNamespace(base_url=server.base_url), folder, many(n)
        child = get_context("spawn").Process(target=run, args=own, kwargs={"concurrency": 8})
        child.start()
        while len(server.bodies) == before and child.is_alive():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.006 * n / KILLS))  # so that the last kill still finds something to do
        child.kill()
        child.join()
        journal = folder / "hypotheses.jsonl"
        if chance.random() < 0.5:  # a power cut tears the last line
            journal.write_bytes(journal.read_bytes()[: -chance.randrange(1, 40)])
        killed_at_work += len(lines_of(folder)) < n
        assert len(saved & set(sources_of(server.bodies[before:]))) <= 1
    assert killed_at_work > KILLS / 2
    result = run(server, folder, many(n), concurrency=8)
    where = {"speed", "n_resumed", "n_cache_hits"}
    assert result.model_dump(exclude=where) == unbroken.model_dump(exclude=where) and result.n_resumed > 0


def test_scores_json_says_what_was_requested_and_no_secret(server, tmp_path):
    wanted = {"max_tokens": None, "max_completion_tokens": 99}
    request = run(server, tmp_path, metrics=["bleu"], max_samples=2, request=wanted).request
    assert request["sent"] == {"temperature": 0.0, "max_completion_tokens": 99}
    assert server.bodies[0].items() >= request["sent"].items()
    assert (request["instruction"], request["target_lang"], request["metrics"]) == (INSTRUCTION, "de", ["bleu"])
    assert (request["model"], len(request["key"])) == ("stub", 64)
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
