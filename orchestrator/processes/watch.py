"""Ends what a killed orchestrator leaves running: started by process.py as `python -m ...watch LEADER WORD`.

Covered: it waits at a pipe whose other end the orchestrator holds. When that closes, by a SIGKILL say, the child
LEADER and all that it started are ended: SIGTERM (ranks of torchrun save a checkpoint), a grace, SIGKILL. After an
ordinary end there is nothing left to do. Locks that it was given are free when it ends: until then what they stand for
is in use.
"""

import signal
import sys

import psutil

from orchestrator.processes.family import child_family, end, start_ticks

GRACE_S = 90  # as train.py has it, which is above this module


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, with what it watches
    leader, word = int(sys.argv[1]), sys.argv[2]
    started = start_ticks(leader)
    sys.stdin.buffer.read()
    is_ours = not psutil.pid_exists(leader) or start_ticks(leader) in (started, None)  # None: not reaped yet
    end(lambda: child_family(leader if is_ours else None, word), GRACE_S)


if __name__ == "__main__":
    main()
