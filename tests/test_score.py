"""Scores equal sacrebleu's command line."""

import json
import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
import sacrebleu

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.scoring import metrics
from orchestrator.scoring.metrics import llamafactory_bleu4, normalize_segment, score_system, spacing_warning

PAIRS = [
    ("The dog bit the man.", "The dog bit the man."),
    ("It wasn't surprising.", "It was not unexpected."),
    ("The man had just bitten him.", "The man bit him first."),
    ("Ein  Hund läuft über »das« Gras.", "Ein Hund rennt über das grüne Gras."),
    ("", "Ein Kind spielt."),
    ("Zwei Männer, die auf einem Dach stehen .", "Zwei Männer stehen auf einem Dach."),
]
HYPOTHESES, REFERENCES = map(list, zip(*PAIRS, strict=True))


def command_line(tmp_path, *options):
    """What `sacrebleu REF -i HYP --confidence` prints as JSON, by metric; chrF2++ in a run of its own."""
    for name, lines in [("hypotheses", HYPOTHESES), ("references", REFERENCES)]:
        (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found = {}
    for metrics_of_run in (["bleu", "chrf", "ter"], ["chrf", "--chrf-word-order", "2"]):
        argv = [sys.executable, "-m", "sacrebleu", "references.txt", "-i", "hypotheses.txt", "-m", *metrics_of_run]
        argv += ["-f", "json", "-w", "10", "--confidence", *options]
        printed = json.loads(subprocess.run(argv, cwd=tmp_path, capture_output=True, check=True).stdout)
        names_of = {"BLEU": "bleu", "chrF2": "chrf", "TER": "ter", "chrF2++": "chrf++"}
        found |= {names_of[item["name"]]: item for item in (printed if isinstance(printed, list) else [printed])}
    return found


def test_scores_intervals_and_signatures_are_those_of_the_command_line(tmp_path):
    printed = command_line(tmp_path, "--confidence-n", "300")
    scores, _, _ = score_system(HYPOTHESES, REFERENCES, tgt_lang="de", n_bootstrap=300)
    assert [score.metric for score in scores] == ["bleu", "chrf", "chrf++", "ter"]
    for score in scores:
        shown = printed[score.metric]
        assert round(score.score, 10) == shown["score"]
        mean, half = shown["confidence_mean"], shown["confidence_var"]
        assert score.ci95 == pytest.approx((mean - half, mean + half), abs=1e-9)
        assert score.signature == shown["signature"]
        assert score.n_segments == len(HYPOTHESES)


def test_the_seed_is_sacrebleus_own_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    printed = command_line(tmp_path, "--confidence-n", "50")
    for score in score_system(HYPOTHESES, REFERENCES, tgt_lang="de", n_bootstrap=50)[0]:
        assert "seed:7" in score.signature == printed[score.metric]["signature"]
        assert sum(score.ci95) / 2 == pytest.approx(printed[score.metric]["confidence_mean"], abs=1e-9)
    monkeypatch.setenv("SACREBLEU_SEED", "lucky")
    with pytest.raises(SpecError, match="'lucky', expected a number"):
        metrics.seed()


@pytest.mark.parametrize("code", ["zh_CN", "ZH", "zho-Hans", "yue-HK"])
def test_chinese_is_tokenized_as_chinese_whatever_its_code(code):
    [score], _, _ = score_system(["你好世界啊"], ["你好世界啊"], tgt_lang=code, metrics=["bleu"])
    assert "tok:zh" in score.signature and score.score == pytest.approx(100)


@pytest.mark.parametrize(
    ("references", "code", "warned"),
    [
        ("一个男人站着。", "xx", "BLEU, TER"), ("ชายคนหนึ่งยืนอยู่", "th", "BLEU, TER"), ("一个男人站着。", "zh", "TER"),
        ("Ein Mann steht.", "de", None), ("The word 男 is short.", "en", None), ("남자가 서 있다.", "xx", None),
    ],
)  # fmt: skip
def test_a_measure_by_words_and_references_without_spaces_are_warned_of(references, code, warned):
    scores = score_system([references], [references], tgt_lang=code, metrics=["bleu", "chrf", "ter"])[0]
    warning = spacing_warning(scores, [references], code)
    assert (warning and warning.partition(":")[0]) == warned


@pytest.mark.parametrize(("language", "extra"), [("ja", "ja"), ("ko", "ko"), ("jpn", "ja")])
@pytest.mark.skipif(bool(find_spec("MeCab")), reason="MeCab is installed")
def test_a_language_that_needs_mecab_says_what_to_install_or_leave_out(language, extra):
    with pytest.raises(PrerequisiteError) as error:
        metrics.load_metric("bleu", language)
    assert f"sacrebleu[{extra}]" in error.value.remedy and "--metrics" in error.value.remedy


def test_the_mean_of_sentence_bleus_is_what_sacrebleus_sentence_bleu_gives_averaged():
    each = [sacrebleu.sentence_bleu(hypothesis, [reference]).score for hypothesis, reference in PAIRS]
    scores, mean, _ = score_system(HYPOTHESES, REFERENCES, tgt_lang="de", metrics=["bleu"], n_bootstrap=1)
    assert mean.metric == "mean_sentence_bleu" and "eff:yes" in mean.signature
    assert mean.score == pytest.approx(sum(each) / len(each), abs=1e-12)
    assert abs(mean.score - scores[0].score) > 0.1, "two numbers, not one by two names"


@pytest.mark.parametrize(
    ("hypothesis", "reference", "meant"),
    [
        ("", "abc", 0),
        # 1 of 2 characters, then 1/2 and 1/4 and 1/8 where nothing matches; as long as the reference: no penalty
        ("ab", "ac", 100 * (0.5 * 0.5 * 0.25 * 0.125) ** 0.25),
        ("abcde", "abcdefghij", 100 * math.exp(1 - 10 / 5)),
    ],
)
def test_character_bleu4_by_hand(hypothesis, reference, meant):
    assert llamafactory_bleu4([hypothesis], [reference]).score == round(meant, 4)


LLAMAFACTORY = """
import json, sys
from types import SimpleNamespace
import numpy as np
from llamafactory.train.sft.metric import ComputeSimilarity

class Characters:
    pad_token_id = 0
    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(map(chr, row[row > 0])) for row in rows]

pairs = json.load(sys.stdin)
def rows(texts):
    width = max(map(len, texts)) + 1
    return np.array([[*map(ord, text), *[-100] * (width - len(text))] for text in texts])
predictions, label_ids = (rows([pair[side] for pair in pairs]) for side in (0, 1))
given = SimpleNamespace(predictions=predictions, label_ids=label_ids)
print(json.dumps(ComputeSimilarity(Characters())(given)["bleu-4"]))
"""


@pytest.mark.integration
def test_character_bleu4_is_that_of_llamafactorys_own_code(llamafactory, tmp_path):
    """Its ComputeSimilarity, where its optional packages are installed: jieba, nltk, rouge-chinese."""
    pairs = [*PAIRS, ("你好，世界", "你好世界。"), ("a", "a b"), ("zz", "a")]
    find = "import jieba, nltk, rouge_chinese"
    if subprocess.run([sys.executable, "-W", "ignore", "-c", find], capture_output=True).returncode:
        pytest.skip("jieba, nltk or rouge-chinese is not installed")
    done = llamafactory.run(LLAMAFACTORY, cwd=tmp_path, input=json.dumps(pairs))
    assert done.returncode == 0, done.stderr
    ours = llamafactory_bleu4([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    assert ours.score == pytest.approx(json.loads(done.stdout), abs=1e-9)


def test_an_interval_of_which_only_some_resamples_are_zero():
    """sacrebleu's own mean of such scores is a TypeError with NumPy 2."""
    hypotheses, references = ["", "", "", "", "0"], ["x", "y", "z", "x", "0"]
    for score in score_system(hypotheses, references, tgt_lang="de", n_bootstrap=100)[0]:
        assert score.ci95[0] <= score.score <= score.ci95[1]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
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
