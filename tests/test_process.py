"""Child processes: their output, their end, and that none is left. Run: pytest tests/test_process.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.processes.process import Child, child_environment, own_argv, run_short, start
from tests.workshop import wait_for

ROOT = Path(__file__).resolve().parent.parent
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def spawn(tmp_path: Path):
    """Starts a child that runs Python code; whatever is left of it in the end is killed."""
    children: list[Child] = []

    def begin(code: str, **environment: str) -> Child:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        log, argv = tmp_path / "it's a log" / "child.log", [sys.executable, "-c", code]
        children.append(start(argv, log=log, cwd=tmp_path, env=env, death_signal=signal.SIGKILL))
        return children[-1]

    yield begin
    for child in children:
        child.stop(0)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # nobody waits for orphans in some containers
    except psutil.NoSuchProcess:
        return False


def test_the_log_has_all_output_after_what_it_had_and_a_tail_is_of_one_child(spawn):
    assert spawn("import os; os.write(1, b'one\\n'); os.write(2, b'two\\n')").popen.wait() == 0
    second = spawn("print('three')")
    assert second.popen.wait() == 0
    assert second.log.read_text() == "one\ntwo\nthree\n" and second.log_tail() == "  | three"


@pytest.mark.parametrize(
    ("output", "lines", "tail"),
    [
        (b"\n\n".join(b"line %d" % n for n in range(50)), 3, "  | line 47\n  | line 48\n  | line 49"),
        (b"1%\r50%\r99%\r\ndone\n", 20, "  | 99%\n  | done"),
        (b"\x1b[31mred\x07\xff\n\tk\xc3\xa4", 20, "  | \\x1b[31mred\\x07\N{REPLACEMENT CHARACTER}\n  | \tkä"),
        (b"x" * 200_000 + b"\nthe end", 1, "  | the end"),
        (b"", 20, "  | (no output)"),
    ],
)  # fmt: skip
def test_the_tail_is_the_last_lines_as_a_terminal_would_show_them(output, lines, tail, tmp_path):
    (tmp_path / "log").write_bytes(output)
    assert Child([], tmp_path, tmp_path / "log", 0, None, "").log_tail(lines) == tail


def test_the_child_has_no_input_its_own_session_and_the_folder_and_environment_it_was_given(spawn, tmp_path):
    code = "import os, sys; print(repr(sys.stdin.read()), os.getsid(0) == os.getpid(), os.getcwd(), os.environ['WORD'])"
    child = spawn(code, WORD="it's; $HOME")
    assert child.popen.wait() == 0
    assert child.log.read_text() == f"'' True {tmp_path} it's; $HOME\n"


def test_a_program_that_cannot_be_started_is_named(tmp_path):
    program = tmp_path / "bad interpreter"
    program.write_text("#!/nowhere/python\n")
    program.chmod(0o755)
    for path in (program, tmp_path / "missing"):
        with pytest.raises(PrerequisiteError, match=f"^{path} cannot be started: "):
            start([str(path)], log=tmp_path / "log", cwd=tmp_path, env={}, death_signal=signal.SIGKILL)
        with pytest.raises(PrerequisiteError, match=f"^{path} cannot be started: "):
            run_short([str(path)])


def test_what_lies_in_the_current_folder_is_not_imported_in_place_of_ours(tmp_path):
    for name in ("psutil.py", "orchestrator.py", "orchestrator/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('another one')")
    argv = own_argv("1", "x", module="processes.watch")
    done = subprocess.run(argv, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_log_that_is_a_link_is_not_written_to(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"):
        start(["true"], log=tmp_path / "log", cwd=tmp_path, env={}, death_signal=None)
    assert (tmp_path / "mine").read_text() == "mine"


FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleeper = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(0); time.sleep(60)"]
parent = [sys.executable, "-c", f"import subprocess; p = subprocess.Popen({sleeper}); print(p.pid); p.wait()"]
children = [
    subprocess.Popen(sleeper), subprocess.Popen(sleeper, start_new_session=True, env={}),
    subprocess.Popen(parent, start_new_session=True),
]
print("\\n".join(str(child.pid) for child in children))
time.sleep(60)
"""
LEAVES = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', '{SLEEP}']).pid)"
LEAVES_LATE = f"""
import signal, time
def end(*_):
  {LEAVES}; raise SystemExit(0)
signal.signal(15, end)
print(0)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("code", "printed", "grace_s", "status", "count"),
    [(FAMILY, 6, 0.2, -signal.SIGKILL, 4), (LEAVES, 1, 10, 0, 1), (LEAVES_LATE, 1, 10, 0, 1)],
    ids=["stubborn, in other sessions too", "left behind by one that ended", "started as it ends"],
)
def test_stop_leaves_no_descendant_and_touches_no_process_of_others(code, printed, grace_s, status, count, spawn):
    other = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    child = spawn(code)
    wait_for(lambda: child.log.read_text().count("\n") >= printed, "its children")
    if code == LEAVES:
        wait_for(lambda: child.poll() is not None, "its end")
    assert child.stop(grace_s) == status
    left = [int(line) for line in child.log.read_text().split() if int(line)]  # those that sleep print 0
    assert len(left) == count and not any(map(lives, left)) and other.poll() is None
    other.kill()
    other.wait()


LAUNCHER = """
import os, subprocess, sys
done = subprocess.run([sys.executable, os.environ["TORCHRUN"], os.environ["LAUNCHER"]])
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


def test_under_torchrun_the_ranks_get_the_signal_and_all_of_them_are_waited_for(spawn, tmp_path):
    """Each saves its part of a checkpoint; torchrun, asked itself, would kill them half way."""
    for name, code in (("torchrun", TORCHRUN), ("launcher.py", RANK)):
        (tmp_path / name).write_text(code)
    child = spawn(LAUNCHER, TORCHRUN=str(tmp_path / "torchrun"), LAUNCHER=str(tmp_path / "launcher.py"))
    wait_for(lambda: child.log.read_text().count("rank up") == 2, "both ranks")
    assert child.stop(30) == 0
    log = child.log.read_text()
    assert log.count("rank saved") == 2 and "launcher ends" in log and "torchrun was asked" not in log


def test_a_torchrun_that_waits_for_other_machines_is_not_waited_for(spawn, tmp_path, monkeypatch):
    """No rank of it is there: nothing could be saved, and it hears no signal while it waits."""
    monkeypatch.setattr("orchestrator.processes.process_tree.NOTHING_TO_SAVE_S", 0.1)
    deaf = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('waits', flush=True)\ntime.sleep(600)"
    (tmp_path / "torchrun").write_text(deaf)
    child = spawn(LAUNCHER, TORCHRUN=str(tmp_path / "torchrun"), LAUNCHER="launcher.py")
    wait_for(lambda: "waits" in child.log.read_text(), "the wait")
    began = time.monotonic()
    assert child.stop(250) == -signal.SIGTERM and time.monotonic() - began < 125


PARENT = """
import os, signal, sys, time
from pathlib import Path
from orchestrator.processes.process import start

watched, code = sys.argv[2] == "watched", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
if watched:  # it has left its child behind when we die
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)"
how = {"env": dict(os.environ), "death_signal": int(signal.SIGKILL), "watched": watched}
start([sys.executable, "-c", code], log=Path(sys.argv[1]), cwd=Path("."), **how)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
@pytest.mark.parametrize("how", ["by a death signal", "watched"])
def test_a_parent_that_is_killed_takes_its_child_and_what_that_started_with_it(how, tmp_path):
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(log), how], cwd=ROOT) as parent:
        wait_for(lambda: log.exists() and log.read_text().endswith("\n"), "the child")
        pid = int(log.read_text())
        assert lives(pid)
        parent.kill()
    wait_for(lambda: not lives(pid), "its end")


def test_the_child_s_path_begins_with_its_program_s_folder_and_nothing_changes_what_it_is(monkeypatch):
    changing = ("USE_V1", "ALLOW_EXTRA_ARGS", "LLAMABOARD_ENABLED", "LLAMABOARD_WORKDIR")
    for name in changing:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HF_HOME", "/models")
    found = child_environment(Path("/it's/bin/llamafactory-cli"), {"API_PORT": "1", "HF_HOME": "/other"})
    assert found["PATH"] == "/it's/bin:/usr/bin:/bin"
    assert (found["API_PORT"], found["HF_HOME"]) == ("1", "/other")
    assert not set(changing) & set(found)


def test_a_short_program_s_output_is_returned_and_its_failure_says_why():
    words = [sys.executable, "-c", "import os, sys; print(repr(sys.stdin.read()), os.environ['X'])"]
    assert run_short(words, input_text="ä", environment={"X": "1"}) == "'ä' 1\n"
    raw = run_short([sys.executable, "-c", "import os; os.write(1, b'\\xff')"], errors="surrogateescape")
    assert raw.encode(errors="surrogateescape") == b"\xff"
    with pytest.raises(StageError, match=r"ended with status 2: .*\\x1b no"):
        run_short([sys.executable, "-c", "import sys; sys.stderr.write('\\x1b no'); sys.exit(2)"])
    with pytest.raises(StageError, match=r"did not answer within 0\.2 s"):
        run_short([sys.executable, "-c", SLEEP], timeout_s=0.2)
