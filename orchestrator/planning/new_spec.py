"""What a workspace begins with: a commented spec by kind of training, and the schema that editors check specs by."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.datasets import Dataset, load_entry
from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.errors import SpecError, did_you_mean
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.render import Comment, Renderer
from orchestrator.specs.schema import modeline, spec_schema
from orchestrator.specs.spec import NAME, ModelSpec
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.chat_templates import read_templates, with_found_template
from orchestrator.upstream.installation import Installation

_SMALL, _LARGE = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"


@dataclass(frozen=True)
class Kind:
    """What a kind of training starts with."""

    stage: str
    model: str = _LARGE
    """Where none is named."""
    translates: bool = True
    """Whether what comes of it can be benchmarked."""


KINDS = {
    "lora-sft": Kind("sft"),
    "full-sft": Kind("sft", _SMALL),
    "freeze-sft": Kind("sft", _SMALL),
    "qlora": Kind("sft"),
    "dpo": Kind("dpo"),
    "kto": Kind("kto"),
    "rm": Kind("rm", translates=False),
    "pt": Kind("pt", translates=False),
}


def check_name(name: str) -> None:
    """SpecError where no spec and no run can have this name."""
    if name.endswith((".yaml", ".yml")):
        raise SpecError(f"{name!r}: the name without its ending", f"orchestrator new {name.rpartition('.')[0]}")
    if not re.fullmatch(NAME.strip("^$"), name):
        raise SpecError(
            f"{name!r} is no name of a spec: letters, digits, dot, underscore, hyphen; at most 64; "
            "a letter or digit first",
            "orchestrator new my-spec",
        )


def new_spec(
    name: str,
    kind: str,
    model: str | None,
    dataset: str,
    *,
    workspace: Workspace,
    folders: Sequence[Path],
    renderer: Renderer,
    installation: Installation | None,
) -> str:
    """The text of runs/NAME.yaml.

    Args:
        name: of the spec.
        kind: one of KINDS.
        model: a folder or a hub id; None: one that goes with the kind.
        dataset: an entry of dataset_info/ with a split train, or in LLaMA-Factory's own format.
        workspace: where it will be.
        folders: where entries of datasets are.
        renderer: the templates.
        installation: LLaMA-Factory; None: the model's chat template is not looked up.

    Raises:
        SpecError: a name, kind or dataset that is none.
    """
    check_name(name)
    if kind not in KINDS:
        raise SpecError(f"no kind {kind!r} to start from{did_you_mean(kind, KINDS)}", f"one of {', '.join(KINDS)}")
    if model is not None and not model.strip():
        raise SpecError("--model is empty", "name a folder or a hub id, such as " + _LARGE)
    chosen = KINDS[kind]
    held_out = _held_out(load_entry(dataset, folders))
    resolved = ModelSpec(name_or_path=model or chosen.model)
    found, thinks = "LLaMA-Factory was not found, and with it no list of them", False
    if installation is not None:
        resolved, found = with_found_template(resolved, workspace.root, installation)
        thinks = resolved.template in read_templates(installation).reasoning
    values = {
        "name": name,
        "model": resolved.name_or_path,
        "template": resolved.template,
        "thinks": thinks,
        "dataset": dataset,
        "split": held_out[0] if held_out and chosen.translates else None,
        "kind": kind,
        "stage": chosen.stage,
        "starts_from_adapter": kind in ("dpo", "kto"),
        "modeline": Comment(modeline(workspace.schema.name)),
        "file": Comment(f"{workspace.runs.name}/{name}.yaml"),
        "found": Comment(found),
    }
    return renderer.text("new.yaml", values)


def schema_text(installation: Installation) -> str:
    """The JSON Schema of a spec for an installation, as a file."""
    versions = installation.versions
    names = (("LLaMA-Factory", "llamafactory"), ("transformers", "transformers"))
    made_for = " and ".join(f"{name} {versions[key]}" for name, key in names if key in versions)
    made = spec_schema(read_arguments(installation), read_templates(installation).names, made_for or "LLaMA-Factory")
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _held_out(dataset: Dataset | LlamaFactoryDataset) -> list[str]:
    """The splits that can be benchmarked, test sets first; none of LLaMA-Factory's own formats."""
    if isinstance(dataset, LlamaFactoryDataset):
        return []
    splits = list(dataset.entry.splits)
    if "train" not in splits:
        raise SpecError(f"dataset {dataset.name} has no split train to train on; it has: {', '.join(splits)}")
    return [split for split in splits if split.startswith("test")] or [each for each in splits if each != "train"]
