"""Child processes: their output, their end, and that none is left. Run: pytest tests/test_process.py."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.processes.process import Child, child_environment, run_short, start
from orchestrator.processes.process_tree import start_ticks
from orchestrator.text import escape_controls

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def spawn(tmp_path: Path):
    """Starts a child that runs Python code; whatever is left of it in the end is killed."""
    children: list[Child] = []

    def begin(code: str, *args: object, **environment: str) -> Child:
        argv = [sys.executable, "-c", code, *map(str, args)]
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        log = tmp_path / "it's a log" / "child.log"
        children.append(start(argv, log=log, cwd=tmp_path, env=env, death_signal=signal.SIGKILL))
        return children[-1]

    yield begin
    for child in children:
        child.stop(0)


def until(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def wrote(child: Child, text: str) -> None:
    until(lambda: text in child.log.read_text())


def pids(child: Child, count: int) -> list[int]:
    """The numbers that the child printed, a line each, once that many are there."""
    until(lambda: child.log.read_text().count("\n") >= count)
    return [int(word) for word in child.log.read_text().split()]


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # nobody waits for orphans in some containers
    except psutil.NoSuchProcess:
        return False


# Output


def test_the_log_has_all_output_after_what_it_had(spawn):
    child = spawn("import os; os.write(1, b'one\\n'); os.write(2, b'two\\n')")
    assert child.popen.wait() == 0
    second = spawn("print('three')")
    assert second.popen.wait() == 0
    assert child.log.read_text() == "one\ntwo\nthree\n"
    assert second.log_tail() == "  | three"


def test_a_wait_ends_with_the_child_and_else_when_its_time_is_over(spawn):
    child = spawn("import sys; sys.stdin.read()")
    child.wait(100_000)
    assert child.poll() == 0
    child.wait(100_000)  # its pid may be another's by now
    sleeper = spawn("import time; time.sleep(100_000)")
    sleeper.wait(0.01)
    assert sleeper.poll() is None


def test_much_output_does_not_stop_the_child(spawn):
    """A pipe that nobody reads would, at 64 KiB."""
    child = spawn("import sys; sys.stdout.write('x' * 2_000_000)")
    assert child.popen.wait() == 0
    assert child.log.stat().st_size == 2_000_000


def test_the_tail_is_the_last_lines_that_are_not_blank(spawn):
    child = spawn("print('\\n\\n'.join(f'line {n}' for n in range(50)))")
    child.popen.wait()
    assert child.log_tail(3) == "  | line 47\n  | line 48\n  | line 49"
    assert len(child.log_tail().splitlines()) == 20


def test_of_a_progress_bar_the_tail_has_what_was_shown_last(spawn):
    child = spawn("print('1%\\r50%\\r99%\\r'); print('done')")
    child.popen.wait()
    assert child.log_tail() == "  | 99%\n  | done"


def test_control_characters_in_the_tail_are_shown_not_obeyed(spawn):
    child = spawn("import os; os.write(1, b'\\x1b[31mred\\x07\\xff\\n\\tk\\xc3\\xa4se')")
    child.popen.wait()
    assert child.log_tail() == "  | \\x1b[31mred\\x07\N{REPLACEMENT CHARACTER}\n  | \tkäse"


def test_a_long_log_has_a_tail_of_its_end(spawn):
    child = spawn("print('x' * 200_000); print('the end')")
    child.popen.wait()
    assert child.log_tail().endswith("\n  | the end")
    assert len(child.log_tail()) < 70_000


def test_no_output_is_said(spawn):
    child = spawn("")
    child.popen.wait()
    assert child.log_tail() == "  | (no output)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Käse 日本語 😀", "Käse 日本語 😀"),
        ("a\tb", "a\tb"),
        ("10\N{NO-BREAK SPACE}km\N{IDEOGRAPHIC SPACE}你好", "10\N{NO-BREAK SPACE}km\N{IDEOGRAPHIC SPACE}你好"),
        ("👩\N{ZERO WIDTH JOINER}👧", "👩\N{ZERO WIDTH JOINER}👧"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nb\rc\x7f\x85\0", "a\\x0ab\\x0dc\\x7f\\x85\\x00"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}x\u2028\ufeff", "\\u202ex\\u2028\\ufeff"),
        ("\ud800\U000e0001", "\\ud800\\U000e0001"),
    ],
)
def test_text_is_made_safe_for_a_terminal_and_stays_text(text, shown):
    assert escape_controls(text) == shown
    assert escape_controls(shown) == shown


# Start and end


@pytest.mark.parametrize(
    ("code", "status"), [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_the_exit_status_is_the_child_s_and_a_signal_is_negative(code, status, spawn):
    child = spawn(code)
    until(lambda: child.poll() is not None)
    assert child.poll() == status
    assert child.stop(1) == status


def test_the_child_has_no_input_its_own_session_and_the_folder_and_environment_it_was_given(spawn, tmp_path):
    code = "import os, sys; print(repr(sys.stdin.read()), os.getsid(0) == os.getpid(), os.getcwd(), os.environ['WORD'])"
    child = spawn(code, WORD="it's; $HOME")
    assert child.popen.wait() == 0
    assert child.log.read_text() == f"'' True {tmp_path} it's; $HOME\n"


@pytest.mark.parametrize("make", ["missing", "not executable", "folder", "bad interpreter"])
def test_a_program_that_cannot_be_started_is_named(make, tmp_path):
    program = tmp_path / "llamafactory-cli"
    if make == "folder":
        program.mkdir()
    elif make != "missing":
        program.write_text("#!/nowhere/python\n")
        program.chmod(0o755 if make == "bad interpreter" else 0o644)
    with pytest.raises(PrerequisiteError, match=f"^{program} cannot be started: "):
        start([str(program)], log=tmp_path / "log", cwd=tmp_path, env={}, death_signal=signal.SIGKILL)
    with pytest.raises(PrerequisiteError, match=f"^{program} cannot be started: "):
        run_short([str(program)])


def test_stop_asks_first(spawn):
    code = "import signal, time; signal.signal(15, lambda *_: exit(7)); print('up'); time.sleep(60)"
    child = spawn(code)
    wrote(child, "up")
    assert child.stop(30) == 7


FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleeper = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(0); time.sleep(60)"]
parent = [sys.executable, "-c", f"import subprocess; p = subprocess.Popen({sleeper}); print(p.pid); p.wait()"]
children = [
    subprocess.Popen(sleeper), subprocess.Popen(sleeper, start_new_session=True),
    subprocess.Popen(parent, start_new_session=True),
]
print("\\n".join(str(child.pid) for child in children))
time.sleep(60)
"""


def test_stop_kills_a_stubborn_child_and_its_descendants_also_in_other_sessions(spawn):
    child = spawn(FAMILY)
    numbers = [pid for pid in pids(child, 7) if pid]  # 4 descendants; those that sleep say 0
    assert len(numbers) == 4
    assert all(map(lives, numbers))
    assert child.stop(0.2) == -signal.SIGKILL
    assert not any(map(lives, numbers))


LEAVES = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"


def test_stop_reaches_what_a_child_that_ended_left_behind(spawn):
    """A launcher that the kernel killed for want of memory, say: its trainer would go on and hold the GPU."""
    child = spawn(LEAVES)
    until(lambda: child.poll() is not None)
    (orphan,) = pids(child, 1)
    assert lives(orphan)
    assert child.stop(10) == 0
    assert not lives(orphan)


def test_stop_reaches_what_a_child_starts_while_it_ends(spawn):
    child = spawn(
        f"import signal, time\ndef end(*_):\n  {LEAVES}; raise SystemExit(0)\n"
        "signal.signal(15, end)\nprint(0); time.sleep(60)"
    )
    wrote(child, "0\n")
    assert child.stop(10) == 0
    assert not lives(pids(child, 2)[1])


def test_stop_touches_no_process_of_others(spawn):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        child = spawn("")
        child.popen.wait()
        child.stop(1)
        child.stop(1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


LAUNCHER = """
import os, subprocess, sys
elastic = os.environ.get("ELASTIC", "").split()
done = subprocess.run([sys.executable, os.environ["TORCHRUN"], os.environ["LAUNCHER"], *elastic])
print("launcher ends")
raise SystemExit(done.returncode)
"""
TORCHRUN = """
import signal, subprocess, sys
def asked(*_):
    print("torchrun was asked")
signal.signal(15, asked)
ranks = [subprocess.Popen([sys.executable, sys.argv[1]], start_new_session=True) for _ in range(2)]
raise SystemExit(max(rank.wait() for rank in ranks))
"""
RANK = """
import signal, sys, time
def save(*_):
    time.sleep(0.3)
    print("rank saved")
    raise SystemExit(0)
signal.signal(15, save)
print("rank up")
time.sleep(60)
"""


def test_under_torchrun_the_ranks_are_asked_and_all_of_them_are_waited_for(spawn, tmp_path):
    """Each saves its part of a checkpoint; torchrun, asked itself, would kill them half way."""
    for name, code in (("torchrun", TORCHRUN), ("launcher.py", RANK)):
        (tmp_path / name).write_text(code)
    child = spawn(LAUNCHER, TORCHRUN=str(tmp_path / "torchrun"), LAUNCHER=str(tmp_path / "launcher.py"))
    until(lambda: child.log.read_text().count("rank up") == 2)
    assert child.stop(30) == 0
    said = child.log.read_text()
    assert said.count("rank saved") == 2
    assert "launcher ends" in said
    assert "torchrun was asked" not in said


def test_an_elastic_torchrun_is_asked_itself(spawn, tmp_path):
    """It would start the ranks again; the real one ends them, which the fake leaves to the end of the grace."""
    for name, code in (("torchrun", TORCHRUN), ("launcher.py", RANK)):
        (tmp_path / name).write_text(code.replace('asked")', 'asked", flush=True)'))
    files = {"TORCHRUN": str(tmp_path / "torchrun"), "LAUNCHER": str(tmp_path / "launcher.py")}
    child = spawn(LAUNCHER, **files, ELASTIC="--rdzv-id toy")
    until(lambda: child.log.read_text().count("rank up") == 2)
    child.stop(60, lambda: "torchrun was asked" in child.log.read_text())
    said = child.log.read_text()
    assert "torchrun was asked" in said and "rank saved" not in said


def test_a_torchrun_that_waits_for_other_machines_is_not_waited_for(spawn, tmp_path):
    """No rank of it is there: nothing could be saved, and it hears no signal while it waits."""
    deaf = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('waits', flush=True)\ntime.sleep(600)"
    (tmp_path / "torchrun").write_text(deaf)
    child = spawn(LAUNCHER, TORCHRUN=str(tmp_path / "torchrun"), LAUNCHER="launcher.py")
    wrote(child, "waits")
    began = time.monotonic()
    assert child.stop(250) == -signal.SIGTERM
    assert time.monotonic() - began < 125


PARENT = """
import os, signal, sys, time
from pathlib import Path
from orchestrator.processes.process import start

code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
argv, env = [sys.executable, "-c", code], dict(os.environ)
start(argv, log=Path(sys.argv[1]), cwd=Path("."), env=env, death_signal=int(sys.argv[2]))
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_parent_that_is_killed_takes_its_child_with_it(number, tmp_path):
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(log), str(int(number))], cwd=ROOT)
    try:
        until(lambda: log.exists() and log.read_text().endswith("\n"))
        pid = int(log.read_text())
        assert lives(pid)
        parent.kill()
        parent.wait()
        until(lambda: not lives(pid))
    finally:
        parent.kill()
        parent.wait()


# The environment


def test_the_child_s_path_begins_with_its_program_s_folder_and_nothing_changes_what_it_is(monkeypatch):
    for name in ("USE_V1", "ALLOW_EXTRA_ARGS", "LLAMABOARD_ENABLED", "LLAMABOARD_WORKDIR"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HF_HOME", "/models")
    found = child_environment(Path("/it's/bin/llamafactory-cli"), {"API_PORT": "1", "HF_HOME": "/other"})
    assert found["PATH"] == "/it's/bin:/usr/bin:/bin"
    assert (found["API_PORT"], found["HF_HOME"]) == ("1", "/other")
    assert not {"USE_V1", "ALLOW_EXTRA_ARGS", "LLAMABOARD_ENABLED", "LLAMABOARD_WORKDIR"} & set(found)


# Short programs


def test_a_short_program_s_output_is_returned(tmp_path):
    code = "import os, sys; print(os.getcwd(), repr(sys.stdin.read()))"
    assert run_short([sys.executable, "-c", code], cwd=tmp_path) == f"{tmp_path} ''\n"


def test_a_short_program_that_fails_says_why():
    with pytest.raises(StageError, match=r"ended with status 2: .*\\x1b no"):
        run_short([sys.executable, "-c", "import sys; sys.stderr.write('\\x1b no'); sys.exit(2)"])


def test_a_short_program_that_hangs_is_ended():
    with pytest.raises(StageError, match=r"did not answer within 0\.2 s"):
        run_short([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)


# Which process


def test_a_process_is_known_by_its_start(spawn):
    child = spawn("import time; print('up'); time.sleep(60)")
    wrote(child, "up")
    began = start_ticks(child.pid)
    assert began is not None
    assert began == start_ticks(child.pid)
    assert start_ticks(os.getpid()) != began
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: start_ticks(child.pid) is None)  # a zombie already
    child.popen.wait()
    assert start_ticks(child.pid) is None
