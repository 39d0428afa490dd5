"""An output folder of an earlier training, as the arguments that its files tell, and a list of those that none tells.

training_args.yaml, which LLaMA Board leaves, is complete. Without it: adapter_config.json, trainer_state.json and the
model card. training_args.bin is never opened: it is pickled, and unpickling runs code.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.files import json_mapping, read_file
from orchestrator.importing.config_file import Comments, read_config
from orchestrator.importing.importer import Draft
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.arguments import Argument, argument_problem

MAX_TEXT_BYTES = 1 << 20
MAX_STATE_BYTES = 32 << 20  # trainer_state.json has an entry for each logged step
MAX_VALUE_CHARS = 1000
_OF_A_TRAINING = ("trainer_log.jsonl", "trainer_state.json", "training_args.yaml")
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})")
# What is read of each file: its name there, and the argument's.
_ADAPTER = {
    "r": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_rslora": "use_rslora",
    "use_dora": "use_dora", "target_modules": "lora_target", "modules_to_save": "additional_target",
}  # fmt: skip
_CARD = {
    "learning_rate": "learning_rate", "seed": "seed", "gradient_accumulation_steps": "gradient_accumulation_steps",
    "lr_scheduler_type": "lr_scheduler_type", "lr_scheduler_warmup_steps": "warmup_steps",
    "lr_scheduler_warmup_ratio": "warmup_ratio", "num_epochs": "num_train_epochs", "training_steps": "max_steps",
    "label_smoothing_factor": "label_smoothing_factor",
}  # fmt: skip
_BATCH_SIZES = {f"{kind}_batch_size": f"per_device_{kind}_batch_size" for kind in ("train", "eval")}
_HEADING = "The following hyperparameters were used during training:\n"
_OPTIMIZER = ("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
_ADAM = re.compile(
    r"Use (?:OptimizerNames\.)?(\S+) with betas=\(([^,()]+),([^,()]+)\) and epsilon=(\S+)"
    r"(?: and optimizer_args=(?:No additional optimizer arguments|(.*)))?"
)
_NEEDED = ("model_name_or_path", "finetuning_type", "dataset", "learning_rate", "seed")
# What no file tells, for the reader to fill in.
UNKNOWN = (
    "stage: in no file; a spec's default is sft",
    "template: in no file; chat_template.jinja or tokenizer_config.json may show what it looks like",
    "cutoff_len, packing, max_samples, dataset_dir, val_size, eval_dataset: in no file",
    "bf16, pure_bf16, weight_decay, max_grad_norm, deepspeed, fsdp: only in training_args.bin, which is not opened",
    "quantization_bit, adapter_name_or_path, settings of freeze, dpo, kto and ppo: in no file",
)


def read_output_folder(folder: Path, arguments: Mapping[str, Argument]) -> Draft:
    """What an output folder, or a checkpoint within one, tells: each argument with a comment that names its file.

    Raises:
        SpecError: nothing in it tells of a training, or it belongs to a run of ours.
    """
    folder = folder.absolute()
    for run in map(RunDir, (folder, folder.parent, folder.parent.parent)):
        if run.record.is_file() and run.spec.is_file() and {folder, folder.parent} & {run.path, run.output}:
            message = f"{folder} belongs to the run {run.path.name}, which has its spec"
            raise SpecError(message, f"orchestrator rerun {run.path.name}, or copy {run.spec}")
    return _Folder(folder, arguments).read()


class _Folder:
    """One folder, while it is read. The first file that has an argument is believed."""

    def __init__(self, folder: Path, arguments: Mapping[str, Argument]) -> None:
        self.folder, self.known = folder, arguments
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []
        self.environment: dict[str, str] = {}
        around = [folder.parent] if any((folder.parent / name).is_file() for name in _OF_A_TRAINING) else []
        found = {int(match[1]): each for each in folder.iterdir() if (match := _CHECKPOINT.fullmatch(each.name))}
        newest = [found[max(found)]] if found else []
        self.folders = [folder, *(around if _CHECKPOINT.fullmatch(folder.name) else newest)]

    def read(self) -> Draft:
        place, path = str(self.folder), self._find("training_args.yaml")
        if path is not None:
            try:
                return Draft("train", read_config(path)[0], place)
            except SpecError as error:
                self.notes.append(f"{self._label(path)} was not read: {error.message}")
        self._adapter()
        state, source = self._mapping("trainer_state.json")
        for name in ("logging_steps", "save_steps"):
            self._add(name, state.get(name), source)
        self._card(state.get("train_batch_size"), source)
        if self._find("llamaboard_config.yaml"):
            self.notes.append("llamaboard_config.yaml, a form of LLaMA Board, was not read")
        if not self.values:
            heads = f"{place} has no training_args.yaml, adapter_config.json, trainer_state.json or model card to read"
            raise SpecError("\n  ".join([heads, *self.notes]), "give a training's output_dir")
        missing = ", ".join(name for name in _NEEDED if name not in self.values)
        unknown = [*([f"{missing}: in no file here"] if missing else []), *UNKNOWN]
        beside = {name: f"# from {source}" for name, source in self.sources.items()}
        comments = Comments(beside=beside, tail=[f"# not known: {each}" for each in unknown])
        values = {**self.values, "do_train": True}
        return Draft("train", values, place, comments=comments, environment=self.environment, notes=self.notes)

    def _adapter(self) -> None:
        config, source = self._mapping("adapter_config.json")
        self._add("model_name_or_path", config.get("base_model_name_or_path") or None, source)
        self._add("model_revision", config.get("revision"), source)
        if config.get("peft_type") == "LORA":
            self._add("finetuning_type", "lora", source)
            for key, name in _ADAPTER.items():
                value = config.get(key)
                is_words = isinstance(value, list) and all(isinstance(each, str) for each in value)
                if is_words or name not in ("lora_target", "additional_target"):
                    self._add(name, sorted(value or []) if is_words else value, source)
            self.notes.append("lora_target: the modules that were trained; it may have been written as 'all'")
        elif config:
            kind = str(config.get("peft_type"))[:40]
            self.notes.append(f"{source} has peft_type {kind}, whose settings were not read")

    def _card(self, state_batch_size: Any, state_source: str) -> None:
        """README.md, the card that transformers and peft write; that of a checkpoint has no list."""
        paths = [path for each in self.folders if (path := each / "README.md").is_file()]
        texts = [(self._text(path), self._label(path)) for path in paths]
        text, source = next((each for each in texts if _HEADING in each[0]), texts[0] if texts else ("", ""))
        base_model, tags = _head(text)
        self._add("model_name_or_path", base_model or None, source)
        names = dict(_CARD)
        if "llama-factory" in tags or any((each / "trainer_log.jsonl").is_file() for each in self.folders):
            names |= _BATCH_SIZES  # each process has one device, so that a process's batch size is a device's
            method = next((tag for tag in ("lora", "freeze", "full") if tag in tags), None)
            self._add("finetuning_type", method, source)
            self._add("dataset", _datasets(text) or None, source)
            self._add("per_device_train_batch_size", state_batch_size, state_source)
        else:
            reason = "so dataset and batch sizes were not read, and other names may mean other things"
            self.notes.append(f"nothing here shows that LLaMA-Factory made it, {reason}")
        lines = text.partition(_HEADING)[2].lstrip("\n").partition("\n\n")[0].splitlines()
        listed = {key: value for key, _, value in (line[2:].partition(": ") for line in lines if line[:2] == "- ")}
        for key, name in names.items():
            self._add(name, self._typed(name, listed.get(key)), source)
        self._add("fp16", True if listed.get("mixed_precision_training") == "Native AMP" else None, source)
        if found := _ADAM.fullmatch(listed.get("optimizer", "")):
            for name, value in zip(_OPTIMIZER, (found[1].lower(), *found.groups()[1:]), strict=True):
                self._add(name, self._typed(name, value), source)
        elif "optimizer" in listed:
            self.notes.append(f"optim: {source} has {_shown(listed['optimizer'])}, which was not read")
        if re.fullmatch(r"[2-9]|\d{2,4}", devices := listed.get("num_devices", "")):
            self.environment["NPROC_PER_NODE"] = devices
            self.notes.append(f"it was trained with {devices} processes: compare compute.nproc_per_node and nnodes")

    def _add(self, name: str, value: Any, source: str) -> None:
        """One argument; a value that does not fit is noted and dropped."""
        if value is None:
            return
        value = self.known[name].typed(value) if name in self.known else value
        texts = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
        problem = argument_problem(name, value, "train", self.known) or ""
        if isinstance(value, float) and not math.isfinite(value):
            problem = "it is no finite number"
        elif any(len(each) > MAX_VALUE_CHARS or not each.isprintable() for each in texts):
            problem = "it is no text of one line"
        if problem:
            reason = " ".join(problem.split())[:200]
            self.notes.append(f"{source} has {name}: {_shown(value)}, not taken over: {reason}")
        elif name not in self.values:
            self.values[name], self.sources[name] = value, source
        elif self.values[name] != value:
            first = f"{self.sources[name]} has {_shown(self.values[name])}"
            self.notes.append(f"{name}: {first}, but {source} has {_shown(value)}: the first is taken")

    def _typed(self, name: str, text: str | None) -> Any:
        """A card's text as a number, where it is one."""
        kinds = self.known[name].kinds if name in self.known else frozenset[str]()
        try:
            return text if text is None or len(text) > 40 else float(text) if "float" in kinds else int(text)
        except ValueError:
            return text

    def _find(self, name: str) -> Path | None:
        """The file, in the first of the folders that has it."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def _label(self, path: Path) -> str:
        return os.path.relpath(path, self.folder)

    def _text(self, path: Path) -> str:
        """A file's text; '' and a note where it cannot be read."""
        try:
            return read_file(path, MAX_TEXT_BYTES).decode("utf-8", "replace")
        except (OSError, OrchestratorError) as error:
            self.notes.append(str(error))
            return ""

    def _mapping(self, name: str) -> tuple[dict[str, Any], str]:
        """A JSON file's mapping and what the file is called; {} and a note where it has none."""
        path = self._find(name)
        found = json_mapping(path, MAX_STATE_BYTES) if path else {}
        if path and found is None:
            self.notes.append(f"{self._label(path)} was not read: it is too large, or holds no JSON mapping")
        return found or {}, self._label(path) if path else name


def _head(text: str) -> tuple[str, list[str]]:
    """base_model and tags of a card's YAML head, a stranger's text: nothing of it is constructed."""
    found = re.match(r"---\n(.{0,20000}?)\n---\n", text, re.DOTALL)
    try:
        root = yaml.compose(found[1], Loader=yaml.SafeLoader) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        root = None
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    values = {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
    base, tags = values.get("base_model"), values.get("tags")
    listed = tags.value if isinstance(tags, yaml.SequenceNode) else []
    texts = [str(each.value) for each in listed if isinstance(each, yaml.ScalarNode)]
    return str(base.value) if isinstance(base, yaml.ScalarNode) else "", texts


def _datasets(text: str) -> str | list[str]:
    """'... on the a dataset.', '... on the a, the b and the c datasets.' of the sentence about a card's model."""
    sentence = next((line for line in text.splitlines() if line.startswith("This model ") and len(line) < 4000), "")
    found = re.search(r".*(?:\)|from scratch) on the (.*) (datasets?)\.$", sentence)
    first, _, last = found[1].rpartition(" and the ") if found else ("", "", "")
    return [] if found is None else found[1] if found[2] == "dataset" else [*first.split(", the "), last]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
