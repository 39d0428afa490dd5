"""The JSON Schema of a run spec, for editors: made for the LLaMA-Factory that is installed.

Covered: every field of RunSpec, and in `train`, `serve` and `export` every argument of LLaMA-Factory that may stand
there, each with type, choices, default and help; the names of chat templates. Draft 2020-12.
Not covered: rules between fields, vLLM's arguments, and whether data and files are there: `orchestrator check`. An
editor takes "8" for text where a spec takes it for 8.
Writes nothing.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from orchestrator.specs.arguments import COMPUTED, Argument
from orchestrator.specs.spec import OWNED, ExportSpec, RunSpec, ServeSpec, TrainSpec
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.chat_templates import read_templates
from orchestrator.upstream.installation import Installation

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SECTIONS: dict[type[BaseModel], str] = {TrainSpec: "train", ServeSpec: "api", ExportSpec: "export"}
# Below these nothing is trained, or the training fails after the model is loaded.
_BOUNDS: dict[str, dict[str, float]] = {
    "per_device_train_batch_size": {"minimum": 1},
    "per_device_eval_batch_size": {"minimum": 1},
    "gradient_accumulation_steps": {"minimum": 1},
    "lora_rank": {"minimum": 1},
    "cutoff_len": {"minimum": 1},
    "num_train_epochs": {"exclusiveMinimum": 0},
}
_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "list": "array", "dict": "object"}


class _Described(GenerateJsonSchema):
    """With the docstrings of the fields, and without a title such as 'Name Or Path', which editors show above them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> Any:
        made = super().model_schema(schema)
        for name, text in _field_docstrings(schema["cls"]).items():
            made["properties"][name].setdefault("description", text)
        return made


def _field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """A class's fields and the docstrings below them.

    Pydantic's use_attribute_docstrings reads the source too, but whenever the class is made: a twelfth of the time of
    a command that shows none of them.
    """
    found: dict[str, str] = {}
    for each in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        for field, below in pairwise(node.body if isinstance(node, ast.ClassDef) else []):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[ast.unparse(field.target)] = inspect.cleandoc(text.value)
    return {name: text for name, text in found.items() if name in model.model_fields}


def modeline(schema: str) -> str:
    """The comment that tells an editor which schema a YAML file has: a path relative to that file, or a URL."""
    return f"# yaml-language-server: $schema={schema}"


def spec_schema(
    arguments: Mapping[str, Argument], templates: Collection[str] = (), made_for: str = "LLaMA-Factory"
) -> dict[str, Any]:
    """The schema of a spec.

    Args:
        arguments: LLaMA-Factory's, by name.
        templates: names of its chat templates; none: any text is taken.
        made_for: what it is the schema of, for the title.
    """
    schema = RunSpec.model_json_schema(schema_generator=_Described)
    for model, command in _SECTIONS.items():
        section = schema["$defs"][model.__name__]
        section["properties"] |= {
            name: {**argument_schema(argument), **_BOUNDS.get(name, {})}
            for name, argument in sorted(arguments.items())
            if command in argument.commands and name not in OWNED and name not in model.model_fields
        }
        section["additionalProperties"] = False
        if model is ServeSpec:  # with backend vllm the names are vLLM's
            del section["additionalProperties"]
            section["if"] = {"properties": {"backend": {"const": "vllm"}}, "required": ["backend"]}
            section["else"] = {"propertyNames": {"enum": list(section["properties"])}}
    if templates:
        template = schema["$defs"]["ModelSpec"]["properties"]["template"]
        template["anyOf"] = [{"enum": sorted(templates)}, {"type": "null"}]
    schema["$defs"].pop("JsonValue", None)  # Pydantic's, of the sections that took any name
    return {"$schema": DIALECT, **schema, "title": f"Run spec for {made_for}"}


def argument_schema(argument: Argument) -> dict[str, Any]:
    """What one argument of LLaMA-Factory may be."""
    schema: dict[str, Any] = {"description": argument.help} if argument.help else {}
    if argument.choices is not None:
        schema["enum"] = [*argument.choices, *([None] if argument.optional else [])]
    elif argument.kinds:
        kinds = argument.kinds - ({"int"} if "float" in argument.kinds else set())
        types = [said for kind, said in _TYPES.items() if kind in kinds] + (["null"] if argument.optional else [])
        schema["type"] = types[0] if len(types) == 1 else types
    if argument.default is not COMPUTED:
        schema["default"] = argument.default
    return schema


def schema_text(installation: Installation) -> str:
    """The schema for an installation, as a file."""
    versions = installation.versions
    names = (("LLaMA-Factory", "llamafactory"), ("transformers", "transformers"))
    made_for = " and ".join(f"{name} {versions[key]}" for name, key in names if key in versions)
    made = spec_schema(read_arguments(installation), read_templates(installation).names, made_for or "LLaMA-Factory")
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
