"""The order within a benchmark: request -> folder -> a server, if a sentence is left -> scores -> record."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from orchestrator.benchmark.answers import Identity, identify, is_locked
from orchestrator.benchmark.comet import add_comet
from orchestrator.benchmark.evaluate import EvalOptions, EvalRequest, evaluate
from orchestrator.benchmark.results import has_result, read_result
from orchestrator.data.datasets import sample_pairs
from orchestrator.data.testset import with_instruction
from orchestrator.errors import OrchestratorError, PrerequisiteError
from orchestrator.planning.plan import Plan
from orchestrator.planning.session import Session
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.serving.checkpoints import group_by_server, served, serving_devices
from orchestrator.serving.endpoint import Endpoint, connect
from orchestrator.serving.server import ServePlan, Serving, free_port
from orchestrator.serving.target import run_checkpoints
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec, RunSpec

log = logging.getLogger("orchestrator")

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
            items = [item for item in spec.benchmark if checkpoint.label != "base" or item.base_model or not spec.train]
            folders = benchmark_checkpoint(
                session, plan, run, record, checkpoint, items, options, connect_to, keep_completed=again
            )
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
    *,
    keep_completed: bool = False,
) -> list[Path]:
    """Benchmark a checkpoint on test sets; its server is started only if a sentence has not been answered yet.

    Returns:
        The benchmarks' folders; with keep_completed that of a set which was completed before, and is left as it is.
    """
    folders: list[Path] = []
    for item in items:
        request = _build_request(session, plan, run, checkpoint, item)
        folder = _folder_of(run, request.key, completed=True) if keep_completed else None
        if folder is not None:
            log.info("benchmark %s: %s %s is complete", checkpoint.label, item.testset, item.split)
            if folder.name not in [each.id for each in record.benchmarks]:
                record.add_benchmark(run, read_result(folder).summary(folder, checkpoint.label))
            folders.append(folder)
            continue
        name = re.sub(r"[:/]", "-", f"{checkpoint.label}-{item.testset}-{item.split}")
        begun = None if options.fresh else _folder_of(run, request.key, completed=False)
        folder = begun or run.new_benchmark(name)
        folders.append(folder)
        log.info("benchmark %s: %s %s", checkpoint.label, item.testset, item.split)
        try:
            result = evaluate(request, partial(connect_to, checkpoint, folder), folder, options)
        except OrchestratorError:
            if not has_result(folder):  # it failed before it began
                shutil.rmtree(folder, ignore_errors=True)
            raise
        record.add_benchmark(run, result.summary(folder, checkpoint.label))
    return folders


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


def _folder_of(run: RunDir, key: str, *, completed: bool) -> Path | None:
    """The newest benchmark of a request that was completed, or of one that was cut short and that nobody works on."""
    for folder in sorted(run.benchmarks.glob("*"), reverse=True):
        try:
            result = read_result(folder) if has_result(folder) else None
        except PrerequisiteError as error:  # nobody's to go on with
            log.warning("%s", error.message)
            continue
        if result is not None and result.request.get("key") == key:
            is_completed = result.status == "complete" and bool(result.scores)
            if completed == is_completed and (completed or not is_locked(folder)):
                return folder
    return None


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
        endpoint = connect(spec.serve.url, session.api_key, spec.serve.model_name)
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
