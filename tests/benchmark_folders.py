"""Finished benchmarks in run folders, as `benchmark` leaves them, without a model: for what reads them."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.workspace import Workspace
from orchestrator.scoring.diagnostics import triage
from orchestrator.scoring.metrics import score_system
from orchestrator.specs.benchmark_spec import METRICS

STAMP = "20261124-101500"
REFERENCES = [
    f"{subject} {verb} {place}."
    for subject in ("Ein Mann", "Eine Frau", "Das Kind", "Der Hund", "Niemand")
    for verb in ("läuft", "sitzt", "wartet")
    for place in ("auf der Straße", "im tiefen Wasser und im Sand", "bei einem alten Haus")
]
SOURCES = [f"source {'word ' * (len(line) % 9)}{number}" for number, line in enumerate(REFERENCES)]


def workspace(root: Path) -> Workspace:
    for name in ("runs", "dataset_info"):
        (root / name).mkdir(parents=True, exist_ok=True)
    return Workspace(root)


def add_benchmark(
    place: Workspace,
    hypotheses: list[str],
    *,
    run: str = "demo",
    of: str = "output",
    testset: str = "toy",
    split: str = "test",
    references: list[str] = REFERENCES,
    metrics: tuple[Any, ...] = METRICS,
    n_bootstrap: int = 20,
    prompts: str = "p",
    status: str = "complete",
    version: int = 2,
    changes: dict[str, Any] | None = None,
    asked: dict[str, Any] | None = None,
    sources: list[str] = SOURCES,
) -> Path:
    """A benchmark of a run, which is made where it is not there yet; returns the benchmark's folder."""
    sources = sources[: len(hypotheses)]
    folder = RunDir(place.runs / f"{run}-{STAMP}")
    folder.path.mkdir(exist_ok=True)
    if folder.record.exists():
        record = RunRecord.load(folder)
    else:
        at = datetime(2026, 11, 24, 10, 15, tzinfo=UTC)
        record = RunRecord(id=folder.id, name=run, created_at=at, ended_at=at, status="done", spec_sha256="0", seed=1)
        record.save(folder)
    path = folder.new_benchmark(f"{of}-{testset}-{split}")
    found = score_system(hypotheses, [references], tgt_lang="de", metrics=metrics, n_bootstrap=n_bootstrap)
    scores = json.loads(found.model_dump_json())
    text = hashlib.sha256(repr((sources, references)).encode()).hexdigest()
    result = {
        "schema_version": version, "status": status, "target": f"{folder.id}@{of}", "testset": testset, "split": split,
        "n_segments": len(hypotheses), "failed": 0, **scores, "text_sha256": text,
        "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(), **(changes or {}),
    }  # fmt: skip
    if version == 1:
        del result["llamafactory_bleu4"]
    else:
        tokens = [3] * len(hypotheses)
        result["triage"] = json.loads(triage(sources, references, hypotheses, tokens, 9, "en", "de").model_dump_json())
    (path / "scores.json").write_text(json.dumps(result))
    said = {"testset": testset, "source_lang": "en", "target_lang": "de", "instruction": "Say it in German.",
            "sent": {"max_tokens": 9, "temperature": 0.0}, "model": f"{run}@{of}", **(asked or {})}  # fmt: skip
    (path / "benchmark.yaml").write_text(yaml.safe_dump(said))
    for name, lines in (("sources", sources), ("references", references), ("hypotheses", hypotheses)):
        (path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    summary = BenchmarkSummary(
        id=path.name,
        of=of,
        testset=testset,
        split=split,
        status=status,
        n_segments=len(hypotheses),
        scores=found.scores,
    )
    record.add_benchmark(folder, summary)
    return path
