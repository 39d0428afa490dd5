"""A form that LLaMA Board saved: its fields, and which of them a reader asked for.

Covered: LLaMA Board's own fields, 0.9.3 to 0.9.5; values of another type than the page gives.
Not covered: what they mean for a training (board.py).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.errors import SpecError

# Fields of the Train tab, train.X, that are arguments under their own names: of any training, and of what one may use.
PLAIN = (
    "dataset_dir", "cutoff_len", "gradient_accumulation_steps", "lr_scheduler_type", "logging_steps", "save_steps",
    "warmup_steps", "neat_packing", "train_on_prompt", "mask_history", "resize_vocab", "use_llama_pro",
    "enable_thinking", "report_to", "use_galore", "use_apollo", "use_badam", "use_swanlab",
)  # fmt: skip
PANELS = {
    "freeze": ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"),
    "llama_pro": ("freeze_trainable_layers",),
    "lora": (
        "lora_rank", "lora_alpha", "lora_dropout", "loraplus_lr_ratio", "create_new_adapter", "use_rslora", "use_dora",
        "lora_target", "additional_target",
    ),
    "ppo": ("ppo_score_norm", "ppo_whiten_rewards"),
    "preferences": ("pref_beta", "pref_ftx", "pref_loss"),
    "multimodal": ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"),
    "pixels": ("image_max_pixels", "image_min_pixels", "video_max_pixels", "video_min_pixels"),
    "galore": ("galore_rank", "galore_update_interval", "galore_scale", "galore_target"),
    "apollo": ("apollo_rank", "apollo_update_interval", "apollo_scale", "apollo_target"),
    "badam": ("badam_mode", "badam_switch_mode", "badam_switch_interval", "badam_update_ratio"),
    "swanlab": ("swanlab_project", "swanlab_run_name", "swanlab_workspace", "swanlab_api_key", "swanlab_mode"),
}  # fmt: skip
_OTHERS = (
    "training_stage", "dataset", "learning_rate", "num_train_epochs", "max_grad_norm", "max_samples", "compute_type",
    "batch_size", "val_size", "neftune_alpha", "extra_args", "packing", "use_pissa", "reward_model", "ds_stage",
    "ds_offload",
)  # fmt: skip
_TEXTS = frozenset({
    "dataset_dir", "report_to", "freeze_trainable_modules", "freeze_extra_modules", "additional_target",
    "galore_target", "apollo_target", *PANELS["swanlab"],
})  # fmt: skip
_NOT_PASSED = frozenset(f"train.{name}" for name in ("project", "trackio_space_id", "hub_private_repo", "swanlab_link"))
_OF_TRAINING = {f"train.{name}" for names in (PLAIN, *PANELS.values(), _OTHERS) for name in names}
_OF_TRAINING.add("top.quantization_method")


class Form:
    """A form's fields, those that were asked for, and what is to be said about them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self._asked: set[str] = set()
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> list[str]:
        return list(self._notes)

    def note(self, text: str) -> None:
        """Keep a note, once."""
        self._notes[text] = None

    def get(self, name: str) -> Any:
        self._asked.add(name)
        return self.values.get(name)

    def text(self, name: str) -> str:
        """A text, '' where there is none."""
        return "" if self.get(name) is None else self._as_text(name, self.values[name])

    def texts(self, name: str) -> list[str]:
        """The texts of a field with several choices."""
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            raise wrong(name, value, "a list")
        return [self._as_text(name, each) for each in value or []]

    def number(self, name: str, kind: type[int] | type[float]) -> int | float | None:
        """A number that LLaMA Board has in a text box."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                return kind(value)
            except (ValueError, OverflowError):
                pass
        raise wrong(name, value, "a whole number" if kind is int else "a number")

    def fields(self, tab: str, names: Iterable[str]) -> dict[str, Any]:
        """Those of the fields that the file has: an older LLaMA Board's lacks some."""
        found = {name: f"{tab}.{name}" for name in names if f"{tab}.{name}" in self.values}
        return {name: self.text(key) if name in _TEXTS else self.get(key) for name, key in found.items()}

    def say_unused(self) -> None:
        """Note every field that became no argument."""
        unused = [name for name, value in self.values.items() if name not in self._asked and value not in (None, "")]
        off = [name for name in unused if name in _OF_TRAINING]
        idle = [name for name in unused if name in _NOT_PASSED]
        other = [name for name in unused if name not in _OF_TRAINING | _NOT_PASSED]
        if off:
            self.note(f"not taken over: {', '.join(off)} (they belong to what this training does not use)")
        if idle:
            self.note(f"not taken over: {', '.join(idle)} (LLaMA Board saves them, but passes them to nothing)")
        if other:
            reason = "no fields of LLaMA Board 0.9.3 to 0.9.5 that become arguments here"
            self.note(f"not taken over: {', '.join(map(short, other))} ({reason})")

    def _as_text(self, name: str, value: Any) -> str:
        if isinstance(value, int | float) and not isinstance(value, bool):
            # PyYAML writes the text 12e3 without quotes; OmegaConf and YAML 1.2 read a number.
            self.note(f"{name} is text in LLaMA Board, but here the number {value}: compare the file")
            return str(value)
        if not isinstance(value, str):
            raise wrong(name, value, "text")
        return value


def wrong(name: str, value: Any, expected: str) -> SpecError:
    return SpecError(f"{name} is {short(repr(value))}, expected {expected}", "save the form in LLaMA Board again")


def short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
