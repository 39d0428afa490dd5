"""The commands of a shell's text that start LLaMA-Factory, however they start it.

Covered: llamafactory-cli and lmf, python with a module or a script of the repository, torchrun, deepspeed and
accelerate in all their forms, what commonly stands before them (env, sudo, srun, nohup, ...), `bash -c`; the variables
that the launchers' options mean to LLaMA-Factory's own launcher.py.
Not covered: what the arguments mean (importer.py); containers.
Nothing of the text is run, no file that it names is opened.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from orchestrator.importing.accelerate_config import accelerate_environment
from orchestrator.importing.command_line import parse_words
from orchestrator.importing.launch_options import (
    ACCELERATE,
    DEEPSPEED,
    TORCHRUN,
    Launcher,
    deepspeed_environment,
    torchrun_environment,
)
from orchestrator.importing.shell import Command, read_commands
from orchestrator.specs.arguments import Argument

__all__ = ["Invocation", "accelerate_environment", "read_invocations"]

_PROGRAMS = frozenset({"llamafactory-cli", "lmf"})
# Scripts of LLaMA-Factory's repository, old names included, and the command that each is.
_SCRIPTS = {
    "train.py": "train", "train_bash.py": "train", "launcher.py": "train", "api.py": "api", "api_demo.py": "api",
    "webui.py": "webui", "train_web.py": "webui", "cli_demo.py": "chat", "web_demo.py": "webchat",
    "export_model.py": "export", "evaluate.py": "eval",
}  # fmt: skip
# Where they are; of these names other projects have scripts too.
_FOLDERS = {
    "launcher.py": {"llamafactory"},
    "train.py": {"src", ""},
    "train_bash.py": {"src", ""},
    "api.py": {"src", ""},
}
_MODULES = {"llamafactory.launcher": "train", "llamafactory.train.tuner": "train"}
_TORCHRUN_MODULES = frozenset({"torch.distributed.run", "torch.distributed.launch"})
# What may stand before a program, and whether that is worth a note.
_WRAPPERS = {
    "nohup": "", "time": "", "exec": "", "command": "", "env": "", "$": "", "setsid": "", "stdbuf": "", "unbuffer": "",
    "sudo": "the run has your own rights", "srun": "how Slurm starts it is not kept", "nice": "", "ionice": "",
    "mpirun": "how MPI starts it is not kept", "mpiexec": "how MPI starts it is not kept",
    "numactl": "it is not kept", "taskset": "it is not kept", "timeout": "a run has no time limit",
    "uv": "the orchestrator's own LLaMA-Factory is used", "poetry": "the orchestrator's own LLaMA-Factory is used",
    "conda": "the orchestrator's own LLaMA-Factory is used", "pixi": "the orchestrator's own LLaMA-Factory is used",
}  # fmt: skip
_SHELLS = frozenset({"bash", "sh", "zsh", "dash"})
_PYTHON = re.compile(r"pythonw?[0-9.]*")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_ALL_WORDS = re.compile(r"\$[@*]|\$\{[@*](:.*)?\}")  # any number of words, and nobody knows which
_KNOWN = frozenset({"train", "api", "chat", "export", "webchat", "webui", "eval", "env", "version", "help"})


@dataclass(frozen=True)
class Invocation:
    """A command that starts LLaMA-Factory."""

    command: str
    """train, api, chat, export, webchat, webui, ..."""
    config: str | None
    """The YAML or JSON file that stands first, as written."""
    arguments: dict[str, Any]
    """By name, in the type that LLaMA-Factory gives them; what does not fit its type is text."""
    environment: dict[str, str]
    """Variables of the command, and those that mean the same as its launcher's options."""
    notes: list[str]
    """What was on the command and has no place here, each with its reason."""
    comments: list[str]
    line: int
    accelerate_config: str | None = None
    """The --config_file of `accelerate launch`: accelerate_environment(its values, accelerate_options) has the rest."""
    accelerate_options: dict[str, Any] = field(default_factory=dict)
    """Where there is such a file: the other options of `accelerate launch`."""


def read_invocations(text: str, place: str, arguments: Mapping[str, Argument]) -> list[Invocation]:
    """Those of a shell text's commands that start LLaMA-Factory, in order.

    Args:
        text: one command line, or a whole script.
        place: what it is called in errors: a file's name, say.
        arguments: LLaMA-Factory's, by name.

    Raises:
        SpecError: it is no shell text; LLaMA-Factory would not have started with the words of such a command.
    """
    return [
        found
        for command in read_commands(text, place)
        for found in _Start(command, dict(command.environment)).read(command.words, place, arguments)
    ]


@dataclass
class _Start:
    """What is known of a command while its words are read from the left."""

    command: Command
    environment: dict[str, str]
    notes: list[str] = field(default_factory=list)
    accelerate_config: str | None = None
    accelerate_options: dict[str, Any] = field(default_factory=dict)

    def read(self, words: list[str], place: str, arguments: Mapping[str, Argument]) -> list[Invocation]:
        words = self._unwrapped(words)
        if len(words) > 1 and _name(words[0]) in _SHELLS:
            return self._inner(words, place, arguments)
        found = self._command(words)
        if found is None:
            return []
        name, rest = found
        where = f"{place}, line {self.command.line}"
        if name in _KNOWN - {"env", "version", "help", "webui"}:
            rest = [word for word in rest if not _ALL_WORDS.fullmatch(word)]
            given = parse_words(rest, name, arguments, where, self.command.unresolved)
        else:
            given = parse_words([], name, arguments, where)
            if name in _KNOWN:
                given.notes += [f"{word!r}: llamafactory-cli {name} reads no arguments" for word in rest]
            else:
                given.notes.append(f"{' '.join([name, *rest])}: {name!r} is no command of LLaMA-Factory")
        parts = [f"{part}: what it stands for is known only when the text runs" for part in self.command.unresolved]
        return [
            Invocation(
                command=name,
                config=given.config,
                arguments=given.arguments,
                environment=self.environment,
                notes=[*self.notes, *given.notes, *parts],
                comments=self.command.comments,
                line=self.command.line,
                accelerate_config=self.accelerate_config,
                accelerate_options=self.accelerate_options,
            )
        ]

    def _inner(self, words: list[str], place: str, arguments: Mapping[str, Argument]) -> list[Invocation]:
        """The commands of `bash -c TEXT`."""
        at = next((at for at, word in enumerate(words) if re.fullmatch("-[a-z]*c", word)), len(words))
        if at + 1 >= len(words):
            return []
        found = []
        for inner in read_commands(words[at + 1], f"{place}, line {self.command.line}"):
            outer = Command(
                {**self.environment, **inner.environment},
                inner.words,
                [*self.command.comments, *inner.comments],
                self.command.line,
                list(dict.fromkeys([*self.command.unresolved, *inner.unresolved])),
            )
            start = _Start(outer, dict(outer.environment), list(self.notes))
            if _name(inner.words[0]) not in _SHELLS:  # one within another is nobody's command
                found += start.read(inner.words, place, arguments)
        return found

    def _unwrapped(self, words: list[str]) -> list[str]:
        """The words from the program on, what stands before it read or noted."""
        while words and (_name(words[0]) in _WRAPPERS or _ASSIGNMENT.fullmatch(words[0])):
            wrapper, at = _name(words[0]), 1
            if wrapper not in _WRAPPERS:
                self._assign(words[0])
                words = words[1:]
                continue
            while at < len(words) and not self._begins(words[at]):
                at += 1
            between = words[1:at]
            for word in between:
                self._assign(word)
            if _WRAPPERS[wrapper]:
                shown = " ".join(word for word in words[:at] if not _ASSIGNMENT.fullmatch(word))
                self.notes.append(f"{shown}: {_WRAPPERS[wrapper]}")
            elif wrapper == "env":
                self._heed_env(between)
            words = words[at:]
        return words

    @staticmethod
    def _begins(word: str) -> bool:
        """Whether a word after a wrapper is what it starts, or another wrapper, and not an option of its own."""
        name = _name(word)
        starts = name in _PROGRAMS or name in _WRAPPERS or name in _SHELLS or name in ("torchrun", "deepspeed")
        return starts or name in ("accelerate", "accelerate-launch") or bool(_PYTHON.fullmatch(name))

    def _assign(self, word: str) -> None:
        found = _ASSIGNMENT.fullmatch(word)
        if found:
            self.environment[found[1]] = found[2]

    def _heed_env(self, words: list[str]) -> None:
        for option, name in zip(words, [*words[1:], ""], strict=True):
            if option in ("-u", "--unset"):
                self.environment.pop(name, None)
            elif option.startswith("--unset="):
                self.environment.pop(option.partition("=")[2], None)
            elif option in ("-i", "-", "--ignore-environment"):
                self.notes.append(f"env {option}: the run has your environment")

    def _command(self, words: list[str]) -> tuple[str, list[str]] | None:
        """LLaMA-Factory's command and the words after it; None where these words do not start it."""
        if not words:
            return None
        name, rest = _name(words[0]), words[1:]
        if words[0] in self.command.unresolved:  # $PYTHON src/train.py
            return self._script(rest) or self._command(rest)
        if name in _PROGRAMS:
            return _subcommand(rest)
        if _PYTHON.fullmatch(name):
            return self._python(rest)
        if name == "torchrun":
            return self._launched("torchrun", TORCHRUN, rest)
        if name == "deepspeed":
            return self._launched("deepspeed", DEEPSPEED, rest)
        if name == "accelerate-launch" or (name == "accelerate" and rest[:1] == ["launch"]):
            return self._launched("accelerate", ACCELERATE, rest[1:] if name == "accelerate" else rest)
        return None

    def _python(self, words: list[str]) -> tuple[str, list[str]] | None:
        at = 0
        while at < len(words) and words[at].startswith("-"):
            option = words[at]
            at += 2 if option in ("-X", "-W") else 1
            if option == "-m" and at < len(words):
                found = self._module(words[at], words[at + 1 :])
                return self._noting(words[: at - 1], found)
        return self._noting(words[:at], self._script(words[at:]))

    def _noting(self, options: list[str], found: tuple[str, list[str]] | None) -> tuple[str, list[str]] | None:
        if found is not None and options:
            self.notes.append(f"python {' '.join(options)}: options of Python have no place")
        return found

    def _module(self, module: str, rest: list[str]) -> tuple[str, list[str]] | None:
        if module in ("llamafactory.cli", "llamafactory"):
            return _subcommand(rest)
        if module in _MODULES:
            return _MODULES[module], rest
        if module in _TORCHRUN_MODULES:
            return self._launched("torchrun", TORCHRUN, rest)
        if module == "deepspeed.launcher.runner":
            return self._launched("deepspeed", DEEPSPEED, rest)
        if module == "accelerate.commands.launch":
            return self._launched("accelerate", ACCELERATE, rest)
        if module == "accelerate.commands.accelerate_cli" and rest[:1] == ["launch"]:
            return self._launched("accelerate", ACCELERATE, rest[1:])
        return None

    @staticmethod
    def _script(words: list[str]) -> tuple[str, list[str]] | None:
        if not words:
            return None
        path = PurePosixPath(words[0])
        if path.name in _PROGRAMS or (path.name == "cli.py" and path.parent.name == "llamafactory"):
            return _subcommand(words[1:])
        if path.name in _SCRIPTS and path.parent.name in _FOLDERS.get(path.name, {"src"}):
            return _SCRIPTS[path.name], words[1:]
        return None

    def _launched(self, name: str, launcher: Launcher, words: list[str]) -> tuple[str, list[str]] | None:
        options = launcher.read(words, frozenset(self.command.unresolved))
        values, rest = options.values, options.rest
        if "module" in values and rest:
            found = self._module(rest[0], rest[1:])
        else:
            found = self._command(rest) if "no_python" in values else self._script(rest)
        if found is None:
            return None
        if name == "accelerate":
            self._accelerate(values)
            return found
        read = {"torchrun": torchrun_environment, "deepspeed": deepspeed_environment}[name]
        environment, notes = read(values)
        self.environment |= environment
        self.notes += notes
        return found

    def _accelerate(self, values: Mapping[str, str]) -> None:
        given: dict[str, Any] = {key: value if value else True for key, value in values.items()}
        for key in ("module", "no_python"):
            given.pop(key, None)
        self.accelerate_config = values.get("config_file")
        given.pop("config_file", None)
        if self.accelerate_config is not None:
            self.accelerate_options = given
            return
        environment, notes = accelerate_environment({}, given)
        self.environment |= environment
        self.notes += notes
        self.notes.append("accelerate launch without --config_file also reads its default_config.yaml: not taken over")


def _name(word: str) -> str:
    """A program's name without its folder."""
    return word.rpartition("/")[2]


def _subcommand(words: list[str]) -> tuple[str, list[str]]:
    return (words[0], words[1:]) if words and not words[0].startswith("-") else ("help", list(words))
