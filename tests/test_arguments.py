"""LLaMA-Factory's arguments: which there are, and whether a value fits one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.specs.arguments import COMPUTED, Argument, argument_problem
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.installation import Installation
from tests.model_folders import declared_arguments

DATA = Path(__file__).parent / "data"
COMMANDS = frozenset({"train", "api", "export"})


def argument(kinds: str, choices: tuple[Any, ...] | None = None, optional: bool = False) -> dict[str, Argument]:
    return {"x": Argument("x", frozenset(kinds.split()), choices, optional, COMMANDS)}


@pytest.fixture
def of_0_9_5(installation):
    have = {name: installation.versions[name] for name in ("llamafactory", "transformers")}
    if have != {"llamafactory": "0.9.5", "transformers": "5.6.0"}:
        pytest.skip(f"the file is of llamafactory 0.9.5 with transformers 5.6.0; here are {have}")


@pytest.mark.integration
def test_the_declared_arguments_are_those_of_the_imported_dataclasses(llamafactory, of_0_9_5, tmp_path):
    found = llamafactory.script(DATA.parent / "declared_arguments.py", cwd=tmp_path)
    assert found == json.loads((DATA / "arguments-0.9.5.json").read_text("utf-8"))


def test_the_source_is_read_as_python_imports_it(of_0_9_5, arguments):
    wanted = declared_arguments()
    wanted["optim"] = replace(wanted["optim"], default=COMPUTED)  # by the version of torch
    for name in ("log_level", "log_level_replica"):
        wanted[name] = replace(wanted[name], choices=None)  # of logging's levels
    assert arguments == wanted


@pytest.fixture
def toy(tmp_path: Path) -> Installation:
    for name in ("model", "data", "training", "finetuning", "generating"):
        base = "(BaseTrainingArguments)" if name == "training" else ""
        text = f"class {name.title()}Arguments{base}:\n    pass\n"
        write(tmp_path / "llamafactory" / "hparams" / f"{name}_args.py", text)
    write(tmp_path / "llamafactory" / "extras" / "constants.py", "")
    write(tmp_path / "transformers" / "trainer_utils.py", "")
    write(tmp_path / "transformers" / "training_args.py", "class TrainingArguments:\n    lr: float = 1.0\n")
    derived = "class Seq2SeqTrainingArguments(TrainingArguments):\n    pass\n"
    write(tmp_path / "transformers" / "training_args_seq2seq.py", derived)
    package, theirs = tmp_path / "llamafactory", tmp_path / "transformers"
    return Installation(tmp_path / "cli", tmp_path / "python", package, {}, transformers=theirs)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_class_overrides_its_bases_and_transformers_has_one_of_the_same_name(toy: Installation) -> None:
    assert toy.package is not None
    model = (
        "class A:\n    x: int = 1\n    y: int = 1\n    z: int = 1\n"
        "class B:\n    x: str = ''\n    w: ClassVar[int] = 1\n"
        "class ModelArguments(B, A):\n    y: 'Optional[Literal[1, 2]]' = 1\n    z: int = field(default=1, init=False)\n"
    )
    write(toy.package / "hparams" / "model_args.py", model)
    found = read_arguments(toy)
    assert found.keys() == {"x", "y", "lr"}
    assert (found["x"].kinds, found["x"].default) == ({"str"}, "")
    assert (found["y"].choices, found["y"].optional) == ((1, 2), True)
    assert (found["lr"].kinds, found["lr"].commands) == ({"float"}, {"train"})


def test_a_source_that_cannot_be_read_is_named(toy: Installation) -> None:
    assert toy.package is not None
    for changes, named in (({"package": None}, "llamafactory"), ({"transformers": None}, "transformers")):
        with pytest.raises(PrerequisiteError, match=f"no package {named}"):
            read_arguments(replace(toy, **changes))
    write(toy.package / "hparams" / "data_args.py", "class Other:\n    pass\n")
    with pytest.raises(PrerequisiteError, match="no class DataArguments"):
        read_arguments(toy)
    write(toy.package / "hparams" / "data_args.py", "class\n")
    with pytest.raises(PrerequisiteError, match=r"data_args\.py"):
        read_arguments(toy)


def test_a_misspelt_name_gets_the_nearest_of_the_command(arguments: dict[str, Argument]) -> None:
    assert "'cutoff_len'" in str(argument_problem("cutof_len", 1, "train", arguments))
    assert "learning_rate" not in str(argument_problem("learnin_rate", 1, "api", arguments))
    assert "'start_timeout_s'" in str(argument_problem("start_timeout", 1, "api", arguments, {"start_timeout_s": 0}))
    assert "did you mean" not in str(argument_problem("qqqqqqq", 1, "train", arguments))


@pytest.mark.parametrize(
    ("kinds", "value", "expected"),
    [
        ("int", 1e5, None),  # typed() makes an int of it
        ("float", 3, None),
        ("float", 1e-4, None),
        ("str", "no", None),
        ("dict str", {"a": 1}, None),
        ("", object(), None),
        ("", None, None),
        ("bool", 1, "expected true or false, got 1"),
        ("int", True, "expected an integer, got true"),
        ("int", 1.5, "expected an integer, got 1.5"),
        ("int float", "x", "expected a number, got 'x'"),
        ("str", 5, 'expected text, got 5 (write it in quotes: "...")'),
        ("str", ["a"], "expected text, got ['a']"),
        ("str list", {"a": 1}, "expected text or a list, got {'a': 1}"),
        ("float", None, "expected a number, got null"),
    ],
)
def test_values_of_another_type_are_refused_with_what_is_expected(kinds, value, expected):
    """LLaMA-Factory keeps a text that should be a number, and fails in the middle of training."""
    assert argument_problem("x", value, "train", argument(kinds)) == expected
    assert argument_problem("x", None, "train", argument(kinds, optional=True)) is None


def test_a_wrong_choice_brings_all_and_the_nearest() -> None:
    choices = argument("str", ("linear", "cosine"))
    assert argument_problem("x", "cosine", "train", choices) is None
    found = argument_problem("x", "cosin", "train", choices)
    assert found == "expected one of 'linear', 'cosine'; got 'cosin'; did you mean 'cosine'?"
    assert argument_problem("x", True, "train", argument("int", (1, 2))) is not None
    for letters, end in (("abcdefghijkl", "'choice_l'; got"), ("abcdefghijklm", "'choice_l', ...; got")):
        many = argument("str", tuple(f"choice_{letter}" for letter in letters))
        assert end in str(argument_problem("x", "choice_", "train", many))
