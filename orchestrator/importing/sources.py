"""What a person has of an earlier LLaMA-Factory run, as a draft of arguments: the way in of `import`.

Reads the files that it is pointed to, and those that they name; writes nothing, runs nothing of theirs.
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.files import expanded, json_mapping, read_file
from orchestrator.importing.config_file import Comments, read_config
from orchestrator.importing.importer import Draft
from orchestrator.importing.launchers import UNRESOLVED, Invocation, read_invocations
from orchestrator.importing.shell_words import Word
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.arguments import Argument, argument_problem
from orchestrator.upstream.installation import Installation, ask

MAX_BYTES = 1 << 20
_SERVING = ("api", "chat", "webchat")
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
# In no file, for the reader to fill in.
_UNKNOWN = (
    "# not known: dataset, template, stage, cutoff_len, packing, val_size, quantization_bit",
    "# only in training_args.bin, which is not opened, as unpickling runs code: learning_rate, epochs, seed, bf16",
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

    `cwd` is the folder that the command was run in (None: the current one, or one above the file), `line` which of
    several commands of a script; accelerate's options are asked of the installation's accelerate.

    Raises:
        SpecError: it is none of these, or cannot be read.
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
        values, beside, notes = dict[str, Any](), dict[str, str](), list[str]()
        for file, names in _FILES.items():
            found = json_mapping(folder / file) or {}
            kind = found.get("peft_type")
            if kind == "LORA":
                values["finetuning_type"] = "lora"
            elif kind:
                notes.append(f"{file} has peft_type {str(kind)[:40]!r}, whose settings were not read")
                names = {"base_model_name_or_path": "model_name_or_path"}
            for key, name in names.items():
                value = found.get(key)
                if value is None:
                    continue
                problem = argument_problem(name, value, "train", self.arguments)
                if problem:
                    notes.append(f"not taken over: {name} of {file}: {problem}")
                else:
                    values[name], beside[name] = value, f"# from {file}"
        if not values:
            message = f"{folder} tells of no training by training_args.yaml, adapter_config.json or trainer_state.json"
            raise SpecError(message, "give a training's output_dir, or a checkpoint in it")
        if "lora_target" in values:
            notes.append("lora_target: the modules that were trained; it may have been written as 'all'")
        comments = Comments(beside=beside, tail=list(_UNKNOWN))
        return Draft("train", {**values, "do_train": True}, str(folder), self.bases, comments, notes=notes)

    def config(self, path: Path) -> Draft:
        values, comments = read_config(path)
        if isinstance(values.get("model"), Mapping) and "name" in values:
            raise SpecError(f"{path} is a spec already", f"orchestrator check {path}")
        known = [self.arguments[key] for key in values if key in self.arguments]
        if not known:
            remedy = "is it another program's file? Of LLaMA Board, import training_args.yaml in the output folder"
            raise SpecError(f"{path} holds none of LLaMA-Factory's arguments", remedy)
        is_training = "do_train" in values or any(each.commands == {"train"} for each in known)
        command = "train" if is_training else "export" if "export_dir" in values else "api"
        is_board = path.name == "training_args.yaml" and values.get("deepspeed") is not None
        environment = {"FORCE_TORCHRUN": "1"} if is_board else {}  # LLaMA Board sets it then
        return Draft(command, values, str(path), self.bases, comments, environment)

    def commands(self, text: str, place: str, folder: Path | None = None) -> Draft:
        found = read_invocations(text, place, self.arguments, folder)
        usable = [each for each in found if each.command in ("train", "export", *_SERVING)]
        if not usable:
            heads = f"{place} holds no command that trains, serves or exports with LLaMA-Factory"
            others = [f"line {each.line} starts `{each.command}`" for each in found]
            raise SpecError("\n  ".join([heads, *others]), "such as: llamafactory-cli train config.yaml")
        trains = [each for each in usable if each.command == "train"]
        chosen = [each for each in usable if each.line == self.line] if self.line is not None else trains or usable
        if len(chosen) != 1:
            chosen = chosen or usable
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
        values, comments = dict[str, Any](), Comments()
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
        command = "api" if invocation.command in _SERVING else invocation.command
        return Draft(command, values | invocation.arguments, place, self.bases, comments, environment, notes)

    def _existing(self, name: str, place: str) -> Path:
        if isinstance(name, Word) and name.unknown:
            raise SpecError(f"{place} reads {name}, and {name.unknown[0]} {UNRESOLVED}", "write the file's name there")
        found = next((base / name for base in self.bases if (base / name).is_file()), None)
        if found is None:
            message = f"{place} names {name}, which is not there; looked for from {', '.join(map(str, self.bases[:3]))}"
            raise SpecError(message, "--cwd FOLDER, where it was run")
        return found
