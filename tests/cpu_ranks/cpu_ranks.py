"""Called by torch as it is imported: a state is restored onto "cpu:0" as onto "cpu".

Several processes on a CPU need it to resume: transformers has torch load the optimizer's state onto "cpu:0",
and torch knows "cpu" alone (transformers 5.6, accelerate 1.11, torch 2.14). Only tests train so.
"""

from torch.serialization import register_package


def register() -> None:
    register_package(9, lambda storage: None, lambda storage, place: storage if place.startswith("cpu:") else None)
