"""Values that LLaMA-Factory's libraries refuse, against these libraries. Run: pytest tests/test_ranges.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.planning.schema import spec_schema
from orchestrator.planning.spec_file import load_spec
from orchestrator.specs.arguments import Argument
from orchestrator.upstream.ranges import RANGE_RULES, RANGES
from orchestrator.upstream.rules import broken_rules
from tests.imported_once import Imported
from tests.reports import flat

OFT = {"finetuning_type": "oft"}
EVAL = {"val_size": 2, "do_eval": True}
PREDICT = {"val_size": 2, "do_predict": True, "predict_with_generate": True, "max_new_tokens": 2}
WORKER = {"dataloader_num_workers": 1}
EPOCHS = {"max_steps": -1}
NOTHING = "0 steps"  # it trains none, and says nothing

# (section, argument, a value that is refused, one beside it that is not, what else has to be said, what they say to the
# first). The second is the bound itself wherever that is taken.
CASES: list[tuple[str, str, Any, Any, dict[str, Any], str]] = [
    ("train", "lora_rank", -8, 1, {}, "`r` should be a positive integer value but the value passed is -8"),
    ("train", "lora_rank", 0, 1, {}, "`r` should be a positive integer value but the value passed is 0"),
    ("train", "lora_dropout", 1.5, 1.0, {}, "dropout probability has to be between 0 and 1, but got 1.5"),
    ("train", "oft_rank", 8, 0, OFT, "You can only specify either r (8) or oft_block_size (32), but not both"),
    ("train", "oft_block_size", 0, 8, OFT, "Either `r` or `oft_block_size` must be non-zero."),
    ("train", "learning_rate", -1e-4, 0.0, {}, "Invalid learning rate: -0.0001"),
    ("train", "learning_rate", -1.0, 0.0, {"optim": "sgd"}, "Invalid learning rate: -1.0"),
    ("train", "adam_beta1", 1.0, 0.0, {}, "Invalid beta parameter at index 0: 1.0"),
    ("train", "adam_beta2", -0.1, 0.0, {}, "Invalid beta parameter at index 1: -0.1"),
    ("train", "adam_beta1", 0, 0.0, {}, "betas must be either both floats or both Tensors"),
    ("train", "adam_beta2", 0, 0.0, {}, "betas must be either both floats or both Tensors"),
    ("train", "adam_epsilon", -1e-8, 0.0, {}, "Invalid epsilon value: -1e-08"),
    ("train", "neftune_noise_alpha", -1.0, 0.0, {}, "uniform_ expects to return a [from, to) range"),
    ("train", "per_device_train_batch_size", 0, 1, {}, "batch_size should be a positive integer value, but got"),
    ("train", "per_device_eval_batch_size", 0, 1, EVAL, "batch_size should be a positive integer value, but got"),
    ("train", "gradient_accumulation_steps", 0, 1, {}, "integer division or modulo by zero"),
    ("train", "gradient_accumulation_steps", -1, 1, {}, NOTHING),
    ("train", "num_train_epochs", 0, 0.1, EPOCHS, NOTHING),
    ("train", "dataloader_num_workers", -1, 0, {}, "num_workers option should be non-negative"),
    ("train", "dataloader_num_workers", 0, 1, {"dataloader_persistent_workers": True},
     "persistent_workers option needs num_workers > 0"),
    ("train", "dataloader_prefetch_factor", 0, 1, WORKER, "prefetch_factor must be greater than 0"),
    ("train", "preprocessing_num_workers", 0, 1, {}, "num_proc must be an integer > 0."),
    ("train", "cutoff_len", 0, 1, {}, "cannot reshape tensor of 0 elements"),
    ("train", "val_size", 1.0, 1, {}, "test_size=1.0 should be either positive and smaller than the number of samples"),
    ("train", "temperature", 0, 0.1, PREDICT, "`temperature` (=0) has to be a strictly positive float"),
    ("train", "temperature", 2, 2.0, PREDICT, "`temperature` (=2) has to be a strictly positive float"),
    ("train", "top_p", -0.5, 0.0, PREDICT, "`top_p` has to be a float > 0 and < 1, but is -0.5"),
    ("train", "top_k", -1, 0, PREDICT, "`top_k` has to be a strictly positive integer, but is -1"),
    ("train", "num_beams", 0, 1, PREDICT, "integer division or modulo by zero"),
    ("train", "repetition_penalty", 0.0, 0.1, PREDICT, "`penalty` has to be a strictly positive float, but is 0.0"),
    ("train", "repetition_penalty", 2, 2.0, PREDICT, "`penalty` has to be a strictly positive float, but is 2"),
    ("serve", "temperature", -1.0, 0, {}, "`temperature` (=-1.0) has to be a strictly positive float"),
    ("serve", "temperature", 2, 2.0, {}, "`temperature` (=2) has to be a strictly positive float"),
    ("serve", "top_p", -0.5, 0.0, {}, "`top_p` has to be a float > 0 and < 1, but is -0.5"),
    ("serve", "top_k", -1, 0, {}, "`top_k` has to be a strictly positive integer, but is -1"),
    ("serve", "num_beams", -1, 1, {}, "Trying to create tensor with negative dimension -1"),
    ("serve", "repetition_penalty", -1.0, 0.1, {}, "`penalty` has to be a strictly positive float, but is -1.0"),
    ("serve", "repetition_penalty", 2, 2.0, {}, "`penalty` has to be a strictly positive float, but is 2"),
]  # fmt: skip
NAMES = [f"{section}-{name}={wrong}" for section, name, wrong, *_ in CASES]

# Values that mean off, or that nobody looks at there: LLaMA-Factory takes each of them.
TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("train", {"lora_rank": 0, "lora_dropout": 2.0, "finetuning_type": "full"}),
    ("train", {"lora_dropout": -0.1, "weight_decay": -0.1, "lora_alpha": 0, "max_grad_norm": -1.0, "val_size": -1}),
    ("train", {"max_steps": 1, "num_train_epochs": 0, "per_device_eval_batch_size": 0, "temperature": 0, "top_k": -1}),
    ("train", {"optim": "adafactor", "learning_rate": -1.0, "adam_beta1": 1.5, "adam_epsilon": -1.0}),
    ("train", {**PREDICT, "temperature": 0, "top_p": -1.0, "top_k": -1, "do_sample": False}),
    ("train", {**OFT, "oft_rank": 2, "oft_block_size": 0}),
    ("serve", {"lora_rank": 0, "cutoff_len": 0, "temperature": 0, "top_p": -0.5, "top_k": -1, "max_new_tokens": 0}),
    ("serve", {"temperature": -1.0, "top_p": 1.5, "do_sample": False}),
]

# In LLaMA-Factory's own Python: what its training and its server's engine say to each, '' where they take it.
VERDICTS = """
import gc, json, os, shutil, torch
from llamafactory.chat import ChatModel
from llamafactory.train.tuner import run_exp
torch.set_num_threads(1)
verdicts = []
for section, arguments in json.load(open("asked.json")):
    gc.freeze()  # each training collects garbage: a second for all that was imported
    shutil.rmtree("out", ignore_errors=True)
    try:
        if section == "train":
            run_exp(arguments)
            state = "out/trainer_state.json"
            steps = json.load(open(state))["global_step"] if os.path.exists(state) else 1
            verdicts.append("" if steps else "0 steps")
        else:
            said = {} if arguments.get("max_new_tokens") else {"max_new_tokens": 2}
            ChatModel(arguments).chat([{"role": "user", "content": "hello"}], **said)
            verdicts.append("")
    except Exception as error:
        verdicts.append(str(error) or type(error).__name__)
json.dump(verdicts, open("verdicts.json", "w"))
"""


def spec_of(section: str, given: dict[str, Any], folder: Path) -> Path:
    """A spec file with one argument on a line, the first of them on line 5."""
    head = "name: a\nmodel: {name_or_path: m}\n" + ("dataset: d\n" if section == "train" else "# serve\n")
    body = "".join(f"  {line}\n" for line in yaml.safe_dump(given, sort_keys=False).splitlines())
    path = folder / "s.yaml"
    path.write_text(f"{head}{section}:\n{body}")
    return path


@pytest.mark.parametrize(("section", "name", "wrong", "right", "others", "_said"), CASES, ids=NAMES)
def test_a_value_out_of_range_is_refused_at_its_place_and_one_within_is_not(
    section: str,
    name: str,
    wrong: Any,
    right: Any,
    others: dict[str, Any],
    _said: str,
    arguments: dict[str, Argument],
    tmp_path: Path,
) -> None:
    load_spec(spec_of(section, {name: right, **others}, tmp_path), (), arguments)
    with pytest.raises(SpecError) as error:
        load_spec(spec_of(section, {name: wrong, **others}, tmp_path), (), arguments)
    count, line = flat(str(error.value))
    assert count.endswith("has 1 error:")
    assert f"s.yaml:5:3: {section}.{name}: " in line
    assert line.endswith(tuple(f"; {rule.remedy}" for rule in RANGE_RULES if rule.fields[0] == name))


@pytest.mark.parametrize(("section", "given"), TAKEN)
def test_a_value_that_is_off_or_that_nobody_looks_at_is_taken(
    section: str, given: dict[str, Any], arguments: dict[str, Argument], tmp_path: Path
) -> None:
    load_spec(spec_of(section, given, tmp_path), (), arguments)


def test_every_range_has_a_case(arguments: dict[str, Argument]) -> None:
    """And each argument of each is one, so that none is dead by a slip of the pen."""
    broken = set()
    for section, name, wrong, _, others, _ in CASES:
        command = {"train": "train", "serve": "api"}[section]
        broken |= {rule for rule, _ in broken_rules(command, {name: wrong, **others}, arguments, RANGE_RULES)}
    assert [rule.message for rule in RANGE_RULES if rule not in broken] == []
    assert [name for rule in RANGE_RULES for name in rule.fields if name not in arguments] == []


def test_the_schema_has_the_ranges_that_no_other_argument_decides(arguments: dict[str, Argument]) -> None:
    train = spec_schema(arguments)["$defs"]["TrainSpec"]["properties"]
    assert train["per_device_train_batch_size"]["minimum"] == 1
    assert "minimum" not in train["lora_rank"], "with finetuning_type full nobody looks at it"
    assert len([name for name, each in train.items() if name in arguments and "minimum" in each]) == 4 < len(RANGES)


@pytest.mark.integration
def test_the_libraries_refuse_what_the_table_refuses_and_take_the_rest(
    llamafactory: Imported, tiny_model: Path, tmp_path: Path
) -> None:
    """LLaMA-Factory's training and chat engine, in one process: each refused value, and some that are taken."""
    records = [{"instruction": f"say {number} please", "input": "", "output": f"so {number}"} for number in range(8)]
    (tmp_path / "d.json").write_text(json.dumps(records))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "d.json"}}))
    model = {"model_name_or_path": "model", "template": "default"}
    train = {
        **model, "dataset": "d", "dataset_dir": ".", "output_dir": "out", "do_train": True, "use_cpu": True,
        "max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    base = {"train": train, "serve": {**model, "max_new_tokens": 2}}
    cases = [(section, {name: wrong, **others}, said) for section, name, wrong, _, others, said in CASES]
    taken = [(section, given, "") for section, given in TAKEN]
    # Nothing is trained where only predictions fail; every bound of training at once is one run that is taken.
    bounds = {name: right for section, name, _, right, others, _ in CASES if section == "train" and not others}
    cases += [*taken, ("train", {**bounds, "cutoff_len": 64, "learning_rate": 0.0}, "")]
    asked = [
        (section, {**base[section], **given, **({"do_train": False} if "do_predict" in given else {})})
        for section, given, _ in cases
    ]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    shutil.copytree(tiny_model, tmp_path / "model")
    done = llamafactory.run(VERDICTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts = json.loads((tmp_path / "verdicts.json").read_text())
    found = [(section, given, verdict) for (section, given, _), verdict in zip(cases, verdicts, strict=True)]
    wrong = [
        (one, said)
        for one, (_, _, said) in zip(found, cases, strict=True)
        if not (one[2].startswith(said) if said else one[2] == "")
    ]
    assert wrong == []
