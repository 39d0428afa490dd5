"""The JSON Schema of a spec: what editors make of it. Run: pytest tests/test_schema.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.specs.arguments import Argument
from orchestrator.specs.places import RESERVED_ARGUMENTS
from orchestrator.specs.schema import spec_schema
from orchestrator.specs.spec_file import load_spec
from orchestrator.specs.yamlfile import read_yaml
from orchestrator.upstream.chat_templates import read_templates
from orchestrator.upstream.installation import Installation

ROOT = Path(__file__).resolve().parent.parent
SPECS = sorted((ROOT / "runs").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema(arguments: dict[str, Argument], installation: Installation) -> dict[str, Any]:
    return spec_schema(arguments, read_templates(installation).names, "LLaMA-Factory 1.2.3")


def problems(schema: Mapping[str, Any], spec: object) -> list[str]:
    """Dotted paths of what an editor would underline."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(spec)
    return sorted(".".join(map(str, leaf.absolute_path)) for error in found for leaf in leaves(error))


def leaves(error: jsonschema.ValidationError) -> list[jsonschema.ValidationError]:
    """Of `section or null`, what is wrong within the section."""
    inner = [leaf for each in error.context or () for leaf in leaves(each) if leaf.validator_value != "null"]
    return inner or [error]


def test_the_schema_is_one_and_describes_every_field(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "Run spec for LLaMA-Factory 1.2.3"
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
    sections = {"RunSpec": spec_schema({}), **spec_schema({})["$defs"]}
    assert {"RunSpec", "TrainSpec", "BenchmarkSpec", "ComputeSpec"} <= set(sections)
    for name, section in sections.items():
        assert [key for key, field in section.get("properties", {}).items() if not field.get("description")] == [], name


def test_specs_that_load_are_accepted(schema: dict[str, Any], arguments: dict[str, Argument]) -> None:
    for path in SPECS:
        spec = load_spec(path, (), arguments)
        assert problems(schema, read_yaml(path).value) == problems(schema, spec.model_dump(mode="json")) == []


@pytest.mark.parametrize(
    ("section", "change", "at"),
    [
        ("train", {"lora_rnak": 8}, "train"),
        ("model", {"arguments": {"lora_rank": 8}}, "model.arguments"),
        ("train", {"output_dir": "x"}, "train"),
        ("train", {"hf_hub_token": "x"}, "train"),
        ("serve", {"learning_rate": 1.0}, "serve"),
        ("train", {"lr_scheduler_type": "cosin"}, "train.lr_scheduler_type"),
        ("train", {"learning_rate": "5e-5"}, "train.learning_rate"),
        ("train", {"num_train_epochs": 0}, "train.num_train_epochs"),
        ("train", {"cutoff_len": None}, "train.cutoff_len"),
        ("model", {"template": "qwn"}, "model.template"),
    ],
)
def test_what_a_spec_may_not_say_is_underlined(section, change, at, schema):
    spec = read_yaml(ROOT / "runs" / "demo.yaml").value
    spec[section] = {**spec.get(section, {}), **change}
    assert problems(schema, spec) == [at]


def test_every_argument_stands_where_it_may_with_help_and_default(schema, arguments):
    """Reserved names and those of secrets are not proposed; our own fields keep our own words."""
    train = schema["$defs"]["TrainSpec"]["properties"]
    serve = schema["$defs"]["ServeSpec"]["properties"]
    secret = {
        "hf_hub_token", "ms_hub_token", "om_hub_token", "hub_token", "swanlab_api_key", "swanlab_lark_webhook_url",
        "swanlab_lark_secret",
    }  # fmt: skip
    allowed = set(arguments) - set(RESERVED_ARGUMENTS) - secret
    assert set(train) == allowed
    assert {name for name in allowed if "api" in arguments[name].commands} <= set(serve)
    assert not (set(RESERVED_ARGUMENTS) | secret) & (set(serve) - {"infer_backend"})
    rank = {"description": arguments["lora_rank"].help, "type": "integer", "default": 8, "minimum": 1}
    assert train["lora_rank"] == rank
    assert train["stage"]["description"] == "Training stage."
    for name in allowed - {"lora_target"}:
        jsonschema.validate(train[name].get("default"), {"anyOf": [train[name], {"type": "null"}]})
