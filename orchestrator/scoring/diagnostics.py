"""What a score does not tell: hypotheses that are no translation, counted and listed. No score is changed by it.

Languages of one script are distinguished by the test set's own runs of three characters: on a single short sentence no
language-identification package is better, and its model would be one more thing to install.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from pydantic import BaseModel, ConfigDict

from orchestrator.scoring.metrics import base_language

N_LISTED = 100  # so many indices of each issue are listed; the count is of all
N_TO_LEARN_FROM = 50  # with fewer segments, what the two languages look like is not known well enough

# How much more likely a hypothesis has to be in the source language: e ** 10, over all of it.
_CLEARLY = 10.0
_SURELY_A_SENTENCE = 15
_LOOP = re.compile(r"(.{1,60}?)\1{3,}", re.DOTALL)
_LOOP_CHARACTERS = 20
_CONTROL_TEXT = re.compile(
    r"</?think(?:ing)?>|</?s>|<[|｜][^<>|｜]{1,40}[|｜]>|<(?:start|end)_of_turn>|<(?:eos|bos|pad|unk)>|\[/?INST\]", re.I
)
_CHATTER = re.compile(
    r"""^\W*(?:sure|certainly|of\ course|absolutely|okay)\b(?:\ ?[!:]|,?\ (?:here\b|the\ translation|i\ will|i'll))
      | ^\W*(?:here(?:'s|’s|\ is|\ are)|below\ is|this\ is)\ (?:the|your|a|my)\b[^.]{0,40}\b(?:translat|version)
      | ^\W*(?:(?:the|die|la|hier\ ist\ die|voici\ la|aquí\ está\ la|ecco\ la)\ )?(?:\w+\ )?
        (?:translation|translated\ (?:text|sentence)|übersetzung|tra(?:duction|ducción|duzione))\b[^.:]{0,40}
        (?::|\ (?:is|lautet|ist|est|es|è)\b)
      | ^\W*(?:好的|当然|以下是|翻译|译文)[^。]{0,20}[:：，,]
      | \bin\ \w+,\ (?:the|this)\ (?:sentence|text|phrase)\ is\b | \b(?:note|explanation|anmerkung|erklärung)\ ?:
      | \blet\ me\ know\ if\b | \bi\ hope\ this\ helps\b | \bas\ an\ ai\b | \bi'm\ sorry,\ but\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


class Flagged(BaseModel):
    model_config = ConfigDict(frozen=True)

    count: int
    indices: list[int]  # the first of them, by the index that hypotheses.jsonl has


def diagnose(
    sources: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    cut_off: Sequence[bool | None],
    source_lang: str,
    target_lang: str,
    *,
    instruction: str = "",
    indices: Sequence[int] | None = None,
) -> dict[str, Flagged | None]:
    """Look for hypotheses that are no translation; what the reference does too is no issue.

    `cut_off` says of each whether it ended at the longest length that was allowed (None: not known), `instruction` what
    stood before each source in the prompt, `indices` where each is in the test set (None: all of it is here).

    By issue; None where it cannot be known. empty: nothing or white space. copied_source: the source, letter case and
    punctuation aside, alone or with more around it. wrong_language: mostly in scripts that the references do not use,
    or, in a test set of 50 or more, clearly nearer to the sources' language. chatter: words around the translation, or
    the instruction repeated. control_text: reasoning tags or a chat template's marks. cut_off. repetition: the same
    words four times running.
    """
    triples = list(zip(sources, references, hypotheses, strict=True))
    translated = base_language(source_lang) != base_language(target_lang)
    asked = instruction.strip()
    flags: dict[str, Iterable[bool] | None] = {
        "empty": (not hypothesis.strip() for hypothesis in hypotheses),
        "copied_source": (translated and _is_copied(*each) for each in triples),
        "wrong_language": _in_wrong_language(triples) if translated and triples else None,
        "chatter": ((bool(asked) and asked in each[2]) or _has_only(_CHATTER, *each) for each in triples),
        "control_text": (_has_only(_CONTROL_TEXT, *each) for each in triples),
        "cut_off": map(bool, cut_off) if any(flag is not None for flag in cut_off) else None,
        "repetition": (_loops(text) and not _loops(ref) and not _loops(src) for src, ref, text in triples),
    }
    numbers = range(len(triples)) if indices is None else indices
    found: dict[str, Flagged | None] = dict.fromkeys(flags)
    for issue, of_each in flags.items():
        if of_each is not None:
            at = [index for index, flag in zip(numbers, of_each, strict=True) if flag]
            found[issue] = Flagged(count=len(at), indices=at[:N_LISTED])
    return found


def describe(counts: dict[str, int | None]) -> str:
    """'2 empty, 1 copied source', or '' where there is no issue."""
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items() if number)


def _is_copied(*texts: str) -> bool:
    source, reference, hypothesis = ("".join(filter(str.isalnum, text.casefold())) for text in texts)
    if hypothesis == source:
        return bool(source) and source != reference
    return len(source) >= _SURELY_A_SENTENCE and source in hypothesis and source not in reference


def _has_only(pattern: re.Pattern[str], source: str, reference: str, hypothesis: str) -> bool:
    return bool(pattern.search(hypothesis)) and not pattern.search(reference) and not pattern.search(source)


def _loops(text: str) -> bool:
    return any(match.end() - match.start() >= _LOOP_CHARACTERS for match in _LOOP.finditer(text))


def _in_wrong_language(triples: Sequence[tuple[str, str, str]]) -> list[bool]:
    scripts = Counter(script for _, reference, _ in triples for script in _scripts(reference))
    usual = {script for script, number in scripts.items() if number >= 0.05 * scripts.total()}
    flags = [bool(usual) and _share(text, usual) < 0.5 <= _share(reference, usual) for _, reference, text in triples]
    if len(triples) < N_TO_LEARN_FROM:
        return flags
    like_source, like_target = (_likelihood_of(texts) for texts in list(zip(*triples, strict=True))[:2])
    for number, (_, reference, text) in enumerate(triples):
        flags[number] |= text != reference and like_source(text) - like_target(text) > _CLEARLY
    return flags


def _likelihood_of(texts: Iterable[str]) -> Callable[[str], float]:
    """The log-likelihood of a text in a language, by how often each run of three characters is in some texts of it."""
    counts = Counter(run for text in texts for run in _trigrams(text))
    total = counts.total() + 0.5 * (len(counts) + 1)
    return lambda text: sum(math.log((counts[run] + 0.5) / total) for run in _trigrams(text))


def _trigrams(text: str) -> list[str]:
    padded = f"  {' '.join(text.casefold().split())} "
    return [padded[start : start + 3] for start in range(len(padded) - 2)]


def _share(text: str, scripts: set[str]) -> float:
    """Which part of a text's letters is of some scripts; 1 where it has no letters."""
    found = _scripts(text)
    return sum(script in scripts for script in found) / len(found) if found else 1.0


def _scripts(text: str) -> list[str]:
    return [_script(char) for char in text if char.isalpha()]


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK, HIRAGANA. Python knows no script property."""
    return unicodedata.name(char, "UNKNOWN").partition(" ")[0]
