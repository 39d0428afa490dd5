"""What `accelerate launch` sets for a training by environment variables: accelerate's own functions are called.

stdin: [{"config": a configuration file's values, or null, "options": words}]. stdout: for each {"environment", "notes":
what is not taken over}. Runs in LLaMA-Factory's Python.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

# Neither GPUs, nor cores, nor the default_config.yaml of this machine may decide anything; that is looked for
# while accelerate is imported. OMP_NUM_THREADS=1 is its own default, but on a CPU.
HERE = {"PATH": os.defpath, "HF_HOME": tempfile.gettempdir() + "/none"}
HERE |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
os.environ.clear()
os.environ.update(HERE)
import accelerate.commands.launch as command  # type: ignore[import-untyped]  # noqa: E402
from accelerate.utils import launch  # type: ignore[import-untyped]  # noqa: E402


def environment(config: Any, options: list[str], notes: list[str]) -> dict[str, str]:
    given = parsed(options)
    is_known = config is not None or given.cpu or bool(given.num_processes)
    if not is_known:  # accelerate would count the GPUs that it sees
        options = [*options, "--num_processes", "2"]
        given = parsed(options)
        notes.append("num_processes is not given: LLaMA-Factory takes all devices that it sees")
    if config is None:
        notes.append("without --config_file it also reads its default_config.yaml, which is not taken over")
        config = {"distributed_type": "MULTI_GPU" if not given.cpu and given.num_processes > 1 else "NO"}
    elif "kt_config" in config:
        notes.append("kt_config is not taken over: LLaMA-Factory reads use_kt and kt_weight_path")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({key: value for key, value in config.items() if key != "kt_config"}))
        args, defaults, has_precision = command._validate_launch_command(parsed([*options, "--config_file", str(path)]))
    if args.tpu or args.use_megatron_lm or type(defaults).__name__ == "SageMakerConfig":
        raise ValueError("TPUs, Megatron-LM and SageMaker have no counterpart here")
    port, several = args.main_process_port, not args.cpu and (args.use_fsdp or args.multi_gpu or args.use_deepspeed)
    launch.is_port_in_use = lambda port: False  # whether it is in use here says nothing
    if several and args.use_deepspeed:
        fields = [*defaults.deepspeed_config, *(["mixed_precision"] if has_precision else [])]
        args.deepspeed_fields_from_accelerate_config = ",".join(fields)
        found = launch.prepare_deepspeed_cmd_env(args)[1]
        found = {key: text for key, text in found.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    else:
        found = launch.prepare_multi_gpu_env(args) if several else launch.prepare_simple_launcher_cmd_env(args)[1]
    found = {key: str(text) for key, text in found.items() if HERE.get(key) != text or key == "OMP_NUM_THREADS"}
    if several:
        found["FORCE_TORCHRUN"] = "1"
        found |= {"NPROC_PER_NODE": str(args.num_processes // args.num_machines)} if is_known else {}
        if args.num_machines > 1:
            found |= {"NNODES": str(args.num_machines), "NODE_RANK": str(args.machine_rank or 0)}
            found |= {"MASTER_ADDR": str(args.main_process_ip)} if args.main_process_ip else {}
        found |= {"MASTER_PORT": str(port)} if port else {}
    return found


def parsed(words: list[str]) -> Any:
    def fail(message: str) -> NoReturn:
        raise ValueError(message)

    parser = command.launch_command_parser()
    parser.error = fail
    return parser.parse_args([*words, "train.py"])


def answer(question: Any) -> dict[str, Any]:
    notes: list[str] = []
    try:
        found = environment(question["config"], question["options"], notes)
    except (Exception, SystemExit) as error:
        found, notes = {}, [f"its options are not taken over: {error}"]
    return {"environment": found, "notes": notes}


if __name__ == "__main__":
    print(json.dumps([answer(each) for each in json.load(sys.stdin)]))
