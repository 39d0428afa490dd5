"""Which decoding parameters each kind of server supports, renames or drops.

What is supported is sent with every request, also where it is the default, so that no server's own default decides;
what would be dropped is refused.

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

DECODING_PARAMS = ("temperature", "max_tokens", "top_p", "repetition_penalty", "stop")
"""The spec's."""
_LLAMAFACTORY_FIELDS = (
    "model", "messages", "tools", "do_sample", "temperature", "top_p", "n", "presence_penalty", "max_tokens", "stop",
    "stream",
)  # fmt: skip
# Of GenerationConfig, those that change a text and that LLaMA-Factory's huggingface engine does not set itself.
_UNSET_BY_HF = (
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "guidance_scale", "min_length", "min_new_tokens", "min_p",
    "no_repeat_ngram_size", "num_beam_groups", "penalty_alpha", "renormalize_logits", "sequence_bias", "stop_strings",
    "suppress_tokens", "top_h", "typical_p",
)  # fmt: skip


@dataclass(frozen=True)
class BackendParams:
    """A kind of server."""

    described: str
    neutral: Mapping[str, Any]
    """The spec's parameters that it supports besides temperature and max_tokens -> what is sent where the spec has
    none; None: nothing. The others it drops without a word."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    constant: Mapping[str, Any] = field(default_factory=dict)
    """What is sent besides, so that nothing else decides."""
    model_defaults: tuple[str, ...] = ()
    """The values of the model's generation_config.json that reach the answers unless they are sent."""
    concurrency: int = 32
    """Requests under way at once, unless the spec says it."""


_LLAMAFACTORY = {"top_p": 1.0, "repetition_penalty": 1.0, "stop": None}
_RENAMED = {"repetition_penalty": "presence_penalty"}
BACKENDS: dict[Backend, BackendParams] = {
    "llamafactory-huggingface": BackendParams(
        "LLaMA-Factory's huggingface engine",
        {"top_p": 1.0, "repetition_penalty": 1.0},
        renamed=_RENAMED,
        model_defaults=_UNSET_BY_HF,
        concurrency=2,  # it works on MAX_CONCURRENT at a time: that and one that waits
    ),
    "llamafactory-vllm": BackendParams("LLaMA-Factory's vllm engine", _LLAMAFACTORY, renamed=_RENAMED, concurrency=256),
    "llamafactory-sglang": BackendParams("LLaMA-Factory's sglang engine", _LLAMAFACTORY, renamed=_RENAMED),
    "vllm": BackendParams(
        "vllm serve",
        _LLAMAFACTORY,
        constant={
            "top_k": -1, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "skip_special_tokens": True,
        },
        concurrency=256,
    ),
    # top_p: some refuse it beside a temperature
    "openai": BackendParams("an OpenAI-compatible server of which no more is known", {"top_p": None, "stop": None}),
}  # fmt: skip


@dataclass(frozen=True)
class Decoding:
    """How the model chooses its words."""

    sent: dict[str, Any]
    """Fields of every request, but model and messages."""
    effective_defaults: dict[str, Any]
    """Values that no request says and that hold all the same."""

    @property
    def greedy(self) -> bool:
        return self.sent.get("temperature") == 0

    @property
    def max_tokens(self) -> int | None:
        found = self.sent.get("max_tokens", self.sent.get("max_completion_tokens"))
        return found if isinstance(found, int) else None


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
        bench: the spec's parameters, and its `request`, which is merged into the request last.
        model_config: the model's generation_config.json.
        server_arguments: what the server was started with. Its own repetition_penalty is kept where the spec has none.

    Raises:
        SpecError: the server would drop something of it.
    """
    params, given, known = BACKENDS[backend], server_arguments or {}, model_config or {}
    refuse_dropped(backend, bench)
    sent: dict[str, Any] = {"temperature": bench.temperature, "max_tokens": bench.max_tokens}
    for name, neutral in params.neutral.items():
        value = getattr(bench, name)
        if value is None:
            value = given.get(name, neutral) if name in params.renamed else neutral
        if value is not None:
            sent[params.renamed.get(name, name)] = value
    sent |= params.constant
    if backend == "llamafactory-huggingface":
        sent["do_sample"] = bench.temperature > 0  # with the server's do_sample false, a temperature alone samples not
    if backend == "openai" and bench.temperature > 0:
        sent.setdefault("top_p", 1.0)
    sent = {key: value for key, value in {**sent, **bench.request}.items() if value is not None}
    unsent = [name for name in sorted(params.model_defaults) if name not in sent]
    effective = {name: known[name] for name in unsent if known.get(name) is not None}
    if backend.startswith("llamafactory"):
        effective |= _server_settings(given, sampled=bench.temperature > 0)
    return Decoding(sent, effective)


def refuse_dropped(backend: Backend, bench: BenchmarkSpec) -> None:
    """SpecError where a kind of server would drop something of a benchmark without a word."""
    params = BACKENDS[backend]
    for name in ("top_p", "repetition_penalty", "stop"):
        if name not in params.neutral and getattr(bench, name) is not None:
            able = [other.described for other in BACKENDS.values() if name in other.neutral]
            raise SpecError(
                f"benchmark.{name}: {params.described} drops {name} without a word",
                f"leave it out; it works with {', '.join(able)}",
            )
    dropped = [key for key in bench.request if backend.startswith("llamafactory") and key not in _LLAMAFACTORY_FIELDS]
    if dropped:
        raise SpecError(
            f"benchmark.request: {params.described} drops {', '.join(dropped)} without a word",
            f"leave it out; LLaMA-Factory's server reads {', '.join(_LLAMAFACTORY_FIELDS[2:])}",
        )


def _server_settings(given: Mapping[str, Any], *, sampled: bool) -> dict[str, Any]:
    """What LLaMA-Factory's server was started with and no request can say, where it changes a text."""
    names = ["num_beams", "length_penalty", "skip_special_tokens", *(["top_k"] if sampled else [])]
    default = {"top_k": 50} if sampled else {}  # hparams/generating_args.py
    return {name: value for name in names if (value := given.get(name, default.get(name))) is not None}
