"""Hypotheses that are no translation are found, and translations are left alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scoring.diagnostics import N_LISTED, N_TO_LEARN_FROM, diagnose
from tests.workshop import CAPTIONS

SOURCE, REFERENCE = "A man in a red jacket is standing.", "Ein Mann in einer roten Jacke steht."
GOOD = "Ein Mann mit roter Jacke steht da."
CAPTIONS_OF = {lang: (CAPTIONS / f"train.{lang}").read_text("utf-8").splitlines()[:64] for lang in ("en", "de")}
PAIRS = list(zip(*CAPTIONS_OF.values(), strict=True))


def look(hypothesis, source=SOURCE, reference=REFERENCE, *, languages=("en", "de"), **keywords) -> set[str]:
    """The issues of one hypothesis."""
    found = diagnose([source], [reference], [hypothesis], [None], *languages, **keywords)
    return {name for name, flagged in found.items() if flagged and flagged.count}


@pytest.mark.parametrize(
    ("hypothesis", "issues"),
    [
        (GOOD, set()), (REFERENCE, set()),
        ("", {"empty"}), ("\t\u3000", {"empty"}),
        (SOURCE.upper(), {"copied_source"}), (f"“{SOURCE[:-1]}!”", {"copied_source"}),
        (f"{SOURCE} {GOOD}", {"copied_source"}),
        ("ein Mann " * 4, {"repetition"}), ("哈" * 20, {"repetition", "wrong_language"}),
        ("ha ha ha ha", set()),
        ("Sehr, sehr, sehr gut, wirklich sehr gut.", set()),
    ],
)  # fmt: skip
def test_a_hypothesis_has_exactly_the_issues_that_it_shows(hypothesis, issues):
    assert look(hypothesis) == issues


@pytest.mark.parametrize(
    ("source", "reference", "hypothesis", "languages"),
    [
        ("Angela Merkel", "Angela Merkel", "Angela Merkel", ("en", "de")),
        ("Angela Merkel kam", "Angela", "Angela Merkel ist da", ("en", "de")),
        (SOURCE, REFERENCE, SOURCE, ("zho", "zh-Hans")),
        ("Chapter 1 " + "." * 40, "Kapitel 1 " + "." * 40, "Kapitel 1 " + "." * 40, ("en", "de")),
        ("Nein, danke.", "No.", "Nein.", ("de", "en")),
        ("The translation is bad.", "Die Übersetzung ist schlecht.", "Die Übersetzung ist nicht gut.", ("en", "de")),
        ("Use </s> here.", "Nimm </s> hier.", "Nimm hier </s>.", ("en", "de")),
    ],
)
def test_what_source_or_reference_have_too_is_no_issue(source, reference, hypothesis, languages):
    assert look(hypothesis, source, reference, languages=languages) == set()


@pytest.mark.parametrize(
    ("language", "reference", "right"), [("ru", "Мужчина стоит.", "Anna стоит там."), ("ja", "男の人が", "男が立って")]
)
def test_another_script_than_the_references_is_the_wrong_language(language, reference, right):
    found = [look(text, "A man stands.", reference, languages=("en", language)) for text in (right, "Mann steht.")]
    assert ["wrong_language" in each for each in found] == [False, True]


def test_the_same_script_is_told_apart_by_what_a_large_enough_test_set_looks_like():
    answers = [f"Here {en.lower()}" if i % 3 == 0 else f"Hier {de.lower()}" for i, (en, de) in enumerate(PAIRS)]
    assert len(answers) >= N_TO_LEARN_FROM
    found = diagnose(*zip(*PAIRS, strict=True), answers, [None] * len(answers), "en", "de")["wrong_language"]
    assert found.indices == list(range(0, len(answers), 3))
    n = N_TO_LEARN_FROM - 1
    sources, references = zip(*PAIRS[:n], strict=True)
    assert diagnose(sources, references, sources, [None] * n, "en", "de")["wrong_language"].count == 0


@pytest.mark.parametrize(
    ("issue", "texts"),
    [
        ("chatter", [
            "Here is the translation: {}", "Sure! {}", "**German translation:** {}", "Hier ist die Übersetzung: {}",
            "{} (Anmerkung: wörtlich)", "I'm sorry, but I can't do that.", "以下是翻译：一个男人",
            "Translate this into German. A man {}",
        ]),
        ("control_text", [
            "so it is ...</think>\n\n{}", "<think>\n\n</think>{}", "{}</s>", "{}<|eot_id|>", "[/INST] {}",
            "{}<｜end▁of▁sentence｜>", "{}<end_of_turn>",
        ]),
    ],
)  # fmt: skip
def test_words_around_the_translation_and_marks_of_a_chat_template_are_issues(issue, texts):
    found = [look(text.format(GOOD), instruction="Translate this into German.") for text in texts]
    assert [text for text, issues in zip(texts, found, strict=True) if issue not in issues] == []


def test_a_hypothesis_of_unknown_end_among_known_ones_is_not_cut_off():
    found = diagnose([SOURCE] * 3, [REFERENCE] * 3, [GOOD] * 3, [None, True, False], "en", "de")
    assert found["cut_off"].indices == [1]
    assert diagnose([SOURCE], [REFERENCE], [GOOD], [None], "en", "de")["cut_off"] is None


def test_many_indices_are_counted_and_the_first_listed():
    n = N_LISTED + 5
    found = diagnose([SOURCE] * n, [REFERENCE] * n, [""] * n, [None] * n, "en", "de")["empty"]
    assert (found.count, found.indices) == (n, list(range(N_LISTED)))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.text(), st.text(), st.text(), st.none() | st.booleans()), max_size=60),
    st.sampled_from(["en", "de", "zh-Hans", "xx"]),
    st.text(max_size=5),
)
def test_any_text_is_looked_at_and_a_reference_has_no_issue(rows, language, instruction):
    sources, references, hypotheses, cut_off = ([row[column] for row in rows] for column in range(4))
    found = diagnose(sources, references, hypotheses, cut_off, "en", language, instruction=instruction)
    assert all(flagged is None or 0 <= flagged.count <= len(rows) for flagged in found.values())
    of_references = diagnose(sources, references, references, [False] * len(rows), "en", "de")
    assert {name for name, flagged in of_references.items() if flagged and flagged.count} <= {"empty"}
