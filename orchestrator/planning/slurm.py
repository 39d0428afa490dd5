"""Whether Slurm would take a run: its programs, the partition, the time limit.

Covered: what sinfo tells on the machine that submits.
Not covered: accounts, quality of service, features and limits of a user, which sbatch itself answers; whether the
workspace and LLaMA-Factory are at the same place on the nodes.
"""

import shutil

from orchestrator.errors import Finding, OrchestratorError, did_you_mean, from_error
from orchestrator.runs import slurm
from orchestrator.specs.slurm_spec import SlurmResources, SlurmSpec, seconds_of

_HERE = "on a login node of the cluster; or run it here: --set compute.slurm=null"


def check_slurm(asked: SlurmSpec) -> list[Finding]:
    """What stands in the way of the job, or jobs."""
    field = "compute.slurm"
    if shutil.which("sbatch") is None:
        return [Finding("error", "missing", field, "sbatch is not here: Slurm's programs are not installed", _HERE)]
    try:
        known = slurm.partitions()
    except OrchestratorError as error:
        return [from_error(field, error)]
    findings = _partition(field, asked, known)
    if asked.benchmark is not None:
        findings += _partition(f"{field}.benchmark", asked.benchmark, known)
    return findings


def _partition(field: str, asked: SlurmResources, known: dict[str, str]) -> list[Finding]:
    findings = []
    for name in (asked.partition or "").split(","):
        if name and name not in known:
            what = f"there is no partition {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}"
            findings.append(Finding("error", "spec", f"{field}.partition", what))
        limit = seconds_of(known.get(name, ""))
        if limit is not None and asked.time_limit_s is not None and asked.time_limit_s > limit:
            what = f"{asked.time} is longer than partition {name} allows: {known[name]}"
            findings.append(Finding("error", "spec", f"{field}.time", what))
    return findings
