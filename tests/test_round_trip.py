"""Every example configuration of LLaMA-Factory 0.9.5, imported and rendered: the same arguments as the original."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from orchestrator.data.datasets import entry_folders
from orchestrator.errors import SpecError
from orchestrator.importing.importer import import_draft, write_imported
from orchestrator.importing.sources import read_source
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.arguments import COMPUTED, Argument
from orchestrator.specs.render import Checkpoint, Renderer, train_arguments
from orchestrator.specs.spec_file import load_spec
from orchestrator.upstream.installation import Installation

PUBLISHED = Path(__file__).parent / "data" / "llamafactory-0.9.5"
EXAMPLES = [str(path.relative_to(PUBLISHED / "examples")) for path in (PUBLISHED / "examples").rglob("*.yaml")]
# What cannot be imported, and why: the beginning of a path, and what the refusal says.
REFUSED = {
    "accelerate/": "does not train: do_train is null",
    "inference/": "does not train: do_train is null",
    "merge_lora/": "does not train: do_train is null",
    "ktransformers/accelerate/": "does not train: do_train is null",
    "v1/": "",
    "extras/multi_tokens/tokens_cfg.yaml": "holds none of LLaMA-Factory's arguments",
    "extras/nlg_eval/llama3_lora_predict.yaml": "does not train: do_train is null",
}
# Imported, but with arguments of mcore_adapter and of transformers 4: the spec's check names them.
UNKNOWN = {"megatron/qwen2_vl_full.yaml", "megatron/qwen3_moe_full.yaml", "extras/fp8/llama3_fp8_fsdp_sft.yaml"}
IMPORTED = sorted(name for name in EXAMPLES if not name.startswith(tuple(REFUSED)))
# The run layer's own; and media_dir, which is the dataset_dir of the original where it is not given.
OURS = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dataset_dir", "enable_jit_checkpoint"}


@dataclass(frozen=True)
class Case:
    original: dict[str, Any]
    rendered: dict[str, Any] | None
    error: str
    notes: list[str]
    spec: str


@pytest.fixture(scope="module")
def cases(tmp_path_factory, arguments, installation) -> dict[str, Case | SpecError]:
    found: dict[str, Case | SpecError] = {}
    for name in EXAMPLES:
        folder = tmp_path_factory.mktemp("w")
        try:
            found[name] = round_trip(folder, PUBLISHED / "examples" / name, arguments, installation)
        except SpecError as error:
            found[name] = error
    return found


def round_trip(root: Path, path: Path, arguments: dict[str, Argument], installation: Installation) -> Case:
    workspace, renderer = Workspace(root), Renderer()
    workspace.runs.mkdir()
    workspace.dataset_info.mkdir()
    folders = entry_folders(workspace.dataset_info)
    draft = read_source([str(path)], cwd=PUBLISHED, line=None, arguments=arguments, installation=installation)
    imported = import_draft(draft, "example", workspace=workspace, folders=folders)
    written, _ = write_imported(imported, "example", workspace)
    original = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(original, dict)
    try:
        spec = load_spec(written, (), arguments)
    except SpecError as error:
        return Case(original, None, str(error), imported.notes, imported.spec)
    assert spec.model is not None
    start = Checkpoint("base", spec.model)  # the models are not here: paths stay as they are
    text = renderer.train_yaml(train_arguments(spec, start))
    return Case(original, yaml.safe_load(text), "", imported.notes, imported.spec)


def comparable(given: dict[str, Any], arguments: dict[str, Argument]) -> dict[str, Any]:
    """Arguments with defaults filled in, the run layer's own left out, names of datasets and paths in one form."""
    taken = {name: each for name, each in arguments.items() if "train" in each.commands}
    defaults = {name: each.default for name, each in taken.items() if each.default is not COMPUTED}
    values = {key: value for key, value in {**defaults, **given}.items() if key not in OURS}
    for key in ("dataset", "eval_dataset"):
        if isinstance(values.get(key), str):
            values[key] = [name.strip() for name in values[key].split(",")]
    if values.get("media_dir") in (str(PUBLISHED / "data"), None):  # where LLaMA-Factory looks by itself
        values["media_dir"] = None
    for key, value in values.items():
        if (isinstance(value, str) and (PUBLISHED / value).exists()) or key == "tokenized_path":
            values[key] = None if value is None else str(PUBLISHED / value)
    return values


def test_what_is_no_configuration_of_a_training_is_refused_with_the_reason(cases):
    for name in set(EXAMPLES) - set(IMPORTED):
        assert isinstance(cases[name], SpecError), name
        assert next(why for begin, why in REFUSED.items() if name.startswith(begin)) in str(cases[name])


@pytest.mark.parametrize("name", IMPORTED)
def test_an_example_is_rendered_with_the_arguments_of_the_original(name, cases, arguments):
    case = cases[name]
    assert isinstance(case, Case)
    if name in UNKNOWN:
        unknown = set(case.original) - set(arguments)
        assert unknown and case.rendered is None
        assert all(f"train.{key}: " in case.error for key in unknown), case.error
    else:
        assert case.rendered is not None, case.error
        expected = comparable(case.original, arguments)
        assert comparable(case.rendered, arguments) == expected
    text = (PUBLISHED / "examples" / name).read_text()
    comments = [line[line.index("#") :].strip() for line in text.splitlines() if "#" in line]
    assert [each for each in comments if each not in case.spec] == []
    dropped = [key for key, value in case.original.items() if key in OURS and value not in (None, False)]
    assert [key for key in dropped if key not in "\n".join(case.notes)] == []


def test_49_of_the_82_examples_are_imported_and_46_of_them_completely():
    assert all(any(name.startswith(begin) for name in EXAMPLES) for begin in REFUSED)
    assert (len(EXAMPLES), len(IMPORTED), len(set(IMPORTED) - UNKNOWN)) == (82, 49, 46)
