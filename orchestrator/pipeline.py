"""The order of the stages: the one module that knows it.

    spec -> check -> inputs and facts -> run folder -> train -> serve -> evaluate -> record

Covered: launch, rerun, going on with a run, benchmark of any target, export; what each does to the record, on every
way out.
Not covered: printing (cli.py). Progress and warnings go to the log "orchestrator".
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.benchmark.afterwards import score_by_comet
from orchestrator.benchmark.benchmarking import benchmark_checkpoint, run_benchmarks, served_in_turn
from orchestrator.benchmark.curve import Curve
from orchestrator.benchmark.during import benchmarks_beside, choose_after
from orchestrator.benchmark.evaluate import Asking
from orchestrator.benchmark.every_checkpoint import benchmark_every_checkpoint, sets_of
from orchestrator.check import check_model
from orchestrator.data.datasets import evaluated_split, write_training_file
from orchestrator.data.testset import with_instruction
from orchestrator.errors import Interrupted, OrchestratorError, PrerequisiteError, SpecError
from orchestrator.export import export
from orchestrator.models.model_files import weights_sha256
from orchestrator.models.target import Target, base_checkpoint
from orchestrator.plan import Plan, Session, heed, plan_run, render_dataset_info, render_files, resolve_model
from orchestrator.processes.family import start_ticks
from orchestrator.processes.process import Child
from orchestrator.runs.elsewhere import take_along
from orchestrator.runs.facts import complete_facts
from orchestrator.runs.jobs import across_nodes, goes_on_later
from orchestrator.runs.locks import devices_of, held
from orchestrator.runs.metering import Meter
from orchestrator.runs.record import RunRecord, Status, locked, now
from orchestrator.runs.repeat import Repeat, drift_from, say_drift
from orchestrator.runs.resume import begin, end_left_over, heed_changes, kept_training, prepared_sha256
from orchestrator.runs.rundir import RunDir, atomic_write
from orchestrator.runs.storage import storage_problem
from orchestrator.runs.trainer_log import close_torn_line
from orchestrator.runs.worktree import keep_patch
from orchestrator.serving import serving_devices
from orchestrator.specs.compute_spec import ComputeSpec
from orchestrator.specs.diff import defaults_json
from orchestrator.specs.machines import this_machine
from orchestrator.specs.render import Checkpoint, spec_yaml, train_arguments, train_environment
from orchestrator.specs.spec import BenchmarkSpec, ExportSpec, RunSpec, ServeSpec, spec_sha256
from orchestrator.train import TRAIN_ARGV, train
from orchestrator.upstream.compute_check import Placement

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class Origin:
    """Where a run's spec comes from; kept in its record."""

    spec_file: str | None = None
    overrides: Sequence[str] = ()
    rerun_of: str | None = None
    drift: Sequence[str] = ()
    group: str | None = None


@dataclass(frozen=True)
class How:
    """How a run is carried out."""

    with_benchmarks: bool = True
    exclusive: bool = True
    """Whether its devices are held, so that no other launch gets them."""
    wait: bool = False
    """Whether it waits for its devices."""
    job: str = ""
    """The job of Slurm that does it; '': none."""
    checkpoint: str | None = None
    """checkpoint-N to go on from; None: the newest whole one."""
    asking: Asking = field(default_factory=Asking)
    """Whether answers of before are used, and whether a part is scored."""


def launch(session: Session, plan: Plan, origin: Origin, how: How = How()) -> RunDir:
    """Run what a plan says, in a new run folder, whose record tells how it went, however it ends."""
    run = new_run(session, plan, origin, how)
    carry_out(session, run, how, plan)
    return run


def new_run(session: Session, plan: Plan, origin: Origin, how: How) -> RunDir:
    """A new run folder with all that carry_out needs. The calling process owns it.

    Raises:
        PrerequisiteError: its devices are in use, and it would not wait; or the file system can keep no runs.
    """
    spec = plan.spec
    if spec.train is None and not spec.benchmark:
        raise SpecError(f"{spec.name} neither trains nor benchmarks", "serve, chat and export take it")
    if problem := storage_problem(session.workspace.runs):
        raise PrerequisiteError(
            f"runs cannot be kept in {session.workspace.runs}: {problem}",
            "put the workspace on a file system with locks: a local disk, or NFS mounted without nolock",
        )
    if how.exclusive and not how.wait:
        with held(devices_needed(spec, how), None):
            pass
    return _new_folder(session, plan, origin, with_benchmarks=how.with_benchmarks)


def reserve_run(session: Session, plan: Plan) -> RunDir:
    """A new folder with spec.yaml in it; first_record makes a run of it."""
    run = session.workspace.new_run(plan.spec.name, datetime.now())
    atomic_write(run.spec, spec_yaml(plan.spec, plan.found))
    return run


def first_record(
    session: Session, run: RunDir, plan: Plan, origin: Origin, *, with_benchmarks: bool, queued: bool = False
) -> None:
    """Write the record of a folder that has its spec: with it the folder is a run.

    Args:
        session: the workspace and its tools.
        run: the folder.
        plan: what its spec says.
        origin: where that is from.
        with_benchmarks: whether they follow the training.
        queued: whether it waits to be begun by anybody; else the calling process owns it.
    """
    RunRecord(
        id=run.id,
        name=plan.spec.name,
        created_at=now(),
        process_start_ticks=start_ticks(os.getpid()),
        spec_file=origin.spec_file,
        spec_sha256=spec_sha256(plan.spec),
        overrides=list(origin.overrides),
        rerun_of=origin.rerun_of,
        drift=list(origin.drift),
        group=origin.group,
        awaits_turn=queued,
        with_benchmarks=with_benchmarks,
        seed=plan.spec.seed,
        facts=keep_patch(run, session.workspace.root, plan.facts),
    ).save(run)


def _new_folder(session: Session, plan: Plan, origin: Origin, *, with_benchmarks: bool = False) -> RunDir:
    run = reserve_run(session, plan)
    first_record(session, run, plan, origin, with_benchmarks=with_benchmarks)
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
    record.take_over(run, how.job)
    with _recorded(run, record, how.job):
        end_left_over(run)
        plan = plan or plan_run(session, session.load_spec(run.spec))
        spec = plan.spec
        changes = heed_changes(run, record, spec, plan.facts)
        for line in changes:
            log.warning("since the run began: %s", line)
        if changes:
            record.note_attempt(run, drift=changes)
        if how.job and len(record.attempts) == 1:
            record.update(run, facts=plan.facts)  # the machine that submitted it is another
        with held(devices_needed(spec, how), run, on_wait=_waiting(run, record) if how.wait else None) as locks:
            record.update(run, status="preparing", waits_for=None)
            repeat = _repeat(session, record, spec)
            with benchmarks_beside(session, run, spec, locks, wished=how.with_benchmarks) as wait_for_these:
                if spec.train is not None:
                    _train(session, plan, run, record, how, repeat, locks)
                if how.with_benchmarks and spec.benchmark and record.results_elsewhere is None:
                    asking = how.asking if record.rerun_of is None else replace(how.asking, cached=False)
                    with _timed(run, record, "benchmark"):
                        wait_for_these()
                        choose_after(session, run, record, spec, asking)
                        run_benchmarks(session, plan, run, record, asking)
            if repeat is not None:
                record.update(run, changed=repeat.changed())
                repeat.scored(record.benchmarks)
            status: Status = "done" if how.with_benchmarks or spec.train is None else "trained"
            if how.job and record.benchmark_job is not None:
                record.leave_to(run, record.benchmark_job, status, benchmark_job=None)
            else:
                record.end(run, status)


def plan_rerun(
    session: Session, past: RunDir | Path, overrides: Sequence[str], *, strict: bool, full_hash: bool = False
) -> tuple[Plan, Origin]:
    """What would run a past run's saved spec again; what differs now is said.

    Args:
        session: the workspace and its tools.
        past: the run that is repeated; a spec.yaml without a record has nothing to be compared with.
        overrides: --set KEY=VALUE, in order.
        strict: whether other data or another model end it.
        full_hash: whether every byte of the model's weights is hashed, as it is where that was done for the past run.

    Raises:
        PrerequisiteError: strict, and data or model differ.
    """
    file, folder = (past.spec, past.path) if isinstance(past, RunDir) else (past, past.resolve().parent)
    overrides = [*take_along(folder, session.load_spec(file), session), *overrides]
    if not isinstance(past, RunDir):
        log.warning("%s has no record beside it: there is nothing to compare with", past)
        return plan_run(session, session.load_spec(past, overrides), full_hash=full_hash), Origin(str(past), overrides)
    full_hash = full_hash or RunRecord.load(past).facts.model_full_sha256 is not None
    plan = plan_run(session, session.load_spec(past.spec, overrides), full_hash=full_hash)
    found = drift_from(session, past, plan.spec, plan.facts, overrides)
    say_drift(past, found, strict=strict)
    name = past.id if past.path.parent == session.workspace.runs else str(past.path)
    return plan, Origin(str(past.spec), overrides, name, [each.line() for each in found])


def benchmark(
    session: Session, target: Target, items: Sequence[BenchmarkSpec], settings: ServeSpec, how: Asking
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
    trained_on = target.spec.datasets if target.spec else []
    items = [with_instruction(item, session.dataset_folders, trained_on) for item in items]
    items = [item.model_copy(update={"during": False}) for item in items]  # the training is over
    model = target.checkpoint.model if target.checkpoint else None
    compute = target.spec.compute if target.spec else ComputeSpec()
    compute = compute.model_copy(update={"slurm": None})  # asked for here, it is done here
    spec = RunSpec(name=_as_name(target.name), model=model, serve=settings, benchmark=list(items), compute=compute)
    plan = plan_run(session, spec)
    if target.run is None or target.checkpoint is None:
        run = None if how.fresh else _cut_short(session, plan.spec)
        carried = How(exclusive=False, asking=how)
        if run is None:
            run = launch(session, plan, Origin(), carried)
        else:
            log.info("run %s goes on", run.id)
            carry_out(session, run, carried, plan)
        return sorted(run.benchmarks.iterdir())
    record = RunRecord.load(target.run)
    with served_in_turn(session, spec, target.run, record, [target.checkpoint]) as connect_to:
        folders = benchmark_checkpoint(session, plan, target.run, record, target.checkpoint, items, how, connect_to)
    score_by_comet(session, spec, target.run, record, zip(items, folders, strict=True))
    return folders


def benchmark_all(
    session: Session,
    target: Target,
    testset: str | None,
    split: str | None,
    changes: Mapping[str, Any],
    settings: ServeSpec,
    how: Asking,
    *,
    metric: str,
    with_base: bool,
) -> Curve:
    """Every checkpoint of a run on a validation set, and the one that is chosen on the test sets of its spec.

    Args:
        session: the workspace and its tools.
        target: the run.
        testset: the validation set's dataset. None: that of the run's benchmarks.
        split: its split. None: validation.
        changes: fields of the validation set's benchmark.
        settings: how the checkpoints are served.
        how: whether answers of before are used, and whether parts are scored.
        metric: what is chosen by.
        with_base: the model before training too.
    """
    if target.run is None or target.spec is None:
        raise SpecError(f"{target.name} is no run")
    sets = sets_of(session, target.spec, testset, split, changes)
    return benchmark_every_checkpoint(
        session, target.run, target.spec, sets, settings, how, metric=metric, with_base=with_base
    )


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


def export_target(session: Session, target: Target, to: Path | None) -> Path:
    """Write a target as a full model folder, an adapter merged: export/ in the run folder, unless told otherwise.

    The model of a spec that trains nothing gets a run folder of its own, for the record of it.
    """
    if target.checkpoint is None or target.spec is None:
        raise SpecError(f"{target.name} belongs to no run: export takes a run, RUN@checkpoint-N, or a spec file")
    model, settings = target.checkpoint.model, target.spec.export
    if target.run is not None and model.adapter_name_or_path is None and not settings.extra_arguments():
        raise SpecError(f"{target.name} is a full model already: {model.name_or_path}")
    if to is None and settings.export_dir is not None:
        to = session.workspace.root / Path(settings.export_dir).expanduser()
    if target.run is not None:
        heed(check_model(model, session.workspace.root, session.installation))
        return _export(session, target.run, RunRecord.load(target.run), target.checkpoint, settings, to)
    plan = plan_run(session, target.spec)
    run = _new_folder(session, plan, Origin())
    record = RunRecord.load(run)
    record.take_over(run)
    with _recorded(run, record):
        resolved = replace(target.checkpoint, model=resolve_model(session, model)[0])
        folder = _export(session, run, record, resolved, settings, to)
        record.end(run, "done")
    return folder


def _export(
    session: Session, run: RunDir, record: RunRecord, checkpoint: Checkpoint, settings: ExportSpec, to: Path | None
) -> Path:
    installation = session.llamafactory()
    argv = [str(installation.cli), "export", run.export_yaml.name]
    record.add_command(run, "export", argv)
    with locked(run, "export"):  # they share export.yaml
        return export(run, checkpoint, settings, to or run.export, installation, session.renderer)


def _repeat(session: Session, record: RunRecord, spec: RunSpec) -> Repeat | None:
    """The comparison with the run that this one repeats, where that is still there."""
    past = session.workspace.lookup_run(record.rerun_of) if record.rerun_of else None
    return None if past is None else Repeat(session, past, spec, record)


@contextmanager
def _recorded(run: RunDir, record: RunRecord, job: str = "") -> Iterator[None]:
    """Whatever ends the block is in the record before it goes on its way."""
    try:
        yield
    except BaseException as error:
        if record.is_active():  # else a signal came just after it had said how it ended
            _end(run, record, error, job)
        raise


def _end(run: RunDir, record: RunRecord, error: BaseException, job: str) -> None:
    if isinstance(error, KeyboardInterrupt | Interrupted):
        why = goes_on_later(run, record) if job else ""
        if why is not None:
            record.end(run, "stopped", "; ".join(filter(None, [str(error) or "Ctrl-C", why])))
    elif isinstance(error, OrchestratorError):
        record.end(run, "failed", error.message)
    else:
        record.end(run, "failed", f"{type(error).__name__}: {error}")


@contextmanager
def _timed(run: RunDir, record: RunRecord, stage: str) -> Iterator[None]:
    """How long a stage takes, however it ends, in the record of the attempt."""
    began = time.monotonic()
    try:
        yield
    finally:
        taken_s = round(time.monotonic() - began, 3)
        record.note_attempt(run, stages_s={**record.attempts[-1].stages_s, stage: taken_s})


@contextmanager
def _metered(run: RunDir, record: RunRecord, spec: RunSpec) -> Iterator[Meter]:
    """What the training takes of the machine, likewise."""
    with Meter(run, devices_of([spec.compute.devices])) as meter:
        try:
            yield meter
        finally:
            record.note_attempt(run, usage=meter.usage())


def _waiting(run: RunDir, record: RunRecord) -> Callable[[str], None]:
    def on_wait(what: str) -> None:
        log.info("waiting for %s; Ctrl-C gives it up", what)
        record.update(run, waits_for=what)

    return on_wait


def _prepare_training(session: Session, plan: Plan, run: RunDir) -> None:
    spec = plan.spec
    prepared = [(name, name, "train") for name in spec.datasets if name in plan.datasets]
    prepared += [
        (name, called, evaluated_split(plan.datasets[name]))
        for name, called in spec.eval_names.items()
        if name in plan.datasets
    ]
    for name, called, split in prepared:
        text = plan.texts[name, split]
        write_training_file(text, plan.datasets[name].entry.instruction, run.training_file(called))
        if text.blank_pairs:
            log.info("%s: %d blank pairs dropped, %d left", text.origin, text.blank_pairs, len(text.sources))
    for name, content in {**render_files(session, spec), **render_dataset_info(session, spec)}.items():
        atomic_write(run.path / name, content)
    arguments = session.arguments()
    if arguments is not None:
        atomic_write(run.defaults, defaults_json(arguments))


def _train(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    how: How,
    repeat: Repeat | None,
    locks: Sequence[int],
) -> None:
    spec, label = plan.spec, how.checkpoint
    if (training := kept_training(run, record, label)) is not None:
        log.info("the training is whole: %d of %d steps", training.steps, training.total_steps)
        training.weights_sha256 = weights_sha256(run.output)
        record.update(run, status="trained", training=training)
        return
    start = begin(run, spec, record, plan.facts, label)
    if record.prepared_sha256 is None or record.prepared_sha256 != prepared_sha256(run):
        with _timed(run, record, "prepare"):
            _prepare_training(session, plan, run)
        record.update(run, prepared_sha256=prepared_sha256(run))
    if spec.model is not None and len(record.attempts) > 1:
        given = train_arguments(spec, base_checkpoint(spec.model, session.workspace.root))
        resumed = {} if start.path is None else {"resume_from_checkpoint": start.path}
        atomic_write(run.train_yaml, session.renderer.train_yaml({**given, **resumed}))
    installation, environment = session.llamafactory(), train_environment(spec)
    machine = this_machine(spec.compute, os.environ)
    if machine is not None:
        rank = {} if machine.rank is None else {"NODE_RANK": str(machine.rank)}
        environment = {**environment, **rank}
        log.info("this machine is %s; they meet at %s", machine.name, machine.meeting)
    prefix, variables = across_nodes(spec, run) if how.job else ([], {})
    environment |= variables
    record.note_attempt(
        run, from_checkpoint=start.label, from_step=start.step, log_start_bytes=close_torn_line(run.trainer_log)
    )
    record.add_command(run, "train", [*prefix, str(installation.cli), *TRAIN_ARGV], environment)
    record.update(run, status="running")
    log.info("training with %s; its output: %s", installation.cli, run.train_log)
    on_event = repeat.on_event if repeat else None
    placement = Placement(spec.compute.ray_timeout_s) if spec.compute.ray else None
    with _timed(run, record, "train"), _metered(run, record, spec) as meter:

        def on_look(child: Child) -> None:
            meter.sample(child)
            if placement is not None:
                placement.look(child)

        trained = train(
            run,
            installation,
            environment,
            record.resumed_at(),
            on_event=on_event,
            on_look=on_look,
            held=locks,
            machine=machine,
            prefix=prefix,
        )
    if isinstance(trained, str):
        log.info("the training is at its end; %s", trained)
        record.update(run, status="trained", results_elsewhere=trained)
        return
    trained.weights_sha256 = weights_sha256(run.output)
    facts = complete_facts(record.facts, spec, session.workspace.root)
    verdict = repeat.trained(trained) if repeat else None
    said = f"{verdict.verdict}: {verdict.message}" if verdict else None
    record.update(run, status="trained", training=trained, facts=facts, verdict=said)


def devices_needed(spec: RunSpec, how: How) -> list[str]:
    """The devices that the run uses, or none where others may have them too."""
    if not how.exclusive or spec.compute.slurm is not None:  # Slurm gives each job its own
        return []
    named = [] if spec.train is None else [spec.compute.devices]
    served = how.with_benchmarks and spec.benchmark and spec.serve.url is None
    return devices_of([*named, *([serving_devices(spec.serve, spec)] if served else [])])


def _as_name(text: str) -> str:
    """Any text as a spec's name."""
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in text)
    return name.lstrip("._-")[:64] or "target"
