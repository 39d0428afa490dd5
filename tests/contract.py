"""What a user of the command line sees, kept as text: record it before and after a change, and compare by diff -ru.

The commands are those of contract_cases.yaml, run with a stand-in for llamafactory-cli:

    python -m tests.contract DIR [CHAPTER...]
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.processes.ports import free_port
from tests import fake_comet, fake_llamafactory, fake_vllm, openai_stub
from tests.model_folders import model_folder
from tests.workshop import Workshop

TREE = Path(__file__).resolve().parent.parent
CASES = Path(__file__).with_name("contract_cases.yaml")
DEADLINE_S = 90
STUBS = {
    "STUB": openai_stub.json_reply({"object": "list", "data": [{"id": "stub", "object": "model"}]}),
    "STUB_401": openai_stub.json_reply({"detail": "Invalid API key."}, 401),
    "STUB_TWO": openai_stub.json_reply({"data": [{"id": "a"}, {"id": "b"}]}),
    "STUB_HTML": openai_stub.raw(b"<html>login</html>"),
    "STUB_500": openai_stub.raw(b"Internal Server Error", 500),
    "STUB_404": openai_stub.raw(b"Not Found", 404),
}
TEMPORARY = re.compile(r"\..+\.\w{8}")
RUN = re.compile(r"\b([\w.-]+-)(\d{8}-\d{6})(-\d+)?\b")
MEASURED = re.compile(
    r"bytes|.*(_at|_s|_ms|_mib|_bytes|_j|ticks|in_flight)|pid|boot_id|cpu|platform|"
    r"prepare|train|benchmark|export|queue|client_cpu|server_idle|binds|concurrency"
)


@dataclass
class Normalizer:
    """Texts with placeholders; runs are numbered in the order in which they were made."""

    places: list[tuple[str, str]]
    measured: list[tuple[re.Pattern[str], str]]
    ids: dict[str, str] = field(default_factory=dict)

    def learn(self, root: Path) -> None:
        """Number the new runs, those of each name by themselves."""
        folders = [path for pattern in ("*/runs/*", "*/*/runs/*") for path in root.glob(pattern)]
        found = [match for path in folders if (match := RUN.fullmatch(path.name))]
        for match in sorted(found, key=lambda match: (match[2], int((match[3] or "-0")[1:]))):
            if match[0] not in self.ids:
                name = self.without_measures(match[1])
                self.ids[match[0]] = f"{name}<{1 + sum(each.startswith(f'{name}<') for each in self.ids.values())}>"

    def text(self, text: str) -> str:
        for path, name in self.places:
            text = re.sub(rf"(?<!\w){re.escape(path)}(?!\w)", name, text)
        return self.without_measures(RUN.sub(lambda match: self.ids.get(match[0], f"{match[1]}<time>"), text))

    def without_measures(self, text: str) -> str:
        for pattern, replacement in self.measured:
            text = pattern.sub(replacement, text)
        return text

    def output(self, text: str) -> str:
        with suppress(ValueError):
            if text[:1] in "[{":
                text = json.dumps(_unmeasured(json.loads(text)), indent=1, ensure_ascii=False)
        return self.text(text)


def _unmeasured(value: Any, key: str = "") -> Any:
    """A JSON value without what is measured, by its key, and with numbers of 6 decimals."""
    if isinstance(value, dict):
        return {each: _unmeasured(inner, each) for each, inner in value.items()}
    if isinstance(value, list):
        return [_unmeasured(each, key) for each in value]
    if isinstance(value, float):
        value = round(value, 6)
    named = key.endswith(("_at", "boot_id", "binds", "cpu"))
    measured = MEASURED.fullmatch(key) and (named or type(value) in (int, float))
    return f"<{key}>" if measured and value is not None else value


@dataclass
class Chapter:
    """Commands that follow each other in a workspace of their own."""

    name: str
    cases: dict[str, Any]
    out: Path
    top: Path
    environment: dict[str, str] = field(default_factory=dict)
    normalizer: Normalizer = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.top / "work"
        self.workshop = Workshop(self.root, fake_llamafactory.install(self.top / "llamafactory"))

    def record(self) -> int:
        """Run all, write a file for each command and each run folder; the number of commands."""
        places = {self.root: "<work>", self.top: "<top>", TREE: "<tree>", Path(sys.prefix): "<venv>"}
        resolved = {**places, Path(sys.prefix).resolve(): "<venv>", self.root.resolve(): "<work>"}
        names = {Path.home(): "<home>", Path(socket.gethostname()): "<host>"}
        pairs = [(str(path), name) for path, name in {**names, **resolved}.items()]
        measured = [(re.compile(pattern, re.MULTILINE), name) for pattern, name in self.cases["measured"]]
        self.normalizer = Normalizer(sorted(pairs, key=lambda pair: -len(pair[0])), measured)
        self.out.mkdir(parents=True)
        number = 0
        with ExitStack() as stack:
            stack.callback(self.workshop.kill_all)
            self.prepare(stack)
            for step in re.findall(r"^(?:.*\\\n)*.+$", self.cases["chapters"][self.name]["cases"], re.MULTILINE):
                if step.startswith("prepare: "):
                    if subprocess.run(self.words(step.removeprefix("prepare: ")), **self.options()).returncode:
                        (self.out / f"{number:03d}-unprepared.txt").write_text(f"$ {step}\nfailed\n", encoding="utf-8")
                else:
                    number += 1
                    self.case(number, step)
            left = "".join(f"{each}\n" for each in self.workshop.left_over())
            for folder in self.top.glob("**/runs/[!.]*/"):
                self.run_folder(folder)
        if left:
            (self.out / "left-running.txt").write_text(self.normalizer.text(left), encoding="utf-8")
        return number

    def prepare(self, stack: ExitStack) -> None:
        for folder in ("runs", "dataset_info"):
            (self.root / folder).mkdir(parents=True)
        for folder in ("models/tiny", ".models/SmolLM2-135M-Instruct"):
            model_folder(self.root / folder)
        for path in (TREE / "runs").glob("*.yaml"):
            shutil.copy(path, self.root / "runs")
        for name, text in {**self.cases["files"], **self.cases["chapters"][self.name].get("files", {})}.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        binaries = self.top / "bin"
        binaries.mkdir()
        (binaries / "orchestrator").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orchestrator "$@"\n')
        (binaries / "orchestrator").chmod(0o755)
        for name in ("home", "tmp", "other"):
            (self.top / name).mkdir()
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.environment = self.workshop.full_environment({
            "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(TREE), "HOME": str(self.top / "home"),
            "TMPDIR": str(self.top / "tmp"), "SACREBLEU": str(self.top / "home" / "sacrebleu"), "TZ": "UTC",
            "LC_ALL": "C.UTF-8", "FAKE_TORN_S": "0", "CONTRACT": str(self.top), "PORT": str(free_port()),
            "TAKEN": str(taken.getsockname()[1]), "COMET": str(fake_comet.install(self.top / "comet")),
            "VLLM": str(fake_vllm.install(self.top / "vllm")),
            "BESIDE_VLLM": str(fake_vllm.llamafactory(self.top / "beside-vllm", self.workshop.cli)),
        })  # fmt: skip
        for name, models in STUBS.items():
            stub = stack.enter_context(openai_stub.serving())
            stub.models = models
            self.environment[name] = stub.base_url

    def words(self, command: str) -> list[str]:
        return ["sh", "-c", f"{self.cases['functions']}\n{command}"]

    def options(self) -> dict[str, Any]:
        return {"cwd": self.root, "env": self.environment, "stdin": subprocess.DEVNULL}

    def case(self, number: int, step: str) -> None:
        """A command, signalled or not: `INT when CONDITION -- COMMAND`."""
        signalled = re.fullmatch(r"(INT|TERM|KILL) when (.*?) -- (.*)", step, re.DOTALL)
        command = signalled[3] if signalled else step
        before = self.tree()
        out, err = self.top / "tmp" / "case.out", self.top / "tmp" / "case.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            streams: dict[str, Any] = {"stdout": out_file, "stderr": err_file}
            process = subprocess.Popen(self.words(command), start_new_session=True, **streams, **self.options())
            try:
                if signalled:
                    self.wait(process, signalled[2])
                    os.killpg(process.pid, getattr(signal, f"SIG{signalled[1]}"))
                code = process.wait(DEADLINE_S)
                ended = str(128 - code if code < 0 else code)
            except subprocess.TimeoutExpired:
                ended = "none, it did not end in time"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.normalizer.learn(self.top)
        after = self.tree()
        changes = [*(f"- {path}" for path in before - after), *(f"+ {path}" for path in after - before)]
        files = sorted(set(self.normalizer.text("\n".join(changes)).splitlines()))
        parts = [f"$ {step}\nexit code: {ended}\n"]
        for name, path in (("stdout", out), ("stderr", err)):
            text = self.normalizer.output(path.read_text("utf-8", "backslashreplace")).rstrip()
            parts.append(f"=== {name}\n" + (f"{text}\n" if text else ""))
        if "--detach" not in step and not step.startswith("KILL"):  # where something goes on
            parts.append("=== files\n" + "".join(f"{line}\n" for line in files))
        slug = re.sub(r"[^a-z0-9=@.]+", "-", command.replace("orchestrator", "").lower())
        file = self.out / f"{number:03d}-{slug[:60].strip('-')}.txt"
        file.write_text("".join(parts), encoding="utf-8")

    def wait(self, process: "subprocess.Popen[bytes]", until: str) -> None:
        """Wait for a condition of the shell, but not beyond the process's end."""
        deadline = time.monotonic() + DEADLINE_S
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        while process.poll() is None and subprocess.run(self.words(until), **quiet, **self.options()).returncode:
            time.sleep(0.05)
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(until, DEADLINE_S)

    def tree(self) -> set[str]:
        """Files, by their paths; os.walk passes over what goes away meanwhile."""
        walks = (each for place in (self.root, self.top / "other") for each in os.walk(place))
        found = (Path(folder, name) for folder, _, names in walks for name in names if not TEMPORARY.fullmatch(name))
        return {str(path.relative_to(self.top)) for path in found}

    def run_folder(self, folder: Path) -> None:
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
        parts = [("files", self.normalizer.text("\n".join(files)))]
        for name in files:
            text = (folder / name).read_text("utf-8", "replace")
            if "output/" not in name and name.endswith((".json", ".yaml", "command.txt")):
                parts.append((name, self.normalizer.output(text)))
        text = "".join(f"=== {self.normalizer.text(name)}\n{lines}\n" for name, lines in parts)
        name = re.sub(r"\W+", "-", self.normalizer.text(str(folder.relative_to(self.top))))
        (self.out / f"folder-{name}.txt").write_text(text, encoding="utf-8")


def record(target: Path, only: list[str]) -> None:
    cases = yaml.safe_load(CASES.read_text("utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="contract-", ignore_cleanup_errors=True) as folder:
        names = [name for name in cases["chapters"] if name in only or not only]
        chapters = [Chapter(name, cases, target / name, Path(folder, name)) for name in names]
        for chapter in chapters:
            shutil.rmtree(chapter.out, ignore_errors=True)
        with ThreadPoolExecutor(2) as pool:
            counts = list(pool.map(Chapter.record, chapters))
    print(f"{sum(counts)} commands in {len(counts)} chapters: {target}")


if __name__ == "__main__":
    record(Path(sys.argv[1]), sys.argv[2:])
