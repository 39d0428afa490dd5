"""An output folder of an earlier training, as the arguments that can be read from it, and those that cannot.

Covered: training_args.yaml, which LLaMA Board leaves and which is whole; without it adapter_config.json, README.md,
trainer_state.json and the rest of what LLaMA-Factory 0.9 leaves; a checkpoint-N.
Not covered: training_args.bin: it is pickled, and unpickling runs code. Whether the arguments are right.
Reads a bounded part of each file; opens no weights; writes nothing.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.importing.board import find_user_config, launcher_environment, read_board, without_secrets
from orchestrator.importing.config_file import read_config
from orchestrator.importing.model_card import ModelCard, read_card, read_optimizer
from orchestrator.importing.output_files import MAX_STATE_BYTES, Claims, OutputFiles
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.arguments import Argument
from orchestrator.upstream.installation import Installation

_LOOKED_FOR = ("training_args.yaml", "llamaboard_config.yaml", "adapter_config.json", "README.md", "trainer_state.json")
_METHODS = ("lora", "oft", "freeze", "full")
# A card's names, where they are not the argument's.
_HYPERPARAMETERS = {
    "learning_rate": "learning_rate",
    "seed": "seed",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "lr_scheduler_type": "lr_scheduler_type",
    "lr_scheduler_warmup_steps": "warmup_steps",
    "lr_scheduler_warmup_ratio": "warmup_ratio",
    "num_epochs": "num_train_epochs",
    "training_steps": "max_steps",
    "label_smoothing_factor": "label_smoothing_factor",
}
_ADAPTERS = {
    "LORA": {
        "r": "lora_rank",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "use_rslora": "use_rslora",
        "use_dora": "use_dora",
    },
    "OFT": {"r": "oft_rank", "oft_block_size": "oft_block_size", "module_dropout": "module_dropout"},
}
_COMMAND = "see the command of then"
_PICKLED = "in no file but training_args.bin"
# What no file tells, with the reason; the key is what it depends on.
_UNKNOWN = {
    "": (
        "template: in no file; chat_template.jinja or tokenizer_config.json may show what it looks like",
        f"cutoff_len, packing, max_samples, dataset_dir: in no file; {_COMMAND}",
        f"bf16, pure_bf16, weight_decay, max_grad_norm: {_PICKLED}; {_COMMAND}",
        f"neftune_noise_alpha, use_galore, use_badam and such: in no file; {_COMMAND}",
    ),
    "adapter": (
        f"quantization_bit: in no file whether the base model was quantized (QLoRA); {_COMMAND}",
        f"adapter_name_or_path: in no file whether it went on from another adapter; {_COMMAND}",
    ),
    "freeze": (f"freeze_trainable_layers, freeze_trainable_modules, freeze_extra_modules: in no file; {_COMMAND}",),
    "dpo": (f"pref_loss, pref_beta, pref_ftx, ref_model: in no file; {_COMMAND}",),
    "kto": (f"pref_beta, kto_chosen_weight, kto_rejected_weight, ref_model: in no file; {_COMMAND}",),
    "ppo": (f"reward_model, reward_model_type: in no file; {_COMMAND}",),
    "devices": (f"deepspeed, fsdp: {_PICKLED} whether one of them was used; {_COMMAND}",),
    "evaluated": (f"val_size, eval_dataset: it was evaluated, but in no file with what; {_COMMAND}",),
}


@dataclass(frozen=True)
class FolderRun:
    """What a folder tells about the training that it came from."""

    arguments: dict[str, Any]
    """Of `llamafactory-cli train`. From training_args.yaml: all that was given, as it stands there."""
    sources: dict[str, str]
    """Argument -> the file that it was read from, as seen from the folder."""
    unknown: list[str]
    """Arguments that matter for a rerun and are in no file: which, why, and where to look."""
    notes: list[str]
    own_run: Path | None = None
    """The run folder of ours that the folder belongs to: its spec.yaml has everything, so nothing was read."""
    num_devices: int | None = None
    """Processes that it was trained with, where a file says so."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that LLaMA Board starts it with."""
    is_whole: bool = False
    """Whether the arguments are all that were given. Else they are those of a training, without do_train."""


def read_output_folder(
    folder: Path, arguments: Mapping[str, Argument], installation: Installation | None = None
) -> FolderRun:
    """What an output folder, or a checkpoint within one, tells.

    Args:
        folder: the output folder.
        arguments: what read_arguments found.
        installation: LLaMA-Factory, for a llamaboard_config.yaml beside which training_args.yaml is missing.

    Raises:
        SpecError: no such folder, or nothing in it tells of a training.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise SpecError(f"{folder} is no folder", "give the output_dir of an earlier training")
    own = _own_run(folder)
    if own is not None:
        return FolderRun({}, {}, [], [f"{folder} belongs to the run {own.name}, whose spec has everything"], own)
    try:
        return _Folder(folder, arguments, installation).read()
    except OSError as error:  # a folder that may not be looked into
        raise SpecError(f"{folder} cannot be read: {error}") from error


def _own_run(folder: Path) -> Path | None:
    """The run folder that holds a folder, where that is its output, a checkpoint, its export, or itself."""
    for candidate in (folder, folder.parent, folder.parent.parent):
        run = RunDir(candidate)
        if run.record.is_file() and run.spec.is_file():
            return candidate if any(each in (folder, folder.parent) for each in (candidate, run.output)) else None
    return None


class _Folder:
    """One folder, while it is read."""

    def __init__(self, folder: Path, arguments: Mapping[str, Argument], installation: Installation | None) -> None:
        self.files = OutputFiles(folder)
        self.claims = Claims(arguments)
        self.installation = installation
        self.matters = [""]  # keys of _UNKNOWN
        self.unknown: list[str] = []
        self.num_devices: int | None = None
        self.environment: dict[str, str] = {}
        self.card, self.card_label = self._card()
        logged = any((each / "trainer_log.jsonl").is_file() for each in self.files.folders)
        self.is_llamafactory = logged or "llama-factory" in self.card.tags

    def read(self) -> FolderRun:
        self._whole()
        self._adapter()
        self._state()  # before the card: the steps that it has are those of a resumed run, too
        self._from_card()
        self._base_of_config()
        if not self.claims.values:
            said = "".join(f"; {each}" for each in self._notes())
            looked_for = ", ".join((*_LOOKED_FOR[:-1], f"or {_LOOKED_FOR[-1]} with anything about a training"))
            raise SpecError(f"{self.files.folder} has no {looked_for}{said}", "give the output_dir of a training")
        self._remarks()
        unknown = [] if self.claims.is_whole else [*self.unknown, *self._unknown()]
        return FolderRun(
            self.claims.values,
            self.claims.sources,
            unknown,
            self._notes(),
            num_devices=self.num_devices,
            environment=self.environment,
            is_whole=self.claims.is_whole,
        )

    def _notes(self) -> list[str]:
        return list(dict.fromkeys([*self.files.notes, *self.claims.notes]))

    def note(self, text: str) -> None:
        self.claims.notes.append(text)

    def _whole(self) -> None:
        """LLaMA Board's files, which have all that was given."""
        path = self.files.find("training_args.yaml")
        form = self.files.find("llamaboard_config.yaml")
        try:
            if path is not None:
                values, secrets = without_secrets(read_config(path).values)
                self.claims.take_whole(values, self.files.label(path))
                self.claims.notes += secrets
                self.environment = launcher_environment(values)
            elif form is not None and self.installation is not None:
                config = find_user_config(form.absolute().parents)
                run = read_board(read_config(form).values, self.installation, config)
                self.claims.take_whole(run.arguments, self.files.label(form))
                self.claims.notes += run.notes
                self.environment = run.environment
            elif form is not None:
                self.note(f"{self.files.label(form)} has all that was given: import it itself")
        except SpecError as error:
            self.note(f"LLaMA Board's file was not read: {error.message}")

    def _adapter(self) -> None:
        path = self.files.find("adapter_config.json")
        if path is None:
            return
        self.matters.append("adapter")
        config, source = self.files.mapping(path), self.files.label(path)
        self.claims.add("model_name_or_path", config.get("base_model_name_or_path") or None, source)
        self.claims.add("model_revision", config.get("revision"), source)
        kind = config.get("peft_type")
        if not isinstance(kind, str) or kind not in _ADAPTERS:
            self.note(f"{source} has peft_type {str(kind)[:40]}, which LLaMA-Factory does not train")
            return
        self.claims.add("finetuning_type", kind.lower(), source)
        for key, name in _ADAPTERS[kind].items():
            self.claims.add(name, config.get(key), source)
        self._modules(config, source)
        init = config.get("init_lora_weights")
        if found := re.fullmatch(r"pissa(?:_niter_(\d{1,9}))?", init if isinstance(init, str) else ""):
            self.claims.add("pissa_init", True, source)
            self.claims.add("pissa_iter", int(found[1] or -1), source)
            if (path.parent / "pissa_converted").is_dir():
                self.claims.add("pissa_convert", True, "pissa_converted/")

    def _modules(self, config: Mapping[str, Any], source: str) -> None:
        target, saved = config.get("target_modules"), config.get("modules_to_save")
        if isinstance(target, list) and all(isinstance(each, str) for each in target):
            self.claims.add("lora_target", sorted(target), source)
            if not self.claims.is_whole:
                self.note("lora_target: these modules; it may have been written as 'all'")
            if any("." in each for each in target):
                self.unknown.append(f"use_llama_pro: single layers were trained, maybe by it; {_COMMAND}")
        elif target is not None:
            self.unknown.append(f"lora_target: {source} has a pattern, which LLaMA-Factory makes itself; {_COMMAND}")
        if isinstance(saved, list) and all(isinstance(each, str) for each in saved):
            self.claims.add("additional_target", sorted(saved), source)

    def _state(self) -> None:
        path = self.files.find("trainer_state.json")
        if path is None:
            return
        state, source = self.files.mapping(path, MAX_STATE_BYTES), self.files.label(path)
        history = state.get("log_history")
        entries = [each for each in history if isinstance(each, dict)] if isinstance(history, list) else []
        keys = {key for entry in entries for key in entry}
        stage = self._stage(keys, source)
        if stage != "ppo":  # its own loop leaves transformers' defaults there
            for name in ("logging_steps", "save_steps"):
                self.claims.add(name, state.get(name), source)
            self._evaluations(state, entries, source)
        self._batch_size("per_device_train_batch_size", state.get("train_batch_size"), source)
        callbacks = state.get("stateful_callbacks")
        stopping = callbacks.get("EarlyStoppingCallback") if isinstance(callbacks, dict) else None
        if isinstance(stopping, dict) and isinstance(stopping.get("args"), dict):
            self.claims.add("early_stopping_steps", stopping["args"].get("early_stopping_patience"), source)
        if not self.card.hyperparameters:
            total = f"{str(state.get('max_steps'))[:20]} steps, {str(state.get('num_train_epochs'))[:20]} epochs"
            self.unknown.append(
                f"num_train_epochs, max_steps: {source} has {total} (rounded up), but not which was given"
            )

    def _stage(self, keys: set[str], source: str) -> str:
        """What the logged values give away."""
        said = {each.removeprefix("eval_") for each in keys}
        stage = ""
        if "rewards/accuracies" in said:
            stage = "dpo"
        elif "rewards/chosen" in said and "kl" in said:
            stage = "kto"
        elif "reward" in said:
            stage = "ppo"
        elif head := self.files.find("value_head.safetensors") or self.files.find("value_head.bin"):
            stage, source = "rm", self.files.label(head)
        elif (results := self.files.find("all_results.json")) and "eval_perplexity" in self.files.mapping(results):
            stage, source = "pt", self.files.label(results)
        if not stage:
            self.unknown.append(f"stage: sft or pt, which leave the same files; {_COMMAND}")
            return stage
        self.claims.add("stage", stage, source)
        self.matters.append(stage)
        if "odds_ratio_loss" in said:
            self.claims.add("pref_loss", "orpo", source)
        return stage

    def _evaluations(self, state: Mapping[str, Any], entries: Iterable[Mapping[str, Any]], source: str) -> None:
        found = [each for each in entries if "eval_loss" in each]
        if not found:
            return
        self.matters.append("evaluated")
        steps = {step for each in found if isinstance(step := each.get("step"), int) and step > 0}
        epochs = [each.get("epoch") for each in found]
        every, last = state.get("eval_steps"), state.get("global_step")
        if not isinstance(every, int) or not isinstance(last, int) or every < 1:
            return
        if len(steps) == last // every and all(step % every == 0 for step in steps):
            self.claims.add("eval_strategy", "steps", source)
            self.claims.add("eval_steps", every, source)
        elif all(isinstance(each, int | float) and each % 1 == 0 for each in epochs):
            self.claims.add("eval_strategy", "epoch", source)

    def _card(self) -> tuple[ModelCard, str]:
        """The card with the hyperparameters: that of a checkpoint has none."""
        cards = [
            (read_card(self.files.text(path)), self.files.label(path))
            for folder in self.files.folders
            if (path := folder / "README.md").is_file()
        ]
        told = [each for each in cards if each[0].hyperparameters]
        return (told or cards or [(ModelCard(), "")])[0]

    def _from_card(self) -> None:
        card, source, claims = self.card, self.card_label, self.claims
        claims.add("model_name_or_path", card.base_model or None, source)
        if self.is_llamafactory and card.datasets:
            names = list(card.datasets)
            claims.add("dataset", names if len(names) > 1 else names[0], source)
        if self.is_llamafactory and "finetuning_type" not in claims.values:
            method = next((tag for tag in _METHODS if tag in card.tags), None)
            claims.add("finetuning_type", method, source)
            self.matters += [method] if method else []
        for tag, name in (("unsloth", "use_unsloth"), ("kt-kernel", "use_kt")):
            if self.is_llamafactory and tag in card.tags:
                claims.add(name, True, source)
        self._quantization()
        listed = card.hyperparameters
        if not listed:
            return
        for key, name in _HYPERPARAMETERS.items():
            claims.add_text(name, listed.get(key), source)
        # Left out of the list where they are 1 and 0.
        if "gradient_accumulation_steps" not in listed:
            claims.add("gradient_accumulation_steps", 1, source)
        if not {"lr_scheduler_warmup_steps", "lr_scheduler_warmup_ratio"} & listed.keys():
            claims.add("warmup_steps", 0, source)
        if listed.get("mixed_precision_training") == "Native AMP":
            claims.add("fp16", True, source)
        for key in ("train", "eval"):
            text = listed.get(f"{key}_batch_size", "")
            size = int(text) if re.fullmatch(r"\d{1,9}", text) else None
            self._batch_size(f"per_device_{key}_batch_size", size, source)
        self._optimizer(listed.get("optimizer", ""))
        if re.fullmatch(r"\d{1,6}", listed.get("num_devices", "")):
            self.num_devices = int(listed["num_devices"])
            self.matters.append("devices")
            kind = listed.get("distributed_type", "")[:40]
            self.note(
                f"it was trained with {self.num_devices} processes ({kind}): see compute.nproc_per_node and nnodes"
            )

    def _batch_size(self, name: str, value: Any, source: str) -> None:
        """The files count for a process: with LLaMA-Factory each has one device, so it is a device's too."""
        if self.is_llamafactory and "kt-kernel" not in self.card.tags:
            self.claims.add(name, value, source)
        elif value is not None:
            reason = "is a process's, whose number of devices is not known"
            self.unknown.append(f"{name}: {str(value)[:20]} of {source} {reason}")

    def _optimizer(self, line: str) -> None:
        found, source = read_optimizer(line), self.card_label
        if found is None or not found.name:
            shown = f"{source} has {line[:80]!r}" if line else f"{source} has none"
            self.unknown.append(f"optim: {shown}; {_COMMAND}")
        if found is not None:
            self.claims.add("optim", found.name or None, source)
            self.claims.add_text("optim_args", found.args, source)
            for name, text in zip(("adam_beta1", "adam_beta2", "adam_epsilon"), found.adam, strict=False):
                self.claims.add_text(name, text, source)

    def _quantization(self) -> None:
        """Settings of bitsandbytes, which peft wrote into cards before its 0.10."""
        told, source = self.card.quantization, self.card_label
        bits = 4 if told.get("load_in_4bit") == "True" else 8 if told.get("load_in_8bit") == "True" else None
        if bits is None:
            return
        self.claims.add("quantization_bit", bits, source)
        if bits == 4:
            self.claims.add_text("quantization_type", told.get("bnb_4bit_quant_type"), source)
            self.claims.add_text("double_quantization", told.get("bnb_4bit_use_double_quant"), source)

    def _base_of_config(self) -> None:
        """A full model's config.json names what it was loaded from; transformers 5 leaves that out."""
        path = self.files.find("config.json") if self.claims.values else None
        if path is not None and "model_name_or_path" not in self.claims.values:
            name = self.files.mapping(path).get("_name_or_path")
            self.claims.add("model_name_or_path", name or None, self.files.label(path))

    def _remarks(self) -> None:
        if self.files.find("training_loss.png"):
            self.claims.add("plot_loss", True, "training_loss.png")
        if not self.is_llamafactory and not self.claims.is_whole:
            self.note("nothing here says that LLaMA-Factory made it: another program may have meant other things")
        if self.files.find("training_args.bin"):
            said = "it is pickled, and unpickling runs code; it holds the arguments of transformers alone"
            self.note(f"training_args.bin was not opened: {said}")
        if self.files.find("predict_results.json"):
            self.note("predict_results.json is of a prediction (do_predict): `orchestrator benchmark` does that")
        if self.card.versions:
            shown = ", ".join(f"{name[:20]} {version[:30]}" for name, version in list(self.card.versions.items())[:8])
            self.note(f"it was trained with {shown}")

    def _unknown(self) -> list[str]:
        lines = [line for key in dict.fromkeys(self.matters) for line in _UNKNOWN.get(key, ())]
        known = self.claims.values.keys() | ({"bf16", "pure_bf16"} if self.claims.values.get("fp16") else set())
        needed = ["model_name_or_path", "finetuning_type", "dataset", "learning_rate", "seed"]
        lines.insert(0, f"{', '.join(needed)}: in no file here; {_COMMAND}")
        found = []
        for line in lines:  # without those of its names that are known after all
            names, _, reason = line.partition(":")
            left = [name for name in names.split(", ") if name not in known]
            found += [f"{', '.join(left)}:{reason}"] if left else []
        return found
