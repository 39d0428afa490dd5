"""README.md of a trained model, the card that transformers' Trainer and peft write: what it says about the training.

Covered: its YAML head, the sentence that names the base model and the datasets, the list of hyperparameters,
bitsandbytes' settings, the versions; cards of transformers 4 and 5.
Not covered: what the hyperparameters are as arguments (output_folder.py).
The text is a stranger's: it is cut into lines and compared, and its head only taken apart into nodes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import yaml

MAX_HEAD_BYTES = 1 << 16
_HYPERPARAMETERS = "The following hyperparameters were used during training:"
_QUANTIZATION = "The following `bitsandbytes` quantization config was used during training:"
_VERSIONS = "### Framework versions"
_ADAM = re.compile(
    r"(?:Use (\S+)|Adam) with betas=\(([^,()]+),([^,()]+)\) and epsilon=(\S+)(?: and optimizer_args=(.*))?"
)
_OTHER = re.compile(r"Use (\S+) and the args are:\n(.*)")
# transformers' OptimizerNames whose value is not the name in lower case
_OPTIMIZERS = {
    "adamw_bnb": "adamw_bnb_8bit",
    "lion": "lion_32bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_ademamix": "paged_ademamix_32bit",
    "paged_lion": "paged_lion_32bit",
    "rmsprop_8bit": "rmsprop_bnb_8bit",
    "rmsprop_32bit": "rmsprop_bnb_32bit",
}
_NO_ARGS = "No additional optimizer arguments"


@dataclass(frozen=True)
class ModelCard:
    """What a card says, as texts; empty where it does not."""

    base_model: str = ""
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    hyperparameters: dict[str, str] = field(default_factory=dict)
    """Under the card's own names, such as train_batch_size."""
    quantization: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """Transformers -> 5.6.0."""


@dataclass(frozen=True)
class Optimizer:
    """What a card's line about the optimizer says."""

    name: str
    """A value of transformers' OptimizerNames, such as adamw_torch; '' for just 'Adam'."""
    adam: tuple[str, ...]
    """Its two betas and epsilon; empty where it is none of that family."""
    args: str | None


def read_card(text: str) -> ModelCard:
    """Take a card apart."""
    lines = text.splitlines()
    base_model, tags, body = _head(lines)
    sentence = next((line for line in body if line.startswith("This model ")), "")
    return ModelCard(
        base_model or _base_model(sentence),
        tuple(tags),
        tuple(_datasets(sentence)),
        _list_below(body, _HYPERPARAMETERS),
        _list_below(body, _QUANTIZATION),
        _list_below(body, _VERSIONS, separator=" "),
    )


def read_optimizer(text: str) -> Optimizer | None:
    """Take the optimizer's line apart; None where it is of no known form."""
    if found := _ADAM.fullmatch(text):
        args = found[5] if found[5] and found[5] != _NO_ARGS else None
        return Optimizer(_value(found[1] or ""), (found[2].strip(), found[3].strip(), found[4]), args)
    if found := _OTHER.fullmatch(text):
        return Optimizer(_value(found[1]), (), found[2] if found[2] != _NO_ARGS else None)
    return None


def _value(optimizer: str) -> str:
    """'lion_32bit' of itself, or of OptimizerNames.LION, as Python 3.11 and later write it."""
    member = optimizer.removeprefix("OptimizerNames.").lower()
    return _OPTIMIZERS.get(member, member) if optimizer != member else optimizer


def _head(lines: Sequence[str]) -> tuple[str, list[str], Sequence[str]]:
    """base_model and tags of the YAML head, and the lines below it."""
    if not lines or lines[0].strip() != "---":
        return "", [], lines
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        return "", [], lines
    head = "\n".join(lines[1:end])
    if len(head) > MAX_HEAD_BYTES:
        return "", [], lines[end + 1 :]
    try:
        # Nodes, not values: nothing is constructed, and an alias stays one node however often it is used.
        root = yaml.compose(head, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return "", [], lines[end + 1 :]
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    values = {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
    base, tags = values.get("base_model"), values.get("tags")
    listed = tags.value if isinstance(tags, yaml.SequenceNode) else []
    texts = [each.value for each in listed if isinstance(each, yaml.ScalarNode)]
    return (base.value if isinstance(base, yaml.ScalarNode) else ""), texts, lines[end + 1 :]


def _base_model(sentence: str) -> str:
    """X of 'This model is a fine-tuned version of [X](https://huggingface.co/X) on ...'."""
    begin, marks, rest = sentence.partition("This model is a fine-tuned version of [")
    return rest.partition("](https://huggingface.co/")[0] if marks and not begin else ""


def _datasets(sentence: str) -> list[str]:
    """'the a dataset.'; 'the a, the b and the c datasets.'."""
    named = sentence.rpartition(") on ")[2] or sentence.rpartition("from scratch on ")[2]
    if not named.startswith("the "):
        return []
    if named.endswith(" dataset."):
        return [named[len("the ") : -len(" dataset.")]]
    if named.endswith(" datasets."):
        first, _, last = named[: -len(" datasets.")].rpartition(" and the ")
        return [*first[len("the ") :].split(", the "), last] if first else []
    return []


def _list_below(lines: Iterable[str], heading: str, separator: str = ": ") -> dict[str, str]:
    """The '- name: value' lines below a heading; a value that ends with a colon has one more line."""
    found: dict[str, str] = {}
    name, below = "", False
    for line in lines:
        if not below:
            below = line.strip() == heading
        elif line.startswith("- "):
            name, _, value = line[2:].partition(separator)
            found.setdefault(name, value)
        elif line.startswith("#") or (not line.strip() and found):
            break
        elif found.get(name, "").endswith(":"):  # "Use SGD and the args are:"
            found[name] += f"\n{line}"
    return found
