"""The decoding contract. Run: pytest tests/test_decoding.py."""

import ast
from pathlib import Path

import pytest

from orchestrator.benchmark.decoding import CONTRACTS, DROPPED, OTHERWISE, decode
from orchestrator.errors import SpecError
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.upstream.installation import find_installation

QWEN = {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "do_sample": True, "eos_token_id": 7}
OURS = [name for name in CONTRACTS if name.startswith("llamafactory")]


def bench(**fields):
    return BenchmarkSpec(testset="t", **fields)


@pytest.mark.parametrize("backend", CONTRACTS)
def test_it_is_greedy_unless_told_otherwise_and_says_so_itself(backend):
    decoding = decode(backend, bench())
    assert decoding.greedy
    assert (decoding.sent["temperature"], decoding.sent["max_tokens"]) == (0.0, 256)
    assert not decode(backend, bench(temperature=0.7)).greedy


@pytest.mark.parametrize("backend", CONTRACTS)
def test_every_wish_of_the_spec_has_a_rule(backend):
    wishes = {"temperature", "max_tokens", "top_p", "repetition_penalty", "stop"}
    assert set(CONTRACTS[backend].rules) == wishes


@pytest.mark.parametrize("backend", CONTRACTS)
@pytest.mark.parametrize("wish", [{"top_p": 0.9}, {"repetition_penalty": 1.2}, {"stop": ["\n"]}])
def test_a_wish_is_sent_or_refused_and_never_dropped(backend, wish):
    [(name, value)] = wish.items()
    if CONTRACTS[backend].rules[name].how == DROPPED:
        with pytest.raises(SpecError, match=f"benchmark.{name}: .* drops {name}") as error:
            decode(backend, bench(**wish))
        assert "vllm serve" in error.value.remedy
    else:
        assert decode(backend, bench(**wish)).sent[CONTRACTS[backend].rules[name].name] == value


@pytest.mark.parametrize("backend", OURS)
def test_llamafactory_reads_presence_penalty_as_repetition_penalty(backend):
    """And 0, OpenAI's neutral value, as an error: what is sent is 1, or what the server was started with."""
    assert CONTRACTS[backend].rules["repetition_penalty"].how == OTHERWISE
    assert decode(backend, bench()).sent["presence_penalty"] == 1.0
    assert decode(backend, bench(), server_arguments={"repetition_penalty": 1.1}).sent["presence_penalty"] == 1.1
    decoding = decode(backend, bench(repetition_penalty=1.3), server_arguments={"repetition_penalty": 1.1})
    assert decoding.sent["presence_penalty"] == 1.3


def test_no_stranger_gets_a_presence_penalty_for_a_repetition_penalty():
    assert "presence_penalty" not in decode("openai", bench()).sent
    assert decode("vllm", bench()).sent["presence_penalty"] == 0.0
    assert decode("vllm", bench(repetition_penalty=1.3)).sent["repetition_penalty"] == 1.3


def test_vllm_takes_nothing_from_the_models_own_generation_config():
    """What that would have given is named: Qwen2.5's penalty of 1.05 is another BLEU."""
    decoding = decode("vllm", bench(), model_config=QWEN)
    assert decoding.overridden == {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert decoding.in_force == {}
    for name in decoding.overridden:
        assert name in decoding.sent


def test_what_the_huggingface_engine_takes_from_the_model_is_named():
    decoding = decode("llamafactory-huggingface", bench(), model_config={**QWEN, "no_repeat_ngram_size": 3})
    assert decoding.in_force == {"no_repeat_ngram_size": 3}
    assert decoding.overridden == {}


def test_what_a_server_was_started_with_and_no_request_can_say_is_named():
    given = {"num_beams": 4, "top_k": 10, "template": "qwen"}
    assert decode("llamafactory-huggingface", bench(), server_arguments=given).in_force == {"num_beams": 4}
    sampled = decode("llamafactory-huggingface", bench(temperature=0.7))
    assert sampled.in_force == {"top_k": 50}
    assert sampled.sent["do_sample"] is True
    assert decode("llamafactory-huggingface", bench()).sent["do_sample"] is False


def _source(name):
    return find_installation().package / name


def test_llamafactorys_request_has_the_fields_that_are_sent_to_it():
    """Its protocol drops a field that it does not know, without a word."""
    tree = ast.parse((_source("api/protocol.py")).read_bytes())
    [request] = [node for node in tree.body if getattr(node, "name", "") == "ChatCompletionRequest"]
    known = {node.target.id for node in request.body if isinstance(node, ast.AnnAssign)}
    for backend in OURS:
        sent = decode(backend, bench(temperature=0.7)).sent
        assert set(sent) <= known
    assert not {"repetition_penalty", "seed", "top_k"} & known, "what is named as dropped is dropped"
    chat = _source("api/chat.py").read_text()
    assert "repetition_penalty=request.presence_penalty" in chat
    assert "Stop parameter is not supported" in Path(_source("chat/hf_engine.py")).read_text()
