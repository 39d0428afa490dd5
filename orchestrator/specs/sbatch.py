"""sbatch.sh: the script of a job of Slurm that carries out one run, or as an array several.

Covered: the options of sbatch; the values quoted for the shell, which is how sbatch reads its own lines too.
Not covered: submitting it (runs/jobs.py).
Leaves nothing: it returns text.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.processes.process import own_argv
from orchestrator.specs.render import MEND, Renderer
from orchestrator.specs.slurm_spec import SlurmSpec

FILE = "sbatch.sh"
_FIELDS = (
    "partition",
    "account",
    "qos",
    "constraint",
    "nodes",
    "gpus_per_node",
    "gres",
    "cpus_per_task",
    "mem",
    "time",
)


def sbatch_script(
    renderer: Renderer,
    slurm: SlurmSpec,
    runs: Sequence[Path],
    *,
    name: str,
    after: str = "",
) -> str:
    """The script.

    Args:
        renderer: the workspace's templates.
        slurm: what the job asks for.
        runs: the runs' folders; of several each becomes a task of an array.
        name: the job's name.
        after: the job that has to succeed first.

    Raises:
        SpecError: a template of the workspace's renders no such script.
    """
    options = [*_options(slurm), f"--job-name={name}", f"--output={_plain(runs[0])}/logs/supervisor.log"]
    if after:
        kind = "aftercorr" if len(runs) > 1 else "afterok"  # each task after the same one of the other array
        options += [f"--dependency={kind}:{after}", "--kill-on-invalid-dep=yes"]
    if len(runs) > 1:
        options.append(f"--array=0-{len(runs) - 1}")
    program = own_argv("supervise")
    context = {"options": options, "runs": [*map(str, runs)], "program": program}
    # `folder` and `words` are for a site's own template of an earlier version
    text = renderer.text(FILE, {**context, "folder": str(runs[0].parent), "words": []})
    missing = [
        word for word in [*program, *map(str, runs)] if shlex.quote(word) not in text
    ]  # a site's own script may hold anything else
    if missing or not text.startswith("#!"):
        what = f"lacks {', '.join(missing)}" if missing else "does not begin with #!"
        raise SpecError(f"templates/{FILE}.j2 carries no run out: it {what}", MEND)
    return text


def _options(slurm: SlurmSpec) -> list[str]:
    given = {field: getattr(slurm, field) for field in _FIELDS if getattr(slurm, field) is not None}
    options = [f"--{field.replace('_', '-')}={value}" for field, value in given.items()]
    options += ["--ntasks-per-node=1", f"--signal=B:TERM@{slurm.signal_s}", "--open-mode=append"]
    options.append("--requeue" if slurm.requeue else "--no-requeue")
    return options + [f"--{name}" if value is True else f"--{name}={value}" for name, value in slurm.options.items()]


def _plain(path: Path) -> str:
    """A path for sbatch's --output, whose % stand for a job's id and such."""
    return str(path).replace("%", "%%")
