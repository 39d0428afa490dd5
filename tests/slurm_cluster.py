"""A real Slurm of one machine: munged, slurmctld and two slurmd, on ports and in a folder of its own; needs root.

There is no slurmdbd, so no sacct: squeue and scontrol know of a job that ended for MinJobAge.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.processes.ports import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun", "sinfo")
DEADLINE_S = 30
NODES = ("node1", "node2")
# A requeued job waits for cred_expire, 120 s unless it is told less; SIGKILL comes KillWait after SIGTERM.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}
SlurmctldPort={ctld_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=200000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
ReturnToService=2
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=10:00 State=UP PriorityTier=2
"""


def missing() -> str:
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "slurmd of the tests runs as root"


@dataclass
class Cluster:
    folder: Path
    daemons: "dict[str, subprocess.Popen[bytes]]"

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def ask(self, *words: str) -> str:
        env = {**os.environ, **self.environment}
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=DEADLINE_S)
        return done.stdout + done.stderr

    def states(self) -> dict[str, str]:
        lines = self.ask("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines if len(line.split()) == 2}


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a Slurm, and end it: its jobs first, then its daemons, by their pids."""
    # Not in a test's folder: a socket's path is at most 107 bytes long.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        started = Cluster(folder, {})
        stack.callback(_stop, started)
        _configure(folder)
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        _start(started, "munged", "--foreground", *(f"--{name}={folder}/{file}" for name, file in files.items()))
        _until(lambda: (folder / "munge.socket").exists(), "munged", started)
        _start(started, "slurmctld", "-D", "-f", f"{folder}/slurm.conf")
        for name in NODES:
            _start(started, name, "-D", "-N", name, "-f", f"{folder}/slurm.conf", program="slurmd")
        _until(lambda: started.ask("sinfo", "-h", "-N", "-p", "all", "-o", "%T").split() == ["idle"] * len(NODES),
               "idle nodes", started)  # fmt: skip
        yield started


def _configure(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "state").mkdir()
    host = socket.gethostname().partition(".")[0]
    ports = [free_port() for _ in ("slurmctld", *NODES)]
    for name in NODES:
        (folder / name).mkdir()
    node = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN"
    nodes = "\n".join(f"NodeName={name} Port={port} {node}" for name, port in zip(NODES, ports[1:], strict=True))
    text = CONFIGURATION.format(folder=folder, host=host, ctld_port=ports[0], nodes=nodes)
    (folder / "slurm.conf").write_text(text)


def _start(started: Cluster, name: str, *words: str, program: str | None = None) -> None:
    path = shutil.which(program or name, path=_path())
    assert path is not None
    with (started.folder / f"{name}.out").open("wb") as output:
        started.daemons[name] = subprocess.Popen(
            [path, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _stop(started: Cluster) -> None:
    if "slurmctld" in started.daemons:
        started.ask("scancel", "--full", "--signal=KILL", f"--user={os.getuid()}")
        started.ask("scancel", f"--user={os.getuid()}")
        deadline = time.monotonic() + DEADLINE_S
        while started.ask("squeue", "-h").strip() and time.monotonic() < deadline:
            time.sleep(0.2)
    for popen in reversed(started.daemons.values()):
        popen.terminate()
        popen.wait(DEADLINE_S)


def _until(condition, what: str, started: Cluster) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            logs = {path.name: path.read_text(errors="replace")[-1500:] for path in started.folder.glob("*.[lo][ou]*")}
            raise AssertionError(f"no {what} within {DEADLINE_S} s: {logs}")
        time.sleep(0.1)


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
