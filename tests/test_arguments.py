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


def argument(kinds: str, choices: tuple[Any, ...] | None = None, optional: bool = False) -> dict[str, Argument]:
    return {"x": Argument("x", frozenset(kinds.split()), choices, optional, COMMANDS)}


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
    """Names of each dataclass and of each base class, with the commands that take them."""
    for name in ("model_name_or_path", "quantization_bit", "template", "cutoff_len", "lora_rank", "temperature"):
        assert installed[name].commands == COMMANDS, name
    for name in ("output_dir", "learning_rate", "predict_with_generate", "ray_num_workers", "overwrite_output_dir"):
        assert installed[name].commands == {"train"}, name
    assert len(installed) > 300
    assert sum("api" in each.commands for each in installed.values()) > 180


def test_derived_fields_are_no_arguments(installed: dict[str, Argument]) -> None:
    """field(init=False) is what LLaMA-Factory computes."""
    assert not installed.keys() & {"compute_dtype", "device_map", "model_max_length", "_n_gpu"}


@pytest.mark.parametrize(
    ("name", "kinds", "optional"),
    [
        ("cutoff_len", {"int"}, False),
        ("learning_rate", {"float"}, False),
        ("plot_loss", {"bool"}, False),
        ("packing", {"bool"}, True),
        ("max_samples", {"int"}, True),
        ("lora_target", {"str", "list"}, False),  # split at commas, or taken as a list
        ("cache_dir", {"str"}, True),
        ("deepspeed", {"dict", "str"}, True),
        ("report_to", {"list", "str"}, True),
        ("generation_config", set(), True),  # a class of transformers among its types: not checked
    ],
)
def test_types_are_those_declared(name: str, kinds: set[str], optional: bool, installed: dict[str, Argument]) -> None:
    """X | None, Optional[X], Union, containers, and what is unknown."""
    assert (installed[name].kinds, installed[name].optional) == (kinds, optional)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("stage", {"pt", "sft", "rm", "ppo", "dpo", "kto"}),
        ("infer_dtype", {"auto", "float16", "bfloat16", "float32"}),
        ("infer_backend", {"huggingface", "vllm", "sglang"}),  # an enum in another file
        ("save_strategy", {"no", "steps", "epoch", "best"}),  # an enum of transformers' | str
    ],
)
def test_choices_come_from_literals_and_enums(name: str, choices: set[str], installed: dict[str, Argument]) -> None:
    """LLaMA-Factory itself accepts a wrong choice in YAML, and fails later."""
    assert set(installed[name].choices or ()) == choices


def test_a_literal_beside_any_text_closes_nothing(tmp_path: Path) -> None:
    """str | Literal[False] is any text, or false."""
    model = "class ModelArguments:\n    x: str | None | Literal[False] = None\n    y: 'Optional[Literal[1, 2]]' = 1\n"
    found = read_arguments(written(tmp_path, model=model))
    assert found["x"].choices is None and found["x"].kinds >= {"str", "bool"}
    assert found["y"].choices == (1, 2) and found["y"].optional


def test_a_subclass_overrides_its_bases(tmp_path: Path) -> None:
    """As dataclasses do: the class over its bases, the left base over the right one; ClassVar and init=False go."""
    model = (
        "class A:\n    x: int = 1\n    y: int = 1\n    z: int = 1\n"
        "class B:\n    x: str = ''\n    w: ClassVar[int] = 1\n"
        "class ModelArguments(B, A):\n    y: float = 1.0\n    z: int = field(default=1, init=False)\n"
    )
    found = read_arguments(written(tmp_path, model=model))
    assert found["x"].kinds >= {"str"} and found["y"].kinds == {"float"}
    assert not found.keys() & {"z", "w"}


def test_transformers_arguments_come_through_two_classes_of_one_name(tmp_path: Path) -> None:
    """LLaMA-Factory's TrainingArguments derives from transformers' class of the same name."""
    found = read_arguments(written(tmp_path, training="class TrainingArguments:\n    lr: float = 1.0\n"))
    assert found["lr"].commands == {"train"}


def test_an_installation_without_its_source_is_named(tmp_path: Path) -> None:
    """A missing package, transformers, file or class: each is an error with its place."""
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
    """Names that only the place itself knows count too; names of another command don't."""
    assert "'cutoff_len'" in str(argument_problem("cutof_len", 1, "train", installed))
    assert "'learning_rate'" in str(argument_problem("learnin_rate", 1, "train", installed))
    assert "learning_rate" not in str(argument_problem("learnin_rate", 1, "api", installed))
    assert "'start_timeout_s'" in str(argument_problem("start_timeout", 1, "api", installed, {"start_timeout_s": 0}))
    assert "did you mean" not in str(argument_problem("qqqqqqq", 1, "train", installed))


def test_a_training_argument_is_refused_by_the_server(installed: dict[str, Argument]) -> None:
    """LLaMA-Factory's api ends at once with it."""
    assert argument_problem("bf16", True, "api", installed) == "llamafactory-cli api does not take it, only train"
    assert argument_problem("temperature", 0.5, "api", installed) is None


@pytest.mark.parametrize(
    ("kinds", "value"),
    [
        ("int", 3),
        ("int", 1e5),
        ("float", 3),
        ("float", 1e-4),
        ("bool", False),
        ("str", "no"),
        ("list", [1, "a"]),
        ("dict str", {"a": 1}),
        ("dict str", "{}"),
        ("", object()),
        ("", None),
    ],
)
def test_values_of_the_declared_type_pass(kinds: str, value: object) -> None:
    """An integral float is an int, an int is a float, an unknown type is not checked."""
    assert argument_problem("x", value, "train", argument(kinds)) is None


@pytest.mark.parametrize(
    ("kinds", "value", "said"),
    [
        ("bool", "no", "expected true or false, got 'no'"),
        ("bool", 1, "expected true or false, got 1"),
        ("bool", "false", "expected true or false, got 'false'"),
        ("int", True, "expected an integer, got true"),
        ("int", 1.5, "expected an integer, got 1.5"),
        ("int", float("inf"), "expected an integer, got inf"),
        ("int", "1024", "expected an integer, got '1024'"),
        ("float", "1e-4", "expected a number, got '1e-4'"),
        ("float", True, "expected a number, got true"),
        ("int float", "x", "expected a number, got 'x'"),
        ("str", 5, 'expected text, got 5 (write it in quotes: "...")'),
        ("str", ["a"], "expected text, got ['a']"),
        ("str list", {"a": 1}, "expected text or a list, got {'a': 1}"),
        ("float", None, "expected a number, got null"),
    ],
)
def test_values_of_another_type_are_told_what_is_expected(kinds: str, value: object, said: str) -> None:
    """LLaMA-Factory keeps a text that should be a number, and fails in the middle of training."""
    assert argument_problem("x", value, "train", argument(kinds)) == said


def test_null_passes_where_it_is_declared() -> None:
    """bool | None, say."""
    assert argument_problem("x", None, "train", argument("bool", optional=True)) is None


def test_a_wrong_choice_is_told_all_and_the_nearest() -> None:
    """True is not 1, and no text is a choice by looking like one."""
    choices = argument("str", ("linear", "cosine"))
    assert argument_problem("x", "cosine", "train", choices) is None
    said = argument_problem("x", "cosin", "train", choices)
    assert said == "expected one of 'linear', 'cosine'; got 'cosin'; did you mean 'cosine'?"
    assert argument_problem("x", True, "train", argument("int", (1, 2))) is not None
    many = argument("str", tuple(f"choice_{letter}" for letter in "abcdefghijklmnop"))
    problem = str(argument_problem("x", "choice_", "train", many))
    assert problem.endswith("'choice_l', ...; got 'choice_'; did you mean 'choice_p'?")
    assert "'choice_a', 'choice_b'" in str(argument_problem("x", 7, "train", many))


@pytest.mark.parametrize(
    ("kinds", "value", "typed"),
    [("int", 1e5, 100000), ("float", 3, 3), ("int float", 1e5, 1e5), ("int float", 3, 3), ("bool", True, True)],
)
def test_typed_gives_the_declared_type(kinds: str, value: float, typed: float) -> None:
    """What LLaMA-Factory's reader would keep as it is written."""
    result = argument(kinds)["x"].typed(value)
    assert (result, type(result)) == (typed, type(typed))


def test_a_usual_training_passes(installed: dict[str, Argument]) -> None:
    """The arguments of a usual LoRA training, with their values as YAML gives them."""
    usual = {
        "stage": "sft",
        "cutoff_len": 1024,
        "max_samples": 100000,
        "preprocessing_num_workers": 16,
        "flash_attn": "auto",
        "learning_rate": 5e-05,
        "num_train_epochs": 6.0,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1,
        "logging_steps": 5,
        "warmup_steps": 0,
        "optim": "adamw_torch",
        "packing": False,
        "report_to": "none",
        "bf16": True,
        "plot_loss": True,
        "ddp_timeout": 180000000,
        "include_num_input_tokens_seen": True,
        "lora_dropout": 0,
        "lora_target": ["q_proj", "v_proj"],
        "loraplus_lr_ratio": 16,
    }
    assert {key: argument_problem(key, value, "train", installed) for key, value in usual.items()} == dict.fromkeys(
        usual
    )
