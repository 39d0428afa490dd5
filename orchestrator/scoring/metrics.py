"""Hypotheses and references -> scores, digit for digit those of sacrebleu's command line.

sacrebleu is imported where it is used: it costs a fifth of a second, and every command imports this module.
"""

import math
import os
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.specs.benchmark_spec import METRICS, Metric

HEADINGS: dict[str, str] = {
    "bleu": "BLEU",
    "chrf": "chrF2",
    "chrf++": "chrF2++",
    "ter": "TER",
    "comet": "COMET",
    "mean_sentence_bleu": "mean sentence BLEU",
    "llamafactory_bleu4": "character BLEU-4 (LLaMA-Factory)",
}

# Whatever some reader takes for the end of a line: str.splitlines' list.
_LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
# Codes of ISO 639-2 and 639-3 for the languages that sacrebleu has a tokenizer of its own for; zh stands for all that
# ISO 639-3 counts under the macrolanguage zho.
_TOKENIZED = {
    "zh": "zh zho chi cdo cjy cmn cnp cpx csp czh czo gan hak hnm hsn luh lzh mnp nan sjc wuu yue",
    "ja": "ja jpn",
    "ko": "ko kor",
}
_LANGUAGE_OF = {code: language for language, codes in _TOKENIZED.items() for code in codes.split()}
_UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


class Score(BaseModel):
    """One number on a test set, with all that is needed to judge it. Compare only equal signatures."""

    model_config = ConfigDict(frozen=True)

    metric: Literal["bleu", "chrf", "chrf++", "ter", "mean_sentence_bleu", "llamafactory_bleu4", "comet"]
    score: float  # 0-100 (TER may exceed 100), COMET about 0-1; higher is better, of TER lower
    ci95: tuple[float, float] | None = None  # bootstrap: sacrebleu's μ ± its half width. None: not resampled.
    signature: str  # sacrebleu's signature; of COMET the same fields, with its model and version
    n_segments: int


@dataclass(frozen=True)
class Statistics:
    """Each segment's sufficient statistics by one of sacrebleu's metrics: every score is computed from their sums."""

    metric: Any
    rows: list[list[float]]

    def score(self) -> float:
        return float(self.metric._aggregate_and_compute(self.rows).score)

    def segment_scores(self) -> list[float]:
        """Each segment's own score, as `sacrebleu --sentence-level` has it; BLEU needs effective_order for that."""
        return [float(self.metric._compute_score_from_stats(row).score) for row in self.rows]

    def resampled(self, n_bootstrap: int) -> list[float]:
        """The scores of bootstrap resamples: with one seed the same segments for every metric and system."""
        import numpy as np

        rows = np.array(self.rows, dtype="float32")  # as sacrebleu has it: its digits come from this width
        score = self.metric._compute_score_from_stats
        return [score(rows[indices].sum(0)).score for indices in _resamples(len(rows), n_bootstrap)]

    @property
    def signature(self) -> str:
        return str(self.metric.get_signature())


def higher_is_better(metric: str) -> bool:
    return metric != "ter"


def base_language(code: str) -> str:
    """A language without script and region, in the code that sacrebleu knows: zh-Hans, zh_CN, ZH, zho, cmn -> zh."""
    primary = re.split("[-_]", code.strip().lower())[0]
    return _LANGUAGE_OF.get(primary, primary)


def normalize_segment(text: str) -> str:
    """A segment on one line: line breaks of every kind become a space, outer white space goes, nothing else changes."""
    return _LINE_BREAK.sub(" ", text).strip()


def spacing_warning(scores: Sequence[Score], references: Sequence[str], tgt_lang: str) -> str | None:
    """Which scores are near their worst for any translation: words without spaces, in a tokenizer that goes by them."""
    letters = [char for text in references[:500] for char in text if char.isalpha()]
    unspaced = sum(unicodedata.name(char, "").startswith(_UNSPACED_SCRIPTS) for char in letters)
    spaced = [HEADINGS[each.metric] for each in scores if re.search("tok:13a|asian:no", each.signature)]
    if 2 * unspaced <= len(letters) or not spaced:
        return None
    return (
        f"{', '.join(spaced)}: no measure here, since a sentence counts as one word: the references have no spaces "
        f"between words; take chrF2 (BLEU has tokenizers for zh, ja, ko; the target language is {tgt_lang!r})"
    )


def score_system(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tgt_lang: str,
    metrics: Iterable[Metric] = METRICS,
    n_bootstrap: int = 1000,
) -> tuple[list[Score], Score | None, Score]:
    """Score a system's output: by every metric, the mean of sentence BLEUs (None without BLEU), LLaMA-Factory's bleu-4.

    `hypotheses` and `references` are detokenized, one string per segment in test-set order; `n_bootstrap` resamples
    give the 95 % interval, which one segment has none of.

    Raises PrerequisiteError: as load_metric.

    Source: Post (2018), https://aclanthology.org/W18-6319; chrF: Popović (2015), https://aclanthology.org/W15-3049;
    chrF++: Popović (2017), https://aclanthology.org/W17-4770; TER: Snover et al. (2006),
    https://aclanthology.org/2006.amta-papers.25; bootstrap: Koehn (2004), https://aclanthology.org/W04-3250.
    """
    counted = {name: sufficient_statistics(name, tgt_lang, references, [hypotheses]) for name in dict.fromkeys(metrics)}
    stats = {name: of_one for name, [of_one] in counted.items()}
    mean = _mean_sentence_bleu(stats["bleu"], tgt_lang) if "bleu" in stats else None
    scores = [_score(name, each, n_bootstrap) for name, each in stats.items()]
    return scores, mean, llamafactory_bleu4(hypotheses, references)


def llamafactory_bleu4(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """What LLaMA-Factory calls bleu-4, usually much higher than BLEU: the mean of sentences' BLEUs over characters.

    nltk's sentence_bleu with smoothing method 3, each rounded to four digits, as in llamafactory/train/sft/metric.py.
    """
    each = [round(100 * _character_bleu(*pair), 4) for pair in zip(hypotheses, references, strict=True)]
    return Score(
        metric="llamafactory_bleu4",
        score=math.fsum(each) / len(each),
        signature="nrefs:1|level:sentence|tok:char|smooth:nltk-method3|as-in:llamafactory-0.9.5",
        n_segments=len(hypotheses),
    )


def load_metric(name: Metric, tgt_lang: str) -> Any:
    """Sacrebleu's metric for a target language, which chooses BLEU's tokenizer (zh, ja-mecab, ko-mecab, else 13a).

    Raises PrerequisiteError: that needs MeCab, which is not installed.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    if name == "ter":
        return TER()
    if name != "bleu":
        return CHRF(word_order=2 if name == "chrf++" else 0)
    language = base_language(tgt_lang)
    try:
        return BLEU(trg_lang=language)
    except RuntimeError as error:  # its tokenizer lacks MeCab
        what = f"BLEU for target language {tgt_lang!r} needs MeCab, which is not installed"
        remedy = f'pip install "sacrebleu[{language}]", or leave BLEU out: --metrics chrf,ter'
        raise PrerequisiteError(what, remedy) from error


def sufficient_statistics(
    name: Metric, tgt_lang: str, references: Sequence[str], systems: Sequence[Sequence[str]]
) -> list[Statistics]:
    """A metric's statistics of each system's output; the references are counted once for all of them."""
    metric = load_metric(name, tgt_lang)
    metric._ref_cache = metric._cache_references([references])
    rows = [metric._extract_corpus_statistics(hypotheses, None) for hypotheses in systems]
    metric._ref_cache = None  # it is a hundred times as large as the text
    return [Statistics(metric, of_system) for of_system in rows]


def seed() -> int:
    """The seed of all resampling: sacrebleu's, 12345, or what SACREBLEU_SEED says."""
    text = os.environ.get("SACREBLEU_SEED", "12345")
    if not text.isdecimal():
        raise SpecError(f"SACREBLEU_SEED is {text!r}, expected a number", "unset SACREBLEU_SEED")
    return int(text)


def _resamples(n_segments: int, n_bootstrap: int) -> Iterator[Any]:
    """The indices of each bootstrap resample: sacrebleu's, but one at a time, so that memory does not grow."""
    import numpy as np

    random = np.random.default_rng(seed())
    for _ in range(n_bootstrap):
        yield random.choice(n_segments, size=n_segments, replace=True)


def _interval(resampled: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval as sacrebleu takes it: the mean of the resamples' scores, and half the width to either side."""
    in_order = sorted(resampled)
    low = len(in_order) // 40
    half = float(0.5 * (in_order[len(in_order) - low - 1] - in_order[low]))
    # In one type: of a 0 of Python's among NumPy's narrow floats the mean is a TypeError.
    mean = float(statistics.mean(map(type(in_order[-1]), in_order)))
    return mean - half, mean + half


def _score(name: Metric, stats: Statistics, n_bootstrap: int) -> Score:
    ci95 = None
    if n_bootstrap > 1 and len(stats.rows) > 1:
        ci95 = _interval(stats.resampled(n_bootstrap))
        stats.metric.n_bootstrap = n_bootstrap  # for the signature, as is the seed
        stats.metric.seed = seed()
    signature, n_segments = stats.signature, len(stats.rows)
    return Score(metric=name, score=stats.score(), ci95=ci95, signature=signature, n_segments=n_segments)


def _mean_sentence_bleu(bleu: Statistics, tgt_lang: str) -> Score:
    """The mean of `sacrebleu.sentence_bleu`: often called BLEU, but short sentences weigh as much as long ones."""
    metric = load_metric("bleu", tgt_lang)
    metric.effective_order = True  # no 0 for a sentence without a match of four words
    metric.num_refs = bleu.metric.num_refs
    sentences = Statistics(metric, bleu.rows)
    n_segments = len(bleu.rows)
    mean = sum(sentences.segment_scores()) / n_segments
    return Score(metric="mean_sentence_bleu", score=mean, signature=sentences.signature, n_segments=n_segments)


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
