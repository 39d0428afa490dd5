"""Chat templates: read from source, and which one a model goes with. Run: pytest tests/test_chat_templates.py."""

import json
import sys
from pathlib import Path

import pytest
from model_folders import llamafactory_sources

from orchestrator.specs.spec import ModelSpec
from orchestrator.upstream.chat_templates import (
    ChatTemplates,
    has_chat_template,
    read_templates,
    resolve_template,
    suggest_template,
)
from orchestrator.upstream.installation import VARIABLE, Installation, find_installation


@pytest.fixture
def templates(tmp_path: Path) -> ChatTemplates:
    return read_templates(llamafactory_sources(tmp_path))


def model(root: Path, name: str, **config: object) -> Path:
    (root / name).mkdir()
    (root / name / "config.json").write_text(json.dumps(config))
    return root / name


def test_what_the_module_itself_registers_is_read(templates):
    assert templates.names.keys() == {"plain", "thinker", "quick"}
    assert templates.reasoning == {"thinker", "quick"}


def test_without_source_nothing_is_known(tmp_path):
    bare = Installation(tmp_path / "cli", Path(sys.executable), None, {})
    assert read_templates(bare) == ChatTemplates()
    assert read_templates(Installation(bare.cli, bare.python, tmp_path, {})) == ChatTemplates()


@pytest.mark.parametrize(
    ("name", "config", "template", "reason"),
    [
        ("Owner/One-it", None, "plain", "lists One-it with plain"),
        ("somebody/One-it", None, "plain", "lists One-it with plain"),  # a copy of it
        ("Owner/Eye", None, "thinker", "lists Eye"),  # its group is multimodal: no mark is needed in the name
        ("Owner/One", None, None, "lists One as a base model"),
        ("Owner/Three", None, None, "lists Three as a base model"),
        ("somebody/One", None, None, "not clear: One is listed with no template and quick"),
        ("Else/One", None, "quick", "lists One with quick"),  # the owner tells them apart
        ("somebody/One-it-tuned", None, None, "lists no model One-it-tuned"),
        ("One-it", {}, "plain", "lists One-it"),
        ("One___5-it", {}, "plain", "lists One___5-it"),  # as ModelScope names its folders
        ("mine", {"_name_or_path": "/data/models/One-it/"}, "plain", "lists One-it"),
        ("mine", {"_name_or_path": 3}, None, "lists no model mine"),
        ("Uno", {"_name_or_path": "Owner/One-it"}, None, "lists Uno as a base model"),
        ("One-it", {"_name_or_path": "Owner/Eye"}, "plain", "lists One-it with plain"),
    ],
)
def test_a_hub_id_or_a_folder_s_name_and_configuration_are_looked_up(
    name, config, template, reason, tmp_path, templates
):
    folder = None if config is None else model(tmp_path, name, **config)
    found = suggest_template(name if folder is None else f"models/{name}/", folder, templates)
    assert found[0] == template and reason in found[1]


def test_only_a_template_that_is_left_out_is_found(tmp_path):
    found = llamafactory_sources(tmp_path)
    folder = str(model(tmp_path, "One-it"))
    given, reason = resolve_template(ModelSpec(name_or_path=folder), tmp_path, found)
    assert (given.template, reason) == ("plain", "LLaMA-Factory lists One-it with plain")
    for spec in (given, *(ModelSpec(name_or_path=folder, template=each) for each in (None, "quick"))):
        assert resolve_template(spec, tmp_path, found) == (spec, "")
    unknown, reason = resolve_template(ModelSpec(name_or_path="a/b"), tmp_path, found)
    assert unknown.template is None and "lists no model b" in reason
    assert resolve_template(unknown, tmp_path, found) == (unknown, "")


def test_a_tokenizer_s_own_chat_template_is_seen(tmp_path):
    for text, there in (("[", False), ('{"chat_template": null}', False), ('{"chat_template": "x"}', True)):
        (tmp_path / "tokenizer_config.json").write_text(text)
        assert has_chat_template(tmp_path) is there
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert has_chat_template(tmp_path)


def test_the_real_installation_knows_well_known_models(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    templates = read_templates(find_installation())
    assert {"default", "empty", "qwen", "llama3", "alpaca"} <= templates.names.keys() and len(templates.names) > 100
    assert "custom" not in templates.names  # the docstring's example
    assert "qwen3" in templates.reasoning and "qwen3_nothink" not in templates.reasoning
    expected = {
        "Qwen/Qwen2.5-7B-Instruct": "qwen",
        "Qwen/Qwen3-0.6B": "qwen3",
        "Qwen/Qwen3-4B-Instruct-2507": "qwen3_nothink",
        "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2",
        "Qwen/Qwen2.5-7B": None,
        "copies/gemma-7b": None,
    }
    assert {name: suggest_template(name, None, templates)[0] for name in expected} == expected
