"""The order within a benchmark: what is asked, where it is answered, who is asked, what comes into the record.

    checkpoint -> questions -> folders -> a server, if a sentence is left to ask -> evaluate -> record

Covered: the benchmarks of a run's spec, those that are whole left out; any test sets put to one checkpoint; COMET's
scores, behind the others, so that its failure costs none of them.
Not covered: the order of a run (pipeline.py); asking and scoring (evaluate.py).
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from orchestrator.benchmark.afterwards import score_by_comet, take_streaming
from orchestrator.benchmark.evaluate import Asking, BenchmarkResult, evaluate
from orchestrator.benchmark.identity import Identity, identity_of
from orchestrator.benchmark.question import Question, ask_about, folder_for, whole_folder
from orchestrator.data.testset import with_instruction
from orchestrator.planning.plan import Plan
from orchestrator.planning.session import Session
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import BenchmarkSummary
from orchestrator.runs.rundir import RunDir
from orchestrator.serving.checkpoints import Serving, connect, served, serving_devices, together
from orchestrator.serving.endpoint import Endpoint
from orchestrator.serving.server import ServePlan, free_port
from orchestrator.serving.target import run_checkpoints
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, RunSpec

log = logging.getLogger("orchestrator")

Connect = Callable[[Checkpoint, Path], Endpoint]
"""Gives a server of a checkpoint. The folder is that of the benchmark that asks: a new server's files go there."""


def run_benchmarks(session: Session, plan: Plan, run: RunDir, record: RunRecord, how: Asking) -> None:
    """The benchmarks of a run's spec, but those that an earlier attempt brought to their end."""
    record.update(run, status="benchmarking")
    checkpoints = _checkpoints(session, plan.spec, run)
    done: list[tuple[BenchmarkSpec, Path]] = []
    with served_in_turn(session, plan.spec, run, record, checkpoints) as connect_to:
        for checkpoint in checkpoints:
            items = [item for item in plan.spec.benchmark if not item.during]  # that is put to all checkpoints
            items = [item for item in items if checkpoint.label != "base" or _wants_base(plan.spec, item)]
            if len(record.attempts) > 1 and not how.fresh:
                found = [(item, whole_benchmark(session, plan, run, record, checkpoint, item)) for item in items]
                done += [(item, folder) for item, folder in found if folder is not None]
                items = [item for item, folder in found if folder is None]
            folders = benchmark_checkpoint(session, plan, run, record, checkpoint, items, how, connect_to)
            done += zip(items, folders, strict=True)
    score_by_comet(session, plan.spec, run, record, done)


def benchmark_checkpoint(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    checkpoint: Checkpoint,
    items: Sequence[BenchmarkSpec],
    how: Asking,
    connect_to: Connect,
) -> list[Path]:
    """Put test sets to a checkpoint, whose server is asked for only if a sentence has not been answered yet."""
    questions = [_question(session, plan, run, checkpoint, item) for item in items]
    folders: list[Path] = []
    for item, question in zip(items, questions, strict=True):
        name = re.sub(r"[:/]", "-", f"{checkpoint.label}-{item.testset}-{item.split}")
        folders.append(folder_for(run, name, question.key, fresh=how.fresh, taken=folders))

    def connect_here() -> Endpoint:
        return connect_to(checkpoint, folders[0])

    for item, question, folder in zip(items, questions, folders, strict=True):
        log.info("benchmark %s: %s %s", checkpoint.label, item.testset, item.split)
        result = evaluate(question, connect_here, folder, how)
        record.add_benchmark(run, _summary(folder, checkpoint.label, item, result))
        if how.streamed:
            result = take_streaming(question, connect_here, folder, result)
            record.add_benchmark(run, _summary(folder, checkpoint.label, item, result))
    return folders


@contextmanager
def served_in_turn(
    session: Session, spec: RunSpec, run: RunDir, record: RunRecord, checkpoints: Sequence[Checkpoint]
) -> Iterator[Connect]:
    """For the length of the block, a server of each of some checkpoints, started when one on it is first asked for.

    One server after another, each with as many checkpoints as it can hold. What one asks for after another server took
    the place is loaded again, so all that is asked of a checkpoint is asked in a row.
    """
    groups = together(spec.serve, checkpoints)
    with ExitStack() as current:
        now: dict[str, Endpoint] = {}

        def connect_to(checkpoint: Checkpoint, folder: Path) -> Endpoint:
            if checkpoint.label not in now:
                now.clear()
                current.close()
                group = next(group for group in groups if checkpoint in group)
                now.update(current.enter_context(_endpoints(session, spec, run, record, group, folder)))
            return now[checkpoint.label]

        yield connect_to


def whole_benchmark(
    session: Session, plan: Plan, run: RunDir, record: RunRecord, checkpoint: Checkpoint, item: BenchmarkSpec
) -> Path | None:
    """The folder of a benchmark that was done before; one that did not come to stand in the record is put there."""
    folder = whole_folder(run, _question(session, plan, run, checkpoint, item).key)
    if folder is None:
        return None
    log.info("benchmark %s: %s %s is whole", checkpoint.label, item.testset, item.split)
    if folder.name not in [each.id for each in record.benchmarks]:
        result = BenchmarkResult.model_validate_json((folder / "scores.json").read_bytes())
        record.add_benchmark(run, _summary(folder, checkpoint.label, item, result))
    return folder


def _question(session: Session, plan: Plan, run: RunDir, checkpoint: Checkpoint, item: BenchmarkSpec) -> Question:
    settings = plan.spec.serve
    if settings.url is not None:
        who, server = Identity(), f"{settings.url} {settings.model_name or ''}".strip()
    else:
        devices = serving_devices(settings, plan.spec)
        who, server = identity_of(checkpoint, settings, session.workspace.root, plan.facts, devices), ""
    return ask_about(
        f"{run.id}@{checkpoint.label}",
        with_instruction(plan.datasets[item.testset], item.instruction),
        plan.texts[item.testset, item.split],
        item,
        identity=who,
        server=server,
        at_once=settings.max_concurrent if settings.url is None and settings.backend == "llamafactory" else None,
    )


def _checkpoints(session: Session, spec: RunSpec, run: RunDir) -> list[Checkpoint]:
    if spec.model is None:  # a server that runs already
        return [Checkpoint("server", ModelSpec(name_or_path=spec.serve.url or "?"))]
    available = run_checkpoints(run, spec, session.workspace)
    if spec.train is None:
        return [available["base"]]
    wanted = ["base"] if any(item.base_model for item in spec.benchmark) else []
    return [available[label] for label in [*wanted, "output"]]


def _wants_base(spec: RunSpec, item: BenchmarkSpec) -> bool:
    return item.base_model or spec.train is None


@contextmanager
def _endpoints(
    session: Session, spec: RunSpec, run: RunDir, record: RunRecord, checkpoints: Sequence[Checkpoint], folder: Path
) -> Iterator[dict[str, Endpoint]]:
    """By label: the server of the spec that runs already, or one of ours for the length of the block."""
    if spec.serve.url is not None:
        endpoint = connect(session, spec.serve)
        yield {checkpoint.label: endpoint for checkpoint in checkpoints}
        return
    serving = Serving(
        settings=spec.serve,
        folder=folder,
        port=spec.serve.port or free_port(spec.serve.host),
        devices=serving_devices(spec.serve, spec),
        run=run.path if record.is_active() and record.pid == os.getpid() else None,
    )
    stage = f"api {folder.name}"

    def note(plan: ServePlan) -> None:
        record.add_command(run, stage, list(plan.argv), dict(plan.environment))
        log.info("serving %s; its output: %s", plan.model_name, plan.log)

    names = {f"{run.id}@{checkpoint.label}": checkpoint for checkpoint in checkpoints}
    with served(session, names, serving, note) as server:
        yield {checkpoint.label: server.endpoints[name] for name, checkpoint in names.items()}


def _summary(folder: Path, label: str, item: BenchmarkSpec, result: BenchmarkResult) -> BenchmarkSummary:
    return BenchmarkSummary(
        id=folder.name,
        of=label,
        testset=item.testset,
        split=item.split,
        status=result.status,
        n_segments=result.n_segments,
        n_asked=result.n_asked,
        scores=result.scores,
        mean_sentence_bleu=result.mean_sentence_bleu.score if result.mean_sentence_bleu else None,
        llamafactory_bleu4=result.llamafactory_bleu4.score if result.llamafactory_bleu4 else None,
        comet=result.comet,
        streaming=result.streaming,
        faults=result.triage.counts() if result.triage else {},
    )
