"""RUN@all: every checkpoint of a run, and the choice of one. A stub answers in the place of their servers."""

import hashlib
import shutil
import zlib
from contextlib import contextmanager
from types import SimpleNamespace

import openai_stub as stub
import pytest
import yaml

from orchestrator.benchmark import selection
from orchestrator.benchmark.evaluate import EvalOptions
from orchestrator.benchmark.run import BenchmarkJob
from orchestrator.benchmark.selection import Curve, SelectionOptions, select_checkpoint
from orchestrator.errors import SpecError, StageError
from orchestrator.planning.session import Session
from orchestrator.runs.record import RunRecord, now
from orchestrator.serving.endpoint import Endpoint
from orchestrator.specs.spec import RunSpec, ServeSpec
from tests.checkpoint_folders import checkpoint, trainer_state
from tests.model_folders import model_folder
from tests.workshop import CAPTIONS

SHARES = {"base": 0, "checkpoint-1": 20, "checkpoint-2": 88, "checkpoint-3": 90, "checkpoint-4": 90}
"""How many percent of the sentences each one knows."""


def write_dataset(folder):
    """A dataset `own` with the splits train, validation and test, and each sentence's translation."""
    english, german = ((CAPTIONS / f"train.{lang}").read_text("utf-8").splitlines() for lang in ("en", "de"))
    splits = {}
    for name, part in (("train", slice(0, 9)), ("validation", slice(300, 360)), ("test", slice(400, 430))):
        splits[name] = {"source": f"{name}.en", "target": f"{name}.de", "pairs": len(english[part]), "sha256": {}}
        for side, lang, lines in (("source", "en", english), ("target", "de", german)):
            data = "".join(f"{line}\n" for line in lines[part]).encode()
            (folder / f"{name}.{lang}").write_bytes(data)
            splits[name]["sha256"][side] = hashlib.sha256(data).hexdigest()
    entry = {"description": "captions", "license": "CC0-1.0", "source_lang": "en", "target_lang": "de"}
    entry |= {"instruction": "Translate into German.", "splits": splits}
    (folder / "own.yaml").write_text(yaml.safe_dump(entry), "utf-8")
    return dict(zip(english, german, strict=True))


@pytest.fixture
def place(tmp_path, workspace, monkeypatch, server):
    """A run that trained four checkpoints, and the stub in the place of their servers."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    known, model = write_dataset(workspace.dataset_info), model_folder(workspace.root / "models" / "tiny")
    run, at = workspace.new_run("toy", now()), now()
    for step in range(1, 5):
        weights = checkpoint(run, step) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + bytes([step]))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(run.output / "checkpoint-4" / name, run.output)
    trainer_state(run.output, 4)
    RunRecord(id=run.id, name="toy", created_at=at, ended_at=at, status="done", spec_sha256="0", seed=1).save(run)
    spec = RunSpec.model_validate({
        "name": "toy", "model": {"name_or_path": str(model), "template": "qwen"}, "dataset": "own",
        "train": {"lora_target": "all"},
        "benchmark": [{"testset": "own", "n_bootstrap": 50, "metrics": ["bleu", "ter"]}],
    })  # fmt: skip
    served, dead = list[str](), set[str]()

    @contextmanager
    def servers(job, checkpoints):
        def connect_to(checkpoint, folder):
            served.append(checkpoint.label)
            if checkpoint.label in dead:
                raise StageError(f"the server of {checkpoint.label} ended: CUDA out of memory")
            return Endpoint(server.base_url, "", checkpoint.label.replace("output", "checkpoint-4"))

        yield connect_to

    def replies(source, attempt):
        share = SHARES[server.bodies[-1]["model"]]
        return stub.completion(known[source] if zlib.crc32(source.encode()) % 100 < share else source.upper())

    def choose(how=None, **options):
        session = Session.open(workspace.root)
        return select_checkpoint(session, run, spec, how or SelectionOptions(), ServeSpec(), EvalOptions(**options))

    monkeypatch.setattr(BenchmarkJob, "servers", servers)
    server.replies = replies
    return SimpleNamespace(choose=choose, run=run, served=served, dead=dead)


def benchmarked(place, split):
    return [each.of for each in RunRecord.load(place.run).benchmarks if each.split == split]


def test_the_best_is_chosen_and_alone_tested_and_the_earliest_that_cannot_be_told_from_it_is_named(place):
    """Weights with two labels are benchmarked once; what was complete is not requested again."""
    curve = place.choose(SelectionOptions(with_base=True))
    assert [point.step for point in curve.points] == [1, 2, 3, 4]
    assert (curve.chosen, curve.earliest_not_worse) == ("checkpoint-3", "checkpoint-2")
    tests = [point.test for point in curve.points]
    assert tests[2] is None and [test and test.better for test in tests[:2]] == ["checkpoint-3", None]
    assert tests[1].difference < 0 and 0.05 < tests[1].p_holm <= 1
    assert tests[0].p_holm == pytest.approx(min(1, 6 * min(test.p_value for test in tests if test)), rel=1e-6)
    assert (curve.base.label, curve.base.test.better) == ("base", "checkpoint-3")
    assert RunRecord.load(place.run).chosen_checkpoint == "checkpoint-3"
    assert benchmarked(place, "test") == ["checkpoint-3"] == [each.of for each in curve.test]
    words = curve.words()
    assert words.startswith("chosen: checkpoint-3, the best in BLEU (own validation, 60 segments); the earliest that")
    assert f"told from it is checkpoint-2: {tests[1].difference:+.1f} BLEU [" in words
    first = curve.model_copy(update={"points": curve.points[2:], "earliest_not_worse": "checkpoint-3"})
    assert first.words() == words.partition(";")[0]
    assert curve.points[-1].same_as == ["output"]
    assert benchmarked(place, "validation") == list(SHARES)
    assert Curve.model_validate_json(place.run.curve.read_bytes()) == curve
    served = place.served.copy()
    assert served == [*SHARES, "checkpoint-3"]
    assert place.choose().test == curve.test and place.served == served


def test_no_checkpoint_is_chosen_while_one_has_no_score_unless_that_is_wanted(place):
    """Its server dies; the others are benchmarked all the same."""
    place.dead.add("checkpoint-2")
    with pytest.raises(StageError, match="no checkpoint was chosen: 1 of 4 got no score: checkpoint-2"):
        place.choose()
    assert benchmarked(place, "validation") == [f"checkpoint-{step}" for step in (1, 3, 4)]
    assert RunRecord.load(place.run).chosen_checkpoint is None
    assert list(place.choose(allow_incomplete=True).left_out) == ["checkpoint-2"]
    place.dead.update(SHARES)
    place.served.clear()
    with pytest.raises(StageError, match="CUDA out of memory"):
        place.choose(fresh=True)
    assert len(place.served) == 2, "a server that never comes is not tried for every checkpoint"


def test_another_metric_and_another_set_can_choose_and_a_damaged_checkpoint_is_passed_over(place, caplog):
    weights = place.run.output / "checkpoint-1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    curve = place.choose(SelectionOptions(metric="ter", split="test", changes={"max_samples": 20}))
    assert list(curve.left_out) == ["checkpoint-1"] and "checkpoint-1 is passed over" in caplog.text
    assert (curve.metric, curve.split, curve.n_segments, curve.test) == ("ter", "test", 20, [])
    scores = {point.label: point.scores[1].score for point in curve.points}
    assert scores[curve.chosen] == min(scores.values()) < max(scores.values())
    assert "the score here, which it was chosen by, is too good" in caplog.text


def test_what_cannot_choose_is_refused(place):
    for how, words in (({"split": "dev"}, "own has no split dev"), ({"metric": "bleuh"}, "did you mean 'bleu'?")):
        with pytest.raises(SpecError) as error:
            place.choose(SelectionOptions(**how))
        assert words in error.value.message and place.served == []


def test_watch_benchmarks_checkpoints_as_they_are_saved_and_chooses_when_the_run_has_ended(place, monkeypatch):
    """One that is not complete yet is waited for."""
    output, scored = place.run.output, []
    later = [(output / f"checkpoint-{step}").rename(place.run.path / f"later-{step}") for step in (4, 3, 2)]

    def sleep(seconds):
        scored.append(benchmarked(place, "validation"))
        folder = later.pop()
        folder.rename(output / folder.name.replace("later", "checkpoint"))

    monkeypatch.setattr(selection, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(RunRecord, "is_active", lambda record: bool(later))
    assert place.choose(SelectionOptions(watch=True)).chosen == "checkpoint-3"
    assert scored == [[f"checkpoint-{step}" for step in range(1, last)] for last in (2, 3, 4)]
