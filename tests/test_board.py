"""LLaMA Board's saved forms, by hand and from the real page. Run: pytest tests/test_board.py (-m "not integration")."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.importing.board import BoardRun, find_user_config, is_board_config, read_board
from orchestrator.importing.config_file import read_config
from orchestrator.upstream.installation import Installation, find_installation
from tests.imported_once import Imported

MODELS = """
register_model_group(
    models={
        "Tiny-1B-Chat": {DownloadSource.DEFAULT: "Owner/Tiny", DownloadSource.MODELSCOPE: "Other/Tiny"},
        "Only-Here": {DownloadSource.MODELSCOPE: "Other/Only"},
    },
    template="plain",
)
register_model_group(models={"Eye-2B": {DownloadSource.DEFAULT: "Owner/Eye"}}, template="plain", multimodal=True)
"""
FORM: dict[str, Any] = {
    "top.model_name": "Tiny-1B-Chat",
    "top.finetuning_type": "lora",
    "top.checkpoint_path": [],
    "top.quantization_bit": "none",
    "top.quantization_method": "bnb",
    "top.template": "plain",
    "top.rope_scaling": "none",
    "top.booster": "auto",
    "train.training_stage": "Supervised Fine-Tuning",
    "train.dataset_dir": "data",
    "train.dataset": ["one", "two"],
    "train.learning_rate": "5e-5",
    "train.num_train_epochs": "3.0",
    "train.max_samples": "100000",
    "train.batch_size": 2,
    "train.save_steps": 100,
    "train.val_size": 0,
    "train.compute_type": "bf16",
    "train.extra_args": '{"optim": "adamw_torch"}',
    "train.lora_rank": 8,
    "train.lora_target": "",
    "train.ds_stage": "none",
    "train.ds_offload": False,
}


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    constants = tmp_path / "llamafactory" / "extras" / "constants.py"
    constants.parent.mkdir(parents=True)
    constants.write_text(MODELS)
    return Installation(tmp_path / "cli", Path(sys.executable), tmp_path / "llamafactory", None, {}, "3.11.0")


@pytest.fixture
def read(installation: Installation) -> Any:
    def read_form(user_config: dict[str, Any] | None = None, **fields: Any) -> BoardRun:
        changed = {key.replace("__", "."): value for key, value in fields.items()}
        return read_board({**FORM, **changed}, installation, user_config)

    return read_form


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (FORM, True),
        ({"top.model_name": "x", "eval.dataset": []}, True),
        ({"model_name_or_path": "x", "stage": "sft"}, False),
        ({"name": "x", "model": {}, "train": {"stage": "sft"}}, False),
        ({}, False),
    ],
)
def test_a_form_is_known_by_its_dotted_fields(values: dict[str, Any], expected: bool) -> None:
    assert is_board_config(values) is expected


def test_text_boxes_become_numbers_and_the_model_its_hub_id(read: Any) -> None:
    found = read()
    assert found.arguments == {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": "Owner/Tiny",
        "preprocessing_num_workers": 16,
        "finetuning_type": "lora",
        "template": "plain",
        "flash_attn": "auto",
        "trust_remote_code": True,
        "ddp_timeout": 180000000,
        "dataset": "one,two",
        "learning_rate": 5e-5,
        "num_train_epochs": 3.0,
        "max_samples": 100000,
        "per_device_train_batch_size": 2,
        "dataset_dir": "data",
        "save_steps": 100,
        "bf16": True,
        "plot_loss": True,
        "include_num_input_tokens_seen": True,
        "optim": "adamw_torch",
        "lora_rank": 8,
        "lora_target": "all",
    }
    assert found.environment == {}
    assert any("Owner/Tiny is what LLaMA-Factory lists" in note for note in found.notes)
    assert any("train.ds_offload" in note and "does not use" in note for note in found.notes)


def test_a_model_has_the_path_that_the_user_gave_it_in_llama_board(read: Any) -> None:
    config = {"path_dict": {"Tiny-1B-Chat": "/models/mine"}, "cache_dir": "/cache", "hub_name": "modelscope"}
    found = read(config)
    assert (found.arguments["model_name_or_path"], found.arguments["cache_dir"]) == ("/models/mine", "/cache")
    assert found.environment == {"USE_MODELSCOPE_HUB": "1"}
    assert read({"path_dict": {}, "hub_name": "modelscope"}).arguments["model_name_or_path"] == "Other/Tiny"
    assert read({"path_dict": 7, "hub_name": []}).arguments["model_name_or_path"] == "Owner/Tiny"


@pytest.mark.parametrize(("name", "said"), [("Custom", "'Custom'"), ("Tiny-1B-Chta", "did you mean 'Tiny-1B-Chat'")])
def test_a_model_of_unknown_path_is_left_out_and_said(read: Any, name: str, said: str) -> None:
    found = read(top__model_name=name)
    assert "model_name_or_path" not in found.arguments
    assert any("model_name_or_path is not known" in note and said.strip("'") in note for note in found.notes)


def test_a_checkpoint_has_its_own_path_and_no_word_about_the_models(read: Any) -> None:
    adapters = read(top__checkpoint_path=["train 1", "/else/where"])
    assert adapters.arguments["adapter_name_or_path"] == "saves/Tiny-1B-Chat/lora/train1,/else/where"
    full = read(top__finetuning_type="full", top__checkpoint_path="train_1")
    assert full.arguments["model_name_or_path"] == "saves/Tiny-1B-Chat/full/train_1"
    assert not any("model_name_or_path" in note for note in full.notes)


def test_a_deepspeed_stage_names_the_file_and_the_launcher(read: Any) -> None:
    found = read(train__ds_stage="3", train__ds_offload=True)
    assert found.arguments["deepspeed"] == "llamaboard_cache/ds_z3_offload_config.json"
    assert found.environment == {"FORCE_TORCHRUN": "1"}


def test_a_secret_is_not_taken_over_and_not_shown(read: Any) -> None:
    found = read(
        train__use_swanlab=True, train__swanlab_api_key="sw-1234", train__extra_args='{"hf_hub_token": "hf_1234"}'
    )
    assert "1234" not in repr(found)
    assert [note for note in found.notes if "a secret" in note] == [
        f"not taken over: {key}, a secret by its name (give it in the environment)"
        for key in ("hf_hub_token", "swanlab_api_key")
    ]


def test_what_llama_board_leaves_out_of_the_extra_arguments_is_left_out_and_said(read: Any) -> None:
    """It drops false and null from the command: what the person meant was never in force."""
    found = read(train__extra_args='{"average_tokens_across_devices": false, "packing": false, "seed": 0}')
    assert "average_tokens_across_devices" not in found.arguments
    assert found.arguments["packing"] is False and found.arguments["seed"] == 0
    (note,) = [note for note in found.notes if "extra_args" in note]
    assert "average_tokens_across_devices: false" in note and "the default was in force" in note


def test_the_extra_arguments_decide_which_panels_count(read: Any) -> None:
    found = read(train__extra_args='{"stage": "dpo", "save_steps": 7}', train__pref_beta=0.2, train__val_size=0.1)
    assert {"stage": "dpo", "pref_beta": 0.2, "eval_steps": 7, "val_size": 0.1}.items() <= found.arguments.items()


def test_fields_of_no_use_are_listed_with_the_reason(read: Any) -> None:
    found = read(train__project="huggingface", train__shift_attn=True, train__galore_rank=16, train__swanlab_link=None)
    (off,) = [note for note in found.notes if "galore_rank" in note]
    (idle,) = [note for note in found.notes if "train.project" in note]
    (other,) = [note for note in found.notes if "shift_attn" in note]
    assert "does not use" in off and "passes them to nothing" in idle and "no fields of LLaMA Board" in other
    assert "swanlab_link" not in "".join(found.notes)


def test_a_file_of_an_older_board_leaves_arguments_to_their_defaults(installation: Installation) -> None:
    older = {key: value for key, value in FORM.items() if key not in ("train.val_size", "train.batch_size")}
    found = read_board(older, installation)
    assert not {"val_size", "per_device_train_batch_size", "enable_thinking", "packing"} & found.arguments.keys()


def test_the_evaluate_tab_is_no_training(installation: Installation) -> None:
    top = {key: value for key, value in FORM.items() if key.startswith("top.")}
    evaluation = {"eval.dataset": ["one"], "eval.predict": True, "eval.output_dir": "eval_1", "eval.max_samples": "5"}
    found = read_board({**top, **evaluation}, installation).arguments
    assert "do_train" not in found and found["do_predict"] is True
    assert (found["eval_dataset"], found["max_samples"]) == ("one", 5)
    assert found["output_dir"] == "saves/Tiny-1B-Chat/lora/eval_1"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top.model_name", None),
        ("top.model_name", ["a"]),
        ("train.training_stage", "Dreaming"),
        ("train.dataset", "one"),
        ("train.dataset", [{"a": 1}]),
        ("train.learning_rate", "fast"),
        ("train.learning_rate", True),
        ("train.max_samples", "1.5"),
        ("train.max_samples", float("inf")),
        ("train.val_size", []),
        ("train.extra_args", "{"),
        ("train.extra_args", "[" * 100_000),
        ("train.extra_args", "[1]"),
        ("top.quantization_bit", "four"),
        ("top.checkpoint_path", "one"),
        ("top.template", {"a": 1}),
    ],
)
def test_a_value_that_llama_board_never_saves_is_named(installation: Installation, field: str, value: Any) -> None:
    with pytest.raises(SpecError) as error:
        read_board({**FORM, field: value}, installation)
    assert field in error.value.message and len(error.value.message) < 300


def test_pixels_are_multiplied_as_the_page_does(read: Any) -> None:
    eye = {"top__model_name": "Eye-2B", "train__freeze_vision_tower": False}
    found = read(**eye, train__image_max_pixels="768*768", train__image_min_pixels="1024")
    assert found.arguments["image_max_pixels"] == 589824 and found.arguments["image_min_pixels"] == 1024
    assert found.arguments["freeze_vision_tower"] is False
    with pytest.raises(SpecError, match="image_max_pixels"):
        read(**eye, train__image_max_pixels="big*small")


def test_a_text_that_reads_as_a_number_is_kept_as_text_and_said(read: Any) -> None:
    found = read(train__use_swanlab=True, train__swanlab_run_name=12000.0, top__template=7)
    assert found.arguments["template"] == "7"
    assert any("top.template is text in LLaMA Board" in note for note in found.notes)
    assert any("train.swanlab_run_name is text in LLaMA Board" in note for note in found.notes)
    assert found.arguments["swanlab_run_name"] == "12000.0"


def test_llama_boards_own_settings_are_found_beside_its_folders(tmp_path: Path) -> None:
    other, own = tmp_path / "a", tmp_path / "b"
    for folder, text in ((other, "name: something else"), (own, "path_dict: {Custom: /m}\nhub_name: null")):
        (folder / "llamaboard_cache").mkdir(parents=True)
        (folder / "llamaboard_cache" / "user_config.yaml").write_text(text)
    assert find_user_config([tmp_path, other, own]) == {"path_dict": {"Custom": "/m"}, "hub_name": None}
    (own / "llamaboard_cache" / "user_config.yaml").write_text("[")
    assert find_user_config([other, own]) == {}


# The real page, without a browser: each case's fields over the page's own values, saved and parsed by LLaMA Board.

PAGE = """
import json, pathlib, sys
import gradio as gr, yaml
from llamafactory.webui.common import _clean_cmd, gen_cmd, save_cmd
from llamafactory.webui.components import create_eval_tab, create_top, create_train_tab
from llamafactory.webui.engine import Engine

engine = Engine()
manager, runner = engine.manager, engine.runner
with gr.Blocks() as page:
    manager.add_elems("top", create_top())
    manager.add_elems("train", create_train_tab(engine))
    manager.add_elems("eval", create_eval_tab(engine))
inputs = {function.name: function.inputs for function in page.fns.values()}
answers = {}
for name, case in json.loads(sys.stdin.read()).items():
    tab = case["tab"]
    elements = inputs["save_args" if tab == "train" else "run_eval"]
    data = {element: getattr(element, "value", None) for element in elements}
    data |= {manager.get_elem_by_id(key): value for key, value in case["fields"].items()}
    if tab == "train":
        assert not runner._initialize(data, do_train=True, from_preview=True)
        runner.save_args(data)
        saved = f"llamaboard_config/{case['fields']['train.config_path']}"
        arguments = runner._parse_train_args(data)
    else:
        from llamafactory.webui.common import save_args
        saved = f"{name}-llamaboard_config.yaml"
        save_args(saved, runner._build_config_dict(data))
        arguments = runner._parse_eval_args(data)
    answers[name] = {"saved": saved, "arguments": _clean_cmd(arguments), "training_args": save_cmd(arguments)}
print("\\n" + json.dumps(answers))
"""
TRAIN_FIELDS = {
    "top.lang": "en",
    "top.model_name": "Qwen2.5-0.5B-Instruct",
    "top.model_path": "Qwen/Qwen2.5-0.5B-Instruct",
    "top.template": "qwen",
    "train.dataset": ["alpaca_en_demo"],
}
DPO = {"train.training_stage": "DPO", "train.dataset": ["dpo_en_demo"], "train.pref_beta": 0.2, "train.pref_ftx": 0.5}
EXTRA = {
    "optim": "adafactor", "adam_beta2": 0.95, "seed": 7, "lora_rank": 3, "template": "llama3",
    "lr_scheduler_kwargs": {"num_cycles": 2}, "use_galore": True, "plot_loss": False, "save_only_model": True,
    "average_tokens_across_devices": False, "packing": False, "deepspeed": "ds.json", "run_name": "日本語 😀",
    "dataset": "identity", "finetuning_type": "freeze", "freeze_trainable_layers": 9,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "as the page is": {},
    "several datasets, validation": {
        "train.dataset": ["alpaca_en_demo", "identity", "own-1"],
        "train.dataset_dir": "/data/sets",
        "train.val_size": 0.1,
        "train.learning_rate": "1e-4",
        "train.max_samples": "500",
        "train.num_train_epochs": "1",
        "train.batch_size": 4,
        "train.save_steps": 50,
        "train.warmup_steps": 20,
        "train.report_to": "tensorboard",
    },
    "lora in full": {
        "train.lora_rank": 32,
        "train.lora_alpha": 64,
        "train.lora_dropout": 0.05,
        "train.loraplus_lr_ratio": 16,
        "train.create_new_adapter": True,
        "train.use_rslora": True,
        "train.use_dora": True,
        "train.use_pissa": True,
        "train.lora_target": "q_proj,v_proj",
        "train.additional_target": "embed_tokens,lm_head",
        "train.use_llama_pro": True,
        "train.freeze_trainable_layers": 4,
    },
    "full": {"top.finetuning_type": "full", "train.compute_type": "pure_bf16", "train.packing": True},
    "full from a checkpoint": {"top.finetuning_type": "full", "top.checkpoint_path": "train_0"},
    "freeze": {
        "top.finetuning_type": "freeze",
        "train.freeze_trainable_layers": -3,
        "train.freeze_trainable_modules": "mlp,self_attn",
        "train.freeze_extra_modules": "embed_tokens",
        "train.compute_type": "fp32",
    },
    "oft": {"top.finetuning_type": "oft", "train.compute_type": "fp16", "top.checkpoint_path": ["a b", "/c/d"]},
    "qlora": {"top.quantization_bit": "4", "top.quantization_method": "bnb", "top.booster": "unsloth"},
    "hqq": {"top.quantization_bit": "6", "top.quantization_method": "hqq", "top.booster": "flashattn2"},
    "continued from adapters": {
        "top.checkpoint_path": ["train_1", "train_2/checkpoint-10"],
        "top.booster": "liger_kernel",
    },
    "scaled, packed, noisy": {
        "top.rope_scaling": "yarn",
        "train.neat_packing": True,
        "train.neftune_alpha": 5.5,
        "train.cutoff_len": 8192,
        "train.train_on_prompt": True,
        "train.resize_vocab": True,
        "train.enable_thinking": False,
    },
    "dpo": DPO,
    "simpo over several devices": {**DPO, "train.pref_loss": "simpo", "train.ds_stage": "3", "train.ds_offload": True},
    "kto": {"train.training_stage": "KTO", "train.pref_beta": 0.05, "train.ds_stage": "2"},
    "rm": {"train.training_stage": "Reward Modeling", "train.dataset": ["dpo_en_demo"]},
    "pt": {"train.training_stage": "Pre-Training", "train.packing": True, "train.mask_history": True},
    "ppo with adapters": {
        "train.training_stage": "PPO",
        "train.reward_model": ["rm_1", "rm_2"],
        "train.ppo_score_norm": True,
        "train.val_size": 0.3,
    },
    "ppo in full": {"top.finetuning_type": "full", "train.training_stage": "PPO", "train.reward_model": "rm 1"},
    "galore": {
        "top.finetuning_type": "full",
        "train.use_galore": True,
        "train.galore_rank": 64,
        "train.galore_scale": 0.5,
        "train.galore_target": "mlp,self_attn",
    },
    "apollo": {
        "top.finetuning_type": "full",
        "train.use_apollo": True,
        "train.apollo_scale": 1,
        "train.apollo_rank": 1,
    },
    "badam": {"top.finetuning_type": "full", "train.use_badam": True, "train.badam_mode": "ratio"},
    "extra arguments": {"train.extra_args": json.dumps(EXTRA)},
    "swanlab": {
        "train.use_swanlab": True,
        "train.swanlab_project": "no",
        "train.swanlab_run_name": "2024-01-01",
        "train.swanlab_workspace": "012: # x",
        "train.swanlab_mode": "local",
    },
    "multimodal": {
        "top.model_name": "Qwen2.5-VL-7B-Instruct",
        "top.model_path": "Qwen/Qwen2.5-VL-7B-Instruct",
        "top.template": "qwen2_vl",
        "train.image_max_pixels": "1024",
        "train.freeze_vision_tower": False,
        "train.freeze_language_model": True,
    },
}
EVAL_CASES: dict[str, dict[str, Any]] = {
    "predict": {"eval.dataset": ["a", "b"], "eval.max_new_tokens": 64, "top.checkpoint_path": ["train_1"]},
    "eval": {"eval.dataset": ["a"], "eval.predict": False, "top.quantization_bit": "8", "eval.max_samples": "10"},
}
# Left out of ours, with the reason: the form is saved without it; a run has its own.
NOT_SAVED = {"output_dir"}


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, llamafactory: Imported) -> tuple[Path, dict[str, Any]]:
    """The folder that LLaMA Board was started in, and what it answered for each case."""
    folder = tmp_path_factory.mktemp("board")
    cases = {
        name: {
            "tab": "train",
            "fields": {
                **TRAIN_FIELDS,
                "train.config_path": f"{number}.yaml",
                "train.output_dir": f"train_{number}",
                **fields,
            },
        }
        for number, (name, fields) in enumerate(CASES.items())
    }
    shared = {key: value for key, value in TRAIN_FIELDS.items() if key.startswith("top.")}
    cases |= {
        name: {"tab": "eval", "fields": {**shared, "eval.output_dir": f"eval_{name}", **fields}}
        for name, fields in EVAL_CASES.items()
    }
    done = llamafactory.run(PAGE, cwd=folder, input=json.dumps(cases))
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.rstrip().rpartition("\n")[2])


@pytest.mark.integration
@pytest.mark.parametrize("name", [*CASES, *EVAL_CASES])
def test_the_arguments_are_those_that_llama_board_itself_passes(board: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, answers = board
    answer = answers[name]
    values = read_config(folder / answer["saved"]).values
    assert is_board_config(values)
    found = read_board(values, find_installation())
    theirs = {key: value for key, value in answer["arguments"].items() if key not in NOT_SAVED or name in EVAL_CASES}
    assert found.arguments == theirs
    assert {key: type(value) for key, value in found.arguments.items()} == {
        key: type(value) for key, value in theirs.items()
    }
    assert ("FORCE_TORCHRUN" in found.environment) is ("deepspeed" in theirs)


@pytest.mark.integration
@pytest.mark.parametrize("name", [*CASES, *EVAL_CASES])
def test_no_field_of_the_page_is_unknown(board: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, answers = board
    values = read_config(folder / answers[name]["saved"]).values
    notes = "\n".join(read_board(values, find_installation()).notes)
    assert "no fields of LLaMA Board" not in notes
    if name in CASES:
        assert all(f"train.{field}" in notes for field in ("project", "trackio_space_id", "hub_private_repo"))


@pytest.mark.integration
@pytest.mark.parametrize("name", [*CASES, *EVAL_CASES])
def test_training_args_yaml_is_an_ordinary_file_of_arguments(board: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, answers = board
    path = folder / answers[name]["training_args"]
    values = read_config(path).values
    assert not is_board_config(values)
    assert values == answers[name]["arguments"] == yaml.safe_load(path.read_text())
    assert ("do_train" in values) is (name in CASES)
