"""Checkpoints as `vllm serve` serves them: the plan of that server.

Covered: one model with any number of LoRA adapters on it; the prompt of training as a chat template; what ends an
answer, and nothing else, as the server's generation config; the key in its environment, not on its command line; the
spec's other arguments under vLLM's names.
Not covered: starting it (serve.py); merging an adapter first (serving.py); several machines.
Writes nothing.

Sources, vLLM 0.11.0 to 0.33.0: entrypoints/.../cli_args.py (LoRAParserAction: JSON, so that a path may hold '=' and
','); sampling_params.py, update_from_generation_config (eos_token_id of the generation config ends an answer; with
--generation-config vllm that of the model does, which need not be the trained template's); config/model.py,
get_diff_sampling_param (a generation config without sampling parameters leaves vLLM's own); lora/peft_helper.py
(adapters that it refuses).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.serving.server import ServePlan
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, ServeSpec
from orchestrator.upstream.chat_prompt import ChatPrompt
from orchestrator.upstream.vllm import Vllm, argument_words, settings_of_environment, with_defaults

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be: config/lora.py of vLLM 0.33, possible_max_ranks of older ones."""
BASE = "base"
"""What the server calls the model below its adapters."""
_MERGE = "serve it merged: serve.merge: true, or --merge"
# What the log says before it dies -> what to do.
ADVICE = {
    "CUDA out of memory": "give it less: serve.gpu_memory_utilization, serve.max_model_len or serve.max_num_seqs",
    "No available memory for the cache blocks": "raise serve.gpu_memory_utilization, or lower serve.max_model_len",
    "larger than the available KV cache memory": "lower serve.max_model_len: a translation needs a few hundred tokens",
    "is less than desired GPU memory utilization": "end what else is on the GPU, or lower serve.gpu_memory_utilization",
    "unrecognized arguments": "this vLLM does not know an argument of serve",
    "Failed to infer device type": "this vLLM sees no GPU: serve.devices, or a build of vLLM for this machine",
}


def vllm_plan(
    checkpoints: Mapping[str, Checkpoint],
    names: Mapping[str, str],
    settings: ServeSpec,
    vllm: Vllm,
    prompt: ChatPrompt,
    *,
    folder: Path,
    port: int,
    devices: str | None,
    api_key: str,
    run: Path | None,
) -> ServePlan:
    """How checkpoints are served.

    Args:
        checkpoints: what is served, by our names, with absolute paths: all on one base model, which may be among them.
        names: our names -> what the server calls them.
        settings: how, as the spec says.
        vllm: the program.
        prompt: how a conversation is put to the model.
        folder: for the server's files and api.log.
        port: a free one.
        devices: CUDA_VISIBLE_DEVICES. None: as in our environment.
        api_key: what it lets in.
        run: the run that it is a part of.

    Raises:
        SpecError: vLLM cannot serve such an adapter, or not so many.
    """
    template, generation = folder / "chat_template.jinja", folder / "generation"
    bare = [name for name, checkpoint in checkpoints.items() if checkpoint.model.adapter_name_or_path is None]
    served = names[bare[0]] if bare else BASE
    argv = [
        *vllm_words(checkpoints, names, settings, served=served),
        *("--host", settings.host, "--port", str(port)),
        *("--chat-template", str(template), "--chat-template-content-format", "string"),
        *("--generation-config", str(generation)),
    ]
    environment = {**settings_of_environment(), "VLLM_NO_USAGE_STATS": "1"}
    return ServePlan(
        argv=[str(vllm.cli), *argv],
        environment=environment if devices is None else {**environment, "CUDA_VISIBLE_DEVICES": devices},
        key_variable="VLLM_API_KEY",
        files={
            template: prompt.chat_template,
            generation / "generation_config.json": json.dumps({"eos_token_id": list(prompt.stop_token_ids)}),
        },
        log=folder / "api.log",
        host=settings.host,
        port=port,
        model_names=names,
        also_listed=frozenset({served}),
        api_key=api_key,
        start_timeout_s=settings.start_timeout_s,
        run=run,
        advice=ADVICE,
    )


def vllm_words(
    checkpoints: Mapping[str, Checkpoint],
    names: Mapping[str, str],
    settings: ServeSpec,
    *,
    served: str = BASE,
) -> list[str]:
    """The command line behind `vllm`, but for what is different each time: address and files.

    Raises:
        SpecError: vLLM cannot serve such an adapter.
    """
    model = next(iter(checkpoints.values())).model
    adapters = {
        names[name]: Path(checkpoint.model.adapter_name_or_path)
        for name, checkpoint in checkpoints.items()
        if checkpoint.model.adapter_name_or_path is not None
    }
    quiet = {"disable_uvicorn_access_log": True}  # a line a sentence
    arguments = {**quiet, **with_defaults(settings.extra_arguments()), **_model_arguments(model)}
    if adapters:
        rank = max(map(adapter_rank, adapters.values()))
        arguments |= {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": rank}
        modules = [json.dumps({"name": name, "path": str(path)}) for name, path in adapters.items()]
    words = ["serve", model.name_or_path, "--served-model-name", served]
    return [*words, *argument_words(arguments), *(["--lora-modules", *modules] if adapters else [])]


def adapter_rank(folder: Path) -> int:
    """The --max-lora-rank that an adapter needs.

    Raises:
        SpecError: it is none that vLLM serves unmerged.
        PrerequisiteError: its configuration cannot be read.
    """
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_bytes())
        rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrerequisiteError(f"{path} does not say what rank the adapter has: {error!r}", _MERGE) from error
    refused = {
        "modules_to_save": config.get("modules_to_save"),
        "use_dora": config.get("use_dora"),
        "lora_bias": config.get("lora_bias"),
        "bias": None if config.get("bias", "none") == "none" else config["bias"],
    }
    for name, value in refused.items():
        if value:
            raise SpecError(f"vLLM does not serve an adapter with {name} ({value}) beside its model: {folder}", _MERGE)
    fitting = [each for each in RANKS if each >= rank]
    if not fitting:
        raise SpecError(f"{folder} has rank {rank}; vLLM serves adapters up to {RANKS[-1]}", _MERGE)
    return fitting[0]


def one_group(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether one server can hold them all: adapters on one model, and that model."""
    return len({checkpoint.model.model_copy(update={"adapter_name_or_path": None}) for checkpoint in checkpoints}) == 1


def _model_arguments(model: ModelSpec) -> dict[str, Any]:
    own = {"trust_remote_code": model.trust_remote_code or None, "revision": model.revision}
    return {name: value for name, value in own.items() if value is not None}
