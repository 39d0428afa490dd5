"""What an output folder tells, by hand and from a real training. Run: pytest tests/test_output_folder.py."""

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.importing.importer import Draft
from orchestrator.importing.output_folder import read_output_folder
from orchestrator.specs.arguments import Argument
from tests.imported_once import Imported
from tests.workshop import CAPTIONS

# Of transformers 5.6 and peft 0.18, shortened.
CARD = (Path(__file__).parent / "data" / "model_card.md").read_text(encoding="utf-8")
ADAPTER = {
    "base_model_name_or_path": "owner/base", "peft_type": "LORA", "r": 4, "lora_alpha": 12, "lora_dropout": 0.05,
    "target_modules": ["v_proj", "q_proj"], "modules_to_save": None, "use_dora": False,
}  # fmt: skip
STATE = {"global_step": 10, "logging_steps": 2, "save_steps": 5, "train_batch_size": 2, "log_history": []}
Read = Callable[..., Draft]


@pytest.fixture
def read(tmp_path: Path, arguments: Mapping[str, Argument]) -> Read:
    def read_files(**files: Any) -> Draft:
        folder = tmp_path / "saves" / "train_1"
        folder.mkdir(parents=True)
        write(folder, files)
        return read_output_folder(folder, arguments)

    return read_files


def write(folder: Path, files: Mapping[str, Any]) -> None:
    """Files by name: '__' for '.', '___' for '/'."""
    for name, content in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())


def about(run: Draft) -> str:
    return "\n".join([*run.notes, *run.comments.tail])


def names_in_no_file(run: Draft) -> set[str]:
    lines = [line.removeprefix("# not known: ") for line in run.comments.tail]
    return {name for line in lines for name in line.partition(":")[0].split(", ")}


def test_each_argument_has_the_file_that_it_comes_from(read: Read) -> None:
    run = read(README__md=CARD, adapter_config__json=ADAPTER, trainer_state__json=STATE)
    sources = {
        "adapter_config.json": {
            "model_name_or_path": "owner/base", "finetuning_type": "lora", "lora_rank": 4, "lora_alpha": 12,
            "lora_dropout": 0.05, "use_dora": False, "lora_target": ["q_proj", "v_proj"],
        },
        "trainer_state.json": {"logging_steps": 2, "save_steps": 5, "per_device_train_batch_size": 2},
        "README.md": {
            "dataset": "one", "per_device_eval_batch_size": 3, "learning_rate": 0.0003, "seed": 7,
            "lr_scheduler_type": "cosine", "num_train_epochs": 3.0,
            "fp16": True, "optim": "adamw_torch", "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-08,
            "optim_args": "a=1",
        },
    }  # fmt: skip
    found = {key: value for values in sources.values() for key, value in values.items()}
    assert run.arguments == {**found, "do_train": True}
    assert run.comments.beside == {key: f"# from {source}" for source, values in sources.items() for key in values}
    assert {"stage", "template", "cutoff_len", "quantization_bit", "bf16"} <= names_in_no_file(run)
    assert not names_in_no_file(run) & run.arguments.keys()


def test_what_no_file_has_is_listed(read: Read) -> None:
    run = read(trainer_state__json=STATE, adapter_config__json={**ADAPTER, "peft_type": "LOHA"})
    assert run.arguments.keys() == {"model_name_or_path", "logging_steps", "save_steps", "do_train"}
    assert "finetuning_type, dataset, learning_rate, seed: in no file here" in about(run)
    assert "peft_type LOHA, whose settings were not read" in about(run)


def test_a_pickled_file_is_never_opened(read: Read, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    run = read(README__md=CARD, training_args__bin=pickle.dumps(Trap()))
    assert not (tmp_path / "sprung").exists()
    assert "training_args.bin, which is not opened" in about(run)


def test_llama_boards_training_args_are_all_that_was_given(read: Read) -> None:
    """Nothing is added from the other files, so defaults stay defaults."""
    given = {"model_name_or_path": "owner/base", "learning_rate": 5e-5, "lora_target": "all", "x": 1}
    run = read(training_args__yaml=yaml.safe_dump(given), README__md=CARD, adapter_config__json=ADAPTER)
    assert (run.arguments, run.comments.tail, run.notes) == (given, [], [])


def test_a_checkpoint_is_read_with_the_folder_around_it(tmp_path: Path, arguments: Mapping[str, Argument]) -> None:
    card = "---\nbase_model: owner/base\ntags:\n- llama-factory\n---\n# Model Card for Model ID\n"
    files = {"adapter_config__json": ADAPTER, "trainer_state__json": {**STATE, "logging_steps": 3}, "README__md": card}
    write(tmp_path / "checkpoint-5", files)
    write(tmp_path, {"README__md": CARD, "trainer_log__jsonl": "", "trainer_state__json": STATE})
    run = read_output_folder(tmp_path / "checkpoint-5", arguments)
    assert (run.arguments["logging_steps"], run.comments.beside["logging_steps"]) == (3, "# from trainer_state.json")
    assert (run.arguments["seed"], run.comments.beside["seed"]) == (7, "# from ../README.md")
    (tmp_path / "trainer_log.jsonl").unlink()
    (tmp_path / "trainer_state.json").unlink()
    alone = read_output_folder(tmp_path / "checkpoint-5", arguments)
    assert "seed" not in alone.arguments, "the README.md of a folder that is no training's is another's"


def test_a_training_that_was_cut_short_is_read_from_its_newest_checkpoint(read: Read) -> None:
    older, newer = {**ADAPTER, "r": 1}, {**ADAPTER, "r": 2}
    files = {"checkpoint-9___adapter_config__json": older, "checkpoint-10___adapter_config__json": newer}
    run = read(trainer_log__jsonl="", checkpoint_="", **files)
    assert run.arguments["lora_rank"] == 2
    assert run.comments.beside["lora_rank"] == "# from checkpoint-10/adapter_config.json"


def test_several_devices_become_processes(read: Read) -> None:
    run = read(README__md=CARD.replace("- seed: 7", "- distributed_type: multi-GPU\n- num_devices: 4\n- seed: 7"))
    assert run.environment == {"NPROC_PER_NODE": "4"} and "trained with 4 processes" in about(run)


def test_another_programs_folder_gives_no_batch_size_and_no_dataset(read: Read) -> None:
    """Its train_batch_size may be that of several devices of one process."""
    run = read(README__md=CARD.replace("- llama-factory\n", ""), adapter_config__json=ADAPTER)
    assert not {"per_device_train_batch_size", "dataset"} & run.arguments.keys()
    assert "nothing here shows that LLaMA-Factory made it" in about(run)


def test_the_first_file_is_believed_and_a_difference_is_said(read: Read) -> None:
    adapter = {**ADAPTER, "base_model_name_or_path": "mine"}
    run = read(adapter_config__json=adapter, README__md=CARD, llamaboard_config__yaml="top.model_name: x\n")
    assert run.arguments["model_name_or_path"] == "mine"
    assert "model_name_or_path: adapter_config.json has 'mine', but README.md has 'owner/base'" in about(run)
    assert "llamaboard_config.yaml, a form of LLaMA Board, was not read" in run.notes


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("of [a](https://huggingface.co/a) on the one dataset.", "one"),
        ("of [a](https://huggingface.co/a) on the one and the two datasets.", ["one", "two"]),
        ("of [a](https://huggingface.co/a) on the one, the two and the three datasets.", ["one", "two", "three"]),
        ("of [a](https://huggingface.co/a) on an unknown dataset.", None),
        ("of [/m (1) on x](https://huggingface.co//m (1) on x) on the one dataset.", "one"),
        ("of [a", None),
    ],
)
def test_the_datasets_are_those_of_the_cards_sentence(sentence: str, expected: Any, read: Read) -> None:
    old = "of [owner/base](https://huggingface.co/owner/base) on the one dataset."
    assert read(README__md=CARD.replace(old, sentence)).arguments.get("dataset") == expected


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("learning_rate: 0.0003", "learning_rate: fast", "learning_rate"),
        ("learning_rate: 0.0003", "learning_rate: nan", "learning_rate"),
        ("seed: 7", "seed: 7.5", "seed"),
        ("seed: 7", f"seed: {'7' * 5000}", "seed"),
        ("lr_scheduler_type: cosine", "lr_scheduler_type: cosinus", "lr_scheduler_type"),
        ("OptimizerNames.ADAMW_TORCH", "OptimizerNames.MAGIC", "optim"),
        ("optimizer_args=a=1", "optimizer_args=\x1b[31m", "optim_args"),
    ],
)
def test_a_value_that_does_not_fit_is_dropped_and_noted(read: Read, old: str, new: str, name: str) -> None:
    run = read(README__md=CARD.replace(old, new))
    assert name not in run.arguments
    (note,) = [note for note in run.notes if note.startswith(f"README.md has {name}: ")]
    assert "not taken over" in note and note.isprintable() and len(note) < 500


HOSTILE = {
    "adapter_config__json": [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"r": {}, "peft_type": {}}', b"{}" * 2,
                             b'{"peft_type": "LORA", "target_modules": [1, {}]}'],
    "trainer_state__json": [b'{"train_batch_size": "2"}', b'{"logging_steps": ' + b"9" * 6000 + b"}", b"NaN"],
    "README__md": [
        b"---\n" + b"[" * 5000 + b"\n---\n",
        b"---\na: &a [x]\nb: &b [*a, *a]\ntags: *b\nbase_model: *a\n---\n",
        b"---\ntags: !!python/object/apply:os.mkdir [sprung]\n---\n",
        b"---\nno end",
        b"The following hyperparameters were used during training:\n- optimizer: Use a with betas=(" + b"a" * 1_000_000,
        b"This model is a fine-tuned version of [" + b") on the " * 100_000,
    ],
    "training_args__yaml": [b"[", b"", b"- 1", b"a: &a [x]\nb: [*a", b"a: ${b}"],
}  # fmt: skip


@pytest.mark.timeout(60)  # were one of these quadratic, it would be minutes
@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, contents in HOSTILE.items() for content in contents]
)
def test_a_broken_or_hostile_file_leaves_the_others_readable(read: Read, name: str, content: bytes) -> None:
    good = {"README__md": CARD} if name != "README__md" else {"adapter_config__json": ADAPTER}
    run = read(**good, **{name: content}, trainer_log__jsonl="")
    assert run.arguments["model_name_or_path"] == "owner/base"
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    "files", [{}, {"notes__txt": "x"}, {"config__json": {"model_type": "llama"}}, {"README__md": "# A project\n"}]
)
def test_a_folder_that_tells_of_no_training_is_refused(read: Read, files: Any) -> None:
    with pytest.raises(SpecError, match=r"train_1 has no training_args\.yaml, adapter_config\.json"):
        read(**files)


def test_a_folder_of_our_own_run_leads_to_rerun(tmp_path: Path, arguments: Mapping[str, Argument]) -> None:
    run = tmp_path / "runs" / "demo-20261124-101500"
    write(run, {"record__json": {}, "spec__yaml": "", "output___checkpoint-5___trainer_state__json": STATE})
    write(run, {"benchmarks___a___adapter_config__json": ADAPTER})
    for folder in (run, run / "output", run / "output" / "checkpoint-5"):
        with pytest.raises(SpecError, match="belongs to the run demo-20261124-101500") as error:
            read_output_folder(folder, arguments)
        assert "orchestrator rerun demo-20261124-101500" in error.value.remedy
    assert read_output_folder(run / "benchmarks" / "a", arguments).arguments["lora_rank"] == 4


GIVEN: dict[str, Any] = {
    "do_train": True, "template": "chatml", "cutoff_len": 96, "max_samples": 40, "report_to": "none", "use_cpu": True,
    "learning_rate": 3.0e-4, "seed": 7, "logging_steps": 2, "save_steps": 3, "per_device_train_batch_size": 2,
    "lr_scheduler_type": "cosine", "stage": "sft", "finetuning_type": "lora", "dataset": "pairs,more", "lora_rank": 4,
    "lora_alpha": 12, "lora_dropout": 0.05, "lora_target": "v_proj,q_proj", "additional_target": "embed_tokens",
    "use_rslora": True, "max_steps": 4, "gradient_accumulation_steps": 3, "warmup_steps": 2, "val_size": 0.2,
    "per_device_eval_batch_size": 3, "adam_beta2": 0.98, "dataset_dir": "data", "output_dir": "out",
}  # fmt: skip
# Given, and of no weight for what comes out; or clear from the folder's being there.
OF_NO_WEIGHT = {"do_train", "output_dir", "report_to", "use_cpu"}


@pytest.mark.integration
def test_of_a_real_training_what_is_claimed_was_given_or_the_default_and_the_rest_is_named(
    tmp_path: Path, tiny_model: Path, llamafactory: Imported, arguments: Mapping[str, Argument]
) -> None:
    pairs = [
        {"instruction": line, "input": "", "output": line.upper()}
        for line in (CAPTIONS / "train.en").read_text().splitlines()[:60]
    ]
    info = {"pairs": {"file_name": "pairs.json"}, "more": {"file_name": "pairs.json"}}
    write(tmp_path / "data", {"pairs__json": pairs, "dataset_info__json": info})
    given = {**GIVEN, "model_name_or_path": str(tiny_model)}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(given))
    done = llamafactory.cli("train", "sft.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for within in ("", "checkpoint-3"):
        run = read_output_folder(tmp_path / "out" / within, arguments)
        for key, value in run.arguments.items():
            expected = given.get(key, arguments[key].default)
            assert plain(value) == plain(expected), f"{key} is {value!r}, was {expected!r}"
        assert given.keys() - run.arguments.keys() <= names_in_no_file(run) | OF_NO_WEIGHT
        assert len(run.arguments) >= 16


def plain(value: Any) -> Any:
    """Text with commas as LLaMA-Factory reads it; the order of modules means nothing."""
    items = value.split(",") if isinstance(value, str) else value
    return sorted(items) if isinstance(items, list) else items
