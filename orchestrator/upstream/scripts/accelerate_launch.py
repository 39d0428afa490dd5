"""What `accelerate launch` tells a training by environment variables: accelerate's own functions are called.

Question: a list of {"config": the values of a configuration file, or null, "options": words}.
Answer: a list of {"environment": variables, "notes": what is not taken over}, in its order.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

# Neither GPUs, nor cores, nor the default_config.yaml of this machine may decide anything.
_HERE = {"PATH": os.defpath, "HF_HOME": tempfile.gettempdir() + "/none", "CUDA_VISIBLE_DEVICES": ""}
_HERE["OMP_NUM_THREADS"] = "1"  # accelerate's own default, but on a CPU


def main() -> None:
    """Answer the question on stdin."""
    question = json.load(sys.stdin)
    os.environ.clear()
    os.environ.update(_HERE)
    answers = []
    for each in question:
        notes: list[str] = []
        try:
            environment = _environment(each["config"], each["options"], notes)
        except (Exception, SystemExit) as error:
            environment, notes = {}, [f"its options are not taken over: {error}"]
        answers.append({"environment": environment, "notes": notes})
    sys.stdout.write(json.dumps(answers) + "\n")


def _environment(config: Mapping[str, Any] | None, options: list[str], notes: list[str]) -> dict[str, str]:
    from accelerate.commands.launch import _validate_launch_command  # type: ignore[import-untyped]

    given = _parsed(options)
    words = list(options)
    if config is None:
        notes.append("without --config_file it also reads its default_config.yaml, which is not taken over")
    elif "kt_config" in config:
        notes.append("kt_config is not taken over: LLaMA-Factory reads use_kt and kt_weight_path")
    processes = given.num_processes or (config or {}).get("num_processes") or 0
    is_known = isinstance(processes, int) and processes > 0
    is_one = given.cpu or (config or {}).get("distributed_type") in ("NO", "MULTI_CPU")
    if not is_known:  # accelerate would count the GPUs that it sees
        words += ["--num_processes", "1" if is_one or config is None else "2"]
        notes += [] if is_one else ["num_processes is not given: LLaMA-Factory takes all devices that it sees"]
    chosen = given.multi_gpu or given.tpu or given.use_deepspeed or given.use_fsdp or given.use_megatron_lm
    if config is None and is_known and processes > 1 and not (given.cpu or chosen):
        words.append("--multi_gpu")
    with tempfile.TemporaryDirectory() as folder:
        if config is not None:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps({key: value for key, value in config.items() if key != "kt_config"}))
            words += ["--config_file", str(path)]
        args, defaults, has_precision = _validate_launch_command(_parsed(words))
    if args.tpu or args.use_megatron_lm or type(defaults).__name__ == "SageMakerConfig":
        raise ValueError("TPUs, Megatron-LM and SageMaker have no counterpart here")
    port, several = args.main_process_port, not args.cpu and (args.use_fsdp or args.multi_gpu or args.use_deepspeed)
    environment = _prepared(args, several, list(defaults.deepspeed_config) if defaults else [], has_precision)
    if several:
        environment["FORCE_TORCHRUN"] = "1"
        if is_known:
            environment["NPROC_PER_NODE"] = str(args.num_processes // args.num_machines)
        if args.num_machines > 1:
            environment |= {"NNODES": str(args.num_machines), "NODE_RANK": str(args.machine_rank or 0)}
            environment |= {"MASTER_ADDR": str(args.main_process_ip)} if args.main_process_ip else {}
        environment |= {"MASTER_PORT": str(port)} if port else {}
    elif config is None and not is_known and not args.cpu:  # with GPUs it sets neither
        return {key: text for key, text in environment.items() if not key.startswith(("KMP_", "ACCELERATE_USE_CPU"))}
    return environment


def _parsed(words: list[str]) -> Any:
    from accelerate.commands.launch import launch_command_parser

    def fail(message: str) -> NoReturn:
        raise ValueError(message)

    parser = launch_command_parser()
    parser.error = fail
    return parser.parse_args([*words, "train.py"])


def _prepared(args: Any, several: bool, deepspeed_fields: list[str], has_precision: bool) -> dict[str, str]:
    """The variables that accelerate adds to those of this process."""
    from accelerate.utils import launch  # type: ignore[import-untyped]

    launch.is_port_in_use = lambda port: False  # whether it is in use here says nothing
    if several and args.use_deepspeed:
        fields = [*deepspeed_fields, *(["mixed_precision"] if has_precision else [])]
        args.deepspeed_fields_from_accelerate_config = ",".join(fields)
        environment = launch.prepare_deepspeed_cmd_env(args)[1]
        environment = {key: text for key, text in environment.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    elif several:
        environment = launch.prepare_multi_gpu_env(args)
    else:
        environment = launch.prepare_simple_launcher_cmd_env(args)[1]
    kept = {key: text for key, text in environment.items() if _HERE.get(key) != text or key == "OMP_NUM_THREADS"}
    return {key: str(text) for key, text in kept.items()}


if __name__ == "__main__":
    main()
