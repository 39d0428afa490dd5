"""Every byte of a model's weights, hashed once. Run: pytest tests/test_full_hash.py."""

import os

import pytest

from orchestrator.files import cache_folder
from orchestrator.models.full_hash import model_full_sha256
from orchestrator.models.model_files import model_sha256
from tests.model_folders import model_folder, safetensors


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model with weights of 4 MB."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    made = model_folder(tmp_path / "it's a model")
    safetensors(made / "model.safetensors", {"x.weight": (1000, 1000)})
    return made


def change_byte(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_it_sees_a_byte_that_samples_do_not(folder):
    sampled, full = model_sha256(folder), model_full_sha256(folder)
    change_byte(folder / "model.safetensors", 200_000)
    assert model_sha256(folder) == sampled
    assert model_full_sha256(folder) != full


def test_a_file_that_is_as_it_was_is_not_read_again(folder, capsys):
    full = model_full_sha256(folder)
    assert "hashing model.safetensors" in capsys.readouterr().err
    assert (model_full_sha256(folder), capsys.readouterr().err) == (full, "")
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert model_full_sha256(folder) == full
    assert "hashing model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[]", b'{"state": 1}', b"\xff"])
def test_what_is_kept_and_damaged_counts_for_nothing(folder, content):
    full = model_full_sha256(folder)
    (kept,) = (cache_folder() / "hashes").iterdir()
    kept.write_bytes(content)
    assert model_full_sha256(folder) == full
