"""LLaMA-Factory's Python with LLaMA-Factory imported, where each question is asked of a fork.

The import is ten seconds of CPU, and most questions need a tenth of one. A fork is as new as a Python of its own: what
is asked runs as `python -c CODE ARGUMENT ...` or as llamafactory-cli, with a folder and streams of its own, and nothing
of it is left for the next one. No GPU is seen, since one cannot be used after a fork.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

CLI = """
import sys
from llamafactory.cli import main
sys.argv[0] = "llamafactory-cli"
main()
"""


class Imported:
    """Asks questions, one after the other."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._python, self._folder = python, folder
        self._popen: subprocess.Popen[str] | None = None

    def run(
        self, code: str, *arguments: str | Path, cwd: Path, input: str = "", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """What `python -c code arguments` gives with these variables beside those that all share."""
        out, err, given = (self._folder / name for name in ("out", "err", "in"))
        given.write_text(input, "utf-8")
        argv = ["-c", *map(str, arguments)]
        question = {"code": code, "argv": argv, "cwd": str(cwd), "environment": environment}
        question |= {"in": str(given), "out": str(out), "err": str(err)}
        if self._popen is None:
            self._popen = self._start()
        try:
            status = _ask(self._popen, question)
        except BaseException:  # a test's time is over, say: the next question is not answered with this one's
            self.end()
            raise
        texts = [path.read_text("utf-8", "replace") for path in (out, err)]
        return subprocess.CompletedProcess(argv, status, *texts)

    def cli(self, *words: str | Path, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        """What `llamafactory-cli words` gives."""
        return self.run(CLI, *words, cwd=cwd, **environment)

    def end(self) -> None:
        if self._popen is not None:
            os.killpg(self._popen.pid, 9)
            self._popen.communicate()
            self._popen = None

    def _start(self) -> "subprocess.Popen[str]":
        variables = {
            "HF_HOME": str(self._folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        with (self._folder / "import.err").open("wb") as err:
            return subprocess.Popen(
                [str(self._python), __file__],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                start_new_session=True,
            )


@contextmanager
def imported(python: Path, folder: Path) -> Iterator[Imported]:
    """Started with the first question, ended with the block."""
    made = Imported(python, folder)
    try:
        yield made
    finally:
        made.end()


def _ask(popen: "subprocess.Popen[str]", question: Mapping[str, Any]) -> int:
    assert popen.stdin is not None and popen.stdout is not None
    popen.stdin.write(json.dumps(question) + "\n")
    popen.stdin.flush()
    answer = popen.stdout.readline()
    assert answer, f"{popen.args} ended with {popen.wait()}; import.err beside {question['out']} says why"
    return int(answer)


# The other side, in LLaMA-Factory's Python


def _next_fork(questions: IO[str], answers: IO[str]) -> dict[str, Any] | None:
    """In each fork its question; None, in the process itself, when there are no more."""
    for line in questions:
        question: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return question
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    return None


def _become(question: Mapping[str, Any]) -> None:
    """Streams, folder, variables and path of `python -c`."""
    for number, (name, flags) in enumerate({"in": os.O_RDONLY, "out": _NEW, "err": _NEW}.items()):
        opened = os.open(question[name], flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    os.chdir(question["cwd"])
    os.environ.update(question["environment"])
    sys.argv = question["argv"]
    sys.path.insert(0, "")


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

if __name__ == "__main__":
    _questions, _answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # LLaMA-Factory logs to stdout
    sys.path.pop(0)  # this file's folder
    import gc

    gc.disable()
    import llamafactory.api.app
    import llamafactory.train.tuner  # noqa: F401

    gc.freeze()  # no fork looks through what was imported
    gc.enable()
    _question = _next_fork(_questions, _answers)
    if _question is not None:
        _become(_question)
        exec(compile(_question["code"], "<asked>", "exec"), {"__name__": "__main__"})
