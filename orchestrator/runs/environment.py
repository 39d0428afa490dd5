"""The environment variables that reach LLaMA-Factory from ours, and can change what comes of a run.

Covered: variables of CUDA, NCCL, PyTorch, the math libraries, Hugging Face's packages, LLaMA-Factory, the loader; those
that hold a key or a token are left out, and what an address holds of a password.
Not covered: those that a spec sets (the record has them by stage); whether a difference matters (drift.py).
Writes nothing.
"""

import re
from collections.abc import Mapping

from orchestrator.specs.compute_spec import is_secret

MAX_LENGTH = 4000
_PREFIXES = (
    # devices and how they talk to each other
    *("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "UCX_", "FI_", "HIP_", "ROCR_", "HSA_", "ASCEND_", "ZE_", "ONEAPI_"),
    # how sums are taken
    *("TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "ATEN_", "TRITON_", "CUBLAS_", "CUDNN_", "OMP_", "GOMP_", "KMP_", "MKL_"),
    *("OPENBLAS_", "BLIS_", "DNNL_", "ONEDNN_", "NUMEXPR_", "FLASH_", "XFORMERS_", "BNB_", "BITSANDBYTES_"),
    # packages
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "DATASETS_", "ACCELERATE_", "FSDP_", "DEEPSPEED_", "DS_"),
    *("PEFT_", "UNSLOTH_", "LIGER_", "VLLM_", "SGLANG_", "RAY_", "LLAMAFACTORY_", "MODELSCOPE_", "FP8_"),
)
# LLaMA-Factory's launcher and extras; the interpreter and the loader.
_NAMES = frozenset(
    "FORCE_TORCHRUN NNODES NODE_RANK NPROC_PER_NODE MASTER_ADDR MASTER_PORT RDZV_ID MIN_NNODES MAX_NNODES MAX_RESTARTS "
    "OPTIM_TORCH USE_RAY USE_KT USE_MCA USE_MODELSCOPE_HUB USE_OPENMIND_HUB RECORD_VRAM DISABLE_VERSION_CHECK "
    "FORCE_CHECK_IMPORTS NPU_JIT_COMPILE DOWNSAMPLE_MODE IMAGE_PLACEHOLDER VIDEO_PLACEHOLDER AUDIO_PLACEHOLDER "
    "PYTHONHASHSEED PYTHONPATH PYTHONNOUSERSITE LD_PRELOAD LD_LIBRARY_PATH MALLOC_CONF".split()
)
_SECRET_PART = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")


def that_matter(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables by name, in order; values that are very long are cut."""
    found = {}
    for name in sorted(environment):
        if not (name.startswith(_PREFIXES) or name in _NAMES):
            continue
        if is_secret(name) or (_SECRET_PART.search(name.upper()) and not name.endswith("_PATH")):
            continue
        value = _USER_INFO.sub("***@", environment[name]).encode("utf-8", "backslashreplace").decode()
        found[name] = value if len(value) <= MAX_LENGTH else f"{value[:MAX_LENGTH]}... ({len(value)} characters)"
    return found
