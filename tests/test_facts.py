"""What decides a run's outcome beside its spec, collected. Run: pytest tests/test_facts.py."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.data.datasets import ParallelText
from orchestrator.data.llamafactory_data import DatasetInfo, LlamaFactoryDataset, LlamaFactoryEntry
from orchestrator.models.hashes import model_sha256
from orchestrator.runs import facts as facts_module
from orchestrator.runs.facts import HASH_VERSION, collect_facts, complete_facts, keep_patch, relevant_variables
from orchestrator.runs.machine import peak_memory
from orchestrator.runs.record_parts import Facts, PeakMemory
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.spec import RunSpec
from orchestrator.upstream.installation import Installation
from tests.model_folders import adapter_folder, model_folder
from tests.runs_on_disk import on_path

SPEC = RunSpec(name="toy", model={"name_or_path": "models/tiny"}, dataset="d", train={}, benchmark=[{"testset": "d"}])


def changed(**changes: object) -> RunSpec:
    return RunSpec.model_validate({**SPEC.model_dump(), **changes})


H100 = "NVIDIA H100 80GB HBM3, 550.54"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a model, outside any git repository."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "it's work"
    folder.mkdir()
    model_folder(folder / "models" / "tiny")
    return folder


def test_data_and_models_are_recorded_by_their_hashes_and_their_use(root):
    adapter = adapter_folder(root / "adapter")
    spec = changed(model={"name_or_path": "models/tiny", "adapter_name_or_path": "adapter"}, eval_dataset="d")
    text = ParallelText(sources=["a", "b"], references=["c", "d"], blank_pairs=1, sha256="6" * 64)
    facts = collect_facts(spec, root, None, {("d", split): text for split in ("train", "test", "validation")})
    data = facts.data[0]
    assert (data.dataset, data.split, data.pairs, data.blank_pairs, data.sha256) == ("d", "train", 2, 1, "6" * 64)
    assert [each.use for each in facts.data] == ["train", "benchmark", "eval"]
    assert facts.model_sha256 == model_sha256(root / "models" / "tiny")
    assert (facts.adapter_sha256, facts.hash_version) == (model_sha256(adapter), HASH_VERSION)
    assert (facts.git_commit, facts.git_dirty) == (None, None) and facts.platform


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"file_name": "x.jsonl"}, ("train", 2, hashlib.sha256(b"[1]\n[2]\n").hexdigest(), None)),
        ({"hf_hub_url": "a/b", "split": "train_sft"}, ("train_sft", None, None, "hf_hub_url a/b")),
        ({"hf_hub_url": "a/b", "subset": "en"}, ("train", None, None, "hf_hub_url a/b (en)")),
    ],
)
def test_data_in_llamafactory_s_own_formats_are_recorded_by_their_hash_or_where_they_come_from(info, expected, root):
    (root / "x.jsonl").write_bytes(b"[1]\n[2]\n")
    entry = LlamaFactoryEntry(description="x", llamafactory=DatasetInfo.model_validate(info))
    (data,) = collect_facts(SPEC, root, None, {}, {"d": LlamaFactoryDataset("d", root, entry)}).data
    assert (data.dataset, data.use) == ("d", "train")
    assert (data.split, data.pairs, data.sha256, data.origin) == expected


@pytest.mark.parametrize(
    ("script", "gpus", "cuda"),
    [
        (f'echo "{H100}"; echo "{H100}"', [H100] * 2, {}),
        ("echo '| Driver Version: 550.54    CUDA Version: 12.4  |'", None, {"the driver's CUDA": "12.4"}),
        ("echo No devices were found; exit 6", [], {}),
        (None, [], {}),
    ],
)
def test_gpus_are_what_nvidia_smi_says_and_none_without_it(script, gpus, cuda, root, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    if script is not None:
        on_path(monkeypatch, tmp_path / "bin", "nvidia-smi", script)
    facts = collect_facts(SPEC, root, None, {})
    assert gpus in (None, facts.gpus) and facts.cuda == cuda
    assert any("nvidia-smi fails" in each for each in caplog.messages) is ("exit 6" in (script or ""))


def test_a_model_of_the_hub_is_recorded_with_its_commit_also_where_it_comes_only_now(root, tmp_path):
    spec, commit = changed(model={"name_or_path": "OWNER/NAME"}), "c" * 40
    then = collect_facts(spec, root, None, {})
    repository = tmp_path / "hub" / "models--OWNER--NAME"
    model_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    now = collect_facts(spec, root, None, {})
    assert now.model_revision == commit
    assert complete_facts(then, spec, root) == now != then


def test_a_record_of_an_earlier_version_keeps_its_kind_of_hashes_if_it_has_any(root):
    old = Facts(model_sha256="2" * 64)
    assert complete_facts(old, SPEC, root) == old
    completed = complete_facts(Facts(), SPEC, root)
    assert (completed.hash_version, completed.model_sha256) == (HASH_VERSION, model_sha256(root / "models" / "tiny"))


def test_a_chat_template_is_recorded_by_its_text_in_llamafactory_s_source(root, tmp_path):
    source = tmp_path / "package" / "data" / "template.py"
    source.parent.mkdir(parents=True)
    source.write_text('register_template(name="qwen")\n')
    found = Installation(Path("/x/llamafactory-cli"), Path("/x/python"), source.parent.parent, {}, "3.12.1")
    specs = [changed(model={"name_or_path": "models/tiny", "template": name}) for name in ("qwen", "other", None)]
    hashes = [collect_facts(spec, root, found, {}).chat_template_sha256 for spec in specs]
    assert hashes[0] is not None and hashes[1:] == [None, None]


def test_the_peak_memory_of_a_training_only_rises_and_other_gpus_do_not_count(tmp_path, monkeypatch):
    on_path(monkeypatch, tmp_path, "nvidia-smi", "echo '0, 500'; echo '1, 700'; echo '2, [N/A]'")
    shown = {"CUDA_VISIBLE_DEVICES": "0,2"}
    first = peak_memory(PeakMemory(), os.getpid(), shown)
    assert first.gpu_peak_memory_mib == {"0": 500} and (first.peak_rss_bytes or 0) > 1 << 20
    before = PeakMemory(peak_rss_bytes=1 << 60, gpu_peak_memory_mib={"0": 900})
    assert peak_memory(before, os.getpid(), shown) == before


def test_a_training_leaves_the_defaults_of_that_day_and_its_peak_memory(launched):
    shop = launched[0]
    assert json.loads((shop.only_run() / "defaults.json").read_bytes())["lora_rank"] == 8
    assert shop.record()["attempts"][-1]["usage"]["peak_rss_bytes"] > 1 << 20


def test_variables_that_can_change_a_run_are_kept_and_secrets_and_all_else_are_not(root, monkeypatch):
    kept = "CUDA_VISIBLE_DEVICES FORCE_TORCHRUN LD_PRELOAD MIN_NNODES NCCL_P2P_DISABLE NVIDIA_TF32_OVERRIDE "
    kept += "OMP_NUM_THREADS OPTIM_TORCH PYTORCH_CUDA_ALLOC_CONF"
    others = "HF_TOKEN RAY_REDIS_PASSWORD VLLM_API_KEY HOME PATH LANG HF_HOME NCCL_DEBUG NVIDIA_VISIBLE_DEVICES"
    found = relevant_variables(dict.fromkeys([*others.split(), *kept.split()], "x"))
    assert list(found) == kept.split() and set(found.values()) == {"x"}
    assert relevant_variables({"VLLM_URL": "https://me:secret@example.org", "LD_PRELOAD": "/x/\udcff.so"}) == {
        "LD_PRELOAD": "/x/\\udcff.so"
    }
    monkeypatch.setenv("RAY_REDIS_PASSWORD", "hf_secret")
    assert "hf_secret" not in collect_facts(SPEC, root, None, {}).model_dump_json()


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(["git", "-C", root, *identity, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A workspace in a folder of a repository, as often."""
    git(tmp_path, "init", "-q")
    folder = tmp_path / "it's work"
    for name in ("runs/toy-20261124-101500", "dataset_info", "templates"):
        (folder / name).mkdir(parents=True)
    (folder / "runs" / "toy.yaml").write_bytes("name: toy\nnote: Grüße\n".encode("latin-1"))
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return folder


def kept(root: Path) -> tuple[Facts, bytes]:
    """What is recorded of a workspace, and its workspace.diff."""
    run = RunDir(root / "runs" / "toy-20261124-101500")
    run.workspace_diff.unlink(missing_ok=True)
    facts = keep_patch(run, root, Facts(git_commit="a" * 40))
    return facts, run.workspace_diff.read_bytes() if run.workspace_diff.exists() else b""


def test_the_patch_makes_the_commit_what_the_workspace_was_whatever_the_users_git_is_set_to(repository, tmp_path):
    changed = {"runs/toy.yaml": "name: toy\nnote: Grüße, Grüße".encode("latin-1"), "runs/staged.yaml": b"\xff\xfe\n"}
    for name, content in changed.items():
        (repository / name).write_bytes(content)
    git(repository, "add", "runs/staged.yaml")
    for setting in ("color.ui=always", "diff.noprefix=true", "diff.external=false"):
        git(repository, "config", *setting.split("="))
    facts, patch = kept(repository)
    assert facts.git_dirty and facts.git_diff_sha256 == hashlib.sha256(patch).hexdigest()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(tmp_path), str(clone))
    (tmp_path / "a.diff").write_bytes(patch)
    git(clone, "apply", str(tmp_path / "a.diff"))
    assert {name: (clone / repository.name / name).read_bytes() for name in changed} == changed


def test_nothing_that_a_stranger_s_repository_names_is_run(repository, tmp_path):
    mark, program, hooks = tmp_path / "was run", tmp_path / "evil", tmp_path / "hooks"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\ncat\n")
    program.chmod(0o755)
    hooks.mkdir()
    (hooks / "post-index-change").symlink_to(program)
    (repository / ".gitattributes").write_text("*.yaml filter=a=b diff=evil\n")
    names = "core.fsmonitor diff.external diff.evil.command diff.evil.textconv"
    names += " filter.a=b.clean filter.a=b.smudge filter.a=b.process"
    settings = {"core.hooksPath": hooks, "filter.a=b.required": "true", **dict.fromkeys(names.split(), program)}
    for name, value in settings.items():
        git(repository, "config", name, str(value))
    (repository / "runs" / "toy.yaml").write_text("name: changed\n")
    assert b"+name: changed" in kept(repository)[1] and not mark.exists()


def test_new_specs_entries_and_templates_are_named_and_other_files_left_out(repository):
    for name in ("runs/weights.bin", "notes.yaml", "runs/ignored.yaml", "runs/new: *.yaml", "templates/train.yaml.j2"):
        (repository / name).write_text("x")
    (repository / os.fsdecode(b"runs/no text \xff.yaml")).write_text("x")
    (repository / ".gitignore").write_text("ignored.yaml\n")
    facts, patch = kept(repository)
    names = [line for line in patch.decode().splitlines() if "no text" not in line]
    assert facts.git_dirty is False
    assert names == [f"# new, in no commit: {name!r}" for name in ("runs/new: *.yaml", "templates/train.yaml.j2")]


def test_of_a_large_patch_the_beginning_is_kept_and_it_says_so(repository, monkeypatch):
    monkeypatch.setattr(facts_module, "MAX_PATCH_BYTES", 300)
    hashes = set()
    for length in (100, 101):
        (repository / "runs" / "toy.yaml").write_text("line\n" * length)
        facts, patch = kept(repository)
        hashes.add(facts.git_diff_sha256)
        assert len(patch) < 500 and b"\n# cut here: " in patch and patch.startswith(b"diff --git")
    assert len(hashes) == 2
