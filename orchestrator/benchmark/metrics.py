"""The metrics of translations: their names, and what they are called where they are shown."""

from typing import Literal

Metric = Literal["bleu", "chrf", "chrf++", "ter"]
METRICS: tuple[Metric, ...] = ("bleu", "chrf", "chrf++", "ter")
HEADINGS: dict[str, str] = {
    "bleu": "BLEU",
    "chrf": "chrF2",
    "chrf++": "chrF2++",
    "ter": "TER",
    "comet": "COMET",
    "mean_sentence_bleu": "mean sentence BLEU",
    "llamafactory_bleu4": "character BLEU-4 (LLaMA-Factory)",
}
RANKED = ("bleu", "chrf", "ter")
"""Those that runs can be sorted by."""
