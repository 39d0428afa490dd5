"""What a TARGET means: runs, checkpoints, folders, hub ids, servers. Run: pytest tests/test_target.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.workspace import Workspace
from orchestrator.serving.target import EXPORT_NOTE, resolve_target, run_checkpoints, with_template
from orchestrator.specs.render import Checkpoint, spec_yaml
from orchestrator.specs.spec import ModelSpec, RunSpec
from tests.model_folders import adapter_folder, model_folder

ID = "toy-20261124-101500"
MODEL = {"name_or_path": "models/tiny", "template": "qwen", "default_system": "Be brief.", "revision": "v1"}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "it's a; work space"
    for name in ("runs", "dataset_info"):
        (root / name).mkdir(parents=True)
    model_folder(root / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    return Workspace(root)


def run_of(workspace: Workspace, run_id: str = ID, **changes: Any) -> RunDir:
    """A run folder as launch leaves it before the training."""
    spec: dict[str, Any] = {"name": "toy", "model": MODEL, "dataset": "d", "train": {}, **changes}
    run = RunDir(workspace.runs / run_id)
    run.path.mkdir()
    run.record.write_text("{}")
    run.spec.write_bytes(spec_yaml(RunSpec.model_validate(spec)).encode())
    return run


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    """A run that trained an adapter, with two checkpoints."""
    made = run_of(workspace)
    for folder in (made.output, made.output / "checkpoint-20", made.output / "checkpoint-100"):
        adapter_folder(folder)
    return made


def exported(folder: Path, **changes: Any) -> Path:
    model_folder(folder)
    note = {"run": ID, "of": "output", "model": {**MODEL, **changes}}
    (folder / EXPORT_NOTE).write_text(json.dumps(note))
    return folder


# Runs


@pytest.mark.parametrize(
    ("word", "name", "folder"),
    [
        (ID, ID, "output"),
        ("toy", ID, "output"),
        ("latest", ID, "output"),
        (f"runs/{ID}", ID, "output"),
        (f"{ID}@output", ID, "output"),
        ("toy@checkpoint-20", f"{ID}@checkpoint-20", "output/checkpoint-20"),
        ("latest@checkpoint-100", f"{ID}@checkpoint-100", "output/checkpoint-100"),
        (f"runs/{ID}@checkpoint-20", f"{ID}@checkpoint-20", "output/checkpoint-20"),
        (f"runs/{ID}/output", ID, "output"),
        (f"runs/{ID}/output/checkpoint-20", f"{ID}@checkpoint-20", "output/checkpoint-20"),
    ],
)
def test_a_run_s_adapter_comes_with_its_base_model_template_and_system_text(word, name, folder, run, workspace):
    target = resolve_target(word, workspace)
    assert (target.name, target.run, target.url) == (name, run, None)
    assert target.spec is not None
    assert target.spec.name == "toy"
    assert target.checkpoint == Checkpoint(
        folder.rpartition("/")[2],
        ModelSpec.model_validate(
            {
                **MODEL,
                "name_or_path": str(workspace.root / "models" / "tiny"),
                "adapter_name_or_path": str(run.path / folder),
            }
        ),
    )


def test_base_is_the_model_before_training(run, workspace):
    target = resolve_target("toy@base", workspace)
    assert target.checkpoint is not None
    assert target.checkpoint.label == "base"
    assert target.checkpoint.model.adapter_name_or_path is None
    assert target.checkpoint.model.template == "qwen"


def test_base_of_a_run_that_went_on_from_an_adapter_has_that_adapter(workspace):
    adapter_folder(workspace.root / "first")
    run_of(workspace, model={**MODEL, "adapter_name_or_path": "first"})
    target = resolve_target("toy@base", workspace)
    assert target.checkpoint is not None
    assert target.checkpoint.model.adapter_name_or_path == str(workspace.root / "first")


def test_a_full_fine_tuning_leaves_a_model_of_its_own(workspace):
    """Neither the base, nor its revision on the hub, nor an adapter has anything to do with it any more."""
    run = run_of(workspace, train={"finetuning_type": "full"})
    model_folder(run.output)
    target = resolve_target("toy", workspace)
    assert target.checkpoint is not None
    model = target.checkpoint.model
    assert (model.name_or_path, model.adapter_name_or_path, model.revision) == (str(run.output), None, None)
    assert (model.template, model.default_system) == ("qwen", "Be brief.")


def test_a_run_stopped_on_the_way_means_its_newest_checkpoint(workspace):
    run = run_of(workspace)
    for step in (20, 100, 3):
        adapter_folder(run.output / f"checkpoint-{step}")
    assert resolve_target("toy", workspace).name == f"{ID}@checkpoint-100"


def test_an_export_is_a_checkpoint_of_the_run_but_not_what_the_run_means(run, workspace):
    exported(run.export)
    target = resolve_target("toy@export", workspace)
    assert target.checkpoint is not None
    assert (target.checkpoint.model.name_or_path, target.checkpoint.model.template) == (str(run.export), "qwen")
    assert target.checkpoint.model.adapter_name_or_path is None
    assert resolve_target(f"runs/{ID}/export", workspace) == target
    assert resolve_target("toy", workspace).name == ID


def test_a_run_that_trained_nothing_means_its_model(workspace):
    run_of(workspace, train=None, dataset=None, benchmark=[{"testset": "d"}])
    assert resolve_target("toy", workspace).name == f"{ID}@base"


def test_checkpoints_come_newest_first_after_the_output(run, workspace):
    spec = resolve_target("toy", workspace).spec
    assert spec is not None
    assert list(run_checkpoints(run, spec, workspace)) == ["output", "checkpoint-100", "checkpoint-20", "base"]


@pytest.mark.parametrize("label", [None, "output", "checkpoint-8"])
def test_a_run_without_weights_does_not_stand_for_its_base_model(label, workspace):
    """A score of the untrained model under the run's name would be taken for the trained one's."""
    run_of(workspace).output.mkdir()
    word = "toy" if label is None else f"toy@{label}"
    with pytest.raises((PrerequisiteError, SpecError), match=f"run {ID} has no {label or 'checkpoint'}") as error:
        resolve_target(word, workspace)
    assert "it has: base" in str(error.value)
    assert error.value.remedy == f"orchestrator show {ID}"
    assert (type(error.value) is PrerequisiteError) == (label is None)


@pytest.mark.parametrize(("label", "hint"), [("checkpoint-21", "checkpoint-20"), ("bse", "base"), ("ouput", "output")])
def test_a_label_that_a_run_has_not_is_refused_with_those_that_it_has(label, hint, run, workspace):
    with pytest.raises(SpecError, match=f"has no {label}; did you mean '{hint}'") as error:
        resolve_target(f"toy@{label}", workspace)
    assert "it has: output, checkpoint-100, checkpoint-20, base" in str(error.value)


def test_a_run_that_asked_a_server_has_nothing_to_serve(workspace):
    changes = {"model": None, "train": None, "dataset": None, "benchmark": [{"testset": "d"}]}
    run_of(workspace, serve={"url": "http://127.0.0.1:1/v1"}, **changes)
    with pytest.raises(PrerequisiteError, match="has no checkpoint; it has: nothing yet"):
        resolve_target("toy", workspace)


def test_another_folder_within_a_run_is_no_target(run, workspace):
    (run.path / "logs").mkdir()
    with pytest.raises(SpecError, match="has no logs"):
        resolve_target(f"runs/{ID}/logs", workspace)


# Folders


@pytest.mark.parametrize("word", ["models/tiny", "{root}/models/tiny", "{root}/models/../models/tiny/"])
def test_a_model_s_folder_is_served_as_it_is(word, workspace):
    target = resolve_target(word.format(root=workspace.root), workspace)
    model = ModelSpec(name_or_path=str(workspace.root / "models" / "tiny"))
    assert (target.name, target.checkpoint) == ("tiny", Checkpoint("tiny", model))
    assert (target.run, target.spec) == (None, None)


def test_a_folder_is_looked_for_where_the_user_is_before_the_workspace(workspace, tmp_path, monkeypatch):
    model_folder(tmp_path / "here" / "models" / "tiny")
    monkeypatch.chdir(tmp_path / "here")
    target = resolve_target("models/tiny", workspace)
    assert target.checkpoint is not None
    assert target.checkpoint.model.name_or_path == str(tmp_path / "here" / "models" / "tiny")


def test_a_foreign_adapter_names_its_base_model(workspace):
    """From its own configuration; here a hub id."""
    folder = adapter_folder(workspace.root / "adapter")
    target = resolve_target("adapter", workspace)
    model = ModelSpec(name_or_path="OWNER/BASE", adapter_name_or_path=str(folder))
    assert target.checkpoint == Checkpoint("adapter", model)


def test_a_foreign_adapter_s_base_may_be_a_folder_of_the_workspace(workspace):
    folder = adapter_folder(workspace.root / "adapter")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "models/tiny"}))
    target = resolve_target("adapter", workspace)
    assert target.checkpoint is not None
    assert target.checkpoint.model.name_or_path == str(workspace.root / "models" / "tiny")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is None, expected a folder or a hub id"),
        ("{}", "is None, expected a folder or a hub id"),
        ("[]", "is None, expected a folder or a hub id"),
        ('{"base_model_name_or_path": null}', "is None, expected a folder or a hub id"),
        ('{"base_model_name_or_path": ""}', "is '', expected a folder or a hub id"),
        ('{"base_model_name_or_path": "/gone/away"}', "no folder /gone/away"),
    ],
)
def test_an_adapter_without_a_base_model_is_refused(config, said, workspace):
    folder = adapter_folder(workspace.root / "adapter")
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(SpecError) as error:
        resolve_target("adapter", workspace)
    assert said in str(error.value)


def test_an_exported_model_elsewhere_keeps_its_template(workspace):
    folder = exported(workspace.root / "merged")
    target = resolve_target("merged", workspace)
    assert target.checkpoint is not None
    assert (target.checkpoint.model.name_or_path, target.checkpoint.model.template) == (str(folder), "qwen")
    assert target.run is None


def test_a_note_that_came_with_a_download_runs_no_code(workspace):
    """trust_remote_code is the user's to turn on; a note is believed about the chat template alone."""
    exported(workspace.root / "merged", trust_remote_code=True, adapter_name_or_path="/elsewhere")
    target = resolve_target("merged", workspace)
    assert target.checkpoint is not None
    assert not target.checkpoint.model.trust_remote_code
    assert target.checkpoint.model.adapter_name_or_path is None


@pytest.mark.parametrize("note", ["{", "{}", "[]", '{"model": 3}', '{"model": {"template": 3}}'])
def test_a_damaged_note_beside_an_export_is_named(note, workspace):
    folder = exported(workspace.root / "merged")
    (folder / EXPORT_NOTE).write_text(note)
    with pytest.raises(SpecError, match=f"{EXPORT_NOTE} is damaged"):
        resolve_target("merged", workspace)


def test_a_folder_with_neither_model_nor_adapter_is_refused(workspace):
    with pytest.raises(SpecError, match=r"holds neither a model \(config.json\) nor an adapter"):
        resolve_target("models", workspace)


# Hub ids, servers, and what is nothing


def test_a_hub_id_is_a_model(workspace):
    target = resolve_target("Qwen/Qwen2.5-7B-Instruct", workspace)
    assert target.name == "Qwen--Qwen2.5-7B-Instruct"
    assert target.checkpoint == Checkpoint("Qwen2.5-7B-Instruct", ModelSpec(name_or_path="Qwen/Qwen2.5-7B-Instruct"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:6006/v1", "https://api.example.org/v1", "http://[::1]:8000/v1"])
def test_an_address_is_a_server(url, workspace):
    target = resolve_target(url, workspace)
    assert (target.url, target.checkpoint, target.run) == (url, None, None)
    assert all(char.isalnum() or char in ".-" for char in target.name)


@pytest.mark.parametrize(
    "url", ["http://", "http://host:port/v1", "https://me:secret@host/v1", "http://host/v1?key=secret"]
)
def test_a_bad_address_is_refused_before_it_becomes_a_folder_s_name(url, workspace):
    with pytest.raises(SpecError, match="address") as error:
        resolve_target(url, workspace)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("tou", "; did you mean 'toy'?"),
        ("toy-20261124-10150", f"; did you mean '{ID}'?"),
        ("tou@checkpoint-20", "; did you mean 'toy'?"),
        ("zzzz", ""),
        ("models/tinny", ""),
        ("runs/gone", ""),
        ("/gone/away", ""),
        ("./tiny", ""),
        ("a/b/c", ""),
        ("ftp://host", ""),
        ("@checkpoint-20", ""),
        ("", ""),
        ("x" * 5000, ""),
        ("a/" + "x" * 5000, ""),
        ("a\0b", ""),
        ("toy\n", "; did you mean 'toy'?"),
    ],
)
def test_anything_else_is_refused_with_the_kinds_there_are_and_a_suggestion(word, hint, run, workspace):
    with pytest.raises(SpecError) as error:
        resolve_target(word, workspace)
    assert str(error.value).startswith(f"{word!r} is none of these: a run, RUN@checkpoint-N, RUN@base, a folder")
    assert str(error.value).endswith(hint or "without a train section")


@pytest.mark.parametrize("word", ["127.0.0.1:6006/v1", "localhost/v1", "localhost:8000", "[::1]:8000/v1"])
def test_an_address_without_http_is_refused_with_the_right_one(word, workspace):
    with pytest.raises(SpecError) as error:
        resolve_target(word, workspace)
    assert error.value.remedy == f"write http://{word}"


# A template from the command line


def test_a_template_is_given_to_a_model_whose_own_is_not_known(workspace):
    target = resolve_target("models/tiny", workspace)
    assert with_template(target, None) is target
    found = with_template(target, "qwen")
    assert found.checkpoint is not None
    assert found.checkpoint.model.template == "qwen"


def test_a_run_s_template_cannot_be_replaced(run, workspace):
    target = resolve_target("toy", workspace)
    assert with_template(target, "qwen") == target
    with pytest.raises(SpecError, match="was trained with template qwen, not llama3"):
        with_template(target, "llama3")


def test_a_server_takes_no_template(workspace):
    with pytest.raises(SpecError, match="for a model that is served here, not for http"):
        with_template(resolve_target("http://127.0.0.1:1/v1", workspace), "qwen")


def test_a_spec_that_trains_nothing_is_its_model(workspace, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nmodel: {name_or_path: models/tiny, template: default}\nserve: {infer_backend: vllm}\n")
    target = resolve_target(str(path), workspace)
    assert target.checkpoint is not None and target.spec is not None
    assert (target.name, target.run, target.spec.serve.infer_backend) == ("s", None, "vllm")
    assert target.checkpoint.model.name_or_path == str(workspace.root / "models" / "tiny")
    path.write_text("name: s\nserve: {url: 'http://127.0.0.1:1/v1'}\n")
    assert resolve_target(str(path), workspace).url == "http://127.0.0.1:1/v1"


def test_a_spec_that_trains_is_no_target_its_runs_are(workspace, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nmodel: {name_or_path: models/tiny}\ndataset: d\ntrain: {}\n")
    with pytest.raises(SpecError, match="its runs have the models"):
        resolve_target(str(path), workspace)
