"""How far the losses of a repeated training stray: the measurement behind the band of runs/differences.py.

    python tests/loss_band.py MODEL [--steps 12] [--batch 4] [--every 1] [VARIANT ...]

Trains MODEL, a folder, on captions_en_de with the llamafactory-cli beside this Python, once as it is and once for each
way of changing what should not matter (threads, the processor's instructions, how a batch is split, bf16) or should
(seed, one sentence of the data). Prints each variant's relative differences from the first, by logged loss.

Measured: LoRA of rank 16, LoRA+ 16, learning rate 5e-4, as in runs/demo.yaml, on 2 CPU cores with AVX-512 and AMX,
torch 2.14.1. The largest relative difference of the losses 1 to 10, and the first; TINY is that of tests/tiny_model.py:

    SmolLM2-135M-Instruct, 4 examples a loss                         largest   first
    again; peft 0.18.0, transformers 5.5.0 or torch 2.13.0 instead   0         0
    gradient accumulation 2 x 2 for 1 x 4                            3.5e-07   0
    2 threads for 1                                                  5.1e-06   0
    AVX2 for AVX-512                                                 2.8e-05   1.8e-06
    bf16 for float32                                                 5.3e-03   1.3e-03
    the same with TINY                                               9.6e-03   5.0e-04
    2 threads for 1, both in bf16                                    3.3e-03   0
    learning rate 1 % higher                                         4.2e-03   0
    one sentence of 500 changed                                      0         0
    seed 43, seed 44 for 42 (the smaller)                            2.7e-01   3.0e-03
    ... 50 examples a loss (--batch 10 --every 5): bf16              7.3e-03   7.3e-03
    seeds                                                            4.9e-02   3.6e-02
    TINY, 250 examples a loss (--batch 50 --every 5): bf16           5.3e-03   1.9e-04
    seeds                                                            1.1e-02   3.0e-03
    TINY, 500, all of the data (--batch 50 --every 10): bf16         2.3e-03   7.2e-05
    seeds                                                            3.0e-03   6.8e-04

torch 2.14.1 and 2.9.1, another day, first three losses: 1.5e-3, 1.1e-2, 3.3e-3. The differences do not grow. So:
    float32             5e-4: 18 times what rounding does, a sixth of what the seeds do where they do least
    bf16 and the like   2e-2: twice what rounding does, less than half of what the seeds do with 50 examples a loss
What a seed does becomes less with the examples of a loss: with all of the data, no more than rounding. So whatever
differs in the record that chooses other examples, weights or steps makes "different" of any difference, however small.
Not measured: GPUs, more than one process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

CAPTIONS = Path(__file__).parent.parent / "dataset_info" / "captions_en_de"
BASE = yaml.safe_load("""{
  stage: sft, do_train: true, finetuning_type: lora, lora_rank: 16, lora_target: all, loraplus_lr_ratio: 16,
  learning_rate: 5.0e-4, lr_scheduler_type: cosine, template: smollm2, default_system: "", dataset: captions,
  dataset_dir: ., output_dir: output, overwrite_output_dir: true, cutoff_len: 256, gradient_accumulation_steps: 1,
  save_strategy: "no", use_cpu: true, disable_gradient_checkpointing: true, report_to: none, seed: 42,
}""")
TWO_THREADS = {"OMP_NUM_THREADS": "2"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# name -> arguments and environment that differ from the first run's
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "again": ({}, {}),
    "2 threads": ({}, TWO_THREADS),
    "AVX2 only": ({}, AVX2),
    "batch 2x2": ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, {}),
    "bf16": ({"bf16": True}, {}),
    "bf16, 2 threads": ({"bf16": True}, TWO_THREADS),
    "bf16, AVX2 only": ({"bf16": True}, AVX2),
    "rate +1 %": ({"learning_rate": 5.05e-4}, {}),
    "one sentence": ({"dataset": "changed"}, {}),
    **{f"seed {seed}": ({"seed": seed}, {}) for seed in (43, 44, 45)},
}


def main(wanted: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_data(place)
        sizes = {"max_steps": wanted.steps, "per_device_train_batch_size": wanted.batch, "logging_steps": wanted.every}
        base = {**BASE, "model_name_or_path": str(wanted.model.resolve()), **sizes}
        first = losses(place, base, {})
        print(f"{'first':18}", *(f"{each:8.4f}" for each in first), flush=True)
        firsts = {False: first}
        for name in wanted.variants or list(VARIANTS):
            arguments, environment = VARIANTS[name]
            found = losses(place, {**base, **arguments}, environment)
            # threads and instructions are compared within one precision
            against = first if name == "bf16" else firsts.setdefault("bf16" in arguments, found)
            if name == "bf16":
                firsts[True] = found
            differences = [abs(now - then) / then for then, now in zip(against, found, strict=True)]
            print(f"{name:18}", *(f"{each:8.1e}" for each in differences), flush=True)


def write_data(place: Path) -> None:
    sides = [(CAPTIONS / f"train.{language}").read_text("utf-8").splitlines() for language in ("en", "de")]
    instruction = "Translate the following English sentence into German."
    records = [{"instruction": instruction, "input": en, "output": de} for en, de in zip(*sides, strict=True)]
    changed = [{**records[0], "output": records[0]["output"] + " Ja."}, *records[1:]]
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    info = {name: {"file_name": f"{name}.json", "columns": columns} for name in ("captions", "changed")}
    for name, content in (("captions", records), ("changed", changed), ("dataset_info", info)):
        (place / f"{name}.json").write_text(json.dumps(content), "utf-8")


def losses(place: Path, arguments: dict[str, Any], environment: dict[str, str]) -> list[float]:
    (place / "train.yaml").write_text(json.dumps(arguments), "utf-8")
    programs = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    argv = [programs / "llamafactory-cli", "train", "train.yaml"]
    done = subprocess.run(argv, cwd=place, env={**env, **environment}, capture_output=True, text=True, timeout=1200)
    if done.returncode != 0:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    events = [json.loads(line) for line in (place / "output" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    return [event["loss"] for event in events if "loss" in event]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--every", type=int, default=1, help="logging_steps")
    main(parser.parse_intermixed_args())
