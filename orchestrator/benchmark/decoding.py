"""Which decoding parameters each kind of server supports, renames or drops.

What is supported is sent with every request, also where it is the default, so that no server's own default decides;
what would be dropped is refused.

Sources. LLaMA-Factory 0.9.5: api/chat.py (presence_penalty becomes repetition_penalty), api/protocol.py (unknown fields
are dropped in silence), chat/hf_engine.py (temperature 0 turns sampling off; stop: a warning, no more). vLLM:
config/model.py, get_diff_sampling_param (what is not sent comes from the model's generation_config.json).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.errors import SpecError
from orchestrator.specs.benchmark_spec import BenchmarkSpec

Backend = Literal["llamafactory-huggingface", "llamafactory-vllm", "llamafactory-sglang", "vllm", "openai"]

DECODING_PARAMS = ("temperature", "max_tokens", "top_p", "repetition_penalty", "stop")
"""The spec's."""
_RENAMED = {"repetition_penalty": "presence_penalty"}
"""By LLaMA-Factory's server."""
_LLAMAFACTORY_FIELDS = ("tools", "do_sample", "temperature", "top_p", "presence_penalty", "max_tokens", "stop")
# Of generation_config.json, what changes a text and LLaMA-Factory's huggingface engine does not set itself.
_UNSET_BY_HF = (
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "guidance_scale", "min_length", "min_new_tokens", "min_p",
    "no_repeat_ngram_size", "num_beam_groups", "penalty_alpha", "renormalize_logits", "sequence_bias", "stop_strings",
    "suppress_tokens", "top_h", "typical_p",
)  # fmt: skip
SUPPORTED: dict[Backend, dict[str, Any]] = {
    "llamafactory-huggingface": {"top_p": 1.0, "repetition_penalty": 1.0},
    "llamafactory-vllm": {"top_p": 1.0, "repetition_penalty": 1.0, "stop": None},
    "llamafactory-sglang": {"top_p": 1.0, "repetition_penalty": 1.0, "stop": None},
    "vllm": {"top_p": 1.0, "repetition_penalty": 1.0, "stop": None},
    "openai": {"top_p": None, "stop": None},  # some refuse top_p beside a temperature
}
"""The spec's parameters besides temperature and max_tokens; what is sent where the spec has none (None: nothing)."""
_VLLM_CONSTANT = {
    "top_k": -1, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "skip_special_tokens": True,
}  # fmt: skip
# LLaMA-Factory's huggingface engine works on MAX_CONCURRENT at a time: that and one that waits.
CONCURRENCY: dict[Backend, int] = {"llamafactory-huggingface": 2, "llamafactory-vllm": 256, "vllm": 256}
"""Requests under way at once, unless the spec says it; of the others 32."""


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
    """What a benchmark sends to a kind of server; the spec's `request` is merged in last.

    `model_config` is the model's generation_config.json. Of `server_arguments`, which the server was started with, its
    repetition_penalty is kept where the spec has none. Raises SpecError: the server would drop something of it.
    """
    given, is_ours, samples = server_arguments or {}, backend.startswith("llamafactory"), bench.temperature > 0
    _refuse_dropped(backend, bench)
    sent: dict[str, Any] = {"temperature": bench.temperature, "max_tokens": bench.max_tokens}
    for name, value in SUPPORTED[backend].items():
        if is_ours and name in _RENAMED:
            name, value = _RENAMED[name], bench.repetition_penalty or given.get(name, value)
        else:
            value = value if getattr(bench, name) is None else getattr(bench, name)
        sent[name] = value
    if backend == "vllm":
        sent |= _VLLM_CONSTANT
    elif backend == "openai" and samples and sent["top_p"] is None:
        sent["top_p"] = 1.0
    elif backend == "llamafactory-huggingface":
        sent["do_sample"] = samples  # with the server's do_sample false, a temperature alone samples not
    sent = {key: value for key, value in {**sent, **bench.request}.items() if value is not None}
    effective: dict[str, Any] = {}
    if backend == "llamafactory-huggingface":
        effective = {name: value for name, value in (model_config or {}).items() if name in _UNSET_BY_HF}
    if is_ours:  # what no request can say
        effective |= {name: given.get(name) for name in ("num_beams", "length_penalty", "skip_special_tokens")}
        effective |= {"top_k": given.get("top_k", 50)} if samples else {}  # hparams/generating_args.py
    return Decoding(sent, {name: value for name, value in effective.items() if value is not None and name not in sent})


def _refuse_dropped(backend: Backend, bench: BenchmarkSpec) -> None:
    dropped = {
        f"benchmark.{name}": f"it works with {', '.join(each for each, able in SUPPORTED.items() if name in able)}"
        for name in ("top_p", "repetition_penalty", "stop")
        if name not in SUPPORTED[backend] and getattr(bench, name) is not None
    }
    if backend.startswith("llamafactory"):
        takes = f"LLaMA-Factory's server takes {', '.join(_LLAMAFACTORY_FIELDS)}"
        dropped |= {f"benchmark.request.{name}": takes for name in bench.request if name not in _LLAMAFACTORY_FIELDS}
    for place, remedy in dropped.items():
        raise SpecError(f"{place}: a server of kind {backend} drops it without a word", f"leave it out; {remedy}")
