"""What a score does not tell: answers that are no translation at all, counted and listed. Pure: no files, no network.

Covered: empty answers, copied sources, the wrong language, chatter around the translation, answers cut at max_tokens,
repetition loops, lengths out of all proportion, lost numbers. Each is a hint for a reader, and no score is changed.
What the reference does too (a name that stays the same, a line of dots) is no fault.
Not covered: a third language in the script of the target language; whether a translation is right.

Languages are told apart without a package for it, whose model would be one more thing to install and is least sure
of a single short sentence. The test set itself says what its two languages look like: by the scripts of its
references, and by the runs of three characters that its sources and its references are made of.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pydantic import BaseModel, ConfigDict

N_LISTED = 100
"""So many indices of each fault are listed; the count is of all."""
N_TO_LEARN_FROM = 50
"""With fewer segments, what the two languages look like is not known well enough."""

# How much more likely an answer has to be in the source language: e ** 10, over all of it. Runs of characters overlap,
# so that this is less sure than it looks.
_CLEARLY = 10.0
_SURELY_A_SENTENCE = 15
_TOO_LONG, _TOO_SHORT, _FEW_CHARACTERS = 2.0, 0.5, 15
_LOOP = re.compile(r"(.{1,60}?)\1{3,}", re.DOTALL)
_LOOP_CHARACTERS = 20
# Not a plain space: 3 4 are two numbers.
_NUMBER = re.compile(r"\d+(?:[.,'’\u00a0\u2009\u202f]\d+)*")
_QUOTES = {'"': '"', "“": "”", "„": "“”", "«": "»", "»": "«", "「": "」", "『": "』", "‘": "’", "`": "`"}
_CHATTER = re.compile(
    r"""^(?:\W*(?:sure|certainly|of\ course|absolutely|okay)\b\W*(?:here\b|the\ translation|i\ (?:can|will)|i'll))
      | ^\W*(?:sure|certainly|of\ course|absolutely)\ ?[!:]
      | ^\W*(?:here(?:'s|’s|\ is|\ are)|below\ is)\ (?:the|your|a|my)\b[^.]{0,40}\b(?:translat|version)
      | ^\W*this\ is\ (?:the|your|a|my)\b[^.]{0,40}\btranslat
      | ^\W*(?:the\ )?(?:\w+\ )?translat(?:ion|ed\ (?:text|sentence))\b[^.:]{0,40}(?::|\ is\b)
      | ^\W*(?:hier\ ist|dies\ ist)\ (?:die|eine|deine|ihre)\b[^.]{0,40}\bübersetz
      | ^\W*(?:die\ )?(?:\w+\ )?übersetzung\b[^.:]{0,40}(?::|\ lautet\b|\ ist\b)
      | ^\W*(?:voici|aquí\ (?:está|tienes)|ecco)\b[^.]{0,30}\btra(?:duction|ducción|duzione)
      | ^\W*(?:la\ )?tra(?:duction|ducción|duzione)\b[^.:]{0,30}(?::|\ est\b|\ es\b|\ è\b)
      | ^\W*(?:好的|当然|以下是|翻译|译文|这句话的)[^。]{0,20}[:：，,]
      | \bin\ \w+,\ (?:the|this)\ (?:sentence|text|phrase)\ is\b
      | \b(?:note|explanation|anmerkung|erklärung|hinweis)\ ?:
      | \blet\ me\ know\ if\b | \bi\ hope\ this\ helps\b | \bas\ an\ ai\b | \bi'm\ sorry,\ but\b
      | <think> | </?\|?im_(?:start|end)\|?>
    """,
    re.IGNORECASE | re.VERBOSE,
)


class Finding(BaseModel):
    """The answers with one fault."""

    model_config = ConfigDict(frozen=True)

    count: int
    indices: list[int]
    """The first of them, by the index that hypotheses.jsonl has."""


class Triage(BaseModel):
    """Answers by fault; one answer may have several. None: it cannot be known here."""

    model_config = ConfigDict(frozen=True)

    empty: Finding
    """Nothing, or only white space."""
    copied_source: Finding
    """The source as it was, letter case and punctuation aside, alone or with more around it, where the reference is
    another text."""
    wrong_language: Finding | None
    """Mostly in scripts that the references do not use, or clearly nearer to the sources' language than to the
    references'; of the latter nothing is said in a test set of fewer than 50. None: it is one language."""
    chatter: Finding
    """Words around the translation ("Here is the translation:"), quotes around it, or the instruction repeated."""
    cut_off: Finding | None
    """As many tokens as max_tokens allows. None: the server counts no tokens."""
    repetition: Finding
    """The same words four times running or more."""
    length_outlier: Finding
    """More than twice or less than half as long as the reference, and as the source lets expect."""
    numbers_lost: Finding
    """A number of the source, which the reference has, is missing; thousands' separators aside."""

    def counts(self) -> dict[str, int | None]:
        """The number of answers with each fault."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: None if finding is None else finding.count for name, finding in found.items()}


def triage(
    sources: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    completion_tokens: Sequence[int | None],
    max_tokens: int,
    source_lang: str,
    target_lang: str,
    *,
    instruction: str = "",
) -> Triage:
    """Look for answers that are no translation.

    Args:
        sources: as they were asked, in test-set order.
        references: one for each.
        hypotheses: the answers, as they are scored.
        completion_tokens: the length of each answer in the model's tokens; None where the server did not say.
        max_tokens: the longest answer that was asked for.
        source_lang: ISO 639-1 code; within one language nothing is a copy or in the wrong language.
        target_lang: likewise.
        instruction: what stood before each source.
    """
    triples = list(zip(sources, references, hypotheses, strict=True))
    translated = source_lang.partition("-")[0] != target_lang.partition("-")[0]
    per_character = sum(map(len, references)) / max(1, sum(map(len, sources)))
    tokens_known = any(number is not None for number in completion_tokens)
    reached = [number is not None and number >= max_tokens for number in completion_tokens]
    return Triage(
        empty=_finding(not hypothesis.strip() for hypothesis in hypotheses),
        copied_source=_finding(translated and _copied(*each) for each in triples),
        wrong_language=_finding(_in_wrong_language(triples)) if translated and sources else None,
        chatter=_finding(_has_chatter(*each, instruction) for each in triples),
        cut_off=_finding(reached) if tokens_known else None,
        repetition=_finding(_loops(text) and not _loops(ref) and not _loops(src) for src, ref, text in triples),
        length_outlier=_finding(_is_out_of_proportion(*each, per_character) for each in triples),
        numbers_lost=_finding(_lost_number(*each) for each in triples),
    )


def describe(counts: dict[str, int | None]) -> str:
    """'2 empty, 1 copied source', or '' where there is no fault."""
    words = (f"{number} {name.replace('_', ' ')}" for name, number in counts.items() if number)
    return ", ".join(words)


def _finding(flags: Iterable[bool]) -> Finding:
    found = [index for index, flag in enumerate(flags) if flag]
    return Finding(count=len(found), indices=found[:N_LISTED])


def _copied(source: str, reference: str, hypothesis: str) -> bool:
    said, asked, meant = _folded(hypothesis), _folded(source), _folded(reference)
    if said == asked:
        return bool(asked) and asked != meant
    return len(asked) >= _SURELY_A_SENTENCE and asked in said and asked not in meant


def _folded(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())


def _has_chatter(source: str, reference: str, hypothesis: str, instruction: str) -> bool:
    """Whether there is something around the translation that neither source nor reference has."""
    if instruction.strip() and instruction.strip() in hypothesis:
        return True
    if _CHATTER.search(hypothesis):
        return not _CHATTER.search(reference) and not _CHATTER.search(source)
    return _is_quoted(hypothesis) and not _is_quoted(reference) and not _is_quoted(source)


def _is_quoted(text: str) -> bool:
    text = text.strip().rstrip(".。")
    return len(text) > 2 and text[-1] in _QUOTES.get(text[0], ())


def _loops(text: str) -> bool:
    return any(match.end() - match.start() >= _LOOP_CHARACTERS for match in _LOOP.finditer(text))


def _is_out_of_proportion(source: str, reference: str, hypothesis: str, per_character: float) -> bool:
    length = len(hypothesis.strip())
    if not length:
        return False  # that is `empty`
    meant = (len(reference.strip()), len(source.strip()) * per_character)
    too_long = all(length > _TOO_LONG * each and length - each >= _FEW_CHARACTERS for each in meant)
    return too_long or all(length < _TOO_SHORT * each and each - length >= _FEW_CHARACTERS for each in meant)


def _lost_number(source: str, reference: str, hypothesis: str) -> bool:
    wanted = _numbers(source) & _numbers(reference)
    if not wanted:
        return False
    # 1 000 000 is the same number as 1,000,000, where it stands for one.
    joined = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", hypothesis)
    return not wanted <= _numbers(hypothesis) | _numbers(joined)


def _numbers(text: str) -> set[str]:
    """Each number's digits, in ASCII and without separators."""
    return {
        "".join(str(unicodedata.digit(char)) for char in number if char.isdecimal()) for number in _NUMBER.findall(text)
    }


def _in_wrong_language(triples: Sequence[tuple[str, str, str]]) -> list[bool]:
    scripts = sum((_scripts(reference) for _, reference, _ in triples), Counter())
    usual = {script for script, number in scripts.items() if number >= 0.05 * scripts.total()}
    flags = [
        _share(hypothesis, usual) < 0.5 <= _share(reference, usual) if usual else False
        for _, reference, hypothesis in triples
    ]
    if len(triples) < N_TO_LEARN_FROM:
        return flags
    like_source = _Language(source for source, _, _ in triples)
    like_target = _Language(reference for _, reference, _ in triples)
    for index, (_, reference, hypothesis) in enumerate(triples):
        if hypothesis != reference and not flags[index]:
            evidence = like_source.likelihood(hypothesis) - like_target.likelihood(hypothesis)
            flags[index] = evidence > _CLEARLY
    return flags


class _Language:
    """What a language looks like: how often each run of three characters comes in some texts of it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._counts: Counter[str] = Counter()
        for text in texts:
            self._counts.update(_runs(text))
        self._total = self._counts.total() + 0.5 * (len(self._counts) + 1)

    def likelihood(self, text: str) -> float:
        """The logarithm of how likely a text is, its runs taken one by one."""
        return sum(math.log((self._counts[run] + 0.5) / self._total) for run in _runs(text))


def _runs(text: str) -> list[str]:
    padded = f"  {' '.join(text.casefold().split())} "
    return [padded[start : start + 3] for start in range(len(padded) - 2)]


def _share(text: str, scripts: set[str]) -> float:
    """Which part of a text's letters is of some scripts; 1 where it has no letters."""
    found = _scripts(text)
    return sum(found[script] for script in scripts) / found.total() if found else 1.0


def _scripts(text: str) -> Counter[str]:
    return Counter(_script(char) for char in text if char.isalpha())


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK, HIRAGANA. Python knows no script property."""
    return unicodedata.name(char, "UNKNOWN").partition(" ")[0]
