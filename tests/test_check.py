"""Checks before a run: each rule with a spec that breaks it, on real files, ports and programs."""

import hashlib
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from model_folders import adapter_folder, model_folder

from orchestrator.data.datasets import ArchiveStore
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.planning.check import Finding, check, raise_on_errors
from orchestrator.specs.spec import RunSpec
from orchestrator.upstream.installation import Installation

TEMPLATES = """
register_template(name="qwen")
register_template(name="qwen_nothink")
register_template(name="thinker", template_class=ReasoningTemplate)
register_template(name="qwen_thinks", template_class=ReasoningTemplate)
register_template(name="qwen_thinks_nothink")
"""
MODELS = """
def register_model_group(models, template=None):
    any(mark in name for mark in ("-Chat",))
register_model_group(models={"Tiny-Chat": {"hf": "Owner/Tiny-it"}}, template="qwen")
register_model_group(models={"Tiny": {"hf": "Owner/Tiny"}}, template="qwen")
register_model_group(models={"Deep-Chat": {"hf": "Owner/Deep"}}, template="qwen_thinks")
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a whole model and a small dataset; no GPU is visible, no hub cache is there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "IMAGE_PLACEHOLDER"):
        monkeypatch.delenv(variable, raising=False)
    model_folder(tmp_path / "models" / "tiny")
    write_dataset(tmp_path, "toy", train=["a b", "c d"], test=["e f", "g h"])
    return tmp_path


def write_dataset(root: Path, name: str, **splits: list[str]) -> None:
    folder = root / "dataset_info"
    (folder / name).mkdir(parents=True)
    entry: dict[str, Any] = {
        "description": "toy",
        "license": "CC0-1.0",
        "source_lang": "en",
        "target_lang": "de",
        "instruction": "Translate.",
        "splits": {},
    }
    for split, sentences in splits.items():
        part: dict[str, Any] = {"pairs": len(sentences), "sha256": {}}
        for side in ("source", "target"):
            data = "".join(f"{sentence}\n" for sentence in sentences).encode()
            (folder / name / f"{split}.{side}").write_bytes(data)
            part[side] = f"{name}/{split}.{side}"
            part["sha256"][side] = hashlib.sha256(data).hexdigest()
        entry["splits"][split] = part
    (folder / f"{name}.yaml").write_text(json.dumps(entry))


def installation(root: Path, **versions: str) -> Installation:
    """A LLaMA-Factory that has five templates, three models and no other source."""
    package = root / "site" / "llamafactory"
    for name, text in (("data/template.py", TEMPLATES), ("extras/constants.py", MODELS)):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return Installation(root / "llamafactory-cli", Path(sys.executable), package, None, versions, "3.11.0")


def run_spec(**sections: Any) -> RunSpec:
    """A training on the CPU with one benchmark, both of which pass."""
    usual = {
        "name": "x",
        "model": {"name_or_path": "models/tiny", "template": "qwen"},
        "dataset": "toy",
        "train": {"use_cpu": True},
        "benchmark": [{"testset": "toy"}],
    }
    return RunSpec.model_validate({key: value for key, value in {**usual, **sections}.items() if value is not None})


def findings(root: Path, found: Installation | PrerequisiteError | None = None, **sections: Any) -> list[Finding]:
    archives = ArchiveStore(None, root / "cache")
    return check(run_spec(**sections), root, [root / "dataset_info"], archives, found or installation(root))


def only(root: Path, found: Installation | PrerequisiteError | None = None, **sections: Any) -> Finding:
    (finding,) = findings(root, found, **sections)
    return finding


def test_a_run_that_can_start_has_no_findings(root: Path) -> None:
    """The base of all other tests here: what they break is whole."""
    assert findings(root) == []
    raise_on_errors([])


def test_everything_is_found_at_once(root: Path) -> None:
    """One check, not one error per attempt; the spec's faults decide the exit code."""
    found = findings(
        root,
        model={"name_or_path": "./gone", "template": "qwn"},
        dataset="ty",
        benchmark=[{"testset": "toy", "split": "tst"}],
    )
    assert [each.field for each in found] == ["model.name_or_path", "model.template", "dataset", "benchmark.0.testset"]
    with pytest.raises(SpecError, match="found 4 errors") as error:
        raise_on_errors(found)
    assert all(each.message in error.value.message for each in found)


@pytest.mark.parametrize("compute", [{"env": {"FORCE_TORCHRUN": "1"}}, {"master_port": 29500}])
def test_torchrun_without_a_device_or_a_number_of_processes_is_refused(root: Path, compute: dict[str, Any]) -> None:
    """It would be told `--nproc_per_node 0`."""
    found = only(root, compute=compute)
    assert (found.severity, found.field) == ("error", "compute.nproc_per_node")
    assert findings(root, compute={**compute, "nproc_per_node": 2}) == []
    assert findings(root, compute={"env": {"FORCE_TORCHRUN": "0"}}) == []


def test_only_missing_things_are_a_prerequisite_error(root: Path) -> None:
    """Exit code 3: the spec is right; a single error keeps its own remedy. Warnings raise nothing."""
    missing = Finding("error", "missing", "serve.port", "in use", "stop it")
    with pytest.raises(PrerequisiteError, match=r"serve\.port: in use") as error:
        raise_on_errors([Finding("warning", "spec", "x", "y"), missing])
    assert error.value.remedy == "stop it"
    with pytest.raises(SpecError):
        raise_on_errors([missing, Finding("error", "spec", "x", "y")])
    raise_on_errors([Finding("warning", "spec", "x", "y"), Finding("note", "missing", "x", "y")])


def test_an_unknown_dataset_gets_its_nearest(root: Path) -> None:
    """Datasets are files of dataset_info/."""
    finding = only(root, dataset="toi")
    assert (finding.severity, finding.kind, finding.field) == ("error", "spec", "dataset")
    assert "did you mean 'toy'" in finding.message


def test_data_that_changed_are_missing_not_misspelt(root: Path) -> None:
    """The checksum differs: the spec is right, the file is another one."""
    (root / "dataset_info" / "toy" / "test.source").write_text("other\nother\n")
    finding = only(root)
    assert (finding.kind, finding.field) == ("missing", "benchmark.0.testset")
    assert "sha256" in finding.message


def test_words_that_stand_for_media_are_refused(root: Path) -> None:
    """LLaMA-Factory would look for a picture, in the middle of the training."""
    write_dataset(root, "media", train=["see <image> here"])
    finding = only(root, dataset="media")
    assert finding.severity == "error" and "<image>" in finding.message


def test_test_sentences_in_the_training_data_are_counted(root: Path) -> None:
    """Only among the sentences that are used: max_samples on either side counts."""
    write_dataset(root, "leaky", train=["x y", "e f", "g h"])
    finding = only(root, dataset="leaky")
    assert (finding.severity, finding.field) == ("warning", "benchmark.0.testset")
    assert "2 of the 2 sentences of toy test" in finding.message
    assert findings(root, dataset="leaky", train={"use_cpu": True, "max_samples": 1}) == []
    finding = only(root, dataset="leaky", benchmark=[{"testset": "toy", "max_samples": 1}])
    assert "1 of the 1 sentences" in finding.message


def test_an_unknown_template_gets_its_nearest(root: Path) -> None:
    """LLaMA-Factory says so too, after it has loaded torch and the tokenizer."""
    finding = only(root, model={"name_or_path": "models/tiny", "template": "qwn"})
    assert (finding.kind, finding.field) == ("spec", "model.template")
    assert "among its 5; did you mean 'qwen'" in finding.message


def test_a_template_that_is_left_out_is_taken_from_llamafactorys_list_and_said(root: Path) -> None:
    """By the folder's name; what is to be written is in the message."""
    model_folder(root / "models" / "Tiny-it")
    finding = only(root, model={"name_or_path": "models/Tiny-it"})
    assert (finding.severity, finding.field) == ("warning", "model.template")
    assert "lists Tiny-it with qwen" in finding.message and "write template: qwen" in finding.message


def test_a_model_that_is_not_known_goes_by_its_own_chat_template(root: Path) -> None:
    """LLaMA-Factory parses it; it is said, since the template is then the tokenizer's affair."""
    (root / "models" / "tiny" / "chat_template.jinja").write_text("{{ messages }}")
    finding = only(root, model={"name_or_path": "models/tiny"})  # Owner/Tiny is listed, as a base model
    assert finding.severity == "warning" and "lists tiny as a base model" in finding.message
    assert "the tokenizer's own chat template" in finding.message
    assert findings(root, model={"name_or_path": "models/tiny", "template": None}) == []  # said on purpose
    (warning,) = [each for each in findings(root, model={"name_or_path": "a/b"}) if each.severity == "warning"]
    assert "lists no model b" in warning.message and "or where it has none" in warning.message


@pytest.mark.parametrize("model", [{}, {"template": None}])
def test_a_base_model_without_a_chat_template_is_warned_about(model: dict[str, Any], root: Path) -> None:
    """What LLaMA-Factory will do, why that is bad, and what to write."""
    finding = only(root, model={"name_or_path": "models/tiny", **model})
    assert (finding.severity, finding.field) == ("warning", "model.template")
    for said in ("is a base model", "nothing between them", "learns no end", "template: default"):
        assert said in finding.message


def test_a_reasoning_template_wants_an_explicit_enable_thinking(root: Path) -> None:
    """Given or found; true and false are both answers."""
    model = {"name_or_path": "models/tiny", "template": "thinker"}
    finding = only(root, model=model)
    assert (finding.severity, finding.field) == ("warning", "model.enable_thinking")
    assert "thinker is for models that think" in finding.message and "nothink" not in finding.message
    assert "template: qwen_thinks_nothink" in only(root, model={**model, "template": "qwen_thinks"}).message
    for answer in (True, False):
        assert findings(root, model={**model, "enable_thinking": answer}) == []
    found = findings(root, model={"name_or_path": "Owner/Deep"})
    assert [each.field for each in found] == ["model.name_or_path", "model.template", "model.enable_thinking"]


def test_templates_that_cannot_be_read_are_said_to_be_unchecked(root: Path) -> None:
    """A Python without the package: no error, but no silence either."""
    bare = Installation(root / "cli", Path(sys.executable), None, None, {}, "3.11.0", note="a guess")
    notes = findings(root, bare)
    assert [each.severity for each in notes] == ["note", "note"]
    assert notes[0].message == "a guess" and "cannot be checked" in notes[1].message


def test_llamafactory_is_needed_but_for_a_server_elsewhere(root: Path) -> None:
    """The error of looking for it is passed on with its remedy."""
    finding = only(root, PrerequisiteError("llamafactory-cli not found: nowhere", "install it"))
    assert (finding.severity, finding.kind) == ("error", "missing")
    assert (finding.message, finding.remedy) == ("llamafactory-cli not found: nowhere", "install it")
    spec = run_spec(model=None, dataset=None, train=None, serve={"url": "http://127.0.0.1:9/v1"})
    archives = ArchiveStore(None, root / "cache")
    assert check(spec, root, [root / "dataset_info"], archives, None) == []
    assert [each.field for each in check(run_spec(), root, [root / "dataset_info"], archives, None)] == [
        "llamafactory-cli"
    ]


def test_packages_that_the_spec_calls_for_are_looked_up(root: Path) -> None:
    """vLLM, SGLang and DeepSpeed are not among LLaMA-Factory's own requirements."""
    finding = only(root, serve={"infer_backend": "vllm"})
    assert (finding.kind, finding.field) == ("missing", "serve.infer_backend")
    assert finding.remedy.endswith("-m pip install vllm")
    assert findings(root, installation(root, vllm="0.11.0"), serve={"infer_backend": "vllm"}) == []
    assert findings(root, serve={"infer_backend": "vllm"}, benchmark=[]) == []  # nothing is served
    (root / "ds.json").write_text("{}")
    finding = only(root, train={"use_cpu": True, "deepspeed": str(root / "ds.json")})
    assert finding.field == "train.deepspeed" and "deepspeed is not installed" in finding.message


@pytest.mark.parametrize("key", ["deepspeed", "fsdp_config"])
def test_a_configuration_file_is_named_by_an_absolute_path(key: str, root: Path) -> None:
    """The training starts in the run's folder; a mapping or JSON text is no path."""
    (root / "ds.json").write_text("{}")
    found = installation(root, deepspeed="0.18")
    finding = only(root, found, train={"use_cpu": True, key: "ds.json"})
    assert (finding.kind, finding.remedy) == ("spec", f"write {root / 'ds.json'}")
    assert only(root, found, train={"use_cpu": True, key: str(root / "gone.json")}).kind == "missing"
    for value in (str(root / "ds.json"), {"stage": 3}, ' {"stage": 3}'):
        assert findings(root, found, train={"use_cpu": True, key: value}) == []


def test_a_broken_model_is_named_with_all_its_problems(root: Path) -> None:
    """lora_target isn't looked at then: what the model has is not known."""
    folder = root / "models" / "tiny"
    (folder / "config.json").unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    found = findings(root, train={"use_cpu": True, "lora_target": "q_prj"})
    assert [(each.field, each.kind) for each in found] == [("model.name_or_path", "missing")] * 2
    assert "config.json is missing" in found[0].message and "10 of" in found[1].message


def test_a_hub_id_that_is_not_here_is_noted_and_offline_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be right; without the hub it can't be had."""
    model = {"name_or_path": "Owner/Name", "template": "qwen"}
    assert only(root, model=model).severity == "note"
    # models/ is a folder here: a path was meant
    assert only(root, model={"name_or_path": "models/tinny", "template": "qwen"}).severity == "warning"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    finding = only(root, model=model)
    assert (finding.severity, finding.kind, finding.remedy[:20]) == ("error", "missing", "unset HF_HUB_OFFLINE")


def test_pickled_weights_are_noted(root: Path) -> None:
    """Not an error: LLaMA-Factory loads them."""
    folder = root / "models" / "tiny"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    finding = only(root)
    assert finding.severity == "note" and "pytorch_model.bin" in finding.message


def test_a_lora_target_of_another_model_is_found(root: Path) -> None:
    """LLaMA-Factory finds it after the data are tokenized and the weights loaded, or not at all."""
    finding = only(root, train={"use_cpu": True, "lora_target": "q_proj,query_key_value"})
    assert (finding.kind, finding.field) == ("spec", "train.lora_target")
    assert "'query_key_value'" in finding.message
    full = {"use_cpu": True, "finetuning_type": "full", "lora_target": "nothing"}
    assert findings(root, train=full) == []  # not used then


def test_an_adapter_is_checked_against_its_base(root: Path) -> None:
    """Whole, one, of that model, and for a training that goes on from it."""
    model = {"name_or_path": "models/tiny", "template": "qwen"}
    adapter_folder(root / "fits")
    adapter_folder(root / "other", inputs=9)
    assert findings(root, model={**model, "adapter_name_or_path": "fits"}) == []
    finding = only(root, model={**model, "adapter_name_or_path": "other"})
    assert finding.field == "model.adapter_name_or_path" and "9 for 6 inputs" in finding.message
    assert "comma" in only(root, model={**model, "adapter_name_or_path": "fits,other"}).message
    assert "not an adapter" in only(root, model={**model, "adapter_name_or_path": "models/tiny"}).message
    full = {"use_cpu": True, "finetuning_type": "full"}
    finding = only(root, model={**model, "adapter_name_or_path": "fits"}, train=full)
    assert "finetuning_type lora only" in finding.message


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"bf16": True}, ("warning", "train.bf16")),
        ({"fp16": True}, ("warning", "train.fp16")),
        ({}, ("note", "train")),
        ({"bf16": True, "use_cpu": True}, None),
        ({"bf16": False, "use_cpu": True}, None),
    ],
)
def test_half_precision_without_a_gpu_is_warned_about(
    train: dict[str, Any], expected: tuple[str, str] | None, root: Path
) -> None:
    """CUDA_VISIBLE_DEVICES is empty in these tests, so no machine that runs them has a GPU."""
    found = findings(root, train=train)
    assert [(each.severity, each.field) for each in found] == ([expected] if expected else [])


def test_a_port_in_use_is_found(root: Path) -> None:
    """LLaMA-Factory finds it after the model is loaded. Without a benchmark nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        finding = only(root, serve={"port": port})
        assert (finding.severity, finding.kind, finding.field) == ("error", "missing", "serve.port")
        assert f"127.0.0.1:{port} is in use" in finding.message
        assert findings(root, serve={"port": port}, benchmark=[]) == []
    assert findings(root, serve={"port": port}) == []


def test_an_address_that_is_not_ours_is_found(root: Path) -> None:
    """TEST-NET-1 belongs to nobody."""
    finding = only(root, serve={"host": "192.0.2.1", "port": 6006})
    assert "cannot be listened on" in finding.message


def test_torchrun_needs_a_llamafactory_in_a_path_without_blanks(root: Path) -> None:
    """Its launcher joins torchrun's command and splits it at blanks again."""
    compute = {"compute": {"nproc_per_node": 2}}
    assert findings(root, installation(root), **compute) == []
    (found,) = findings(root, installation(root / "my env"), **compute)
    assert (found.severity, found.kind, found.field) == ("error", "missing", "compute.nproc_per_node")
    assert "at the blank" in found.message and "ORCHESTRATOR_LLAMAFACTORY" in found.remedy
