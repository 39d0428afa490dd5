"""A spec as the texts that LLaMA-Factory reads, by way of Jinja.

Values are quoted by file type in one place, Jinja's `finalize`, never in a template; each text is read back and has to
say what the spec says. A workspace overrides a template by a file of the same name in its templates/.
"""

import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import FileSystemLoader, StrictUndefined, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.errors import SpecError
from orchestrator.files import shipped
from orchestrator.processes.process import own_argv
from orchestrator.specs.compute_spec import SlurmSpec
from orchestrator.specs.places import LAUNCHER_ENV, MODEL_ARGUMENTS, MODEL_PLACES
from orchestrator.specs.spec import ExportSpec, ModelSpec, RunSpec, ServeSpec, model_arguments, spec_json

DATASET_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
TEMPLATE_HINT = "in a template: one complete value per {{ }}, no quotes around it; arguments are added in the spec"
_WORD = "[A-Za-z_][A-Za-z0-9_]*"
# The sections of train.yaml; what is in none of them goes to "train".
_SECTIONS: dict[str, Collection[str]] = {
    "model": (*MODEL_PLACES, *MODEL_ARGUMENTS),
    "method": ("stage", "do_train", "finetuning_type"),
    "dataset": ("dataset", "eval_dataset", "dataset_dir"),
}


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be served: its files, and how it sees a conversation."""

    label: str  # its name in a benchmark's id and in tables: output, checkpoint-8, base, or a folder's name
    model: ModelSpec  # name_or_path and adapter_name_or_path are absolute folders, or a hub id


def train_arguments(spec: RunSpec, start: Checkpoint, output_dir: str = "output") -> dict[str, Any]:
    """Everything that `llamafactory-cli train` is given, paths relative to the run folder, where it is started."""
    assert spec.train is not None
    return {
        **model_arguments(start.model),
        "do_train": True,
        **spec.train.arguments(),
        "dataset": ",".join(spec.datasets),
        **({"eval_dataset": ",".join(spec.eval_names.values())} if spec.eval_names else {}),
        "dataset_dir": ".",
        "output_dir": output_dir,
        "seed": spec.seed,
        "enable_jit_checkpoint": True,  # transformers: SIGTERM saves a checkpoint and ends the training in order
    }


def api_arguments(checkpoint: Checkpoint, serve: ServeSpec) -> dict[str, Any]:
    """Everything that `llamafactory-cli api` is given."""
    return {**model_arguments(checkpoint.model), "infer_backend": serve.infer_backend, **serve.extra_arguments()}


def export_arguments(checkpoint: Checkpoint, export: ExportSpec, folder: Path) -> dict[str, Any]:
    """Everything that `llamafactory-cli export` is given."""
    return {**model_arguments(checkpoint.model), **export.extra_arguments(), "export_dir": str(folder)}


def train_environment(spec: RunSpec) -> dict[str, str]:
    """The environment variables of the training: its own, its devices, and what launcher.py gives to torchrun."""
    compute = spec.compute
    devices = {} if compute.devices is None else {"CUDA_VISIBLE_DEVICES": compute.devices}
    given = {name: getattr(compute, field) for field, name in LAUNCHER_ENV.items()}
    launcher = {name: str(value) for name, value in given.items() if value is not None}
    return {**compute.env, **devices, **({"FORCE_TORCHRUN": "1"} if launcher else {}), **launcher}


class _Raw(str):
    """Text that is put into a file as it is: never a value."""


class Comment(_Raw):
    """A part of a comment: one line, whatever it holds."""

    def __new__(cls, text: str) -> "Comment":
        return super().__new__(cls, "".join(char if char.isprintable() else repr(char)[1:-1] for char in text))


class _Name(_Raw):
    def __new__(cls, word: str) -> "_Name":
        if not re.fullmatch(f"-{{0,2}}{_WORD}", word):
            raise SpecError(f"{word!r} is no name of an argument")
        return super().__new__(cls, word)


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


_STRING = "tag:yaml.org,2002:str"
_QuotedDumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(_STRING, text, style='"'))


class Renderer:
    """The templates of a workspace, the shipped ones behind them."""

    def __init__(self, workspace_templates: Path | None = None) -> None:
        folders = [folder for folder in (workspace_templates, shipped("templates")) if folder is not None]
        self._loader = FileSystemLoader([str(folder) for folder in folders])

    def train_yaml(self, arguments: Mapping[str, Any]) -> str:
        rest, sections = dict(arguments), {}
        for section, names in _SECTIONS.items():
            sections[section] = _named({name: rest.pop(name) for name in names if name in rest})
        return self._yaml("train.yaml", arguments, {**sections, "train": _named(rest)})

    def api_yaml(self, arguments: Mapping[str, Any]) -> str:
        return self._yaml("api.yaml", arguments, {"arguments": _named(arguments)})

    def export_yaml(self, arguments: Mapping[str, Any]) -> str:
        return self._yaml("export.yaml", arguments, {"arguments": _named(arguments)})

    def dataset_info(self, datasets: Mapping[str, Mapping[str, Any]]) -> str:
        """dataset_info.json with the entries that the training reads, by name."""
        file, expected = "dataset_info.json", {name: dict(info) for name, info in datasets.items()}
        text = self.text(file, {"datasets": {name: list(info.items()) for name, info in datasets.items()}})
        return _read_back(file, text, json.loads, expected)

    def command(
        self, command: str, arguments: Mapping[str, Any], environment: Mapping[str, str], lists: Collection[str] = ()
    ) -> str:
        """One line for a shell. `lists` names the arguments that LLaMA-Factory declares as lists."""
        words = [word for key, value in arguments.items() for word in command_words(key, value, several=key in lists)]
        context = {"command": _Name(command), "words": words, "environment": _named(environment)}
        variables = [f"{key}={value}" for key, value in environment.items()]
        expected = {"words": [*variables, "llamafactory-cli", command, *map(str, words)]}
        text = self.text("command.txt", context)
        return _read_back("command.txt", text, lambda text: {"words": shlex.split(text, comments=True)}, expected)

    def sbatch(self, slurm: SlurmSpec, runs: Sequence[Path], *, workspace: Path, name: str) -> str:
        """The script of a Slurm job that carries out the run in a folder; several become tasks of an array."""
        own = ("signal_s", "requeue", "max_requeues", "options")
        given = {key: value for key, value in slurm if key not in own and value is not None}
        log = str(runs[0]).replace("%", "%%")  # in --output, % begins a job's id and such
        options = [
            *(f"--{key.replace('_', '-')}={value}" for key, value in given.items()),
            *("--ntasks-per-node=1", f"--signal=B:TERM@{slurm.signal_s}", "--open-mode=append"),
            "--requeue" if slurm.requeue else "--no-requeue",
            *(f"--{key}" if value is True else f"--{key}={value}" for key, value in slurm.options.items()),
            *(f"--job-name={name}", f"--output={log}/logs/supervisor.log"),
            *([f"--array=0-{len(runs) - 1}"] if len(runs) > 1 else []),
        ]
        program, folders = own_argv("supervise", "--workspace", str(workspace)), [*map(str, runs)]
        text = self.text("sbatch.sh", {"options": options, "runs": folders, "program": program})
        missing = [word for word in [*program, *folders] if shlex.quote(word) not in text]
        if missing or not text.startswith("#!"):
            problem = f"lacks {', '.join(missing)}" if missing else "does not begin with #!"
            raise SpecError(f"templates/sbatch.sh.j2 does not carry out the run: it {problem}", TEMPLATE_HINT)
        return text

    def _yaml(self, file: str, arguments: Mapping[str, Any], context: Mapping[str, Any]) -> str:
        return _read_back(file, self.text(file, context), yaml.safe_load, arguments)

    def text(self, file: str, context: Mapping[str, Any]) -> str:
        """A template's text, not read back yet; api.yaml and export.yaml share arguments.yaml.j2, unless overridden."""
        quote = _QUOTES.get(file) or _QUOTES[Path(file).suffix]

        def finalize(value: Any) -> Any:
            # str() of an undefined variable raises, with its name
            return str(value) if isinstance(value, Undefined | _Raw) else quote(value)

        environment = ImmutableSandboxedEnvironment(
            loader=self._loader,
            undefined=StrictUndefined,
            finalize=finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,  # finalize quotes by file type; none of these files is HTML
        )
        try:
            return environment.select_template([f"{file}.j2", "arguments.yaml.j2"]).render(context)
        except Exception as error:  # whatever the code in a template does
            raise SpecError(f"templates/{file}.j2: {type(error).__name__}: {error}", TEMPLATE_HINT) from error


def spec_yaml(spec: RunSpec, found: str = "") -> str:
    """The resolved spec as a file, every default written out; `found` tells how its template was found, if it was."""
    note = f"# model.template was not given: {Comment(found)}\n" if found else ""
    return f"# The resolved spec of this run.\n{note}{quoted_yaml(spec_json(spec))}"


def quoted_yaml(value: Any, *, in_one_line: bool = False) -> str:
    """A value as YAML that every reader takes for the same: each text in double quotes."""
    options: dict[str, Any] = {"allow_unicode": True, "sort_keys": False, "width": float("inf")}
    return str(yaml.dump(value, Dumper=_QuotedDumper, default_flow_style=in_one_line, **options))


def field_line(name: str, value: Any) -> str:
    """A field of a spec as people write it."""
    word = _Name(name)
    return f"{word if yaml.safe_load(word) == name else json.dumps(name)}: {_spec_quote(value)}"


def command_words(key: str, value: object, *, several: bool = False) -> list[str]:
    """One argument as words of a llamafactory-cli command line; of None there are none.

    A mapping becomes JSON, a list LLaMA-Factory's comma-separated text, or `several` words where it is declared so.
    """
    flag = _Name(f"--{key}")
    if value is None:
        return []
    if isinstance(value, list) and several:
        return [flag, *map(str, value)]
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    text = ",".join(map(str, value)) if isinstance(value, list) else text
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]  # argparse would take it for the next flag


def _named(arguments: Mapping[str, Any]) -> list[tuple[_Name, Any]]:
    return [(_Name(key), value) for key, value in arguments.items()]


def _read_back(file: str, text: str, read: Callable[[str], Any], expected: Mapping[Any, Any]) -> str:
    """The text, if it says what is expected; SpecError where a template changes, loses or adds something."""
    try:
        value = read(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"templates/{file}.j2 renders no {file}: {reason}", TEMPLATE_HINT) from error
    found = value if isinstance(value, Mapping) else {}
    # repr: equal in type too, 1 is neither true nor 1.0
    wrong = sorted(str(key) for key in {*found, *expected} if repr(found.get(key, ...)) != repr(expected.get(key, ...)))
    if wrong:
        raise SpecError(f"templates/{file}.j2 does not say what the spec says: {', '.join(wrong)}", TEMPLATE_HINT)
    return text


def _yaml_quote(value: Any) -> str:
    return quoted_yaml(value, in_one_line=True).removesuffix("\n").removesuffix("\n...")


def _spec_quote(value: Any) -> str:
    """As people write it: a word without quotes, unless some reader of YAML would take it for something else."""
    if isinstance(value, list):
        return f"[{', '.join(map(_spec_quote, value))}]"
    is_word = isinstance(value, str) and re.fullmatch("[A-Za-z][A-Za-z0-9_./-]*", value)
    return str(value) if is_word and yaml.safe_load(value) == value else _yaml_quote(value)


_QUOTES: dict[str, Callable[[Any], str]] = {
    "new.yaml": _spec_quote,
    ".yaml": _yaml_quote,
    ".json": lambda value: json.dumps(value, ensure_ascii=True, allow_nan=False),  # opened in the locale's encoding
    **dict.fromkeys((".txt", ".sh"), lambda value: shlex.quote(str(value))),
}
