"""Answers that are no translation are found, and translations are left alone. Run: pytest tests/test_triage.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scoring.diagnostics import N_LISTED, N_TO_LEARN_FROM, Triage, describe, triage

SOURCE, REFERENCE = "A man in a red jacket is standing.", "Ein Mann in einer roten Jacke steht."
GOOD = "Ein Mann mit roter Jacke steht da."
SUBJECTS = [("A man", "Ein Mann"), ("A woman", "Eine Frau"), ("The child", "Das Kind"), ("A dog", "Ein Hund")]
VERBS = [("is walking", "läuft"), ("is sitting", "sitzt"), ("waits", "wartet"), ("is sleeping", "schläft")]
PLACES = [("on the street", "auf der Straße"), ("in the water", "im Wasser"), ("near a house", "bei einem Haus")]
PAIRS = [
    (f"{s[0]} {v[0]} {p[0]}, and there are more of them.", f"{s[1]} {v[1]} {p[1]}, und es gibt noch mehr davon.")
    for s in SUBJECTS for v in VERBS for p in [*PLACES, ("again and again", "immer wieder")]
]  # fmt: skip


def look(hypothesis, source=SOURCE, reference=REFERENCE, *, tokens=5, languages=("en", "de"), **keywords) -> set[str]:
    """The faults found in one answer."""
    found = triage([source], [reference], [hypothesis], [tokens], 10, *languages, **keywords).counts()
    return {name for name, number in found.items() if number}


def test_a_translation_has_no_fault():
    assert look(GOOD) == set()
    assert look(REFERENCE) == set()


@pytest.mark.parametrize("hypothesis", ["", " ", "\t\u3000"])
def test_an_empty_answer_is_that_and_nothing_else(hypothesis):
    assert look(hypothesis) == {"empty"}


@pytest.mark.parametrize("hypothesis", [SOURCE, SOURCE.upper(), f"“{SOURCE[:-1]}!”", f"{SOURCE} {GOOD}"])
def test_a_copied_source_is_found_letter_case_and_punctuation_aside(hypothesis):
    assert "copied_source" in look(hypothesis)


def test_what_the_reference_copies_too_is_no_fault():
    assert look("Angela Merkel", "Angela Merkel", "Angela Merkel") == set()
    assert look("Angela Merkel kam", "Angela", "Angela Merkel ist da") == set()
    assert look(SOURCE, languages=("en", "en-GB")) == set(), "within one language there is nothing to copy"


@pytest.mark.parametrize(
    ("languages", "reference", "right", "wrong"),
    [
        (("en", "ru"), "Мужчина стоит.", "Человек стоит.", "Mann steht hier."),
        (("en", "ja"), "男の人が立っています。", "男が立っている。", "Der Mann steht."),
        (("en", "zh"), "一个男人站着。", "男人站着 (OK)。", "Mann steht."),
        (("ru", "de"), REFERENCE, GOOD, "Мужчина стоит тут."),
        (("en", "ko"), "남자가 서 있다.", "남자가 있다.", "男人站着。"),
    ],
)
def test_another_script_than_the_references_is_the_wrong_language(languages, reference, right, wrong):
    source = "Здесь стоит кто-то." if languages[0] == "ru" else "A man stands."
    assert "wrong_language" not in look(right, source, reference, languages=languages)
    assert "wrong_language" in look(wrong, source, reference, languages=languages)


def test_the_same_script_is_told_apart_by_what_the_test_set_looks_like():
    """Sentences that are not in it; every third answer in the source language."""
    answers = [
        f"Here {source.lower()}" if i % 3 == 0 else f"Hier {ref.lower()}" for i, (source, ref) in enumerate(PAIRS)
    ]
    assert len(answers) >= N_TO_LEARN_FROM
    found = triage(*zip(*PAIRS, strict=True), answers, [None] * len(answers), 9, "en", "de").wrong_language
    assert found.indices == list(range(0, len(answers), 3))


def test_a_short_test_set_is_too_little_to_tell_the_same_script_apart():
    pairs = PAIRS[: N_TO_LEARN_FROM - 1]
    sources, references = zip(*pairs, strict=True)
    assert triage(sources, references, sources, [None] * len(pairs), 9, "en", "de").wrong_language.count == 0


@pytest.mark.parametrize(
    "hypothesis",
    [
        f"Here is the translation: {GOOD}",
        f"Here's the German translation of the sentence: {GOOD}",
        f"Sure! {GOOD}",
        f"Sure, here you go: {GOOD}",
        f"Translation: {GOOD}",
        f"The translation is {GOOD}",
        f"**German translation:** {GOOD}",
        f"Die Übersetzung lautet: {GOOD}",
        f"Hier ist die Übersetzung: {GOOD}",
        f"{SOURCE} In German, the sentence is: {GOOD}",
        f"{GOOD} Note: 'Jacke' may also be 'Jackett'.",
        f"{GOOD} (Anmerkung: wörtlich)",
        f'"{GOOD}"',
        f"„{GOOD}“",
        f"{GOOD} Let me know if you need more.",
        f"<think> The man is standing. </think> {GOOD}",
        "I'm sorry, but I can't do that.",
        "以下是翻译：一个男人",
        "Voici la traduction : Un homme",
        f"Translate this into German. {SOURCE} {GOOD}",
    ],
)
def test_words_around_the_translation_are_chatter(hypothesis):
    assert "chatter" in look(hypothesis, instruction="Translate this into German.")


@pytest.mark.parametrize(
    ("source", "reference", "hypothesis"),
    [
        ("Note: it rains.", "Hinweis: Es regnet.", "Anmerkung: Es regnet."),
        ("Er sagte: Klar!", "Of course! he said.", "Sure! he said."),
        ('"Yes."', "„Ja.“", "„Ja.“"),
        ("The translation is bad.", "Die Übersetzung ist schlecht.", "Die Übersetzung ist nicht gut."),
        ("He is sure.", "Er ist sicher.", "Er ist sich sicher, hier."),
    ],
)
def test_what_source_or_reference_say_too_is_no_chatter(source, reference, hypothesis):
    assert "chatter" not in look(hypothesis, source, reference)


@pytest.mark.parametrize(("tokens", "cut"), [(9, False), (10, True), (11, True), (None, None)])
def test_an_answer_as_long_as_max_tokens_was_cut(tokens, cut):
    found = triage([SOURCE], [REFERENCE], [GOOD], [tokens], 10, "en", "de").cut_off
    assert (found and found.count == 1) == cut


def test_an_answer_of_unknown_length_among_known_ones_is_not_cut():
    found = triage([SOURCE] * 2, [REFERENCE] * 2, [GOOD] * 2, [None, 10], 10, "en", "de").cut_off
    assert found.indices == [1]


@pytest.mark.parametrize(
    ("hypothesis", "loops"),
    [
        ("ein Mann " * 4, True),
        ("Ein Mann steht. " + "und steht " * 9, True),
        ("哈" * 20, True),
        ("ha ha ha ha", False),
        ("Sehr, sehr, sehr gut, wirklich sehr gut.", False),
        ("1000000000", False),
    ],
)
def test_the_same_words_again_and_again_are_a_repetition(hypothesis, loops):
    assert ("repetition" in look(hypothesis)) == loops


def test_dots_of_a_table_of_contents_are_no_repetition():
    assert look("Kapitel 1 " + "." * 40, "Chapter 1 " + "." * 40, "Kapitel 1 " + "." * 40) == set()


def test_a_length_out_of_all_proportion_to_reference_and_source():
    assert look(GOOD + " Dort drüben, wo die anderen auch alle stehen.") == {"length_outlier"}
    assert look("Ein Mann.") == {"length_outlier"}
    assert look("Nein, danke.", "No.", "Nein.") == set(), "a few characters more are nothing"
    # The reference is the odd one here: the answer is as long as the source lets expect.
    sources, references = ["a" * 40] * 9 + ["b" * 40], ["c" * 40] * 9 + ["d" * 5]
    answers = [*references[:9], "e" * 40]
    assert triage(sources, references, answers, [None] * 10, 9, "en", "de").length_outlier.count == 0


@pytest.mark.parametrize(
    ("source", "reference", "hypothesis", "lost"),
    [
        ("In 1989 it fell.", "1989 fiel sie.", "1998 fiel sie.", True),
        ("In 1989 it fell.", "1989 fiel sie.", "1989 ist sie gefallen.", False),
        ("It costs 1,000.50 euros.", "Es kostet 1.000,50 Euro.", "Es kostet 1000,50 Euro.", False),
        ("1,000,000 people", "1.000.000 Menschen", "1 000 000 Menschen", False),
        ("1'000 people", "1\u202f000 Menschen", "1.000 Menschen", False),
        ("2 dogs", "Zwei Hunde", "Hunde", False),
        ("At 5 pm with 3 dogs", "Um 17 Uhr mit 3 Hunden", "Um 17 Uhr mit drei Hunden", True),
        ("Room 12", "Zimmer 12", "Zimmer ١٢", False),
        ("3 4", "3 4", "34", True),
    ],
)
def test_a_number_that_the_reference_keeps_is_lost_without_its_digits(source, reference, hypothesis, lost):
    assert ("numbers_lost" in look(hypothesis, source, reference)) == lost


def test_many_indices_are_counted_but_not_listed():
    n = N_LISTED + 5
    found = triage([SOURCE] * n, [REFERENCE] * n, [""] * n, [1] * n, 9, "en", "de").empty
    assert (found.count, found.indices) == (n, list(range(N_LISTED)))


def test_counts_in_words():
    counts = triage([SOURCE] * 2, [REFERENCE] * 2, ["", SOURCE], [None] * 2, 9, "en", "de").counts()
    assert describe(counts) == "1 empty, 1 copied source"
    assert counts["cut_off"] is None
    assert describe({"empty": 0, "cut_off": None}) == ""


def test_no_sentence_is_no_fault():
    assert set(triage([], [], [], [], 9, "en", "de").counts().values()) <= {0, None}


@given(
    st.lists(st.tuples(st.text(), st.text(), st.text(), st.none() | st.integers(0, 99)), max_size=60),
    st.sampled_from(["en", "de", "zh-Hans", "xx"]),
    st.text(max_size=5),
)
def test_any_text_is_looked_at_and_the_result_survives_json(rows, language, instruction):
    columns = [[row[column] for row in rows] for column in range(4)]
    found = triage(*columns, 9, "en", language, instruction=instruction)
    assert Triage.model_validate_json(found.model_dump_json()) == found
    assert all(number is None or 0 <= number <= len(rows) for number in found.counts().values())


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=60))
def test_a_reference_is_never_at_fault(pairs):
    """Nor is it called a loop, chatter, too long, or the wrong language."""
    sources, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = triage(sources, references, references, [1] * len(pairs), 9, "en", "de").counts()
    assert {name for name, number in found.items() if number} <= {"empty"}
