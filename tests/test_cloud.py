"""Tasks of SkyPilot and dstack, as `show` renders them. Run: pytest tests/test_cloud.py.

Their own schemas: pip install skypilot dstack, into the environment of the tests or one named by CLOUD_PYTHON.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.specs.cloud import FILES, task
from orchestrator.specs.compute_spec import CloudSpec
from orchestrator.specs.render import Renderer
from orchestrator.specs.spec import RunSpec
from tests.workshop import Workshop

CLOUD = {"accelerators": "A100:8", "secrets": ["HF_TOKEN"]}
SEVERAL = {"nnodes": 2, "nproc_per_node": 8}
# Each by its own code: SkyPilot's schemas and its classes, which refuse what they do not know; dstack's models.
VALIDATE = {
    "sky.yaml": "import sky, sys; task = sky.Task.from_yaml(sys.argv[1]); "
    "print(task.num_nodes, [each.accelerators for each in task.resources])",
    "dstack.yaml": "import sys, yaml; from dstack._internal.core.models.configurations import "
    "parse_apply_configuration as parse; from dstack._internal.core.services import validate_dstack_resource_name; "
    "of = parse(yaml.safe_load(open(sys.argv[1]))); of = getattr(of, 'root', of); "
    "validate_dstack_resource_name(of.name); print(of.nodes, of.resources.gpu.name, of.resources.gpu.count.min)",
}


def rendered(root: Path, file: str, overrides=(), name="My_run.v2", **compute):
    (root / "runs").mkdir(exist_ok=True)
    spec = {"name": name, "model": {"name_or_path": "m"}, "dataset": "d", "train": {}, "compute": compute}
    fields = task(file, RunSpec.model_validate(spec), root / "runs" / "a b.yaml", root, overrides, "0.9.5")
    return Renderer().task_yaml(file, fields)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "pyproject.toml").write_text("")
    return tmp_path


@pytest.mark.parametrize("file", FILES)
def test_a_task_installs_the_checkout_and_launches_the_spec(checkout, file):
    read = yaml.safe_load(rendered(checkout, file, ["train.learning_rate=1e-4"], cloud=CLOUD))
    commands = [read["setup"], read["run"]] if file == "sky.yaml" else read["commands"][1:]
    assert commands[0] == "pip install . llamafactory==0.9.5"
    assert shlex.split(commands[1]) == [
        *("orchestrator", "launch", "runs/a b.yaml", "--set", "train.learning_rate=1e-4")
    ]


@pytest.mark.parametrize("file", FILES)
def test_secrets_are_there_by_name_alone(checkout, monkeypatch, file):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = rendered(checkout, file, cloud=CLOUD)
    read = yaml.safe_load(text)
    assert "hf_secret" not in text
    assert read["secrets"] == {"HF_TOKEN": None} if file == "sky.yaml" else read["env"] == ["HF_TOKEN"]


@pytest.mark.parametrize("file", FILES)
def test_each_of_several_machines_is_told_its_rank_and_the_first_one_s_address(checkout, file):
    """The command runs in a shell, with the variables that each of the two has on a machine of a task."""
    read = yaml.safe_load(rendered(checkout, file, cloud=CLOUD, **SEVERAL))
    assert read["num_nodes" if file == "sky.yaml" else "nodes"] == 2
    command = read["run"] if file == "sky.yaml" else read["commands"][-1]
    sky = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    variables = sky if file == "sky.yaml" else {"DSTACK_NODE_RANK": "1", "DSTACK_MASTER_NODE_IP": "10.0.0.1"}
    script = f'orchestrator() {{ printf "%s\\n" "$@"; }}\n{command}'
    environment = {**os.environ, **variables}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        *("launch", "runs/a b.yaml", "--set", "compute.node_rank=1", "--set", "compute.master_addr=10.0.0.1"),
        *("--set", "compute.master_port=29500"),
    ]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["My_run.v2", "1", "a", "x" * 64, "demo-"])
def test_a_task_is_valid_by_its_own_schema(checkout, tmp_path, file, name):
    python = os.environ.get("CLOUD_PYTHON", sys.executable)
    package = file.partition(".")[0]
    if subprocess.run([python, "-c", f"import {package}"], capture_output=True, timeout=120).returncode:
        pytest.skip(f"{python} has no package {package}: CLOUD_PYTHON names one that has")
    path = tmp_path / file
    path.write_text(rendered(checkout, file, name=name, cloud=CLOUD, **SEVERAL))
    environment = {**os.environ, "HOME": str(tmp_path), "HF_TOKEN": "x"}
    command = [python, "-c", VALIDATE[file], str(path)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = "2 [{'A100': 8}]" if file == "sky.yaml" else "2 ['A100'] 8"
    assert done.stdout.strip().splitlines()[-1] == expected


def test_elsewhere_than_in_a_checkout_the_spec_says_what_is_installed(tmp_path):
    with pytest.raises(SpecError, match="where does a rented machine get orchestrator from"):
        rendered(tmp_path, "sky.yaml", cloud=CLOUD)
    source = "git+https://example.org/orchestrator"
    assert source in rendered(tmp_path, "sky.yaml", cloud={**CLOUD, "install": source})


def test_the_gpu_has_to_be_named(checkout):
    with pytest.raises(SpecError, match="which GPU"):
        rendered(checkout, "dstack.yaml")


@pytest.mark.parametrize("value", ["", "8", "A100:0", "A100: 8", "A100\nrun: x"])
def test_what_is_no_gpu_is_refused(value):
    with pytest.raises(ValueError, match="accelerators"):
        CloudSpec(accelerators=value)


def test_show_prints_a_task(workshop: Workshop):
    (workshop.root / "pyproject.toml").write_text("")
    spec = workshop.spec(compute={"cloud": CLOUD})
    done = workshop.run("show", spec, "--file", "sky.yaml")
    assert done.code == 0, done.err
    assert yaml.safe_load(done.out)["resources"] == {"accelerators": "A100:8"}
    elsewhere = workshop.root.parent / "toy.yaml"
    elsewhere.write_text(spec.read_text())
    outside = workshop.run("show", elsewhere, "--file", "dstack.yaml")
    assert outside.code == 2 and "is not in the workspace" in outside.err
