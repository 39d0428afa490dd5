"""What LLaMA-Factory's own parser, its libraries and its loader say to arguments. No GPU is used, no weights are read.

stdin: {"points": [{"train", "api", "export": arguments or null}], "limit": how many records of each dataset are read}.
stdout: {"problems": [{"point", "command", "arguments": the names that it hangs on, "message", "kind"}], "datasets":
[by point, what datasets_probe.probe gives, or null]}. kind: refused; missing, a package; unknown, not checked here.

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

from llamafactory.hparams import DataArguments, ModelArguments, parser
from llamafactory.model import load_config, load_tokenizer
from llamafactory.model.model_utils import quantization
from transformers import Trainer
from transformers.integrations import get_reporting_integration_callbacks
from transformers.quantizers import AutoHfQuantizer
from transformers.training_args import ParallelMode

Problem = dict[str, Any]
Refusal = tuple[str, str]
"""kind and message."""
MAX_PROBLEMS = 10
# Without these everything else is refused.
STRUCTURE = {"model_name_or_path", "dataset", "dataset_dir", "output_dir", "do_train"}


class Launch:
    """What the training will have, and this process has not."""

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
        return ParallelMode.DISTRIBUTED if Launch.deepspeed is not None else ParallelMode.NOT_PARALLEL

    parser._parse_train_args = parse_train
    parser.TrainingArguments.parallel_mode = property(mode)
    parser.is_deepspeed_zero3_enabled = quantization.is_deepspeed_zero3_enabled = lambda: Launch.zero3
    parser.is_torch_bf16_gpu_available = lambda: True


def parsed(command: str, arguments: dict[str, Any]) -> Any:
    """The parser's dataclasses, for the launch as it will be, on the CPU."""
    given = copy.deepcopy(arguments)
    if command != "train":
        return parser.get_infer_args(given)
    Launch.deepspeed = given.pop("deepspeed", None)
    Launch.zero3 = zero_stage(Launch.deepspeed) == 3
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


def text_of(error: BaseException) -> str:
    text = str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)
    if not isinstance(error, ValueError | RuntimeError | OSError | AssertionError | ImportError) or not text:
        text = f"{type(error).__name__}: {text}"
    return f"{text} ({text_of(error.__cause__)})" if error.__cause__ is not None else text


def kind_of(error: Exception) -> str:
    is_missing = isinstance(error, ImportError) or "to be installed" in str(error) or "is not installed" in str(error)
    return "missing" if is_missing else "refused"


def refusal(command: str, arguments: dict[str, Any]) -> Refusal | None:
    try:
        training_args = parsed(command, arguments)[2]
        if command == "train":  # packages that are looked for after the model is loaded
            for callback in get_reporting_integration_callbacks(training_args.report_to):
                callback()
            Trainer.get_optimizer_cls_and_kwargs(training_args)
    except Exception as error:
        return kind_of(error), " ".join(text_of(error).split())
    return None


def distance(name: str, message: str) -> int:
    """How far a message is from naming an argument: 0 by its name, 1 by a part of it, 2 not at all."""
    if re.search(rf"\b{name}\b", message):
        return 0
    return 1 if any(len(part) > 3 and part in message.lower() for part in name.split("_")) else 2


def refusals(command: str, arguments: dict[str, Any]) -> Iterator[Problem]:
    """Each refusal with the arguments that it hangs on: those without which LLaMA-Factory says something else.

    It stops at its first. Another one is there for certain only if it is what comes whichever of them is left out.
    """
    given = dict(arguments)
    for _ in range(MAX_PROBLEMS):
        found = refusal(command, given)
        if found is None:
            return
        without = {
            name: refusal(command, {key: value for key, value in given.items() if key != name})
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


def inputs(command: str, given: dict[str, Any], limit: int) -> tuple[list[Problem], Any]:
    """What the model's files and the first records show, of arguments that the parser takes."""
    arguments = parsed(command, given)
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
            given = point.get(command)
            if given is None:
                continue
            own = list(refusals(command, given))
            if not own and (command == "train" or point.get("train") is None):
                key = json.dumps([command, {name: given[name] for name in given if name in decisive}])
                if key not in known:
                    known[key] = inputs(command, given, question["limit"])
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
