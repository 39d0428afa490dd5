"""Model and adapter folders: found, complete or not; and the headers of their safetensors files."""

import json
import os
from typing import Any

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.models.model_files import (
    adapter_problems,
    locate_model,
    lora_target_problem,
    model_problems,
    read_header,
    weight_problems,
)
from tests.model_folders import MODULES, adapter_folder, model_folder, safetensors, sharded_folder

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_a_folder_is_found_relative_absolute_and_at_home(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "models" / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("models/tiny", str(folder), "~/models/tiny", "./models/tiny"):
        assert locate_model(name, tmp_path) == folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "no folder") for name in ("./gone", "../gone", "~/gone", "a/b/gone", "ti ny", "~nobody-at-all/x")),
        ("x" * 300, "cannot be looked up"),
        ("./tiny-lama", "did you mean 'tiny-llama'"),
        ("tiny-llama/config.json", "is a file"),
    ],
)
def test_a_path_that_leads_nowhere_is_no_hub_id(name, expected, tmp_path):
    model_folder(tmp_path / "tiny-llama")
    with pytest.raises(SpecError, match=expected):
        locate_model(name, tmp_path)


CACHES = [("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")]


@pytest.mark.parametrize(("variable", "below"), CACHES)
def test_a_hub_id_is_found_in_the_local_cache(variable, below, tmp_path, monkeypatch):
    for name, _ in CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    repository = tmp_path / below / "models--Owner--Name"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    assert locate_model("Owner/Name", tmp_path) == locate_model("Owner/Name", tmp_path, "abc123") == snapshot
    assert locate_model("Owner/Name", tmp_path, "other") is locate_model("Owner/Other", tmp_path) is None


def test_complete_folders_have_no_problems(tmp_path):
    model, adapter = model_folder(tmp_path / "one"), adapter_folder(tmp_path / "adapter")
    assert model_problems(model) == model_problems(sharded_folder(tmp_path / "two")) == []
    assert adapter_problems(adapter) == weight_problems(adapter) == []
    assert "an adapter, not a model" in model_problems(adapter)[0]
    assert "a full model, not an adapter" in adapter_problems(model)[0]
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "empty" / "model.safetensors")  # it is not waited for
    assert len(model_problems(tmp_path / "empty")) == 3


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", "[]", "config.json is missing, or no JSON mapping"),
        ("tokenizer.json", None, "no tokenizer"),
        ("model.safetensors", None, "has no weights"),
    ],
)
def test_each_missing_or_damaged_part_is_named(name, content, expected, tmp_path):
    folder = model_folder(tmp_path / "tiny")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    (problem,) = model_problems(folder)
    assert expected in problem


def test_what_is_wrong_with_shards_is_named(tmp_path):
    folder = sharded_folder(tmp_path / "tiny")
    (folder / FIRST).unlink()
    os.truncate(folder / SECOND, (folder / SECOND).stat().st_size - 1)
    missing, cut = model_problems(folder)
    assert f"lacks 1 of 2 files: {FIRST}" in missing and f"{SECOND} is cut off" in cut
    safetensors(folder / FIRST, {f"{MODULES[0]}.weight": (4, 6)})
    safetensors(folder / SECOND, {f"{MODULES[1]}.weight": (4, 6)})
    (problem,) = model_problems(folder)
    assert f"lacks 1 tensors of the index, such as {MODULES[2]}.weight" in problem


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 7, "", ".."])
def test_an_index_cannot_point_out_of_its_folder(name, tmp_path):
    folder = sharded_folder(tmp_path / "tiny")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    (problem,) = model_problems(folder)
    assert "no file beside it" in problem
    safetensors(folder / "model.safetensors", {})
    assert model_problems(folder) == []  # one file goes before an index


def test_pickled_weights_are_left_alone(tmp_path):
    folder, adapter = model_folder(tmp_path / "tiny"), adapter_folder(tmp_path / "adapter")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert model_problems(folder) == adapter_problems(adapter) == []
    assert lora_target_problem("nothing", folder) is None


@pytest.mark.parametrize(
    "target", ["all", "q_proj", " q_proj , v_proj ", ["q_proj"], "self_attn.q_proj", "lm_head", MODULES[1]]
)
def test_targets_that_the_model_has_pass(target, tmp_path):
    assert lora_target_problem(target, model_folder(tmp_path / "tiny")) is None


@pytest.mark.parametrize("target", ["q_prj", "q_proj,q_prj", "proj", "norm", "all,q_proj", ""])
def test_targets_that_the_model_lacks_are_named_with_those_that_it_has(target, tmp_path):
    problem = lora_target_problem(target, model_folder(tmp_path / "tiny"))
    assert problem is not None and problem.endswith("it has embed_tokens, lm_head, q_proj, v_proj")
    assert ("did you mean 'q_proj'" in problem) is ("q_prj" in target)


def framed(value: object) -> bytes:
    """A value as the header of a file without data."""
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


def test_a_header_gives_names_types_and_shapes(tmp_path):
    numpy, library = pytest.importorskip("numpy"), pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    tensors = {"a": numpy.zeros((2, 3), numpy.float16), "b": numpy.zeros((), numpy.int64)}
    library.save_file(tensors, str(path), {"format": "pt"})
    assert read_header(path) == {"a": ("F16", (2, 3)), "b": ("I64", ())}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (framed(entry()) + bytes(3), "is cut off, or another file"),
        (framed(entry()) + bytes(5), "is cut off, or another file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (b"", "0 bytes"),
        (b"\xff" * 64, "no safetensors file"),
        ((50).to_bytes(8, "little") + b"{}", "cut off inside its header"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "no safetensors header"),
        (framed([]), "no safetensors header"),
        (framed(entry(shape="ab")), "no safetensors header"),
        (framed(entry(data_offsets=[0])), "no safetensors header"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_complete_safetensors_file_is_named(content, expected, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(framed(entry()) + bytes(4))
    read_header(path)
    path.write_bytes(content)
    with pytest.raises(PrerequisiteError, match=expected) as error:
        read_header(path)
    assert str(path) in error.value.message
