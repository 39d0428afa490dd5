"""A draft of arguments as a spec: each thing in its place, nothing lost unsaid. Run: pytest tests/test_importer.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.data.datasets import entry_folders, load_entry
from orchestrator.errors import SpecError
from orchestrator.importing.config_file import Comments
from orchestrator.importing.importer import Draft, Imported, import_draft, name_of, write_imported
from orchestrator.planning.spec_file import load_spec
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.render import Renderer, train_environment
from orchestrator.specs.spec import RunSpec

LEAST = {"model_name_or_path": "org/model", "do_train": True, "dataset": "toy", "template": "qwen"}


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    place = Workspace(tmp_path / "work")
    place.runs.mkdir(parents=True)
    place.dataset_info.mkdir()
    return place


@pytest.fixture
def origin(tmp_path) -> Path:
    """A folder that LLaMA-Factory was started in, with data/dataset_info.json."""
    folder = tmp_path / "origin"
    (folder / "data").mkdir(parents=True)
    info = {
        "toy": {"file_name": "toy.json"},
        "pics": {"file_name": "pics.json", "formatting": "sharegpt", "columns": {"messages": "m", "images": "i"}},
        "with sha": {"hf_hub_url": "a/b", "file_sha1": "x"},
    }
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    return folder


def imported(
    workspace: Workspace, origin: Path, arguments: dict[str, Any], command: str = "train", **draft: Any
) -> Imported:
    given = Draft(command, arguments, "here", [origin], **draft)
    folders = entry_folders(workspace.dataset_info)
    return import_draft(given, "x", workspace=workspace, folders=folders, renderer=Renderer())


def spec_of(found: Imported, workspace: Workspace) -> RunSpec:
    path, _ = write_imported(found, "x", workspace)
    return load_spec(path)


def test_arguments_go_where_a_spec_has_them(workspace, origin):
    arguments = {
        **LEAST, "adapter_name_or_path": "org/adapter", "default_system": "s", "enable_thinking": False,
        "trust_remote_code": True, "model_revision": "r", "eval_dataset": "toy", "seed": 7, "stage": "sft",
        "learning_rate": 1e-4, "lora_target": ["a", "b"],
    }  # fmt: skip
    spec = spec_of(imported(workspace, origin, arguments), workspace)
    assert spec.model is not None and spec.train is not None
    assert spec.model.model_dump() == {
        "name_or_path": "org/model", "template": "qwen", "adapter_name_or_path": "org/adapter", "default_system": "s",
        "enable_thinking": False, "trust_remote_code": True, "revision": "r", "arguments": {},
    }  # fmt: skip
    assert (spec.dataset, spec.eval_dataset, spec.seed) == ("toy", "toy", 7)
    assert spec.train.arguments() == {
        "stage": "sft", "finetuning_type": "lora", "lora_target": ["a", "b"], "learning_rate": 1e-4,
    }  # fmt: skip


def test_a_template_that_is_left_out_stays_left_out(workspace, origin):
    """A spec without one would look it up; LLaMA-Factory takes the tokenizer's own."""
    found = imported(workspace, origin, {key: value for key, value in LEAST.items() if key != "template"})
    spec = spec_of(found, workspace)
    assert spec.model is not None and "template" in spec.model.model_fields_set and spec.model.template is None


def test_what_the_run_layer_decides_is_said_with_the_reason(workspace, origin):
    arguments = {**LEAST, "output_dir": "saves/x", "overwrite_output_dir": True, "resume_from_checkpoint": None}
    assert imported(workspace, origin, arguments).notes == [
        'not taken over: output_dir: "saves/x", overwrite_output_dir: true '
        "(each run has a new output folder of its own)"
    ]


def test_comments_go_with_their_arguments_and_those_of_dropped_ones_with_the_next(workspace, origin):
    comments = Comments(
        ["# head"],
        {"model_name_or_path": ["### model"], "output_dir": ["### output"]},
        {"output_dir": "# beside", "dataset": "# which"},
        ["# tail"],
    )
    arguments = {**LEAST, "output_dir": "o", "logging_steps": 5}
    text = imported(workspace, origin, arguments, comments=comments).spec
    assert text.splitlines()[1:] == [
        "# head", "name: x", "model:", "  ### model", "  name_or_path: org/model", "  template: qwen",
        "dataset: toy  # which", "train:", "  ### output", "  # beside", "  logging_steps: 5", "  # tail",
    ]  # fmt: skip


def test_a_comment_cannot_become_anything_else(workspace, origin):
    comments = Comments(["# a\nseed: 1"], {}, {"dataset": "# b\rseed: 2\x1b[2J"}, [])
    text = imported(workspace, origin, LEAST, comments=comments).spec
    assert spec_of(imported(workspace, origin, LEAST, comments=comments), workspace).seed == 42
    assert "\x1b" not in text and "\\x1b" in text


@pytest.mark.parametrize("value", [None, False, "true", 1])
def test_a_command_that_does_not_train_is_refused(value, workspace, origin):
    with pytest.raises(SpecError, match="does not train"):
        imported(workspace, origin, {**LEAST, "do_train": value})


def test_a_command_without_a_model_is_refused(workspace, origin):
    with pytest.raises(SpecError, match="names no model"):
        imported(workspace, origin, {"do_train": True, "dataset": "toy"})


# datasets


def test_datasets_of_dataset_info_json_become_entries_with_absolute_files(workspace, origin):
    found = imported(workspace, origin, {**LEAST, "dataset": "toy, with sha"})
    spec = spec_of(found, workspace)
    assert spec.datasets == ["toy", "with-sha"]
    folders = entry_folders(workspace.dataset_info)
    toy, hub = (load_entry(name, folders).entry.llamafactory for name in spec.datasets)
    assert (toy.file_name, hub.hf_hub_url) == (str(origin / "data" / "toy.json"), "a/b")
    assert any("file_sha1" in note for note in found.notes)
    assert any("is called with-sha here" in note for note in found.notes)


def test_an_entry_that_is_the_same_is_used_and_another_of_its_name_is_kept(workspace, origin):
    first = imported(workspace, origin, LEAST)
    write_imported(first, "x", workspace)
    assert imported(workspace, origin, LEAST).entries == {}
    (origin / "data" / "dataset_info.json").write_text('{"toy": {"file_name": "other.json"}}')
    again = imported(workspace, origin, LEAST)
    assert list(again.entries) == ["toy-2"]
    assert "dataset: toy-2" in again.spec


def test_a_dataset_that_nobody_knows_is_said(workspace, origin):
    assert "does not have it" in imported(workspace, origin, {**LEAST, "dataset": "gone"}).notes[0]
    (found,) = imported(workspace, origin, {**LEAST, "dataset_dir": "elsewhere"}).notes[:1]
    assert "elsewhere/dataset_info.json was not found" in found


def test_hub_folders_of_datasets(workspace, origin):
    online = imported(workspace, origin, {**LEAST, "dataset": "org/data", "dataset_dir": "ONLINE"})
    assert list(online.entries) == ["org-data"] and "org/data" in online.entries["org-data"]
    remote = imported(workspace, origin, {**LEAST, "dataset_dir": "REMOTE:org/demo"})
    assert remote.entries == {} and "REMOTE:org/demo" in remote.notes[0]


def test_media_are_looked_for_where_llamafactory_would(workspace, origin):
    spec = spec_of(imported(workspace, origin, {**LEAST, "dataset": "pics"}), workspace)
    assert spec.train is not None and spec.train.arguments()["media_dir"] == str(origin / "data")


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1]", "holds no mapping of datasets"), ("{", "cannot be read"), ("null", "holds no mapping of datasets")],
)
def test_a_damaged_dataset_info_json_is_an_error(text, said, workspace, origin):
    (origin / "data" / "dataset_info.json").write_text(text)
    with pytest.raises(SpecError, match=f"dataset_info.json {said}"):
        imported(workspace, origin, LEAST)


def test_an_entry_that_is_none_is_said(workspace, origin):
    (origin / "data" / "dataset_info.json").write_text('{"toy": 3}')
    assert "does not have it" in imported(workspace, origin, LEAST).notes[0]


# paths


def test_paths_that_are_there_become_absolute_and_what_is_made_goes_where_it_went(workspace, origin):
    (origin / "ds.json").write_text("{}")
    (origin / "models" / "m").mkdir(parents=True)
    arguments = {**LEAST, "model_name_or_path": "models/m", "deepspeed": "ds.json", "tokenized_path": "tok"}
    spec = spec_of(imported(workspace, origin, arguments), workspace)
    assert spec.model is not None and spec.train is not None
    assert spec.model.name_or_path == str(origin / "models" / "m")
    given = spec.train.arguments()
    assert (given["deepspeed"], given["tokenized_path"]) == (str(origin / "ds.json"), str(origin / "tok"))


def test_a_file_that_is_not_there_is_said(workspace, origin):
    found = imported(workspace, origin, {**LEAST, "deepspeed": "gone.json"})
    assert any("'gone.json' is not there" in note for note in found.notes)


# environment


def test_variables_go_to_the_compute_section(workspace, origin):
    environment = {
        "CUDA_VISIBLE_DEVICES": "0,1", "FORCE_TORCHRUN": "1", "NNODES": "2", "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "OMP_NUM_THREADS": "4",
    }  # fmt: skip
    found = imported(workspace, origin, LEAST, environment=environment)
    assert train_environment(spec_of(found, workspace)) == environment


def test_torchrun_on_one_machine_stays_torchrun(workspace, origin):
    spec = spec_of(imported(workspace, origin, LEAST, environment={"FORCE_TORCHRUN": "1"}), workspace)
    assert train_environment(spec) == {"FORCE_TORCHRUN": "1"}


def test_secrets_and_what_a_spec_refuses_are_said_and_not_written(workspace, origin):
    environment = {"WANDB_API_KEY": "hush", "ALLOW_EXTRA_ARGS": "1"}
    found = imported(workspace, origin, LEAST, environment=environment)
    assert "hush" not in found.spec + "".join(found.notes)
    assert any("WANDB_API_KEY" in note for note in found.notes)
    assert any("ALLOW_EXTRA_ARGS=1" in note for note in found.notes)


def test_a_server_s_variables_go_to_the_serve_section(workspace, origin):
    environment = {"API_PORT": "8000", "MAX_CONCURRENT": "4", "CUDA_VISIBLE_DEVICES": "1", "API_KEY": "hush", "X": "1"}
    arguments = {"model_name_or_path": "org/model", "template": "qwen", "infer_backend": "vllm", "vllm_maxlen": 9}
    found = imported(workspace, origin, arguments, "api", environment=environment)
    spec = spec_of(found, workspace)
    assert (spec.serve.infer_backend, spec.serve.port, spec.serve.max_concurrent) == ("vllm", 8000, 4)
    assert (spec.serve.devices, spec.serve.extra_arguments()) == ("1", {"vllm_maxlen": 9})
    assert len(found.notes) == 2 and "hush" not in found.spec + "".join(found.notes)


def test_an_export_has_its_section(workspace, origin):
    arguments = {"model_name_or_path": "org/model", "template": "qwen", "export_dir": "out", "export_size": 5}
    spec = spec_of(imported(workspace, origin, arguments, "export"), workspace)
    assert spec.export.export_dir == str(origin / "out")
    assert spec.export.extra_arguments() == {"export_size": 5}


# files


def test_nothing_that_is_there_is_overwritten(workspace, origin):
    found = imported(workspace, origin, LEAST)
    write_imported(found, "x", workspace)
    before = (workspace.runs / "x.yaml").read_text()
    with pytest.raises(SpecError, match="is there already"):
        write_imported(found, "x", workspace)
    assert (workspace.runs / "x.yaml").read_text() == before


@pytest.mark.parametrize(
    ("words", "output_dir", "name"),
    [
        (["a/qwen3_lora_sft.yaml"], "saves/x", "qwen3_lora_sft"),
        (["llamafactory-cli train ..."], "saves/qwen3-4b/lora/sft", "qwen3-4b-lora-sft"),
        (["llamafactory-cli", "train"], None, "imported"),
        (["-"], "/abs", "abs"),
        (["../../é é.sh"], None, "imported"),
    ],
)
def test_a_spec_is_called_after_the_file_or_the_old_output_folder(words, output_dir, name):
    assert name_of(words, Draft("train", {"output_dir": output_dir}, "", [])) == name


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text("abc", min_size=1, max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.from_regex("[a-z_]{1,12}", fullmatch=True), anything, max_size=4))
def test_any_value_of_any_argument_is_written_as_it_is(values, workspace, origin):
    ours = {"seed", "name", "stage", "max_samples", "lora_target", "finetuning_type"}
    given = {key: value for key, value in values.items() if key not in ours and "${" not in json.dumps(value)}
    found = imported(workspace, origin, {**LEAST, **given})
    path = workspace.runs / "x.yaml"
    path.write_text(found.spec, encoding="utf-8")
    spec = load_spec(path)
    assert spec.train is not None
    assert {key: value for key, value in spec.train.arguments().items() if key in given} == given
