"""What decides a run's outcome, collected and compared. Run: pytest tests/test_facts.py."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from orchestrator import __version__
from orchestrator.data.datasets import ParallelText
from orchestrator.data.llamafactory_data import DatasetInfo, LlamaFactoryDataset, LlamaFactoryEntry
from orchestrator.models.model_files import adapter_sha256, model_sha256
from orchestrator.runs.facts import collect_facts, complete_facts, fact_differences
from orchestrator.runs.record_parts import DataFacts, Facts
from orchestrator.specs.spec import RunSpec
from orchestrator.upstream.installation import Installation
from tests.model_folders import adapter_folder, model_folder, safetensors

SPEC = RunSpec(
    name="toy",
    model={"name_or_path": "models/tiny"},
    dataset="d",
    train={"learning_rate": 1e-4, "lora_rank": 8, "report_to": ["a", "b"]},
    benchmark=[{"testset": "d"}],
)
FACTS = Facts(
    versions={"torch": "2.1", "python": "3.11"},
    platform="Linux x86_64",
    gpus=["NVIDIA H100, 550"],
    git_commit="a" * 40,
    git_dirty=False,
    data=[DataFacts(dataset="d", split="train", pairs=2, blank_pairs=0, sha256="1" * 64)],
    model_sha256="2" * 64,
    adapter_sha256=None,
)


def changed(**changes: object) -> RunSpec:
    return RunSpec.model_validate({**SPEC.model_dump(), **changes})


def lines(then: Facts, now: Facts) -> list[str]:
    return [f"{what}: {one} then, {other} now" for what, one, other in fact_differences(then, now)]


def differences(**changes: object) -> list[str]:
    return lines(FACTS, FACTS.model_copy(update=changes))


def test_nothing_differs_from_itself():
    assert differences() == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"versions": {"torch": "2.2", "python": "3.11"}}, "version of torch: 2.1 then, 2.2 now"),
        ({"versions": {"torch": "2.1"}}, "version of python: 3.11 then, none now"),
        ({"versions": {**FACTS.versions, "peft": "1"}}, "version of peft: none then, 1 now"),
        ({"platform": "Darwin arm64"}, "platform: Linux x86_64 then, Darwin arm64 now"),
        ({"gpus": []}, "GPUs: NVIDIA H100, 550 then, none now"),
        ({"git_commit": "b" * 40}, "git commit: aaaaaaaaaaaa then, bbbbbbbbbbbb now"),
        ({"git_dirty": True}, "uncommitted changes in git: False then, True now"),
        ({"model_sha256": "3" * 64}, "model hash: 222222222222 then, 333333333333 now"),
        ({"model_sha256": None}, "model hash: 222222222222 then, none now"),
        ({"adapter_sha256": "4" * 64}, "adapter hash: none then, 444444444444 now"),
        ({"data": []}, "data d train: 111111111111 then, none now"),
    ],
)
def test_a_change_around_it_is_one_line(changes, line):
    assert differences(**changes) == [line]


def test_another_split_is_a_line_of_its_own():
    test = DataFacts(dataset="d", split="test", pairs=1, blank_pairs=0, sha256="5" * 64)
    assert differences(data=[*FACTS.data, test]) == ["data d test: none then, 555555555555 now"]


# Collected

TEXT = ParallelText(sources=["a", "b"], references=["c", "d"], blank_pairs=1, sha256="6" * 64)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a model, outside any git repository."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "it's work"
    folder.mkdir()
    model_folder(folder / "models" / "tiny")
    return folder


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(["git", "-C", root, *identity, *words], check=True, capture_output=True, text=True).stdout


def test_data_and_model_are_recorded_by_their_hashes(root):
    facts = collect_facts(SPEC, root, None, {("d", "train"): TEXT})
    (data,) = facts.data
    assert (data.dataset, data.split, data.pairs, data.blank_pairs, data.sha256) == ("d", "train", 2, 1, "6" * 64)
    assert facts.model_sha256 == model_sha256(root / "models" / "tiny")
    assert facts.adapter_sha256 is None
    assert (facts.git_commit, facts.git_dirty) == (None, None)
    assert facts.platform


def test_other_weights_are_another_model(root):
    before = collect_facts(SPEC, root, None, {})
    weights = {"model.layers.0.self_attn.q_proj.weight": (4, 6)}
    safetensors(root / "models" / "tiny" / "model.safetensors", weights, fill=b"\1")
    (line,) = lines(before, collect_facts(SPEC, root, None, {}))
    assert line.startswith("model hash: ")


def own(folder: Path, **info: object) -> dict[str, LlamaFactoryDataset]:
    entry = LlamaFactoryEntry(description="x", llamafactory=DatasetInfo.model_validate(info))
    return {"d": LlamaFactoryDataset("d", folder, entry)}


def test_files_in_llamafactory_s_own_formats_are_recorded_by_their_hash(root):
    (root / "x.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}\n')
    then = collect_facts(SPEC, root, None, {}, own(root, file_name="x.jsonl"))
    (data,) = then.data
    digest = hashlib.sha256(b'{"a": 1}\n{"a": 2}\n').hexdigest()
    assert (data.dataset, data.split, data.use, data.pairs, data.sha256) == ("d", "train", "train", 2, digest)
    assert data.origin is None
    (root / "x.jsonl").write_bytes(b'{"a": 1}\n{"a": 3}\n')
    now = collect_facts(SPEC, root, None, {}, own(root, file_name="x.jsonl"))
    (line,) = lines(then, now)
    assert line.startswith(f"data d train: {digest[:12]} then, ")


def test_data_on_a_hub_are_recorded_by_where_they_come_from(root):
    """Their content is not known; another id, subset or split is another dataset all the same."""
    then = collect_facts(SPEC, root, None, {}, own(root, hf_hub_url="a/b", split="train_sft"))
    (data,) = then.data
    assert (data.split, data.pairs, data.sha256, data.origin) == ("train_sft", None, None, "hf_hub_url a/b")
    assert Facts.model_validate_json(then.model_dump_json()) == then
    now = collect_facts(SPEC, root, None, {}, own(root, hf_hub_url="a/b", subset="en", split="train_sft"))
    assert lines(then, now) == ["data d train_sft: hf_hub_url a/b then, hf_hub_url a/b (en) now"]
    assert lines(then, then) == []


@pytest.mark.parametrize(
    ("spec", "split", "use"),
    [
        (SPEC, "train", "train"),
        (SPEC, "test", "benchmark"),
        (changed(eval_dataset="d", benchmark=[]), "validation", "eval"),
    ],
)
def test_what_a_split_is_used_for_is_recorded(spec, split, use, root):
    (data,) = collect_facts(spec, root, None, {("d", split): TEXT}).data
    assert data.use == use


def test_the_adapter_that_training_starts_from_is_recorded(root):
    folder = adapter_folder(root / "adapter")
    spec = changed(model={"name_or_path": "OWNER/NAME", "adapter_name_or_path": "adapter"})
    facts = collect_facts(spec, root, None, {})
    assert (facts.model_sha256, facts.adapter_sha256) == (None, adapter_sha256(folder))


def test_a_spec_that_asks_a_server_has_no_model_of_its_own(root):
    spec = RunSpec(name="toy", serve={"url": "http://127.0.0.1:1/v1"}, benchmark=[{"testset": "d"}])
    facts = collect_facts(spec, root, None, {})
    assert (facts.model_sha256, facts.adapter_sha256) == (None, None)


def test_versions_are_those_of_llamafactory_s_environment_and_ours(root):
    found = Installation(Path("/x/llamafactory-cli"), Path("/x/python"), None, None, {"torch": "1.2"}, "3.12.1")
    versions = collect_facts(SPEC, root, found, {}).versions
    assert versions["torch"] == "1.2"
    assert versions["python"] == "3.12.1"
    assert versions["orchestrator"] == __version__
    assert "sacrebleu" in versions
    assert set(collect_facts(SPEC, root, None, {}).versions) == {"python", "orchestrator", "sacrebleu"}


def test_the_workspace_s_commit_and_whether_tracked_files_differ_from_it(root):
    git(root, "init", "-q")
    assert collect_facts(SPEC, root, None, {}).git_commit is None  # no commit yet
    (root / "spec.yaml").write_text("a: 1")
    git(root, "add", "spec.yaml")
    git(root, "commit", "-qm", "x")
    (root / "untracked").write_text("")
    clean = collect_facts(SPEC, root, None, {})
    assert (clean.git_commit, clean.git_dirty) == (git(root, "rev-parse", "HEAD").strip(), False)
    (root / "spec.yaml").write_text("a: 2")
    assert collect_facts(SPEC, root, None, {}).git_dirty is True


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        (
            'echo "NVIDIA H100 80GB HBM3, 550.54"; echo "NVIDIA H100 80GB HBM3, 550.54"',
            ["NVIDIA H100 80GB HBM3, 550.54"] * 2,
        ),
        ("echo No devices were found; exit 6", []),
        (None, []),
    ],
)
def test_gpus_are_what_nvidia_smi_says_and_none_without_it(script, gpus, root, tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    if script is not None:
        (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/nowhere")
    assert collect_facts(SPEC, root, None, {}).gpus == gpus


# What records of before lack


@pytest.mark.parametrize(
    ("then", "now", "line"),
    [
        (
            {"cpu": "Xeon, 2 threads"},
            {"cpu": "EPYC, 8 threads"},
            "processor: Xeon, 2 threads then, EPYC, 8 threads now",
        ),
        ({"cuda": {"triton": "3.1"}}, {"cuda": {"triton": "3.2"}}, "version of triton: 3.1 then, 3.2 now"),
        ({"environment": {}}, {"environment": {"OMP_NUM_THREADS": "2"}}, "variable OMP_NUM_THREADS: none then, 2 now"),
    ],
)
def test_what_only_one_side_knows_is_not_compared(then, now, line):
    old, new = FACTS.model_copy(update=then), FACTS.model_copy(update=now)
    assert lines(old, new) == [line]
    assert lines(FACTS, new) == lines(old, FACTS) == []


def test_other_changes_that_are_in_no_commit_are_a_difference():
    dirty = {"git_dirty": True, "git_diff_sha256": "7" * 64}
    then, other = FACTS.model_copy(update=dirty), FACTS.model_copy(update={**dirty, "git_diff_sha256": "8" * 64})
    assert lines(then, then) == []
    assert lines(then, other) == ["uncommitted changes in git: 777777777777 then, 888888888888 now"]
    assert lines(FACTS, then) == ["uncommitted changes in git: False then, True now"]


def test_a_model_of_the_hub_is_recorded_with_its_commit_also_where_it_comes_only_now(root, tmp_path):
    spec, commit = changed(model={"name_or_path": "OWNER/NAME"}), "c" * 40
    then = collect_facts(spec, root, None, {})
    assert (then.model_sha256, then.model_revision) == (None, None)
    repository = tmp_path / "hub" / "models--OWNER--NAME"
    model_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    now = collect_facts(spec, root, None, {})
    assert now.model_revision == commit
    assert complete_facts(then, spec, root) == now
    assert collect_facts(SPEC, root, None, {}).model_revision is None


def test_the_environment_that_matters_is_recorded_without_secrets(root, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    facts = collect_facts(SPEC, root, None, {})
    assert facts.environment is not None and facts.environment["OMP_NUM_THREADS"] == "3"
    assert "hf_secret" not in facts.model_dump_json()
