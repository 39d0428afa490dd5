"""What a TARGET means: runs, checkpoints, folders, hub ids, servers."""

import json

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.rundir import RunDir
from orchestrator.serving.target import EXPORT_NOTE, resolve_target
from orchestrator.specs.render import Checkpoint, spec_yaml
from orchestrator.specs.spec import ModelSpec, RunSpec
from tests.model_folders import adapter_folder, model_folder
from tests.runs_on_disk import new_workspace

ID = "toy-20261124-101500"
MODEL = {"name_or_path": "models/tiny", "template": "qwen", "default_system": "Be brief.", "revision": "v1"}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    made = new_workspace(tmp_path / "it's a; work space")
    model_folder(made.root / "models" / "tiny")
    return made


def run_of(workspace, run_id=ID, **changes):
    """A run folder as launch leaves it before the training."""
    spec = {"name": "toy", "model": MODEL, "dataset": "d", "train": {}, **changes}
    run = RunDir(workspace.runs / run_id)
    run.path.mkdir()
    run.record.write_text("{}")
    run.spec.write_bytes(spec_yaml(RunSpec.model_validate(spec)).encode())
    return run


@pytest.fixture
def run(workspace):
    made = run_of(workspace)
    for folder in (made.output, made.output / "checkpoint-20", made.output / "checkpoint-100"):
        adapter_folder(folder)
    return made


def exported(folder, **changes):
    model_folder(folder)
    note = {"run": ID, "of": "output", "model": {**MODEL, **changes}}
    (folder / EXPORT_NOTE).write_text(json.dumps(note))
    return folder


@pytest.mark.parametrize(
    ("word", "label"),
    [("toy", "output"), ("latest@output", "output"), ("toy@checkpoint-20", "checkpoint-20"),
     (f"runs/{ID}@checkpoint-100", "checkpoint-100"), (f"runs/{ID}/output", "output"),
     (f"runs/{ID}/output/checkpoint-20", "checkpoint-20")],
)  # fmt: skip
def test_a_run_s_adapter_comes_with_its_base_model_template_and_system_text(word, label, run, workspace):
    target = resolve_target(word, workspace)
    assert (target.run, target.url, target.spec.name) == (run, None, "toy")
    assert target.name == (ID if label == "output" else f"{ID}@{label}")
    folder = run.output if label == "output" else run.output / label
    places = {"name_or_path": str(workspace.root / "models" / "tiny"), "adapter_name_or_path": str(folder)}
    assert target.checkpoint == Checkpoint(label, ModelSpec.model_validate({**MODEL, **places}))


def test_a_full_fine_tuning_leaves_a_model_of_its_own(workspace):
    """Neither the base, nor its revision on the hub, nor an adapter has anything to do with it any more."""
    run = run_of(workspace, train={"finetuning_type": "full"})
    model_folder(run.output)
    model = resolve_target("toy", workspace).checkpoint.model
    assert (model.name_or_path, model.adapter_name_or_path, model.revision) == (str(run.output), None, None)
    assert (model.template, model.default_system) == ("qwen", "Be brief.")


def test_a_run_means_its_newest_checkpoint_or_the_model_where_it_trained_nothing(workspace):
    run = run_of(workspace)
    for step in (20, 100, 3):
        adapter_folder(run.output / f"checkpoint-{step}")
    assert resolve_target("toy", workspace).name == f"{ID}@checkpoint-100"
    run_of(workspace, "idle-20261124-101500", train=None, dataset=None, benchmark=[{"testset": "d"}])
    assert resolve_target("idle", workspace).name == "idle-20261124-101500@base"


def test_an_export_is_a_checkpoint_of_the_run_but_not_what_the_run_means(run, workspace):
    exported(run.export)
    target = resolve_target("toy@export", workspace)
    assert (target.checkpoint.model.name_or_path, target.checkpoint.model.template) == (str(run.export), "qwen")
    assert target.checkpoint.model.adapter_name_or_path is None
    assert resolve_target(f"runs/{ID}/export", workspace) == target
    assert resolve_target("toy", workspace).name == ID


def test_an_adapter_without_a_base_model_is_refused(workspace):
    folder = adapter_folder(workspace.root / "adapter")
    for config, words in (("{", "is None, expected"), ('{"base_model_name_or_path": "/gone"}', "no folder /gone")):
        (folder / "adapter_config.json").write_text(config)
        with pytest.raises(SpecError, match=words):
            resolve_target("adapter", workspace)


def test_a_hub_id_is_a_model(workspace):
    target = resolve_target("Qwen/Qwen2.5", workspace)
    assert target.name == "Qwen--Qwen2.5"
    assert target.checkpoint == Checkpoint("Qwen2.5", ModelSpec(name_or_path="Qwen/Qwen2.5"))


def test_an_address_is_a_server(workspace):
    target = resolve_target(url := "http://[::1]:8000/v1", workspace)
    assert (target.url, target.checkpoint, target.run) == (url, None, None)
    assert all(char.isalnum() or char in ".-" for char in target.name)
    with pytest.raises(SpecError, match="address") as error:
        resolve_target("https://me:secret@host/v1", workspace)
    assert "secret" not in str(error.value)


def test_anything_else_is_refused_with_the_kinds_there_are_and_a_suggestion(run, workspace):
    hints = {"tou@checkpoint-20": "; did you mean 'toy'?", "toy-20261124-10150": f"; did you mean '{ID}'?"}
    for word in (*hints, "models/tinny", "ftp://host", "@checkpoint-20", "", "a/" + "x" * 5000, "a\0b"):
        with pytest.raises(SpecError) as error:
            resolve_target(word, workspace)
        assert str(error.value).startswith(f"{word!r} is none of these: a run, RUN@checkpoint-N, RUN@base, a folder")
        assert str(error.value).endswith(hints.get(word, "without a train section"))


def test_a_spec_is_its_model_unless_it_trains(workspace, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nmodel: {name_or_path: models/tiny, template: default}\nserve: {infer_backend: vllm}\n")
    target = resolve_target(str(path), workspace)
    assert (target.name, target.spec.serve.infer_backend) == ("s", "vllm")
    assert target.checkpoint.model.name_or_path == str(workspace.root / "models" / "tiny")
    path.write_text("name: s\nserve: {url: 'http://127.0.0.1:1/v1'}\n")
    assert resolve_target(str(path), workspace).url == "http://127.0.0.1:1/v1"
    path.write_text("name: s\nmodel: {name_or_path: models/tiny}\ndataset: d\ntrain: {}\n")
    with pytest.raises(SpecError, match="its runs have the models"):
        resolve_target(str(path), workspace)


@pytest.mark.parametrize(
    ("label", "error", "hint"),
    [("", PrerequisiteError, ""), ("@output", SpecError, ""), ("@bse", SpecError, "; did you mean 'base'?")],
)
def test_a_run_without_weights_does_not_stand_for_its_base_model(label, error, hint, workspace):
    """A score of the untrained model under the run's name would be taken for the trained one's."""
    run_of(workspace).output.mkdir()
    with pytest.raises(error, match=f"run {ID} has no {label[1:] or 'checkpoint'}") as caught:
        resolve_target(f"toy{label}", workspace)
    assert f"{hint}; it has: base" in str(caught.value)
    found = resolve_target("toy@base", workspace).checkpoint
    assert (found.label, found.model.adapter_name_or_path, found.model.template) == ("base", None, "qwen")


def test_a_folder_is_a_model_an_export_with_its_template_or_an_adapter_of_a_named_base(workspace):
    """A note may have come with a download: it is believed about the chat template alone."""
    tiny = resolve_target("models/tiny", workspace)
    assert tiny.checkpoint == Checkpoint("tiny", ModelSpec(name_or_path=str(workspace.root / "models" / "tiny")))
    folder = exported(workspace.root / "merged", trust_remote_code=True, adapter_name_or_path="/elsewhere")
    found = resolve_target("merged", workspace).checkpoint.model
    expected = ModelSpec(name_or_path=str(folder), template="qwen", default_system="Be brief.")
    assert found.model_dump() == expected.model_dump()
    adapter = adapter_folder(workspace.root / "adapter")
    model = ModelSpec(name_or_path="OWNER/BASE", adapter_name_or_path=str(adapter))
    assert resolve_target("adapter", workspace).checkpoint == Checkpoint("adapter", model)
    (folder / EXPORT_NOTE).write_text('{"model": {"template": 3}}')
    with pytest.raises(SpecError, match=f"{EXPORT_NOTE} is damaged"):
        resolve_target("merged", workspace)
