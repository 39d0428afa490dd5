"""The commands of a shell text that start LLaMA-Factory, however they start it, and what they say.

Nothing is run, no file is opened. A value that does not fit its argument is kept as text: the spec's check reports it.
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yaml import YAMLError

from orchestrator.errors import SpecError
from orchestrator.importing.shell import Command, read_commands
from orchestrator.importing.shell_words import ONE, Word
from orchestrator.specs.arguments import Argument

UNRESOLVED = "cannot be resolved without running the script"
_PROGRAMS = ("llamafactory-cli", "lmf")
_COMMANDS = ("train", "api", "chat", "export", "webchat", "eval", "webui", "env", "version", "help")
# Scripts of LLaMA-Factory's repository, old names included, where they lie or in a folder that is not known.
_SCRIPT = re.compile(
    r"(?:(?:.*/)?src/|.*\$[^/]*/)?(train|api|export)(?:_bash|_model)?\.py|(?:.*/)?llamafactory/launcher\.py"
)
_CLI_MODULES = ("llamafactory", "llamafactory.cli")
_TRAIN_MODULES = ("llamafactory.launcher", "llamafactory.train.tuner")
_LAUNCHERS = {
    "torchrun": "torchrun", "torch.distributed.run": "torchrun", "torch.distributed.launch": "torchrun",
    "deepspeed": "deepspeed", "accelerate": "accelerate", "accelerate-launch": "accelerate",
    "accelerate.commands.launch": "accelerate",
}  # fmt: skip
_SHELLS = ("bash", "sh", "zsh", "dash")
# What stands before a program without changing what it does.
_SILENT = re.compile(
    r"(ba|z|da)?sh|nohup|time|exec|command|env|\$|setsid|stdbuf|unbuffer|eval|-m|pythonw?[0-9.]*|-[a-z]*c"
)
_LOOKED_UP = re.compile(r"(?:\$\(|`)\s*(?:which|command -v|type -p)\s+(\S+?)\s*[)`]")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
# Options of torchrun and deepspeed that have a variable of LLaMA-Factory's launcher, and those that need none.
_VARIABLES = {
    "nnodes": "NNODES", "num_nodes": "NNODES", "nproc_per_node": "NPROC_PER_NODE", "num_gpus": "NPROC_PER_NODE",
    "num_accelerators": "NPROC_PER_NODE", "node_rank": "NODE_RANK", "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
}  # fmt: skip
_NEEDLESS = (
    "standalone", "use_env", "user_args", "force_multi", "no_local_rank", "rdzv_backend", "rdzv_id", "rdzv_conf",
)  # fmt: skip
_REFUSED = "LLaMA-Factory would not start with it: correct the command"
_BOOLS = dict.fromkeys(("yes", "true", "t", "y", "1"), True) | dict.fromkeys(("no", "false", "f", "n", "0"), False)


@dataclass(frozen=True)
class Invocation:
    """A command that starts LLaMA-Factory."""

    command: str
    config: str | None  # the YAML or JSON file that stands first, as written; a Word may have parts that are not known
    arguments: dict[str, Any]  # by name, in the type that LLaMA-Factory gives them; what does not fit its type is text
    environment: dict[str, str]  # variables of the command, and those that mean the same as its launcher's options
    notes: list[str]  # what was on the command and has no place here, each with its reason
    line: int
    accelerate: tuple[str | None, list[str]] | None  # of `accelerate launch` its --config_file and its other options


def read_invocations(
    text: str, place: str, arguments: Mapping[str, Argument], folder: Path | None = None
) -> list[Invocation]:
    """Those of a shell text's commands that start LLaMA-Factory, in order.

    Raises SpecError: it is no shell text; LLaMA-Factory would not have started with the words of such a command.
    """
    found: list[Invocation] = []
    before = None
    for command, outer in _unwrapped(read_commands(text, place, folder), place):
        if not re.match(r"-[-\w]", command.words[0]):
            before = _invocation(command, outer, place, arguments)
            found += [before] if before else []
        elif before is not None:
            reason = "not taken over: the command before it ends above this line"
            before.notes.append(f"line {command.line}: {' '.join(command.words)}: {reason}")
    return found


def _unwrapped(commands: Sequence[Command], place: str) -> Iterator[tuple[Command, list[str]]]:
    """Each command, or those within `bash -c TEXT`; and the words before that TEXT."""
    for command in commands:
        words, where = command.words, f"{place}, line {command.line}"
        at = next((at for at, word in enumerate(words) if _name(word) in _SHELLS), len(words)) + 1
        while at < len(words) and words[at].startswith("-"):
            at += 1
        if at >= len(words) or not re.fullmatch("-[a-z]*c", words[at - 1]):
            yield command, []
            continue
        for inner, outer in _unwrapped(read_commands(words[at], where), where):
            moved = replace(inner, environment=command.environment | inner.environment, line=command.line)
            yield moved, [*words[:at], *outer]


def _invocation(command: Command, outer: list[str], place: str, arguments: Mapping[str, Argument]) -> Invocation | None:
    found = _start(command.words)
    if found is None:
        return None
    at, name, rest = found
    before, notes = command.words[:at], list[str]()
    launched = next((at for at, word in enumerate(before) if _name(word) in _LAUNCHERS), len(before))
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
    words = rest if name == "train" else []
    is_flags = any(word.startswith("-") for word in words)
    is_config = bool(words) and (words[0].endswith((".yaml", ".yml", ".json")) or (words[0].unknown and not is_flags))
    known = {key: each for key, each in arguments.items() if "train" in each.commands}
    values, more = _overrides(words[1:]) if is_config else _flags(words, known, f"{place}, line {command.line}")
    parts = dict.fromkeys(part for word in [*command.words, *command.environment.values()] for part in word.unknown)
    texts = "\n".join(more)
    notes += [*more, *(f"{part}: {UNRESOLVED}" for part in parts if f"{part}: {UNRESOLVED}" not in texts)]
    for variable, value in environment.items():  # an option's --name=VALUE has lost the marks
        if any(part in value for part in parts) and not isinstance(value, Word):
            environment[variable] = Word(f"{ONE}{value}{ONE}")
    notes += [f"read with the default in it: {', '.join(command.defaults)}"] if command.defaults else []
    given, others = _options(options, "config_file")
    accelerate = (given.get("config_file") or None, list(map(str, others))) if launcher == "accelerate" else None
    config = words[0] if is_config else None
    return Invocation(name, config, values, environment, notes, command.line, accelerate)


def _start(words: list[Word]) -> tuple[int, str, list[Word]] | None:
    for at, word in enumerate(words):
        before, rest = words[:at], words[at + 1 :]
        is_first = all(_is_silent(each) or _ASSIGNMENT.match(each) for each in before)
        is_module = before[-1:] in (["-m"], ["--module"])
        names_command = bool(rest) and rest[0] in _COMMANDS and words[0] not in ("echo", "printf")
        is_program = _name(word) in _PROGRAMS and (is_first or names_command)
        if is_program or (is_module and word in _CLI_MODULES):
            return at, *((rest[0], rest[1:]) if rest and not rest[0].startswith("-") else ("help", rest))
        script = _SCRIPT.fullmatch(word)
        starts = any(_is_silent(each) or _name(each) in _LAUNCHERS for each in before)
        is_script = script and (is_first or (starts and not any(each.endswith(".py") for each in before)))
        if is_script or (is_module and word in _TRAIN_MODULES):
            return at, script[1] or "train" if script else "train", rest
    return None


def _is_silent(word: str) -> bool:
    is_unknown = isinstance(word, Word) and bool(word.unknown)  # which is noted by itself
    return _SILENT.fullmatch(_name(word)) is not None or is_unknown


def _name(word: str) -> str:
    found = _LOOKED_UP.fullmatch(word)
    return (found[1] if found else word).rpartition("/")[2]


def _options(words: list[Word], *names: str) -> tuple[dict[str, str], list[str]]:
    """The values of options with these names, and the other words; those that are not known are left out."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        parser.add_argument(*{f"--{name}", f"--{name.replace('_', '-')}"}, dest=name, nargs="?", const="")
    namespace, left = parser.parse_known_args(words)
    return vars(namespace), [word for word in left if not _is_open(word)]


def _launcher_environment(launcher: str, words: list[Word]) -> tuple[dict[str, str], list[str]]:
    given, left = _options(words, *_VARIABLES, *_NEEDLESS, "rdzv_endpoint", "include")
    found = {_VARIABLES[name]: value for name, value in given.items() if name in _VARIABLES}
    host, _, port = given.get("rdzv_endpoint", "").partition(":")
    if host:
        found = {"MASTER_ADDR": host, "MASTER_PORT": port or "29400", **found}
    if (nodes := found.get("NNODES", "1")) in ("1", "-1", "1:1"):  # how machines meet means nothing to one
        port = given.get("master_port", "")
        found = {key: value for key, value in found.items() if key == "NPROC_PER_NODE"}
        found |= {"MASTER_PORT": port} if port not in ("", "0") else {}
    elif ":" in nodes:
        left.append(f"--nnodes {found.pop('NNODES')}")
    if found.setdefault("NPROC_PER_NODE", "1" if launcher == "torchrun" else "-1") in ("gpu", "auto", "-1", ""):
        del found["NPROC_PER_NODE"]  # all devices, as LLaMA-Factory's launcher takes of itself
    devices = re.fullmatch(r"(?:localhost|127\.0\.0\.1):([0-9]+(?:,[0-9]+)*)", given.get("include", ""))
    if devices:
        found |= {"CUDA_VISIBLE_DEVICES": devices[1], "NPROC_PER_NODE": str(devices[1].count(",") + 1)}
    elif "include" in given:
        left.append(f"--include {given['include']}")
    notes = [f"{launcher}'s {' '.join(left)}: LLaMA-Factory's launcher has no variable for it"] if left else []
    return {"FORCE_TORCHRUN": "1", **found}, notes


def _overrides(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What OmegaConf.from_cli makes of the words after a YAML file, and notes."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values, notes = OmegaConf.create(), list[str]()
    for word in words:
        if _is_open(word):
            notes.append(_left_out(word))
        elif not re.match(r"[A-Za-z_][\w.]*=", word):
            notes.append(f"{word!r}: LLaMA-Factory refuses it: after a YAML file it reads key=value alone")
        else:
            try:
                values.merge_with_dotlist([word])
            except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
                notes.append(f"{word!r}: OmegaConf cannot read it: {' '.join(str(error).split())[:200]}")
    read = OmegaConf.to_container(values)
    assert isinstance(read, dict)
    return {str(key): item for key, item in read.items()}, notes


def _flags(words: Sequence[str], known: Mapping[str, Argument], where: str) -> tuple[dict[str, Any], list[str]]:
    """What HfArgumentParser makes of flags and the words after them, unknown flags kept; and notes."""
    turned_off = {f"no_{name}": name for name, each in known.items() if _is_bool(each) and each.default is True}
    names, given, values = [*known, *turned_off], dict[str, list[str]](), dict[str, Any]()
    current = strays = list[str]()
    end = words.index("--") if "--" in words else len(words)
    for word in words[:end]:
        flag, equals, text = word.partition("=")
        if not re.fullmatch(r"--?[A-Za-z_][\w-]*", flag):
            current.append(word)
            continue
        name = flag.lstrip("-").replace("-", "_")
        near = [name] if name in names else [each for each in names if each.startswith(name) and flag[:2] == "--"]
        if len(near) > 1:
            raise SpecError(f"{where}: {flag} may be {', '.join(near[:5])}", _REFUSED)
        name = near[0] if near else name
        given[name] = [text] if equals else []
        current = strays if equals else given[name]
    for name, found in given.items():
        argument = known.get(name)
        if argument is None or _is_list(argument):
            taken = [] if name in turned_off else [word for word in found if not _is_open(word)]
            strays += [word for word in found if word not in taken]
            may_be_bare = argument is None
        else:
            may_be_bare = _is_bool(argument) and (isinstance(argument.default, bool) or not argument.optional)
            taken = found[:1] if not may_be_bare or not any(map(_is_open, found[:1])) else []
            strays += found[len(taken) :]
        if not taken and not may_be_bare:
            raise SpecError(f"{where}: --{name} has no value", _REFUSED)
        values[turned_off.get(name, name)] = False if name in turned_off else _value(taken, argument)
    reason = "belongs to no argument; LLaMA-Factory reads key=value only after a YAML file"
    strays += words[end + 1 :]
    return values, [_left_out(word) if _is_open(word) else f"{word!r}: {reason}" for word in strays]


def _is_bool(argument: Argument) -> bool:
    """Whether it is declared bool, or bool | str where null is none of its values."""
    return argument.kinds == {"bool"} or ("bool" in argument.kinds and not argument.optional)


def _is_list(argument: Argument) -> bool:
    return argument.kinds == {"list"} or argument.name == "debug"  # declared text | list: the parser takes the list


def _value(words: Sequence[str], argument: Argument | None) -> Any:
    texts = list(map(str, words))
    if not texts or len(texts) > 1 or (argument is not None and _is_list(argument)):
        return texts or True
    text = texts[0]
    if argument is None:
        return text
    if argument.choices is not None:
        return next((choice for choice in argument.choices if str(choice) == text), text)
    if _is_bool(argument):
        return _BOOLS.get(text.lower(), text)
    try:
        return int(text) if argument.kinds == {"int"} else float(text) if argument.kinds == {"float"} else text
    except ValueError:
        return text


def _is_open(word: object) -> bool:
    return isinstance(word, Word) and word.is_open


def _left_out(word: str) -> str:
    return f"{word}: {UNRESOLVED}; left out"
