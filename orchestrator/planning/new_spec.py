"""A commented spec to start from, by kind of training.

Covered: the kinds that templates/new.yaml.j2 has text for; the model's chat template, where LLaMA-Factory lists it; a
check of the text against the arguments of the LLaMA-Factory that is installed.
Not covered: values that suit the data or the GPU: those it gives are LLaMA-Factory's own examples'.
Writes nothing: it returns the text.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.datasets import Dataset, load_entry
from orchestrator.data.llamafactory_data import LlamaFactoryDataset
from orchestrator.errors import SpecError, did_you_mean
from orchestrator.planning.schema import modeline
from orchestrator.planning.spec_file import load_spec
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.arguments import Argument
from orchestrator.specs.render import Comment, Renderer
from orchestrator.specs.spec import NAME, ModelSpec
from orchestrator.upstream.chat_templates import read_templates, resolve_template
from orchestrator.upstream.installation import Installation

_SMALL, _LARGE = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
DEFAULT_KIND = "lora-sft"
DEFAULT_DATASET = "captions_en_de"


@dataclass(frozen=True)
class Kind:
    """What a kind of training starts with."""

    stage: str
    model: str = _LARGE
    """Where none is named."""
    translates: bool = True
    """Whether what comes of it can be benchmarked."""


KINDS = {
    DEFAULT_KIND: Kind("sft"),
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
    arguments: Mapping[str, Argument] | None,
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
        arguments: its arguments, to check the text against; None: their names stay unchecked.

    Raises:
        SpecError: a name, kind or dataset that is none; a kind that this LLaMA-Factory does not have.
    """
    check_name(name)
    if kind not in KINDS:
        raise SpecError(f"no kind {kind!r} to start from{did_you_mean(kind, KINDS)}", f"one of {', '.join(KINDS)}")
    if model is not None and not model.strip():
        raise SpecError("--model is empty", "name a folder or a hub id, such as " + _LARGE)
    chosen = KINDS[kind]
    held_out = _held_out(load_entry(dataset, folders))
    given = ModelSpec(name_or_path=model if model is not None else chosen.model)
    found, reason, thinks = given, "LLaMA-Factory was not found, and with it no list of them", False
    if installation is not None:
        found, reason = resolve_template(given, workspace.root, installation)
        thinks = found.template in read_templates(installation).reasoning
    methods = arguments["quantization_method"].choices if arguments and "quantization_method" in arguments else None
    values = {
        "name": name,
        "model": given.name_or_path,
        "template": found.template,
        "thinks": thinks,
        "dataset": dataset,
        "split": held_out[0] if held_out and chosen.translates else None,
        "kind": kind,
        "stage": chosen.stage,
        "starts_from_adapter": kind in ("dpo", "kto"),
        # LLaMA-Factory 0.9.3 has the package's name, later versions its short form.
        "quantization_method": "bitsandbytes" if methods and "bnb" not in methods else "bnb",
        "modeline": Comment(modeline(workspace.schema.name)),
        "file": Comment(f"{workspace.runs.name}/{name}.yaml"),
        "found": Comment(reason),
    }
    text = renderer.new_yaml(values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            spec = load_spec(path, (), arguments)
        except SpecError as error:
            raise SpecError(f"a spec from {kind} is none for this LLaMA-Factory: {error.message}") from error
    said = (spec.name, spec.model and spec.model.name_or_path, spec.dataset)
    if said != (name, given.name_or_path, dataset):
        raise SpecError(f"templates/new.yaml.j2 does not say what was asked for, but {said}", "edit or remove it")
    return text


def _held_out(dataset: Dataset | LlamaFactoryDataset) -> list[str]:
    """The splits that can be benchmarked, test sets first; none of LLaMA-Factory's own formats."""
    if isinstance(dataset, LlamaFactoryDataset):
        return []
    splits = list(dataset.entry.splits)
    if "train" not in splits:
        raise SpecError(f"dataset {dataset.name} has no split train to train on; it has: {', '.join(splits)}")
    return [split for split in splits if split.startswith("test")] or [each for each in splits if each != "train"]
