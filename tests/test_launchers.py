"""Commands that start LLaMA-Factory, in all their forms; compared with HfArgumentParser, OmegaConf and accelerate."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.importing.launchers import Invocation, accelerate_environment, read_invocations
from orchestrator.specs.arguments import Argument
from orchestrator.specs.render import Renderer, command_words
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.installation import VARIABLE, find_installation
from tests.imported_once import Imported

EXAMPLES = Path(__file__).parent / "data" / "llamafactory-0.9.5" / "examples"
CONFIGS = sorted(EXAMPLES.glob("**/accelerate/*.yaml"))


@pytest.fixture(scope="module")
def installed() -> dict[str, Argument]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        return read_arguments(find_installation())


def read(text: str, arguments: dict[str, Argument]) -> list[Invocation]:
    return read_invocations(text, "run.sh", arguments)


def only(text: str, arguments: dict[str, Argument]) -> Invocation:
    [found] = read(text, arguments)
    return found


# What starts a training with `x.yaml`, and the environment that it means.
FORMS: dict[str, dict[str, str]] = {
    "llamafactory-cli train x.yaml": {},
    "lmf train x.yaml": {},
    "/opt/lf/bin/llamafactory-cli train x.yaml": {},
    "$ llamafactory-cli train x.yaml": {},
    "python -m llamafactory.cli train x.yaml": {},
    "python3.11 -m llamafactory.launcher x.yaml": {},
    "python src/train.py x.yaml": {},
    "/usr/bin/python3 /root/LLaMA-Factory/src/train.py x.yaml": {},
    "cd src && python train.py x.yaml": {},
    "python src/train_bash.py x.yaml": {},
    "python src/llamafactory/launcher.py x.yaml": {},
    "python .venv/bin/llamafactory-cli train x.yaml": {},
    "A=1 B='x y' llamafactory-cli train x.yaml": {"A": "1", "B": "x y"},
    "export A=1; env B=2 -u A llamafactory-cli train x.yaml": {"B": "2"},
    "nohup llamafactory-cli train x.yaml > log 2>&1 &": {},
    "time env A=1 nohup llamafactory-cli train x.yaml 2>&1 | tee log": {"A": "1"},
    "FORCE_TORCHRUN=1 NNODES=2 llamafactory-cli train x.yaml": {"FORCE_TORCHRUN": "1", "NNODES": "2"},
    "torchrun src/train.py x.yaml": {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1"},
    "torchrun --standalone --nproc_per_node=gpu src/train.py x.yaml": {"FORCE_TORCHRUN": "1"},
    "torchrun --nproc_per_node 8 --nnodes 2 --node_rank 0 --master_addr a --master_port 1 src/train.py x.yaml": {
        "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "8", "NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    },
    "torchrun --nproc-per-node=8 --nnodes 1:3 --rdzv-id=X --rdzv_backend c10d --rdzv_endpoint h:2 --max-restarts 3 "
    "src/train.py x.yaml": {
        "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "8", "MIN_NNODES": "1", "MAX_NNODES": "3", "RDZV_ID": "X",
        "MASTER_ADDR": "h", "MASTER_PORT": "2", "MAX_RESTARTS": "3",
    },
    "torchrun --nproc_per 2 -m llamafactory.launcher x.yaml": {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"},
    "torchrun --no_python --nproc_per_node 2 llamafactory-cli train x.yaml": {
        "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2",
    },
    "python -m torch.distributed.run --nproc_per_node 2 src/train.py x.yaml": {
        "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2",
    },
    "python -m torch.distributed.launch --use_env --nproc_per_node 2 src/train.py x.yaml": {
        "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2",
    },
    'D="--nproc_per_node 2 --nnodes 1"\ntorchrun $D src/train.py x.yaml': {
        "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "NNODES": "1",
    },
    'D=(--nproc_per_node 2)\ntorchrun "${D[@]}" src/train.py x.yaml': {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"},
    'E=()\ntorchrun "${E[@]}" src/train.py "${E[@]}" x.yaml': {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1"},
    "deepspeed src/train.py x.yaml": {"FORCE_TORCHRUN": "1"},
    "deepspeed --num_gpus 4 --num_nodes=2 --master_port 9 src/train.py x.yaml": {
        "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "4", "NNODES": "2", "MASTER_PORT": "9",
    },
    "deepspeed --include localhost:0,3 src/train.py x.yaml": {
        "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,3",
    },
    "bash -c 'export A=1; llamafactory-cli train x.yaml'": {"A": "1"},
    'A=1 bash -lc "B=2 llamafactory-cli train x.yaml"': {"A": "1", "B": "2"},
    "if true; then\n  llamafactory-cli train x.yaml\nfi": {},
    "f() { llamafactory-cli train x.yaml; }; f": {},
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_forms_of_one_command(text: str) -> None:
    found = only(text, {})
    assert (found.command, found.config, found.arguments, found.notes) == ("train", "x.yaml", {}, [])
    assert found.environment == FORMS[text]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("sudo -E llamafactory-cli train x.yaml", "sudo -E: the run has your own rights"),
        ("srun -N 2 --gres=gpu:8 -u llamafactory-cli train x.yaml", "srun -N 2 --gres=gpu:8 -u: how Slurm starts it"),
        ("srun bash -c 'llamafactory-cli train x.yaml'", "srun: how Slurm starts it is not kept"),
        ("uv run llamafactory-cli train x.yaml", "uv run: the orchestrator's own LLaMA-Factory is used"),
        ("python -u -X dev src/train.py x.yaml", "python -u -X dev: options of Python have no place"),
        ("env -i llamafactory-cli train x.yaml", "env -i: the run has your environment"),
        ("torchrun --tee 3 src/train.py x.yaml", "torchrun's tee 3: LLaMA-Factory's launcher has no variable for it"),
        ("torchrun -r 3 --log_dir=l src/train.py x.yaml", "torchrun's log_dir l: LLaMA-Factory's launcher has no var"),
        ("torchrun --max_restarts 2 src/train.py x.yaml", "torchrun's max_restarts: LLaMA-Factory's launcher passes"),
        ("torchrun --rdzv_backend etcd src/train.py x.yaml", "torchrun's rdzv_backend etcd: LLaMA-Factory's launcher"),
        ("torchrun --new_flag src/train.py x.yaml", "torchrun's new_flag: LLaMA-Factory's launcher has no variable"),
        ("deepspeed --hostfile h src/train.py x.yaml", "deepspeed starts all nodes of a hostfile itself"),
        ("deepspeed --exclude w:1 src/train.py x.yaml", "deepspeed's exclude w:1: LLaMA-Factory's launcher has no var"),
        ("deepspeed -i w1@w2 src/train.py x.yaml", "deepspeed's include w1@w2: LLaMA-Factory's launcher has no var"),
        ("accelerate launch --num_processes 2 src/train.py x.yaml", "accelerate launch without --config_file also"),
        ("llamafactory-cli train x.yaml --cutoff_len 1024", "'--cutoff_len 1024': after a YAML file"),
        ("llamafactory-cli train x.yaml --bf16", "were it bf16=true, it would"),
        ("llamafactory-cli train x.yaml --cutoff-len=1024", "were it cutoff_len=1024, it would"),
        ("llamafactory-cli train x.yaml a=1 a=2", "a is given twice, '1' and '2': the last counts"),
        ("llamafactory-cli train x.yaml a={", "'a={': OmegaConf cannot read it"),
        ("llamafactory-cli train x.yaml 'a=[&x [1],*x]'", "'a=[&x [1],*x]': OmegaConf cannot read it: YAML's aliases"),
        ("llamafactory-cli train x.yaml a[0]=1", "'a[0]=1': after a YAML file LLaMA-Factory reads key=value alone"),
        ("llamafactory-cli train x.yaml a=$1", "$1: what it stands for is known only when the text runs"),
    ],
)  # fmt: skip
def test_what_has_no_place_in_the_result_is_noted_with_its_reason(text: str, note: str) -> None:
    found = only(text, {})
    assert (found.command, found.config) == ("train", "x.yaml")
    assert any(note in each for each in found.notes), found.notes


@pytest.mark.parametrize(
    "text",
    [
        "torchrun $DISTRIBUTED_ARGS src/train.py x.yaml",
        "torchrun ${DISTRIBUTED_ARGS[@]} --nnodes $N src/train.py x.yaml",
        'D=(--nproc_per_node $N); torchrun "${D[@]}" src/train.py x.yaml',
        "$PYTHON src/train.py x.yaml",
        "${RUN} llamafactory-cli train x.yaml",
        'llamafactory-cli train x.yaml "$@"',
    ],
)
def test_words_that_are_not_known_do_not_hide_the_command(text: str) -> None:
    found = only(text, {})
    assert (found.command, found.config, found.arguments) == ("train", "x.yaml", {})
    assert {note.rpartition(": ")[2] for note in found.notes} == {"what it stands for is known only when the text runs"}


@pytest.mark.parametrize("text", ["llamafactory-cli train $1", 'llamafactory-cli train "$CONFIG" seed=1'])
def test_a_config_that_is_not_known_is_named_as_written(text: str) -> None:
    found = only(text, {})
    assert found.config in ("$1", "$CONFIG")
    assert len(found.notes) == 1


@pytest.mark.parametrize(
    "text",
    [
        "echo llamafactory-cli train x.yaml",
        "pip install llamafactory-cli",
        "which llamafactory-cli && llamafactory train",
        "python train/other.py x.yaml",
        "python scripts/vllm_infer.py --model_name_or_path x",
        "python -c 'import llamafactory' train",
        "python nanogpt/train.py x.yaml",
        "python evaluate.py x.yaml",
        "python launcher.py x.yaml",
        "torchrun --nproc_per_node 2 pretrain.py",
        "accelerate config",
        "cat <<EOF\nllamafactory-cli train x.yaml\nEOF",
        "# llamafactory-cli train x.yaml",
        "bash run.sh llamafactory-cli",
        "srun bash run.sh",
        "A=1",
    ],
)
def test_what_does_not_start_llamafactory_is_passed_over(text: str) -> None:
    assert read(text, {}) == []


@pytest.mark.parametrize(
    ("text", "command", "config"),
    [
        ("llamafactory-cli export x.yaml", "export", "x.yaml"),
        ("API_PORT=8000 llamafactory-cli api x.json", "api", "x.json"),
        ("python src/api.py x.yml", "api", "x.yml"),
        ("llamafactory-cli chat x.yaml", "chat", "x.yaml"),
        ("llamafactory-cli webchat x.yaml", "webchat", "x.yaml"),
        ("python src/webui.py", "webui", None),
        ("llamafactory-cli webui", "webui", None),
        ("llamafactory-cli eval x.yaml", "eval", "x.yaml"),
        ("llamafactory-cli version", "version", None),
        ("llamafactory-cli", "help", None),
        ("USE_V1=1 llamafactory-cli sft", "sft", None),
    ],
)
def test_other_commands(text: str, command: str, config: str | None) -> None:
    found = only(text, {})
    assert (found.command, found.config) == (command, config)


def test_several_commands_of_a_script_each_with_its_line_and_comments(installed: dict[str, Argument]) -> None:
    text = (
        "#!/bin/bash\nset -x\n\n# the first stage\nexport A=1\nllamafactory-cli train a.yaml\n\n"
        "# then\nB=2 llamafactory-cli train \\\n  b.yaml  # again\necho done\nllamafactory-cli export c.yaml\n"
    )
    found = read(text, installed)
    assert [(each.config, each.line, each.comments) for each in found] == [
        ("a.yaml", 6, ["the first stage"]),
        ("b.yaml", 9, ["then", "again"]),
        ("c.yaml", 12, []),
    ]
    assert [each.environment for each in found] == [{"A": "1"}, {"A": "1", "B": "2"}, {"A": "1"}]


def test_flags_and_their_forms(installed: dict[str, Argument]) -> None:
    found = only(
        "llamafactory-cli train --stage sft --do_train --lora_r 4 --cutoff-len=1024 --bf16 true --plot_loss yes "
        "--no_use_fast_tokenizer --no-average-tokens-across-devices --packing False --lora_target q_proj,v_proj "
        "--learning_rate 1e-4 --label_names a b c --default_system 'You are \"X\".' --seed -1 --report_to none "
        "--lr_scheduler_kwargs '{\"num_cycles\": 2}' --warmup_ratio .1 --max_samples 1e5 --optim adamw_torch",
        installed,
    )
    assert found.arguments == {
        "stage": "sft", "do_train": True, "lora_rank": 4, "cutoff_len": 1024, "bf16": True, "plot_loss": True,
        "use_fast_tokenizer": False, "average_tokens_across_devices": False, "packing": False,
        "lora_target": "q_proj,v_proj", "learning_rate": 1e-4, "label_names": ["a", "b", "c"],
        "default_system": 'You are "X".', "seed": -1, "report_to": "none",
        "lr_scheduler_kwargs": '{"num_cycles": 2}', "warmup_ratio": 0.1, "max_samples": "1e5", "optim": "adamw_torch",
    }  # fmt: skip
    assert found.notes == []


def test_an_unknown_argument_is_kept_as_text_for_the_specs_check(installed: dict[str, Argument]) -> None:
    text = "llamafactory-cli train --lora_rnk 8 --overwrite-cash --evaluation_strategy=steps --fresh a b -x 1"
    found = only(text, installed)
    assert found.arguments == {
        "lora_rnk": "8", "overwrite_cash": True, "evaluation_strategy": "steps", "fresh": ["a", "b"], "x": "1",
    }  # fmt: skip


def test_an_argument_of_training_alone_is_none_of_export(installed: dict[str, Argument]) -> None:
    found = only("llamafactory-cli export --learning_rate 1e-4 --export_dir out --export_size 5", installed)
    assert found.arguments == {"learning_rate": "1e-4", "export_dir": "out", "export_size": 5}


def test_words_that_belong_to_no_argument_are_noted(installed: dict[str, Argument]) -> None:
    found = only("llamafactory-cli train stray --stage sft pt lora_rank=8 --seed 1 -- more", installed)
    assert found.arguments == {"stage": "sft", "seed": 1}
    assert [note.partition(":")[0] for note in found.notes] == ["'stray'", "'pt'", "'lora_rank=8'", "'more'"]
    assert "only after a YAML file" in found.notes[2]


def test_the_last_of_several_counts_and_that_is_said(installed: dict[str, Argument]) -> None:
    found = only("llamafactory-cli train --lora_rank 4 --do_train --lora_r 8 --do_train false", installed)
    assert found.arguments == {"lora_rank": 8, "do_train": False}
    assert found.notes == [
        "lora_rank is given twice, 4 and 8: the last counts",
        "do_train is given twice, True and False: the last counts",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lora", "--lora may be --lora_alpha, --lora_dropout, --lora_rank, --lora_target"),
        ("--lora_rank", "--lora_rank has no value"),
        ("--lora_rank --do_train", "--lora_rank has no value"),
        ("--packing", "--packing has no value"),
        ("--label_names --do_train", "--label_names has no value"),
        ("--no_use_fast_tokenizer=true", "--no_use_fast_tokenizer takes no value"),
    ],
)
def test_words_with_which_llamafactory_would_not_start_are_an_error(
    words: str, message: str, installed: dict[str, Argument]
) -> None:
    with pytest.raises(SpecError) as caught:
        read(f"x\nllamafactory-cli train {words}", installed)
    assert caught.value.message.startswith(f"run.sh, line 2: {message}")


VALUES = (
    "1e-5", "1", "1.0", "true", "True", "yes", "no", "null", "~", "", "abc", "a b", "[1, 2]", "{a: 1}", '"1"', "'x'",
    "01", "1_000", "0x10", "1:30", "2024-01-01", ".5", "-3", "+1", "1e3", ".inf", "nan", "a=b", "#x", "on", "${x}",
)  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_overrides_after_a_yaml_file_are_typed_as_omegaconf_types_them(value: str) -> None:
    from omegaconf import OmegaConf

    words = [f"a={value}", f"b.c={value}", "b.d=x"]
    found = only(shlex.join(["llamafactory-cli", "train", "x.yaml", *words]), {})
    meant = OmegaConf.to_container(OmegaConf.from_cli(words))
    assert repr(found.arguments) == repr(meant)
    assert found.notes == []


def texts(arguments: dict[str, Argument]) -> list[str]:
    """Arguments whose value is any text."""
    return sorted(
        name
        for name, each in arguments.items()
        if "train" in each.commands and "str" in each.kinds and each.kinds <= {"str", "list"} and not each.choices
        if name != "debug"
    )


def test_any_strings_survive_command_line_import_command_line(installed: dict[str, Argument]) -> None:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    renderer = Renderer()

    @settings(deadline=None, max_examples=150)
    @given(
        st.dictionaries(st.sampled_from(texts(installed)), text, max_size=6),
        st.dictionaries(st.sampled_from(["OMP_NUM_THREADS", "A", "_B"]), text, max_size=2),
    )
    def check(arguments: dict[str, str], environment: dict[str, str]) -> None:
        line = renderer.command("train", arguments, environment)
        found = only(line, installed)
        assert (found.arguments, found.environment, found.notes) == (arguments, environment, [])
        assert renderer.command("train", found.arguments, found.environment) == line

    check()


README = """
llamafactory-cli train examples/train_lora/qwen3_lora_sft.yaml
CUDA_VISIBLE_DEVICES=0,1 llamafactory-cli train examples/train_lora/qwen3_lora_sft.yaml \\
    learning_rate=1e-5 \\
    logging_steps=1
bash examples/train_lora/qwen3_lora_sft.sh
FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=0 MASTER_ADDR=192.168.0.1 MASTER_PORT=29500 llamafactory-cli train \
examples/train_lora/qwen3_lora_sft.yaml
USE_RAY=1 llamafactory-cli train examples/train_lora/qwen3_lora_sft_ray.yaml
FORCE_TORCHRUN=1 MIN_NNODES=1 MAX_NNODES=3 MAX_RESTARTS=3 RDZV_ID=llamafactory MASTER_ADDR=192.168.0.1 \
MASTER_PORT=29500 llamafactory-cli train examples/train_full/qwen3_full_sft.yaml
llamafactory-cli export examples/merge_lora/qwen3_lora_sft.yaml
python scripts/vllm_infer.py --model_name_or_path Qwen/Qwen3-4B-Instruct-2507 --template qwen3_nothink
llamafactory-cli chat examples/inference/qwen3_lora_sft.yaml
llamafactory-cli webchat examples/inference/qwen3_lora_sft.yaml
llamafactory-cli api examples/inference/qwen3_lora_sft.yaml
API_PORT=8000 llamafactory-cli api examples/inference/qwen3.yaml infer_backend=vllm vllm_enforce_eager=true
bash examples/extras/fsdp_qlora/train.sh
"""


def test_the_command_lines_of_llamafactorys_examples() -> None:
    """Each kind of line in examples/README.md and README.md of 0.9.5; the others differ in the file's name alone."""
    node = {"MASTER_ADDR": "192.168.0.1", "MASTER_PORT": "29500", "FORCE_TORCHRUN": "1"}
    elastic = {"MIN_NNODES": "1", "MAX_NNODES": "3", "MAX_RESTARTS": "3", "RDZV_ID": "llamafactory"}
    sft = "examples/train_lora/qwen3_lora_sft.yaml"
    inference = "examples/inference/qwen3_lora_sft.yaml"
    overrides = {"learning_rate": 1e-5, "logging_steps": 1}
    backend = {"infer_backend": "vllm", "vllm_enforce_eager": True}
    found = read(README, {})
    assert [(each.command, each.config, each.arguments, each.environment) for each in found] == [
        ("train", sft, {}, {}),
        ("train", sft, overrides, {"CUDA_VISIBLE_DEVICES": "0,1"}),
        ("train", sft, {}, {**node, "NNODES": "2", "NODE_RANK": "0"}),
        ("train", "examples/train_lora/qwen3_lora_sft_ray.yaml", {}, {"USE_RAY": "1"}),
        ("train", "examples/train_full/qwen3_full_sft.yaml", {}, {**node, **elastic}),
        ("export", "examples/merge_lora/qwen3_lora_sft.yaml", {}, {}),
        ("chat", inference, {}, {}),
        ("webchat", inference, {}, {}),
        ("api", inference, {}, {}),
        ("api", "examples/inference/qwen3.yaml", backend, {"API_PORT": "8000"}),
    ]
    assert [each.notes for each in found] == [[]] * len(found)


SFT_ARGUMENTS = {
    "model_name_or_path": "Qwen/Qwen3-4B-Instruct-2507", "trust_remote_code": True, "stage": "sft", "do_train": True,
    "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "dataset": "identity,alpaca_en_demo",
    "template": "qwen3_nothink", "cutoff_len": 2048, "max_samples": 1000, "preprocessing_num_workers": 16,
    "dataloader_num_workers": 4, "output_dir": "saves/qwen3-4b/lora/sft", "logging_steps": 10.0, "save_steps": 500.0,
    "plot_loss": True, "overwrite_output_dir": True, "save_only_model": False, "report_to": "none",
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 1e-4,
    "num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True,
    "ddp_timeout": 180000000,
}  # fmt: skip


def test_the_scripts_of_llamafactorys_examples(installed: dict[str, Argument]) -> None:
    """Two start LLaMA-Factory, the other two start Python scripts of its repository that prepare a model."""
    script = EXAMPLES / "train_lora" / "qwen3_lora_sft.sh"
    found = only(script.read_text(), installed)
    assert repr(found.arguments) == repr(SFT_ARGUMENTS)  # types too
    assert (found.config, found.environment, found.notes, found.line) == (None, {}, [], 7)
    found = only((EXAMPLES / "extras" / "fsdp_qlora" / "train.sh").read_text(), installed)
    assert found.accelerate_config == "examples/accelerate/fsdp_config.yaml"
    assert (found.config, found.environment, found.comments) == (
        "examples/extras/fsdp_qlora/llama3_lora_sft.yaml",
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        ["DO NOT use GPTQ/AWQ model in FSDP+QLoRA"],
    )
    others = [path for path in EXAMPLES.rglob("*.sh") if not read(path.read_text(), installed)]
    assert sorted(path.name for path in others) == ["expand.sh", "init.sh"]


def test_options_of_accelerate_win_over_its_configuration() -> None:
    options = "--num_processes 4 --fsdp_offload_params true --debug"
    found = only(f"accelerate launch --config_file f.yaml {options} src/train.py x.yaml", {})
    assert found.accelerate_options == {"num_processes": "4", "fsdp_offload_params": "true", "debug": True}
    config = {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_offload_params": False}}
    environment, notes = accelerate_environment(config, found.accelerate_options)
    assert environment["NPROC_PER_NODE"] == "4"
    assert environment["FSDP_OFFLOAD_PARAMS"] == "true"
    assert environment["ACCELERATE_DEBUG_MODE"] == "true"
    assert notes == []


def test_what_accelerate_tells_by_no_variable_is_noted() -> None:
    config = {
        "distributed_type": "FSDP", "num_processes": 2, "kt_config": {"enabled": True}, "downcast_bf16": "yes",
        "fsdp_config": {"fsdp_version": 2, "fsdp_new": 1}, "tpu_env": [], "tpu_use_sudo": False,
        "rdzv_backend": "c10d",
    }  # fmt: skip
    _, notes = accelerate_environment(config)
    assert [re.split(": ", note)[0] for note in notes] == [
        "accelerate's downcast_bf16", "accelerate's rdzv_backend", "accelerate's fsdp_new", "accelerate's kt_config",
    ]  # fmt: skip
    _, notes = accelerate_environment({"distributed_type": "MEGATRON_LM", "num_processes": 2})
    assert notes == ["accelerate's MEGATRON_LM: how it sets that up is not taken over"]
    _, notes = accelerate_environment({"distributed_type": "FSDP"})
    assert notes == ["accelerate's num_processes is not said: LLaMA-Factory takes all devices that it sees"]


def test_one_process_of_accelerate_starts_no_torchrun() -> None:
    environment, notes = accelerate_environment({"distributed_type": "NO", "num_processes": 1, "gpu_ids": "1"})
    assert "FORCE_TORCHRUN" not in environment
    assert (environment["CUDA_VISIBLE_DEVICES"], notes) == ("1", [])


ACCELERATE = """
import json, os, sys

sys.argv[0] = "accelerate"
os.environ.clear()
os.environ.update(json.loads(sys.argv[2]))
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

said = []
for words in json.loads(sys.argv[1]):
    args, defaults, from_config = _validate_launch_command(launch_command_parser().parse_args([*words, "train.py"]))
    if args.use_deepspeed:
        fields = list(defaults.deepspeed_config) + ["mixed_precision"] * from_config
        args.deepspeed_fields_from_accelerate_config = ",".join(fields)
        environment = prepare_deepspeed_cmd_env(args)[1]
        environment.pop("PYTHONPATH")
    elif args.use_fsdp or args.multi_gpu:
        environment = prepare_multi_gpu_env(args)
    else:
        environment = prepare_simple_launcher_cmd_env(args)[1]
    names = {"NPROC_PER_NODE": "nproc_per_node", "NNODES": "nnodes", "NODE_RANK": "node_rank"}
    launcher = {name: getattr(args, key) for name, key in names.items() if getattr(args, key, None) is not None}
    endpoint = getattr(args, "rdzv_endpoint", None)
    if endpoint:
        launcher["MASTER_ADDR"], _, launcher["MASTER_PORT"] = endpoint.rpartition(":")
    environment = {key: value for key, value in environment.items() if os.environ.get(key) != value}
    said.append({**environment, **{key: str(value) for key, value in launcher.items()}})
print(json.dumps(said))
"""
OTHERS: dict[str, dict[str, Any]] = {
    "several": {"distributed_type": "MULTI_GPU", "num_processes": 2, "gpu_ids": "0,1", "mixed_precision": "fp16"},
    "fsdp without a prefix": {
        "distributed_type": "FSDP", "num_processes": 2, "debug": True,
        "fsdp_config": {"offload_params": True, "min_num_params": 100, "activation_checkpointing": True},
        "dynamo_config": {"dynamo_backend": "INDUCTOR", "dynamo_use_dynamic": True},
    },
    "fsdp and parallelism": {
        "distributed_type": "FSDP", "num_processes": 8, "fsdp_config": {"fsdp_version": 2},
        "parallelism_config": {"parallelism_config_tp_size": 2, "parallelism_config_cp_size": 2},
    },
    "deepspeed": {
        "distributed_type": "DEEPSPEED", "num_processes": 2, "mixed_precision": "bf16",
        "deepspeed_config": {"zero_stage": 3, "zero3_init_flag": True, "offload_param_device": "cpu",
                             "gradient_clipping": 1.0, "gradient_accumulation_steps": 4},
    },
    "deepspeed's own file": {
        "distributed_type": "DEEPSPEED", "num_processes": 2,
        "deepspeed_config": {"deepspeed_config_file": "ds_z3.json", "zero3_init_flag": False},
    },
    "one": {"distributed_type": "NO", "mixed_precision": "no", "use_cpu": False},
}  # fmt: skip


@pytest.mark.integration
def test_the_variables_are_those_that_accelerate_itself_would_set(llamafactory: Imported, tmp_path: Path) -> None:
    cases: list[tuple[Path, dict[str, Any], list[str]]] = []
    for number, config in enumerate([*(yaml.safe_load(path.read_text()) for path in CONFIGS), *OTHERS.values()]):
        known = {key: value for key, value in config.items() if key != "kt_config"}  # accelerate 1.11 refuses it
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(known, sort_keys=False))
        cases.append((path, config, []))
    fsdp = yaml.safe_load((EXAMPLES / "accelerate" / "fsdp_config.yaml").read_text())
    fsdp_path = tmp_path / "fsdp.yaml"
    fsdp_path.write_text(yaml.safe_dump(fsdp))
    cases.append((fsdp_path, fsdp, ["--num_processes", "3", "--fsdp_offload_params", "true", "--gpu-ids", "1,2"]))
    cases.append((fsdp_path, fsdp, ["--mixed_precision", "no", "--fsdp_version=2", "--enable_cpu_affinity"]))
    words = [["--config_file", str(path), *options] for path, _, options in cases]
    empty = {"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = llamafactory.run(ACCELERATE, json.dumps(words), json.dumps(empty), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(cases) == len(CONFIGS) + len(OTHERS) + 2 == 18
    for (path, config, options), theirs in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        line = f"accelerate launch --config_file f.yaml {' '.join(options)} src/train.py x.yaml"
        ours, _ = accelerate_environment(config, only(line, {}).accelerate_options)
        launches = ours.pop("FORCE_TORCHRUN", None)
        assert launches == (None if config["distributed_type"] == "NO" else "1")
        assert ours == theirs, path.name


HF = """
import argparse, json, sys

from llamafactory.hparams.parser import _TRAIN_ARGS
from transformers import HfArgumentParser

parser = HfArgumentParser(_TRAIN_ARGS)
for action in parser._actions:
    action.default, action.required = argparse.SUPPRESS, False
said = []
with open(sys.argv[1]) as file:
    table = json.load(file)
sys.stderr = open("/dev/null", "w")
for words in table:
    try:
        namespace, extra = parser.parse_known_args(words)
        values = {key: getattr(value, "value", value) for key, value in vars(namespace).items()}
        said.append([values, extra])
    except SystemExit:
        said.append(None)
print()
print(json.dumps(said, default=lambda value: getattr(value, "value", str(value))))
"""
LINES = [
    "--do_train", "--do_train --do_eval", "--do_train true", "--do_train False", "--do_train=no", "--do_train T",
    "--do_train maybe", "--do_train --lora_rank 8", "--use_fast_tokenizer", "--no_use_fast_tokenizer",
    "--no-use-fast-tokenizer", "--no_use_fast_tokenizer --use_fast_tokenizer true", "--no_use_fast_tokenizer=true",
    "--no_do_train", "--packing true", "--packing", "--packing --do_train", "--enable_thinking", "--enable_thinking 0",
    "--no_enable_thinking", "--lora_r 4", "--lora-r 4", "--lora", "--lora_", "--lora_rank", "--lora_rank --do_train",
    "--lora_rank 8 --lora_rank 16", "--lora_rank=8", "--lora_rank=", "--lora-rank 8", "--lora_rank 8.0",
    "--lora_rank 1e3", "--lora_rank 1_000", "--lora_rank +8", "--lora_rank -8", "--lora_rank ' 8 '", "--lora_rank 0x8",
    "--lora_rank ٣", "--learning_rate 1e-4", "--learning_rate .1", "--learning_rate 1", "--learning_rate -1e-4",
    "--learning_rate=-1e-4", "--learning_rate -.5", "--learning_rate nan", "--learning_rate 1_0.5",
    "--learning_rate None", "--max_samples null", "--max_samples 10", "--label_names a b c", "--label_names a",
    "--label_names=a b", "--label_names a --do_train", "--label_names", "--include_for_metrics x y --seed 1",
    "--debug underflow_overflow", "--debug underflow_overflow tpu_metrics_debug", "--report_to none",
    "--report_to a b", "--lr_scheduler_type cosine", "--lr_scheduler_type cosin", "--optim adamw_torch", "--stage sft",
    "--stage foo", "--fsdp 'full_shard auto_wrap'", "--lr_scheduler_kwargs '{\"a\": 1}'", "--deepspeed x.json",
    "--default_system 'You are X'", "--default_system ''", "--default_system '-x y'", "--default_system=-x",
    "--default_system -x", "--default_system --x", "--default_system=--x", "--default_system -1",
    "stray", "a=b", "--stage sft stray", "--stage sft a=b", "--unknown", "--unknown 1", "--unknown=1 --seed 2",
    "-x 1 --seed 2", "--seed 1 -- --lora_rank 8", "--neftune_noise_alpha 5", "--eval_steps 100", "--eval_steps 0.1",
    "--bf16 1 --fp16 0", "--tf32 yes", "--resize_vocab=True", "--warmup_steps 10", "--model_name_or_path 123",
    "--local_rank 0", "--trust_remote_code --template qwen", "--add_tokens '<a>,<b>'", "--lora_target q,v",
    "--ddp_backend gloo", "--ddp_backend x", "--quantization_bit 4", "--quantization_bit four", "--rope_scaling yarn",
    "--hub_private_repo true", "--liger_kernel_config '{}'", "--generation_config x", "--output_dir=a=b",
]  # fmt: skip
TEXTS = ("1", "-2", "1.5", "1e3", "true", "No", "x", "", "None", '{"a": 1}', "a,b", "-x y", "cpu")


@pytest.mark.integration
def test_values_are_those_of_hfargumentparser(
    llamafactory: Imported, installed: dict[str, Argument], tmp_path: Path
) -> None:
    """A table of lines, and every argument of the installation with each of some texts."""
    taken = [name for name, each in installed.items() if "train" in each.commands]
    table = [shlex.split(line) for line in LINES]
    # '' is {} where a mapping is declared, and . for a Path: neither is worth a rule
    odd = {name for name in taken if installed[name].kinds <= {"dict"}}
    table += [[f"--{name}={text}"] for name in taken for text in TEXTS if text or name not in odd]
    table += [[f"--{name}", text] for name in taken for text in ("1", "-2", "-x", "true")]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    done = llamafactory.run(HF, path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    wrong = []
    for words, theirs in zip(table, said, strict=True):
        try:
            ours = only(shlex.join(["llamafactory-cli", "train", *words]), installed)
        except SpecError:
            ours = None
        if not _agree(ours, theirs, words, installed):
            wrong.append((words, ours and ours.arguments, theirs))
    assert not wrong, wrong[:20]
    assert len(table) > 5000


def _agree(ours: Invocation | None, theirs: Any, words: list[str], installed: dict[str, Argument]) -> bool:
    if ours is None or theirs is None:  # refused there: refused here, or the text kept for the spec's check
        return theirs is None and (ours is None or _is_kept_as_text(ours, words))
    values, extra = theirs
    known = {name: value for name, value in ours.arguments.items() if name in installed}
    others = [name for name in ours.arguments if name not in installed]
    return repr(known) == repr(values) and bool(extra) == bool(others or [n for n in ours.notes if "twice" not in n])


def _is_kept_as_text(ours: Invocation, words: list[str]) -> bool:
    given = {words[-1], words[-1].partition("=")[2]}
    values = [value for found in ours.arguments.values() for value in (found if isinstance(found, list) else [found])]
    return any(isinstance(value, str) and value in given for value in values)


def test_command_words_of_every_type_are_read_back(installed: dict[str, Argument]) -> None:
    """What render writes for a spec's typed values, read back in the same types."""
    meant = {"lora_rank": 8, "learning_rate": 1e-05, "bf16": True, "do_train": False, "label_names": ["a", "b"],
             "lora_target": "q,v", "packing": False, "seed": -1, "val_size": 0.1}  # fmt: skip
    words = [word for key, value in meant.items() for word in command_words(key, value, several=key == "label_names")]
    assert only(" ".join(["llamafactory-cli", "train", *map(str, words)]), installed).arguments == meant


@pytest.mark.parametrize("text", ["llamafactory-cli train 'x", "llamafactory-cli train x.yaml )"])
def test_text_that_is_no_shell_text_is_an_error(text: str) -> None:
    with pytest.raises(SpecError, match=r"run\.sh:1:"):
        read(text, {})


def test_no_file_that_is_named_is_opened() -> None:
    text = "accelerate launch --config_file /nowhere/a.yaml src/train.py /nowhere/x.yaml deepspeed=/nowhere/d.json"
    found = only(text, {})
    assert (found.config, found.accelerate_config) == ("/nowhere/x.yaml", "/nowhere/a.yaml")
