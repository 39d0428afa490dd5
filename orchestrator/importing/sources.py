"""What a person has of an earlier LLaMA-Factory run, as a draft of arguments: the way in of `import`.

Covered: a command line or a script (launchers.py reads them), a YAML file of arguments, LLaMA Board's files (board.py),
an output folder (output_folder.py); which of them a word is.
Not covered: what becomes of the arguments (importer.py).
Reads the files that it is pointed to, and those that they name; writes nothing, runs nothing.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.files import expanded
from orchestrator.importing.board import (
    find_user_config,
    is_board_config,
    launcher_environment,
    read_board,
    without_secrets,
)
from orchestrator.importing.config_file import Comments, ConfigFile, read_config
from orchestrator.importing.importer import Draft
from orchestrator.importing.launchers import Invocation, accelerate_environment, read_invocations
from orchestrator.importing.output_folder import read_output_folder
from orchestrator.specs.arguments import Argument
from orchestrator.upstream.installation import Installation

MAX_BYTES = 1 << 20
_SERVING = ("api", "chat", "webchat")
_CONFIG = (".yaml", ".yml", ".json")


def read_source(
    words: Sequence[str],
    *,
    cwd: Path | None,
    line: int | None,
    arguments: Mapping[str, Argument],
    installation: Installation,
) -> Draft:
    """What the words of `import` mean.

    Args:
        words: a file, a folder, - for stdin, or a command, in one word or several.
        cwd: the folder that the command was run in. None: the current one, or one above the file.
        line: which of several commands of a script.
        arguments: LLaMA-Factory's, by name.
        installation: LLaMA-Factory, for the models that LLaMA Board knows by name.

    Raises:
        SpecError: it is none of these, or cannot be read.
    """
    if not "".join(words).strip():
        raise SpecError(
            "there is nothing to import: the command is empty",
            "give a command in quotes, a script, a YAML file of arguments, or an output folder",
        )
    path = expanded(words[0]) if len(words) == 1 else None
    if path is not None and _is(path, "is_dir"):
        return _folder(path, cwd, arguments, installation)
    if path is not None and (_is(path, "is_file") or (path.suffix in _CONFIG and not _has_space(words[0]))):
        bases = [cwd.absolute()] if cwd else _bases(path)
        if path.suffix in _CONFIG:
            return _config(read_config(path), bases, arguments, installation)
        return _commands(_text(path), str(path), bases, line, arguments)
    bases = [(cwd or Path.cwd()).absolute()]
    if words == ["-"]:
        return _commands(sys.stdin.read(MAX_BYTES + 1), "stdin", bases, line, arguments)
    if path is not None and not _has_space(words[0]):
        raise SpecError(
            f"{words[0]!r} is no file, no folder and no command",
            "give a command in quotes, a script, a YAML file of arguments, or an output folder",
        )
    return _commands(words[0] if len(words) == 1 else shlex.join(words), "the command", bases, line, arguments)


def _folder(folder: Path, cwd: Path | None, arguments: Mapping[str, Argument], installation: Installation) -> Draft:
    found = read_output_folder(folder, arguments, installation)
    if found.own_run is not None:
        raise SpecError(
            f"{folder} belongs to the run {found.own_run.name}, which has its spec",
            f"orchestrator rerun {found.own_run.name}, or copy {found.own_run / 'spec.yaml'}",
        )
    devices = found.num_devices if found.num_devices is not None and found.num_devices > 1 else None
    beside = {} if found.is_whole else {key: f"# from {source}" for key, source in found.sources.items()}
    return Draft(
        "train",
        found.arguments if found.is_whole else {**found.arguments, "do_train": True},
        str(folder),
        [cwd.absolute()] if cwd else _bases(folder),
        Comments(beside=beside, tail=[f"# not known: {each}" for each in found.unknown]),
        {**found.environment, **({"NPROC_PER_NODE": str(devices)} if devices else {})},
        found.notes,
    )


def _config(
    config: ConfigFile, bases: Sequence[Path], arguments: Mapping[str, Argument], installation: Installation
) -> Draft:
    """A YAML file by itself."""
    values, place = config.values, str(config.path)
    if is_board_config(values):
        board = read_board(values, installation, find_user_config(bases))
        return Draft("train", board.arguments, place, bases, environment=board.environment, notes=list(board.notes))
    if isinstance(values.get("model"), Mapping) and "name" in values:
        raise SpecError(f"{place} is a spec already", f"orchestrator check {place}")
    for keys, what in _OTHERS.items():
        if keys & set(values):
            raise SpecError(f"{place} is {what}")
    if not set(values) & set(arguments):
        raise SpecError(f"{place} holds none of LLaMA-Factory's arguments", "is it another program's configuration?")
    values, secrets = without_secrets(values)
    environment = launcher_environment(values) if config.path.name == "training_args.yaml" else {}
    return Draft(_command_of(values, arguments), values, place, bases, config.comments, environment, secrets)


_OTHERS: dict[frozenset[str], str] = {
    frozenset({"compute_environment", "distributed_type"}): (
        "accelerate's configuration, not LLaMA-Factory's; import the command that starts the training with it"
    ),
    frozenset({"model", "train_dataset", "peft_config", "sample_backend"}): (
        "a configuration of LLaMA-Factory's v1 (USE_V1=1), which has other commands and arguments, and no api server"
    ),
}


def _command_of(values: Mapping[str, Any], arguments: Mapping[str, Argument]) -> str:
    """The command that a file of arguments is for."""
    if any(key in arguments and arguments[key].commands == {"train"} for key in values) or "do_train" in values:
        return "train"
    return "export" if "export_dir" in values else "api"


def _commands(
    text: str, place: str, bases: Sequence[Path], line: int | None, arguments: Mapping[str, Argument]
) -> Draft:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SpecError(f"{place} is larger than {MAX_BYTES} bytes")
    found = read_invocations(text, place, arguments)
    usable = [each for each in found if each.command in ("train", "export", *_SERVING)]
    if not usable:
        others = ", ".join(f"{each.command} in line {each.line}" for each in found)
        raise SpecError(
            f"{place} holds no command that trains, serves or exports with LLaMA-Factory"
            + (f"; there is {others}" if others else ""),
            "such as: llamafactory-cli train config.yaml",
        )
    trains = [each for each in usable if each.command == "train"]
    chosen = [each for each in usable if each.line == line] if line is not None else trains or usable
    if len(chosen) != 1:
        listed = "\n".join(f"  line {each.line}: {each.command}" for each in usable)
        raise SpecError(f"{place} holds {len(usable)} such commands:\n{listed}", "say which: --line N")
    draft = _invocation(chosen[0], place, bases)
    draft.notes += [
        f"not taken over: {each.command} in line {each.line} (import it by itself: --line {each.line})"
        for each in found
        if each is not chosen[0]
    ]
    return draft


def _invocation(invocation: Invocation, place: str, bases: Sequence[Path]) -> Draft:
    comments, values = Comments(), {}
    if invocation.config is not None:
        config = read_config(_existing(invocation.config, bases, place))
        comments, values = config.comments, config.values
    given, secrets = without_secrets({**values, **invocation.arguments})
    environment, notes = dict(invocation.environment), [*invocation.notes, *secrets]
    if invocation.accelerate_config is not None:
        accelerate = read_config(_existing(invocation.accelerate_config, bases, place)).values
        variables, said = accelerate_environment(accelerate, invocation.accelerate_options)
        environment = {**variables, **environment}
        notes += said
    return Draft(
        "api" if invocation.command in _SERVING else invocation.command,
        given,
        f"{place}, line {invocation.line}",
        bases,
        Comments(
            [*(f"# {text}" for text in invocation.comments), *comments.head],
            comments.before,
            comments.beside,
            comments.tail,
        ),
        environment,
        notes,
    )


def _existing(name: str, bases: Sequence[Path], place: str) -> Path:
    for base in bases:
        if _is(base / name, "is_file"):
            return base / name
    shown = ", ".join(map(str, bases[:3]))
    raise SpecError(
        f"{place} names {name}, which is not there; looked for from {shown}", "--cwd FOLDER, where it was run"
    )


def _bases(path: Path) -> list[Path]:
    """Where a file's relative paths may be relative to: the current folder, then those above the file."""
    return list(dict.fromkeys([Path.cwd(), *path.absolute().parents]))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from error


def _has_space(word: str) -> bool:
    return any(map(str.isspace, word))


def _is(path: Path | None, kind: str) -> bool:
    try:
        return path is not None and bool(getattr(path, kind)())
    except (OSError, ValueError):  # too long, or with a null byte: a command, maybe
        return False
