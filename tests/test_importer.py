"""A draft of arguments as a spec: each thing in its place, nothing lost in silence."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.datasets import entry_folders, load_entry
from orchestrator.errors import SpecError
from orchestrator.importing.importer import Draft, Imported, import_draft, name_of, write_imported
from orchestrator.importing.shell_words import ONE, Word
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.render import train_environment
from orchestrator.specs.spec import RunSpec
from orchestrator.specs.spec_file import load_spec

LEAST = {"model_name_or_path": "org/model", "do_train": True, "dataset": "toy", "template": "qwen"}
Make = Callable[..., Imported]


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


@pytest.fixture
def make(workspace, origin) -> Make:

    def import_them(arguments: dict[str, Any], **draft: Any) -> Imported:
        given, folders = Draft(arguments, "here", [origin], **draft), entry_folders(workspace.dataset_info)
        return import_draft(given, "x", workspace=workspace, folders=folders)

    return import_them


def spec_of(found: Imported, workspace: Workspace) -> RunSpec:
    path, _ = write_imported(found, "x", workspace)
    return load_spec(path)


def test_arguments_go_where_a_spec_has_them(make, workspace):
    arguments = {
        **LEAST, "adapter_name_or_path": "org/adapter", "default_system": "s", "enable_thinking": False,
        "trust_remote_code": True, "model_revision": "r", "eval_dataset": "toy", "seed": 7, "stage": "sft",
        "learning_rate": 1e-4, "lora_target": ["a", "1e-4"],
    }  # fmt: skip
    spec = spec_of(make(arguments), workspace)
    assert spec.model is not None and spec.train is not None
    assert spec.model.model_dump() == {
        "name_or_path": "org/model", "template": "qwen", "adapter_name_or_path": "org/adapter", "default_system": "s",
        "enable_thinking": False, "trust_remote_code": True, "revision": "r", "arguments": {},
    }  # fmt: skip
    assert (spec.dataset, spec.eval_dataset, spec.seed) == ("toy", "toy", 7)
    del arguments["template"]  # a spec without one would look it up; LLaMA-Factory takes the tokenizer's own
    assert "takes the tokenizer's own, or none at all\n  template: null\n" in make(arguments).spec
    assert spec.train.arguments() == {
        "stage": "sft", "finetuning_type": "lora", "lora_target": ["a", "1e-4"], "learning_rate": 1e-4,
    }  # fmt: skip


def test_what_the_run_layer_decides_is_noted_with_the_reason(make):
    arguments = {**LEAST, "output_dir": "saves/x", "overwrite_output_dir": True, "enable_jit_checkpoint": False}
    assert make(arguments).notes == [
        'not taken over: output_dir: "saves/x" (it is output/ in the run folder)',
        "not taken over: overwrite_output_dir: true (each run has a new output folder)",
    ]


def test_comments_go_with_their_arguments_and_those_of_dropped_ones_with_the_next(make, workspace):
    comments = {"model_name_or_path": ["### model"], "output_dir": ["### output"], "dataset": ["# set"], "": ["# end"]}
    text = make({**LEAST, "output_dir": "o", "logging_steps": 5}, comments=comments).spec
    assert text.splitlines()[1:] == [
        "name: x", "model:", "  ### model", "  name_or_path: org/model", "  template: qwen", "# set", "dataset: toy",
        "train:", "  ### output", "  logging_steps: 5", "  # end",
    ]  # fmt: skip
    hostile = make(LEAST, comments={"template": ["# a\nseed: 1", "# b\rseed: 2\x1b[2J"]})
    assert spec_of(hostile, workspace).seed == 42 and "\x1b" not in hostile.spec


def test_what_trains_nothing_or_names_no_model_is_refused_with_the_notes(make):
    for value in (None, False, "true", 1):
        with pytest.raises(SpecError, match=r"does not train: do_train is .*\n  line 2: why"):
            make({**LEAST, "do_train": value}, notes=["line 2: why"])
    with pytest.raises(SpecError, match=r"names no model: .*\n  line 2: why"):
        make({"do_train": True, "dataset": "toy"}, notes=["line 2: why"])


def test_datasets_of_dataset_info_json_become_entries_with_absolute_files(make, workspace, origin):
    found = make({**LEAST, "dataset": "toy, with sha"})
    spec = spec_of(found, workspace)
    assert spec.datasets == ["toy", "with-sha"]
    folders = entry_folders(workspace.dataset_info)
    toy, hub = (load_entry(name, folders).entry.llamafactory for name in spec.datasets)
    assert (toy.file_name, hub.hf_hub_url) == (str(origin / "data" / "toy.json"), "a/b")
    assert any("is called with-sha here: 'with sha' can be no file's name" in note for note in found.notes)


def test_an_entry_that_is_the_same_is_used_and_another_of_its_name_is_kept(make, workspace, origin):
    write_imported(make(LEAST), "x", workspace)
    assert make(LEAST).entries == {}
    (origin / "data" / "dataset_info.json").write_text('{"toy": {"file_name": "other.json"}}')
    again = make({**LEAST, "eval_dataset": "toy"})
    assert list(again.entries) == ["toy-2"] and "dataset: toy-2" in again.spec and "eval_dataset: toy-2" in again.spec


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"dataset": "gone"}, "dataset gone has no entry: .*/data/dataset_info.json does not have it"),
        ({"dataset_dir": "elsewhere"}, "elsewhere/dataset_info.json was not found from .*; --cwd names the folder"),
        ({"dataset_dir": "REMOTE:org/demo"}, "REMOTE:org/demo/dataset_info.json was not found from"),
        ({"dataset_dir": {"toy": 3}}, "dataset toy has no entry"),
    ],
)
def test_a_dataset_that_nobody_knows_is_noted(changes, note, make):
    found = make({**LEAST, **changes})
    assert found.entries == {} and re.search(note, found.notes[0])


def test_datasets_of_the_hub_and_of_media_have_what_llamafactory_would_take(make, workspace, origin):
    found = make({**LEAST, "dataset": "org/data", "dataset_dir": "ONLINE"})
    assert list(found.entries) == ["org-data"] and "org/data" in found.entries["org-data"]
    spec = spec_of(make({**LEAST, "dataset": "pics"}), workspace)
    assert spec.train is not None and spec.train.arguments()["media_dir"] == str(origin / "data")


def test_paths_that_are_there_become_absolute_and_what_is_made_goes_where_it_went(make, workspace, origin):
    (origin / "ds.json").write_text("{}")
    (origin / "models" / "m").mkdir(parents=True)
    paths = {"model_name_or_path": "models/m", "deepspeed": "ds.json", "tokenized_path": "t", "fsdp_config": "no.json"}
    found = make({**LEAST, **paths})
    spec = spec_of(found, workspace)
    assert spec.model is not None and spec.train is not None
    assert spec.model.name_or_path == str(origin / "models" / "m")
    arguments = [spec.train.arguments()[key] for key in ("deepspeed", "tokenized_path", "fsdp_config")]
    assert arguments == [str(origin / "ds.json"), str(origin / "t"), "no.json"]
    assert any("fsdp_config: 'no.json' is not there" in note for note in found.notes)


def test_variables_go_to_the_compute_section_and_mean_the_same(make, workspace):
    one = {"FORCE_TORCHRUN": "1", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "4"}
    several = {**one, "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    for environment in (one, several):
        found = make({**LEAST, "dataset": "org/d", "dataset_dir": "ONLINE"}, environment=environment)
        (workspace.runs / "x.yaml").write_text(found.spec)
        assert train_environment(load_spec(workspace.runs / "x.yaml")) == environment


def test_secrets_what_a_spec_refuses_and_what_is_not_known_are_noted_and_not_written(make):
    environment = {"WANDB_API_KEY": "hush", "ALLOW_EXTRA_ARGS": "1", "RDZV_ID": "a"}
    environment |= {"PATH": Word(f"/x:{ONE}$PATH{ONE}"), "MASTER_ADDR": Word(f"{ONE}$M{ONE}")}
    found = make(LEAST, environment=environment)
    assert "hush" not in found.spec + "".join(found.notes) and "compute" not in found.spec
    assert [note.partition(" (")[0].removeprefix("not taken over: ") for note in found.notes] == [
        "WANDB_API_KEY", "ALLOW_EXTRA_ARGS=1", "RDZV_ID=a", "PATH=/x:$PATH", "MASTER_ADDR=$M",
    ]  # fmt: skip
    assert "elastic" in found.notes[2] and "only running the script" in found.notes[3]
    assert "nnodes: $N" in make(LEAST, environment={"NNODES": Word(f"{ONE}$N{ONE}")}).spec.replace('"', "")


def test_nothing_that_is_there_is_overwritten_and_nothing_half_is_left(make, workspace):
    found = make(LEAST)
    (workspace.dataset_info / "toy.yaml").write_text("mine")
    with pytest.raises(SpecError, match=r"toy\.yaml already exists"):
        write_imported(found, "x", workspace)
    assert list(workspace.runs.glob("*.yaml")) == []


def test_a_spec_is_called_after_the_file_or_the_old_output_folder():
    def name(*words: str, output_dir: str | None = "saves/x") -> str:
        return name_of(words, Draft({"output_dir": output_dir}, "", []))

    assert name("a/qwen3_lora_sft.yaml") == "qwen3_lora_sft"
    assert name("llamafactory-cli train ...", output_dir="saves/qwen3-4b/lora/sft") == "qwen3-4b-lora-sft"
    assert name("llamafactory-cli", "train", output_dir=None) == "imported"
    assert (name("-", output_dir="/abs"), name("../../é é.sh", output_dir=None)) == ("abs", "imported")
