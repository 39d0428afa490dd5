"""Jobs of a real Slurm that run the real llamafactory-cli on a tiny model. Run: pytest tests/test_slurm_real.py."""

from collections.abc import Iterator

import psutil
import pytest

from orchestrator.processes.process_tree import run_processes
from tests.slurm_cluster import Cluster, cluster, missing
from tests.workshop import Workshop, new_workshop, real_environment, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=f"no Slurm: {missing()}")]
TRAIN = {
    "learning_rate": 5.0e-3, "lora_rank": 4, "max_samples": 40, "per_device_train_batch_size": 2, "logging_steps": 10,
    "gradient_accumulation_steps": 8, "max_steps": 40, "save_strategy": "no", "report_to": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as started:
        yield started


@pytest.fixture
def shop(tmp_path, slurm, tiny_model) -> Iterator[Workshop]:
    made = new_workshop(tmp_path, None, {**real_environment(tmp_path), **slurm.environment}, model=tiny_model)
    yield made
    made.kill_all()


def ended(shop: Workshop, run, timeout_s: float = 280) -> dict:
    return wait_for(lambda: shop.record(run)["ended_at"] and shop.record(run), "the run's end", timeout_s)


def log_of(run) -> str:
    return (run / "logs" / "supervisor.log").read_text("utf-8") + (run / "logs" / "train.log").read_text("utf-8")


def trainer_of(run) -> psutil.Process:
    """The process that takes the steps: the one of a run's that all others lead to."""
    found = [each for each in run_processes(run) if "llamafactory" in " ".join(each.cmdline())]
    return max(found, key=lambda process: process.create_time())


def test_a_job_that_meets_its_time_limit_comes_to_the_end_of_an_unbroken_one_to_the_bit(shop):
    """However fast the machine is: the training is held from its first logged step until Slurm's signal comes."""
    limits = {"broken": {"time": 2, "signal_s": 50}, "unbroken": {"time": 30}}
    for name, limit in limits.items():
        done = shop.run("launch", shop.spec(name, train=TRAIN, benchmark=None, compute={"slurm": limit}))
        assert done.code == 0, done.err
    runs = {name: next(shop.runs.glob(f"{name}-2*")) for name in limits}
    wait_for(lambda: (runs["broken"] / "output" / "trainer_log.jsonl").is_file(), "a logged step", 240)
    trainer = trainer_of(runs["broken"])
    trainer.suspend()
    try:
        wait_for(
            lambda: "stopping: the training saves a checkpoint first" in log_of(runs["broken"]), "Slurm's signal", 120
        )
    finally:
        trainer.resume()
    records = {name: ended(shop, run) for name, run in runs.items()}
    assert [each["status"] for each in records.values()] == ["done", "done"], log_of(runs["broken"])
    assert records["broken"]["job"]["requeues"] >= 1 and len(records["unbroken"]["attempts"]) == 1
    assert records["broken"]["attempts"][1]["from_step"] > 0
    files = [run / "output" / "adapter_model.safetensors" for run in runs.values()]
    assert files[0].read_bytes() == files[1].read_bytes()
