"""A run as a task of SkyPilot or dstack, which rent the machines: sky.yaml and dstack.yaml, to be given to them.

Covered: one machine or several, the GPUs, the packages, the command; secrets by their names alone.
Not covered: what is paid for, volumes, spot machines: their own files and flags say more, and a workspace may have
templates of its own. What the spec names outside the workspace's folder is not there on a rented machine.
Calls neither of them.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.specs.compute_spec import CloudSpec
from orchestrator.specs.spec import RunSpec

FILES = ("sky.yaml", "dstack.yaml")
_PORT = 29500  # torchrun's own default
# Variables that each has on every machine of a task: its rank, and the first machine's address.
_SKY = ("$SKYPILOT_NODE_RANK", '"$(echo "$SKYPILOT_NODE_IPS" | head -n1)"')
_DSTACK = ("$DSTACK_NODE_RANK", '"$DSTACK_MASTER_NODE_IP"')


def task(file: str, spec: RunSpec, path: Path, root: Path, overrides: Sequence[str], version: str | None) -> Any:
    """The task that a file describes.

    Args:
        file: one of FILES.
        spec: what runs.
        path: its file, in the workspace.
        root: the workspace, which is copied to the machine.
        overrides: the KEY=VALUE of --set.
        version: of LLaMA-Factory; None: any.

    Raises:
        SpecError: the spec does not say which GPU, lies elsewhere, or nothing says where this project comes from.
    """
    cloud = spec.compute.cloud
    if cloud is None:
        raise SpecError(f"{file}: which GPU? There is no compute.cloud", "add compute.cloud: {accelerators: A100:1}")
    try:
        place = path.resolve().relative_to(root.resolve())
    except ValueError as error:
        raise SpecError(f"{path} is not in the workspace {root}, which alone is copied to the machine") from error
    several = (spec.compute.nnodes or 1) > 1
    setup = _setup(cloud, root, version)
    if file == "sky.yaml":
        secrets = {"secrets": {name: None for name in cloud.secrets}} if cloud.secrets else {}
        return {
            "name": spec.name,
            "workdir": ".",
            "num_nodes": spec.compute.nnodes or 1,
            "resources": {"accelerators": cloud.accelerators},
            **secrets,
            "setup": setup,
            "run": _launch(place, overrides, _SKY if several else None, spec.compute.master_port),
        }
    return {
        "type": "task",
        "name": _dstack_name(spec.name),
        "nodes": spec.compute.nnodes or 1,
        "python": "3.12",
        "files": [".:workspace"],
        **({"env": list(cloud.secrets)} if cloud.secrets else {}),
        "commands": [
            "cd workspace",
            setup,
            _launch(place, overrides, _DSTACK if several else None, spec.compute.master_port),
        ],
        "resources": {"gpu": cloud.accelerators},
    }


def _dstack_name(name: str) -> str:
    """A name that dstack takes: it begins with a letter, and has small letters, digits and hyphens."""
    word = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    return (word if len(word) > 1 and word[0].isalpha() else f"run-{word}")[:41].rstrip("-")


def _setup(cloud: CloudSpec, root: Path, version: str | None) -> str:
    source = cloud.install
    if source is None and not (root / "pyproject.toml").is_file():
        raise SpecError(
            f"where does a rented machine get orchestrator from? {root} is not its checkout",
            "write compute.cloud.install: what pip is to install there, such as git+https://HOST/REPOSITORY",
        )
    packages = [source or ".", "llamafactory" + (f"=={version}" if version else "")]
    return "pip install " + shlex.join(packages)


def _launch(place: Path, overrides: Sequence[str], node: tuple[str, str] | None, port: int | None) -> str:
    words = ["orchestrator", "launch", place.as_posix()]
    words += [word for override in overrides for word in ("--set", override)]
    if node is None:
        return shlex.join(words)
    rank, address = node
    meeting = [f"--set compute.node_rank={rank}", f"--set compute.master_addr={address}"]
    return " ".join([shlex.join(words), *meeting, *([f"--set compute.master_port={_PORT}"] if port is None else [])])
