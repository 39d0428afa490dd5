"""COMET beside sacrebleu's scores, with a stand-in for comet-score: no model of COMET was at hand."""

import pytest

from orchestrator.benchmark.results import read_result
from orchestrator.benchmark.run import add_comet
from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.upstream.comet import find_comet
from tests.benchmark_folders import REFERENCES, add_benchmark
from tests.fake_comet import VERSION, install
from tests.runs_on_disk import new_workspace

MODEL = "Unbabel/wmt22-comet-da"
HALF = [f"{line.split()[0]} ..." for line in REFERENCES]


@pytest.fixture
def score(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_COMET", str(install(tmp_path / "it's a venv")))
    folder = add_benchmark(new_workspace(tmp_path / "it's; echo"), [*REFERENCES[:20], *HALF[20:]])

    def add(model=MODEL):
        add_comet(folder, model, tmp_path, None)
        return read_result(folder).comet

    return add


def test_the_score_is_the_segments_mean_with_model_and_version_once_for_each_model(score):
    [found] = score()
    assert (found.metric, found.n_segments) == ("comet", len(REFERENCES))
    assert found.score == pytest.approx((20 + 25 * 0.5) / 45)
    assert found.signature == f"nrefs:1|model:{MODEL}|version:{VERSION}"
    assert score() == [found]
    assert score("Unbabel/wmt22-cometkiwi-da")[1].signature.startswith("nrefs:0|")


@pytest.mark.parametrize(
    ("mode", "words"), [("dies", "status 1.*GatedRepoError: 401"), ("short", "44 numbers.* for 45 segments")]
)
def test_what_is_no_score_of_these_texts_is_an_error(score, monkeypatch, mode, words):
    monkeypatch.setenv("FAKE_COMET", mode)
    with pytest.raises(StageError, match="(?s)" + words):
        score()


def test_where_there_is_no_environment_it_says_how_to_make_one(monkeypatch, tmp_path):
    for value in ("", str(tmp_path)):
        monkeypatch.setenv("ORCHESTRATOR_COMET", value)
        with pytest.raises(PrerequisiteError, match="COMET needs an environment") as error:
            find_comet()
        assert "pip install unbabel-comet" in error.value.remedy


def test_a_finished_benchmark_gets_comets_score_without_a_server(toy, tmp_path):
    folder = next(toy.runs.glob("*/benchmarks/output-*"))
    done = toy.run("benchmark", folder, "--comet", MODEL, "--json", ORCHESTRATOR_COMET=str(install(tmp_path / "venv")))
    assert done.code == 0, done.err
    [summary] = [item for item in toy.record()["benchmarks"] if item["id"] == folder.name]
    assert summary["comet"] == done.json()[0]["comet"] and len(summary["comet"]) == 1
