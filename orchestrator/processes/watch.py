"""Ends what a killed orchestrator leaves running: `python -m orchestrator.processes.watch LEADER MARKER`.

It waits at a pipe whose other end the orchestrator holds. When that closes, the child LEADER and all that it started
are ended. Locks that it was given are free when it ends: until then what they stand for is in use.
"""

import signal
import sys

import psutil

from orchestrator.processes.process_tree import GRACE_S, child_processes, terminate


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, with what it watches
    pid, marker = int(sys.argv[1]), sys.argv[2]
    try:
        leader = psutil.Process(pid)
    except psutil.NoSuchProcess:  # over already; of a living session no pid is used again
        leader = None
    sys.stdin.buffer.read()
    is_ours = not psutil.pid_exists(pid) or (leader is not None and leader.is_running())
    terminate(lambda: child_processes(pid if is_ours else None, marker), GRACE_S)


if __name__ == "__main__":
    main()
