"""Whether Slurm would take a run, as far as sinfo shows on the machine that submits: its programs, partition, time."""

import shutil

from orchestrator.errors import Finding, OrchestratorError, did_you_mean, from_error
from orchestrator.runs import slurm
from orchestrator.specs.slurm_spec import SlurmResources, SlurmSpec, parse_slurm_time

_HERE = "on a login node of the cluster; or run it here: --set compute.slurm=null"


def check_slurm(spec: SlurmSpec) -> list[Finding]:
    """What stands in the way of the job, or jobs."""
    field = "compute.slurm"
    if shutil.which("sbatch") is None:
        return [Finding("error", "missing", field, "sbatch is not here: Slurm's programs are not installed", _HERE)]
    try:
        partitions = slurm.partitions()
    except OrchestratorError as error:
        return [from_error(field, error)]
    findings = _partition(field, spec, partitions)
    if spec.benchmark is not None:
        findings += _partition(f"{field}.benchmark", spec.benchmark, partitions)
    return findings


def _partition(field: str, job: SlurmResources, partitions: dict[str, str]) -> list[Finding]:
    findings = []
    for name in (job.partition or "").split(","):
        if name and name not in partitions:
            what = f"there is no partition {name!r}{did_you_mean(name, partitions)}; there are: {', '.join(partitions)}"
            findings.append(Finding("error", "spec", f"{field}.partition", what))
        limit = parse_slurm_time(partitions.get(name, ""))
        if limit is not None and job.time_limit_s is not None and job.time_limit_s > limit:
            what = f"{job.time} is longer than partition {name} allows: {partitions[name]}"
            findings.append(Finding("error", "spec", f"{field}.time", what))
    return findings
