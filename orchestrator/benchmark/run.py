"""The order within a benchmark: request -> folder -> a server, if a sentence is left -> scores -> record."""

import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from orchestrator.benchmark.answers import Identity, identify
from orchestrator.benchmark.evaluate import EvalOptions, EvalRequest, evaluate
from orchestrator.benchmark.results import has_result, read_result
from orchestrator.data.datasets import sample_pairs
from orchestrator.errors import OrchestratorError, PrerequisiteError, SpecError, StageError
from orchestrator.files import expanded
from orchestrator.models.hashes import file_sha256
from orchestrator.planning.plan import Plan
from orchestrator.planning.session import Session
from orchestrator.processes.ports import free_port
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import Score
from orchestrator.serving.checkpoints import group_by_server, served, serving_devices
from orchestrator.serving.endpoint import Endpoint, connect
from orchestrator.serving.server import ServePlan, Serving
from orchestrator.serving.target import run_checkpoints
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import ModelSpec
from orchestrator.upstream.comet import comet_segments, find_comet

log = logging.getLogger("orchestrator")

# Gives a server of a checkpoint; a new server's files go into the folder, a benchmark's.
Connect = Callable[[Checkpoint, Path], Endpoint]


def run_benchmarks(session: Session, plan: Plan, run: RunDir, record: RunRecord, options: EvalOptions) -> None:
    """The benchmarks of a run's spec, but those that an earlier attempt completed."""
    record.update(run, status="benchmarking")
    spec, again = plan.spec, len(record.attempts) > 1 and not options.fresh
    if spec.model is None:  # a server that runs already
        checkpoints = [Checkpoint("server", ModelSpec(name_or_path=spec.serve.url or "?"))]
    else:
        available = run_checkpoints(run, spec, session.workspace)
        wants_base = spec.train is None or any(item.base_model for item in spec.benchmark)
        checkpoints = [available[label] for label in ["base"] * wants_base + ["output"] * (spec.train is not None)]
    job = BenchmarkJob(session, plan, run, record, options)
    done: list[tuple[BenchmarkSpec, Path]] = []
    with job.servers(checkpoints) as connect_to:
        for checkpoint in checkpoints:
            items = [item for item in spec.benchmark if checkpoint.label != "base" or item.base_model or not spec.train]
            folders = job.benchmark(checkpoint, items, connect_to, keep_completed=again)
            done += zip(items, folders, strict=True)
    job.score_by_comet(done)


@dataclass(frozen=True)
class BenchmarkJob:
    """Benchmarks that go into one run's folder and record."""

    session: Session
    plan: Plan
    run: RunDir
    record: RunRecord
    options: EvalOptions

    def benchmark(
        self,
        checkpoint: Checkpoint,
        items: Sequence[BenchmarkSpec],
        connect_to: Connect,
        *,
        keep_completed: bool = False,
    ) -> list[Path]:
        """Benchmark a checkpoint on test sets; its server is started only if a sentence has not been answered yet.

        Returns the benchmarks' folders; with keep_completed that of a set which was completed before is left as it is.
        """
        run, record, folders = self.run, self.record, list[Path]()
        for item in items:
            request = self._build_request(checkpoint, item)
            folder = _folder_of(run, request.key, completed=True) if keep_completed else None
            if folder is not None:
                log.info("benchmark %s: %s %s is complete", checkpoint.label, item.testset, item.split)
                if folder.name not in [each.id for each in record.benchmarks]:
                    record.add_benchmark(run, read_result(folder).summary(folder, checkpoint.label))
                folders.append(folder)
                continue
            name = re.sub(r"[:/]", "-", f"{checkpoint.label}-{item.testset}-{item.split}")
            begun = None if self.options.fresh else _folder_of(run, request.key, completed=False)
            folder = begun or run.new_benchmark(name)
            folders.append(folder)
            log.info("benchmark %s: %s %s", checkpoint.label, item.testset, item.split)
            try:
                result = evaluate(request, partial(connect_to, checkpoint, folder), folder, self.options)
            except OrchestratorError:
                if not has_result(folder):  # it failed before it began
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            record.add_benchmark(run, result.summary(folder, checkpoint.label))
        return folders

    @contextmanager
    def servers(self, checkpoints: Sequence[Checkpoint]) -> Iterator[Connect]:
        """For the length of the block, a server of each of some checkpoints, started when one on it is first needed.

        One server after another, each with as many checkpoints as it can hold; what is benchmarked on a checkpoint is
        benchmarked in a row, so that none is loaded twice.
        """
        groups = group_by_server(self.plan.spec.serve, checkpoints)
        with ExitStack() as current:
            running: dict[str, Endpoint] = {}

            def connect_to(checkpoint: Checkpoint, folder: Path) -> Endpoint:
                if checkpoint.label not in running:
                    running.clear()
                    current.close()
                    group = next(group for group in groups if checkpoint in group)
                    running.update(current.enter_context(self._endpoints(group, folder)))
                return running[checkpoint.label]

            yield connect_to

    def score_by_comet(self, done: Sequence[tuple[BenchmarkSpec, Path]]) -> None:
        """COMET's scores of benchmarks whose spec names a model; for when the servers have left the GPU."""
        spec = self.plan.spec
        for item, folder in done:
            if item.comet is not None:
                devices = None if spec.serve.url is not None else serving_devices(spec.serve, spec)
                add_comet(folder, item.comet, self.session.workspace.root, devices)

    def _build_request(self, checkpoint: Checkpoint, item: BenchmarkSpec) -> EvalRequest:
        plan, settings, text = self.plan, self.plan.spec.serve, self.plan.texts[item.testset, item.split]
        identity, server = Identity(), f"{settings.url} {settings.model_name or ''}".strip()
        dataset = plan.datasets[item.testset]
        if item.instruction is not None:
            dataset = replace(dataset, entry=dataset.entry.model_copy(update={"instruction": item.instruction}))
        if settings.url is None:
            devices, server = serving_devices(settings, plan.spec), ""
            identity = identify(self.session, checkpoint, settings, plan.facts, devices)
        return EvalRequest(
            f"{self.run.id}@{checkpoint.label}",
            dataset,
            sample_pairs(text, item.max_samples, item.sample_seed),
            len(text.sources),
            item,
            identity,
            server,
            settings.max_concurrent,
        )

    @contextmanager
    def _endpoints(self, checkpoints: Sequence[Checkpoint], folder: Path) -> Iterator[dict[str, Endpoint]]:
        """By label: the server of the spec that runs already, or one of ours for the length of the block."""
        spec, run, record = self.plan.spec, self.run, self.record
        if spec.serve.url is not None:
            endpoint = connect(spec.serve.url, self.session.api_key, spec.serve.model_name)
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
        with served(self.session, names, serving, note) as server:
            yield {checkpoint.label: server.endpoints[name] for name, checkpoint in names.items()}


def add_comet(folder: Path, model: str, root: Path, devices: str | None) -> None:
    """Score a finished benchmark by a model of COMET, once, for its scores.json and its run's record, if it has a run.

    A model called kiwi or qe takes no references. Source: Rei et al. (2020),
    https://aclanthology.org/2020.emnlp-main.213.
    """
    result, (program, version) = read_result(folder), find_comet()
    if not result.scores:
        raise SpecError(f"{folder} is no benchmark with scores", "name one that is complete")
    model = str(root / expanded(model)) if model.endswith(".ckpt") else model
    path = Path(model)  # of a .ckpt file, which lies in MODEL/checkpoints/, another may be there the next time
    label = f"{path.parent.parent.name}@{file_sha256(path)[:12]}" if model.endswith(".ckpt") else model
    n_refs = 0 if re.search(r"kiwi|\bqe\b", label, re.IGNORECASE) else 1
    signature = f"nrefs:{n_refs}|model:{label}|version:{version}"
    if any(score.signature == signature for score in result.comet):
        return
    segments = comet_segments(folder, program, model, n_refs, devices)
    if len(segments) != result.n_segments or not all(map(math.isfinite, segments)):
        what = f"comet-score gave {len(segments)} numbers, or none that counts, for {result.n_segments} segments"
        raise StageError(what)
    score = Score(metric="comet", score=fmean(segments), signature=signature, n_segments=len(segments))
    result = result.model_copy(update={"comet": [*result.comet, score]})
    result.save(folder)
    run = RunDir(folder.parent.parent)
    record = RunRecord.load(run) if run.record.is_file() else None
    for item in record.benchmarks if record else []:
        if record is not None and item.id == folder.name:
            record.add_benchmark(run, item.model_copy(update={"comet": result.comet}))


def _folder_of(run: RunDir, key: str, *, completed: bool) -> Path | None:
    """The newest benchmark of a request that was completed, or of one that was cut short."""
    for folder in sorted(run.benchmarks.glob("*"), reverse=True):
        try:
            result = read_result(folder) if has_result(folder) else None
        except PrerequisiteError as error:  # nobody's to go on with
            log.warning("%s", error.message)
            continue
        if result is not None and result.request.get("key") == key:
            is_completed = result.status == "complete" and bool(result.scores)
            if completed == is_completed:
                return folder
    return None
