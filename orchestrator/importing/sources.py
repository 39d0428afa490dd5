"""What a person has of an earlier LLaMA-Factory run, as a draft of arguments: the way in of `import`.

Reads the files that it is pointed to, and those that they name; writes nothing, runs nothing of theirs.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.files import expanded, json_mapping, read_file
from orchestrator.importing.importer import Draft
from orchestrator.importing.launchers import UNRESOLVED, Invocation, read_invocations
from orchestrator.importing.shell_words import Word
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.arguments import Argument, argument_problem
from orchestrator.specs.yamlfile import read_yaml
from orchestrator.upstream.installation import Installation, ask

MAX_BYTES = 1 << 20
_CONFIG = (".yaml", ".yml", ".json")
_WAYS = "give a command in quotes, a script, a YAML file of arguments, or an output folder"
# What the files of an output folder tell: the name there, and the argument's.
_FILES = {
    "adapter_config.json": {
        "base_model_name_or_path": "model_name_or_path", "revision": "model_revision", "r": "lora_rank",
        "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_rslora": "use_rslora", "use_dora": "use_dora",
        "target_modules": "lora_target", "modules_to_save": "additional_target",
    },
    "trainer_state.json": {
        "logging_steps": "logging_steps", "save_steps": "save_steps", "train_batch_size": "per_device_train_batch_size",
    },
}  # fmt: skip
_UNKNOWN = (
    "# not known: dataset, template, stage, cutoff_len, packing, val_size, quantization_bit",
    "# only in training_args.bin, which is not opened, as unpickling runs code: learning_rate, epochs, seed, bf16",
)
# A top-level argument, and the comment beside it.
_ARGUMENT = re.compile(
    r"""(\w+):(?:(?:[ \t]+(?:"(?:\\.|[^"\\])*"[^\s"]*|'[^']*'[^\s']*|[^\s"'#]\S*))*[ \t]*(\#.*)?$)?"""
)


def read_source(
    words: Sequence[str],
    *,
    cwd: Path | None,
    line: int | None,
    arguments: Mapping[str, Argument],
    installation: Installation,
) -> Draft:
    """What the words of `import` mean: a file, a folder, - for stdin, or a command, in one word or several.

    `cwd`: the folder that it was run in (None: the current one, or one above the file); `line`: which of several
    commands of a script. Raises SpecError: it is none of these, or cannot be read.
    """
    if not "".join(words).strip():
        raise SpecError("there is nothing to import: the command is empty", _WAYS)
    path = expanded(words[0])
    reader = _Reader([cwd.absolute() if cwd else Path.cwd()], line, arguments, installation.python)
    if words == ["-"]:
        return reader.commands(sys.stdin.read(MAX_BYTES + 1), "stdin")
    if len(words) == 1 and os.path.exists(path):  # noqa: PTH110 - Path's raises for long names: a command, maybe
        reader.bases += [] if cwd else [each for each in path.absolute().parents if each != Path.cwd()]
        if path.is_dir():
            return reader.folder(path.absolute())
        if path.suffix in _CONFIG:
            return reader.config(path)
        text = read_file(path, MAX_BYTES).decode("utf-8-sig", "surrogateescape")  # the spec's check names such bytes
        return reader.commands(text, str(path), path.absolute().parent)
    if len(words) == 1 and not any(map(str.isspace, words[0])):
        if path.suffix in _CONFIG:
            read_config(path)  # its error names the files that are near
        raise SpecError(f"{words[0]!r} is no file, no folder and no command", _WAYS)
    return reader.commands(words[0] if len(words) == 1 else shlex.join(words), "the command")


@dataclass
class _Reader:
    bases: list[Path]
    line: int | None
    arguments: Mapping[str, Argument]
    python: Path

    def folder(self, folder: Path) -> Draft:
        """An output folder: training_args.yaml, which LLaMA Board leaves, is complete; other files tell a part."""
        for run in map(RunDir, (folder, *folder.parents[:2])):
            if run.record.is_file():
                message = f"{folder} belongs to the run {run.path.name}, which has its spec"
                raise SpecError(message, f"orchestrator rerun {run.path.name}, or copy {run.spec}")
        if (folder / "training_args.yaml").is_file():
            return self.config(folder / "training_args.yaml")
        values, comments, notes = dict[str, Any](), dict[str, list[str]](), list[str]()
        for file, names in _FILES.items():
            found = json_mapping(folder / file) or {}
            if file == "adapter_config.json" and found.get("peft_type") == "LORA":
                values["finetuning_type"] = "lora"
            for key, name in names.items():
                if (value := found.get(key)) is None:
                    continue
                if problem := argument_problem(name, value, "train", self.arguments):
                    notes.append(f"not taken over: {name} of {file}: {problem}")
                else:
                    values[name], comments[name] = value, [f"# from {file}"]
        if not values:
            message = f"{folder} tells of no training by training_args.yaml, adapter_config.json or trainer_state.json"
            raise SpecError(message, "give a training's output_dir, or a checkpoint in it")
        return Draft({**values, "do_train": True}, str(folder), self.bases, {**comments, "": [*_UNKNOWN]}, notes=notes)

    def config(self, path: Path) -> Draft:
        values, comments = read_config(path)
        if isinstance(values.get("model"), Mapping) and "name" in values:
            raise SpecError(f"{path} is a spec already", f"orchestrator check {path}")
        if not values.keys() & self.arguments.keys():
            remedy = "is it another program's file? Of LLaMA Board, import training_args.yaml in the output folder"
            raise SpecError(f"{path} holds none of LLaMA-Factory's arguments", remedy)
        is_board = path.name == "training_args.yaml" and values.get("deepspeed") is not None
        environment = {"FORCE_TORCHRUN": "1"} if is_board else {}  # LLaMA Board sets it then
        return Draft(values, str(path), self.bases, comments, environment)

    def commands(self, text: str, place: str, folder: Path | None = None) -> Draft:
        found = read_invocations(text, place, self.arguments, folder)
        trains = [each for each in found if each.command == "train"]
        if not trains:
            heads = f"{place} holds no command that trains with LLaMA-Factory"
            others = [f"line {each.line} starts `{each.command}`" for each in found]
            raise SpecError("\n  ".join([heads, *others]), "such as: llamafactory-cli train config.yaml")
        chosen = [each for each in trains if self.line in (None, each.line)]
        if len(chosen) != 1:
            chosen = chosen or trains
            lines = [f"  line {each.line}: {each.command} {each.config or ''}".rstrip() for each in chosen]
            heads = f"{place} holds {len(chosen)} such commands:"
            remedy = "say which: --line N, or give that command itself, in quotes"
            raise SpecError("\n".join([heads, *lines]), remedy)
        draft = self._invocation(chosen[0], f"{place}, line {chosen[0].line}")
        draft.notes += [
            f"not taken over: {each.command} in line {each.line} (import it by itself: --line {each.line})"
            for each in found
            if each is not chosen[0]
        ]
        return draft

    def _invocation(self, invocation: Invocation, place: str) -> Draft:
        values, comments = dict[str, Any](), dict[str, list[str]]()
        if invocation.config is not None:
            values, comments = read_config(self._existing(invocation.config, place))
        environment, notes = dict(invocation.environment), list(invocation.notes)
        if invocation.accelerate is not None:
            file, options = invocation.accelerate
            given = read_config(self._existing(file, place))[0] if file is not None else None
            try:
                answer = ask(self.python, "accelerate_launch", [{"config": given, "options": options}])[0]
                environment = {**answer["environment"], **environment}
                notes += [f"accelerate launch: {note}" for note in answer["notes"]]
            except OrchestratorError as error:
                notes.append(f"accelerate launch: its options are not taken over: {error.message}")
        return Draft(values | invocation.arguments, place, self.bases, comments, environment, notes)

    def _existing(self, name: str, place: str) -> Path:
        if isinstance(name, Word) and name.unknown:
            raise SpecError(f"{place} reads {name}, and {name.unknown[0]} {UNRESOLVED}", "write the file's name there")
        found = next((base / name for base in self.bases if (base / name).is_file()), None)
        if found is None:
            message = f"{place} names {name}, which is not there; looked for from {', '.join(map(str, self.bases[:3]))}"
            raise SpecError(message, "--cwd FOLDER, where it was run")
        return found


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Arguments of a YAML file as LLaMA-Factory's reader, OmegaConf, takes them (`no` is false); and its comments.

    Raises SpecError: no such file, too large, no YAML that holds one mapping, an interpolation that leads nowhere.
    """
    read_yaml(path)  # its limits, and its errors with line and column
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"{path} cannot be read as LLaMA-Factory reads it: {reason}", f"edit {path}") from error
    assert isinstance(values, dict)  # read_yaml takes nothing else
    return {str(key): value for key, value in values.items()}, _comments(path.read_text(encoding="utf-8-sig"))


def _comments(text: str) -> dict[str, list[str]]:
    """As Draft has them: those at the left margin, and beside an argument."""
    comments, above = dict[str, list[str]](), list[str]()
    for line in text.splitlines():
        if line.startswith("#"):
            above.append(line.strip())
        elif found := _ARGUMENT.match(line):
            comments[found[1]] = [*above, *([found[2].strip()] if found[2] else [])]
            above = []
    return {**comments, "": above}
