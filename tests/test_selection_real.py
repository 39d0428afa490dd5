"""RUN@all --watch beside a training of the real llamafactory-cli, killed on the way.

Some 7 s of each process are LLaMA-Factory's imports.
"""

import json

import pytest

from tests.workshop import PATIENT_S, assert_none_left, new_workshop, real_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TRAIN = {
    "learning_rate": 5.0e-2,
    "lora_rank": 4,
    "max_steps": 3,
    "save_steps": 1,
    "max_samples": 40,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "report_to": "none",
}
# One at a time, so that a kill can come between two answers.
FEW = {"testset": "captions_en_de", "n_bootstrap": 10, "max_samples": 4, "max_tokens": 8, "concurrency": 1}
LABELS = ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


@pytest.fixture
def place(tmp_path, tiny_model):
    made = new_workshop(tmp_path, None, real_environment(tmp_path), model=tiny_model)
    made.deadline_s = PATIENT_S
    yield made
    made.kill_all()


def answers(workshop, label):
    """By sentence, the whole lines of the journal of a checkpoint's benchmark."""
    files = list(workshop.runs.glob(f"*/benchmarks/{label}-*/hypotheses.jsonl"))
    lines = [line for file in files for line in file.read_bytes().split(b"\n")[:-1]]
    return {json.loads(line)["index"]: line for line in lines}


def requests(workshop, label):
    """How many requests for an answer LLaMA-Factory's servers of a checkpoint have logged."""
    logs = workshop.runs.glob(f"*/benchmarks/{label}-*/api.log")
    return sum(log.read_text("utf-8").count("POST /v1/chat/completions") for log in logs)


def test_after_a_kill_beside_the_training_no_answer_is_requested_again_and_the_best_is_chosen(place):
    training = place.start("launch", place.spec(train=TRAIN, benchmark=[FEW]), "--no-benchmark")
    training.until(lambda: list(place.runs.glob("*/output/checkpoint-1/trainer_state.json")), "a checkpoint")
    watching = place.start("benchmark", "toy@all", "--watch")
    watching.until(lambda: answers(place, "checkpoint-2"), "an answer of the second checkpoint")
    watching.popen.kill()
    watching.finish()
    assert training.finish().code == 0
    assert_none_left(place, PATIENT_S)
    run = place.only_run()
    assert [each["of"] for each in place.record()["benchmarks"]][:1] == ["checkpoint-1"]
    assert place.record()["chosen_checkpoint"] is None and not (run / "curve.json").exists()
    before = {label: answers(place, label) for label in LABELS}

    done = place.run("benchmark", "toy@all", "--metric", "chrf", "--json")
    assert done.code == 0, done.err
    assert "checkpoint-1: captions_en_de validation is complete" in done.err
    went_on = f"{len(before['checkpoint-2'])} sentences were answered before"
    assert went_on in done.err or "checkpoint-2: captions_en_de validation is complete" in done.err  # a late kill
    after = {label: answers(place, label) for label in LABELS}
    assert all(before[label].items() <= after[label].items() for label in LABELS) and before["checkpoint-1"]
    assert all(sorted(after[label]) == [0, 1, 2, 3] for label in LABELS)
    assert requests(place, "checkpoint-1") == 4
    asked = requests(place, "checkpoint-2") + requests(place, "checkpoint-3")
    assert asked in (8, 9), "the kill may have come while one was under way"

    curve = done.json()
    assert curve == json.loads((run / "curve.json").read_bytes())
    assert [(point["label"], point["step"]) for point in curve["points"]] == list(zip(LABELS, (1, 2, 3), strict=True))
    assert curve["points"][-1]["same_as"] == ["output"] and curve["left_out"] == {} and curve["n_segments"] == 4
    scores = {
        point["label"]: next(each["score"] for each in point["scores"] if each["metric"] == "chrf")
        for point in curve["points"]
    }
    assert len(set(scores.values())) > 1 and curve["chosen"] == max(scores, key=scores.__getitem__)
    assert place.record()["chosen_checkpoint"] == curve["chosen"]
    assert_none_left(place)
