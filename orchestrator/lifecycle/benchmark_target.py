"""What is done with a target: a benchmark, an export."""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from orchestrator.benchmark.evaluate import EvalOptions
from orchestrator.benchmark.run import BenchmarkJob
from orchestrator.data.testset import resolve_instruction
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import expanded, lock
from orchestrator.lifecycle.new_run import Provenance, RunOptions, make_run, new_run
from orchestrator.lifecycle.pipeline import carry_out, recorded
from orchestrator.lifecycle.resume import take_up
from orchestrator.planning.check import check_model
from orchestrator.planning.plan import plan_run, raise_or_log, resolve_model
from orchestrator.planning.session import Session
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Request
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import current
from orchestrator.serving.llamafactory import export
from orchestrator.serving.target import Target
from orchestrator.specs.compute_spec import ComputeSpec
from orchestrator.specs.render import Checkpoint
from orchestrator.specs.spec import BenchmarkSpec, ExportSpec, RunSpec, ServeSpec, spec_sha256

log = logging.getLogger("orchestrator")


def benchmark(
    session: Session, target: Target, items: Sequence[BenchmarkSpec], settings: ServeSpec, options: EvalOptions
) -> list[Path]:
    """Benchmark a target, on the test sets of its spec where `items` is empty; returns the benchmarks' folders.

    Those of a run go into its own folder, of others into a run folder without training. What was cut short continues.
    """
    if not items and target.spec is not None:
        items = target.spec.benchmark
    if not items:
        raise SpecError(f"which test set? {target.name} has no benchmark in its spec", "give one: --testset NAME")
    trained_on = target.spec.datasets if target.spec else []
    items = [resolve_instruction(item, session.dataset_folders, trained_on) for item in items]
    model = target.checkpoint.model if target.checkpoint else None
    name = re.sub(r"[^A-Za-z0-9._-]", "-", target.name).lstrip("._-")[:64] or "target"
    compute = target.spec.compute if target.spec else ComputeSpec()
    compute = compute.model_copy(update={"slurm": None})  # asked for here, it is done here
    spec = RunSpec(name=name, model=model, serve=settings, benchmark=list(items), compute=compute)
    plan = plan_run(session, spec)
    if target.run is None or target.checkpoint is None:
        own, request = RunOptions(exclusive=False, evaluation=options), Request()
        if options.fresh or (run := _unfinished(session, plan.spec)) is None:
            owned = new_run(session, plan, Provenance(), request, exclusive=False)
        else:
            log.info("run %s is continued", run.id)
            owned = take_up(run, request)
        carry_out(session, owned, own, plan)
        return [owned.run.benchmarks / item.id for item in RunRecord.load(owned.run).benchmarks]
    job = BenchmarkJob(session, plan, target.run, RunRecord.load(target.run), options)
    with job.servers([target.checkpoint]) as connect_to:
        folders = job.benchmark(target.checkpoint, items, connect_to)
    job.score_by_comet(list(zip(items, folders, strict=True)))
    return folders


def _unfinished(session: Session, spec: RunSpec) -> RunDir | None:
    """The newest run of the same benchmarks, of a target that belongs to no run, if it did not come to its end."""
    for run in reversed(session.workspace.all_runs()):
        with suppress(PrerequisiteError):  # damaged
            record = current(run)
            if record.spec_sha256 == spec_sha256(spec) and run.benchmarks.is_dir():
                is_incomplete = any(item.status == "incomplete" for item in record.benchmarks)
                return run if is_incomplete or record.status in ("failed", "stopped", "interrupted") else None
    return None


def export_target(session: Session, target: Target, to: Path | None) -> Path:
    """Write a target as a full model folder, an adapter merged: export/ in the run folder by default.

    The model of a spec that trains nothing gets a run folder of its own, for the record of it.
    """
    if target.checkpoint is None or target.spec is None:
        raise SpecError(f"{target.name} belongs to no run: export takes a run, RUN@checkpoint-N, or a spec file")
    model, settings = target.checkpoint.model, target.spec.export
    if target.run is not None and model.adapter_name_or_path is None and not settings.extra_arguments():
        raise SpecError(f"{target.name} is a full model already: {model.name_or_path}")
    if to is None and settings.export_dir is not None:
        to = session.workspace.root / expanded(settings.export_dir)
    if target.run is not None:
        raise_or_log(check_model(session, model))
        return _export(session, target.run, RunRecord.load(target.run), target.checkpoint, settings, to)
    plan = plan_run(session, target.spec)
    owned = make_run(session, plan, Provenance(), Request(with_benchmarks=False))
    run, record = owned.run, RunRecord.load(owned.run)
    log.info("run %s", run.id)
    record.begin_attempt(run)
    with owned, recorded(run, record):
        resolved = replace(target.checkpoint, model=resolve_model(session, model)[0])
        folder = _export(session, run, record, resolved, settings, to)
        record.end(run, "done")
    return folder


def _export(
    session: Session, run: RunDir, record: RunRecord, checkpoint: Checkpoint, settings: ExportSpec, to: Path | None
) -> Path:
    record.add_command(run, "export", [str(session.llamafactory().cli), "export", run.export_yaml.name])
    with lock(run.path / ".export.lock"):  # they share export.yaml
        return export(session, run, checkpoint, settings, to or run.export)
