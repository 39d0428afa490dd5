"""What LLaMA-Factory's own parser, its libraries and its loader say to arguments. No GPU is used, no weights are read.

stdin: {"points": [{"train", "api", "export": arguments or null, "torchrun": whether it starts the training, null where
that is not known}], "limit": records of each dataset}. stdout: {"problems": [{"point", "command", "arguments": the
names that it hangs on, "message", "kind": refused, missing (a package) or unknown}], "datasets": by point, of probe}.
Runs in LLaMA-Factory's Python, in an empty folder. Written against 0.9.5.
"""

import copy
import dataclasses
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from llamafactory.hparams import DataArguments, ModelArguments, parser
from llamafactory.model import load_config, load_tokenizer
from llamafactory.model.model_utils import quantization
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Trainer
from transformers.integrations import get_reporting_integration_callbacks
from transformers.quantizers import AutoHfQuantizer
from transformers.training_args import ParallelMode

Problem = dict[str, Any]
Refusal = tuple[str, str]  # kind and message
MAX_PROBLEMS = 10
# Without these everything else is refused.
STRUCTURE = {"model_name_or_path", "dataset", "dataset_dir", "output_dir", "do_train"}
OWN_OPTIMIZERS = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon")
GENERATION = ("do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "length_penalty")


class Launch:
    """What the training will have, and this process has not."""

    torchrun = False
    deepspeed: Any = None
    zero3 = False


def stand_in() -> None:
    """Have the parser see the launch: torchrun, DeepSpeed, and a GPU that knows bfloat16."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        os.environ.pop(name, None)  # of a job that we are in: torch would wait for its other processes
    parse = parser._parse_train_args

    def parse_train(arguments: Any) -> Any:
        parsed = parse(arguments)
        parsed[2].deepspeed = Launch.deepspeed
        return parsed

    def mode(_: Any) -> ParallelMode:
        return ParallelMode.DISTRIBUTED if Launch.torchrun else ParallelMode.NOT_PARALLEL

    parser._parse_train_args = parse_train
    parser.TrainingArguments.parallel_mode = property(mode)
    parser.is_deepspeed_zero3_enabled = quantization.is_deepspeed_zero3_enabled = lambda: Launch.zero3
    parser.is_torch_bf16_gpu_available = lambda: True


def parsed(command: str, arguments: dict[str, Any], torchrun: bool | None) -> Any:
    """The parser's dataclasses, for the launch as it will be, on the CPU."""
    given = copy.deepcopy(arguments)
    if command != "train":
        return parser.get_infer_args(given)
    Launch.deepspeed = given.pop("deepspeed", None)
    Launch.zero3 = zero_stage(Launch.deepspeed) == 3
    Launch.torchrun = Launch.deepspeed is not None if torchrun is None else torchrun
    given.pop("tf32", None)
    given.pop("ddp_backend", None)  # it opens a process group, and there is none here
    return parser.get_train_args({**given, "use_cpu": True, "output_dir": "output"})


def zero_stage(deepspeed: Any) -> Any:
    if isinstance(deepspeed, str):
        if not deepspeed.lstrip().startswith("{"):
            with open(deepspeed, encoding="utf-8") as file:  # noqa: PTH123
                deepspeed = file.read()
        deepspeed = json.loads(deepspeed)
    return deepspeed.get("zero_optimization", {}).get("stage") if deepspeed else None


def try_libraries(command: str, given: dict[str, Any], arguments: Any) -> None:
    """Make what the training, or the server's engine, makes of values that the parser does not look at."""
    if command == "train":
        _, data_args, training_args, finetuning_args, generating_args = arguments
        for callback in get_reporting_integration_callbacks(training_args.report_to):
            callback()
        if not any(getattr(finetuning_args, name, False) for name in OWN_OPTIMIZERS):
            optimizer, options = Trainer.get_optimizer_cls_and_kwargs(training_args)
            if optimizer.__module__.startswith("torch."):
                optimizer([torch.nn.Parameter(torch.zeros(1))], **options)
        try_loaders(data_args, training_args)
        if finetuning_args.finetuning_type == "lora":
            torch.nn.Dropout(max(finetuning_args.lora_dropout, 0.0))
        generates = training_args.predict_with_generate
    else:
        generating_args = arguments[-1]
        generates = command == "api" and arguments[0].infer_backend == "huggingface"
    if generates and given.keys() & {*GENERATION}:
        try_generation(generating_args, is_api=command == "api")


def try_loaders(data_args: Any, training_args: Any) -> None:
    sizes = {training_args.per_device_train_batch_size}
    if training_args.do_eval or training_args.do_predict:
        sizes.add(training_args.per_device_eval_batch_size)
    for size in sizes:
        torch.utils.data.DataLoader(
            [0],
            batch_size=size,
            num_workers=training_args.dataloader_num_workers,
            prefetch_factor=training_args.dataloader_prefetch_factor,
            persistent_workers=training_args.dataloader_persistent_workers,
        )
    rows = Dataset.from_dict({"row": list(range(100))})
    if 1e-6 < data_args.val_size <= 1:
        rows.train_test_split(test_size=data_args.val_size)
    if data_args.preprocessing_num_workers is not None and not data_args.streaming:
        rows.map(lambda row: row, num_proc=min(data_args.preprocessing_num_workers, 1))


def try_generation(generating_args: Any, *, is_api: bool) -> None:
    """Generate a token by a model of a few numbers."""
    options = {name: getattr(generating_args, name) for name in GENERATION}
    if is_api and not options["temperature"]:
        options["do_sample"] = False  # as HuggingfaceEngine
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, num_key_value_heads=1, **small))
    model.generate(torch.tensor([[1]]), generation_config=GenerationConfig(**options, max_new_tokens=1, pad_token_id=0))


def text_of(error: BaseException) -> str:
    text = str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)
    if not isinstance(error, ValueError | RuntimeError | OSError | AssertionError | ImportError) or not text:
        text = f"{type(error).__name__}: {text}"
    return f"{text} ({text_of(error.__cause__)})" if error.__cause__ is not None else text


def kind_of(error: Exception) -> str:
    is_missing = isinstance(error, ImportError) or "to be installed" in str(error) or "is not installed" in str(error)
    return "missing" if is_missing else "refused"


def refusal(command: str, arguments: dict[str, Any], torchrun: bool | None) -> Refusal | None:
    try:
        try_libraries(command, arguments, parsed(command, arguments, torchrun))
    except Exception as error:
        return kind_of(error), " ".join(text_of(error).split())
    return None


def distance(name: str, message: str) -> int:
    """How far a message is from naming an argument: 0 by its name, 1 by a part of it, 2 not at all."""
    if re.search(rf"\b{name}\b", message):
        return 0
    return 1 if any(len(part) > 3 and part in message.lower() for part in name.split("_")) else 2


def refusals(command: str, arguments: dict[str, Any], torchrun: bool | None) -> Iterator[Problem]:
    """Each refusal with the arguments that it hangs on: those without which LLaMA-Factory says something else.

    It stops at its first. Another one is there for certain only if it is what comes whichever of them is left out.
    """
    given = dict(arguments)
    for _ in range(MAX_PROBLEMS):
        found = refusal(command, given, torchrun)
        if found is None:
            return
        without = {
            name: refusal(command, {key: value for key, value in given.items() if key != name}, torchrun)
            for name in given
            if name not in STRUCTURE
        }
        names = [name for name, other in without.items() if other != found]
        names.sort(key=lambda name: (distance(name, found[1]), without[name] is not None))
        yield {"arguments": names, "kind": found[0], "message": found[1]}
        if not names or len({without[name] for name in names}) > 1:
            return
        del given[names[0]]


def model_problems(model_args: Any, *, is_trainable: bool) -> Iterator[Problem]:
    """What the model's own files show: tokenizer, configuration, the packages of its quantization."""
    name = "quantization_bit" if model_args.quantization_bit is not None else "model_name_or_path"
    try:
        tokenizer, config = load_tokenizer(model_args)["tokenizer"], load_config(model_args)
    except Exception as error:
        kind = "refused" if os.path.isdir(model_args.model_name_or_path) else "unknown"  # noqa: PTH112
        yield {"arguments": ["model_name_or_path"], "kind": kind, "message": text_of(error)}
        return
    try:
        if model_args.export_quantization_bit is None:  # else it reads the dataset that it calibrates by
            quantization.configure_quantization(config, tokenizer, model_args, is_trainable, {})
        if getattr(config, "quantization_config", None):
            AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True).validate_environment()
    except (ImportError, ValueError) as error:
        yield {"arguments": [name], "kind": kind_of(error), "message": text_of(error)}
    except RuntimeError:
        pass  # there is no GPU here
    except Exception as error:
        yield {"arguments": [name], "kind": "unknown", "message": text_of(error)}


def inputs(command: str, given: dict[str, Any], torchrun: bool | None, limit: int) -> tuple[list[Problem], Any]:
    """What the model's files and the first records show, of arguments that the parser takes."""
    arguments = parsed(command, given, torchrun)
    problems = list(model_problems(arguments[0], is_trainable=command == "train"))
    if problems or command != "train" or not limit:
        return problems, None
    try:
        from datasets_probe import probe

        return [], probe(*arguments[:4], limit)
    except Exception as error:
        message = f"the records were not read: {type(error).__name__}: {error}"
        return [{"arguments": ["dataset"], "kind": "unknown", "message": message}], None


def answer(question: dict[str, Any]) -> dict[str, Any]:
    problems: list[Problem] = []
    found: list[Any] = [None] * len(question["points"])
    known: dict[str, tuple[list[Problem], Any]] = {}  # the points of a sweep have most of it in common
    decisive = {each.name for each in (*dataclasses.fields(ModelArguments), *dataclasses.fields(DataArguments))}
    decisive |= {"stage", "deepspeed"}
    for number, point in enumerate(question["points"]):
        for command in ("train", "api", "export"):
            given, torchrun = point.get(command), point.get("torchrun")
            if given is None:
                continue
            own = list(refusals(command, given, torchrun))
            if not own and (command == "train" or point.get("train") is None):
                key = json.dumps([command, {name: given[name] for name in given if name in decisive}])
                if key not in known:
                    known[key] = inputs(command, given, torchrun, question["limit"])
                own, found[number] = known[key]
            problems += [{"point": number, "command": command, **each} for each in own]
    return {"problems": problems, "datasets": found}


if __name__ == "__main__":
    stand_in()
    question = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        text = json.dumps(answer(question))
        os.chdir("/")
    print()
    print(text)
