"""LLaMA-Factory's arguments, read from source: the installed one, and small ones written here."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.specs.arguments import Argument, argument_problem
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.installation import VARIABLE, Installation, find_installation

COMMANDS = frozenset({"train", "api", "export"})


@pytest.fixture(scope="module")
def installed() -> dict[str, Argument]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        return read_arguments(find_installation())


def argument(kinds: str, choices: tuple[Any, ...] | None = None) -> dict[str, Argument]:
    found = frozenset(kinds.split())
    return {"x": Argument("x", found - {"None"}, choices, "None" in found, COMMANDS)}


def written(tmp_path: Path, training: str = "", model: str = "") -> Installation:
    """An installation whose source files hold little."""
    package, transformers = tmp_path / "llamafactory", tmp_path / "transformers"
    (package / "hparams").mkdir(parents=True)
    (package / "extras").mkdir()
    transformers.mkdir()
    own = {
        "model_args.py": model or "class ModelArguments:\n    pass\n",
        "data_args.py": "class DataArguments:\n    pass\n",
        "training_args.py": "class TrainingArguments(Seq2SeqTrainingArguments):\n    pass\n",
        "finetuning_args.py": "class FinetuningArguments:\n    pass\n",
        "generating_args.py": "class GeneratingArguments:\n    pass\n",
    }
    for name, text in own.items():
        (package / "hparams" / name).write_text(text)
    (transformers / "training_args.py").write_text(training or "class TrainingArguments:\n    pass\n")
    (transformers / "training_args_seq2seq.py").write_text(
        "class Seq2SeqTrainingArguments(TrainingArguments):\n    pass\n"
    )
    cli = tmp_path / "llamafactory-cli"
    return Installation(cli, tmp_path / "python", package, transformers / "training_args.py", {}, "3.11.0")


def test_the_installed_arguments_are_all_there(installed: dict[str, Argument]) -> None:
    for name in ("model_name_or_path", "quantization_bit", "template", "cutoff_len", "lora_rank", "temperature"):
        assert installed[name].commands == COMMANDS, name
    for name in ("output_dir", "learning_rate", "predict_with_generate", "ray_num_workers", "overwrite_output_dir"):
        assert installed[name].commands == {"train"}, name
    assert len(installed) > 300
    assert sum("api" in each.commands for each in installed.values()) > 180


def test_derived_fields_are_no_arguments(installed: dict[str, Argument]) -> None:
    assert not installed.keys() & {"compute_dtype", "device_map", "model_max_length", "_n_gpu"}


def test_a_literal_beside_any_text_closes_nothing(tmp_path: Path) -> None:
    model = "class ModelArguments:\n    x: str | None | Literal[False] = None\n    y: 'Optional[Literal[1, 2]]' = 1\n"
    found = read_arguments(written(tmp_path, model=model))
    assert found["x"].choices is None and found["x"].kinds >= {"str", "bool"}
    assert found["y"].choices == (1, 2) and found["y"].optional


def test_a_subclass_overrides_its_bases(tmp_path: Path) -> None:
    model = (
        "class A:\n    x: int = 1\n    y: int = 1\n    z: int = 1\n"
        "class B:\n    x: str = ''\n    w: ClassVar[int] = 1\n"
        "class ModelArguments(B, A):\n    y: float = 1.0\n    z: int = field(default=1, init=False)\n"
    )
    found = read_arguments(written(tmp_path, model=model))
    assert found["x"].kinds >= {"str"} and found["y"].kinds == {"float"}
    assert not found.keys() & {"z", "w"}


def test_transformers_arguments_come_through_two_classes_of_one_name(tmp_path: Path) -> None:
    found = read_arguments(written(tmp_path, training="class TrainingArguments:\n    lr: float = 1.0\n"))
    assert found["lr"].commands == {"train"}


def test_an_installation_without_its_source_is_named(tmp_path: Path) -> None:
    whole = written(tmp_path)
    with pytest.raises(PrerequisiteError, match="no package llamafactory"):
        read_arguments(Installation(whole.cli, whole.python, None, whole.training_args, {}, "3.11"))
    with pytest.raises(PrerequisiteError, match="no package transformers"):
        read_arguments(Installation(whole.cli, whole.python, whole.package, None, {}, "3.11"))
    assert whole.package is not None
    (whole.package / "hparams" / "data_args.py").write_text("class Other:\n    pass\n")
    with pytest.raises(PrerequisiteError, match="no class DataArguments"):
        read_arguments(whole)
    (whole.package / "hparams" / "data_args.py").unlink()
    with pytest.raises(PrerequisiteError, match=r"data_args\.py"):
        read_arguments(whole)


def test_a_misspelt_name_gets_the_nearest_of_the_command(installed: dict[str, Argument]) -> None:
    assert "'cutoff_len'" in str(argument_problem("cutof_len", 1, "train", installed))
    assert "'learning_rate'" in str(argument_problem("learnin_rate", 1, "train", installed))
    assert "learning_rate" not in str(argument_problem("learnin_rate", 1, "api", installed))
    assert "'start_timeout_s'" in str(argument_problem("start_timeout", 1, "api", installed, {"start_timeout_s": 0}))
    assert "did you mean" not in str(argument_problem("qqqqqqq", 1, "train", installed))


def test_a_name_of_an_older_version_is_told_the_new_one(installed: dict[str, Argument]) -> None:
    assert "removed\nwrite use_cpu" in str(argument_problem("no_cuda", True, "train", installed))
    assert "train_sampling_strategy" in str(argument_problem("group_by_length", True, "train", installed))


@pytest.mark.parametrize(
    ("kinds", "value", "problem"),
    [
        ("int", 3, None),
        ("int", 1e5, None),
        ("float", 3, None),
        ("float", 1e-4, None),
        ("bool", False, None),
        ("str", "no", None),
        ("list", [1, "a"], None),
        ("dict str", {"a": 1}, None),
        ("dict str", "{}", None),
        ("", object(), None),
        ("", None, None),
        ("bool", "no", "expected true or false, got 'no'"),
        ("bool", 1, "expected true or false, got 1"),
        ("bool", "false", "expected true or false, got 'false' (text: write it without quotes)"),
        ("int", True, "expected an integer, got true"),
        ("int", 1.5, "expected an integer, got 1.5"),
        ("int", float("inf"), "expected an integer, got inf"),
        ("int", "1024", "expected an integer, got '1024' (text: write it without quotes)"),
        ("float", "1e-4", "expected a number, got '1e-4' (text: write it without quotes)"),
        ("float", True, "expected a number, got true"),
        ("int float", "x", "expected a number, got 'x'"),
        ("str", 5, 'expected text, got 5 (write it in quotes: "...")'),
        ("str", ["a"], "expected text, got ['a']"),
        ("str list", {"a": 1}, "expected text or a list, got {'a': 1}"),
        ("float", None, "expected a number, got null"),
        ("bool None", None, None),
    ],
)
def test_a_value_of_another_type_is_told_what_is_expected(kinds: str, value: object, problem: str | None) -> None:
    assert argument_problem("x", value, "train", argument(kinds)) == problem


def test_a_wrong_choice_is_told_all_and_the_nearest() -> None:
    choices = argument("str", ("linear", "cosine"))
    assert argument_problem("x", "cosine", "train", choices) is None
    said = argument_problem("x", "cosin", "train", choices)
    assert said == "expected one of 'linear', 'cosine'; got 'cosin'; did you mean 'cosine'?"
    assert argument_problem("x", True, "train", argument("int", (1, 2))) is not None
    many = argument("str", tuple(f"choice_{letter}" for letter in "abcdefghijklmnop"))
    assert (
        argument_problem("x", "choice_", "train", many)
        == "'choice_' is none of its 16 choices; did you mean 'choice_p'?"
    )
    assert "'choice_a', 'choice_b'" in str(argument_problem("x", 7, "train", many))
