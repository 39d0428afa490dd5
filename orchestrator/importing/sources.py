"""What a person has of an earlier LLaMA-Factory run, as a draft of arguments: the way in of `import`.

Reads the files that it is pointed to, and those that they name; writes nothing, runs nothing of theirs.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.files import expanded, read_file
from orchestrator.importing.command_line import UNRESOLVED
from orchestrator.importing.config_file import Comments, read_config
from orchestrator.importing.importer import Draft
from orchestrator.importing.launchers import Invocation, read_invocations, unread_lines
from orchestrator.importing.output_folder import read_output_folder
from orchestrator.importing.shell_words import Word
from orchestrator.specs.arguments import Argument
from orchestrator.upstream.installation import Installation, ask

MAX_BYTES = 1 << 20
_SERVING = ("api", "chat", "webchat")
_CONFIG = (".yaml", ".yml", ".json")
_WAYS = "give a command in quotes, a script, a YAML file of arguments, or an output folder"
# Files that are something else: the beginnings of their keys, what they are, and what to do.
_OTHERS = {
    ("top.", "train.", "eval."): (
        "a form that LLaMA Board saved, which is not read",
        "import training_args.yaml of the training's output folder, or what the button Preview command shows",
    ),
    ("compute_environment", "distributed_type"): (
        "accelerate's configuration, not LLaMA-Factory's",
        "import the command that starts the training with it",
    ),
    ("train_dataset", "peft_config", "sample_backend"): ("a configuration of LLaMA-Factory's v1 (USE_V1=1)", ""),
}


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
    if len(words) == 1 and _is(path, "exists"):
        reader.bases += [] if cwd else [each for each in path.absolute().parents if each != Path.cwd()]
        if path.is_dir():
            return reader.folder(path)
        if path.suffix in _CONFIG:
            return reader.config(path)
        return reader.commands(_text(path), str(path), path.absolute().parent)
    if len(words) == 1 and not any(map(str.isspace, words[0])):
        if path.suffix in _CONFIG:
            read_config(path)  # its error names the files that are near
        raise SpecError(f"{words[0]!r} is no file, no folder and no command", _WAYS)
    return reader.commands(words[0] if len(words) == 1 else shlex.join(words), "the command")


@dataclass
class _Reader:
    """Reads one source."""

    bases: list[Path]
    """The folders that it may have been run in."""
    line: int | None
    arguments: Mapping[str, Argument]
    python: Path

    def folder(self, folder: Path) -> Draft:
        found = read_output_folder(folder, self.arguments)
        return replace(found, bases=self.bases, environment=found.environment | _torchrun(found.arguments))

    def config(self, path: Path) -> Draft:
        """A YAML file by itself."""
        values, comments = read_config(path)
        if isinstance(values.get("model"), Mapping) and "name" in values:
            raise SpecError(f"{path} is a spec already", f"orchestrator check {path}")
        for beginnings, (what, remedy) in _OTHERS.items():
            if any(key.startswith(beginnings) for key in values if key not in self.arguments):
                raise SpecError(f"{path} is {what}", remedy)
        known = [self.arguments[key] for key in values if key in self.arguments]
        if not known:
            raise SpecError(f"{path} holds none of LLaMA-Factory's arguments", "is it another program's file?")
        is_training = "do_train" in values or any(each.commands == {"train"} for each in known)
        command = "train" if is_training else "export" if "export_dir" in values else "api"
        environment = _torchrun(values) if path.name == "training_args.yaml" else {}
        return Draft(command, values, str(path), self.bases, comments, environment)

    def commands(self, text: str, place: str, folder: Path | None = None) -> Draft:
        """A command, or one of the commands of a script."""
        found = read_invocations(text, place, self.arguments, folder)
        usable = [each for each in found if each.command in ("train", "export", *_SERVING)]
        if not usable:
            heads = f"{place} holds no command that trains, serves or exports with LLaMA-Factory"
            others = [f"line {each.line} starts `{each.command}`" for each in found]
            lines = [heads, *others, *unread_lines(text, place)]
            raise SpecError("\n  ".join(lines), "such as: llamafactory-cli train config.yaml")
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
        comments = replace(comments, head=[*(f"# {each}" for each in invocation.comments), *comments.head])
        return Draft(command, values | invocation.arguments, place, self.bases, comments, environment, notes)

    def _existing(self, name: str, place: str) -> Path:
        if isinstance(name, Word) and name.unknown:
            raise SpecError(f"{place} reads {name}, and {name.unknown[0]} {UNRESOLVED}", "write the file's name there")
        found = next((base / name for base in self.bases if _is(base / name, "is_file")), None)
        if found is None:
            message = f"{place} names {name}, which is not there; looked for from {', '.join(map(str, self.bases[:3]))}"
            raise SpecError(message, "--cwd FOLDER, where it was run")
        return found


def _torchrun(values: Mapping[str, Any]) -> dict[str, str]:
    """What LLaMA Board adds to the environment of a training for its arguments' sake."""
    return {"FORCE_TORCHRUN": "1"} if values.get("deepspeed") is not None else {}


def _text(path: Path) -> str:
    try:
        return read_file(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error


def _is(path: Path, kind: str) -> bool:
    try:
        return bool(getattr(path, kind)())
    except (OSError, ValueError):  # too long, or with a null byte: a command, maybe
        return False
