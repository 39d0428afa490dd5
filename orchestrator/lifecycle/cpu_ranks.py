"""What several processes on a CPU need to go on from a checkpoint.

transformers has torch load the optimizer's state onto the rank's device, which accelerate calls "cpu:0", and torch
restores onto "cpu" alone: without this every such training fails, "don't know how to restore data location ... (tagged
with cpu:0)" (transformers 5.6, accelerate 1.11, torch 2.14). torch has a place for devices that it does not know: it
calls the entry points `torch.backends` of what is on the path (from 2.5 on).
Covered: torchrun's processes on this machine's CPU, or on several machines'.
Not covered: GPUs, where it is not needed.
Leaves runs/<id>/cpu_ranks/, which is on the PYTHONPATH of that training.
"""

import os
from collections.abc import Mapping

from orchestrator.files import atomic_write
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.spec import RunSpec

FOLDER = "cpu_ranks"
_FILES = {
    "cpu_ranks.py": '''"""Called by torch as it is imported: a state is restored onto "cpu:0" as onto "cpu"."""

from torch.serialization import register_package


def register() -> None:
    register_package(9, lambda storage: None, lambda storage, place: storage if place.startswith("cpu:") else None)
''',
    "cpu_ranks-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: cpu_ranks\nVersion: 1\n",
    "cpu_ranks-1.dist-info/entry_points.txt": "[torch.backends]\ncpu_ranks = cpu_ranks:register\n",
}


def cpu_ranks(
    run: RunDir, spec: RunSpec, environment: Mapping[str, str], *, has_gpus: bool, resumed: bool
) -> dict[str, str]:
    """The variables that it takes; none where it is not needed.

    Args:
        run: the run.
        spec: what it trains.
        environment: the training's variables so far.
        has_gpus: whether this machine has any.
        resumed: whether the training goes on from a checkpoint. An elastic one does so by itself.
    """
    is_elastic = spec.compute.rdzv_id is not None
    on_cpu = not has_gpus or (spec.train is not None and spec.train.arguments().get("use_cpu") is True)
    if not on_cpu or "FORCE_TORCHRUN" not in environment or not (resumed or is_elastic):
        return {}
    for name, text in _FILES.items():
        path = run.path / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text)
    # relative: a run's path may hold a colon, and the working folder of all processes is the run's
    inherited = environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [FOLDER, inherited]))}
