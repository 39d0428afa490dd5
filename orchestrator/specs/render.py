"""A spec as the texts that LLaMA-Factory reads, by way of Jinja.

Covered: train.yaml, api.yaml, export.yaml, dataset_info.json, command.txt and spec.yaml. Values are quoted by file
type in one place, Jinja's `finalize`, never in a template; each text is read back and must say what was meant.
A workspace overrides a template by putting a file of the same name into its templates/.
Not covered: which arguments exist (arguments.py).
Leaves nothing: it returns texts.
"""

import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.errors import SpecError
from orchestrator.files import shipped
from orchestrator.specs.spec import (
    MODEL_PLACES,
    ExportSpec,
    ModelSpec,
    RunSpec,
    ServeSpec,
    exporting_arguments,
    serving_arguments,
    spec_json,
    training_arguments,
)

DATASET_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
_YAML_STR = "tag:yaml.org,2002:str"
MEND = "in a template: one whole value per {{ }}, no quotes around it; arguments are added in the spec"
_WORD = "[A-Za-z_][A-Za-z0-9_]*"
# Fields of the compute section that are variables of LLaMA-Factory's launcher.py, and mean torchrun.
_LAUNCHER = (
    "nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port",
)  # fmt: skip
_METHOD = ("stage", "do_train", "finetuning_type")


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be served: its files, and how a conversation is put to it."""

    label: str
    """What it is called in a benchmark's id and in tables: output, checkpoint-8, base, or a folder's name."""
    model: ModelSpec
    """name_or_path and adapter_name_or_path are absolute folders, or a hub id."""


class _Bare(str):
    """Text that is put into a file as it is: never a value."""


class Comment(_Bare):
    """A part of a comment: one line, whatever it holds."""

    def __new__(cls, text: str) -> "Comment":
        return super().__new__(cls, "".join(char if char.isprintable() else repr(char)[1:-1] for char in text))


class _Name(_Bare):
    """A bare word of a template's text: an argument's name."""

    def __new__(cls, word: str) -> "_Name":
        if not re.fullmatch(f"-{{0,2}}{_WORD}", word):
            raise SpecError(f"{word!r} is no name of an argument")
        return super().__new__(cls, word)


@dataclass(frozen=True)
class Line:
    """One field of a spec that is written as people write it, with its comments."""

    key: str
    value: Any
    before: Sequence[Comment] = ()
    """On lines of their own above it."""
    beside: Comment | None = None


@dataclass(frozen=True)
class Section:
    """Fields that stand together: of one section, or of the top level."""

    key: str | None
    """None: the top level."""
    lines: Sequence[Line]
    after: Sequence[Comment] = ()
    """On lines of their own below them."""

    @property
    def indent(self) -> _Bare:
        return _Bare("" if self.key is None else "  ")


class _QuotedDumper(yaml.SafeDumper):
    """Double-quotes every string, so that 'no', '1e-4' and '2024-01-01' stay strings for PyYAML and OmegaConf."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, _ in node.value:
            if re.fullmatch(_WORD, key.value):  # any other key may be a number to OmegaConf: 1e-4
                key.style = None  # PyYAML quotes no, true and such by itself
        return node


_QuotedDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def train_arguments(spec: RunSpec, start: Checkpoint, output_dir: str = "output") -> dict[str, Any]:
    """Everything that `llamafactory-cli train` is given, paths relative to the run folder, where it is started."""
    return training_arguments(spec, start.model, output_dir)


def api_arguments(checkpoint: Checkpoint, serve: ServeSpec) -> dict[str, Any]:
    """Everything that `llamafactory-cli api` is given."""
    return serving_arguments(checkpoint.model, serve)


def export_arguments(checkpoint: Checkpoint, export: ExportSpec, folder: Path) -> dict[str, Any]:
    """Everything that `llamafactory-cli export` is given."""
    return exporting_arguments(checkpoint.model, export, str(folder))


def train_environment(spec: RunSpec) -> dict[str, str]:
    """The environment variables that decide devices and processes of the training."""
    compute = spec.compute
    environment = dict(compute.env)
    if compute.devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = compute.devices
    launcher = {name: getattr(compute, name) for name in _LAUNCHER if getattr(compute, name) is not None}
    if launcher:
        environment["FORCE_TORCHRUN"] = "1"
    return environment | {name.upper(): str(value) for name, value in launcher.items()}


class Renderer:
    """The templates of a workspace, the shipped ones behind them."""

    def __init__(self, workspace_templates: Path | None = None) -> None:
        folders = [folder for folder in (workspace_templates, shipped("templates")) if folder is not None]
        self._loader = FileSystemLoader([str(folder) for folder in folders])

    def train_yaml(self, arguments: Mapping[str, Any]) -> str:
        model = {key: value for key, value in arguments.items() if key in MODEL_PLACES}
        method = {key: arguments[key] for key in _METHOD if key in arguments}
        dataset = {key: arguments[key] for key in ("dataset", "eval_dataset", "dataset_dir") if key in arguments}
        sections = {"model": model, "method": method, "dataset": dataset}
        taken = {key for section in sections.values() for key in section}
        sections["train"] = {key: value for key, value in arguments.items() if key not in taken}
        return self._yaml("train.yaml", arguments, {name: _named(section) for name, section in sections.items()})

    def api_yaml(self, arguments: Mapping[str, Any]) -> str:
        return self._yaml("api.yaml", arguments, {"arguments": _named(arguments)})

    def export_yaml(self, arguments: Mapping[str, Any]) -> str:
        return self._yaml("export.yaml", arguments, {"arguments": _named(arguments)})

    def new_yaml(self, values: Mapping[str, Any]) -> str:
        """A commented spec to start from; the one text that people go on writing."""
        return self.text("new.yaml", values)

    def imported_yaml(self, heads: Sequence[str], sections: Sequence[Section], meant: Mapping[str, Any]) -> str:
        """A spec of fields that come with comments.

        Args:
            heads: comments above all.
            sections: the fields, in order.
            meant: the spec that the text must say.
        """
        named = [
            replace(
                section,
                key=section.key and _Name(section.key),
                lines=[replace(line, key=_key(line.key)) for line in section.lines],
            )
            for section in sections
        ]
        context = {"heads": [*map(Comment, heads)], "sections": named}
        return self._yaml("imported.yaml", meant, context)

    def dataset_info(self, datasets: Mapping[str, Mapping[str, Any]]) -> str:
        """dataset_info.json with the entries that the training reads, by name."""
        pairs = {name: list(info.items()) for name, info in datasets.items()}
        text = self.text("dataset_info.json", {"datasets": pairs})
        try:
            read = json.loads(text)
        except ValueError as error:
            raise SpecError(f"templates/dataset_info.json.j2 renders no JSON: {error}", MEND) from error
        self._compare("dataset_info.json", read, {name: dict(info) for name, info in datasets.items()})
        return text

    def command(
        self,
        command: str,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
        lists: Collection[str] = (),
    ) -> str:
        """The same as one line for a shell: `llamafactory-cli train --stage sft ...`.

        Args:
            command: train, api or export.
            arguments: by name.
            environment: variables that stand before the program.
            lists: names of the arguments that are declared as lists.
        """
        words = [word for key, value in arguments.items() for word in command_words(key, value, several=key in lists)]
        context = {"command": _Name(command), "words": words, "environment": _named(environment)}
        text = self.text("command.txt", context)
        meant = [
            *(f"{key}={value}" for key, value in environment.items()),
            "llamafactory-cli",
            command,
            *map(str, words),
        ]
        try:
            read = words_of(text)
        except ValueError as error:
            raise SpecError(f"templates/command.txt.j2 renders no command: {error}", MEND) from error
        self._compare("command.txt", dict(enumerate(read)), dict(enumerate(meant)))
        return text

    def _yaml(self, file: str, arguments: Mapping[str, Any], context: Mapping[str, Any]) -> str:
        text = self.text(file, context)
        try:
            read = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise SpecError(f"templates/{file}.j2 renders no YAML: {reason}", MEND) from error
        self._compare(file, read, dict(arguments))
        return text

    def text(self, file: str, context: Mapping[str, Any]) -> str:
        """A template's text; whoever asks reads it back."""
        environment = ImmutableSandboxedEnvironment(
            loader=self._loader,
            undefined=StrictUndefined,
            finalize=_finalize(_QUOTES.get(file) or _QUOTES[Path(file).suffix]),
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,  # finalize quotes by file type; none of these files is HTML
        )
        try:
            return environment.get_template(f"{file}.j2").render(context)
        except (TemplateError, yaml.YAMLError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # ValueError: not UTF-8, say; YAMLError: something that is no value of the spec, such as a loop
            raise SpecError(f"templates/{file}.j2: {type(error).__name__}: {error}", MEND) from error

    @staticmethod
    def _compare(file: str, read: Any, meant: Mapping[Any, Any]) -> None:
        found = read if isinstance(read, Mapping) else {}
        wrong = sorted(str(key) for key in {*found, *meant} if not _same(found.get(key, ...), meant.get(key, ...)))
        if wrong:
            raise SpecError(f"templates/{file}.j2 does not say what the spec says: {', '.join(wrong)}", MEND)


def spec_yaml(spec: RunSpec, found: str = "") -> str:
    """The resolved spec, every default written out, as a file that `launch` and `rerun` read.

    Args:
        spec: what runs.
        found: how its template was found; '' where the spec said it.
    """
    heads = ["# The resolved spec of this run."]
    if found:
        heads.append(f"# model.template was not given: {Comment(found)}")
    return "\n".join([*heads, ""]) + yaml.dump(
        spec_json(spec), Dumper=_QuotedDumper, allow_unicode=True, sort_keys=False, width=float("inf")
    )


def command_words(key: str, value: object, *, several: bool = False) -> list[str]:
    """One argument as words of a llamafactory-cli command line.

    None has no words there: the argument is left out, which is the same for all whose default is null. Mappings become
    JSON, which HfArgumentParser reads. A list becomes LLaMA-Factory's comma-separated text, or `several` words where
    the argument is declared as a list.
    """
    flag = _Name(f"--{key}")
    if value is None:
        return []
    if isinstance(value, list) and several:
        return [flag, *map(str, value)]
    if isinstance(value, dict):
        text = json.dumps(value)
    elif isinstance(value, list):
        text = ",".join(str(item) for item in value)
    else:
        text = str(value)
    if text.startswith("-"):
        return [f"{flag}={text}"]  # argparse would take it for the next flag
    return [flag, text]


def _key(name: str) -> str:
    """A field's name; `no` and such only in quotes, else YAML takes it for something else."""
    word = _Name(name)
    return word if yaml.safe_load(word) == name else _Bare(json.dumps(name))


def _named(arguments: Mapping[str, Any]) -> list[tuple[_Name, Any]]:
    return [(_Name(key), value) for key, value in arguments.items()]


def _same(one: Any, other: Any) -> bool:
    """Equal in type too: 1 is neither true nor 1.0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(item, other[key]) for key, item in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _finalize(quote: Callable[[Any], str]) -> Callable[[Any], Any]:
    def finalize(value: Any) -> Any:
        if isinstance(value, Undefined):
            return str(value)  # StrictUndefined raises here, with the variable's name
        return str(value) if isinstance(value, _Bare) else quote(value)

    return finalize


def _yaml_quote(value: Any) -> str:
    text: str = yaml.dump(
        value, Dumper=_QuotedDumper, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _spec_quote(value: Any) -> str:
    """As people write it: a word without quotes, unless some reader of YAML would take it for something else."""
    if isinstance(value, list):
        return f"[{', '.join(map(_spec_quote, value))}]"
    is_word = isinstance(value, str) and re.fullmatch("[A-Za-z][A-Za-z0-9_./-]*", value)
    return str(value) if is_word and yaml.safe_load(value) == value else _yaml_quote(value)


def _json_quote(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)  # LLaMA-Factory opens it in the locale's encoding


def _shell_quote(value: Any) -> str:
    return shlex.quote(str(value))


_QUOTES: dict[str, Callable[[Any], str]] = {
    "new.yaml": _spec_quote,
    "imported.yaml": _spec_quote,
    ".yaml": _yaml_quote,
    ".json": _json_quote,
    ".txt": _shell_quote,
    ".sh": _shell_quote,
}


def words_of(text: str) -> Sequence[str]:
    """A rendered command as a shell would split it, comments left out."""
    return shlex.split(text, comments=True)
