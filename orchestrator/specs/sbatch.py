"""sbatch.sh: the script of a Slurm job that carries out one run, or as an array several.

Values are quoted for the shell, which is how sbatch reads its own lines too.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.processes.process import own_argv
from orchestrator.specs.render import TEMPLATE_HINT, Renderer
from orchestrator.specs.slurm_spec import SlurmResources, SlurmSpec

FILE = "sbatch.sh"


def sbatch_script(
    renderer: Renderer,
    slurm: SlurmSpec,
    runs: Sequence[Path],
    *,
    workspace: Path,
    name: str,
    after: str = "",
) -> str:
    """The script; `runs` are folders, and several become tasks of an array.

    `after` is the job that has to succeed first.

    Raises:
        SpecError: a template of the workspace renders no such script.
    """
    log = str(runs[0]).replace("%", "%%")  # in --output, % begins a job's id and such
    options = [*_options(slurm), f"--job-name={name}", f"--output={log}/logs/supervisor.log"]
    if after:
        kind = "aftercorr" if len(runs) > 1 else "afterok"  # each task after the same one of the other array
        options += [f"--dependency={kind}:{after}", "--kill-on-invalid-dep=yes"]
    if len(runs) > 1:
        options.append(f"--array=0-{len(runs) - 1}")
    program, folders = own_argv("supervise", "--workspace", str(workspace)), [*map(str, runs)]
    # `folder` and `words` are for a site's own template of an earlier version.
    context = {"options": options, "runs": folders, "program": program, "folder": str(runs[0].parent), "words": []}
    text = renderer.text(FILE, context)
    missing = [word for word in [*program, *folders] if shlex.quote(word) not in text]
    if missing or not text.startswith("#!"):
        problem = f"lacks {', '.join(missing)}" if missing else "does not begin with #!"
        raise SpecError(f"templates/{FILE}.j2 does not carry out the run: it {problem}", TEMPLATE_HINT)
    return text


def _options(slurm: SlurmSpec) -> list[str]:
    fields = ["nodes", *(name for name in SlurmResources.model_fields if name != "options")]
    given = {name: value for name in fields if (value := getattr(slurm, name)) is not None}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    options += ["--ntasks-per-node=1", f"--signal=B:TERM@{slurm.signal_s}", "--open-mode=append"]
    options.append("--requeue" if slurm.requeue else "--no-requeue")
    return options + [f"--{name}" if value is True else f"--{name}={value}" for name, value in slurm.options.items()]
