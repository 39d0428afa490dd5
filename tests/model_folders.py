"""Small model and adapter folders, written byte by byte."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator.specs.arguments import Argument
from orchestrator.upstream.installation import Installation

MODULES = ("model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
SHAPE = (4, 6)


def safetensors(path: Path, tensors: Mapping[str, tuple[int, ...]]) -> Path:
    """A whole file of F32 tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(position))
    return path


def model_folder(folder: Path) -> Path:
    """A model that is whole: configuration, tokenizer, one weight file with a norm beside three matrices."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    matrices = {f"{module}.weight": SHAPE for module in MODULES}
    safetensors(folder / "model.safetensors", {**matrices, "model.norm.weight": (6,)})
    return folder


def sharded_folder(folder: Path) -> Path:
    """The same in two shards with an index."""
    model_folder(folder)
    (folder / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": MODULES[:1], "model-00002-of-00002.safetensors": MODULES[1:]}
    for name, modules in shards.items():
        safetensors(folder / name, {f"{module}.weight": SHAPE for module in modules})
    weight_map = {f"{module}.weight": name for name, modules in shards.items() for module in modules}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def adapter_folder(folder: Path) -> Path:
    """A LoRA adapter of rank 2 for q_proj."""
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": "OWNER/BASE", "r": 2, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = f"base_model.model.{MODULES[1]}"
    tensors = {f"{name}.lora_A.weight": (2, SHAPE[1]), f"{name}.lora_B.weight": (SHAPE[0], 2)}
    safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


TEMPLATES = '''
class ReasoningTemplate(Template):
    pass

class Quick(ReasoningTemplate):
    pass

def register_template(name, **rest):
    r"""An example: register_template(name="custom")"""

register_template(name="plain")
register_template(name="thinker", template_class=ReasoningTemplate)
register_template(name="quick", template_class=Quick)
if True:
    register_template(name="hidden")
'''
MODELS = """
def register_model_group(models, template=None, multimodal=False):
    for name in models:
        if template is not None and (any(mark in name for mark in ("-Chat", "-Talk")) or multimodal):
            DEFAULT_TEMPLATE[name] = template

register_model_group(
    models={
        "One-Base": {DownloadSource.DEFAULT: "Owner/One", DownloadSource.MODELSCOPE: "Other/Uno"},
        "One-Chat": {DownloadSource.DEFAULT: "Owner/One-it"},
        "One.5-Talk": {DownloadSource.DEFAULT: "Owner/One.5-it"},
        "Tiny": {DownloadSource.DEFAULT: "Owner/Tiny"},
    },
    template="plain",
)
register_model_group(models={"Eye": {DownloadSource.DEFAULT: "Owner/Eye"}}, template="thinker", multimodal=True)
register_model_group(models={"Two-Chat": {DownloadSource.DEFAULT: "Else/One"}}, template="quick")
register_model_group(models={"Three-Chat": {DownloadSource.DEFAULT: "Owner/Three"}})
"""


def llamafactory_sources(root: Path) -> Installation:
    """A LLaMA-Factory that has three templates, some models and no other source."""
    package = root / "site" / "llamafactory"
    for name, text in (("data/template.py", TEMPLATES), ("extras/constants.py", MODELS)):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return Installation(root / "llamafactory-cli", Path(sys.executable), package, {})


def declared_arguments() -> dict[str, Argument]:
    """As LLaMA-Factory 0.9.5 declares them (declared_arguments.py prints the file)."""
    found = json.loads((Path(__file__).parent / "data" / "arguments-0.9.5.json").read_text("utf-8"))
    for each in found.values():
        each |= {name: frozenset(each[name]) for name in ("kinds", "commands")}
        each["choices"] = each["choices"] and tuple(each["choices"])
    return {name: Argument(name, **each) for name, each in found.items()}
