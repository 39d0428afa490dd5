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


def benchmark(bleu: float, of: str = "output", **changes: Any) -> dict[str, Any]:
    """A complete benchmark of a record: BLEU as given, chrF2 twice that, TER 100 less it."""
    values = {"bleu": bleu, "chrf": 2 * bleu, "ter": 100 - bleu}
    scores = [{"metric": name, "score": v, "signature": f"{name}|s", "n_segments": 40} for name, v in values.items()]
    fields = {"id": f"{of}-captions", "of": of, "testset": "captions", "split": "test", "status": "complete"}
    return {**fields, "n_segments": 40, "scores": scores, **changes}


def record_json(run_id: str, **changes: Any) -> dict[str, Any]:
    """A record of a finished run, of an earlier version."""
    data = [
        {"dataset": "captions", "split": split, "pairs": 100, "blank_pairs": 0, "sha256": f"{split}-text"}
        for split in ("train", "test")
    ]
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
        "spec_file": "runs/demo.yaml",
        "spec_sha256": "72db89ff1c01e576efd39e5934ccd69e0b2c114081edf6f5956723fed69e4e4f",
        "commands": {"train": ["/opt/venv/bin/llamafactory-cli", "train", "train.yaml"]},
        "attempts": [{"started_at": "2026-11-24T10:15:00Z", "status": "done", "pid": 19818, "host": "elsewhere"}],
        "seed": 42,
        "facts": {"platform": "Linux x86_64", "git_commit": "d740f7f", "data": data},
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
