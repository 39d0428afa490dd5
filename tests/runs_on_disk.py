"""Run folders of all kinds, made without running anything."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.owner import lock_run
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir, Workspace
from tests.checkpoint_folders import trainer_state
from tests.model_folders import adapter_folder

SIGNATURES = {
    "bleu": "nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
    "chrf": "nrefs:1|bs:1000|seed:12345|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0",
    "ter": "nrefs:1|bs:1000|seed:12345|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:2.6.0",
}


def on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, script: str) -> None:
    """A program of a few lines of sh that is found before any other of its name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def new_workspace(root: Path) -> Workspace:
    for name in ("runs", "dataset_info"):
        (root / name).mkdir(parents=True)
    return Workspace(root)


def benchmark(bleu: float, of: str = "output", testset: str = "captions", **changes: Any) -> dict[str, Any]:
    """A complete benchmark of a record: BLEU as given, chrF2 twice that, TER 100 less it."""
    scores = [
        {"metric": name, "score": value, "ci95": [value - 1, value + 1], "ci_mean": value, "ci_half": 1.0}
        for name, value in {"bleu": bleu, "chrf": 2 * bleu, "ter": 100 - bleu}.items()
    ]
    scores = [{**score, "signature": SIGNATURES[score["metric"]], "n_segments": 40} for score in scores]
    fields = {"id": f"{of}-{testset}", "of": of, "testset": testset, "split": "test", "status": "complete"}
    return {**fields, "n_segments": 40, "scores": scores, "mean_sentence_bleu": bleu + 1, **changes}


def record_json(run_id: str, **changes: Any) -> dict[str, Any]:
    """A record of a finished run, as long as a real one."""
    data = [
        {"dataset": "captions", "split": split, "pairs": 100, "blank_pairs": 0, "sha256": f"{split}-text"}
        for split in ("train", "test")
    ]
    names = "orchestrator sacrebleu python llamafactory torch transformers peft trl accelerate datasets numpy"
    versions = dict.fromkeys(names.split(), "1.2.3")
    fields: dict[str, Any] = {
        "schema_version": 1,
        "id": run_id,
        "name": run_id.rpartition("-2026")[0] or run_id,
        "status": "done",
        "created_at": "2026-11-24T10:15:00Z",
        "ended_at": "2026-11-24T10:20:00Z",
        "host": "elsewhere",
        "boot_id": "b316ce50-bdfd-4211-b6d5-462861c9a134",
        "pid": 19818,
        "process_started_at": 1795547204.85,
        "spec_file": "runs/demo.yaml",
        "spec_sha256": "72db89ff1c01e576efd39e5934ccd69e0b2c114081edf6f5956723fed69e4e4f",
        "commands": {"train": ["/opt/venv/bin/llamafactory-cli", "train", "train.yaml"]},
        "environment": {"train": {}, "api": {"API_HOST": "127.0.0.1", "API_PORT": "48673", "MAX_CONCURRENT": "1"}},
        "attempts": [{"started_at": "2026-11-24T10:15:00Z", "status": "done", "pid": 19818, "host": "elsewhere"}],
        "seed": 42,
        "facts": {"versions": versions, "platform": "Linux x86_64", "git_commit": "d740f7f", "data": data},
        "training": {"steps": 50, "total_steps": 50, "train_loss": 2.5, "logged_losses": [3.4, 3.0, 2.7, 2.4, 2.1] * 2},
        "benchmarks": [benchmark(7.0, "base"), benchmark(8.0)],
    }
    return {**fields, **changes}


def new_run(workspace: Workspace, run_id: str, **changes: Any) -> RunDir:
    """A run folder with record and spec, an output with an adapter and three checkpoints, data and logs."""
    run = RunDir(workspace.runs / run_id)
    run.path.mkdir(exist_ok=True)
    run.record.write_text(json.dumps(record_json(run_id, **changes), indent=2))
    run.spec.write_text('name: "toy"\nmodel:\n  name_or_path: "models/tiny"\n  template: "x"\ndataset: "captions"\n')
    for step in (5, 10, 15):
        checkpoint(run, step)
    (run.output / "adapter_model.safetensors").write_bytes(b"x" * 1000)
    for path in (run.data / "captions.jsonl", run.train_log, run.benchmarks / "output-captions" / "scores.json"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"y" * 100)
    return run


def checkpoint(run: RunDir, step: int) -> Path:
    """A checkpoint that stands for a complete one where only its weights matter."""
    folder = adapter_folder(run.output / f"checkpoint-{step}")
    trainer_state(folder, step)
    return folder


def running(run: RunDir) -> None:
    """Make this process the run's owner, for as long as it lives."""
    lock_run(run)
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    RunRecord.model_validate(record_json(run.id, status="running", ended_at=None, **here)).save(run)
