"""Ends what a killed orchestrator leaves running: `python -m orchestrator.processes.watch LEADER MARKER`.

It waits at a pipe whose other end the orchestrator holds. When that closes, the child LEADER and all that it started
are ended. Locks that it was given are free when it ends: until then what they stand for is in use.
"""

import signal
import sys

from orchestrator.processes.process_tree import GRACE_S, child_processes, terminate


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, with what it watches
    sys.stdin.buffer.read()
    terminate(lambda: child_processes(int(sys.argv[1]), sys.argv[2]), GRACE_S)


if __name__ == "__main__":
    main()
