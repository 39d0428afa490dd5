"""What a run took, in words. Run: pytest tests/test_costs.py."""

import pytest

from orchestrator.runs.costs import duration, lines
from orchestrator.runs.record import RunRecord
from tests.runs_on_disk import record_json

USAGE = {"every_s": 2.0, "peak_rss_bytes": 3 << 30}


def attempt(minutes: int, took_s: int | None, **changes):
    started, ended = f"2026-11-24T10:{minutes:02}:00Z", f"2026-11-24T10:{minutes:02}:{took_s or 0:02}Z"
    fields = {
        "started_at": started,
        "ended_at": ended if took_s is not None else None,
        "status": "done",
        "from_step": 0,
    }
    return {**fields, "pid": 1, "host": "elsewhere", **changes}


def record(*attempts, **changes) -> RunRecord:
    return RunRecord.model_validate(record_json("toy-20261124-101500", attempts=attempts, **changes))


def test_all_attempts_together_and_what_was_not_measured_is_said():
    killed = attempt(10, 20, status="interrupted", stages_s={"prepare": 1.5})
    one = attempt(11, 50, stages_s={"prepare": 0.5, "train": 45.0}, usage={
        **USAGE, "gpu_peak_memory_mib": {"0": 500, "1": 23_552}, "gpu_energy_j": 7200.0,
    })  # fmt: skip
    other = attempt(12, 55, stages_s={"train": 30.0, "benchmark": 15.0}, usage={
        **USAGE, "peak_rss_bytes": 1 << 30, "gpu_peak_memory_mib": {"0": 700}, "gpu_energy_j": 3600.0,
    })  # fmt: skip
    training = {"steps": 50, "total_steps": 50, "tokens_seen": 12345}
    assert lines(record(killed, one, other, training=training)) == [
        "took 2 min 5 s in 3 attempts: prepare 2.0 s, train 1 min 15 s, benchmark 15 s",
        "training: 12345 input tokens, peak memory 3.0 GiB, GPU 0 700 MiB, GPU 1 23.0 GiB, GPU energy 3.0 Wh, "
        "not measured in 1 of 3 attempts",
    ]


def test_what_the_record_does_not_have_is_not_said():
    assert lines(record(training=None)) == []
    assert lines(record(attempt(10, 5), training=None)) == ["took 5.0 s"]
    assert lines(record(attempt(10, None), status="running", ended_at=None, training=None)) == []
    energy = attempt(10, 5, usage={"every_s": 2.0, "gpu_energy_j": 1.8e7})
    assert lines(record(energy, training=None))[1] == "training: GPU energy 5.00 kWh"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (186, "3 min 6 s"), (3599.7, "1 h 0 min"),
     (7500, "2 h 5 min"), (360_000, "100 h 0 min")],
)  # fmt: skip
def test_durations(seconds, said):
    assert duration(seconds) == said
