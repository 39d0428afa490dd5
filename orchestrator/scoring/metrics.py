"""Hypotheses and references -> scores, as sacrebleu's command line gives them. Pure: no files, no network.

Covered: corpus BLEU, chrF2, chrF2++ and TER with signature and 95 % bootstrap interval, over one reference or several;
the mean of sentence BLEUs and LLaMA-Factory's character BLEU-4 under their own names, because they are other numbers
than BLEU; the counts that a score is made of, once for each text, so that intervals and paired tests (significance.py)
come from the same ones; segments made fit for files of one line each.
Not covered: significance between systems (significance.py); neural metrics (comet.py).
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.specs.benchmark_spec import METRICS, Metric

if TYPE_CHECKING:
    import numpy as np

# sacrebleu is imported where it is used: it costs a fifth of a second, and this module is imported by every command.

NORMALIZATION = "outer white space goes, each line break becomes one space; nothing else is changed"
"""What happens to an answer before it is scored."""

_AT_ONCE = 1000

# Whatever some reader takes for the end of a line: str.splitlines' list.
_LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")


class Score(BaseModel):
    """One number on a test set, with all that is needed to judge it. Compare only equal signatures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: Literal["bleu", "chrf", "chrf++", "ter", "mean_sentence_bleu", "llamafactory_bleu4", "comet"]
    score: float
    """0-100 (TER may exceed 100); of COMET as its model has it, about 0-1. Higher is better; for TER lower."""
    ci95: tuple[float, float] | None = None
    """95 % bootstrap interval: ci_mean - ci_half, ci_mean + ci_half. None: not resampled."""
    ci_mean: float | None = None
    """Mean of the resamples' scores, sacrebleu's μ."""
    ci_half: float | None = None
    """Half the interval's width, sacrebleu's ±."""
    signature: str
    """sacrebleu's signature; of COMET the same fields, with its model and version."""
    n_segments: int


class Scores(BaseModel):
    """Every score of one system on one test set."""

    model_config = ConfigDict(frozen=True)

    scores: list[Score]
    """One for each metric, in the order asked for."""
    mean_sentence_bleu: Score | None
    """None where BLEU was not asked for."""
    llamafactory_bleu4: Score


@dataclass(frozen=True)
class Statistics:
    """What a metric counts in each segment of a system's output. Every score is computed from sums of these rows.

    The rows are sacrebleu's sufficient statistics: n-gram matches and totals for BLEU and chrF, edits and reference
    lengths for TER. Counting them is what costs; a score from given counts takes microseconds.
    """

    metric: Any
    """sacrebleu's metric."""
    rows: list[list[float]]

    def score(self, indices: Sequence[int] | None = None) -> float:
        """The corpus score of all segments, or of some."""
        rows = self.rows if indices is None else [self.rows[index] for index in indices]
        return float(self.metric._aggregate_and_compute(rows).score)

    def segment_scores(self) -> list[float]:
        """Each segment scored by itself, as `sacrebleu --sentence-level` does; not for BLEU, whose sentences need
        effective_order (sentence_bleus).
        """
        return [float(self.metric._compute_score_from_stats(row).score) for row in self.rows]

    def resampled(self, n_bootstrap: int) -> list[Any]:
        """Sacrebleu's scores of bootstrap resamples: the same segments for every metric and system."""
        import numpy as np

        rows = np.array(self.rows, dtype="float32")  # as sacrebleu has it: its digits come from this width
        scored = self.metric._compute_score_from_stats
        return [scored(rows[indices].sum(0)) for indices in resamples(len(rows), n_bootstrap)]

    @property
    def signature(self) -> str:
        return str(self.metric.get_signature())


def normalize_segment(text: str) -> str:
    """A segment on one line: line breaks of every kind become a space, outer white space goes, nothing else changes."""
    return _LINE_BREAK.sub(" ", text).strip()


def check_metrics(metrics: Iterable[Metric], tgt_lang: str) -> None:
    """See that the metrics can be computed, before hours go into the answers.

    Raises:
        PrerequisiteError: BLEU is one of them, tgt_lang needs MeCab, and it is not installed.
    """
    if "bleu" in metrics:
        load_metric("bleu", tgt_lang)


def score_system(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tgt_lang: str,
    metrics: Iterable[Metric] = METRICS,
    n_bootstrap: int = 1000,
) -> Scores:
    """Score a system's output in every way, counting in each text once.

    Args:
        hypotheses: detokenized output, one string per segment, in test-set order.
        references: one sequence per reference set, each as long as hypotheses.
        tgt_lang: ISO 639-1 code; chooses BLEU's tokenizer (zh: zh, ja: ja-mecab, ko: ko-mecab, else 13a).
        metrics: which; named twice counts once.
        n_bootstrap: resamples for the 95 % interval; 1 turns it off.

    Raises:
        SpecError: lengths differ, or there is no segment.
        PrerequisiteError: tgt_lang needs MeCab, and it is not installed.

    Source: Post (2018), https://aclanthology.org/W18-6319; chrF: Popović (2015), https://aclanthology.org/W15-3049;
    chrF++: Popović (2017), https://aclanthology.org/W17-4770; TER: Snover et al. (2006),
    https://aclanthology.org/2006.amta-papers.25; bootstrap: Koehn (2004), https://aclanthology.org/W04-3250.
    """
    _check_lengths(hypotheses, references)
    counted = {name: _count_one(name, tgt_lang, references, hypotheses) for name in dict.fromkeys(metrics)}
    return Scores(
        scores=[_score(name, statistics, n_bootstrap) for name, statistics in counted.items()],
        mean_sentence_bleu=_mean_of_sentences(counted["bleu"], tgt_lang) if "bleu" in counted else None,
        llamafactory_bleu4=llamafactory_bleu4(hypotheses, references[0]),
    )


def llamafactory_bleu4(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """What LLaMA-Factory calls bleu-4: the mean of every sentence's BLEU over characters, blanks among them.

    nltk's sentence_bleu with smoothing method 3, rounded to four digits for each sentence, as
    llamafactory/train/sft/metric.py (0.9.5) has it; jieba's words go into its ROUGE only. It has one reference.
    Usually much higher than BLEU: most characters of a wrong translation are right.
    """
    _check_lengths(hypotheses, [references])
    each = [round(100 * _character_bleu(*pair), 4) for pair in zip(hypotheses, references, strict=True)]
    return Score(
        metric="llamafactory_bleu4",
        score=math.fsum(each) / len(each),
        signature="nrefs:1|level:sentence|tok:char|smooth:nltk-method3|as-in:llamafactory-0.9.5",
        n_segments=len(hypotheses),
    )


def load_metric(name: Metric, tgt_lang: str) -> Any:
    """Sacrebleu's metric for a target language.

    Raises:
        PrerequisiteError: BLEU for a tgt_lang that needs MeCab, which is not installed.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    if name == "ter":
        return TER()
    if name != "bleu":
        return CHRF(word_order=2 if name == "chrf++" else 0)
    language = tgt_lang.partition("-")[0]  # zh-Hans is Chinese too
    try:
        return BLEU(trg_lang=language)
    except RuntimeError as error:  # its tokenizer lacks MeCab
        raise PrerequisiteError(
            f"BLEU for target language {language!r} needs MeCab, which is not installed",
            f'pip install "sacrebleu[{language}]", or leave bleu out of the metrics',
        ) from error


def count(
    name: Metric, tgt_lang: str, references: Sequence[Sequence[str]], systems: Sequence[Sequence[str]]
) -> list[Statistics]:
    """Count each system's output against the references, which are counted once for all of them.

    Some segments at a time: a reference's n-grams are a hundred times as large as its text.

    Raises:
        PrerequisiteError: tgt_lang needs MeCab, and it is not installed.
    """
    metric = load_metric(name, tgt_lang)
    rows: list[list[list[float]]] = [[] for _ in systems]
    for start in range(0, len(references[0]), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        metric._ref_cache = metric._cache_references([lines[part] for lines in references])
        for of_system, hypotheses in zip(rows, systems, strict=True):
            of_system += metric._extract_corpus_statistics(hypotheses[part], None)
    metric._ref_cache = None
    return [Statistics(metric, of_system) for of_system in rows]


def sentence_bleus(bleu: Statistics, tgt_lang: str) -> tuple[list[float], str]:
    """Every sentence's own BLEU, from the counts of the corpus's, and the signature."""
    metric = load_metric("bleu", tgt_lang)
    metric.effective_order = True  # as sacrebleu.sentence_bleu has it: no 0 for a sentence without a match of 4 words
    metric.num_refs = bleu.metric.num_refs
    return Statistics(metric, bleu.rows).segment_scores(), str(metric.get_signature())


def seed() -> int | None:
    """The seed of all resampling: sacrebleu's, 12345, unless its SACREBLEU_SEED says otherwise; None: a new one."""
    word = os.environ.get("SACREBLEU_SEED", "12345")
    if word.lower() == "none":
        return None
    try:
        return int(word)
    except ValueError as error:
        raise SpecError(
            f"SACREBLEU_SEED is {word!r}, expected a whole number or none", "unset SACREBLEU_SEED"
        ) from error


def resamples(n_segments: int, n_bootstrap: int) -> "Iterator[np.ndarray[Any, Any]]":
    """The indices of each bootstrap resample: sacrebleu's, but one at a time, so that memory does not grow."""
    import numpy as np

    random = np.random.default_rng(seed())
    for _ in range(n_bootstrap):
        yield random.choice(n_segments, size=n_segments, replace=True)


def _count_one(
    name: Metric, tgt_lang: str, references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> Statistics:
    [statistics] = count(name, tgt_lang, references, [hypotheses])
    return statistics


def _score(name: Metric, statistics: Statistics, n_bootstrap: int) -> Score:
    mean = half = interval = None
    result = statistics.metric._aggregate_and_compute(statistics.rows)
    if n_bootstrap > 1:
        statistics.metric.n_bootstrap, statistics.metric.seed = n_bootstrap, str(seed()).lower()  # for the signature
        result.estimate_ci(_of_one_kind(statistics.resampled(n_bootstrap)))
        mean, half = float(result._mean), float(result._ci)
        interval = (mean - half, mean + half)
    return Score(
        metric=name,
        score=float(result.score),
        ci95=interval,
        ci_mean=mean,
        ci_half=half,
        signature=statistics.signature,
        n_segments=len(statistics.rows),
    )


def _of_one_kind(scores: list[Any]) -> list[Any]:
    """Scores whose mean sacrebleu can take: of a 0 of Python's among NumPy's narrow floats it is a TypeError."""
    import numpy as np

    if len({type(each.score) for each in scores}) > 1:
        for each in scores:
            each.score = np.float32(each.score)
    return scores


def _mean_of_sentences(bleu: Statistics, tgt_lang: str) -> Score:
    """The mean of every sentence's own BLEU: what `sacrebleu.sentence_bleu` gives, averaged.

    Widely reported as "BLEU", but another number: short sentences weigh as much as long ones, each is smoothed by
    itself (effective_order, as sentence_bleu has it), and there is no brevity penalty over the corpus.
    """
    each, signature = sentence_bleus(bleu, tgt_lang)
    return Score(
        metric="mean_sentence_bleu", score=sum(each) / len(each), signature=signature, n_segments=len(bleu.rows)
    )


def _character_bleu(hypothesis: str, reference: str) -> float:
    """Nltk's sentence_bleu([list(reference)], list(hypothesis), smoothing_function=SmoothingFunction().method3)."""
    logarithms, without_match = [], 0
    for order in range(1, 5):
        found, known = _ngrams(hypothesis, order), _ngrams(reference, order)
        matches = sum(min(number, known[ngram]) for ngram, number in found.items() if ngram in known)
        if not matches and order == 1:
            return 0.0
        without_match += not matches
        precision = (matches or 0.5**without_match) / max(1, found.total())
        logarithms.append(0.25 * math.log(precision))
    brevity = 1.0 if len(hypothesis) > len(reference) else math.exp(1 - len(reference) / len(hypothesis))
    return brevity * math.exp(math.fsum(logarithms))


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def _check_lengths(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not hypotheses:
        raise SpecError("there is no segment to score")
    if not references:
        raise SpecError("there is no reference to score against")
    for number, reference in enumerate(references):
        if len(reference) != len(hypotheses):
            raise SpecError(f"{len(hypotheses)} hypotheses, but reference set {number} has {len(reference)} segments")


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
