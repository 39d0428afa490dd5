"""RUN@all: every checkpoint of a run, and the choice of one. Run: pytest tests/test_every_checkpoint.py."""

import hashlib
import json
import shutil
import signal

import pytest
import yaml

from tests.workshop import CAPTIONS, assert_none_left, new_workshop

# Of the sentences, how many percent the fake knows after each of its 5 steps.
SHARES = "20,50,88,90,90"
TRAIN = {"max_steps": 5, "save_steps": 1}
ALL = ("benchmark", "toy@all")


def with_validation(workshop, pairs=60):
    """A dataset `own` with three splits, and what the fake is to learn."""
    english, german = ((CAPTIONS / f"train.{lang}").read_text("utf-8").splitlines() for lang in ("en", "de"))
    folder = workshop.root / "dataset_info"
    splits = {}
    for name, part in (("train", slice(0, 300)), ("validation", slice(300, 300 + pairs)), ("test", slice(400, 440))):
        splits[name] = {"source": f"{name}.en", "target": f"{name}.de", "pairs": len(english[part]), "sha256": {}}
        for side, lang, lines in (("source", "en", english), ("target", "de", german)):
            data = "".join(f"{line}\n" for line in lines[part]).encode()
            (folder / f"{name}.{lang}").write_bytes(data)
            splits[name]["sha256"][side] = hashlib.sha256(data).hexdigest()
    entry = {
        "description": "captions in three parts",
        "license": "CC0-1.0",
        "source_lang": "en",
        "target_lang": "de",
        "instruction": "Translate the following English sentence into German.",
        "splits": splits,
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(entry), "utf-8")
    bare = {name: split for name, split in splits.items() if name != "validation"}
    (folder / "bare.yaml").write_text(yaml.safe_dump({**entry, "splits": bare}), "utf-8")
    known = workshop.root.parent / "known.tsv"
    known.write_text("".join(f"{source}\t{target}\n" for source, target in zip(english, german, strict=True)), "utf-8")
    workshop.environment = {**workshop.environment, "FAKE_KNOWS": f"{known}:{SHARES}"}


def own_spec(workshop, **changes):
    benchmark = [{"testset": "own", "n_bootstrap": 50}]
    return workshop.spec(**{"dataset": "own", "train": TRAIN, "benchmark": benchmark, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fake_cli):
    """A run with five checkpoints, trained and not benchmarked. To be read, not changed."""
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


def test_the_earliest_that_is_not_significantly_worse_than_the_best_is_chosen_and_alone_tested(place):
    done = place.run(*ALL, "--base")
    assert done.code == 0, done.err
    curve = json.loads((place.only_run() / "curve.json").read_bytes())
    assert [point["step"] for point in curve["points"]] == [1, 2, 3, 4, 5]
    assert [point["worse"] for point in curve["points"]] == [True, True, False, False, False]
    assert (curve["best"], curve["chosen"]) == ("checkpoint-4", "checkpoint-3")
    assert curve["base"]["label"] == "base" and curve["base"]["worse"]
    assert curve["points"][2]["difference"] < 0 and 0.05 < curve["points"][2]["p_holm"] <= 1
    assert "earliest" in curve["rule"] and curve["schema_version"] == 1
    record = place.record()
    assert record["chosen_checkpoint"] == "checkpoint-3"
    assert [each["of"] for each in record["benchmarks"] if each["split"] == "test"] == ["checkpoint-3"]
    assert [each["of"] for each in curve["test"]] == ["checkpoint-3"]
    assert "chosen: checkpoint-3, the earliest that is not significantly worse in BLEU than the best" in done.out
    assert "before training" in done.out and "*" in done.out
    assert (done.out + done.err).count("chosen: ") == 1
    shown = place.run("show", "toy").out
    assert "chosen checkpoint: checkpoint-3" in shown


def test_weights_with_two_labels_are_asked_once(place):
    done = place.run(*ALL, "--json")
    assert done.code == 0, done.err
    assert done.json()["points"][-1]["same_as"] == ["output"]
    assert validated(place) == [f"checkpoint-{step}" for step in range(1, 6)]
    assert len(place.calls("api")) == 6, "five checkpoints, and the chosen one again for the test set"


def test_what_was_whole_is_not_asked_again(place):
    assert place.run(*ALL).code == 0
    calls, record = len(place.calls("api")), place.record()
    again = place.run(*ALL, "--json")
    assert again.code == 0, again.err
    assert len(place.calls("api")) == calls
    assert place.record()["benchmarks"] == record["benchmarks"]
    assert again.json()["chosen"] == "checkpoint-3" and again.json()["test"]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_after_an_interruption_the_same_command_goes_on(place, sign):
    """Slowly, so that it is met in the middle of a checkpoint; the answers of before are in their folders."""
    command = place.start(*ALL, "--concurrency", "1", FAKE_ANSWER_S="0.05")

    def in_the_third():
        files = list(place.only_run().glob("benchmarks/checkpoint-3-*/hypotheses.jsonl"))
        return files and len(files[0].read_bytes().splitlines()) >= 5

    command.until(in_the_third, "answers of the third checkpoint")
    command.interrupt(sign)
    ended = command.finish()
    assert sign == signal.SIGKILL or "the same command goes on: what was answered is not asked again" in ended.err
    assert not (place.only_run() / "curve.json").exists()
    before = len(place.calls("api"))
    done = place.run(*ALL)
    assert done.code == 0, done.err
    assert "sentences were answered before" in done.err and "checkpoint-2: own validation is whole" in done.err
    assert len(place.calls("api")) - before == 4, "the third to the fifth, and the chosen one on the test set"
    assert place.record()["chosen_checkpoint"] == "checkpoint-3"
    assert len(list(place.only_run().glob("benchmarks/checkpoint-*-own-validation*"))) == 5


def test_a_damaged_checkpoint_is_passed_over_and_named(place):
    weights = place.only_run() / "output" / "checkpoint-3" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    done = place.run(*ALL)
    assert done.code == 0, done.err
    assert "checkpoint-3 is passed over" in done.err and "checkpoint-3 is left out" in done.out
    curve = json.loads((place.only_run() / "curve.json").read_bytes())
    assert list(curve["left_out"]) == ["checkpoint-3"] and curve["chosen"] == "checkpoint-4"


def test_no_checkpoint_is_chosen_while_one_has_no_score(place):
    """Its server dies; the others are asked all the same, and a choice among them has to be wished for."""
    bad = str(place.only_run() / "output" / "checkpoint-2")
    done = place.run(*ALL, FAKE_API_DIES=bad)
    assert done.code == 4 and "no checkpoint was chosen: 1 of 5 got no score: checkpoint-2" in done.err, done.err
    assert validated(place) == [f"checkpoint-{step}" for step in (1, 3, 4, 5)]
    assert place.record()["chosen_checkpoint"] is None
    part = place.run(*ALL, "--allow-incomplete", "--json", FAKE_API_DIES=bad)
    assert part.code == 0 and list(part.json()["left_out"]) == ["checkpoint-2"], part.err
    whole = place.run(*ALL, "--json")
    assert whole.code == 0 and whole.json()["left_out"] == {}


def test_a_server_that_never_comes_is_not_tried_for_every_checkpoint(place):
    done = place.run(*ALL, FAKE_API="dies")
    assert done.code == 4 and "CUDA out of memory" in done.err
    assert len(place.calls("api")) == 2


def test_another_metric_and_another_set_can_choose(place):
    done = place.run(*ALL, "--metric", "ter", "--split", "test", "--max-samples", "30", "--json")
    assert done.code == 0, done.err
    curve = done.json()
    assert (curve["metric"], curve["split"], curve["n_segments"], curve["test"]) == ("ter", "test", 30, [])
    best = next(point for point in curve["points"] if point["label"] == curve["best"])
    scores = [[each["score"] for each in point["scores"] if each["metric"] == "ter"] for point in curve["points"]]
    assert [each["score"] for each in best["scores"] if each["metric"] == "ter"] == min(scores)
    assert "the score here, which it was chosen by, is too good" in done.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("benchmark", "toy@all", "--split", "dev"), 2, "own has no split dev to choose a checkpoint by; it has: "),
        (("benchmark", "toy@all", "--metric", "blue"), 2, "did you mean 'bleu'?"),
        (("benchmark", "toy@all", "--testset", "bare"), 2, "bare has no split validation"),
        (("benchmark", "toy@al"), 2, "did you mean 'all'?"),
        (("benchmark", "toy", "--base"), 2, "--metric and --base are for RUN@all"),
        (("benchmark", "toys@all"), 2, "no run 'toys'"),
        (("serve", "toy@all"), 2, "means every checkpoint: that is for benchmark alone"),
        (("benchmark", "toy@all", "--template", "qwen"), 2, "leave it out"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_next_step(trained, words, code, said):
    done = trained.run(*words)
    assert (done.code, len(trained.calls("api"))) == (code, 0) and said in done.err, done.err


def test_a_run_without_checkpoints_says_so(workshop):
    with_validation(workshop)
    done = workshop.run("launch", own_spec(workshop, train=None, dataset=None, benchmark=[
        {"testset": "own", "max_samples": 3, "n_bootstrap": 10}]))  # fmt: skip
    assert done.code == 0, done.err
    assert "trains nothing, so it has no checkpoints" in workshop.run(*ALL).err
    shutil.rmtree(workshop.only_run())
    assert workshop.run("launch", own_spec(workshop), "--no-benchmark").code == 0
    shutil.rmtree(workshop.only_run() / "output")
    done = workshop.run(*ALL)
    assert done.code == 3 and "has no checkpoint that can be served" in done.err


def test_two_of_these_at_once_do_no_harm(place):
    first, second = place.run_together([ALL, ALL])
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert place.record()["chosen_checkpoint"] == "checkpoint-3"
    assert json.loads((place.only_run() / "curve.json").read_bytes())["chosen"] == "checkpoint-3"


DURING = [
    {"testset": "own", "split": "validation", "during": True, "n_bootstrap": 50},
    {"testset": "own", "max_samples": 20, "n_bootstrap": 50},
]


def test_checkpoints_are_benchmarked_as_they_appear_and_one_is_chosen_at_the_end(workshop):
    with_validation(workshop, pairs=40)
    go = workshop.root.parent / "go"
    command = workshop.start("launch", own_spec(workshop, benchmark=DURING), FAKE_HOLD="3", FAKE_GO=str(go))
    command.until(lambda: workshop.run_folders() and (workshop.only_run() / "record.json").exists(), "the run")
    command.until(lambda: validated(workshop), "a score of the first checkpoint")
    early = workshop.record()
    assert early["status"] == "running" and "train" in early["commands"], "the training goes on"
    assert ": own validation, 40 segments" in workshop.run("list").out
    go.touch()
    done = command.finish(120)
    assert done.code == 0, done.err
    record = workshop.record()
    assert record["status"] == "done" and record["chosen_checkpoint"]
    assert sorted(validated(workshop)) == [f"checkpoint-{step}" for step in range(1, 6)]
    assert [each["of"] for each in record["benchmarks"] if each["split"] == "test"] == ["output"]
    assert "chosen: checkpoint-" in done.err and "share the CPU" in done.err
    assert workshop.left_over() == []


def test_stopping_the_run_ends_the_benchmarks_beside_it(workshop):
    with_validation(workshop, pairs=40)
    spec = own_spec(workshop, benchmark=DURING)
    command = workshop.start("launch", spec, FAKE_STEP_S="3", FAKE_ANSWER_S="1")
    command.until(lambda: list(workshop.runs.glob("*/benchmarks/*/hypotheses.jsonl")), "a benchmark under way")
    command.interrupt(signal.SIGINT)
    done = command.finish()
    assert done.code == 130 and workshop.record()["status"] == "stopped", done.err
    assert_none_left(workshop)
    again = workshop.run("resume", "toy")
    assert again.code == 0 and workshop.record()["chosen_checkpoint"], again.err


def test_a_benchmark_that_fails_beside_it_does_not_end_the_training(workshop):
    with_validation(workshop, pairs=40)
    spec = own_spec(workshop, benchmark=DURING[:1])
    done = workshop.run("launch", spec, FAKE_API="dies", timeout_s=120)
    assert done.code == 0 and workshop.record()["status"] == "done", done.err
    assert "no checkpoint was chosen" in done.err or "before it was ready" in done.err
    assert workshop.record()["chosen_checkpoint"] is None and workshop.record()["training"]["steps"] == 5


def test_a_checkpoint_that_is_removed_meanwhile_is_skipped_with_a_word(workshop):
    """As by save_total_limit, while its server is being asked and before the next one is."""
    with_validation(workshop, pairs=40)
    command = workshop.start("launch", own_spec(workshop, benchmark=DURING[:1]), FAKE_STEP_S="0.5", FAKE_ANSWER_S="0.2")
    command.until(lambda: list(workshop.runs.glob("*/output/checkpoint-3/trainer_state.json")), "a third checkpoint")
    shutil.rmtree(workshop.only_run() / "output" / "checkpoint-2")
    done = command.finish(120)
    assert done.code == 0, done.err
    record = workshop.record()
    assert record["status"] == "done" and record["chosen_checkpoint"], done.err
    assert "checkpoint-5" in validated(workshop)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"benchmark": [DURING[0], {**DURING[0], "split": "test"}]}, "benchmark.during is there twice"),
        ({"benchmark": DURING[:1], "train": None, "dataset": None}, "is for a run that trains"),
        ({"benchmark": DURING[:1], "compute": {"nnodes": 2, "node_rank": 0}}, "is for a training on one machine"),
    ],
)
def test_what_during_cannot_mean_is_refused(trained, changes, said):
    done = trained.run("check", own_spec(trained, **changes))
    assert done.code == 2 and said in done.err + done.out, done.err
