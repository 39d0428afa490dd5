"""`new`, `init` and `schema`: a spec to start from, and what editors know of it. Run: pytest tests/test_new.py."""

import json
import re
from typing import Any

import jsonschema
import pytest

from orchestrator.data.datasets import ArchiveStore, entry_folders
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.planning.new_spec import KINDS, check_name, new_spec
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.render import Renderer
from orchestrator.specs.schema import modeline, spec_schema
from orchestrator.specs.spec import RunSpec
from orchestrator.specs.spec_file import load_spec
from orchestrator.specs.yamlfile import read_yaml
from orchestrator.upstream.installation import Installation


@pytest.fixture
def place(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("HF_HUB_CACHE", str(workspace.root / "hub"))
    return workspace


def written(place: Workspace, installation: Installation | None, arguments: Any, **given: Any) -> tuple[str, RunSpec]:
    settings = {"name": "x", "kind": "lora-sft", "model": None, "dataset": "captions_en_de", **given}
    found, archives = installation or PrerequisiteError("none"), ArchiveStore(None, place.root)
    session = Session(place, found, Renderer(), archives, entry_folders(place.dataset_info))
    text = new_spec(session, **settings)
    path = place.runs / f"{settings['name']}.yaml"
    path.write_text(text, encoding="utf-8")
    return text, load_spec(path, (), arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_spec_of_each_kind_is_right_and_explains_itself(kind, place, installation, arguments):
    text, spec = written(place, installation, arguments, kind=kind)
    stage = {"dpo": "dpo", "kto": "kto", "rm": "rm", "pt": "pt"}.get(kind, "sft")
    assert spec.train is not None and spec.train.stage == stage
    method = {"full-sft": "full", "freeze-sft": "freeze"}.get(kind, "lora")
    assert spec.train.finetuning_type == method
    assert bool(spec.benchmark) == (stage not in ("rm", "pt"))
    for section in (spec.train, spec.serve):  # QLoRA is benchmarked as it was trained: on 4 bits
        assert section.extra_arguments().get("quantization_bit") == (4 if kind == "qlora" else None)
    assert jsonschema.Draft202012Validator(spec_schema(arguments)).is_valid(read_yaml(place.runs / "x.yaml").value)
    assert max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[0] == modeline(".spec.schema.json")
    head = text.partition("\nname:")[0]
    assert "Needs" in head and "GPU" in head
    assert "#   orchestrator launch runs/x.yaml\n" in head and "--set train.num_train_epochs=1" in head


def test_the_template_is_that_of_the_model(place, installation, arguments):
    for model, template, thinking in (
        ("Qwen/Qwen2.5-7B-Instruct", "qwen", None),
        ("Qwen/Qwen3-8B", "qwen3", False),
        ("nobody/nothing", None, None),
    ):
        text, spec = written(place, installation, arguments, model=model)
        assert (spec.model.name_or_path, spec.model.template, spec.model.enable_thinking) == (model, template, thinking)
        assert f"LLaMA-Factory lists {'no model' if template is None else model.rpartition('/')[2]}" in text
    text, spec = written(place, None, None)  # the machine where it is written need not be the one where it runs
    assert spec.model.template is None and "# template: NAME" in text and "LLaMA-Factory was not found" in text


def test_a_name_is_one_of_a_file_and_quoted_where_yaml_would_take_it_for_something_else(place: Workspace) -> None:
    for name in ("1e5", "0o7", "no", "x.y", "a" * 64, "9"):
        assert written(place, None, None, name=name)[1].name == name
    for name in ("", "a b", "a/b", "../a", "-a", ".a", "a\n", "a" * 65, "ä", "a.yaml", "$(x)"):
        with pytest.raises(SpecError):
            check_name(name)


def test_what_there_is_none_of_is_refused_with_the_nearest(place: Workspace) -> None:
    with pytest.raises(SpecError, match="did you mean 'captions_en_de'"):
        written(place, None, None, dataset="captoins_en_de")
    with pytest.raises(SpecError, match="did you mean 'qlora'") as error:
        written(place, None, None, kind="qlor")
    assert "lora-sft, full-sft" in error.value.remedy
    assert written(place, None, None, model="new\nline: '#x'")[1].model.name_or_path == "new\nline: '#x'"


def test_only_a_dataset_with_a_test_split_gets_a_benchmark(place: Workspace) -> None:
    shipped = entry_folders(place.dataset_info)[-1]
    entry = (shipped / "captions_en_de.yaml").read_text("utf-8")
    texts = {
        "train_only": entry.partition("  validation:\n")[0],
        "test_only": re.sub(r"  train:\n(    .*\n)+", "", entry),
        "pairs": "description: x\nllamafactory: {file_name: x.json, ranking: true}\n",
    }
    for name, text in texts.items():
        (place.dataset_info / f"{name}.yaml").write_text(text, "utf-8")
    assert written(place, None, None)[1].benchmark[0].split == "test"
    for name in ("train_only", "pairs"):
        assert written(place, None, None, dataset=name)[1].benchmark == []
    with pytest.raises(SpecError, match="no split train"):
        written(place, None, None, dataset="test_only")


def test_init_new_launch_is_a_way_that_works(workshop):
    done = workshop.run("init", "inner")
    assert done.code == 0, done.err
    inner = workshop.root / "inner"
    schema = json.loads((inner / "runs" / ".spec.schema.json").read_text("utf-8"))
    assert re.match(r"Run spec for llamafactory \d.* and transformers \d", schema["title"])
    done = workshop.run("new", "first", "--model", workshop.root / "models" / "tiny", "--workspace", inner)
    assert (done.code, done.out) == (0, f"{inner / 'runs' / 'first.yaml'}\n"), done.err
    overrides = ("--set", "train.use_cpu=true", "--set", "train.bf16=false")
    done = workshop.run("launch", "runs/first.yaml", *overrides, "--dry-run", cwd=inner)
    assert done.code == 0, done.err


def test_new_and_init_overwrite_nothing_and_schema_needs_llamafactory(workshop):
    spec = workshop.spec("mine")
    before = spec.read_bytes()
    done = workshop.run("new", "mine")
    assert done.code == 2 and "mine.yaml" in done.err and spec.read_bytes() == before
    (workshop.runs / ".gitignore").write_text("mine\n")
    nowhere = {"ORCHESTRATOR_LLAMAFACTORY": str(workshop.root / "gone")}
    done = workshop.run("init", ".", **nowhere)
    assert done.code == 0 and "orchestrator schema" in done.err
    assert (workshop.runs / ".gitignore").read_text() == "mine\n"
    done = workshop.run("schema", **nowhere)
    assert done.code == 3 and done.out == ""
