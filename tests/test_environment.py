"""Which variables of the environment a record keeps. Run: pytest tests/test_environment.py."""

import pytest

from orchestrator.runs.environment import MAX_LENGTH, that_matter


@pytest.mark.parametrize(
    "name",
    ["CUDA_VISIBLE_DEVICES", "NCCL_P2P_DISABLE", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "NVIDIA_TF32_OVERRIDE",
     "HF_HOME", "OPTIM_TORCH", "LD_PRELOAD", "HF_TOKEN_PATH", "TOKENIZERS_PARALLELISM"],
)  # fmt: skip
def test_what_can_change_a_run_is_kept(name):
    assert that_matter({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "RAY_REDIS_PASSWORD", "HF_SECRET_NAME", "VLLM_API_KEY", "hf_token",
     "HOME", "PATH", "LANG", "OPENAI_API_KEY", "ORCHESTRATOR_API_KEY", "WANDB_API_KEY"],
)  # fmt: skip
def test_secrets_and_all_else_are_not(name):
    assert that_matter({name: "x"}) == {}


def test_a_password_in_an_address_is_hidden_and_long_values_are_cut():
    found = that_matter({"HF_ENDPOINT": "https://me:secret@hub.example.org/x", "LD_LIBRARY_PATH": "x" * 9000})
    assert found["HF_ENDPOINT"] == "https://***@hub.example.org/x"
    assert len(found["LD_LIBRARY_PATH"]) < MAX_LENGTH + 30 and "9000" in found["LD_LIBRARY_PATH"]


def test_bytes_of_no_encoding_can_be_written():
    (value,) = that_matter({"LD_PRELOAD": "/x/\udcff.so"}).values()
    assert value.encode() == rb"/x/\udcff.so"
