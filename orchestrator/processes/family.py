"""Which processes belong together, which process a pid means, and how all of them are ended.

Covered: the members of a session and their descendants; the processes of a run, by a variable in their environment,
whatever sessions they are in and whoever their parents were; a process told from another that has its pid by now,
also where the clock was set; an orderly end: SIGTERM to those that decide, a grace, SIGKILL, none left.
Not covered: processes of other users (their environment cannot be read), other machines.
Starts nothing.
"""

import os
import signal
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import psutil

RUN_ENV = "ORCHESTRATOR_RUN"
"""In the environment of every process of a run: the run's folder, which is unique on a machine; a run's id is not."""
FOLDERS_ENV = "ORCHESTRATOR_FOLDERS"
"""In the environment of every server of ours: a JSON list of the folders that it reads or writes."""
CHILD_ENV = "ORCHESTRATOR_CHILD"
"""In the environment of a child of ours and all that it starts: a word of its own."""
NOTHING_TO_SAVE_S = 5
"""The grace of a torchrun that waits for other machines."""


def start_time(pid: int) -> float | None:
    """When a process started (seconds since the epoch), or None where there is none: a pid alone is used again."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def start_ticks(pid: int) -> int | None:
    """The same in clock ticks since the machine's start, which no setting of its clock changes (Linux; else None)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # the name before it may hold blanks and brackets
    return None if fields[0] in (b"Z", b"X") else int(fields[19])  # proc(5): field 22, starttime


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def send(process: psutil.Process, number: int) -> None:
    """A signal to a process that may be gone; psutil checks its start, so that a reused pid is left alone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def child_family(leader: int | None, word: str) -> list[psutil.Process]:
    """A child of ours first, then what is left of its session, the descendants of each, and what bears its word.

    Args:
        leader: the pid that the session is named after, which need not live any more; None where another has that pid.
        word: the child's CHILD_ENV. A rank of torchrun is in a session of its own; if torchrun is killed, it is
            nobody's descendant either.
    """
    members = [process for process in psutil.process_iter() if _session(process) == leader] if leader else []
    members.sort(key=lambda process: process.pid != leader)
    descendants = [each for process in members for each in _descendants(process)]
    return list(dict.fromkeys([*members, *descendants, *_marked(CHILD_ENV, word)]))


def run_family(folder: Path) -> list[psutil.Process]:
    """Every process of a run but the caller: its owner (one that was started for it), trainers, servers, watchers."""
    return _marked(RUN_ENV, str(folder))


def left_behind(folder: Path) -> list[psutil.Process]:
    """The same to the owner, but for supervisors that came too late: they find that the run has an owner, and end."""
    return [process for process in run_family(folder) if not _is_supervisor(process)]


def end_run(find: Callable[[], Sequence[psutil.Process]], grace_s: float) -> None:
    """End what the owner of a run left running.

    Where a watcher has seen to that already it is given the time: a trainer that is told twice may die as it saves.
    """
    left = find()
    if any(map(_is_watcher, left)):
        wait_until_gone(left, grace_s)
    wait_until_gone(end(find, grace_s))


def end(
    find: Callable[[], Sequence[psutil.Process]], grace_s: float, is_enough: Callable[[], bool] = lambda: False
) -> set[psutil.Process]:
    """End some processes: SIGTERM, a grace, SIGKILL.

    Where torchrun is at work its ranks are asked: they save a checkpoint, and torchrun, asked itself, would kill them
    half way. Of an elastic training it is torchrun itself: its ranks save nothing then, and it would start them again.
    Else those are asked that none of the others has started: a trainer whose data loader's workers got the
    signal too would fail before its checkpoint is saved. A torchrun without ranks waits for other machines, deaf to any
    signal, and has nothing to save: the grace is short then.

    Args:
        find: finds the processes; asked again before SIGKILL, for what was started meanwhile.
        grace_s: how long they may take.
        is_enough: asked all the while whether there is nothing more to wait for.

    Returns:
        All that was found; what was killed may take a moment to be gone.
    """
    family = find()
    try:
        ranks = [process for process in family if _is_rank(process)]
        for process in ranks or _roots(family):
            send(process, signal.SIGTERM)
        if not ranks and any(map(_is_torchrun, family)):
            grace_s = min(grace_s, NOTHING_TO_SAVE_S)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and any(map(alive, family)) and not is_enough():
            time.sleep(0.05)
    finally:  # a second Ctrl-C cuts the grace short
        left = {*family, *find()}
        for process in left:
            send(process, signal.SIGKILL)
    return left


def wait_until_gone(processes: Collection[psutil.Process], timeout_s: float = 5) -> None:
    """Until the kernel has ended what was killed: a GPU or a port is free only then."""
    deadline = time.monotonic() + timeout_s
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _roots(family: Sequence[psutil.Process]) -> list[psutil.Process]:
    pids = {process.pid for process in family}
    return [process for process in family if _parent(process) not in pids]


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:  # gone by now
        return None


def _marked(name: str, value: str) -> list[psutil.Process]:
    """All but the caller that have this in their environment."""
    return [each for each in psutil.process_iter() if each.pid != os.getpid() and _variable(each, name) == value]


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name) if process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, OSError):  # gone, or another user's
        return None


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _is_watcher(process: psutil.Process) -> bool:
    return "orchestrator.processes.watch" in _words(process)


def _is_supervisor(process: psutil.Process) -> bool:
    return _words(process)[1:4] == ["-m", "orchestrator", "supervise"]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_rank(process: psutil.Process) -> bool:
    """A worker of torchrun: LLaMA-Factory's launcher.py, started by torchrun."""
    try:
        parent = process.parent()
    except psutil.Error:
        return False
    return any(word.endswith("launcher.py") for word in _words(process)) and parent is not None and _is_torchrun(parent)


def _is_torchrun(process: psutil.Process) -> bool:
    return any(word.endswith("torchrun") for word in _words(process))
