"""Which processes belong together, and how all of them are ended.

A process is found by a variable in its environment, whatever session it is in and whoever its parents were. Processes
of other users cannot be seen.
"""

import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

RUN_ENV = "ORCHESTRATOR_RUN"
"""In the environment of every process of a run: the run's folder, which is unique on a machine; a run's id is not."""
CHILD_ENV = "ORCHESTRATOR_CHILD"  # in the environment of a child of ours and of all that it starts: a marker of its own
GRACE_S = 90
"""For a training to save its checkpoint: transformers waits 3 s, then writes; a 7B model's optimizer takes longer."""
NOTHING_TO_SAVE_S = 5  # a torchrun without ranks waits for other machines, deaf to any signal


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.05) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_s)
    return True


def alive(process: psutil.Process) -> bool:
    return _unless_gone(lambda: process.is_running() and process.status() != psutil.STATUS_ZOMBIE, False)


def send(processes: Collection[psutil.Process], number: int) -> None:
    """Send a signal to processes that may be gone; psutil checks their start, so a reused pid is left alone."""
    for process in processes:
        _unless_gone(lambda each=process: each.send_signal(number), None)  # type: ignore[misc]


def has_open(process: psutil.Process, path: Path) -> bool:
    """By the file's inode: a run's owner has the run's lock open."""
    return _unless_gone(lambda: any(Path(file.path).samefile(path) for file in process.open_files()), False)


def environments() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Every process but ours whose environment can be read, and that."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.environ()
        except (psutil.Error, OSError):  # gone, or another user's
            continue


def child_processes(leader: int | None, marker: str) -> list[psutil.Process]:
    """What is left of the session of a child of ours, the descendants of each, and all that bears the child's marker.

    A rank of torchrun is in a session of its own, and if torchrun is killed, nobody's descendant. A program that sets
    its title (vLLM's workers) may have written over its environment. leader: the child; None where its pid is another
    process's by now.
    """
    every = psutil.process_iter() if leader is not None else ()
    found = [each for each in every if _unless_gone(lambda one=each: os.getsid(one.pid), None) == leader]  # type: ignore[misc]
    for each in list(found):
        found += _unless_gone(lambda one=each: one.children(recursive=True), [])  # type: ignore[misc]
    return list(dict.fromkeys([*found, *_marked(CHILD_ENV, marker)]))


def run_processes(folder: Path) -> list[psutil.Process]:
    """Every process of a run but the caller: its owner (where one was started for it), trainers, servers, watchers."""
    return _marked(RUN_ENV, str(folder))


def terminate(
    find: Callable[[], Sequence[psutil.Process]], grace_s: float, is_enough: Callable[[], bool] = lambda: False
) -> set[psutil.Process]:
    """End some processes: SIGTERM, a grace, SIGKILL; all that was found, of which some may take a moment to be gone.

    Where torchrun is at work its ranks get the SIGTERM: they save a checkpoint, and torchrun, asked itself, would kill
    them half way. Else those get it that none of the others has started: a trainer whose data loader's workers got the
    signal too would fail before its checkpoint is saved. `find` is called again before SIGKILL, for what was started
    meanwhile; `is_enough` all the while: whether there is nothing more to wait for.
    """
    found = find()
    try:
        ranks = [process for process in found if _is_rank(process)]
        pids = {process.pid for process in found}
        send(ranks or [each for each in found if _unless_gone(each.ppid, None) not in pids], signal.SIGTERM)
        if not ranks and any(_runs(each, "torchrun") for each in found):
            grace_s = min(grace_s, NOTHING_TO_SAVE_S)
        wait_until(lambda: not any(map(alive, found)) or is_enough(), grace_s)
    finally:  # a second Ctrl-C cuts the grace short
        left = {*found, *find()}
        send(left, signal.SIGKILL)
    return left


def terminate_run(find: Callable[[], Sequence[psutil.Process]], grace_s: float) -> None:
    """End what the owner of a run left running, and wait until it is gone."""
    left = find()  # a watcher ends it already, and a trainer that gets SIGTERM twice may die as it saves
    if any("orchestrator.processes.watch" in command_line(process) for process in left):
        wait_until_gone(left, grace_s)
    wait_until_gone(terminate(find, grace_s))


def wait_until_gone(processes: Collection[psutil.Process], timeout_s: float = 5) -> bool:
    """Until the kernel has ended what was killed: a GPU or a port is free only then. Whether all are gone."""
    return wait_until(lambda: not any(map(alive, processes)), timeout_s, 0.01)


def is_of_a_command(process: psutil.Process) -> bool:
    """Whether it, or a living process above it, is a command of ours: `python -P -m orchestrator`, or the script."""
    above: list[psutil.Process] = _unless_gone(process.parents, [])
    return any("orchestrator" in (Path(word).name for word in command_line(each)[:4]) for each in [process, *above])


def name_of(process: psutil.Process) -> str:
    return _unless_gone(process.name, "gone")


def command_line(process: psutil.Process) -> list[str]:
    return _unless_gone(process.cmdline, [])


def _marked(name: str, value: str) -> list[psutil.Process]:
    return [process for process, environment in environments() if environment.get(name) == value]


def _is_rank(process: psutil.Process) -> bool:
    """Whether it is LLaMA-Factory's launcher.py, started by torchrun."""
    parent = _unless_gone(process.parent, None)
    return _runs(process, "launcher.py") and parent is not None and _runs(parent, "torchrun")


def _runs(process: psutil.Process, program: str) -> bool:
    return any(word.endswith(program) for word in command_line(process))


def _unless_gone(read: Callable[[], T], otherwise: T) -> T:
    """Something about a process; what is given instead where it is gone by now, or another user's."""
    try:
        return read()
    except (psutil.Error, OSError):
        return otherwise
