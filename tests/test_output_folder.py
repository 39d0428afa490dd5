"""What an output folder tells, by hand and from real trainings. Run: pytest tests/test_output_folder.py."""

import ast
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.importing.model_card import read_card, read_optimizer
from orchestrator.importing.output_files import MAX_STATE_BYTES, MAX_TEXT_BYTES
from orchestrator.importing.output_folder import FolderRun, read_output_folder
from orchestrator.specs.arguments import Argument
from orchestrator.upstream.installation import find_installation
from tests.imported_once import Imported
from tests.workshop import CAPTIONS

# Of transformers 5.6 and peft 0.18, shortened.
CARD = """---
library_name: peft
license: other
base_model: owner/base
tags:
- base_model:adapter:owner/base
- llama-factory
- lora
- transformers
---

# train_1

This model is a fine-tuned version of [owner/base](https://huggingface.co/owner/base) on the one dataset.

## Training procedure

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 0.0003
- train_batch_size: 2
- eval_batch_size: 3
- seed: 7
- optimizer: Use OptimizerNames.PAGED_ADAMW with betas=(0.9,0.95) and epsilon=1e-08 and optimizer_args=a=1
- lr_scheduler_type: cosine
- num_epochs: 3.0
- mixed_precision_training: Native AMP

### Training results



### Framework versions

- PEFT 0.18.1
- Transformers 5.6.0
"""
ADAPTER = {
    "base_model_name_or_path": "owner/base",
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 12,
    "lora_dropout": 0.05,
    "target_modules": ["v_proj", "q_proj"],
    "modules_to_save": None,
    "use_dora": False,
    "init_lora_weights": True,
}
STATE = {
    "global_step": 10,
    "max_steps": 10,
    "num_train_epochs": 3,
    "logging_steps": 2,
    "save_steps": 5,
    "eval_steps": 500,
    "train_batch_size": 2,
    "log_history": [{"loss": 1.0, "step": 2}, {"loss": 0.5, "step": 4}],
}


@pytest.fixture
def read(tmp_path: Path, arguments: Mapping[str, Argument]) -> Any:
    def read_files(**files: Any) -> FolderRun:
        """Files by name, '__' for '.', '___' for '/', in a new folder."""
        folder = tmp_path / "saves" / "train_1"
        folder.mkdir(parents=True)
        write(folder, files)
        return read_output_folder(folder, arguments)

    return read_files


def write(folder: Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())


def about(run: FolderRun) -> str:
    return "\n".join([*run.notes, *run.unknown])


def test_each_argument_has_the_file_that_it_comes_from(read: Any) -> None:
    run = read(README__md=CARD, adapter_config__json=ADAPTER, trainer_state__json=STATE)
    assert run.arguments == {
        "model_name_or_path": "owner/base",
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.05,
        "use_dora": False,
        "lora_target": ["q_proj", "v_proj"],
        "logging_steps": 2,
        "save_steps": 5,
        "per_device_train_batch_size": 2,
        "dataset": "one",
        "learning_rate": 0.0003,
        "seed": 7,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 3.0,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0,
        "fp16": True,
        "per_device_eval_batch_size": 3,
        "optim": "paged_adamw_32bit",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-08,
        "optim_args": "a=1",
    }
    assert run.sources.keys() == run.arguments.keys()
    assert {run.sources[name] for name in ("lora_rank", "model_name_or_path")} == {"adapter_config.json"}
    assert run.sources["logging_steps"] == "trainer_state.json" and run.sources["seed"] == "README.md"
    assert run.own_run is None and run.num_devices is None and not run.is_whole
    named = {name for line in run.unknown for name in line.partition(":")[0].split(", ")}
    assert {"stage", "template", "cutoff_len", "quantization_bit", "dataset_dir", "weight_decay"} <= named
    assert not named & (run.arguments.keys() | {"bf16"})
    assert "PEFT 0.18.1, Transformers 5.6.0" in about(run)


def test_a_pickled_file_is_never_opened(read: Any, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    run = read(README__md=CARD, training_args__bin=pickle.dumps(Trap()))
    assert not (tmp_path / "sprung").exists()
    assert "training_args.bin was not opened" in about(run)


def test_llama_boards_training_args_say_all_that_was_given(read: Any) -> None:
    """Nothing is added from the other files, so defaults stay defaults; what they say otherwise is noted."""
    given = {"model_name_or_path": "owner/base", "learning_rate": 5e-5, "lora_target": "all", "dataset": "one", "x": 1}
    run = read(training_args__yaml=yaml.safe_dump(given), README__md=CARD, adapter_config__json=ADAPTER)
    assert run.arguments == given and run.unknown == []
    assert set(run.sources.values()) == {"training_args.yaml"}
    assert [note for note in run.notes if "but" in note] == [
        "learning_rate: training_args.yaml has 5e-05, but README.md has 0.0003: the first is taken"
    ]


def test_what_llama_board_ran_has_its_environment_and_no_secret(read: Any) -> None:
    given = {"do_predict": True, "deepspeed": "llamaboard_cache/ds_z3_config.json", "swanlab_api_key": "sw-1234"}
    run = read(training_args__yaml=yaml.safe_dump(given))
    assert run.arguments == {"do_predict": True, "deepspeed": "llamaboard_cache/ds_z3_config.json"} and run.is_whole
    assert run.environment == {"FORCE_TORCHRUN": "1"}
    assert "1234" not in repr(run) and "swanlab_api_key, a secret" in about(run)


def test_llama_boards_form_is_read_where_its_arguments_are_missing(
    tmp_path: Path, arguments: Mapping[str, Argument]
) -> None:
    form = {
        "top.model_name": "Custom",
        "top.finetuning_type": "full",
        "train.training_stage": "Pre-Training",
        "train.dataset": ["one"],
        "train.learning_rate": "5e-5",
    }
    write(tmp_path, {"llamaboard_config__yaml": yaml.safe_dump(form), "README__md": CARD})
    write(tmp_path, {"llamaboard_cache___user_config__yaml": "path_dict: {}"})
    run = read_output_folder(tmp_path, arguments, find_installation())
    assert {"stage": "pt", "learning_rate": 5e-5, "dataset": "one"}.items() <= run.arguments.items()
    assert run.arguments["model_name_or_path"] == "owner/base" and run.sources["model_name_or_path"] == "README.md"
    assert "seed" not in run.arguments
    without = read_output_folder(tmp_path, arguments)
    assert "import it itself" in about(without) and without.arguments["seed"] == 7


def test_a_checkpoint_is_read_with_the_folder_around_it(tmp_path: Path, arguments: Mapping[str, Argument]) -> None:
    card = "---\nbase_model: owner/base\ntags:\n- llama-factory\n---\n# Model Card for Model ID\n"
    files = {"adapter_config__json": ADAPTER, "trainer_state__json": {**STATE, "logging_steps": 3}, "README__md": card}
    write(tmp_path / "checkpoint-5", files)
    write(tmp_path, {"README__md": CARD, "trainer_log__jsonl": "", "trainer_state__json": STATE})
    run = read_output_folder(tmp_path / "checkpoint-5", arguments)
    assert (run.arguments["logging_steps"], run.sources["logging_steps"]) == (3, "trainer_state.json")
    assert (run.arguments["seed"], run.sources["seed"]) == (7, "../README.md")
    (tmp_path / "trainer_log.jsonl").unlink()
    (tmp_path / "trainer_state.json").unlink()
    alone = read_output_folder(tmp_path / "checkpoint-5", arguments)
    assert "seed" not in alone.arguments, "the README.md of a folder that is no training's is another's"
    assert "num_train_epochs, max_steps" in about(alone) and "10 steps" in about(alone)


def test_a_training_that_was_cut_short_is_read_from_its_newest_checkpoint(read: Any) -> None:
    older, newer = {**ADAPTER, "r": 1}, {**ADAPTER, "r": 2}
    run = read(
        trainer_log__jsonl="", checkpoint_="", **{
            "checkpoint-9___adapter_config__json": older, "checkpoint-10___adapter_config__json": newer,
        },
    )  # fmt: skip
    assert run.arguments["lora_rank"] == 2 and run.sources["lora_rank"] == "checkpoint-10/adapter_config.json"


@pytest.mark.parametrize(
    ("entry", "files", "expected"),
    [
        ({"loss": 1, "rewards/accuracies": 0.5}, {}, {"stage": "dpo"}),
        ({"loss": 1, "rewards/accuracies": 1, "odds_ratio_loss": 1}, {}, {"stage": "dpo", "pref_loss": "orpo"}),
        ({"loss": 1, "rewards/chosen": 1, "kl": 0.0}, {}, {"stage": "kto"}),
        ({"loss": 1, "reward": 0.1}, {"value_head__safetensors": b""}, {"stage": "ppo"}),
        ({"loss": 1}, {"value_head__bin": b""}, {"stage": "rm"}),
        ({"loss": 1}, {"all_results__json": {"eval_perplexity": 2.0}}, {"stage": "pt"}),
        ({"loss": 1}, {}, {}),
    ],
)
def test_the_stage_is_what_only_it_leaves(read: Any, entry: Any, files: Any, expected: Any) -> None:
    run = read(README__md=CARD, trainer_state__json={**STATE, "log_history": [entry]}, **files)
    assert {name: run.arguments[name] for name in ("stage", "pref_loss") if name in run.arguments} == expected
    assert any(line.startswith("stage: sft or pt") for line in run.unknown) is (not expected)


def test_the_steps_of_a_ppo_are_not_believed(read: Any) -> None:
    """Its own loop leaves transformers' defaults there."""
    run = read(README__md=CARD, trainer_state__json={**STATE, "log_history": [{"reward": 0.1}]})
    assert "logging_steps" not in run.arguments and "reward_model" in about(run)


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [
        ([4, 8], [0.4, 0.8], {"eval_strategy": "steps", "eval_steps": 4}),
        ([3, 6, 9], [1.0, 2.0, 3.0], {"eval_strategy": "epoch"}),
        ([3, 7], [0.3, 0.7], {}),
        ([], [], {}),
    ],
)
def test_evaluations_at_regular_steps_or_epochs_tell_the_strategy(
    read: Any, steps: Any, epochs: Any, expected: Any
) -> None:
    history = [{"eval_loss": 1.0, "step": step, "epoch": epoch} for step, epoch in zip(steps, epochs, strict=True)]
    run = read(README__md=CARD, trainer_state__json={**STATE, "eval_steps": 4, "log_history": history})
    assert {name: run.arguments[name] for name in run.arguments if name.startswith("eval_s")} == expected
    assert ("val_size" in about(run)) is bool(steps)


def test_early_stopping_is_in_the_state(read: Any) -> None:
    callback = {"args": {"early_stopping_patience": 3, "early_stopping_threshold": 0.0}}
    run = read(trainer_state__json={**STATE, "stateful_callbacks": {"EarlyStoppingCallback": callback}})
    assert run.arguments["early_stopping_steps"] == 3


def test_several_devices_are_told_of_and_batch_sizes_stay_a_devices(read: Any) -> None:
    listed = "- distributed_type: multi-GPU\n- num_devices: 4\n- total_train_batch_size: 8\n- seed: 7"
    run = read(README__md=CARD.replace("- seed: 7", listed))
    assert run.num_devices == 4 and run.arguments["per_device_train_batch_size"] == 2
    assert "4 processes (multi-GPU)" in about(run) and "deepspeed, fsdp" in about(run)


def test_another_programs_folder_gives_no_batch_size_and_no_dataset(read: Any) -> None:
    """Its train_batch_size may be that of several devices of one process."""
    run = read(README__md=CARD.replace("- llama-factory\n", ""), adapter_config__json=ADAPTER)
    assert not {"per_device_train_batch_size", "dataset"} & run.arguments.keys()
    assert "per_device_train_batch_size: 2 of README.md" in about(run)
    assert "nothing here says that LLaMA-Factory made it" in about(run)


def test_adapters_of_other_kinds(read: Any, tmp_path: Path, arguments: Mapping[str, Argument]) -> None:
    oft = {"peft_type": "OFT", "r": 0, "oft_block_size": 16, "module_dropout": 0.1, "target_modules": "model.*proj"}
    run = read(adapter_config__json={**oft, "base_model_name_or_path": "b"}, pissa_converted___x="")
    assert run.arguments == {
        "model_name_or_path": "b",
        "finetuning_type": "oft",
        "oft_rank": 0,
        "oft_block_size": 16,
        "module_dropout": 0.1,
    }
    assert "lora_target: adapter_config.json has a pattern" in about(run)
    pissa = {**ADAPTER, "init_lora_weights": "pissa_niter_16", "target_modules": ["model.layers.1.q"]}
    write(tmp_path / "p", {"adapter_config__json": pissa, "pissa_converted___x": ""})
    run = read_output_folder(tmp_path / "p", arguments)
    assert {"pissa_init": True, "pissa_iter": 16, "pissa_convert": True}.items() <= run.arguments.items()
    assert "use_llama_pro" in about(run)
    write(tmp_path / "o", {"adapter_config__json": {**ADAPTER, "peft_type": "LOHA"}})
    run = read_output_folder(tmp_path / "o", arguments)
    assert run.arguments == {"model_name_or_path": "owner/base"} and "peft_type LOHA" in about(run)


def test_a_card_of_old_versions_is_read_too(read: Any) -> None:
    """Python 3.10 wrote the optimizer's value, transformers 4.40 no name, peft 0.9 the quantization."""
    quantized = (
        "The following `bitsandbytes` quantization config was used during training:\n"
        "- load_in_8bit: False\n- load_in_4bit: True\n"
        "- bnb_4bit_quant_type: fp4\n- bnb_4bit_use_double_quant: False\n\n"
    )
    card = CARD.replace("### Training hyperparameters", quantized + "### Training hyperparameters")
    card = card.replace("OptimizerNames.PAGED_ADAMW", "adamw_torch").replace(
        "- num_epochs", "- lr_scheduler_warmup_ratio: 0.1\n- num_epochs"
    )
    run = read(README__md=card, adapter_config__json=ADAPTER)
    expected = {
        "optim": "adamw_torch",
        "warmup_ratio": 0.1,
        "quantization_bit": 4,
        "quantization_type": "fp4",
        "double_quantization": False,
    }
    assert expected.items() <= run.arguments.items() and "warmup_steps" not in run.arguments
    assert "quantization_bit" not in "".join(run.unknown)
    assert read_optimizer("Adam with betas=(0.9,0.999) and epsilon=1e-08").name == ""  # type: ignore[union-attr]
    nameless = read_card(
        CARD.replace("Use OptimizerNames.PAGED_ADAMW with", "Adam with").replace(" and optimizer_args=a=1", "")
    )
    assert nameless.hyperparameters["optimizer"].startswith("Adam with")


def test_every_optimizer_of_the_installed_transformers_is_known_by_its_members_name() -> None:
    source = find_installation().training_args
    assert source is not None
    (names,) = [
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "OptimizerNames"
    ]
    members = {
        each.targets[0].id: each.value.value
        for each in names.body
        if isinstance(each, ast.Assign)
        and isinstance(each.targets[0], ast.Name)
        and isinstance(each.value, ast.Constant)
    }
    assert len(members) > 30
    for member, value in members.items():
        for written in (f"OptimizerNames.{member}", value):
            found = read_optimizer(f"Use {written} and the args are:\nNo additional optimizer arguments")
            assert found is not None and (found.name, found.args) == (value, None)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("of [a](https://huggingface.co/a) on the one dataset.", ("one",)),
        ("of [a](https://huggingface.co/a) on the one and the two datasets.", ("one", "two")),
        ("of [a](https://huggingface.co/a) on the one, the two and the three datasets.", ("one", "two", "three")),
        ("of [a](https://huggingface.co/a) on the one and the two dataset.", ("one and the two",)),
        ("of [a](https://huggingface.co/a) on an unknown dataset.", ()),
        ("of [/m (1) on x](https://huggingface.co//m (1) on x) on the one dataset.", ("one",)),
        ("of [a", ()),
    ],
)
def test_the_datasets_are_those_of_the_cards_sentence(sentence: str, expected: tuple[str, ...]) -> None:
    assert read_card(f"---\na: 1\n---\nThis model is a fine-tuned version {sentence}\n").datasets == expected


def test_the_base_model_of_a_full_training_is_the_cards_or_the_configs(
    tmp_path: Path, arguments: Mapping[str, Argument]
) -> None:
    card = CARD.replace("base_model: owner/base\n", "").replace("- lora\n", "- full\n")
    write(tmp_path / "a", {"README__md": card, "config__json": {"_name_or_path": "other"}})
    run = read_output_folder(tmp_path / "a", arguments)
    assert (run.arguments["model_name_or_path"], run.arguments["finetuning_type"]) == ("owner/base", "full")
    write(tmp_path / "b", {"trainer_state__json": STATE, "config__json": {"_name_or_path": "other"}})
    run = read_output_folder(tmp_path / "b", arguments)
    assert (run.arguments["model_name_or_path"], run.sources["model_name_or_path"]) == ("other", "config.json")


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("learning_rate: 0.0003", "learning_rate: fast", "learning_rate"),
        ("learning_rate: 0.0003", "learning_rate: nan", "learning_rate"),
        ("seed: 7", "seed: 7.5", "seed"),
        ("seed: 7", f"seed: {'7' * 5000}", "seed"),
        ("lr_scheduler_type: cosine", "lr_scheduler_type: cosinus", "lr_scheduler_type"),
        ("OptimizerNames.PAGED_ADAMW", "OptimizerNames.MAGIC", "optim"),
        ("optimizer_args=a=1", "optimizer_args=\x1b[31m", "optim_args"),
    ],
)
def test_a_value_that_does_not_fit_is_dropped_and_noted(read: Any, old: str, new: str, name: str) -> None:
    run = read(README__md=CARD.replace(old, new))
    assert name not in run.arguments
    (note,) = [note for note in run.notes if note.startswith(f"README.md has {name}: ")]
    assert "not taken over" in note and note.isprintable() and len(note) < 500


HOSTILE = {
    "adapter_config__json": [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"r": {}, "peft_type": {}}', b"{}" * 2],
    "trainer_state__json": [
        b'{"log_history": {"a": 1}}',
        b'{"log_history": [1, null, {"eval_loss": 1, "step": [1], "epoch": []}]}',
        b'{"log_history": [{"eval_loss": 1, "step": 4, "epoch": NaN}], "eval_steps": 1e400, "global_step": true}',
        b'{"log_history": [{"eval_loss": 1, "step": 4}], "eval_steps": 0, "global_step": 5}',
        b'{"stateful_callbacks": {"EarlyStoppingCallback": [{"args": 1}]}, "train_batch_size": "2"}',
        b'{"logging_steps": ' + b"9" * 6000 + b"}",
    ],
    "README__md": [
        b"---\n" + b"[" * 5000 + b"\n---\n",
        b"---\na: &a [x]\nb: &b [*a, *a]\ntags: *b\nbase_model: *a\n---\n",
        b"---\nbase_model: 2024-13-45\ntags: {a: b}\n---\n",
        b"---\ntags: !!python/object/apply:os.mkdir [sprung]\n---\n",
        b"---\nno end",
        b"The following hyperparameters were used during training:\n" + b"- optimizer: a:\nx\n" * 1000,
        b"This model is a fine-tuned version of [" + b") on " * 100_000,
    ],
    "training_args__yaml": [b"[", b"", b"- 1", b"a: &a [x]\nb: [*a", b"a: ${b}"],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, contents in HOSTILE.items() for content in contents]
)
def test_a_broken_or_hostile_file_leaves_the_others_readable(read: Any, name: str, content: bytes) -> None:
    good = {"README__md": CARD} if name != "README__md" else {"adapter_config__json": ADAPTER}
    run = read(**good, **{name: content})
    assert run.arguments["model_name_or_path"] == "owner/base"
    assert not Path("sprung").exists()


@pytest.mark.parametrize(("name", "limit"), [("README__md", MAX_TEXT_BYTES), ("trainer_state__json", MAX_STATE_BYTES)])
def test_a_huge_file_is_not_read(read: Any, name: str, limit: int) -> None:
    run = read(adapter_config__json=ADAPTER, **{name: b" " * (limit + 1)})
    assert f"{name.replace('__', '.')} was not read: it has more than {limit:,} bytes" in run.notes


def test_a_named_pipe_does_not_block(tmp_path: Path, arguments: Mapping[str, Argument]) -> None:
    write(tmp_path, {"adapter_config__json": ADAPTER})
    os.mkfifo(tmp_path / "README.md")
    assert read_output_folder(tmp_path, arguments).arguments["lora_rank"] == 4


@pytest.mark.parametrize("line", ["- optimizer: Use a with betas=(", "- optimizer: Use ", "- a"])
def test_a_long_line_of_a_card_is_done_with(line: str) -> None:
    """An expression that tried every split of a megabyte would not come to an end within a test's time."""
    text = "The following hyperparameters were used during training:\n"
    card = read_card(text + line + "a" * (MAX_TEXT_BYTES - 200) + ":\nx\n" + "(,) and " * 10)
    assert len(card.hyperparameters) == 1
    assert read_optimizer(card.hyperparameters.get("optimizer", "")) is None


@pytest.mark.parametrize(
    "files", [{}, {"notes__txt": "x"}, {"config__json": {"model_type": "llama"}}, {"README__md": "# A project\n"}]
)
def test_a_folder_that_tells_of_no_training_is_refused(read: Any, files: Any) -> None:
    with pytest.raises(SpecError) as error:
        read(**files)
    assert "adapter_config.json" in error.value.message and "train_1" in error.value.message


def test_what_is_no_folder_is_refused(tmp_path: Path, arguments: Mapping[str, Argument]) -> None:
    with pytest.raises(SpecError, match="is no folder"):
        read_output_folder(tmp_path / "gone", arguments)


def test_a_folder_of_our_own_run_is_named_as_such(tmp_path: Path, arguments: Mapping[str, Argument]) -> None:
    run = tmp_path / "runs" / "demo-20261124-101500"
    write(run, {"record__json": {}, "spec__yaml": "", "output___checkpoint-5___trainer_state__json": STATE})
    write(run, {"export___config__json": {}, "benchmarks___a___adapter_config__json": ADAPTER})
    for folder in (run, run / "output", run / "output" / "checkpoint-5", run / "export"):
        found = read_output_folder(folder, arguments)
        assert found.own_run == run and found.arguments == {} and "has everything" in found.notes[0]
    assert read_output_folder(run / "benchmarks" / "a", arguments).own_run is None


# Real trainings

DATA = {
    "pairs": {"file_name": "pairs.json"},
    "more": {"file_name": "pairs.json"},
    "better": {
        "file_name": "better.json",
        "ranking": True,
        "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"},
    },
}
COMMON: dict[str, Any] = {
    "do_train": True,
    "template": "chatml",
    "cutoff_len": 96,
    "max_samples": 40,
    "report_to": "none",
    "use_cpu": True,
    "learning_rate": 3.0e-4,
    "seed": 7,
    "logging_steps": 2,
    "save_steps": 3,
    "per_device_train_batch_size": 2,
    "lr_scheduler_type": "cosine",
}
REAL: dict[str, dict[str, Any]] = {
    "lora": {
        **COMMON,
        "stage": "sft",
        "finetuning_type": "lora",
        "dataset": "pairs,more",
        "lora_rank": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.05,
        "lora_target": "v_proj,q_proj",
        "additional_target": "embed_tokens",
        "use_rslora": True,
        "max_steps": 4,
        "gradient_accumulation_steps": 3,
        "warmup_steps": 2,
        "val_size": 0.2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 3,
        "adam_beta2": 0.98,
        "plot_loss": True,
    },
    "dpo in full": {
        **COMMON,
        "stage": "dpo",
        "pref_loss": "orpo",
        "finetuning_type": "full",
        "dataset": "better",
        "num_train_epochs": 0.5,
        "optim": "adafactor",
        "warmup_steps": 0.25,
        "label_smoothing_factor": 0.1,
        "max_grad_norm": 0.5,
    },
}
# Given, and of no weight for what comes out; or said by the folder's being there.
OF_NO_WEIGHT = {"do_train", "output_dir", "report_to", "use_cpu"}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, llamafactory: Imported
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder with an output folder for each training, and what each was given."""
    place = tmp_path_factory.mktemp("trained")
    lines = (CAPTIONS / "train.en").read_text().splitlines()[:60]
    pairs = [{"instruction": line, "input": "", "output": line.upper()} for line in lines]
    better = [{"instruction": line, "input": "", "chosen": line.upper(), "rejected": line} for line in lines]
    write(place / "data", {"pairs__json": pairs, "better__json": better, "dataset_info__json": DATA})
    given = {}
    for name, values in REAL.items():
        given[name] = {
            "model_name_or_path": str(tiny_model), "dataset_dir": "data", "output_dir": f"out/{name}", **values
        }  # fmt: skip
        (place / f"{name}.yaml").write_text(yaml.safe_dump(given[name]))
        done = llamafactory.cli("train", f"{name}.yaml", cwd=place)
        assert done.returncode == 0, done.stderr[-3000:]
    return place / "out", given


def plain(value: Any) -> Any:
    """Text with commas as LLaMA-Factory reads it; the order of modules means nothing."""
    items = value.split(",") if isinstance(value, str) else value
    return sorted(items) if isinstance(items, list) else items


@pytest.mark.integration
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("within", ["", "checkpoint-3"])
def test_what_is_claimed_is_what_was_given_or_the_default(
    trained: tuple[Path, dict[str, dict[str, Any]]], arguments: Mapping[str, Argument], name: str, within: str
) -> None:
    out, given = trained
    run = read_output_folder(out / name / within, arguments)
    for key, value in run.arguments.items():
        expected = given[name].get(key, arguments[key].default)
        assert plain(value) == plain(expected), f"{key} is {value!r}, was {expected!r}, from {run.sources[key]}"
    named = {each for line in run.unknown for each in line.partition(":")[0].split(", ")}
    assert given[name].keys() - run.arguments.keys() <= named | OF_NO_WEIGHT
    assert len(run.arguments) >= 16


@pytest.mark.integration
def test_what_a_real_training_does_not_tell_is_named(
    trained: tuple[Path, dict[str, dict[str, Any]]], arguments: Mapping[str, Argument]
) -> None:
    lora, full = (read_output_folder(trained[0] / name, arguments) for name in REAL)
    assert any(line.startswith("stage: sft or pt") for line in lora.unknown)
    assert lora.arguments["dataset"] == ["pairs", "more"]
    assert (full.arguments["stage"], full.arguments["pref_loss"]) == ("dpo", "orpo")
    assert "training_args.bin was not opened" in about(lora)
    assert "nothing here says that LLaMA-Factory made it" not in about(lora) + about(full)
