"""Runs as jobs of a real Slurm, with a fake llamafactory-cli. Run: pytest tests/test_slurm.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm_cluster import Cluster, cluster, missing
from tests.workshop import Done, Workshop, new_workshop, training_at_step, wait_for

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no Slurm: {missing()}")
JOB: dict[str, Any] = {"slurm": {"time": 30, "partition": "all"}}
SLOW = {"max_steps": 40, "save_steps": 10}
slow = pytest.mark.integration  # Slurm takes its time


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as started:
        yield started


@pytest.fixture
def shop(tmp_path: Path, fake_cli: Path, slurm: Cluster) -> Iterator[Workshop]:
    """A workspace on a cluster, with a blank and quotes in its path."""
    made = new_workshop(tmp_path, fake_cli, slurm.environment)
    yield made
    for folder in made.run_folders():
        if job := made.record(folder)["job"]:
            slurm.ask("scancel", job["id"].partition("_")[0])
    made.kill_all()


def launch(shop: Workshop, *words: str, compute: Any = JOB, env: dict[str, str] | None = None, **changes: Any) -> Done:
    return shop.run("launch", shop.spec(compute=compute, **changes), *words, **(env or {}))


def shown(shop: Workshop, run: Path | None = None) -> str:
    rows = shop.run("list", "--json").json()
    return next(row["status"] for row in rows if run is None or row["id"] == run.name)


def ended(shop: Workshop, status: str = "done") -> dict[str, Any]:
    record = wait_for(lambda: shop.record()["ended_at"] and shop.record(), "the run's end")
    assert record["status"] == status, (record["error"], (shop.only_run() / "logs" / "supervisor.log").read_text())
    return record


def test_a_launch_submits_a_job_that_carries_the_run_out(shop, slurm, launched):
    done = launch(shop)
    assert done.code == 0, done.err
    run = shop.only_run()
    assert done.out == f"{run.name}\n"
    record = ended(shop)
    assert f"is Slurm job {record['job']['id']}" in done.err
    assert len(record["benchmarks"]) == 1 and len(record["attempts"]) == 1
    wait_for(lambda: slurm.states()[record["job"]["id"]] == "COMPLETED", "the job's end")
    assert record["training"] == launched[0].record()["training"]
    assert "train: 5/5 steps" in (run / "logs" / "supervisor.log").read_text("utf-8")


@slow
def test_stop_has_the_job_save_a_checkpoint_and_nothing_is_queued_again(shop, slurm):
    assert launch(shop, train=SLOW, benchmark=None, env={"FAKE_HOLD": "5"}).code == 0
    wait_for(training_at_step(shop, 5), "step 5")
    assert shown(shop) == "running"
    run, job = shop.only_run(), shop.record()["job"]["id"]
    assert f"Slurm job {job}" in shop.run("show", "toy").out
    refused = shop.run("resume", "toy")
    assert refused.code == 3 and f"Slurm job {job} owns it" in refused.err, refused.err
    done = shop.run("stop", "toy")
    assert done.code == 0, done.err
    assert "the newest complete checkpoint: checkpoint-" in done.err and slurm.states()[job] in ("FAILED", "COMPLETED")
    assert shown(shop, run) == "stopped" and shop.left_over() == []
    again = shop.run("resume", "toy", FAKE_STEP_S="0")
    assert again.code == 0, again.err
    record = ended(shop)
    assert record["job"]["id"] != job and record["attempts"][1]["from_step"] == 5
    assert record["training"]["steps"] == 40


def test_a_job_that_waits_is_queued_and_stop_takes_it_out(shop, slurm):
    later = {"slurm": {**JOB["slurm"], "options": {"begin": "now+1hour"}}}
    assert launch(shop, compute=later).code == 0
    run, job = shop.only_run(), shop.record()["job"]["id"]
    assert shown(shop) == "queued"
    assert f"Slurm job {job} is PENDING (BeginTime), expected to start 20" in shop.run("show", "toy").out
    slurm.ask("scontrol", "hold", job)
    assert f"; scontrol release {job} lets it begin\n" in shop.run("show", "toy").out
    slurm.ask("scontrol", "release", job)
    follower = shop.start("logs", "toy", "-f")
    follower.until(lambda: f"Slurm job {job} is PENDING" in follower.err, "what it waits for")
    assert shop.run("stop", "toy").code == 0
    assert follower.finish().code == 0
    assert (shown(shop, run), slurm.states()[job]) == ("stopped", "CANCELLED")


@slow
def test_before_its_time_limit_it_is_stopped_queued_again_and_comes_to_the_same_end(shop, slurm, tmp_path, fake_cli):
    unbroken = new_workshop(tmp_path / "unbroken", fake_cli)
    assert unbroken.run("launch", unbroken.spec(train=SLOW, benchmark=None)).code == 0
    short = {"slurm": {"time": 2, "signal_s": 50}}
    go = shop.root.parent / "go"
    held = {"FAKE_HOLD": "20", "FAKE_GO": str(go)}
    assert launch(shop, compute=short, train=SLOW, benchmark=None, env=held).code == 0
    run = shop.only_run()
    stuck = shop.spec("stuck", compute=short, train={"max_steps": 5}, benchmark=None)
    assert shop.run("launch", stuck, FAKE_TRAIN="hangs").code == 0
    stuck_run = next(shop.runs.glob("stuck-2*"))
    wait_for(lambda: shop.record(run)["job"]["requeues"] == 1, "the end of its time", 150)
    go.touch()
    assert shown(shop, run) in ("queued", "running", "preparing", "done")
    record = wait_for(lambda: shop.record(run)["ended_at"] and shop.record(run), "its end", 150)
    log = (run / "logs" / "supervisor.log").read_text("utf-8")
    assert record["status"] == "done", log
    assert [each["status"] for each in record["attempts"]] == ["stopped"] * record["job"]["requeues"] + ["done"]
    assert "the time limit is near" in log and "the training resumes from checkpoint-" in log
    assert record["attempts"][1]["from_step"] == 20
    then = unbroken.record()["training"]
    assert record["training"] == then | {"train_loss": None}
    outputs = [path / "output" / "adapter_model.safetensors" for path in (run, unbroken.only_run())]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    other = wait_for(lambda: shop.record(stuck_run)["ended_at"] and shop.record(stuck_run), "the end of the other", 150)
    assert other["status"] == "stopped" and "it came to no checkpoint beyond step 0" in other["error"]
    assert other["job"]["requeues"] == 0


@slow
def test_a_preempted_job_is_queued_again_by_slurm_and_goes_on_from_its_checkpoint(shop, slurm):
    alone = {"slurm": {"time": 30, "partition": "all", "options": {"exclusive": True, "nodelist": "node2"}}}
    go = shop.root.parent / "go"
    held = {"FAKE_HOLD": "12", "FAKE_GO": str(go)}
    assert launch(shop, compute=alone, train=SLOW, benchmark=None, env=held).code == 0
    wait_for(training_at_step(shop, 12), "step 12")
    job = shop.record()["job"]["id"]
    words = ("sbatch", "--parsable", "--partition=urgent", "--nodelist=node2", "--exclusive", "--output=/dev/null")
    urgent = slurm.ask(*words, "--wrap=sleep 2").strip()
    wait_for(lambda: slurm.states().get(urgent) == "RUNNING", "the urgent job")
    go.touch()
    record = ended(shop)
    assert (record["training"]["steps"], len(record["attempts"])) == (40, 2)
    assert record["attempts"][1]["from_step"] >= 10 and record["job"]["id"] == job
    assert record["job"]["requeues"] == 0


@slow
def test_a_sweep_is_a_job_array_and_a_resume_submits_what_is_not_done(shop, slurm):
    done = launch(shop, "--sweep", "compute.env.FAKE_TRAIN=x,dies")
    assert done.code == 0 and "is Slurm job " in done.err, done.err
    (folder,) = shop.runs.glob("toy-sweep-*")
    assert done.out == f"{folder.name}\n"
    runs = [shop.runs / each["run"] for each in json.loads((folder / "group.json").read_bytes())["points"]]
    jobs = [shop.record(run)["job"]["id"].partition("_") for run in runs]
    assert jobs[0][0] == jobs[1][0] and [each[2] for each in jobs] == ["0", "1"]
    wait_for(lambda: all(shop.record(run)["ended_at"] for run in runs), "the end of both")
    first, second = (shop.record(run) for run in runs)
    assert (first["status"], len(first["benchmarks"]), second["status"]) == ("done", 1, "failed")
    again = shop.run("resume", "toy-sweep")
    assert again.code == 0, again.err
    wait_for(lambda: len(shop.record(runs[1])["attempts"]) == 2, "the second's second attempt")
    wait_for(lambda: shop.record(runs[1])["ended_at"], "its end")
    assert len(shop.record(runs[0])["attempts"]) == 1


def test_what_slurm_does_not_take_fails_with_its_words(shop):
    done = launch(shop, compute={"slurm": {"constraint": "no_such_feature"}})
    assert done.code == 4 and "Invalid feature specification" in done.err and "sbatch.sh" in done.err
    record = shop.record()
    assert record["status"] == "failed" and "Invalid feature" in record["error"] and record["job"] is None


@slow
def test_a_training_on_two_nodes_is_started_on_each_and_stopped_on_each(shop, slurm):
    two = {"slurm": {"nodes": 2, "time": 10, "cpus_per_task": 2}, "env": {"OMP_NUM_THREADS": "1"}}
    assert launch(shop, compute=two, train=SLOW, benchmark=None, env={"FAKE_HOLD": "5"}).code == 0
    wait_for(training_at_step(shop, 5), "step 5")
    wait_for(lambda: len(shop.calls("train")) == 2, "both nodes")
    assert shop.run("stop", "toy").code == 0
    assert shop.record()["status"] == "stopped" and shop.left_over() == []
    assert shop.run("resume", "toy").code == 0
    assert ended(shop)["training"]["steps"] == 40
    calls = [call["environment"] for call in shop.calls("train")]
    assert sorted(each["NODE_RANK"] for each in calls) == ["0", "0", "1", "1"]
    for each in calls:
        assert each["NNODES"] == "2" and each["MASTER_ADDR"] == "127.0.0.1" and each["OMP_NUM_THREADS"] == "1"
        assert each["FORCE_TORCHRUN"] == "1" and int(each["MASTER_PORT"]) >= 20_000
    files = shop.run("logs", "toy", "--file", "train-node1")
    assert files.code == 0 and files.out.count("fake train") == 2
