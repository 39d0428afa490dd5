"""Model and adapter folders: found, whole or not, and hashed."""

import json
import os
from pathlib import Path

import pytest
from model_folders import MODULES, adapter_folder, model_folder, safetensors, sharded_folder

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.models.model_files import (
    adapter_problems,
    adapter_sha256,
    locate_model,
    lora_target_problem,
    model_problems,
    model_sha256,
    unchecked_weights,
    weight_problems,
)

CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")


def test_a_folder_is_found_relative_absolute_and_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "models" / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("models/tiny", str(folder), "~/models/tiny", "./models/tiny"):
        assert locate_model(name, tmp_path) == folder


@pytest.mark.parametrize(
    "name", ["./gone", "../gone", "/gone", "~/gone", "a/b/gone", "models/ti ny", "x" * 300, "~nobody-at-all/x"]
)
def test_a_path_that_leads_nowhere_is_no_hub_id(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        locate_model(name, tmp_path)


def test_a_misspelt_folder_gets_its_nearest_neighbour(tmp_path: Path) -> None:
    model_folder(tmp_path / "models" / "tiny-llama")
    with pytest.raises(SpecError, match="did you mean 'tiny-llama'"):
        locate_model("./models/tiny-lama", tmp_path)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    model_folder(tmp_path / "tiny")
    with pytest.raises(SpecError, match="is a file") as error:
        locate_model("tiny/model.safetensors", tmp_path)
    assert error.value.remedy == f"write {tmp_path / 'tiny'}"


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
    assert locate_model("Owner/Name", tmp_path) == snapshot
    assert locate_model("Owner/Name", tmp_path, "abc123") == snapshot
    assert locate_model("Owner/Name", tmp_path, "other") is None
    assert locate_model("Owner/Other", tmp_path) is None


def test_whole_folders_have_no_problems(tmp_path: Path) -> None:
    assert model_problems(model_folder(tmp_path / "one")) == []
    assert model_problems(sharded_folder(tmp_path / "two")) == []
    assert adapter_problems(adapter_folder(tmp_path / "adapter")) == []
    assert weight_problems(tmp_path / "adapter") == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no weights"),
    ],
)
def test_each_missing_part_is_named(name: str, said: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    (folder / name).unlink()
    (problem,) = model_problems(folder)
    assert said in problem


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert len(model_problems(tmp_path / "empty")) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no JSON mapping"),
    ],
)
def test_a_damaged_configuration_is_named(text: str, said: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    (folder / "config.json").write_text(text)
    (problem,) = model_problems(folder)
    assert said in problem and "config.json" in problem


def test_a_missing_shard_and_a_cut_one_are_both_named(tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "tiny")
    (folder / "model-00001-of-00002.safetensors").unlink()
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    missing, cut = model_problems(folder)
    assert "lacks 1 of 2 shards: model-00001-of-00002.safetensors" in missing
    assert "1 of" in cut and "bytes are missing" in cut


def test_a_shard_without_a_tensor_of_the_index_is_named(tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "tiny")
    safetensors(folder / "model-00002-of-00002.safetensors", {f"{MODULES[1]}.weight": (4, 6)})
    (problem,) = model_problems(folder)
    assert f"lacks 1 tensors of the index, such as {MODULES[2]}.weight" in problem


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b", 7, "", ".."])
def test_an_index_cannot_point_out_of_its_folder(name: object, tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "tiny")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    (problem,) = model_problems(folder)
    assert "no file beside it" in problem


def test_weights_without_their_index_are_named(tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "tiny")
    (folder / "model.safetensors.index.json").unlink()
    (problem,) = model_problems(folder)
    assert "its index" in problem and "model-00001-of-00002.safetensors" in problem


def test_one_file_goes_before_an_index(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert model_problems(folder) == []


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


def test_a_model_and_an_adapter_are_told_apart(tmp_path: Path) -> None:
    model, adapter = model_folder(tmp_path / "tiny"), adapter_folder(tmp_path / "adapter")
    assert "an adapter, not a model" in model_problems(adapter)[0]
    assert "a full model, not an adapter" in adapter_problems(model)[0]


def test_an_adapter_without_weights_is_named(tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    (problem,) = adapter_problems(adapter)
    assert "adapter_model.safetensors is missing" in problem


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


def test_a_models_hash_is_that_of_its_files_not_of_their_place(tmp_path: Path) -> None:
    first, second = model_folder(tmp_path / "one"), model_folder(tmp_path / "two")
    (second / "README.md").write_text("notes")
    assert model_sha256(first) == model_sha256(second)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "modeling_x.py"])
def test_a_models_hash_sees_configuration_tokenizer_and_code(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    before = model_sha256(folder)
    with (folder / name).open("a") as file:
        file.write(" ")
    assert model_sha256(folder) != before


def test_a_models_hash_tells_two_trainings_of_one_shape_apart(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    big = {"x.weight": (1 << 10, 1 << 10)}
    safetensors(folder / "model.safetensors", big)
    before = model_sha256(folder)
    safetensors(folder / "model.safetensors", big, fill=b"\1")
    assert model_sha256(folder) != before
    shards = sharded_folder(tmp_path / "shards")
    before = model_sha256(shards)
    os.truncate(shards / "model-00002-of-00002.safetensors", 100)
    assert model_sha256(shards) != before


def test_an_adapters_hash_leaves_out_the_order_of_its_targets(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "adapter")
    before = adapter_sha256(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["v_proj", "q_proj"]}))
    assert adapter_sha256(folder) == before
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["v_proj"]}))
    assert adapter_sha256(folder) != before
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert adapter_sha256(folder) != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "tiny")
    (folder / "config.json").chmod(0)
    with pytest.raises(PrerequisiteError, match=r"config\.json"):
        model_sha256(folder)
