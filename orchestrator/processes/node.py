"""One node's part of a training on several nodes of a Slurm job: `srun python -m ...node RUN llamafactory-cli ...`.

On SIGTERM the ranks save a checkpoint before torchrun and the launcher go. The exit status is the training's.
"""

import os
import signal
import sys
from pathlib import Path

from orchestrator.errors import Interrupted
from orchestrator.processes.interruptible import defer_signals, raise_interrupted
from orchestrator.processes.process import start
from orchestrator.processes.process_tree import GRACE_S


def main() -> None:
    run, argv, rank = Path(sys.argv[1]), sys.argv[2:], os.environ["SLURM_NODEID"]
    raise_interrupted(signal.SIGTERM, signal.SIGINT)
    child = None
    try:
        with defer_signals():
            log, env = "train.log" if rank == "0" else f"train-node{rank}.log", {**os.environ, "NODE_RANK": rank}
            child = start(argv, log=run / "logs" / log, cwd=run, env=env, death_signal=signal.SIGTERM, watched=True)
        child.popen.wait()
    except Interrupted:
        for number in (signal.SIGTERM, signal.SIGINT):  # srun and the run's owner may both send one
            signal.signal(number, signal.SIG_IGN)
    status = child.stop(GRACE_S) if child is not None else 1
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
