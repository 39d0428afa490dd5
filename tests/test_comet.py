"""COMET beside sacrebleu's scores, with a stand-in for comet-score: no model of COMET was at hand."""

import pytest

from orchestrator.benchmark.results import read_result
from orchestrator.benchmark.run import add_comet
from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.runs.rundir import RunDir
from orchestrator.upstream.comet import find_comet
from tests.benchmark_folders import REFERENCES, add_benchmark, workspace
from tests.fake_comet import VERSION, install

MODEL = "Unbabel/wmt22-comet-da"
HALF = [f"{line.split()[0]} ..." for line in REFERENCES]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return install(tmp_path_factory.mktemp("comet") / "it's a venv")


@pytest.fixture
def score(tmp_path, environment, monkeypatch):
    """Scores a finished benchmark, and gives COMET's scores of it."""
    monkeypatch.setenv("ORCHESTRATOR_COMET", str(environment))
    folder = add_benchmark(workspace(tmp_path / "it's; echo"), [*REFERENCES[:20], *HALF[20:]])

    def add(model=MODEL):
        add_comet(folder, model, tmp_path, None, None, RunDir(folder.parent.parent))
        return read_result(folder).comet

    add.folder = folder
    return add


def test_the_score_is_the_segments_mean_with_interval_model_and_version_once_for_each_model(score, tmp_path):
    [found] = score()
    assert (found.metric, found.n_segments) == ("comet", len(REFERENCES))
    assert found.score == pytest.approx((20 + 25 * 0.5) / 45)
    assert 0.5 < found.ci95[0] < found.score < found.ci95[1] < 1
    assert found.signature == f"nrefs:1|bs:20|seed:12345|model:{MODEL}|version:{VERSION}"
    assert score() == [found]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.ckpt").write_text(name)
        score(f"{name}/model.ckpt")
    *_, one, two, kiwi = (each.signature for each in score("Unbabel/wmt22-cometkiwi-da"))
    assert kiwi.startswith("nrefs:0|") and "|model:model.ckpt@" in one and one != two
    assert "references None" in (score.folder / "comet-Unbabel-wmt22-cometkiwi-da.log").read_text()


@pytest.mark.parametrize(
    ("mode", "words"),
    [("dies", "status 1.*GatedRepoError: 401"), ("nan", "gave 45 numbers"), ("short", "44 numbers.* for 45 segments")],
)
def test_what_is_no_score_of_these_texts_is_an_error(score, monkeypatch, mode, words):
    monkeypatch.setenv("FAKE_COMET", mode)
    with pytest.raises(StageError, match="(?s)" + words):
        score()
    assert read_result(score.folder).comet == []


def test_where_there_is_no_environment_it_says_how_to_make_one(monkeypatch, tmp_path):
    for value in ("", str(tmp_path)):
        monkeypatch.setenv("ORCHESTRATOR_COMET", value)
        with pytest.raises(PrerequisiteError, match="COMET needs an environment") as error:
            find_comet(MODEL, tmp_path)
        assert "pip install unbabel-comet" in error.value.remedy


def test_benchmark_scores_by_comet_apart_from_bleu_and_a_finished_one_without_a_server(toy, environment):
    where = {"ORCHESTRATOR_COMET": str(environment)}
    before = {path.parent for path in toy.runs.glob("*/benchmarks/*/scores.json")}
    done = toy.run("benchmark", "toy", "--testset", "captions_en_de", "--max-samples", "6", "--comet", MODEL, **where)
    assert done.code == 0, done.err
    table, _, rest = done.out.partition("BLEU: ")
    assert "COMET" not in table and f", nrefs:1|bs:1000|seed:12345|model:{MODEL}|version:{VERSION}" in rest
    [folder] = {path.parent for path in toy.runs.glob("*/benchmarks/*/scores.json")} - before
    calls = len(toy.calls("api"))
    done = toy.run("benchmark", folder, "--comet", "Unbabel/XCOMET-XL", "--json", **where)
    assert done.code == 0 and len(toy.calls("api")) == calls, done.err
    [summary] = [item for item in toy.record()["benchmarks"] if item["id"] == folder.name]
    assert summary["comet"] == done.json()[0]["comet"] and len(summary["comet"]) == 2
