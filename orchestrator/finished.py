"""What of a run is whole already, so that going on with it does not do it again.

Covered: benchmarks, by what was asked, of which weights, and with what result. (Trainings: train.finished.)
Not covered: benchmarks that were begun (evaluate.py).
Writes nothing.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.datasets import Dataset, ParallelText, first
from orchestrator.evaluate import BenchmarkResult
from orchestrator.record import BenchmarkSummary
from orchestrator.rundir import RunDir
from orchestrator.spec import BenchmarkSpec

_ASKED = ("temperature", "max_tokens", "n_bootstrap")


def whole_benchmark(
    run: RunDir, item: BenchmarkSpec, dataset: Dataset, text: ParallelText, model: str | None
) -> tuple[Path, BenchmarkResult] | None:
    """The newest whole benchmark of a run that is what an item of its spec asks for.

    Args:
        run: the run.
        item: the benchmark wanted.
        dataset: its test set, whose instruction makes the prompts.
        text: the whole split.
        model: the served model's name, which holds the hash of its weights; None: of a server of others.
    """
    wanted: dict[str, Any] = {name: getattr(item, name) for name in _ASKED} | {"instruction": dataset.entry.instruction}
    if model is not None:
        wanted["model"] = model
    text_sha256 = first(text, item.max_samples).sha256
    folders = [path for path in run.benchmarks.iterdir() if path.is_dir()] if run.benchmarks.is_dir() else []
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        result, asked = _result(folder), _question(folder)
        if (
            result is not None
            and result.status == "complete"
            and (result.testset, result.split, result.text_sha256) == (item.testset, item.split, text_sha256)
            and all(asked.get(name) == value for name, value in wanted.items())
            and asked.get("metrics") == item.metrics
        ):
            return folder, result
    return None


def summary_of(folder: Path, label: str, item: BenchmarkSpec, result: BenchmarkResult) -> BenchmarkSummary:
    """A benchmark as the run's record has it."""
    return BenchmarkSummary(
        id=folder.name,
        of=label,
        testset=item.testset,
        split=item.split,
        status=result.status,
        n_segments=result.n_segments,
        scores=result.scores,
        mean_sentence_bleu=result.mean_sentence_bleu.score if result.mean_sentence_bleu else None,
    )


def _result(folder: Path) -> BenchmarkResult | None:
    try:
        return BenchmarkResult.model_validate_json((folder / "scores.json").read_bytes())
    except (FileNotFoundError, ValidationError):  # not finished, or of another version: it is made again
        return None


def _question(folder: Path) -> dict[str, Any]:
    try:
        asked = yaml.safe_load((folder / "benchmark.yaml").read_bytes())
    except (FileNotFoundError, yaml.YAMLError):
        return {}
    return asked if isinstance(asked, dict) else {}
