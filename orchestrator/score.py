"""Hypotheses and references -> scores, as sacrebleu's command line gives them. Pure: no files, no network.

Covered: corpus BLEU, chrF2 and TER with signature and 95 % bootstrap interval; the mean of sentence BLEUs under its
own name, because it is another number than BLEU; segments made fit for files of one line each.
Not covered: significance between systems (compare does that); neural metrics.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.errors import PrerequisiteError, SpecError

# sacrebleu is imported where it is used: it costs a fifth of a second, and this module is imported by every command.

# Whatever some reader takes for the end of a line: str.splitlines' list.
_LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")


class Score(BaseModel):
    """One number on a test set, with all that is needed to judge it. Compare only equal signatures."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    metric: Literal["bleu", "chrf", "ter", "mean_sentence_bleu"]
    score: float
    """0-100 (TER may exceed 100). Higher is better; for TER lower."""
    ci95: tuple[float, float] | None = None
    """95 % bootstrap interval: ci_mean - ci_half, ci_mean + ci_half. None: not resampled."""
    ci_mean: float | None = None
    """Mean of the resamples' scores, sacrebleu's μ."""
    ci_half: float | None = None
    """Half the interval's width, sacrebleu's ±."""
    signature: str
    """sacrebleu's signature."""
    n_segments: int


def normalize_segment(text: str) -> str:
    """A segment on one line: line breaks of every kind become a space, outer white space goes, nothing else changes."""
    return _LINE_BREAK.sub(" ", text).strip()


def score_corpus(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tgt_lang: str,
    metrics: Iterable[Literal["bleu", "chrf", "ter"]] = ("bleu", "chrf", "ter"),
    n_bootstrap: int = 1000,
) -> list[Score]:
    """Score a system's output with sacrebleu.

    Args:
        hypotheses: detokenized output, one string per segment, in test-set order.
        references: one sequence per reference set, each as long as hypotheses.
        tgt_lang: ISO 639-1 code; chooses BLEU's tokenizer (zh: zh, ja: ja-mecab, ko: ko-mecab, else 13a).
        metrics: which; named twice counts once.
        n_bootstrap: resamples for the 95 % interval; 1 turns it off.

    Returns:
        One Score per metric, in the order asked for.

    Raises:
        SpecError: lengths differ, or there is no segment.
        PrerequisiteError: tgt_lang needs MeCab, and it is not installed.

    Source: Post (2018), https://aclanthology.org/W18-6319; chrF: Popović (2015), https://aclanthology.org/W15-3049;
    TER: Snover et al. (2006), https://aclanthology.org/2006.amta-papers.25.
    """
    _check_lengths(hypotheses, references)
    scores = []
    for name in dict.fromkeys(metrics):
        metric = _metric(name, tgt_lang)
        result = metric.corpus_score(hypotheses, references, n_bootstrap=n_bootstrap)
        signature = str(metric.get_signature())
        mean = half = interval = None
        if n_bootstrap > 1:
            mean, half = _interval(result, signature)
            interval = (mean - half, mean + half)
        scores.append(
            Score(
                metric=name,
                score=result.score,
                ci95=interval,
                ci_mean=mean,
                ci_half=half,
                signature=signature,
                n_segments=len(hypotheses),
            )
        )
    return scores


def mean_sentence_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tgt_lang: str) -> Score:
    """The mean of every sentence's own BLEU: what `sacrebleu.sentence_bleu` gives, averaged.

    Widely reported as "BLEU", but another number: short sentences weigh as much as long ones, each is smoothed by
    itself (effective_order, as sentence_bleu has it), and there is no brevity penalty over the corpus.

    Raises:
        SpecError: lengths differ, or there is no segment.
        PrerequisiteError: tgt_lang needs MeCab, and it is not installed.
    """
    _check_lengths(hypotheses, references)
    metric = _metric("bleu", tgt_lang, effective_order=True)
    each = [
        metric.sentence_score(hypothesis, [reference[index] for reference in references]).score
        for index, hypothesis in enumerate(hypotheses)
    ]
    return Score(
        metric="mean_sentence_bleu",
        score=sum(each) / len(each),
        signature=str(metric.get_signature()),
        n_segments=len(hypotheses),
    )


def _metric(name: str, tgt_lang: str, *, effective_order: bool = False) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    if name != "bleu":
        return {"chrf": CHRF, "ter": TER}[name]()
    language = tgt_lang.partition("-")[0]  # zh-Hans is Chinese too
    try:
        return BLEU(trg_lang=language, effective_order=effective_order)
    except RuntimeError as error:  # its tokenizer lacks MeCab
        raise PrerequisiteError(
            f"BLEU for target language {language!r} needs MeCab, which is not installed",
            f'pip install "sacrebleu[{language}]", or leave bleu out of the metrics',
        ) from error


def _interval(result: Any, signature: str) -> tuple[float, float]:
    """Mean and half width. The JSON form is sacrebleu's only public way to them."""
    shown = json.loads(result.format(width=12, signature=signature, is_json=True))
    # Left out where the mean is 0. Scores are not negative, so then every resample's score was 0.
    return shown.get("confidence_mean", 0.0), shown.get("confidence_var", 0.0)


def _check_lengths(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not hypotheses:
        raise SpecError("there is no segment to score")
    if not references:
        raise SpecError("there is no reference to score against")
    for number, reference in enumerate(references):
        if len(reference) != len(hypotheses):
            raise SpecError(f"{len(hypotheses)} hypotheses, but reference set {number} has {len(reference)} segments")
