"""What comes behind a benchmark's scores, where it is asked for: times of a stream, COMET.

Covered: each is added to scores.json and to the run's record when the scores are in both, so that its failure costs
none of them; COMET on a benchmark of long ago, without a server.
Not covered: how either is measured (streaming.py, comet.py).
Leaves scores.json with more in it.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from orchestrator.benchmark.answers import Journal
from orchestrator.benchmark.comet import add_comet, is_scored
from orchestrator.benchmark.evaluate import BenchmarkResult, write_result
from orchestrator.benchmark.question import Question
from orchestrator.benchmark.streaming import SAMPLE, stream_one_by_one
from orchestrator.planning.session import Session
from orchestrator.processes.interruptible import run_interruptible
from orchestrator.processes.progress import Progress
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import Score
from orchestrator.serving.checkpoints import serving_devices
from orchestrator.serving.endpoint import Endpoint
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.specs.spec import RunSpec
from orchestrator.upstream.comet import find_comet, located

log = logging.getLogger("orchestrator")


def take_streaming(
    question: Question, connect: Callable[[], Endpoint], folder: Path, result: BenchmarkResult
) -> BenchmarkResult:
    """Stream some sentences of a benchmark that was scored, spread over its test set, and add that to its result.

    Raises:
        PrerequisiteError: the server refuses every request alike.
        StageError: another process is at work there.
    """
    with Journal(folder, question.text.sources, question.text.references) as journal:
        answers = [journal.answers[index] for index in sorted(journal.answers)]
    n_sample = min(SAMPLE, len(answers))
    chosen = [answers[place * len(answers) // n_sample] for place in range(n_sample)]
    endpoint = connect()
    with Progress(n_sample, "stream", "sentences") as progress:
        streaming = run_interruptible(
            stream_one_by_one(
                endpoint,
                [(question.messages(answer.index), answer) for answer in chosen],
                result.sent,
                timeout_s=question.bench.request_timeout_s,
                on_answer=progress.update,
            )
        )
    log.log(logging.WARNING if streaming.error else logging.INFO, "%s", streaming.line())
    result = result.model_copy(update={"streaming": streaming})
    write_result(folder, result)
    return result


def score_by_comet(
    session: Session, spec: RunSpec, run: RunDir, record: RunRecord, done: Iterable[tuple[BenchmarkSpec, Path]]
) -> None:
    """COMET's scores of benchmarks that wish for them and have none; for when the servers have left the GPU."""
    for item, folder in done:
        if item.comet is None or is_scored(folder, located(item.comet, session.workspace.root)):
            continue
        devices = None if spec.serve.url is not None else serving_devices(spec.serve, spec)
        scores = add_comet(folder, located(item.comet, session.workspace.root), find_comet(), devices)
        _record_comet(run, record, folder, scores)


def score_again(session: Session, folder: Path, model: str, devices: str | None) -> None:
    """Score a benchmark that is finished by a model of COMET, without its server."""
    scores = add_comet(folder, located(model, session.workspace.root), find_comet(), devices)
    run = RunDir(folder.parent.parent)
    if run.record.is_file():
        _record_comet(run, RunRecord.load(run), folder, scores)


def _record_comet(run: RunDir, record: RunRecord, folder: Path, scores: list[Score]) -> None:
    for item in record.benchmarks:
        if item.id == folder.name:
            record.add_benchmark(run, item.model_copy(update={"comet": scores}))
