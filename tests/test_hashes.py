"""Every byte of a model's files is hashed, once."""

import json
import os

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.files import cache_folder
from orchestrator.models import hashes
from orchestrator.models.hashes import file_sha256, model_sha256, weights_sha256
from tests.model_folders import model_folder, safetensors


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model with weights of 4 MB."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    made = model_folder(tmp_path / "it's a model")
    safetensors(made / "model.safetensors", {"x.weight": (1000, 1000)})
    return made


@pytest.fixture
def adapter(tmp_path, folder):
    made = tmp_path / "adapter"
    made.mkdir()
    safetensors(made / "adapter_model.safetensors", {"x.lora_A.weight": (4, 10)})
    (made / "adapter_config.json").write_text(
        json.dumps({"r": 4, "target_modules": ["q", "v"], "base_model_name_or_path": "/a"})
    )
    return made


def change_byte(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [200_000, 2_000_000, -1])
def test_any_byte_of_the_weights_counts(folder, at):
    before = weights_sha256(folder), model_sha256(folder)
    change_byte(folder / "model.safetensors", at)
    assert weights_sha256(folder) != before[0] and model_sha256(folder) != before[1]


def test_configuration_tokenizer_and_code_count_for_the_model_and_a_readme_does_not(folder):
    weights, seen = weights_sha256(folder), {model_sha256(folder)}
    (folder / "README.md").write_text("x")
    assert model_sha256(folder) in seen
    for name in ("config.json", "tokenizer_config.json", "modeling_x.py"):
        (folder / name).write_text(json.dumps({"changed": name}))
        seen.add(model_sha256(folder))
    assert len(seen) == 4 and weights_sha256(folder) == weights


@pytest.mark.parametrize(
    ("config", "same"),
    [
        ({"r": 4, "target_modules": ["v", "q"], "base_model_name_or_path": "/b"}, True),
        ({"r": 8, "target_modules": ["q", "v"], "base_model_name_or_path": "/a"}, False),
        ({"r": 4, "target_modules": ["q"], "base_model_name_or_path": "/a"}, False),
    ],
)
def test_an_adapters_configuration_counts_but_for_order_and_place(adapter, config, same):
    before = model_sha256(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert (model_sha256(adapter) == before) == same


def test_a_file_that_is_as_it_was_is_not_read_again(folder, monkeypatch):
    weights = folder / "model.safetensors"
    digest = file_sha256(weights)
    with monkeypatch.context() as patch:
        patch.setattr(hashes, "_digest", lambda path: "read again")
        assert file_sha256(weights) == digest
        os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
        assert file_sha256(weights) == "read again"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"state": 1}', b"\xff"])
def test_a_damaged_memory_counts_for_nothing(folder, content):
    digest = file_sha256(folder / "config.json")
    (kept,) = (cache_folder() / "hashes").iterdir()
    kept.write_bytes(content)
    assert file_sha256(folder / "config.json") == digest


def test_a_file_that_cannot_be_read_is_named(folder):
    with pytest.raises(PrerequisiteError, match=r"none\.bin cannot be read"):
        file_sha256(folder / "none.bin")
