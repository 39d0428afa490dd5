"""Scores equal sacrebleu's command line. Run: pytest tests/test_score.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.score import Score, mean_sentence_bleu, normalize_segment, score_corpus

HYPOTHESES = [
    "The dog bit the man.",
    "It wasn't surprising.",
    "The man had just bitten him.",
    "Ein  Hund läuft über »das« Gras.",
    "",
    "Zwei Männer, die auf einem Dach stehen .",
]
REFERENCES = [
    "The dog bit the man.",
    "It was not unexpected.",
    "The man bit him first.",
    "Ein Hund rennt über das grüne Gras.",
    "Ein Kind spielt.",
    "Zwei Männer stehen auf einem Dach.",
]


def command_line(tmp_path: Path, hypotheses: list[str], references: list[str], *options: str) -> dict[str, dict]:
    """What `sacrebleu REF -i HYP` prints as JSON, by metric."""
    (tmp_path / "references.txt").write_text("".join(f"{line}\n" for line in references), encoding="utf-8")
    (tmp_path / "hypotheses.txt").write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    files = ["references.txt", "-i", "hypotheses.txt"]
    argv = [sys.executable, "-m", "sacrebleu", *files, "-m", "bleu", "chrf", "ter", "-f", "json", "-w", "10", *options]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=True, text=True)
    found = json.loads(done.stdout)
    return {{"BLEU": "bleu", "chrF2": "chrf", "TER": "ter"}[item["name"]]: item for item in found}


def test_scores_intervals_and_signatures_are_those_of_the_command_line(tmp_path):
    """Digit for digit, `sacrebleu --confidence --confidence-n N`."""
    printed = command_line(tmp_path, HYPOTHESES, REFERENCES, "--confidence", "--confidence-n", "300")
    scores = score_corpus(HYPOTHESES, [REFERENCES], tgt_lang="de", n_bootstrap=300)
    assert [score.metric for score in scores] == ["bleu", "chrf", "ter"]
    for score in scores:
        shown = printed[score.metric]
        assert round(score.score, 10) == shown["score"]
        assert round(score.ci_mean, 10) == shown["confidence_mean"]
        assert round(score.ci_half, 10) == shown["confidence_var"]
        assert score.signature == shown["signature"]
        assert score.ci95 == (score.ci_mean - score.ci_half, score.ci_mean + score.ci_half)
        assert score.n_segments == len(HYPOTHESES)


def test_without_resampling_there_is_no_interval_and_the_signature_says_so(tmp_path):
    printed = command_line(tmp_path, HYPOTHESES, REFERENCES)
    for score in score_corpus(HYPOTHESES, [REFERENCES], tgt_lang="de", n_bootstrap=1):
        assert (score.ci95, score.ci_mean, score.ci_half) == (None, None, None)
        assert score.signature == printed[score.metric]["signature"]
        assert round(score.score, 10) == printed[score.metric]["score"]


def test_bleu_of_sacrebleus_own_example():
    """README of sacrebleu 2: 48.530827, with two references."""
    references = [
        ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
        ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
    ]
    hypotheses = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    [score] = score_corpus(hypotheses, references, tgt_lang="en", metrics=["bleu"], n_bootstrap=1)
    assert score.score == pytest.approx(48.530827, abs=1e-6)
    assert "nrefs:2" in score.signature


def test_chinese_is_tokenized_as_chinese_also_with_a_script():
    for language in ("zh", "zh-Hans"):
        [score] = score_corpus(["你好世界"], [["你好世界"]], tgt_lang=language, metrics=["bleu"], n_bootstrap=1)
        assert "tok:zh" in score.signature
        assert score.score == pytest.approx(100)


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_language_that_needs_mecab_says_what_to_install(language):
    try:
        import MeCab  # noqa: F401
    except ImportError:
        with pytest.raises(PrerequisiteError) as error:
            score_corpus(["x"], [["x"]], tgt_lang=language)
        assert f"sacrebleu[{language}]" in error.value.remedy
    else:
        pytest.skip("MeCab is installed")


def test_the_mean_of_sentence_bleus_is_what_sacrebleus_sentence_bleu_gives_averaged():
    each = [sacrebleu.sentence_bleu(*pair).score for pair in zip(HYPOTHESES, [[r] for r in REFERENCES], strict=True)]
    score = mean_sentence_bleu(HYPOTHESES, [REFERENCES], tgt_lang="de")
    assert score.metric == "mean_sentence_bleu"
    assert score.score == pytest.approx(sum(each) / len(each), abs=1e-12)
    assert "eff:yes" in score.signature
    [bleu] = score_corpus(HYPOTHESES, [REFERENCES], tgt_lang="de", metrics=["bleu"], n_bootstrap=1)
    assert abs(score.score - bleu.score) > 0.1, "two numbers, not one by two names"


def test_where_nothing_matches_the_interval_is_zero_wide():
    """sacrebleu leaves an interval around 0 out of its JSON."""
    [score] = score_corpus(["a b"] * 3, [["x y"] * 3], tgt_lang="de", metrics=["chrf"], n_bootstrap=10)
    assert (score.score, score.ci95) == (0, (0, 0))


def test_a_metric_named_twice_is_scored_once():
    scores = score_corpus(HYPOTHESES, [REFERENCES], tgt_lang="de", metrics=["ter", "bleu", "ter"], n_bootstrap=1)
    assert [score.metric for score in scores] == ["ter", "bleu"]


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [[]], "no segment"),
        (["a"], [], "no reference"),
        (["a", "b"], [["a"]], "2 hypotheses, but reference set 0 has 1"),
        (["a"], [["a"], ["a", "b"]], "reference set 1 has 2"),
    ],
)
def test_lengths_that_differ_are_an_error(hypotheses, references, message):
    for score in (score_corpus, mean_sentence_bleu):
        with pytest.raises(SpecError, match=message):
            score(hypotheses, references, tgt_lang="de")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a\nb", "a b"),
        ("a\r\nb", "a b"),
        ("a\n\nb", "a  b"),
        ("\n Hallo \t\n", "Hallo"),
        ("a\x85b\u2028c\u2029d\x0be\x0cf\x1cg\x1dh\x1ei\rj", "a b c d e f g h i j"),
        ("a  b\tc\u00a0d", "a  b\tc\u00a0d"),
        ("", ""),
    ],
)
def test_a_segment_gets_on_one_line_and_is_else_unchanged(text, meant):
    assert normalize_segment(text) == meant
    assert len(normalize_segment(text).splitlines()) <= 1


def test_a_score_survives_the_way_through_json():
    [score] = score_corpus(HYPOTHESES, [REFERENCES], tgt_lang="de", metrics=["bleu"], n_bootstrap=20)
    assert Score.model_validate_json(score.model_dump_json()) == score
