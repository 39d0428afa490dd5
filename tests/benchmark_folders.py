"""Finished benchmarks in run folders, as `benchmark` leaves them, without a model: for what reads them."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from orchestrator.benchmark.results import SCHEMA_VERSION, BenchmarkResult
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.scoring.diagnostics import diagnose
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
    version: int = SCHEMA_VERSION,
    request: dict[str, Any] | None = None,
) -> Path:
    """A benchmark of a run, which is made where it is not there yet; returns the benchmark's folder."""
    sources = SOURCES[: len(hypotheses)]
    folder = RunDir(place.runs / f"{run}-{STAMP}")
    folder.path.mkdir(exist_ok=True)
    if not folder.record.exists():
        at = datetime(2026, 11, 24, 10, 15, tzinfo=UTC)
        about = {"created_at": at, "ended_at": at, "status": "done", "spec_sha256": "0", "seed": 1}
        RunRecord(id=folder.id, name=run, **about).save(folder)
    path = folder.new_benchmark(f"{of}-{testset}-{split}")
    scores, mean, bleu4 = score_system(hypotheses, references, tgt_lang="de", metrics=metrics, n_bootstrap=n_bootstrap)
    issues = diagnose(sources, references, hypotheses, [False] * len(hypotheses), "en", "de")
    requested = {"target_lang": "de", "sent": {"max_tokens": 9, "temperature": 0.0}, **(request or {})}
    result = BenchmarkResult(
        schema_version=version, status=status, target=f"{folder.id}@{of}", testset=testset, split=split,
        n_segments=len(hypotheses), n_requested=len(hypotheses), scores=scores, mean_sentence_bleu=mean,
        llamafactory_bleu4=bleu4, diagnostics=issues, request=requested,
        text_sha256=hashlib.sha256(repr((sources, references)).encode()).hexdigest(),
        prompts_sha256=hashlib.sha256(prompts.encode()).hexdigest(),
    )  # fmt: skip
    result.save(path)
    if version < SCHEMA_VERSION:
        _as_of_old(path, version)
    for name, lines in (("sources", sources), ("references", references), ("hypotheses", hypotheses)):
        (path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    RunRecord.load(folder).add_benchmark(folder, result.summary(path, of))
    return path


def _as_of_old(path: Path, version: int) -> None:
    """As versions 1 and 2 were, with what was requested in benchmark.yaml."""
    value = json.loads((path / "scores.json").read_bytes())
    (path / "benchmark.yaml").write_text(yaml.safe_dump({**value.pop("request"), "n_asked": value["n_requested"]}))
    value["triage"] = {**value.pop("diagnostics"), "numbers_lost": {"count": 9, "indices": [0]}}
    value |= {"n_asked": value.pop("n_requested"), "speed": {"binds": "client"}, "streaming": None}
    kept = ("schema_version", "status", "target", "testset", "split", "n_segments", "scores", "text_sha256",
            "prompts_sha256")  # fmt: skip
    value = {key: value[key] for key in kept} if version == 1 else value
    (path / "scores.json").write_text(json.dumps(value))
