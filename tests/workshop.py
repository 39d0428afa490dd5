"""A workspace, and the orchestrator run in it as a user runs it: `python -m orchestrator ...` as a child process."""

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import yaml

from orchestrator.planning.session import Session
from orchestrator.runs.trainer_log import TrainerLog
from tests import imported_once
from tests.model_folders import model_folder
from tests.runs_on_disk import new_workspace

MARK = "ORCHESTRATOR_TEST_MARK"
DEADLINE_S = 60  # shorter than the grace of a training that is stopped
PATIENT_S = 240  # for the real LLaMA-Factory, on a machine that has other work
CAPTIONS = Path(__file__).parent.parent / "dataset_info" / "captions_en_de"


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Poll until a condition gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout_s} s")


@dataclass
class Done:
    args: tuple[str, ...]
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Command:
    """A command under way, in a session of its own, as on a terminal."""

    args: tuple[str, ...]
    popen: "subprocess.Popen[bytes] | imported_once.Forked"
    out_file: Path
    err_file: Path
    deadline_s: float = DEADLINE_S

    @property
    def out(self) -> str:
        return self.out_file.read_text("utf-8")

    @property
    def err(self) -> str:
        return self.err_file.read_text("utf-8")

    def interrupt(self, number: int) -> None:
        """A signal to the command; SIGINT to its process group, as a terminal's Ctrl-C."""
        (os.killpg if number == signal.SIGINT else os.kill)(self.popen.pid, number)

    def finish(self) -> Done:
        try:
            code = self.popen.wait(self.deadline_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise AssertionError(f"{self.args} did not end in {self.deadline_s} s: {self.out} {self.err}") from None
        return Done(self.args, code, self.out, self.err)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for a condition, but not beyond the command's end: so the deadline is for what hangs alone."""

        def come() -> Any:
            ended = self.popen.poll() is not None
            found = condition()
            assert found or not ended, f"{what}: {self.args} ended before with {self.finish()}"
            return found

        return wait_for(come, what, PATIENT_S)


@dataclass
class Terminal:
    """A terminal with a command on it, and what has appeared on its screen."""

    popen: "subprocess.Popen[bytes]"
    master: int
    screen: str = ""

    def read(self) -> str:
        with suppress(OSError):  # nobody has the other end any more
            while select.select([self.master], [], [], 0)[0]:
                self.screen += os.read(self.master, 65536).decode("utf-8", "replace")
        return self.screen

    def hang_up(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        self.master = -1


@dataclass
class Workshop:
    root: Path
    cli: Path | None
    environment: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: "list[subprocess.Popen[bytes] | imported_once.Forked]" = field(default_factory=list)
    deadline_s: float = DEADLINE_S  # how long a command may take

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def calls(self, command: str) -> list[dict[str, Any]]:
        """What the fake llamafactory-cli was asked for."""
        file = self.root.parent / "calls.jsonl"
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        return [call for line in lines if (call := json.loads(line))["argv"][1] == command]

    def spec(self, name: str = "toy", **changes: Any) -> Path:
        """runs/NAME.yaml: the least that trains and is benchmarked, with sections changed; None takes one out."""
        spec: dict[str, Any] = {
            "name": name,
            "model": {"name_or_path": "models/tiny", "template": "smollm2"},
            "dataset": "captions_en_de",
            "train": {"learning_rate": 5.0e-4, "lora_target": "all", "max_samples": 40, "use_cpu": True},
            "benchmark": [{"testset": "captions_en_de", "max_samples": 6, "n_bootstrap": 10}],
        }
        for key, value in changes.items():
            spec[key] = {**spec[key], **value} if isinstance(value, dict) and key in spec else value
        path = self.runs / f"{name}.yaml"
        kept = {key: value for key, value in spec.items() if value is not None}
        path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        return path

    def start(
        self, *args: str | Path, cwd: Path | None = None, stdin: int | IO[bytes] | None = None, fresh: bool = False,
        **environment: str | None,
    ) -> Command:  # fmt: skip
        """Start a command; `fresh`: by Python itself, as where a variable is read as Python or sacrebleu starts."""
        words = tuple(map(str, args))
        logs = self.root.parent / "commands"
        logs.mkdir(exist_ok=True)
        out, err = (logs / f"{uuid.uuid4().hex}.{kind}" for kind in ("out", "err"))
        fresh = fresh or self.cli is None or any(each.startswith(("PYTHON", "SACREBLEU")) for each in environment)
        start = _start_afresh if fresh else imported_once.start
        with out.open("wb") as out_file, err.open("wb") as err_file, Path(os.devnull).open("rb") as nothing:
            first = nothing if stdin is None else stdin
            streams = [each if isinstance(each, int) else each.fileno() for each in (first, out_file, err_file)]
            popen = start(words, cwd or self.root, self.full_environment(environment), streams)
        self.started.append(popen)
        return Command(words, popen, out, err, self.deadline_s)

    @contextmanager
    def on_terminal(self, *args: str | Path, **environment: str | None) -> Iterator["Terminal"]:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
        env = self.full_environment({"TERM": "xterm", **environment})
        popen = _start_afresh(map(str, args), self.root, env, [slave] * 3, lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        terminal = Terminal(popen, master)
        try:
            yield terminal
        finally:
            terminal.hang_up()
            popen.wait(DEADLINE_S)

    def run_together(self, commands: Iterable[tuple[str | Path, ...]], **keywords: Any) -> list[Done]:
        under_way = [self.start(*words, **keywords) for words in commands]
        return [command.finish() for command in under_way]

    def run(self, *args: str | Path, **keywords: Any) -> Done:
        return self.start(*args, **keywords).finish()

    def full_environment(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        ours = ("ORCHESTRATOR_", "OPENAI_", "FAKE_", "HF_", "API_")
        hidden = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in hidden}
        merged: dict[str, str | None] = {
            **inherited,
            MARK: self.mark,
            "FAKE_CALLS": str(self.root.parent / "calls.jsonl"),
            "HF_HUB_OFFLINE": "1",
            "ORCHESTRATOR_CACHE": str(self.root.parent / "cache"),
            "ORCHESTRATOR_LOCKS": str(self.root.parent / "locks"),
            "ORCHESTRATOR_LLAMAFACTORY": str(self.cli) if self.cli else None,
            **self.environment,
            **changes,
        }
        return {key: value for key, value in merged.items() if value is not None}

    def session(self, monkeypatch: pytest.MonkeyPatch) -> Session:
        for name, value in self.full_environment({}).items():
            if name.startswith("ORCHESTRATOR_"):
                monkeypatch.setenv(name, value)
        return Session.open(self.root)

    def processes(self) -> list[psutil.Process]:
        """Every process that a command of ours started, or that such a one started, and so on."""
        found = []
        forked = {each.pid for each in self.started if isinstance(each, imported_once.Forked) and each.poll() is None}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.pid in forked or process.environ().get(MARK) == self.mark
                found += [process] if ours and process.status() != psutil.STATUS_ZOMBIE else []
        return found

    def children(self, command: "Command") -> list[psutil.Process]:
        """What a command of ours has started of LLaMA-Factory; the process that watches over it is left out."""
        found = [process for process in self.processes() if process.pid != command.popen.pid]
        return [process for process in found if "orchestrator.processes.watch" not in process.cmdline()]

    def left_over(self) -> list[str]:
        return [" ".join(process.cmdline()) for process in self.processes()]

    def kill_all(self) -> None:
        """Nothing outlives a test, however it went."""
        for process in self.processes():
            process.kill()
        for popen in self.started:
            popen.wait(DEADLINE_S)

    def run_folders(self) -> list[Path]:
        folders = (path for path in self.runs.iterdir() if path.is_dir() and path.name != ".trash")
        return sorted(path for path in folders if not (path / "group.json").exists())

    def only_run(self) -> Path:
        (folder,) = self.run_folders()
        return folder

    def record(self, folder: Path | None = None) -> dict[str, Any]:
        return json.loads(((folder or self.only_run()) / "record.json").read_bytes())

    def copy(self, parent: Path) -> "Workshop":
        root = parent / self.root.name
        shutil.copytree(self.root, root)
        return Workshop(root, self.cli, self.environment)


def real_environment(folder: Path) -> dict[str, str]:
    """What the real LLaMA-Factory of a workspace runs with: one thread, so that sums come out the same each time."""
    ours = [str(Path(__file__).parent / name) for name in ("seldom_collected", "cpu_ranks")]
    path = os.pathsep.join(filter(None, [*ours, os.environ.get("PYTHONPATH")]))
    return {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PYTHONPATH": path}


def new_workshop(
    parent: Path, cli: Path | None, environment: Mapping[str, str] | None = None, model: Path | None = None
) -> Workshop:
    """An empty workspace, with a space and quotes in its path, and with models/tiny: a copy of a model, or a toy."""
    root = new_workspace(parent / 'it\'s my "work"').root
    if model is None:
        model_folder(root / "models" / "tiny")
    else:
        shutil.copytree(model, root / "models" / "tiny")
    return Workshop(root, cli, environment or {})


def _start_afresh(
    words: Iterable[str], cwd: Path, env: Mapping[str, str], streams: Iterable[int], before: Any = None
) -> "subprocess.Popen[bytes]":
    argv, (stdin, out, err) = [sys.executable, "-m", "orchestrator", *words], streams
    return subprocess.Popen(
        argv, cwd=cwd, env=env, stdin=stdin, stdout=out, stderr=err, start_new_session=True, preexec_fn=before
    )


def told_to_stop(processes: Iterable[psutil.Process], tell: Callable[[], Any]) -> None:
    """Have trainings stop at the step they are at, or the next: transformers trains on for 3 s from SIGTERM on."""
    trainers = list(processes)
    for each in trainers:
        each.suspend()
    threads = {each: each.num_threads() for each in trainers}
    try:
        tell()
        for each in trainers:
            each.resume()
        wait_for(lambda: all(each.num_threads() > threads[each] for each in trainers), "a thread that waits 3 s")
        for each in trainers:
            each.suspend()
        time.sleep(3.2)
    finally:
        for each in trainers:
            each.resume()


def training_at_step(workshop: Workshop, step: int) -> Callable[[], bool]:
    """Whether the trainer's log of the only run has come to a step."""

    def reached() -> bool:
        logs = list(workshop.runs.glob("*/output/trainer_log.jsonl"))
        return bool(logs) and logs[0].read_text("utf-8").count("\n") >= step

    return reached


def loss_curve(run: Path) -> list[tuple[int, float]]:
    """The losses of all attempts by step; of a step that was trained again, the last one."""
    events = TrainerLog(run / "output" / "trainer_log.jsonl").new_events()
    return sorted({event["current_steps"]: event["loss"] for event in events if "loss" in event}.items())


def assert_none_left(workshop: Workshop) -> None:
    """No process of ours is there, or it goes in a moment."""
    with suppress(AssertionError):  # the next one says what is there
        wait_for(lambda: not workshop.processes(), "their end")
    assert workshop.left_over() == []
