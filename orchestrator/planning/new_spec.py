"""What a workspace begins with: a commented spec by kind of training, and the schema that editors check specs by."""

import json
import re

from orchestrator.data.datasets import Dataset, load_entry
from orchestrator.errors import SpecError, did_you_mean
from orchestrator.planning.session import Session
from orchestrator.specs.render import Comment
from orchestrator.specs.schema import modeline, spec_schema
from orchestrator.specs.spec import NAME, ModelSpec
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.chat_templates import read_templates, resolve_template
from orchestrator.upstream.installation import Installation

_SMALL, _LARGE = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
# What `new --from` takes, and its training stage; templates/new.yaml.j2 has the rest.
KINDS = dict.fromkeys(("lora-sft", "full-sft", "freeze-sft", "qlora"), "sft")
KINDS |= {stage: stage for stage in ("dpo", "kto", "rm", "pt")}


def check_name(name: str) -> None:
    """SpecError where no spec and no run can have this name."""
    if not re.fullmatch(NAME.strip("^$"), name) or name.endswith((".yaml", ".yml")):
        rule = "letters, digits, dot, underscore, hyphen; at most 64; a letter or digit first; without .yaml"
        raise SpecError(f"{name!r} is no name of a spec: {rule}", "orchestrator new my-spec")


def new_spec(session: Session, name: str, kind: str, model: str | None, dataset: str) -> str:
    """The text of runs/NAME.yaml; model None: one that goes with the kind. SpecError: no such name, kind or dataset."""
    check_name(name)
    if kind not in KINDS:
        raise SpecError(f"no kind {kind!r} to start from{did_you_mean(kind, KINDS)}", f"one of {', '.join(KINDS)}")
    if model is not None and not model.strip():
        raise SpecError("--model is empty", "give a folder or a hub id, such as --model " + _SMALL)
    entry, stage = load_entry(dataset, session.dataset_folders), KINDS[kind]
    splits = list(entry.entry.splits) if isinstance(entry, Dataset) else ["train"]
    if "train" not in splits:
        raise SpecError(f"dataset {dataset} has no split train to train on; it has: {', '.join(splits)}")
    held_out = sorted(set(splits) - {"train"}, key=lambda split: (not split.startswith("test"), splits.index(split)))
    given = model if model is not None else (_SMALL if kind in ("full-sft", "freeze-sft") else _LARGE)
    resolved, installation = ModelSpec(name_or_path=given), session.llamafactory_or_none()
    found, thinks = "LLaMA-Factory was not found, and with it no list of them", False
    if installation is not None:
        resolved, found = resolve_template(resolved, session.workspace.root, installation)
        thinks = resolved.template in read_templates(installation).reasoning
    values = {
        "name": name,
        "model": resolved.name_or_path,
        "template": resolved.template,
        "thinks": thinks,
        "dataset": dataset,
        "split": held_out[0] if held_out and stage not in ("rm", "pt") else None,
        "kind": kind,
        "stage": stage,
        "starts_from_adapter": stage in ("dpo", "kto"),
        "modeline": Comment(modeline(session.workspace.schema.name)),
        "file": Comment(f"{session.workspace.runs.name}/{name}.yaml"),
        "found": Comment(found),
    }
    return session.renderer.text("new.yaml", values)


def schema_text(installation: Installation) -> str:
    """The JSON Schema of a spec for an installation, as a file."""
    versions = installation.versions
    made_for = " and ".join(f"{name} {versions[name]}" for name in ("llamafactory", "transformers") if name in versions)
    made = spec_schema(read_arguments(installation), read_templates(installation).names, made_for)
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
