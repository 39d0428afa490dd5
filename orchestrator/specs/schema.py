"""The JSON Schema (draft 2020-12) of a run spec, for editors.

vLLM's arguments and what fields say about each other are not in it; an editor takes "8" for text, a spec for 8.
"""

import ast
import inspect
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from orchestrator.specs.arguments import COMPUTED, MINIMUMS, Argument
from orchestrator.specs.places import MODEL_ARGUMENTS, RESERVED_ARGUMENTS, is_secret
from orchestrator.specs.spec import ExportSpec, RunSpec, ServeSpec, TrainSpec

_COMMANDS: dict[type[BaseModel], str] = {TrainSpec: "train", ServeSpec: "api", ExportSpec: "export"}
_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "list": "array", "dict": "object"}


class _Described(GenerateJsonSchema):
    """With the docstrings of the fields, and without a title such as 'Name Or Path', which editors show above them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> Any:
        # Pydantic's use_attribute_docstrings would read the source at each start of the program.
        made, properties = super().model_schema(schema), schema["cls"].model_fields
        for each in schema["cls"].__mro__[: schema["cls"].__mro__.index(BaseModel)]:
            (node,) = ast.parse(inspect.getsource(each)).body
            assert isinstance(node, ast.ClassDef)
            for field, below in pairwise(node.body):
                name = ast.unparse(field.target) if isinstance(field, ast.AnnAssign) else ""
                if name in properties and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    made["properties"][name].setdefault("description", inspect.cleandoc(str(below.value.value)))
        return made


def modeline(schema: str) -> str:
    """The comment that names a YAML file's schema for editors: a path relative to that file, or a URL."""
    return f"# yaml-language-server: $schema={schema}"


def spec_schema(
    arguments: Mapping[str, Argument], templates: Collection[str] = (), made_for: str = ""
) -> dict[str, Any]:
    """The schema of a spec, with LLaMA-Factory's arguments and the names of its chat templates, if any are given."""
    schema = RunSpec.model_json_schema(schema_generator=_Described)
    for model, command in _COMMANDS.items():
        section = schema["$defs"][model.__name__]
        section["properties"] |= {
            name: argument_schema(argument)
            for name, argument in sorted(arguments.items())
            if command in argument.commands
            and name not in (*RESERVED_ARGUMENTS, *model.model_fields)
            and not (is_secret(name) and "str" in argument.kinds)
        }
        section["additionalProperties"] = False
        if model is ServeSpec:  # with backend vllm the names are vLLM's
            del section["additionalProperties"]
            section["if"] = {"properties": {"backend": {"const": "vllm"}}, "required": ["backend"]}
            section["else"] = {"propertyNames": {"enum": list(section["properties"])}}
    properties = schema["$defs"]["ModelSpec"]["properties"]
    if templates:
        properties["template"]["anyOf"] = [{"enum": sorted(templates)}, {"type": "null"}]
    properties["arguments"]["propertyNames"] = {"enum": [*MODEL_ARGUMENTS, "cutoff_len"]}
    properties["arguments"]["additionalProperties"] = True  # as Pydantic has it, JsonValue is looked up below
    schema["$defs"].pop("JsonValue", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": f"Run spec for {made_for}"}


def argument_schema(argument: Argument) -> dict[str, Any]:
    """What one argument of LLaMA-Factory may be."""
    schema: dict[str, Any] = {"description": argument.help} if argument.help else {}
    if argument.choices is not None:
        schema["enum"] = [*argument.choices, *([None] if argument.optional else [])]
    elif argument.kinds:
        kinds = [name for kind, name in _TYPES.items() if kind in argument.plain_kinds]
        types = kinds + (["null"] if argument.optional else [])
        schema["type"] = types[0] if len(types) == 1 else types
    if argument.default is not COMPUTED:
        schema["default"] = argument.default
    return schema | MINIMUMS.get(argument.name, {})
