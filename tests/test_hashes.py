"""Every byte of a model's files is hashed, once."""

import json
import os

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.models import hashes
from orchestrator.models.hashes import file_sha256, model_sha256, weights_sha256
from tests.model_folders import adapter_folder, model_folder, safetensors, sharded_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    made = model_folder(tmp_path / "it's a model")
    safetensors(made / "model.safetensors", {"x.weight": (1000, 1000)})
    return made


@pytest.mark.parametrize("at", [200_000, 2_000_000, -1])
def test_any_byte_of_the_weights_counts(folder, at):
    before = weights_sha256(folder), model_sha256(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[at] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert weights_sha256(folder) != before[0] and model_sha256(folder) != before[1]


def test_configuration_tokenizer_and_code_count_for_the_model_and_a_readme_and_its_place_do_not(folder):
    weights, seen = weights_sha256(folder), {model_sha256(folder)}
    (folder / "README.md").write_text("x")
    assert model_sha256(folder) in seen
    moved = folder.rename(folder.with_name("moved"))
    assert model_sha256(moved) in seen
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja", "modeling_x.py"):
        (moved / name).write_text(json.dumps({"changed": name}))
        seen.add(model_sha256(moved))
    assert len(seen) == 5 and weights_sha256(moved) == weights


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"target_modules": ["v_proj", "q_proj"], "base_model_name_or_path": "/b"}, True),
        ({"r": 8}, False),
        ({"target_modules": ["q_proj"]}, False),
    ],
)
def test_an_adapters_configuration_counts_but_for_order_and_place(folder, tmp_path, change, same):
    adapter = adapter_folder(tmp_path / "adapter")
    before = model_sha256(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    assert (model_sha256(adapter) == before) == same


def test_a_file_that_is_as_it_was_is_not_read_again(folder, monkeypatch):
    weights = folder / "model.safetensors"
    digest = file_sha256(weights)
    monkeypatch.setattr(hashes, "sha256_file", lambda path: "read again")
    assert file_sha256(weights) == digest
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert file_sha256(weights) == "read again"


def test_a_file_that_is_written_to_while_it_is_read_has_no_hash(folder, monkeypatch):
    weights = folder / "model.safetensors"
    monkeypatch.setattr(hashes, "sha256_file", lambda path: path.write_bytes(b"") or "0" * 64)
    with pytest.raises(PrerequisiteError, match="written to while it was read"):
        file_sha256(weights)


def test_a_file_that_cannot_be_read_is_named(folder, tmp_path):
    sharded = sharded_folder(tmp_path / "sharded")
    (sharded / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(PrerequisiteError, match=r"model-00001-of-00002\.safetensors cannot be read"):
        model_sha256(sharded)
