"""COMET beside sacrebleu's scores. Run: pytest tests/test_comet.py.

With a stand-in for comet-score: no model of COMET was at hand.
"""

import json
import signal

import pytest
from benchmark_folders import REFERENCES, add_benchmark, workspace

from orchestrator.benchmark.comet import comet_score
from orchestrator.errors import PrerequisiteError, StageError
from orchestrator.upstream.comet import Comet, find_comet
from tests.fake_comet import VERSION, install
from tests.workshop import assert_none_left

MODEL = "Unbabel/wmt22-comet-da"
CAPTIONS = ("--testset", "captions_en_de", "--max-samples", "6")
HALF = [f"{line.split()[0]} ..." for line in REFERENCES]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return install(tmp_path_factory.mktemp("comet") / "it's a venv")


@pytest.fixture
def comet(environment, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_COMET", str(environment))
    return find_comet()


@pytest.fixture
def folder(tmp_path):
    return add_benchmark(workspace(tmp_path / "it's; echo"), HALF)


def score(folder, comet, model=MODEL):
    return comet_score(folder, model, comet, n_bootstrap=50, devices=None)


def scores_of(folder):
    return json.loads((folder / "scores.json").read_bytes())


def only_folder(workshop):
    [path] = workshop.runs.glob("*/benchmarks/*/scores.json")
    return path.parent


def test_the_score_is_the_segments_mean_with_interval_model_and_version(folder, comet):
    found = score(folder, comet)
    assert (found.metric, found.score, found.n_segments) == ("comet", pytest.approx(0.5), len(REFERENCES))
    assert found.ci95 == pytest.approx((0.5, 0.5)), "each segment is worth the same"
    assert found.signature == f"nrefs:1|bs:50|seed:12345|model:{MODEL}|version:{VERSION}"
    mixed = [*REFERENCES[:20], *HALF[20:]]
    (folder / "hypotheses.txt").write_text("".join(f"{line}\n" for line in mixed), encoding="utf-8")
    found = score(folder, comet)
    assert 0.5 < found.ci95[0] < found.score < found.ci95[1] < 1
    assert found == score(folder, comet), "resampled with a seed"


def test_a_model_file_is_named_by_its_content_too(folder, comet, tmp_path):
    files = [tmp_path / name / "model.ckpt" for name in ("one", "two")]
    for path in files:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    one, two = (score(folder, comet, str(path)).signature for path in files)
    assert "|model:model.ckpt@" in one and one != two


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("dies", "status 1.*GatedRepoError: 401"),
        ("nan", "gave 1 of 45 segments no score, the first in line 2"),
        ("short", "is not about"),
        ("other", "is not about"),
    ],
)
def test_what_is_no_score_of_these_texts_is_an_error(folder, comet, monkeypatch, mode, said):
    monkeypatch.setenv("FAKE_COMET", mode)
    with pytest.raises(StageError, match="(?s)" + said):
        score(folder, comet)


def test_an_output_of_before_is_never_taken_for_this_ones(folder, comet, tmp_path):
    score(folder, comet)
    silent = tmp_path / "comet-score"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    with pytest.raises(StageError, match="left no scores"):
        score(folder, Comet(silent, VERSION))


def test_where_there_is_no_environment_it_says_how_to_make_one(monkeypatch, tmp_path):
    monkeypatch.delenv("ORCHESTRATOR_COMET", raising=False)
    with pytest.raises(PrerequisiteError, match="ORCHESTRATOR_COMET names no environment") as error:
        find_comet()
    assert "pip install unbabel-comet" in error.value.remedy
    monkeypatch.setenv("ORCHESTRATOR_COMET", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="no program"):
        find_comet()
    program = tmp_path / "bin" / "comet-score"
    program.parent.mkdir()
    program.touch(0o755)
    with pytest.raises(PrerequisiteError, match="no package unbabel-comet"):
        find_comet()


def test_benchmark_scores_by_comet_apart_from_bleu(toy, environment):
    before = {path.parent for path in toy.runs.glob("*/benchmarks/*/scores.json")}
    done = toy.run("benchmark", "toy", *CAPTIONS, "--comet", MODEL, ORCHESTRATOR_COMET=str(environment))
    assert done.code == 0, done.err
    table, _, rest = done.out.partition("BLEU: ")
    assert "COMET" not in table and f"COMET: nrefs:1|bs:1000|seed:12345|model:{MODEL}|version:{VERSION}" in rest
    [folder] = {path.parent for path in toy.runs.glob("*/benchmarks/*/scores.json")} - before
    stored = scores_of(folder)
    assert [each["metric"] for each in stored["comet"]] == ["comet"]
    assert "comet" not in [each["metric"] for each in stored["scores"]]
    [summary] = [item for item in toy.record()["benchmarks"] if item["id"] == folder.name]
    assert summary["comet"] == stored["comet"]
    assert "COMET" in toy.run("show", "toy").out


def test_a_finished_benchmark_is_scored_without_a_server(toy, environment):
    """By each model once, in its folder and in the record; scored again it has still one of each."""
    folder, calls = next(toy.runs.glob("*/benchmarks/output-*")), len(toy.calls("api"))
    before = scores_of(folder)
    for model in (MODEL, "Unbabel/XCOMET-XL", MODEL):
        done = toy.run("benchmark", folder, "--comet", model, "--json", ORCHESTRATOR_COMET=str(environment))
        assert done.code == 0, done.err
    [result] = done.json()
    assert sorted(each["signature"].split("|")[3] for each in result["comet"]) == [
        "model:Unbabel/XCOMET-XL", f"model:{MODEL}",
    ]  # fmt: skip
    assert {key: value for key, value in result.items() if key != "comet"} == {
        key: value for key, value in before.items() if key != "comet"
    }
    [summary] = [item for item in toy.record()["benchmarks"] if item["id"] == folder.name]
    assert summary["comet"] == result["comet"]
    assert len(toy.calls("api")) == calls
    for words in ((), ("--comet", MODEL, "--fresh")):
        refused = toy.run("benchmark", folder, *words)
        assert refused.code == 2 and "--comet MODEL" in refused.err


def test_without_its_environment_nothing_is_asked_nor_trained(workshop):
    spec = workshop.spec(benchmark=[{"testset": "captions_en_de", "comet": MODEL}])
    done = workshop.run("launch", spec)
    assert done.code == 3 and "benchmark.0.comet" in done.err and "ORCHESTRATOR_COMET" in done.err
    assert workshop.run_folders() == []


def test_where_comet_fails_the_other_scores_stay_and_the_run_goes_on_there(workshop, environment):
    spec = workshop.spec(benchmark=[{"testset": "captions_en_de", "max_samples": 6, "n_bootstrap": 10, "comet": MODEL}])
    done = workshop.run("launch", spec, ORCHESTRATOR_COMET=str(environment), FAKE_COMET="dies")
    assert done.code == 4 and "GatedRepoError" in done.err
    assert "comet-score" in done.err.partition("to repeat it by hand")[2]
    folder = only_folder(workshop)
    assert scores_of(folder)["scores"] and not scores_of(folder)["comet"]
    assert workshop.record()["status"] == "failed" and len(workshop.record()["benchmarks"]) == 1
    calls = len(workshop.calls("api"))
    again = workshop.run("resume", "toy", ORCHESTRATOR_COMET=str(environment))
    assert again.code == 0, again.err
    assert only_folder(workshop) == folder and len(scores_of(folder)["comet"]) == 1
    assert (workshop.record()["status"], len(workshop.calls("api"))) == ("done", calls)


def test_ctrl_c_ends_comet_and_keeps_the_other_scores(toy, environment):
    command = toy.start(
        "benchmark", "toy", *CAPTIONS, "--comet", MODEL, ORCHESTRATOR_COMET=str(environment), FAKE_COMET="hangs"
    )
    log = f"comet-{MODEL.replace('/', '-')}.log"
    command.until(
        lambda: any("scoring" in path.read_text() for path in toy.runs.glob(f"*/benchmarks/*/{log}")), "COMET"
    )
    command.interrupt(signal.SIGINT)
    done = command.finish()
    assert done.code == 130 and "the other scores are in" in done.err
    assert_none_left(toy)
