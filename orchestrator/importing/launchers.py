"""The commands of a shell text that start LLaMA-Factory, however they start it. Nothing is run, no file is opened."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.importing.command_line import UNRESOLVED, parse_words
from orchestrator.importing.shell import Command, read_commands
from orchestrator.importing.shell_words import ONE, Word
from orchestrator.specs.arguments import Argument

_PROGRAMS = frozenset({"llamafactory-cli", "lmf"})
_READS_ARGUMENTS = frozenset({"train", "api", "chat", "export", "webchat", "eval"})
_COMMANDS = _READS_ARGUMENTS | {"webui", "env", "version", "help"}
# Scripts of LLaMA-Factory's repository, old names included: the command that each is, and where it lies.
_SCRIPTS = {
    "train.py": ("train", {"src", ""}), "train_bash.py": ("train", {"src", ""}), "api.py": ("api", {"src", ""}),
    "launcher.py": ("train", {"llamafactory"}), "webui.py": ("webui", {"src"}), "cli_demo.py": ("chat", {"src"}),
    "web_demo.py": ("webchat", {"src"}), "export_model.py": ("export", {"src"}), "evaluate.py": ("eval", {"src"}),
}  # fmt: skip
_MODULES = {
    "llamafactory": "", "llamafactory.cli": "", "llamafactory.launcher": "train", "llamafactory.train.tuner": "train",
}  # fmt: skip
_LAUNCHERS = {
    "torchrun": "torchrun", "torch.distributed.run": "torchrun", "torch.distributed.launch": "torchrun",
    "deepspeed": "deepspeed", "accelerate": "accelerate", "accelerate-launch": "accelerate",
    "accelerate.commands.launch": "accelerate",
}  # fmt: skip
_SHELLS = frozenset({"bash", "sh", "zsh", "dash"})
# What stands before a program without changing what it does.
_SILENT = _SHELLS | {"nohup", "time", "exec", "command", "env", "$", "setsid", "stdbuf", "unbuffer", "eval", "-m"}
_PYTHON = re.compile(r"pythonw?[0-9.]*")
_LOOKED_UP = re.compile(r"(?:\$\(|`)\s*(?:which|command -v|type -p)\s+(\S+?)\s*[)`]")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_MENTION = re.compile(r"llamafactory-cli|\blmf\s|\btrain(?:_bash)?\.py\b|llamafactory\.(?:cli|launcher)\b")
# Options of torchrun and deepspeed that have a variable of LLaMA-Factory's launcher, and those that need none.
_VARIABLES = {
    "nnodes": "NNODES", "num_nodes": "NNODES", "nproc_per_node": "NPROC_PER_NODE", "num_gpus": "NPROC_PER_NODE",
    "num_accelerators": "NPROC_PER_NODE", "node_rank": "NODE_RANK", "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
}  # fmt: skip
_NEEDLESS = (
    "standalone", "use_env", "user_args", "force_multi", "no_local_rank", "rdzv_backend", "rdzv_id", "rdzv_conf",
)  # fmt: skip


@dataclass(frozen=True)
class Invocation:
    """A command that starts LLaMA-Factory."""

    command: str
    """train, api, chat, export, webchat, webui, ..."""
    config: str | None
    """The YAML or JSON file that stands first, as written; a Word may have parts that are not known."""
    arguments: dict[str, Any]
    """By name, in the type that LLaMA-Factory gives them; what does not fit its type is text."""
    environment: dict[str, str]
    """Variables of the command, and those that mean the same as its launcher's options."""
    notes: list[str]
    """What was on the command and has no place here, each with its reason."""
    comments: list[str]
    line: int
    accelerate: tuple[str | None, list[str]] | None
    """Of `accelerate launch` its --config_file and its other options."""


def read_invocations(
    text: str, place: str, arguments: Mapping[str, Argument], folder: Path | None = None
) -> list[Invocation]:
    """Those of a shell text's commands that start LLaMA-Factory, in order.

    Raises:
        SpecError: it is no shell text; LLaMA-Factory would not have started with the words of such a command.
    """
    found: list[Invocation] = []
    before, last_line = None, 0
    for command, outer in _unwrapped(read_commands(text, place, folder), place):
        if command.is_rest and before is not None:
            reason = f"not taken over: the command before it ended in line {last_line}"
            before.notes.append(f"line {command.line}: {' '.join(command.words)}: {reason}")
        elif not command.is_rest:
            before = _invocation(command, outer, place, arguments)
            found += [before] if before else []
        last_line = command.last_line
    return found


def unread_lines(text: str, place: str) -> list[str]:
    """Why the first lines that name LLaMA-Factory start it in no way that was understood."""
    commands, reasons = read_commands(text, place), []
    for number, line in enumerate(text.split("\n"), 1):
        found = next((each for each in commands if each.line <= number <= each.last_line), None)
        if _MENTION.search(line):
            reason = f"as words of {str(found.words[0])!r}" if found else "as a comment, or a part of something else"
            reasons.append(f"line {number} names LLaMA-Factory, but is read {reason}")
    return reasons[:3]


def _unwrapped(commands: Sequence[Command], place: str, depth: int = 0) -> Iterator[tuple[Command, list[str]]]:
    """Each command, or those within `bash -c TEXT`; and the words before that TEXT."""
    for command in commands:
        words, where = command.words, f"{place}, line {command.line}"
        at = next((at for at, word in enumerate(words) if _name(word) in _SHELLS), len(words)) + 1
        while at < len(words) and words[at].startswith("-"):
            at += 1
        if at >= len(words) or not re.fullmatch("-[a-z]*c", words[at - 1]) or depth == 3:
            yield command, []
            continue
        for inner, outer in _unwrapped(read_commands(words[at], where), where, depth + 1):
            environment, comments = command.environment | inner.environment, [*command.comments, *inner.comments]
            moved = replace(inner, environment=environment, comments=comments, line=command.line)
            yield moved, [*words[:at], *outer]


def _invocation(command: Command, outer: list[str], place: str, arguments: Mapping[str, Argument]) -> Invocation | None:
    found = _start(command.words)
    if found is None:
        return None
    at, name, rest = found
    before, notes = command.words[:at], list[str]()
    launched = max((at for at, word in enumerate(before) if _name(word) in _LAUNCHERS), default=len(before))
    launcher = _LAUNCHERS[_name(before[launched])] if launched < len(before) else ""
    options = [word for word in before[launched + 1 :] if word not in ("launch", "-m", "--module", "--no_python")]
    left = outer + [word for word in before[:launched] if not _ASSIGNMENT.match(word)]
    assigned = [word.marked.partition("=") for word in before[:launched] if _ASSIGNMENT.match(word)]
    environment: dict[str, str] = {**command.environment, **{name: Word(value) for name, _, value in assigned}}
    if not all(map(_is_silent, left)):
        notes.append(f"not taken over: {' '.join(left)} (it stands before LLaMA-Factory's command)")
    if launcher in ("torchrun", "deepspeed"):
        variables, more = _launcher_environment(launcher, options)
        environment |= variables
        notes += more
    given = parse_words(rest if name in _READS_ARGUMENTS else [], name, arguments, f"{place}, line {command.line}")
    if name not in _READS_ARGUMENTS and (rest or name not in _COMMANDS):
        notes.append(f"{' '.join([name, *rest])}: no command of LLaMA-Factory that reads arguments")
    parts = dict.fromkeys(part for word in [*command.words, *command.environment.values()] for part in word.unknown)
    texts = "\n".join(given.notes)
    notes += [*given.notes, *(text for part in parts if (text := f"{part}: {UNRESOLVED}") not in texts)]
    for variable, value in environment.items():  # an option's --name=VALUE has lost the marks
        if any(part in value for part in parts) and not isinstance(value, Word):
            environment[variable] = Word(f"{ONE}{value}{ONE}")
    if command.defaults:
        notes.append(f"read with the default in it: {', '.join(command.defaults)}")
    accelerate = _config_file(options) if launcher == "accelerate" else None
    comments, line = command.comments, command.line
    return Invocation(name, given.config, given.arguments, environment, notes, comments, line, accelerate)


def _start(words: list[Word]) -> tuple[int, str, list[Word]] | None:
    """Where the words that start LLaMA-Factory begin, its command, and what follows that."""
    for at, word in enumerate(words):
        rest, path, before = words[at + 1 :], PurePosixPath(word), words[:at]
        is_first = all(_is_silent(each) or _ASSIGNMENT.match(each) for each in before)
        is_module = word in ("-m", "--module") and bool(rest) and rest[0] in _MODULES
        is_program = _name(word) in _PROGRAMS or path.parts[-2:] == ("llamafactory", "cli.py")
        if is_module and _MODULES[rest[0]]:
            return at, _MODULES[rest[0]], rest[1:]
        names_command = bool(rest) and rest[0] in _COMMANDS and words[0] not in ("echo", "printf")
        if is_module or (is_program and (is_first or names_command)):
            rest = rest[is_module:]
            return at, *((rest[0], rest[1:]) if rest and not rest[0].startswith("-") else ("help", rest))
        command, folders = _SCRIPTS.get(path.name, ("", set[str]()))
        is_there = path.parent.name in folders or ("$" in path.parent.name and "" in folders)
        starts = any(each == "run" or each.unknown or _is_silent(each) or _name(each) in _LAUNCHERS for each in before)
        if is_there and (is_first or (starts and not any(each.endswith(".py") for each in before))):
            return at, command, rest
    return None


def _is_silent(word: str) -> bool:
    name = _name(word)
    is_unknown = isinstance(word, Word) and bool(word.unknown)  # which is noted by itself
    return name in _SILENT or bool(_PYTHON.fullmatch(name) or re.fullmatch("-[a-z]*c", word)) or is_unknown


def _name(word: str) -> str:
    """A program's name without its folder."""
    found = _LOOKED_UP.fullmatch(word)
    return (found[1] if found else word).rpartition("/")[2]


def _config_file(options: list[Word]) -> tuple[str | None, list[str]]:
    """The --config_file of `accelerate launch`, and its other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config_file", "--config-file", nargs="?")
    given, rest = parser.parse_known_args(options)
    return given.config_file, [str(word) for word in rest if not (isinstance(word, Word) and word.is_open)]


def _launcher_environment(launcher: str, words: list[Word]) -> tuple[dict[str, str], list[str]]:
    """LLaMA-Factory's variables for the options of torchrun or deepspeed, and a note for what has none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in (*_VARIABLES, *_NEEDLESS, "rdzv_endpoint", "include"):
        parser.add_argument(*{f"--{name}", f"--{name.replace('_', '-')}"}, dest=name, nargs="?", const="")
    namespace, left = parser.parse_known_args(words)
    given: dict[str, str] = vars(namespace)
    found = {_VARIABLES[name]: value for name, value in given.items() if name in _VARIABLES}
    host, _, port = given.get("rdzv_endpoint", "").partition(":")
    if host:
        found = {"MASTER_ADDR": host, "MASTER_PORT": port or "29400", **found}
    least, _, most = found.get("NNODES", "1").partition(":")
    if least in ("1", "-1") and most in ("", "1"):  # how machines meet means nothing to one
        port = given.get("master_port", "")
        found = {key: value for key, value in found.items() if key == "NPROC_PER_NODE"}
        found |= {"MASTER_PORT": port} if port not in ("", "0") else {}
    elif most not in ("", least):
        left.append(f"--nnodes {found.pop('NNODES')}")
    if found.setdefault("NPROC_PER_NODE", "1" if launcher == "torchrun" else "-1") in ("gpu", "auto", "-1", ""):
        del found["NPROC_PER_NODE"]  # all devices, as LLaMA-Factory's launcher takes of itself
    devices = re.fullmatch(r"(?:localhost|127\.0\.0\.1):([0-9]+(?:,[0-9]+)*)", given.get("include", ""))
    if devices:
        found |= {"CUDA_VISIBLE_DEVICES": devices[1], "NPROC_PER_NODE": str(devices[1].count(",") + 1)}
    elif "include" in given:
        left.append(f"--include {given['include']}")
    left = [word for word in left if not (isinstance(word, Word) and word.is_open)]
    notes = [f"{launcher}'s {' '.join(left)}: LLaMA-Factory's launcher has no variable for it"] if left else []
    return {"FORCE_TORCHRUN": "1", **found}, notes
