"""The order of the stages: the one module that knows it.

    spec -> check -> inputs and facts -> run folder -> train -> serve -> evaluate -> record

Covered: launch, rerun, benchmark of any target, export; what each does to the record, on every way out.
Not covered: printing (cli.py). Progress and warnings go to the log "orchestrator".
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache as once
from pathlib import Path

from orchestrator.check import check_model
from orchestrator.client import Endpoint, list_models
from orchestrator.datasets import write_training_file
from orchestrator.diff import changed_defaults, defaults_json
from orchestrator.errors import Interrupted, OrchestratorError, PrerequisiteError, SpecError
from orchestrator.evaluate import Asking, BenchmarkResult, evaluate
from orchestrator.export import export
from orchestrator.facts import compare_losses, complete_facts, drift
from orchestrator.identity import Identity, identity_of
from orchestrator.model_files import adapter_sha256, locate_model, model_sha256
from orchestrator.plan import Plan, Session, heed, plan_run, render_files, resolve_model, run_side, spec_side
from orchestrator.process import Child
from orchestrator.question import ask_about, folder_for
from orchestrator.record import BenchmarkSummary, RunRecord, locked, now
from orchestrator.render import Checkpoint, spec_yaml, train_environment
from orchestrator.rundir import RunDir, atomic_write
from orchestrator.serve import ServePlan, api_argv, api_environment, free_port, new_api_key, serve
from orchestrator.spec import BenchmarkSpec, ComputeSpec, ModelSpec, RunSpec, ServeSpec, load_spec, spec_sha256
from orchestrator.target import Target, run_checkpoints
from orchestrator.train import TRAIN_ARGV, train

log = logging.getLogger("orchestrator")

ASKING = Asking()
"""As a benchmark goes about it unless told otherwise."""


@dataclass(frozen=True)
class Origin:
    """Where a run's spec comes from; kept in its record."""

    spec_file: str | None = None
    overrides: Sequence[str] = ()
    rerun_of: str | None = None
    drift: Sequence[str] = ()


def launch(
    session: Session, plan: Plan, origin: Origin, *, with_benchmarks: bool = True, how: Asking = ASKING
) -> RunDir:
    """Run what a plan says, in a new run folder, whose record tells how it went, however it ends."""
    spec = plan.spec
    run = session.workspace.new_run(spec.name, datetime.now())
    record = RunRecord(
        id=run.id,
        name=spec.name,
        created_at=now(),
        spec_file=origin.spec_file,
        spec_sha256=spec_sha256(spec),
        overrides=list(origin.overrides),
        rerun_of=origin.rerun_of,
        drift=list(origin.drift),
        seed=spec.seed,
        facts=plan.facts,
    )
    record.save(run)
    log.info("run %s", run.id)
    with _recorded(run, record):
        record.update(run, status="preparing")
        atomic_write(run.spec, spec_yaml(spec, plan.found))
        if spec.train is not None:
            _prepare_training(session, plan, run)
            _train(session, spec, run, record)
        if with_benchmarks and spec.benchmark:
            record.update(run, status="benchmarking")
            for checkpoint in _checkpoints_to_benchmark(session, spec, run):
                items = [item for item in spec.benchmark if checkpoint.label != "base" or _wants_base(spec, item)]
                _benchmark(session, plan, run, record, checkpoint, items, how)
        record.update(run, status="done" if with_benchmarks or spec.train is None else "trained", ended_at=now())
    return run


def rerun(session: Session, past: RunDir, overrides: Sequence[str], *, strict: bool, with_benchmarks: bool) -> RunDir:
    """Run a past run's saved spec again under a new id; what differs now is said first.

    Raises:
        PrerequisiteError: strict, and something differs.
    """
    then = RunRecord.load(past)
    plan = plan_run(session, session.load_spec(past.spec, overrides))
    lines = drift(load_spec(past.spec), then.facts, plan.spec, plan.facts)
    lines += [
        f"default of {each.path}: {each.one} then, {each.other} now"
        for each in changed_defaults(run_side(session, past), spec_side(session, "now", plan.spec))
    ]
    for line in lines:
        log.warning("differs from %s: %s", past.id, line)
    if not lines:
        log.info("nothing differs from %s: same spec, data, model, versions and commit", past.id)
    elif strict:
        raise PrerequisiteError(
            f"{len(lines)} thing{'s differ' if len(lines) > 1 else ' differs'} from {past.id}: {'; '.join(lines)}",
            "without --strict the run starts all the same, and its record says what differs",
        )
    origin = Origin(str(past.spec), overrides, past.id, lines)
    # Asked anew: the same adapter would find its answers in the cache, and nothing would have been repeated.
    run = launch(session, plan, origin, with_benchmarks=with_benchmarks, how=Asking(fresh=True))
    now_trained = RunRecord.load(run).training
    if then.training is not None and now_trained is not None:
        log.info("%s: %s", past.id, compare_losses(then.training.logged_losses, now_trained.logged_losses))
    return run


def benchmark(
    session: Session, target: Target, items: Sequence[BenchmarkSpec], settings: ServeSpec, how: Asking = ASKING
) -> list[Path]:
    """Benchmark a target; returns the benchmarks' folders. One that was cut short goes on where it was.

    A run's benchmarks go into its own folder; any other target gets a run folder of its own, without training.

    Args:
        session: the workspace and its tools.
        target: what is benchmarked.
        items: test sets; none: those of the run's spec.
        settings: how it is served, or the URL of a server that runs.
        how: whether answers of before are used, and whether a part is scored.
    """
    if not items and target.spec is not None:
        items = target.spec.benchmark
    if not items:
        raise SpecError(f"which test set? {target.name} has no benchmark in its spec", "give one: --testset NAME")
    model = target.checkpoint.model if target.checkpoint else None
    compute = target.spec.compute if target.spec else ComputeSpec()
    spec = RunSpec(name=_as_name(target.name), model=model, serve=settings, benchmark=list(items), compute=compute)
    plan = plan_run(session, spec)
    if target.run is None or target.checkpoint is None:
        run = None if how.fresh else _cut_short(session, plan.spec)
        run = launch(session, plan, Origin(), how=how) if run is None else _go_on(session, plan, run, how)
        return sorted(run.benchmarks.iterdir())
    record = RunRecord.load(target.run)
    return _benchmark(session, plan, target.run, record, target.checkpoint, items, how)


def serve_plan(session: Session, target: Target, settings: ServeSpec, *, port: int, folder: Path) -> ServePlan:
    """How a target is served: for `serve` and `chat`, files in the folder given."""
    if target.checkpoint is None:
        raise SpecError(f"{target.url} is served already", f"orchestrator chat {target.url}")
    heed(check_model(target.checkpoint.model, session.workspace.root, session.installation))
    model, _ = resolve_model(session, target.checkpoint.model)
    return ServePlan(
        checkpoint=replace(target.checkpoint, model=model),
        settings=settings,
        model_name=_model_name(target.name, target.checkpoint, session.workspace.root),
        api_yaml=folder / "api.yaml",
        log=folder / "api.log",
        port=port,
        api_key=session.api_key or new_api_key(),
        devices=_devices(settings, target.spec),
    )


def export_run(session: Session, target: Target, to: Path | None) -> Path:
    """Merge a run's checkpoint into a full model folder: export/ in the run folder, unless told otherwise."""
    if target.run is None or target.checkpoint is None:
        raise SpecError(f"{target.name} belongs to no run: export takes a run, or RUN@checkpoint-N")
    if target.checkpoint.model.adapter_name_or_path is None:
        raise SpecError(f"{target.name} is a full model already: {target.checkpoint.model.name_or_path}")
    heed(check_model(target.checkpoint.model, session.workspace.root, session.installation))
    run = target.run
    record = RunRecord.load(run)
    installation = session.llamafactory()
    argv = [str(installation.cli), "export", run.export_yaml.name]
    record.update(run, commands={**record.commands, "export": argv})
    with locked(run, "export"):  # they share export.yaml
        return export(run, target.checkpoint, to or run.export, installation, session.renderer)


def connect(session: Session, settings: ServeSpec) -> Endpoint:
    """A server that runs already, at settings.url.

    Raises:
        PrerequisiteError: it does not answer, or lists several models and none was named.
    """
    url = settings.url or ""
    served = list_models(Endpoint(url, session.api_key, ""))
    if served is None:
        raise PrerequisiteError(f"no server answers at {url}", "start it, or correct the address (most end in /v1)")
    if settings.model_name is None and len(served) != 1:
        raise PrerequisiteError(
            f"{url} serves {len(served)} models: {', '.join(served[:8])}", "name one: --model-name NAME"
        )
    return Endpoint(url, session.api_key, settings.model_name or served[0])


@contextmanager
def _recorded(run: RunDir, record: RunRecord) -> Iterator[None]:
    """Whatever ends the block is in the record before it goes on its way."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        record.update(run, status="stopped", error=str(error) or "Ctrl-C", ended_at=now())
        raise
    except OrchestratorError as error:
        record.update(run, status="failed", error=error.message, ended_at=now())
        raise
    except BaseException as error:
        record.update(run, status="failed", error=f"{type(error).__name__}: {error}", ended_at=now())
        raise


def _prepare_training(session: Session, plan: Plan, run: RunDir) -> None:
    spec = plan.spec
    if spec.dataset is None:
        raise SpecError("there is no dataset to train on")
    run.training_file.parent.mkdir()
    text = plan.texts[spec.dataset, "train"]
    write_training_file(text, plan.datasets[spec.dataset].entry.instruction, run.training_file)
    if text.blank_pairs:
        log.info("%s: %d blank pairs dropped, %d left", spec.dataset, text.blank_pairs, len(text.sources))
    for name, content in render_files(session, spec).items():
        atomic_write(run.path / name, content)
    arguments = session.arguments()
    if arguments is not None:
        atomic_write(run.defaults, defaults_json(arguments))


def _train(session: Session, spec: RunSpec, run: RunDir, record: RunRecord) -> None:
    installation, environment = session.llamafactory(), train_environment(spec)

    def started(child: Child) -> None:
        log.info("training with %s; its output: %s", installation.cli, run.train_log)

    record.update(
        run,
        status="running",
        commands={**record.commands, "train": [str(installation.cli), *TRAIN_ARGV]},
        environment={**record.environment, "train": environment},
    )
    training = train(run, installation, environment, started)
    facts = complete_facts(record.facts, spec, session.workspace.root)
    record.update(run, status="trained", training=training, facts=facts)


def _checkpoints_to_benchmark(session: Session, spec: RunSpec, run: RunDir) -> list[Checkpoint]:
    if spec.model is None:  # a server that runs already
        return [Checkpoint("server", ModelSpec(name_or_path=spec.serve.url or "?"))]
    available = run_checkpoints(run, spec, session.workspace)
    if spec.train is None:
        return [available["base"]]
    wanted = ["base"] if any(item.base_model for item in spec.benchmark) else []
    return [available[label] for label in [*wanted, "output"]]


def _wants_base(spec: RunSpec, item: BenchmarkSpec) -> bool:
    return item.base_model or spec.train is None


def _benchmark(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    checkpoint: Checkpoint,
    items: Sequence[BenchmarkSpec],
    how: Asking,
) -> list[Path]:
    """Put all test sets to a checkpoint, which is served once, and only if a sentence has not been answered yet."""
    serve_spec, root = plan.spec.serve, session.workspace.root
    if serve_spec.url is not None:
        who, server = Identity(), f"{serve_spec.url} {serve_spec.model_name or ''}".strip()
    else:
        devices = _devices(serve_spec, plan.spec)
        who, server = identity_of(checkpoint, serve_spec, root, plan.facts, devices), ""
    questions = [
        ask_about(
            f"{run.id}@{checkpoint.label}",
            plan.datasets[item.testset],
            plan.texts[item.testset, item.split],
            item,
            identity=who,
            server=server,
            at_once=serve_spec.max_concurrent if serve_spec.url is None else None,
        )
        for item in items
    ]
    folders: list[Path] = []
    for item, question in zip(items, questions, strict=True):
        name = f"{checkpoint.label}-{item.testset}-{item.split}"
        folders.append(folder_for(run, name, question.key, fresh=how.fresh, taken=folders))
    with ExitStack() as stack:
        connect_once = once(
            lambda: stack.enter_context(_endpoint(session, plan.spec, run, record, checkpoint, folders[0]))
        )
        for item, question, folder in zip(items, questions, folders, strict=True):
            log.info("benchmark %s: %s %s", checkpoint.label, item.testset, item.split)
            result = evaluate(question, connect_once, folder, how)
            record.add_benchmark(run, _summary(folder, checkpoint.label, item, result))
    return folders


def _cut_short(session: Session, spec: RunSpec) -> RunDir | None:
    """The newest run of the same benchmarks, of a target that belongs to no run, that did not come to its end."""
    for run in reversed(session.workspace.all_runs()):
        try:
            record = RunRecord.load(run)
        except PrerequisiteError:  # damaged: nothing to go on with
            continue
        ended_early = record.status in ("failed", "stopped", "interrupted")
        if record.spec_sha256 == spec_sha256(spec) and run.benchmarks.is_dir():
            return run if ended_early or any(item.status == "incomplete" for item in record.benchmarks) else None
    return None


def _go_on(session: Session, plan: Plan, run: RunDir, how: Asking) -> RunDir:
    """The rest of a run's benchmarks, by this process."""
    record = RunRecord.load(run)
    ours = RunRecord(id=run.id, name="", created_at=now(), spec_sha256="", seed=0)
    owner = {name: getattr(ours, name) for name in ("host", "boot_id", "pid", "process_started_at")}
    log.info("run %s goes on", run.id)
    with _recorded(run, record):
        record.update(run, status="benchmarking", error=None, ended_at=None, **owner)
        for checkpoint in _checkpoints_to_benchmark(session, plan.spec, run):
            _benchmark(session, plan, run, record, checkpoint, plan.spec.benchmark, how)
        record.update(run, status="done", ended_at=now())
    return run


@contextmanager
def _endpoint(
    session: Session, spec: RunSpec, run: RunDir, record: RunRecord, checkpoint: Checkpoint, folder: Path
) -> Iterator[Endpoint]:
    """The server of the spec that runs already, or one of ours for the length of the block."""
    if spec.serve.url is not None:
        yield connect(session, spec.serve)
        return
    installation = session.llamafactory()
    plan = ServePlan(
        checkpoint=checkpoint,
        settings=spec.serve,
        model_name=_model_name(f"{run.id}@{checkpoint.label}", checkpoint, session.workspace.root),
        api_yaml=folder / "api.yaml",
        log=folder / "api.log",
        port=spec.serve.port or free_port(spec.serve.host),
        devices=_devices(spec.serve, spec),
    )
    stage = f"api {folder.name}"
    record.update(
        run,
        commands={**record.commands, stage: api_argv(plan, installation)},
        environment={**record.environment, stage: dict(api_environment(plan))},
    )
    log.info("serving %s; its output: %s", plan.model_name, plan.log)
    with serve(plan, installation, session.renderer) as server:
        yield server.endpoint


def _devices(settings: ServeSpec, spec: RunSpec | None) -> str | None:
    return settings.devices if settings.devices is not None or spec is None else spec.compute.devices


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
        faults=result.triage.counts() if result.triage else {},
    )


def _model_name(name: str, checkpoint: Checkpoint, root: Path) -> str:
    """'demo-20261124-101500@output:1a2b3c4d5e6f': run, label, and the hash of what is served."""
    model = checkpoint.model
    if model.adapter_name_or_path is not None and (folder := locate_model(model.adapter_name_or_path, root, None)):
        return f"{name}:{adapter_sha256(folder)[:12]}"
    if folder := locate_model(model.name_or_path, root, model.revision):
        return f"{name}:{model_sha256(folder)[:12]}"
    return f"{name}:hub"


def _as_name(text: str) -> str:
    """Any text as a spec's name."""
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in text)
    return name.lstrip("._-")[:64] or "target"
