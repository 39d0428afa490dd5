"""What a spec holds in a place of its own, what it may not hold (secrets), and fields of earlier versions."""

import re
from typing import Any

# Section ('' for the top level) and field of a spec, or why a spec has none.
Place = tuple[str, str] | str

RESERVED_ARGUMENTS: dict[str, Place] = {
    "model_name_or_path": ("model", "name_or_path"),
    "adapter_name_or_path": ("model", "adapter_name_or_path"),
    "template": ("model", "template"),
    "default_system": ("model", "default_system"),
    "enable_thinking": ("model", "enable_thinking"),
    "trust_remote_code": ("model", "trust_remote_code"),
    "model_revision": ("model", "revision"),
    "dataset": ("", "dataset"),
    "eval_dataset": ("", "eval_dataset"),
    "seed": ("", "seed"),
    "infer_backend": ("serve", "infer_backend"),
    "export_dir": ("export", "export_dir"),
    "dataset_dir": "it is the run folder",
    "output_dir": "it is output/ in the run folder",
    "overwrite_output_dir": "each run has a new output folder",
    "resume_from_checkpoint": "each run starts in a new output folder; `orchestrator resume` continues one",
    "do_train": "a spec with a train section trains",
    "enable_jit_checkpoint": "it is on, so that Ctrl-C leaves a checkpoint",
}
MODEL_PLACES = {name: place[1] for name, place in RESERVED_ARGUMENTS.items() if place[0] == "model"}

# What patch_tokenizer, resize_embedding_layer and configure_rope of LLaMA-Factory read: a model trained with one
# of these is another model without it.
MODEL_ARGUMENTS = (
    "add_tokens",
    "add_special_tokens",
    "new_special_tokens_config",
    "resize_vocab",
    "split_special_tokens",
    "rope_scaling",
)

RESERVED_ENV: dict[str, Place] = {
    "CUDA_VISIBLE_DEVICES": ("compute", "devices"),
    "NPROC_PER_NODE": ("compute", "nproc_per_node"),
    "NNODES": ("compute", "nnodes"),
    "NODE_RANK": ("compute", "node_rank"),
    "MASTER_ADDR": ("compute", "master_addr"),
    "MASTER_PORT": ("compute", "master_port"),
    "API_HOST": ("serve", "host"),
    "API_PORT": ("serve", "port"),
    "MAX_CONCURRENT": ("serve", "max_concurrent"),
    "USE_V1": "LLaMA-Factory's v1 has other commands and arguments",
    "ALLOW_EXTRA_ARGS": "it would hide a mistyped argument",
}
# Of these, what LLaMA-Factory's launcher.py gives to torchrun, by field of the compute section.
LAUNCHER_ENV = {at[1]: name for name, at in RESERVED_ENV.items() if at[0] == "compute" and at[1] != "devices"}

_OWN = (
    "model trust_remote_code revision tokenizer tokenizer_revision tokenizer_mode skip_tokenizer_init chat_template "
    "chat_template_content_format trust_request_chat_template default_chat_template_kwargs response_role "
    "generation_config override_generation_config enable_lora lora_modules max_loras max_lora_rank served_model_name "
    "config uds headless grpc root_path tokens_only ssl_keyfile ssl_certfile"
)
# Arguments of `vllm serve`. api_key and hf_token are secrets.
RESERVED_VLLM: dict[str, Place] = dict.fromkeys(
    _OWN.split(), "model, prompt, adapters, sampling and address follow from the other fields of the spec"
)

# Fields of earlier versions, with the value that changed nothing.
_RETIRED: dict[str, dict[str, Any]] = {
    "compute": dict.fromkeys(("rdzv_id", "min_nnodes", "max_nnodes", "max_restarts", "cloud"), None)
    | {"ray": False, "ray_timeout_s": 600},
    "compute.slurm": {"benchmark": None},
    "benchmark": {"during": False},
}

# Text that says no more than yes, no or how many is no secret: HF_HUB_DISABLE_IMPLICIT_TOKEN=1.
_PLAIN = re.compile(r"|\d{1,3}|true|false|yes|no|on|off|none|null", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"(^|[_-])(api_?keys?|key|secrets?|pass(word|wd|phrase)?|pwd|pat|auth|bearer|credentials?|webhook)([_-]|$)"
    r"|(^|[_-])token$",  # at the end alone: add_tokens and pad_token_id are none
    re.IGNORECASE,
)
_PATH = re.compile(r"_(path|file|dir|sock)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"://[^/@\s:]*:[^/@\s]+@"  # a URL with a password
    r"|\b(hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[a-z]-)[A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b|PRIVATE KEY-----"
)
SECRET_REMEDY = "remove it, and export its library's variable, such as HF_TOKEN; a server's key: ORCHESTRATOR_API_KEY"


def reason(place: Place) -> str:
    """What to do instead, as the end of a sentence."""
    return place if isinstance(place, str) else f"write it as {'.'.join(filter(None, place))}"


def drop_retired(spec: dict[str, Any]) -> list[str]:
    """Remove the fields of earlier versions from a spec; those that had an effect are returned, as section.field."""
    dropped: dict[str, None] = {}
    for path, fields in _RETIRED.items():
        value: Any = spec
        for step in path.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                changed = [name for name in fields if name in each and each.pop(name) != fields[name]]
                dropped |= {f"{path}.{name}": None for name in changed}
    return list(dropped)


def is_secret(name: str, value: object = "?") -> bool:
    """Whether an argument or a variable holds a secret; a number, true or false is never one."""
    if not isinstance(value, str) or _PLAIN.fullmatch(value):
        return False
    return bool(_SECRET_NAME.search(name) and not _PATH.search(name)) or bool(_SECRET_VALUE.search(value))
