"""The decoding contract: which parameters of a request each kind of server honours, reads as something else, or drops.

What is honoured goes with every request, also where it is the default, so that no server's own default decides; what
would be dropped is refused. What holds all the same without having been sent is named.
Covered: LLaMA-Factory's three engines, `vllm serve`, and any OpenAI-compatible server, of which less is known.
Not covered: streaming; parameters that a test set's translation has no use for (n, logprobs, tools).

Sources. LLaMA-Factory 0.9.5: api/chat.py (presence_penalty becomes repetition_penalty; do_sample, temperature, top_p,
max_tokens, stop are passed on; api/protocol.py has no other field, and unknown ones are dropped in silence);
chat/hf_engine.py, _process_args (temperature 0 turns sampling off and takes top_p with it; stop: a warning, no more);
chat/vllm_engine.py and chat/sglang_engine.py, _generate (do_sample is ignored, stop is honoured).
vLLM: entrypoints/openai/protocol.py, ChatCompletionRequest.to_sampling_params; config/model.py,
get_diff_sampling_param (what is not sent comes from the model's generation_config.json). Transformers 5.6: values that
GenerationConfig is not given come from the model's generation_config.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.errors import SpecError
from orchestrator.specs.benchmark_spec import BenchmarkSpec

Backend = Literal["llamafactory-huggingface", "llamafactory-vllm", "llamafactory-sglang", "vllm", "openai"]

HONOURED, OTHERWISE, DROPPED = "honoured", "read as something else", "dropped"


@dataclass(frozen=True)
class Rule:
    """What a kind of server makes of one of the spec's parameters."""

    how: str
    """HONOURED, OTHERWISE or DROPPED."""
    name: str = ""
    """The request's field for it. OTHERWISE: one that means something else to other servers."""
    neutral: Any = None
    """What is sent where the spec says nothing. None: nothing is."""


@dataclass(frozen=True)
class Contract:
    """A kind of server."""

    described: str
    rules: Mapping[str, Rule]
    """By the spec's name."""
    constant: Mapping[str, Any] = field(default_factory=dict)
    """What is sent besides, so that nothing else decides."""
    model_values: frozenset[str] | None = frozenset()
    """Which values of the model's generation_config.json reach the answers unless they are sent. None: not known."""
    one_at_a_time: bool = False
    """Whether it works on one request while the others wait."""


_TEMPERATURE, _MAX_TOKENS = Rule(HONOURED, "temperature"), Rule(HONOURED, "max_tokens")
_TOP_P, _STOP = Rule(HONOURED, "top_p", 1.0), Rule(HONOURED, "stop")
_LLAMAFACTORY = {
    "temperature": _TEMPERATURE,
    "max_tokens": _MAX_TOKENS,
    "top_p": _TOP_P,
    "repetition_penalty": Rule(OTHERWISE, "presence_penalty", 1.0),
    "stop": _STOP,
}
# Of GenerationConfig, those that change a text and that LLaMA-Factory's huggingface engine does not set itself.
_UNSET_BY_HF = frozenset({
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "guidance_scale", "min_length", "min_new_tokens", "min_p",
    "no_repeat_ngram_size", "num_beam_groups", "penalty_alpha", "renormalize_logits", "sequence_bias", "stop_strings",
    "suppress_tokens", "top_h", "typical_p",
})  # fmt: skip

CONTRACTS: dict[Backend, Contract] = {
    "llamafactory-huggingface": Contract(
        "LLaMA-Factory's huggingface engine",
        {**_LLAMAFACTORY, "stop": Rule(DROPPED)},
        model_values=_UNSET_BY_HF,
        one_at_a_time=True,
    ),
    "llamafactory-vllm": Contract("LLaMA-Factory's vllm engine", _LLAMAFACTORY),
    # It reads its server's reply in the event loop, one request after another.
    "llamafactory-sglang": Contract("LLaMA-Factory's sglang engine", _LLAMAFACTORY, one_at_a_time=True),
    "vllm": Contract(
        "vllm serve",
        {
            "temperature": _TEMPERATURE,
            "max_tokens": _MAX_TOKENS,
            "top_p": _TOP_P,
            "repetition_penalty": Rule(HONOURED, "repetition_penalty", 1.0),
            "stop": _STOP,
        },
        constant={
            "top_k": -1,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "skip_special_tokens": True,
        },
        model_values=frozenset(
            {
                "repetition_penalty",
                "temperature",
                "top_k",
                "top_p",
                "min_p",
                "max_new_tokens",
                "presence_penalty",
                "frequency_penalty",
                "skip_special_tokens",
            }
        ),
    ),
    "openai": Contract(
        "an OpenAI-compatible server of which no more is known",
        {
            "temperature": _TEMPERATURE,
            "max_tokens": _MAX_TOKENS,
            "top_p": Rule(HONOURED, "top_p"),  # some refuse it beside a temperature
            "repetition_penalty": Rule(DROPPED),
            "stop": _STOP,
        },
        model_values=None,
    ),
}
_SENT_AS = {"max_new_tokens": "max_tokens"}  # generation_config.json's name: the request's


@dataclass(frozen=True)
class Decoding:
    """How the model chooses its words."""

    sent: dict[str, Any]
    """Fields of every request."""
    overridden: dict[str, Any] = field(default_factory=dict)
    """Values of the model's generation_config.json that would have held, had ours not been sent."""
    in_force: dict[str, Any] = field(default_factory=dict)
    """Values that nobody sent and that hold all the same."""

    @property
    def greedy(self) -> bool:
        return not self.sent.get("temperature")

    @property
    def max_tokens(self) -> int:
        return int(self.sent["max_tokens"])


def decode(
    backend: Backend,
    bench: BenchmarkSpec,
    *,
    model_config: Mapping[str, Any] | None = None,
    server_arguments: Mapping[str, Any] | None = None,
) -> Decoding:
    """What a benchmark sends to a kind of server.

    Args:
        backend: the kind.
        bench: what is wished for.
        model_config: the model's generation_config.json.
        server_arguments: what the server was started with. Its own repetition_penalty is kept where the spec has none.

    Raises:
        SpecError: the spec wishes for something that the server would drop.
    """
    contract, given = CONTRACTS[backend], server_arguments or {}
    refuse_dropped(backend, bench)
    sent: dict[str, Any] = {}
    for name, rule in contract.rules.items():
        value = getattr(bench, name)
        if value is None and rule.neutral is not None:
            value = given.get(name, rule.neutral) if rule.how == OTHERWISE else rule.neutral
        if value is not None and rule.name:
            sent[rule.name] = value
    sent |= contract.constant
    if backend == "llamafactory-huggingface":
        sent["do_sample"] = bench.temperature > 0  # with the server's do_sample false, a temperature alone samples not
    if backend == "openai" and bench.temperature > 0:
        sent.setdefault("top_p", 1.0)
    known = model_config or {}
    values = contract.model_values or frozenset()
    held = {key: known[key] for key in sorted(values & known.keys()) if known[key] is not None}
    ours = {key for key in held if _SENT_AS.get(key, key) in sent}
    in_force = {key: value for key, value in held.items() if key not in ours}
    if backend.startswith("llamafactory"):
        in_force |= _of_the_server(given, sampled=bench.temperature > 0)
    return Decoding(sent, {key: held[key] for key in held if key in ours and held[key] != _sent(sent, key)}, in_force)


def refuse_dropped(backend: Backend, bench: BenchmarkSpec) -> None:
    """SpecError where a spec wishes for something that a kind of server would drop."""
    contract = CONTRACTS[backend]
    for name, rule in contract.rules.items():
        if rule.how == DROPPED and getattr(bench, name) is not None:
            able = [other.described for other in CONTRACTS.values() if other.rules[name].how != DROPPED]
            raise SpecError(
                f"benchmark.{name}: {contract.described} drops {name} without a word",
                f"leave it out; it works with {', '.join(able)}",
            )


def _of_the_server(given: Mapping[str, Any], *, sampled: bool) -> dict[str, Any]:
    """What LLaMA-Factory's server was started with and no request can say, where it changes a text."""
    names = ["num_beams", "length_penalty", "skip_special_tokens", *(["top_k"] if sampled else [])]
    default = {"top_k": 50} if sampled else {}  # hparams/generating_args.py
    return {name: value for name in names if (value := given.get(name, default.get(name))) is not None}


def _sent(sent: Mapping[str, Any], key: str) -> Any:
    return sent.get(_SENT_AS.get(key, key))
