"""The fast checks before a run: each rule with a spec that breaks it, on real files, ports and programs."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from model_folders import adapter_folder, llamafactory_sources, model_folder

from orchestrator.data.datasets import ArchiveStore
from orchestrator.errors import Finding, PrerequisiteError, SpecError, raise_on_errors
from orchestrator.planning.check import check
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.render import Renderer, quoted_yaml
from orchestrator.specs.spec import RunSpec
from orchestrator.specs.spec_file import load_spec
from orchestrator.upstream.installation import Installation
from tests import fake_vllm


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a complete model and a small dataset; no GPU is visible, no hub cache is there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HF_HUB_OFFLINE", "NNODES", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    model_folder(tmp_path / "models" / "tiny")
    (tmp_path / "dataset_info").symlink_to(Path(__file__).resolve().parent.parent / "dataset_info")
    return tmp_path


def run_spec(**sections: Any) -> RunSpec:
    """A training on the CPU with one benchmark, both of which pass."""
    usual = {
        "name": "x",
        "model": {"name_or_path": "models/tiny", "template": "plain"},
        "dataset": "captions_en_de",
        "train": {"use_cpu": True},
        "benchmark": [{"testset": "captions_en_de", "max_samples": 3}],
    }
    return RunSpec.model_validate({key: value for key, value in {**usual, **sections}.items() if value is not None})


def findings(root: Path, found=None, **sections: Any) -> list[Finding]:
    archives = ArchiveStore(None, root / "cache")
    found = found or llamafactory_sources(root)
    return check(Session(Workspace(root), found, Renderer(), archives, [root / "dataset_info"]), run_spec(**sections))


def only(root: Path, found=None, **sections: Any) -> Finding:
    (finding,) = findings(root, found, **sections)
    return finding


MODEL = {"name_or_path": "models/tiny", "template": "plain"}


def test_a_run_that_can_start_has_no_findings(root):
    assert findings(root) == []
    raise_on_errors([])


def test_everything_is_found_at_once(root):
    found = findings(
        root,
        model={"name_or_path": "./gone", "template": "plan"},
        dataset="ty",
        benchmark=[{"testset": "captions_en_de", "split": "tst"}],
    )
    assert [each.field for each in found] == ["model.name_or_path", "model.template", "dataset", "benchmark.0.testset"]
    with pytest.raises(SpecError, match="found 4 errors") as error:
        raise_on_errors(found)
    assert all(each.message in error.value.message for each in found)


def test_only_missing_things_are_a_prerequisite_error():
    missing = Finding("error", "missing", "serve.port", "in use", "stop it")
    with pytest.raises(PrerequisiteError, match=r"serve\.port: in use") as error:
        raise_on_errors([Finding("warning", "spec", "x", "y"), missing])
    assert error.value.remedy == "stop it"
    with pytest.raises(SpecError):
        raise_on_errors([missing, Finding("error", "spec", "x", "y")])
    raise_on_errors([Finding("warning", "spec", "x", "y"), Finding("note", "missing", "x", "y")])


BASE = "is a base model|nothing between or after them|template: default"
MEETING = "compute={nnodes: 2, master_addr: 127.0.0.1, master_port: 29500, node_rank: 0}"


@pytest.mark.parametrize(
    ("overrides", "expected", "words"),
    [
        ("dataset=captions", "error spec dataset", "mean 'captions_en_de'"),
        ("model.template=plan", "error spec model.template", "among its 3; did you mean 'plain'"),
        ("model={name_or_path: models/One-it}", "warning spec model.template", "with plain|write template: plain"),
        ("model={name_or_path: models/tiny}", "warning spec model.template", BASE),
        ("model.template=null", "warning spec model.template", BASE),
        ("model.template=thinker", "warning spec model.enable_thinking", "thinker is for models that think"),
        ("model.name_or_path=Owner/Name", "warning missing model.name_or_path", "will download it"),
        ("model.adapter_name_or_path=models/tiny", "error missing model.adapter_name_or_path", "not an adapter"),
        ("train.lora_target=[q_proj, query_key]", "error spec train.lora_target", "'query_key'|lora_target: all"),
        ("serve.backend=vllm; train.use_dora=true", "error spec train.use_dora", "use_dora (True)|serve.merge: true"),
        ("serve.backend=vllm; train.finetuning_type=oft", "error spec train.finetuning_type", "(oft)"),
        ("train={bf16: true}", "warning missing train.bf16", "refuses bf16"),
        ("train={}", "note missing train", "trains on the CPU"),
        ("train.deepspeed=ds.json", "error spec train.deepspeed", "write /"),
        (f"{MEETING}; compute.master_addr=null", "error spec compute.master_addr", "2 machines"),
        (f"{MEETING}; compute.node_rank=2", "error spec compute.node_rank", "0 to 1"),
        (f"{MEETING}; compute.node_rank=null", "error spec compute.node_rank", "NODE_RANK=1"),
        ("model.template=thinker; model.enable_thinking=false", "", ""),
        ("model.adapter_name_or_path=fits", "", ""),
        ("train.finetuning_type=full; train.lora_target=nothing", "", ""),
        ("serve={backend: vllm, merge: true}; train.use_dora=true", "", ""),
        ("serve.backend=vllm; train.use_dora=true; benchmark=[]", "", ""),
        ("train.bf16=true", "", ""),  # on the CPU, as use_cpu says
        ("train={use_cpu: true, bf16: false}", "", ""),
        (MEETING, "", ""),
    ],
)
def test_what_is_wrong_is_found_at_its_place_and_what_is_right_is_not(overrides, expected, words, root, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_VLLM", str(fake_vllm.install(root / "vllm")))
    model_folder(root / "models" / "One-it")
    adapter_folder(root / "fits")
    path = root / "x.yaml"
    path.write_text(quoted_yaml(run_spec().model_dump(mode="json", exclude_unset=True)))
    spec = load_spec(path, overrides.split("; "))
    found = findings(root, **spec.model_dump(exclude_unset=True))
    assert "".join(f"{each.severity} {each.kind} {each.field}" for each in found) == expected
    assert [word for word in words.split("|") if found and word not in f"{found[0].message} {found[0].remedy}"] == []


def test_what_the_environment_would_break_is_found(root, monkeypatch):
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = findings(root, model={**MODEL, "name_or_path": "Owner/Name"}, compute={"nproc_per_node": 2})
    assert [(each.severity, each.field) for each in found] == [
        ("error", "model.name_or_path"),
        ("error", "compute.nnodes"),
    ]


def test_a_port_in_use_is_found_before_the_training(root):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        serve = {"port": taken.getsockname()[1]}
        finding = only(root, serve=serve)
    assert (finding.severity, finding.kind, finding.field) == ("error", "missing", "serve.port")
    assert findings(root, serve=serve) == []


def test_a_gpu_counts_unless_it_is_hidden(root, monkeypatch):
    monkeypatch.setattr("orchestrator.planning.check._ACCELERATORS", ("null",))  # /dev/null is there
    train = {"bf16": True}
    assert findings(root, train=train, compute={"devices": "0"}) == []
    for devices in ("", "-1"):
        assert only(root, train=train, compute={"devices": devices}).field == "train.bf16"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert findings(root, train=train) == []


def test_a_model_that_is_not_known_goes_by_its_own_chat_template(root):
    (root / "models" / "tiny" / "chat_template.jinja").write_text("{{ messages }}")
    finding = only(root, model={"name_or_path": "models/tiny"})  # Owner/Tiny is listed, as a base model
    assert finding.severity == "warning" and "lists tiny as a base model" in finding.message
    assert "the tokenizer's own chat template" in finding.message
    assert findings(root, model={"name_or_path": "models/tiny", "template": None}) == []  # on purpose
    found = findings(root, model={"name_or_path": "Owner/Eye"})
    assert [each.field for each in found] == ["model.name_or_path", "model.template", "model.enable_thinking"]
    _, warning = findings(root, model={"name_or_path": "a/b"})
    assert "lists no model b" in warning.message and "or where it has none" in warning.message


NONE = PrerequisiteError("llamafactory-cli not found")


def test_llamafactory_is_needed_but_for_a_server_elsewhere(root):
    finding = only(root, PrerequisiteError("llamafactory-cli not found: nowhere", "install it"))
    assert (finding.severity, finding.kind) == ("error", "missing")
    assert (finding.message, finding.remedy) == ("llamafactory-cli not found: nowhere", "install it")
    bare = Installation(root / "cli", Path(sys.executable), None, {}, note="a guess")
    notes = findings(root, bare)
    assert [each.severity for each in notes] == ["note", "note"]
    assert notes[0].message == "a guess" and "cannot be checked" in notes[1].message
    elsewhere = {"model": None, "dataset": None, "train": None, "serve": {"url": "http://127.0.0.1:9/v1"}}
    assert findings(root, NONE, **elsewhere) == []
    assert only(root, NONE).field == "llamafactory-cli"


def test_a_broken_model_is_named_with_all_its_problems(root):
    folder = root / "models" / "tiny"
    (folder / "config.json").unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    found = findings(root, train={"use_cpu": True, "lora_target": "q_prj"})
    assert [(each.field, each.kind) for each in found] == [("model.name_or_path", "missing")] * 2
    assert "config.json is missing" in found[0].message and "is cut off" in found[1].message


def test_slurm_s_programs_are_needed_for_a_job(root, monkeypatch):
    monkeypatch.setenv("PATH", str(root))
    finding = only(root, compute={"slurm": {}})
    assert (finding.severity, finding.kind) == ("error", "missing") and "sbatch is not here" in finding.message
    (root / "sbatch").write_text("#!/bin/sh\n")
    (root / "sbatch").chmod(0o755)
    assert findings(root, compute={"slurm": {}}) == []
