"""Answers on disk: the journal of a benchmark, and the cache across benchmarks."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from orchestrator.benchmark.answers import AnswerCache, Identity, Journal, identify
from orchestrator.benchmark.requests import FailedSegment, Hypothesis
from orchestrator.errors import StageError
from orchestrator.runs.record_parts import Facts
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, ServeSpec
from tests.model_folders import model_folder

SOURCES, REFERENCES = ["A dog.", "Two men\u2028talk.", "Rain."], ["Ein Hund.", "Zwei Männer reden.", "Regen."]
WHO = Identity(
    backend="llamafactory-huggingface", model_sha256="1" * 64, adapter_sha256="2" * 64, known=True,
    chat_template_sha256="5" * 64, arguments={"template": "qwen", "infer_dtype": "auto"}, versions={"torch": "2.9"},
    device="cpu",
)  # fmt: skip
SENT = {"temperature": 0.0, "max_tokens": 256}
DOG, CAT = ([{"role": "user", "content": text}] for text in ("A dog.", "A cat."))
FAILED = FailedSegment(index=1, error="HTTP 500", attempts=4)


def answer(index, text="Ja.", **fields):
    return Hypothesis(index=index, hypothesis=text, latency_s=0.25, attempts=1, completion_tokens=3, **fields)


def journal(folder):
    return Journal(folder, SOURCES, REFERENCES)


def lines(folder):
    return [json.loads(line) for line in (folder / "hypotheses.jsonl").read_bytes().splitlines()]


def test_what_was_written_is_there_again_and_a_failure_is_not(tmp_path):
    with journal(tmp_path) as first:
        first.add(answer(1, "Zwei\nMänner \u2028\x85"))
        first.add(FAILED)
        assert lines(tmp_path)[0]["hypothesis"] == "Zwei\nMänner \u2028\x85", "in the file before add returns"
    with journal(tmp_path) as second:
        assert second.answers == {1: answer(1, "Zwei\nMänner \u2028\x85")}


@pytest.fixture
def two_answers(tmp_path):
    with journal(tmp_path) as first:
        first.add(answer(0))
        first.add(answer(1))


@pytest.mark.parametrize("cut", [1, 120])
def test_a_torn_last_line_is_requested_again_and_spoils_no_other(two_answers, tmp_path, cut):
    path = tmp_path / "hypotheses.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with journal(tmp_path) as second:
        assert list(second.answers) == [0]
        second.add(answer(2))
    with journal(tmp_path) as third:
        assert sorted(third.answers) == [0, 2]


def test_a_damaged_line_and_one_that_is_no_answer_to_this_sentence_are_left_out(two_answers, tmp_path):
    line, good = lines(tmp_path)
    changes = [{"index": 3}, {"index": -1}, {"index": "0"}, {"index": True}, {"source": "Another."},
               {"hypothesis": None}, {"latency_s": "fast"}, {"attempts": None}]  # fmt: skip
    bad = [b"\0" * 50, b"[]", b"null", b"[" * 5000, b'{"index": 0}', b"\xff\xfe"]
    bad += [json.dumps({**line, **change}).encode() for change in changes]
    (tmp_path / "hypotheses.jsonl").write_bytes(b"\n".join([*bad, json.dumps(good).encode(), b""]))
    with journal(tmp_path) as second:
        assert list(second.answers) == [1]


def test_sorted_there_is_a_line_for_each_sentence(tmp_path):
    with journal(tmp_path) as book:
        for result in (FAILED, answer(2), answer(0)):
            book.add(result)
        book.rewrite_sorted([FAILED])
    assert [(line["index"], line.get("error")) for line in lines(tmp_path)] == [(0, None), (1, "HTTP 500"), (2, None)]
    assert [line["reference"] for line in lines(tmp_path)] == REFERENCES


def test_two_never_share_a_journal(tmp_path):
    with journal(tmp_path), pytest.raises(StageError, match="another process is at work"):
        journal(tmp_path)
    journal(tmp_path).__exit__()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one answer."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path))
    made = AnswerCache(WHO, SENT)
    made.add(DOG, answer(0))
    return made


def found(messages, who=WHO, sent=SENT):
    return AnswerCache(who, sent).look_up([(5, messages)])


def test_the_cache_gives_what_was_put_in_under_another_index(cache):
    assert found(DOG) == [answer(5, cached=True)]
    assert found(CAT) == found([{"role": "system", "content": "Be brief."}, *DOG]) == []
    assert "A dog." not in cache.path.read_text("utf-8")


def test_whatever_decides_an_answer_decides_where_it_is_found(cache):
    changes = [
        {"model_sha256": "3" * 64}, {"adapter_sha256": "3" * 64}, {"adapter_sha256": None},
        {"chat_template_sha256": "6" * 64}, {"backend": "llamafactory-vllm"}, {"versions": {"torch": "2.10"}},
        {"device": "gpu"}, {"arguments": {**WHO.arguments, "template": "llama3"}},
        {"arguments": {**WHO.arguments, "default_system": "Be brief."}},
    ]  # fmt: skip
    assert [found(DOG, replace(WHO, **change)) for change in changes] == [[]] * len(changes)
    other = [{**SENT, "max_tokens": 128}, {**SENT, "top_p": 1.0}, {**SENT, "temperature": 0.5}]
    assert [found(DOG, sent=sent) for sent in other] == [[]] * len(other)


def test_a_torn_line_of_the_cache_costs_that_answer_alone(cache):
    with cache.path.open("ab") as file:
        file.write(b'\xff\n{"key": "' + b"0" * 64 + b'", "hypo')
    cache.add(CAT, answer(0, "Katze"))
    assert [each.hypothesis for each in (*found(DOG), *found(CAT))] == ["Ja.", "Katze"]


@pytest.fixture
def served(tmp_path, monkeypatch, installation):
    """The identity of a model that is served here, by what is given."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    folder = model_folder(tmp_path / "model")

    def identity(gpus=(), devices=None, template="qwen"):
        checkpoint = Checkpoint("base", ModelSpec(name_or_path=str(folder), template=template))
        facts = Facts(versions={"torch": "2.9", "orchestrator": "1"}, gpus=list(gpus))
        session = SimpleNamespace(workspace=Workspace(tmp_path), llamafactory_or_none=lambda: installation)
        return identify(session, checkpoint, ServeSpec(), facts, devices)

    return identity


def test_cpu_or_gpu_counts_and_not_which_gpu(served, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    one, other = served(["H100, 550.1"], "0"), served(["A100, 560.2"], "1")
    assert one.parts() == other.parts() and one.device == "gpu"
    assert served().device == served(["H100, 550.1"], "").device == "cpu"
    assert "orchestrator" not in one.versions and one.known
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert served(["H100, 550.1"]).device == "cpu"


def test_the_chat_templates_text_counts_under_one_name(served):
    qwen, llama, none = (served(template=name).chat_template_sha256 for name in ("qwen", "llama3", None))
    assert (bool(qwen), qwen != llama, none) == (True, True, None), "the tokenizer's own is in the model's hash"
