"""Which decoding parameters reach which kind of server."""

import ast
from pathlib import Path

import pytest

from orchestrator.benchmark.requests import SUPPORTED, decode
from orchestrator.errors import SpecError
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.upstream.installation import find_installation

OURS = [name for name in SUPPORTED if name.startswith("llamafactory")]


def decoded(backend, given=(), **fields):
    """By the spec's fields, of a server that was started with some arguments."""
    return decode(backend, BenchmarkSpec(testset="t", **fields), dict(given))


@pytest.mark.parametrize("backend", SUPPORTED)
def test_it_is_greedy_unless_the_spec_samples_and_says_so_itself(backend):
    decoding = decoded(backend)
    assert decoding.greedy
    assert (decoding.sent["temperature"], decoding.sent["max_tokens"], decoding.max_tokens) == (0.0, 256, 256)
    assert not decoded(backend, temperature=0.7).greedy


@pytest.mark.parametrize(
    ("backend", "wish", "sent"),
    [
        *((backend, {"top_p": 0.9}, {"top_p": 0.9}) for backend in SUPPORTED),
        *((backend, {"repetition_penalty": 1.2}, {"presence_penalty": 1.2}) for backend in OURS),
        ("vllm", {"repetition_penalty": 1.2}, {"repetition_penalty": 1.2, "presence_penalty": 0.0}),
        ("openai", {"repetition_penalty": 1.2}, None),
        ("llamafactory-huggingface", {"stop": ["\n"]}, None),
        *((backend, {"stop": ["\n"]}, {"stop": ["\n"]}) for backend in [*OURS[1:], "vllm", "openai"]),
    ],
)
def test_a_parameter_is_sent_or_refused_and_never_dropped(backend, wish, sent):
    if sent is None:
        [name] = wish
        with pytest.raises(SpecError, match=f"benchmark.{name}: .* drops it") as error:
            decoded(backend, **wish)
        assert "vllm" in error.value.remedy
    else:
        assert decoded(backend, **wish).sent.items() >= sent.items()


@pytest.mark.parametrize("backend", OURS)
def test_llamafactory_keeps_the_repetition_penalty_that_it_was_started_with(backend):
    """And takes 0, OpenAI's neutral presence_penalty, for an error."""
    assert decoded(backend).sent["presence_penalty"] == 1.0
    given = {"repetition_penalty": 1.1}
    assert decoded(backend, given).sent["presence_penalty"] == 1.1
    assert decoded(backend, given, repetition_penalty=1.3).sent["presence_penalty"] == 1.3


def test_the_specs_request_is_merged_in_last_and_null_takes_a_field_out():
    wanted = {"max_tokens": None, "max_completion_tokens": 99, "chat_template_kwargs": {"enable_thinking": False}}
    decoding = decoded("openai", request=wanted)
    assert decoding.sent == {
        "temperature": 0.0, "max_completion_tokens": 99, "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    assert (decoding.greedy, decoding.max_tokens) == (True, 99)
    assert not decoded("openai", request={"temperature": None}).greedy, "the server's own is not known"
    with pytest.raises(SpecError, match="max_completion_tokens: "):
        decoded("llamafactory-vllm", request=wanted)
    for name in ("model", "messages", "stream", "n"):
        with pytest.raises(ValueError, match=f"{name}: the benchmark itself says that"):
            BenchmarkSpec(testset="t", request={name: 1})


def test_vllm_takes_nothing_from_the_models_own_generation_config():
    """Qwen2.5's penalty of 1.05 is another BLEU."""
    assert {"repetition_penalty", "temperature", "top_p", "top_k", "min_p", "max_tokens"} <= decoded("vllm").sent.keys()


def test_what_holds_though_no_request_says_so_is_named():
    given = {"num_beams": 4, "top_k": 10, "template": "qwen"}
    assert decoded("llamafactory-huggingface", given).effective_defaults == {"num_beams": 4}
    sampled = decoded("llamafactory-huggingface", temperature=0.7)
    assert sampled.effective_defaults == {"top_k": 50}
    assert (sampled.sent["do_sample"], decoded("llamafactory-huggingface").sent["do_sample"]) == (True, False)


def test_llamafactorys_request_has_the_fields_that_are_sent_to_it():
    """Its protocol drops a field that it does not know, without a word."""
    package = find_installation().package
    tree = ast.parse((package / "api" / "protocol.py").read_bytes())
    [request] = [node for node in tree.body if getattr(node, "name", "") == "ChatCompletionRequest"]
    known = {node.target.id for node in request.body if isinstance(node, ast.AnnAssign)}
    for backend in OURS:
        assert set(decoded(backend, temperature=0.7).sent) <= known
    assert not {"repetition_penalty", "seed", "top_k"} & known, "what is named as dropped is dropped"
    assert "repetition_penalty=request.presence_penalty" in (package / "api" / "chat.py").read_text()
    assert "Stop parameter is not supported" in Path(package / "chat" / "hf_engine.py").read_text()
