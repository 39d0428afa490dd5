"""The training of a run, from its data to its weights, and what its record says of it.

Covered: data and files prepared once, and again where they are not whole; from which checkpoint it goes on; commands,
environment, times and usage of the attempt; a training that is whole already, or whose results are on another machine.
Not covered: the process itself and how it ended (train.py); what comes before and after (pipeline.py).
"""

import logging
import os
from collections.abc import Sequence

from orchestrator.data.datasets import evaluated_split, write_training_file
from orchestrator.files import atomic_write
from orchestrator.lifecycle.jobs import across_nodes
from orchestrator.lifecycle.new_run import How
from orchestrator.lifecycle.rerun import Repeat
from orchestrator.lifecycle.resume import Start, begin, kept_training, prepared_sha256
from orchestrator.lifecycle.train_process import TRAIN_ARGV, train
from orchestrator.models.model_files import base_checkpoint, weights_sha256
from orchestrator.planning.plan import Plan, render_dataset_info, render_files
from orchestrator.planning.session import Session
from orchestrator.runs.diff import defaults_json
from orchestrator.runs.facts import complete_facts
from orchestrator.runs.locks import devices_of
from orchestrator.runs.metering import metered, timed
from orchestrator.runs.nodes import this_machine
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.trainer_log import close_torn_line
from orchestrator.specs.render import train_arguments, train_environment
from orchestrator.specs.spec import RunSpec

log = logging.getLogger("orchestrator")


def train_run(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    how: How,
    repeat: Repeat | None,
    locks: Sequence[int],
) -> None:
    """Train what is left to train of a run.

    Args:
        session: the workspace and its tools.
        plan: what the run's spec says.
        run: its folder.
        record: its record; this process owns it.
        how: from which checkpoint, and in which job of Slurm.
        repeat: the comparison with the run that this one repeats.
        locks: files that hold the devices; the child keeps them.
    """
    spec = plan.spec
    if (training := kept_training(run, record, how.checkpoint)) is not None:
        log.info("the training is whole: %d of %d steps", training.steps, training.total_steps)
        training.weights_sha256 = weights_sha256(run.output)
        record.update(run, status="trained", training=training)
        return
    start = begin(run, spec, record, plan.facts, how.checkpoint)
    if record.prepared_sha256 is None or record.prepared_sha256 != prepared_sha256(run):
        with timed(run, record, "prepare"):
            _prepare(session, plan, run)
        record.update(run, prepared_sha256=prepared_sha256(run))
    if len(record.attempts) > 1:
        _render_again(session, spec, run, start)
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
    with timed(run, record, "train"), metered(run, record, devices_of([spec.compute.devices])) as meter:
        trained = train(
            run,
            installation,
            environment,
            record.resumed_at(),
            on_event=on_event,
            on_look=meter.sample,
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


def _render_again(session: Session, spec: RunSpec, run: RunDir, start: Start) -> None:
    """train.yaml, with the checkpoint that it goes on from, if any."""
    if spec.model is None:
        return
    given = train_arguments(spec, base_checkpoint(spec.model, session.workspace.root))
    resumed = {"resume_from_checkpoint": start.path} if start.path is not None else {}
    atomic_write(run.train_yaml, session.renderer.train_yaml({**given, **resumed}))


def _prepare(session: Session, plan: Plan, run: RunDir) -> None:
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
