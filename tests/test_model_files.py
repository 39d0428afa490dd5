"""Model and adapter folders: found, complete or not, and hashed."""

import json
from pathlib import Path

import pytest
from model_folders import MODULES, adapter_folder, model_folder, safetensors, sharded_folder

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.models import hashes
from orchestrator.models.hashes import model_sha256, weights_sha256
from orchestrator.models.model_files import (
    adapter_problems,
    locate_model,
    lora_target_problem,
    model_problems,
    unchecked_weights,
    weight_problems,
)

CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_a_folder_is_found_relative_absolute_and_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "models" / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("models/tiny", str(folder), "~/models/tiny", "./models/tiny"):
        assert locate_model(name, tmp_path) == folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((name, "no folder") for name in ("./gone", "../gone", "~/gone", "a/b/gone", "ti ny", "~nobody-at-all/x")),
        ("x" * 300, "cannot be looked up"),
        ("./tiny-lama", "did you mean 'tiny-llama'"),
        ("tiny-llama/config.json", "is a file"),
    ],
)
def test_a_path_that_leads_nowhere_is_no_hub_id(name: str, said: str, tmp_path: Path) -> None:
    model_folder(tmp_path / "tiny-llama")
    with pytest.raises(SpecError, match=said):
        locate_model(name, tmp_path)


@pytest.mark.parametrize(
    ("variable", "below"),
    [("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_a_hub_id_is_found_in_the_local_cache(
    variable: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CACHE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    repository = tmp_path / below / "models--Owner--Name"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    assert locate_model("Owner/Name", tmp_path) == locate_model("Owner/Name", tmp_path, "abc123") == snapshot
    assert locate_model("Owner/Name", tmp_path, "other") is locate_model("Owner/Other", tmp_path) is None


def test_complete_folders_have_no_problems(tmp_path: Path) -> None:
    model, adapter = model_folder(tmp_path / "one"), adapter_folder(tmp_path / "adapter")
    assert model_problems(model) == model_problems(sharded_folder(tmp_path / "two")) == []
    assert adapter_problems(adapter) == weight_problems(adapter) == []
    assert "an adapter, not a model" in model_problems(adapter)[0]
    assert "a full model, not an adapter" in adapter_problems(model)[0]
    (adapter / "adapter_model.safetensors").unlink()
    assert "has no weights" in adapter_problems(adapter)[0]
    (tmp_path / "empty").mkdir()
    assert len(model_problems(tmp_path / "empty")) == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", "{", "config.json is no JSON mapping"),
        ("config.json", "[]", "config.json is no JSON mapping"),
        ("tokenizer.json", None, "no tokenizer"),
        ("model.safetensors", None, "has no weights"),
    ],
)
def test_each_missing_or_damaged_part_is_named(name: str, content: str | None, said: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    (problem,) = model_problems(folder)
    assert said in problem


def test_what_is_wrong_with_shards_is_named(tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "tiny")
    (folder / FIRST).unlink()
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[:-1])
    missing, cut = model_problems(folder)
    assert f"lacks 1 of 2 files: {FIRST}" in missing and "bytes are missing" in cut
    safetensors(folder / FIRST, {f"{MODULES[0]}.weight": (4, 6)})
    safetensors(folder / SECOND, {f"{MODULES[1]}.weight": (4, 6)})
    (problem,) = model_problems(folder)
    assert f"lacks 1 tensors of the index, such as {MODULES[2]}.weight" in problem
    (folder / "model.safetensors.index.json").unlink()
    (problem,) = model_problems(folder)
    assert "has no weights" in problem


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b", 7, "", ".."])
def test_an_index_cannot_point_out_of_its_folder(name: object, tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "tiny")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    (problem,) = model_problems(folder)
    assert "no file beside it" in problem
    safetensors(folder / "model.safetensors", {})
    assert model_problems(folder) == []  # one file goes before an index


def test_pickled_weights_are_left_alone_and_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    assert unchecked_weights(folder) == []
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert model_problems(folder) == []
    assert unchecked_weights(folder) == ["pytorch_model.bin"]
    assert lora_target_problem("nothing", folder) is None
    adapter = adapter_folder(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert adapter_problems(adapter) == [] and unchecked_weights(adapter) == ["adapter_model.bin"]


@pytest.mark.parametrize(
    "target",
    ["all", "q_proj", "q_proj,v_proj", " q_proj , v_proj ", ["q_proj"], "self_attn.q_proj", "lm_head", MODULES[1]],
)
def test_targets_that_the_model_has_pass(target: str | list[str], tmp_path: Path) -> None:
    assert lora_target_problem(target, model_folder(tmp_path / "tiny")) is None


@pytest.mark.parametrize("target", ["q_prj", "q_proj,q_prj", "proj", "norm", "all,q_proj", ""])
def test_targets_that_the_model_lacks_are_named_with_those_that_it_has(target: str, tmp_path: Path) -> None:
    problem = lora_target_problem(target, model_folder(tmp_path / "tiny"))
    assert problem is not None and problem.endswith("it has embed_tokens, lm_head, q_proj, v_proj")
    if target == "q_prj":
        assert "did you mean 'q_proj'" in problem


# Hashes


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))


def test_a_models_hash_is_that_of_its_files_not_of_their_place(tmp_path: Path) -> None:
    first, second = model_folder(tmp_path / "one"), model_folder(tmp_path / "two")
    (second / "README.md").write_text("notes")
    assert model_sha256(first) == model_sha256(second)
    assert weights_sha256(first) != weights_sha256(sharded_folder(tmp_path / "three"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "modeling_x.py"])
def test_a_models_hash_sees_configuration_tokenizer_and_code(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    before, weights = model_sha256(folder), weights_sha256(folder)
    with (folder / name).open("a") as file:
        file.write(" ")
    assert model_sha256(folder) != before and weights_sha256(folder) == weights


@pytest.mark.parametrize("at", [0.5, 1])
def test_every_byte_of_the_weights_counts(at: float, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    path = safetensors(folder / "model.safetensors", {"x.weight": (1 << 10, 1 << 10)})
    before = model_sha256(folder), weights_sha256(folder)
    content = bytearray(path.read_bytes())
    content[int(len(content) * at) - 1] ^= 1
    path.write_bytes(content)
    assert model_sha256(folder) != before[0] and weights_sha256(folder) != before[1]


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "tiny")
    read: list[str] = []
    digest = hashes._digest
    monkeypatch.setattr(hashes, "_digest", lambda path: read.append(path.name) or digest(path))
    assert model_sha256(folder) == model_sha256(folder)
    assert sorted(read) == ["config.json", "model.safetensors", "tokenizer.json"]
    (folder / "tokenizer.json").write_text("[ ]")
    model_sha256(folder)
    assert read[3:] == ["tokenizer.json"]


def test_an_adapters_hash_leaves_out_the_order_of_its_targets_and_the_path_of_its_model(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "adapter")
    before = model_sha256(folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "target_modules": ["v_proj", "q_proj"], "base_model_name_or_path": "x"}))
    assert model_sha256(folder) == before
    path.write_text(json.dumps({**config, "target_modules": ["v_proj"]}))
    assert model_sha256(folder) != before
    path.write_text(json.dumps(config))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert model_sha256(folder) != before


def test_a_damaged_index_is_an_error_of_the_hash(tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "tiny")
    (folder / FIRST).unlink()
    with pytest.raises(PrerequisiteError, match=FIRST):
        model_sha256(folder)
