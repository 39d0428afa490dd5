"""One node's part of a training on several nodes of a job of Slurm: `srun python -m ...node RUN llamafactory-cli ...`.

Covered: the node's rank; told to end, by srun, the ranks save a checkpoint before torchrun and the launcher go; the
exit status is the training's.
Not covered: what the job decides (runs/jobs.py).
Leaves logs/train.log of the first node, logs/train-node1.log, ... of the others.
"""

import os
import signal
import sys
from pathlib import Path

from orchestrator.errors import Interrupted
from orchestrator.processes.interruptible import raise_interrupted, uninterrupted
from orchestrator.processes.process import start

GRACE_S = 90  # as train.py has it, which is above this module


def main() -> None:
    run, argv, rank = Path(sys.argv[1]), sys.argv[2:], os.environ["SLURM_NODEID"]
    raise_interrupted(signal.SIGTERM, signal.SIGINT)
    child = None
    try:
        with uninterrupted():
            child = start(
                argv,
                log=run / "logs" / ("train.log" if rank == "0" else f"train-node{rank}.log"),
                cwd=run,
                env={**os.environ, "NODE_RANK": rank},
                death_signal=signal.SIGTERM,
                watched=True,
            )
        child.popen.wait()
    except Interrupted:
        for number in (signal.SIGTERM, signal.SIGINT):  # it may be told twice, by srun and by the run's owner
            signal.signal(number, signal.SIG_IGN)
    status = child.stop(GRACE_S) if child is not None else 1
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
