"""The order within a benchmark: request -> folder -> a server, if a sentence is left -> scores -> record."""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from orchestrator.benchmark.cache import Identity, identify
from orchestrator.benchmark.comet import add_comet
from orchestrator.benchmark.evaluate import EvalOptions, EvalRequest, evaluate
from orchestrator.benchmark.journal import is_locked
from orchestrator.benchmark.results import BenchmarkResult, has_result, read_result
from orchestrator.data.datasets import sample_pairs
from orchestrator.data.testset import with_instruction
from orchestrator.errors import OrchestratorError, PrerequisiteError
from orchestrator.planning.plan import Plan
from orchestrator.planning.session import Session
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.serving.checkpoints import connect, group_by_server, served, serving_devices
from orchestrator.serving.endpoint import Endpoint
from orchestrator.serving.server import ServePlan, Serving, free_port
from orchestrator.serving.target import run_checkpoints
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, RunSpec

log = logging.getLogger("orchestrator")

ABANDONED_S = 10
"""An empty folder of this age is nobody's: it is locked, and scores.json is in it, at once."""
Connect = Callable[[Checkpoint, Path], Endpoint]
"""Gives a server of a checkpoint; a new server's files go into the folder, a benchmark's."""


def run_benchmarks(session: Session, plan: Plan, run: RunDir, record: RunRecord, options: EvalOptions) -> None:
    """The benchmarks of a run's spec, but those that an earlier attempt completed."""
    record.update(run, status="benchmarking")
    spec, again = plan.spec, len(record.attempts) > 1 and not options.fresh
    checkpoints = _checkpoints(session, spec, run)
    done: list[tuple[BenchmarkSpec, Path]] = []
    with checkpoint_servers(session, spec, run, record, checkpoints) as connect_to:
        for checkpoint in checkpoints:
            wanted = [
                item for item in spec.benchmark if checkpoint.label != "base" or item.base_model or not spec.train
            ]
            completed = {} if not again else find_completed(session, plan, run, record, checkpoint, wanted)
            items = [item for number, item in enumerate(wanted) if number not in completed]
            folders = benchmark_checkpoint(session, plan, run, record, checkpoint, items, options, connect_to)
            done += [(wanted[number], folder) for number, folder in completed.items()]
            done += zip(items, folders, strict=True)
    score_by_comet(session, spec, run, record, done)


def benchmark_checkpoint(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    checkpoint: Checkpoint,
    items: Sequence[BenchmarkSpec],
    options: EvalOptions,
    connect_to: Connect,
) -> list[Path]:
    """Benchmark a checkpoint on test sets; its server is started only if a sentence has not been answered yet."""
    folders: list[Path] = []
    for item in items:
        request = _build_request(session, plan, run, checkpoint, item)
        name = re.sub(r"[:/]", "-", f"{checkpoint.label}-{item.testset}-{item.split}")
        folder = _folder_for(run, name, request.key, fresh=options.fresh)
        folders.append(folder)
        log.info("benchmark %s: %s %s", checkpoint.label, item.testset, item.split)
        try:
            result = evaluate(request, lambda: connect_to(checkpoint, folders[0]), folder, options)
        except OrchestratorError:
            if not has_result(folder):  # it failed before it began
                shutil.rmtree(folder, ignore_errors=True)
            raise
        record.add_benchmark(run, result.summary(folder, checkpoint.label))
    return folders


def find_completed(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    checkpoint: Checkpoint,
    items: Sequence[BenchmarkSpec],
) -> dict[int, Path]:
    """The folders of a checkpoint's benchmarks that were completed before, by the item's place.

    One that did not come to stand in the record is put there.
    """
    found: dict[int, Path] = {}
    for number, item in enumerate(items):
        key = _build_request(session, plan, run, checkpoint, item).key
        for folder, result in _results(run):
            if result.request.get("key") == key and result.status == "complete" and result.scores:
                log.info("benchmark %s: %s %s is complete", checkpoint.label, item.testset, item.split)
                if folder.name not in [each.id for each in record.benchmarks]:
                    record.add_benchmark(run, result.summary(folder, checkpoint.label))
                found[number] = folder
                break
    return found


@contextmanager
def checkpoint_servers(
    session: Session, spec: RunSpec, run: RunDir, record: RunRecord, checkpoints: Sequence[Checkpoint]
) -> Iterator[Connect]:
    """For the length of the block, a server of each of some checkpoints, started when one on it is first needed.

    One server after another, each with as many checkpoints as it can hold; what is benchmarked on a checkpoint is
    benchmarked in a row, so that none is loaded twice.
    """
    groups = group_by_server(spec.serve, checkpoints)
    with ExitStack() as current:
        running: dict[str, Endpoint] = {}

        def connect_to(checkpoint: Checkpoint, folder: Path) -> Endpoint:
            if checkpoint.label not in running:
                running.clear()
                current.close()
                group = next(group for group in groups if checkpoint in group)
                running.update(current.enter_context(_endpoints(session, spec, run, record, group, folder)))
            return running[checkpoint.label]

        yield connect_to


def score_by_comet(
    session: Session, spec: RunSpec, run: RunDir, record: RunRecord, done: Iterable[tuple[BenchmarkSpec, Path]]
) -> None:
    """COMET's scores of benchmarks whose spec names a model; for when the servers have left the GPU."""
    for item, folder in done:
        if item.comet is not None:
            devices = None if spec.serve.url is not None else serving_devices(spec.serve, spec)
            add_comet(folder, item.comet, session.workspace.root, devices, record, run)


def _folder_for(run: RunDir, name: str, key: str, *, fresh: bool) -> Path:
    """Where a benchmark goes: the folder where it was cut short, one that a kill left empty, or a new one."""
    for folder, result in [] if fresh else _results(run):
        unfinished = result.status != "complete" or not result.scores
        if result.request.get("key") == key and unfinished and not is_locked(folder):
            return folder
    left = run.benchmarks / name
    if left.is_dir() and time.time() - left.stat().st_mtime > ABANDONED_S and not is_locked(left):
        if not any(path.stat().st_size for path in left.iterdir()):
            return left
    return run.new_benchmark(name)


def _results(run: RunDir) -> Iterator[tuple[Path, BenchmarkResult]]:
    """The newest first; what is damaged is nobody's to go on with."""
    for folder in sorted(run.benchmarks.glob("*"), reverse=True):
        if has_result(folder):
            try:
                yield folder, read_result(folder)
            except PrerequisiteError as error:
                log.warning("%s", error.message)


def _build_request(
    session: Session, plan: Plan, run: RunDir, checkpoint: Checkpoint, item: BenchmarkSpec
) -> EvalRequest:
    settings, text = plan.spec.serve, plan.texts[item.testset, item.split]
    identity, server = Identity(), f"{settings.url} {settings.model_name or ''}".strip()
    if settings.url is None:
        root, devices, server = session.workspace.root, serving_devices(settings, plan.spec), ""
        identity = identify(checkpoint, settings, root, plan.facts, devices, session.llamafactory_or_none())
    return EvalRequest(
        f"{run.id}@{checkpoint.label}",
        with_instruction(plan.datasets[item.testset], item.instruction),
        sample_pairs(text, item.max_samples, item.sample_seed),
        len(text.sources),
        item,
        identity,
        server,
        settings.max_concurrent,
    )


def _checkpoints(session: Session, spec: RunSpec, run: RunDir) -> list[Checkpoint]:
    if spec.model is None:  # a server that runs already
        return [Checkpoint("server", ModelSpec(name_or_path=spec.serve.url or "?"))]
    available = run_checkpoints(run, spec, session.workspace)
    if spec.train is None:
        return [available["base"]]
    wanted = ["base"] if any(item.base_model for item in spec.benchmark) else []
    return [available[label] for label in [*wanted, "output"]]


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

    def note(plan: ServePlan) -> None:
        record.add_command(run, f"api {folder.name}", list(plan.argv), dict(plan.environment))
        log.info("serving %s; its output: %s", plan.model_name, plan.log)

    names = {f"{run.id}@{checkpoint.label}": checkpoint for checkpoint in checkpoints}
    with served(session, names, serving, note) as server:
        yield {checkpoint.label: server.endpoints[name] for name, checkpoint in names.items()}
