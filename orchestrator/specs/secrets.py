"""What holds a key, a token or a password, by its name or its value: it is never written to a run folder."""

import re

# Text that says no more than yes, no or how many is no secret: HF_HUB_DISABLE_IMPLICIT_TOKEN=1.
_PLAIN = re.compile(r"|\d{1,3}|true|false|yes|no|on|off|none|null", re.IGNORECASE)
_NAME = re.compile(
    r"(^|[_-])(api_?keys?|key|secrets?|pass(word|wd|phrase)?|pwd|pat|auth|bearer|credentials?|webhook)([_-]|$)"
    r"|(^|[_-])token$",  # at the end alone: add_tokens and pad_token_id are none
    re.IGNORECASE,
)
_PATH = re.compile(r"_(path|file|dir|sock)$", re.IGNORECASE)
_VALUE = re.compile(
    r"://[^/@\s:]*:[^/@\s]+@"  # a URL with a password
    r"|\b(hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[a-z]-)[A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b|PRIVATE KEY-----"
)
# Arguments of LLaMA-Factory and vLLM, and the variable that the library behind each reads itself.
_INSTEAD = {
    "hf_hub_token": "HF_TOKEN",
    "hub_token": "HF_TOKEN",
    "hf_token": "HF_TOKEN",
    "ms_hub_token": "MODELSCOPE_API_TOKEN",
    "swanlab_api_key": "SWANLAB_API_KEY",
    "api_key": "ORCHESTRATOR_API_KEY",
}


def is_secret(name: str, value: object = "?") -> bool:
    """Whether an argument or a variable holds a secret; a number, true or false is never one."""
    if not isinstance(value, str) or _PLAIN.fullmatch(value):
        return False
    return bool(_NAME.search(name) and not _PATH.search(name)) or bool(_VALUE.search(value))


def secret_remedy(name: str) -> str:
    """What to do instead of writing a secret into a spec."""
    return f"remove it here, and export {_INSTEAD.get(name, 'it')} instead"
