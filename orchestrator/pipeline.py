"""The order of the stages: the one module that knows it.

    spec -> check -> inputs and facts -> run folder -> train -> serve -> evaluate -> record

Covered: launch, rerun, going on with a run, benchmark of any target, export; what each does to the record, on every
way out.
Not covered: printing (cli.py). Progress and warnings go to the log "orchestrator".
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.check import check_model
from orchestrator.client import Endpoint
from orchestrator.datasets import write_training_file
from orchestrator.diff import defaults_json
from orchestrator.errors import Interrupted, OrchestratorError, SpecError
from orchestrator.evaluate import evaluate
from orchestrator.export import export
from orchestrator.facts import complete_facts
from orchestrator.family import start_ticks
from orchestrator.finished import summary_of, whole_benchmark
from orchestrator.locks import devices_of, held
from orchestrator.plan import Plan, Session, heed, plan_run, render_files
from orchestrator.record import RunRecord, locked, now
from orchestrator.render import Checkpoint, spec_yaml, train_arguments, train_environment
from orchestrator.repeat import Repeat, drift_from, say_drift
from orchestrator.resume import begin, end_left_over, file_sha256, heed_changes, kept_training
from orchestrator.rundir import RunDir, atomic_write
from orchestrator.serve import ServePlan, api_argv, api_environment, free_port, serve
from orchestrator.serving import connect, model_name, serving_devices
from orchestrator.spec import BenchmarkSpec, ComputeSpec, ModelSpec, RunSpec, ServeSpec, spec_sha256
from orchestrator.target import Target, base_checkpoint, run_checkpoints
from orchestrator.train import TRAIN_ARGV, train
from orchestrator.trainer_log import close_torn_line

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class Origin:
    """Where a run's spec comes from; kept in its record."""

    spec_file: str | None = None
    overrides: Sequence[str] = ()
    rerun_of: str | None = None
    drift: Sequence[str] = ()


@dataclass(frozen=True)
class How:
    """How a run is carried out."""

    with_benchmarks: bool = True
    exclusive: bool = True
    """Whether its devices are held, so that no other launch gets them."""
    wait: bool = False
    """Whether it waits for its devices."""
    checkpoint: str | None = None
    """checkpoint-N to go on from; None: the newest whole one."""


def launch(session: Session, plan: Plan, origin: Origin, how: How = How()) -> RunDir:
    """Run what a plan says, in a new run folder, whose record tells how it went, however it ends."""
    run = new_run(session, plan, origin, how)
    carry_out(session, run, how, plan)
    return run


def new_run(session: Session, plan: Plan, origin: Origin, how: How) -> RunDir:
    """A new run folder with all that carry_out needs. The calling process owns it.

    Raises:
        PrerequisiteError: its devices are in use, and it would not wait.
    """
    spec = plan.spec
    if how.exclusive and not how.wait:
        with held(_devices(spec, how), None):
            pass
    run = session.workspace.new_run(spec.name, datetime.now())
    atomic_write(run.spec, spec_yaml(spec, plan.found))
    record = RunRecord(
        id=run.id,
        name=spec.name,
        created_at=now(),
        process_start_ticks=start_ticks(os.getpid()),
        spec_file=origin.spec_file,
        spec_sha256=spec_sha256(spec),
        overrides=list(origin.overrides),
        rerun_of=origin.rerun_of,
        drift=list(origin.drift),
        with_benchmarks=how.with_benchmarks,
        seed=spec.seed,
        facts=plan.facts,
    )
    record.save(run)  # last: with it the folder is a run
    log.info("run %s", run.id)
    return run


def carry_out(session: Session, run: RunDir, how: How, plan: Plan | None = None) -> None:
    """Do what is left to do of a run, as its owner. What is whole already is not done again.

    Args:
        session: the workspace and its tools.
        run: its folder, new or of a run that ended before it was done.
        how: what of it, and from where.
        plan: what its spec.yaml says, where that was just read.

    Raises:
        PrerequisiteError: another process owns the run, or its devices; or what it was made with has changed.
    """
    record = RunRecord.load(run)
    record.take_over(run)
    with _recorded(run, record):
        end_left_over(run)
        plan = plan or plan_run(session, session.load_spec(run.spec))
        spec = plan.spec
        changes = heed_changes(run, record, spec, plan.facts)
        for line in changes:
            log.warning("since the run began: %s", line)
        if changes:
            record.note_attempt(run, drift=changes)
        with held(_devices(spec, how), run, on_wait=_waiting(run, record) if how.wait else None) as locks:
            record.update(run, status="preparing", waits_for=None)
            repeat = _repeat(session, record, spec)
            if spec.train is not None:
                _train(session, plan, run, record, how.checkpoint, repeat, locks)
            if how.with_benchmarks and spec.benchmark:
                _run_benchmarks(session, plan, run, record)
            if repeat is not None:
                repeat.scored(record.benchmarks)
            record.end(run, "done" if how.with_benchmarks or spec.train is None else "trained")


def plan_rerun(session: Session, past: RunDir, overrides: Sequence[str], *, strict: bool) -> tuple[Plan, Origin]:
    """What would run a past run's saved spec again; what differs now is said.

    Raises:
        PrerequisiteError: strict, and data or model differ.
    """
    plan = plan_run(session, session.load_spec(past.spec, overrides))
    found = drift_from(session, past, plan.spec, plan.facts, overrides)
    say_drift(past, found, strict=strict)
    return plan, Origin(str(past.spec), overrides, past.id, [each.line() for each in found])


def benchmark(session: Session, target: Target, items: Sequence[BenchmarkSpec], settings: ServeSpec) -> list[Path]:
    """Benchmark a target; returns the benchmarks' folders.

    A run's benchmarks go into its own folder; any other target gets a run folder of its own, without training.

    Args:
        session: the workspace and its tools.
        target: what is benchmarked.
        items: test sets; none: those of the run's spec.
        settings: how it is served, or the URL of a server that runs.
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
        run = launch(session, plan, Origin(), How(exclusive=False))
        return sorted(run.benchmarks.iterdir())
    record = RunRecord.load(target.run)
    return _benchmark(session, plan, target.run, record, target.checkpoint, items)


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


def _repeat(session: Session, record: RunRecord, spec: RunSpec) -> Repeat | None:
    """The comparison with the run that this one repeats, where that is still there."""
    past = session.workspace.lookup_run(record.rerun_of) if record.rerun_of else None
    return None if past is None else Repeat(session, past, spec, record)


@contextmanager
def _recorded(run: RunDir, record: RunRecord) -> Iterator[None]:
    """Whatever ends the block is in the record before it goes on its way."""
    try:
        yield
    except BaseException as error:
        if record.is_active():  # else a signal came just after it had said how it ended
            _end(run, record, error)
        raise


def _end(run: RunDir, record: RunRecord, error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | Interrupted):
        record.end(run, "stopped", str(error) or "Ctrl-C")
    elif isinstance(error, OrchestratorError):
        record.end(run, "failed", error.message)
    else:
        record.end(run, "failed", f"{type(error).__name__}: {error}")


def _waiting(run: RunDir, record: RunRecord) -> Callable[[str], None]:
    def on_wait(what: str) -> None:
        log.info("waiting for %s; Ctrl-C gives it up", what)
        record.update(run, waits_for=what)

    return on_wait


def _prepare_training(session: Session, plan: Plan, run: RunDir) -> None:
    spec = plan.spec
    if spec.dataset is None:
        raise SpecError("there is no dataset to train on")
    run.training_file.parent.mkdir(exist_ok=True)
    text = plan.texts[spec.dataset, "train"]
    write_training_file(text, plan.datasets[spec.dataset].entry.instruction, run.training_file)
    if text.blank_pairs:
        log.info("%s: %d blank pairs dropped, %d left", spec.dataset, text.blank_pairs, len(text.sources))
    for name, content in render_files(session, spec).items():
        atomic_write(run.path / name, content)
    arguments = session.arguments()
    if arguments is not None:
        atomic_write(run.defaults, defaults_json(arguments))


def _train(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    label: str | None,
    repeat: Repeat | None,
    locks: Sequence[int],
) -> None:
    spec = plan.spec
    if (training := kept_training(run, record, label)) is not None:
        log.info("the training is whole: %d of %d steps", training.steps, training.total_steps)
        record.update(run, status="trained", training=training)
        return
    start = begin(run, spec, record, plan.facts, label)
    if record.training_file_sha256 is None or record.training_file_sha256 != file_sha256(run.training_file):
        _prepare_training(session, plan, run)
        record.update(run, training_file_sha256=file_sha256(run.training_file))
    if spec.model is not None and len(record.attempts) > 1:
        given = train_arguments(spec, base_checkpoint(spec.model, session.workspace.root))
        resumed = {} if start.path is None else {"resume_from_checkpoint": start.path}
        atomic_write(run.train_yaml, session.renderer.train_yaml({**given, **resumed}))
    installation, environment = session.llamafactory(), train_environment(spec)
    record.note_attempt(
        run, from_checkpoint=start.label, from_step=start.step, log_start_bytes=close_torn_line(run.trainer_log)
    )
    record.update(
        run,
        status="running",
        commands={**record.commands, "train": [str(installation.cli), *TRAIN_ARGV]},
        environment={**record.environment, "train": environment},
    )
    log.info("training with %s; its output: %s", installation.cli, run.train_log)
    on_event = repeat.on_event if repeat else None
    training = train(run, installation, environment, record.resumed_at(), on_event=on_event, held=locks)
    facts = complete_facts(record.facts, spec, session.workspace.root)
    verdict = repeat.trained(training) if repeat else None
    said = f"{verdict.verdict}: {verdict.message}" if verdict else None
    record.update(run, status="trained", training=training, facts=facts, verdict=said)


def _run_benchmarks(session: Session, plan: Plan, run: RunDir, record: RunRecord) -> None:
    """The benchmarks of the spec, but those that are whole."""
    record.update(run, status="benchmarking")
    for checkpoint in _checkpoints_to_benchmark(session, plan.spec, run):
        items = [item for item in plan.spec.benchmark if checkpoint.label != "base" or _wants_base(plan.spec, item)]
        if len(record.attempts) > 1:
            items = [item for item in items if not _is_whole(session, plan, run, record, checkpoint, item)]
        _benchmark(session, plan, run, record, checkpoint, items)


def _is_whole(
    session: Session, plan: Plan, run: RunDir, record: RunRecord, checkpoint: Checkpoint, item: BenchmarkSpec
) -> bool:
    """Whether a benchmark was done before; one that did not come to stand in the record is put there."""
    name = model_name(f"{run.id}@{checkpoint.label}", checkpoint, session.workspace.root) if plan.spec.model else None
    found = whole_benchmark(run, item, plan.datasets[item.testset], plan.texts[item.testset, item.split], name)
    if found is None:
        return False
    folder, result = found
    log.info("benchmark %s: %s %s is whole", checkpoint.label, item.testset, item.split)
    if folder.name not in [each.id for each in record.benchmarks]:
        record.add_benchmark(run, summary_of(folder, checkpoint.label, item, result))
    return True


def _checkpoints_to_benchmark(session: Session, spec: RunSpec, run: RunDir) -> list[Checkpoint]:
    if spec.model is None:  # a server that runs already
        return [Checkpoint("server", ModelSpec(name_or_path=spec.serve.url or "?"))]
    available = run_checkpoints(run, spec, session.workspace)
    if spec.train is None:
        return [available["base"]]
    wanted = ["base"] if any(item.base_model for item in spec.benchmark) else []
    return [available[label] for label in [*wanted, "output"]]


def _devices(spec: RunSpec, how: How) -> list[str]:
    """The devices that the run uses, or none where others may have them too."""
    if not how.exclusive:
        return []
    named = [] if spec.train is None else [spec.compute.devices]
    served = how.with_benchmarks and spec.benchmark and spec.serve.url is None
    return devices_of([*named, *([serving_devices(spec.serve, spec)] if served else [])])


def _wants_base(spec: RunSpec, item: BenchmarkSpec) -> bool:
    return item.base_model or spec.train is None


def _benchmark(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    checkpoint: Checkpoint,
    items: Sequence[BenchmarkSpec],
) -> list[Path]:
    """Serve a checkpoint once and put all test sets to it."""
    folders = [run.new_benchmark(f"{checkpoint.label}-{item.testset}-{item.split}") for item in items]
    if not folders:
        return []
    with _endpoint(session, plan.spec, run, record, checkpoint, folders[0]) as endpoint:
        for item, folder in zip(items, folders, strict=True):
            log.info("benchmark %s: %s %s", checkpoint.label, item.testset, item.split)
            dataset = plan.datasets[item.testset]
            text = plan.texts[item.testset, item.split]
            result = evaluate(endpoint, dataset, text, item, folder, target=f"{run.id}@{checkpoint.label}")
            record.add_benchmark(run, summary_of(folder, checkpoint.label, item, result))
    return folders


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
        model_name=model_name(f"{run.id}@{checkpoint.label}", checkpoint, session.workspace.root),
        api_yaml=folder / "api.yaml",
        log=folder / "api.log",
        port=spec.serve.port or free_port(spec.serve.host),
        devices=serving_devices(spec.serve, spec),
        run=run.path if record.is_active() and record.pid == os.getpid() else None,
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


def _as_name(text: str) -> str:
    """Any text as a spec's name."""
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in text)
    return name.lstrip("._-")[:64] or "target"
