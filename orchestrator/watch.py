"""Ends what a killed orchestrator leaves running: `python -m orchestrator.watch LEADER`, started by process.py.

Covered: it waits at a pipe whose other end the orchestrator holds. When that closes, by a SIGKILL say, the session of
the child LEADER is ended: SIGTERM (ranks of torchrun save a checkpoint), a grace, SIGKILL. After an ordinary end there
is nothing left to do.
"""

import signal
import sys

from orchestrator.process import end_session

GRACE_S = 90  # as train.py has it, which is above this module


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, with what it watches
    leader = int(sys.argv[1])
    sys.stdin.buffer.read()
    end_session(leader, GRACE_S, ask_leader=False)


if __name__ == "__main__":
    main()
