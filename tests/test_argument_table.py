"""The reading of LLaMA-Factory's source against facts: a table made by importing it."""

import csv
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.specs.arguments import MINIMUMS, Argument
from orchestrator.specs.places import RESERVED_ARGUMENTS, is_secret
from orchestrator.specs.render import Checkpoint, Renderer, train_arguments
from orchestrator.specs.spec import TrainSpec
from orchestrator.specs.spec_file import load_spec
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.installation import VARIABLE, Installation, find_installation


class Quoting(yaml.SafeDumper):
    """Text in quotes: PyYAML would write '0E0', a number to YAML 1.2, without them."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))

TABLE = Path(__file__).parent / "data" / "llamafactory_args-0.9.5.csv"


@cache
def used() -> Installation:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        return find_installation()


@cache
def used_arguments() -> dict[str, Argument]:
    return read_arguments(used())


@pytest.fixture
def installed() -> dict[str, Argument]:
    return used_arguments()


@pytest.fixture
def table() -> dict[str, dict[str, str]]:
    """The rows that a command takes, by name."""
    have = {name: used().versions[name] for name in ("llamafactory", "transformers")}
    if have != {"llamafactory": "0.9.5", "transformers": "5.6.0"}:
        pytest.skip(f"the table is of llamafactory 0.9.5 with transformers 5.6.0; here are {have}")
    return {
        row["name"]: row for row in rows() if row["settable"] == "yes" and row["dataclass"] != "EvaluationArguments"
    }


def rows() -> list[dict[str, str]]:
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def declared_kinds(row: dict[str, str]) -> tuple[set[str], bool]:
    """The plain types in an annotation, and whether None is among them."""
    text = re.sub(r"Literal\[[^\]]*\]", lambda found: "str" if "'" in found[0] else "bool", row["type"])
    words = re.findall(r"\w+", re.sub(r"(list|dict)\[[^\]]*\]", r"\1", text))
    kinds = {word for word in words if word in ("int", "float", "bool", "str", "list", "dict")}
    return kinds | ({"str"} if row["choices"] else set()), bool({"None", "Optional", "NoneType"} & set(words))


def test_every_row_is_read_or_is_no_argument(table: dict[str, dict[str, str]], installed: dict[str, Argument]) -> None:
    assert len(rows()) == 358 and len(table) == 346
    assert installed.keys() == table.keys()
    derived = {row["name"] for row in rows() if row["settable"] != "yes"}
    evaluation = {row["name"] for row in rows() if row["dataclass"] == "EvaluationArguments"}
    assert derived == {"compute_dtype", "device_map", "model_max_length", "block_diag_attn"}
    assert len(evaluation) == 8 and installed.keys() & evaluation == {"seed"}  # TrainingArguments has one too


def test_every_default_help_and_command_is_that_of_the_table(
    table: dict[str, dict[str, str]], installed: dict[str, Argument]
) -> None:
    wrong = {
        name: (installed[name], row)
        for name, row in table.items()
        if (str(installed[name].default), installed[name].help, "api" in installed[name].commands)
        != (row["default"], " ".join(row["help"].split()), row["dataclass"] != "TrainingArguments")
        or "train" not in installed[name].commands
    }
    assert wrong == {}


def test_every_type_is_that_of_the_table(table: dict[str, dict[str, str]], installed: dict[str, Argument]) -> None:
    split = {
        "dataset", "eval_dataset", "interleave_probs", "freeze_trainable_modules", "freeze_extra_modules",
        "lora_target", "oft_target", "additional_target", "galore_target", "apollo_target",
    }  # fmt: skip
    wrong = {}
    for name, row in table.items():
        kinds, optional = declared_kinds(row)
        kinds = set() if name in ("parallelism_config", "generation_config") else kinds
        expected = (kinds | ({"list"} if name in split else set()), optional)
        if (installed[name].kinds, installed[name].optional) != expected:
            wrong[name] = (installed[name].kinds, installed[name].optional, expected)
    assert wrong == {}


def test_every_choice_is_that_of_the_table(table: dict[str, dict[str, str]], installed: dict[str, Argument]) -> None:
    found = {name: "|".join(map(str, each.choices or ())) for name, each in installed.items()}
    differ = {name: (found[name], row["choices"]) for name, row in table.items() if found[name] != row["choices"]}
    assert differ == {
        "train_sampling_strategy": ("random|sequential|group_by_length", ""),
        "ddp_backend": ("nccl|gloo|mpi|xccl|hccl|cncl|mccl", ""),
        "trackio_static_space_id": ("", "False"),
    }


WORDS = st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")).filter(
    lambda text: "${" not in text
)
SCALARS = st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
BY_KIND = {
    "int": st.integers(-(2**60), 2**60),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "str": TEXTS,
    "list": st.lists(TEXTS | st.integers(-9, 9), max_size=3),
    "dict": st.dictionaries(WORDS, SCALARS | st.lists(SCALARS, max_size=2), max_size=3),
}


def values(argument: Argument) -> st.SearchStrategy[object]:
    """Any value that an argument may have."""
    if argument.choices is not None:
        chosen: st.SearchStrategy[object] = st.sampled_from(argument.choices)
    else:
        chosen = st.one_of([BY_KIND[kind] for kind in sorted(argument.kinds)] or [SCALARS])
    return chosen | st.none() if argument.optional else chosen


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_valid_arguments_survive_spec_and_rendering(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    arguments = used_arguments()
    free = sorted(
        {name for name in arguments if not is_secret(name)} - {*RESERVED_ARGUMENTS, *TrainSpec.model_fields, *MINIMUMS}
    )
    names = data.draw(st.lists(st.sampled_from(free), max_size=12, unique=True))
    train = {name: data.draw(values(arguments[name]), label=name) for name in names}
    folder = tmp_path_factory.getbasetemp()
    written = {"name": "a", "model": {"name_or_path": "m"}, "dataset": "d", "train": train}
    text = yaml.dump(written, Dumper=Quoting, sort_keys=False)
    (folder / "drawn.yaml").write_text(text, encoding="utf-8")
    spec = load_spec(folder / "drawn.yaml", (), arguments)
    assert spec.model is not None
    rendered = Renderer().train_yaml(train_arguments(spec, Checkpoint("base", spec.model)))
    (folder / "train.yaml").write_text(rendered, encoding="utf-8")
    read = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(folder / "train.yaml"), OmegaConf.from_cli([])))
    assert {key: repr(read[key]) for key in train} == {key: repr(value) for key, value in train.items()}
