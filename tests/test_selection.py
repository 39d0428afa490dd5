"""RUN@all: every checkpoint of a run, and the choice of one."""

import hashlib
import json
import shutil

import pytest
import yaml

from tests.workshop import CAPTIONS, new_workshop

# Of the sentences, how many percent the fake knows after each of its 4 steps.
SHARES = "20,88,90,90"
TRAIN = {"max_steps": 4, "save_steps": 1}
ALL = ("benchmark", "toy@all")


def with_validation(workshop, pairs=60):
    """A dataset `own` with three splits, `bare` without the validation, and what the fake is to learn."""
    english, german = ((CAPTIONS / f"train.{lang}").read_text("utf-8").splitlines() for lang in ("en", "de"))
    folder, splits = workshop.root / "dataset_info", {}
    for name, part in (("train", slice(0, 300)), ("validation", slice(300, 300 + pairs)), ("test", slice(400, 440))):
        splits[name] = {"source": f"{name}.en", "target": f"{name}.de", "pairs": len(english[part]), "sha256": {}}
        for side, lang, lines in (("source", "en", english), ("target", "de", german)):
            data = "".join(f"{line}\n" for line in lines[part]).encode()
            (folder / f"{name}.{lang}").write_bytes(data)
            splits[name]["sha256"][side] = hashlib.sha256(data).hexdigest()
    entry = {"description": "captions", "license": "CC0-1.0", "source_lang": "en", "target_lang": "de"}
    entry |= {"instruction": "Translate the following English sentence into German.", "splits": splits}
    (folder / "own.yaml").write_text(yaml.safe_dump(entry), "utf-8")
    del splits["validation"]
    (folder / "bare.yaml").write_text(yaml.safe_dump(entry), "utf-8")
    known = workshop.root.parent / "known.tsv"
    known.write_text("".join(f"{source}\t{target}\n" for source, target in zip(english, german, strict=True)), "utf-8")
    workshop.environment = {**workshop.environment, "FAKE_KNOWS": f"{known}:{SHARES}"}


def own_spec(workshop, **changes):
    benchmark = [{"testset": "own", "n_bootstrap": 50}]
    return workshop.spec(**{"dataset": "own", "train": TRAIN, "benchmark": benchmark, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fake_cli):
    """A run with four checkpoints, trained and not benchmarked. To be read, not changed."""
    made = new_workshop(tmp_path_factory.mktemp("every"), fake_cli)
    with_validation(made)
    done = made.run("launch", own_spec(made), "--no-benchmark")
    assert done.code == 0, done.err
    return made


@pytest.fixture
def place(trained, tmp_path):
    made = trained.copy(tmp_path)
    yield made
    made.kill_all()


def validated(workshop):
    """The labels of the benchmarks on the validation set, in their order."""
    return [each["of"] for each in workshop.record()["benchmarks"] if each["split"] == "validation"]


def test_the_best_is_chosen_and_alone_tested_and_the_earliest_that_cannot_be_told_from_it_is_named(place):
    """Weights with two labels are benchmarked once; what was complete is not requested again."""
    done = place.run(*ALL, "--base")
    assert done.code == 0, done.err
    curve = json.loads((place.only_run() / "curve.json").read_bytes())
    assert [point["step"] for point in curve["points"]] == [1, 2, 3, 4]
    assert (curve["chosen"], curve["earliest_not_worse"]) == ("checkpoint-3", "checkpoint-2")
    tests = [point["test"] for point in curve["points"]]
    assert tests[2] is None and [test and test["better"] for test in tests[:2]] == ["checkpoint-3", None]
    assert tests[1]["difference"] < 0 and 0.05 < tests[1]["p_holm"] <= 1
    assert tests[0]["p_holm"] == pytest.approx(min(1, 6 * min(test["p_value"] for test in tests if test)), rel=1e-6)
    assert curve["base"]["label"] == "base" and curve["base"]["test"]["better"] == "checkpoint-3"
    assert curve["schema_version"] == 2 and "all k(k-1)/2 pairs" in curve["rule"]
    record = place.record()
    assert record["chosen_checkpoint"] == "checkpoint-3"
    assert [each["of"] for each in record["benchmarks"] if each["split"] == "test"] == ["checkpoint-3"]
    assert [each["of"] for each in curve["test"]] == ["checkpoint-3"]
    assert "chosen: checkpoint-3, the best in BLEU (own validation, 60 segments); " in done.out
    assert f"the earliest that cannot be told from it is checkpoint-2: {tests[1]['difference']:+.1f} BLEU [" in done.out
    assert "before training" in done.out
    assert curve["points"][-1]["same_as"] == ["output"]
    assert validated(place) == ["base", *(f"checkpoint-{step}" for step in range(1, 5))]
    calls = len(place.calls("api"))
    assert calls == 6, "the base, four checkpoints, and the chosen one again for the test set"
    again = place.run(*ALL, "--json")
    assert again.code == 0, again.err
    assert len(place.calls("api")) == calls and place.record()["benchmarks"] == record["benchmarks"]
    assert again.json()["chosen"] == "checkpoint-3" and again.json()["test"]


def test_no_checkpoint_is_chosen_while_one_has_no_score(place):
    """Its server dies; the others are asked all the same, and a choice among them has to be wished for."""
    bad = str(place.only_run() / "output" / "checkpoint-2")
    done = place.run(*ALL, FAKE_API_DIES=bad)
    assert done.code == 4 and "no checkpoint was chosen: 1 of 4 got no score: checkpoint-2" in done.err, done.err
    assert validated(place) == [f"checkpoint-{step}" for step in (1, 3, 4)]
    assert place.record()["chosen_checkpoint"] is None
    part = place.run(*ALL, "--allow-incomplete", "--json", FAKE_API_DIES=bad)
    assert part.code == 0 and list(part.json()["left_out"]) == ["checkpoint-2"], part.err


def test_a_server_that_never_comes_is_not_tried_for_every_checkpoint(place):
    done = place.run(*ALL, FAKE_API="dies")
    assert done.code == 4 and "CUDA out of memory" in done.err
    assert len(place.calls("api")) == 2


def test_another_metric_and_another_set_can_choose_and_a_damaged_checkpoint_is_passed_over(place):
    weights = place.only_run() / "output" / "checkpoint-1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    done = place.run(*ALL, "--metric", "ter", "--split", "test", "--max-samples", "30", "--json")
    assert done.code == 0, done.err
    curve = done.json()
    assert "checkpoint-1 is passed over" in done.err and list(curve["left_out"]) == ["checkpoint-1"]
    assert (curve["metric"], curve["split"], curve["n_segments"], curve["test"]) == ("ter", "test", 30, [])
    of_each = {point["label"]: point["scores"] for point in curve["points"]}
    scores = {label: each["score"] for label, made in of_each.items() for each in made if each["metric"] == "ter"}
    assert scores[curve["chosen"]] == min(scores.values()) < max(scores.values())
    assert "the score here, which it was chosen by, is too good" in done.err


def test_what_cannot_be_meant_is_refused_with_the_next_step(trained):
    cases = {
        ("benchmark", "toy@all", "--split", "dev"): "own has no split dev to choose a checkpoint by; it has: ",
        ("benchmark", "toy@all", "--metric", "blue"): "did you mean 'bleu'?",
        ("benchmark", "toy", "--base"): "--metric, --base and --watch are for RUN@all",
        ("serve", "toy@all"): "means every checkpoint: only benchmark takes that",
        ("benchmark", "toy@all", "--template", "qwen"): "leave it out",
    }
    for message, done in zip(cases.values(), trained.run_together(list(cases)), strict=True):
        assert done.code == 2 and message in done.err, done.err
    assert trained.calls("api") == []


def test_watch_benchmarks_checkpoints_as_they_are_saved_and_chooses_when_the_run_has_ended(workshop):
    """One that is removed meanwhile, as by save_total_limit, is passed over with a word."""
    with_validation(workshop, pairs=40)
    go = workshop.root.parent / "go"
    training = workshop.start("launch", own_spec(workshop), "--no-benchmark", FAKE_HOLD="3", FAKE_GO=str(go))
    training.until(lambda: list(workshop.runs.glob("*/output/checkpoint-2/trainer_state.json")), "two checkpoints")
    shutil.copytree(workshop.only_run() / "output" / "checkpoint-1", workshop.only_run() / "output" / "checkpoint-0")
    watching = workshop.start(*ALL, "--watch", FAKE_ANSWER_S="0.02")
    watching.until(lambda: validated(workshop), "a score of a checkpoint")
    assert workshop.record()["status"] == "running", "the training goes on"
    go.touch()
    assert training.finish(120).code == 0
    done = watching.finish(120)
    assert done.code == 0, done.err
    assert set(validated(workshop)) >= {f"checkpoint-{step}" for step in range(1, 5)}
    assert workshop.record()["chosen_checkpoint"] and "chosen: checkpoint-" in done.out
    assert workshop.left_over() == []
