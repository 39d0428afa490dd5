"""The plan of `vllm serve`: one model with any number of LoRA adapters, and the chat template of training.

Sources, vLLM 0.11.0 to 0.33.0: cli_args.py (LoRAParserAction: JSON, so that a path may hold '=' and ','),
sampling_params.py (eos_token_id of the generation config ends an answer), lora/peft_helper.py (adapters it refuses).
"""

import json
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.serving.server import ServePlan, Serving
from orchestrator.specs.render import Checkpoint
from orchestrator.upstream.installation import Installation
from orchestrator.upstream.vllm import DEFAULTS, ChatPrompt, argument_words, settings_of_environment

# What --max-lora-rank may be: config/lora.py of vLLM 0.33, possible_max_ranks of older ones.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
BASE = "base"  # the server's name for the model below its adapters
_MERGE = "serve it merged: serve.merge: true, or --merge"


def vllm_plan(
    checkpoints: Mapping[str, Checkpoint],
    names: Mapping[str, str],
    serving: Serving,
    vllm: Installation,
    prompt: ChatPrompt,
) -> ServePlan:
    """How checkpoints on one base model are served: `names` has our names of them and those on the server.

    Raises SpecError: vLLM cannot serve such an adapter.
    """
    template, generation = serving.folder / "chat_template.jinja", serving.folder / "generation"
    model = next(iter(checkpoints.values())).model
    adapters = {name: each.model.adapter_name_or_path for name, each in checkpoints.items()}
    served = next((names[name] for name, adapter in adapters.items() if adapter is None), BASE)
    folders = {names[name]: Path(adapter) for name, adapter in adapters.items() if adapter is not None}
    quiet = {"disable_uvicorn_access_log": True}  # a line a sentence
    own = {"trust_remote_code": model.trust_remote_code or None, "revision": model.revision}
    arguments = {**quiet, **DEFAULTS, **serving.settings.extra_arguments(), **own}
    if folders:
        if lost := [name for name, value in model.arguments.items() if value]:
            raise SpecError(f"vLLM knows nothing of {', '.join(lost)}, which makes another model", _MERGE)
        rank = max(map(adapter_rank, folders.values()))
        arguments |= {"enable_lora": True, "max_loras": len(folders), "max_lora_rank": rank}
    modules = [json.dumps({"name": name, "path": str(path)}) for name, path in folders.items()]
    end = {"eos_token_id": list(prompt.stop_token_ids)}
    argv = [
        *("serve", model.name_or_path, "--served-model-name", served),
        *argument_words(arguments),
        *(["--lora-modules", *modules] if modules else []),
        *("--host", serving.settings.host, "--port", str(serving.port)),
        *("--chat-template", str(template), "--chat-template-content-format", "string"),
        *("--generation-config", str(generation)),
    ]
    return ServePlan(
        serving,
        argv=[str(vllm.cli), *argv],
        environment={**settings_of_environment(), "VLLM_NO_USAGE_STATS": "1"},
        key_variable="VLLM_API_KEY",
        files={template: prompt.chat_template, generation / "generation_config.json": json.dumps(end)},
        model_names=names,
    )


def adapter_rank(folder: Path) -> int:
    """The --max-lora-rank that an adapter needs.

    Raises SpecError: vLLM serves no such adapter unmerged. PrerequisiteError: its configuration cannot be read.
    """
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_bytes())
        rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrerequisiteError(f"{path} does not give the adapter's rank: {error!r}", _MERGE) from error
    for name in ("modules_to_save", "use_dora", "lora_bias", "bias"):
        if config.get(name) not in (None, False, [], "none"):
            raise SpecError(f"vLLM does not serve an adapter with {name} ({config[name]}): {folder}", _MERGE)
    if rank > RANKS[-1]:
        raise SpecError(f"{folder} has rank {rank}; vLLM serves adapters up to {RANKS[-1]}", _MERGE)
    return next(each for each in RANKS if each >= rank)
