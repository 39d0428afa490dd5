"""Which benchmark is better, and what is said about it."""

import io
import json

import pytest
from rich.console import Console

from orchestrator.benchmark import compare as compare_module
from orchestrator.benchmark.compare import Comparison, compare, verdict
from orchestrator.benchmark.results import find_benchmarks
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.rundir import Workspace
from orchestrator.scoring.significance import PairedTest
from orchestrator.views.terminal import comparison_text
from tests.benchmark_folders import REFERENCES, SOURCES, add_benchmark
from tests.workshop import new_workshop

GOOD = [line.replace("Ein ", "Der ") for line in REFERENCES]
BAD = [line.replace("auf", "an").replace("in", "x").replace("te", "t e") for line in REFERENCES]
BAD[7] = "Here is the translation: \x1b[31mrot\x1b[0m [bold]fett[/bold]"
BAD[8] = ""


@pytest.fixture
def place(workspace, monkeypatch):
    monkeypatch.setattr(compare_module, "N_BOOTSTRAP", 100)
    monkeypatch.setattr(compare_module, "N_RANDOMIZATIONS", 500)
    add_benchmark(workspace, BAD, of="base")
    add_benchmark(workspace, GOOD)
    return workspace


def compared(place, *words, **options):
    return compare(find_benchmarks(words, place, None), **options)


def test_the_better_one_is_said_with_its_figures(place):
    found = compared(place, "demo@base", "demo")
    assert [each.metric for each in found.tests] == ["bleu", "chrf", "chrf++", "ter"]
    assert (found.baseline, found.n_comparisons) == ("demo@base", 1)
    assert {test.better for test in found.tests} == {"demo"}
    assert [line.split(":")[0] for line in found.verdicts] == ["demo is better"] * 4
    assert found.systems[1].scores == {test.metric: test.score for test in found.tests}


FIGURES = {"baseline": "a", "system": "b", "metric": "bleu", "score": 21.2, "difference": 1.2,
           "ci95": (0.4, 2.0), "p_bootstrap": 0.001, "p_randomization": 0.001, "p_value": 0.00133, "p_holm": 0.004,
           "mde": 1.5, "better": None}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "n", "words"),
    [
        ({"better": "b"}, 3, "b is better: +1.2 BLEU [0.4, 2.0], p = 0.004 (Holm, 3 comparisons)"),
        ({"metric": "ter", "better": "a"}, 1, "b is worse: +1.2 TER [0.4, 2.0], p = 0.004 (one comparison)"),
        ({"p_holm": 0.05}, 3, "b: no difference shown: +1.2 BLEU [0.4, 2.0], p = 0.05 (Holm, 3 comparisons); "
                              "minimum detectable difference: about 1.5 BLEU"),
        ({"difference": 0.03, "ci95": (-0.01, 0.07), "mde": None}, 1,
         "b: no difference shown: +0.0300 BLEU [-0.0100, 0.0700], p = 0.004 (one comparison)"),
        ({"ci95": None, "difference": -92.5}, 1, "b: -92.5 BLEU in one segment, which no test can say more of"),
    ],
)  # fmt: skip
def test_a_verdict_is_as_sure_as_the_test_and_no_surer(changes, n, words):
    assert verdict(PairedTest(**{**FIGURES, **changes}), n) == words


def test_sentences_are_shown_where_the_difference_is_biggest(place):
    [found] = compared(place, "demo@base", "demo", n_examples=2).sentences
    assert found.better + found.worse + found.equal == len(SOURCES)
    gains = [each.chrf[1] - each.chrf[0] for each in found.examples]
    assert gains[0] >= gains[1] > 0 > gains[-1] == min(gains) and found.worse == 2
    assert {each.index for each in found.examples[:2]} == {7, 8}
    best = found.examples[0]
    assert (best.source, best.reference) == (SOURCES[best.index], REFERENCES[best.index])
    assert best.hypotheses == (BAD[best.index], GOOD[best.index])
    assert compared(place, "demo@base", "demo", n_examples=0).sentences[0].examples == []


def test_signatures_that_differ_are_refused_but_the_interval_is_no_difference(place):
    signature = "nrefs:1|case:lc|eff:no|tok:none|smooth:exp|version:2.6.0"
    add_benchmark(place, GOOD, run="more", n_bootstrap=30)
    assert compared(place, "demo", "more").notes == []
    path = add_benchmark(place, GOOD, run="lower") / "scores.json"
    result = json.loads(path.read_text())
    result["scores"][0]["signature"] = signature
    path.write_text(json.dumps(result))
    with pytest.raises(SpecError, match="BLEU's signatures differ") as error:
        compared(place, "demo", "lower")
    assert f"lower: {signature}" in error.value.message
    assert compared(place, "demo", "lower", metrics=["chrf"]).tests[0].metric == "chrf"


def test_only_metrics_that_all_were_scored_by_are_compared_unless_named(place):
    add_benchmark(place, GOOD, run="few", metrics=("bleu", "ter"))
    assert list(compared(place, "demo", "few").signatures) == ["bleu", "ter"]
    assert list(compared(place, "demo", "few", metrics=["chrf++"]).signatures) == ["chrf++"]
    add_benchmark(place, GOOD, run="one", metrics=("chrf",))
    with pytest.raises(SpecError, match="no metric that all of few, one"):
        compared(place, "few", "one")
    with pytest.raises(SpecError, match="no metric 'blue'; did you mean 'bleu'"):
        compared(place, "demo", "few", metrics=["blue"])


def test_scores_of_another_sacrebleu_are_computed_anew_and_it_is_said(place):
    for run in ("old", "older"):
        path = add_benchmark(place, GOOD, run=run) / "scores.json"
        path.write_text(path.read_text().replace("version:2.", "version:1."))
    found = compared(place, "old", "older", metrics=["bleu"])
    assert len(found.notes) == 2 and "old was scored as nrefs:1" in found.notes[0]
    assert "version:1." not in found.signatures["bleu"]


def test_texts_that_were_changed_since_are_not_compared(place):
    messages = {"hypotheses": "changed since: BLEU of hypotheses.txt is"}
    for name in ("hypotheses", "references", "sources"):
        path = add_benchmark(place, GOOD, run=name) / f"{name}.txt"
        path.write_text("Etwas anderes.\n" + path.read_text().partition("\n")[2])
        with pytest.raises(PrerequisiteError, match=messages.get(name, f"{name}.txt differ, though")):
            compared(place, "demo", name)


def test_a_decoding_that_differs_is_noted_also_where_no_request_says_it(place):
    sent, held = {"max_tokens": 5, "temperature": 0.0, "top_p": 1.0}, {"num_beams": 4}
    add_benchmark(place, GOOD, run="short", request={"sent": sent, "effective_defaults": held})
    notes = ["max_tokens differs: demo 9, short 5", "num_beams differs: demo none, short 4"]
    assert compared(place, "demo", "short").notes == notes
    add_benchmark(place, GOOD, run="old", version=1, request={"sent": None, "max_tokens": 9, "temperature": 0.5})
    assert compared(place, "demo", "old").notes == ["temperature differs: demo 0.0, old 0.5"]


def test_text_of_strangers_is_neither_markup_nor_obeyed(place):
    target = io.StringIO()
    text = comparison_text(compared(place, "demo@base", "demo"))
    Console(file=target, width=240, highlight=False).print(text)
    assert "\x1b" not in target.getvalue()
    assert "\\x1b[31mrot\\x1b[0m [bold]fett[/bold]" in target.getvalue()


def test_the_command_prints_one_json_document(tmp_path):
    shop = new_workshop(tmp_path, None)
    for of, lines in (("base", BAD), ("output", GOOD)):
        add_benchmark(Workspace(shop.root), lines, of=of)
    options = ("--testset", "toy:test", "--json", "--metric", "bleu", "--examples", "1")
    done = shop.run("compare", "demo@base", "demo", *options)
    assert (done.code, done.err) == (0, "")
    found = Comparison.model_validate_json(done.out)
    assert (found.tests[0].better, found.n_bootstrap, found.n_randomizations) == ("demo", 1000, 10000)
    assert len(found.sentences[0].examples) == 2
