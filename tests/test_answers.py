"""Answers on disk: the journal and the cache. Run: pytest tests/test_answers.py."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.benchmark.answers import AnswerCache, Journal
from orchestrator.benchmark.client import Answer, Failure
from orchestrator.benchmark.identity import Identity
from orchestrator.errors import StageError

ROOT = Path(__file__).resolve().parent.parent
SOURCES, REFERENCES = ["A dog.", "Two men\u2028talk.", "Rain."], ["Ein Hund.", "Zwei Männer reden.", "Regen."]
WHO = Identity(
    backend="llamafactory-huggingface", model_sha256="1" * 64, adapter_sha256="2" * 64, has_adapter=True,
    arguments={"template": "qwen", "infer_dtype": "auto"}, versions={"torch": "2.9"}, devices=("cpu",),
)  # fmt: skip
SENT = {"temperature": 0.0, "max_tokens": 256}


def answer(index, text="Ja.", **fields):
    return Answer(**{
        "index": index, "hypothesis": text, "finish_reason": "stop", "prompt_tokens": 9, "completion_tokens": 3,
        "latency_s": 0.25, "attempts": 1, **fields,
    })  # fmt: skip


def journal(folder):
    return Journal(folder, SOURCES, REFERENCES)


def prompt(text):
    return [{"role": "user", "content": text}]


def test_what_was_written_is_there_again(tmp_path):
    with journal(tmp_path) as first:
        first.add(answer(1, "Zwei\nMänner \u2028\x85"))
        first.add(Failure(0, "HTTP 500", 4))
    with journal(tmp_path) as second:
        assert second.answers == {1: answer(1, "Zwei\nMänner \u2028\x85")}, "a failure is asked again"


def test_an_answer_is_in_the_file_before_add_returns(tmp_path):
    with journal(tmp_path) as open_still:
        open_still.add(answer(0))
        assert json.loads((tmp_path / "hypotheses.jsonl").read_text())["hypothesis"] == "Ja."


@pytest.mark.parametrize("cut", [1, 5, 30, 120])
def test_a_torn_last_line_is_asked_again_and_spoils_no_other(tmp_path, cut):
    with journal(tmp_path) as first:
        first.add(answer(0))
        first.add(answer(1))
    path = tmp_path / "hypotheses.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with journal(tmp_path) as second:
        assert list(second.answers) == [0]
        second.add(answer(2))
    with journal(tmp_path) as third:
        assert sorted(third.answers) == [0, 2]


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 50, b"[]", b"{}", b"null", b"[" * 5000, b'{"index": 0}', b"\xff\xfe",
        b'{"index": 7, "source": "A dog.", "hypothesis": "x"}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_left_out(tmp_path, damage):
    with journal(tmp_path) as first:
        first.add(answer(0))
    path = tmp_path / "hypotheses.jsonl"
    path.write_bytes(damage + b"\n" + path.read_bytes())
    with journal(tmp_path) as second:
        assert list(second.answers) == [0]


@pytest.mark.parametrize(
    "change",
    [
        {"index": 9}, {"index": -1}, {"index": "0"}, {"index": True}, {"source": "Another."}, {"hypothesis": None},
        {"latency_s": "fast"}, {"attempts": None}, {"completion_tokens": "3"},
    ],
)  # fmt: skip
def test_a_line_that_is_no_answer_to_this_sentence_is_left_out(tmp_path, change):
    with journal(tmp_path) as first:
        first.add(answer(0))
    path = tmp_path / "hypotheses.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + "\n")
    with journal(tmp_path) as second:
        assert second.answers == {}


def test_in_order_there_is_a_line_for_each_sentence(tmp_path):
    with journal(tmp_path) as book:
        book.add(Failure(1, "HTTP 500", 4))
        book.add(answer(2))
        book.add(answer(0))
        book.put_in_order([Failure(1, "HTTP 500", 4)])
    lines = [json.loads(line) for line in (tmp_path / "hypotheses.jsonl").read_text("utf-8").splitlines()]
    assert [(line["index"], line.get("error")) for line in lines] == [(0, None), (1, "HTTP 500"), (2, None)]
    assert [line["reference"] for line in lines] == REFERENCES


def test_two_processes_never_share_a_journal(tmp_path):
    with journal(tmp_path):
        code = f"from tests.test_answers import *; journal(Path({str(tmp_path)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
        )
        assert b"StageError: another process is at work" in done.stderr
        with pytest.raises(StageError, match="another process is at work"):
            journal(tmp_path)
    with journal(tmp_path):
        pass


def cache(folder, who=WHO, sent=SENT):
    return AnswerCache(who, sent, folder)


def filled(folder, who=WHO, sent=SENT, text="Ja."):
    made = cache(folder, who, sent)
    made.add(prompt("Translate.\nA dog."), answer(0, text))
    made.flush()
    return made


def test_the_cache_gives_what_was_put_in_under_another_index(tmp_path):
    filled(tmp_path)
    found = cache(tmp_path).look_up([(5, prompt("Translate.\nA dog.")), (6, prompt("Translate.\nA cat."))])
    assert found == {5: replace(answer(5), cached=True)}
    assert cache(tmp_path).look_up([]) == {}


@pytest.mark.parametrize(
    "other",
    [
        replace(WHO, model_sha256="3" * 64),
        replace(WHO, adapter_sha256="3" * 64),
        replace(WHO, adapter_sha256=None, has_adapter=False),
        replace(WHO, backend="llamafactory-vllm"),
        replace(WHO, arguments={"template": "llama3", "infer_dtype": "auto"}),
        replace(WHO, arguments={"template": "qwen", "infer_dtype": "float16"}),
        replace(WHO, arguments={**WHO.arguments, "enable_thinking": False}),
        replace(WHO, arguments={**WHO.arguments, "default_system": "Be brief."}),
        replace(WHO, versions={"torch": "2.10"}),
        replace(WHO, devices=("H100",)),
    ],
)
def test_whatever_decides_an_answer_decides_where_it_is_found(tmp_path, other):
    filled(tmp_path)
    assert cache(tmp_path, other).look_up([(0, prompt("Translate.\nA dog."))]) == {}


@pytest.mark.parametrize("sent", [{**SENT, "max_tokens": 128}, {**SENT, "top_p": 1.0}, {**SENT, "temperature": 0.5}])
def test_another_decoding_has_other_answers(tmp_path, sent):
    filled(tmp_path)
    assert cache(tmp_path, sent=sent).look_up([(0, prompt("Translate.\nA dog."))]) == {}


def test_a_system_text_is_part_of_the_prompt(tmp_path):
    filled(tmp_path)
    system = [{"role": "system", "content": "Be brief."}, *prompt("Translate.\nA dog.")]
    assert cache(tmp_path).look_up([(0, system)]) == {}


def test_a_torn_or_damaged_line_of_the_cache_costs_that_answer_alone(tmp_path):
    made = filled(tmp_path)
    with made.path.open("ab") as file:
        file.write(b'\xff\n{"key": "' + b"0" * 64 + b'", "hypo')
    again = cache(tmp_path)
    again.add(prompt("Translate.\nA cat."), answer(0, "Katze"))
    again.flush()
    found = cache(tmp_path).look_up([(0, prompt("Translate.\nA dog.")), (1, prompt("Translate.\nA cat."))])
    assert {index: each.hypothesis for index, each in found.items()} == {0: "Ja.", 1: "Katze"}


def test_the_cache_holds_no_prompt_and_says_whose_answers_it_has(tmp_path):
    made = filled(tmp_path)
    text = made.path.read_text("utf-8")
    assert "A dog." not in text
    assert json.loads(text.splitlines()[0])["about"]["adapter_sha256"] == "2" * 64


def test_many_processes_append_at_once_and_no_line_is_lost(tmp_path):
    code = """
import sys
from tests.test_answers import *
made = cache(Path(sys.argv[1]))
for number in range(200):
    made.add(prompt(f"{sys.argv[2]} {number}"), answer(0, "x" * 200))
    if number % 7 == 0:
        made.flush()
made.flush()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen([*argv, name], cwd=ROOT, env=environment) for name in "abcd"]
    assert [child.wait() for child in children] == [0, 0, 0, 0]
    wanted = [(number, prompt(f"{name} {number}")) for name in "abcd" for number in range(200)]
    assert len(cache(tmp_path).look_up([(place, each[1]) for place, each in enumerate(wanted)])) == 800


def test_a_cache_that_cannot_be_written_is_said_and_left_out(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    made = cache(tmp_path / "file")
    made.add(prompt("a"), answer(0))
    made.flush()
    made.add(prompt("b"), answer(1))
    made.flush()
    assert caplog.text.count("the cache of answers is not used") == 1
