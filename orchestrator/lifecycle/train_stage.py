"""The training stage of a run, from its data to its weights, and what its record says of it."""

import logging
import os
from collections.abc import Sequence

from orchestrator.data.datasets import evaluated_split, write_training_file
from orchestrator.files import atomic_write
from orchestrator.lifecycle.executors.slurm import across_nodes
from orchestrator.lifecycle.rerun import RerunComparison
from orchestrator.lifecycle.resume import ResumePoint, prepare_output
from orchestrator.lifecycle.train_process import TRAIN_ARGV, train
from orchestrator.lifecycle.training_results import completed_training
from orchestrator.models.hashes import weights_sha256
from orchestrator.models.model_files import base_checkpoint
from orchestrator.planning.plan import Plan, render_dataset_info, render_files
from orchestrator.planning.session import Session
from orchestrator.runs.facts import complete_facts
from orchestrator.runs.machine import this_machine
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.runs.state import timed
from orchestrator.runs.trainer_log import close_torn_line
from orchestrator.specs.render import train_arguments, train_environment

log = logging.getLogger("orchestrator")


def train_run(
    session: Session,
    plan: Plan,
    run: RunDir,
    record: RunRecord,
    comparison: RerunComparison | None,
    locks: Sequence[int],
    *,
    job: str,
) -> None:
    """Train what is left to train of a run that this process owns, with devices that `locks` hold."""
    spec, label = plan.spec, record.request.checkpoint
    if spec.train is None:
        return
    done = completed_training(run, spec.train, label, resumed=record.is_resumed())
    if done is not None:
        log.info("the training is complete: %d of %d steps", done.steps, done.total_steps)
        done.weights_sha256 = weights_sha256(run.output)
        record.update(run, status="trained", training=done)
        return
    start = prepare_output(run, spec, record, plan.facts, label)
    with timed(run, record, "prepare"):
        _prepare(session, plan, run, start)
    installation, environment = session.llamafactory(), train_environment(spec)
    machine = this_machine(spec.compute, os.environ)
    if machine is not None:
        rank = {} if machine.rank is None else {"NODE_RANK": str(machine.rank)}
        environment = {**environment, **rank}
        log.info("this machine is %s; they meet at %s", machine.name, machine.rendezvous)
    prefix, variables = across_nodes(spec, run) if job else ([], {})
    environment |= variables
    record.note_attempt(
        run, from_checkpoint=start.label, from_step=start.step, log_start_bytes=close_torn_line(run.trainer_log)
    )
    record.add_command(run, "train", [*prefix, str(installation.cli), *TRAIN_ARGV], environment)
    record.update(run, status="running")
    log.info("training with %s; its output: %s", installation.cli, run.train_log)
    with timed(run, record, "train"):
        trained = train(
            run,
            installation,
            environment,
            start.step,
            locks=locks,
            machine=machine,
            prefix=prefix,
        )
    if isinstance(trained, str):
        log.info("the training is at its end; %s", trained)
        record.update(run, status="trained", results_elsewhere=trained)
        return
    trained.weights_sha256 = weights_sha256(run.output)
    facts = complete_facts(record.facts, spec, session.workspace.root)
    verdict = comparison.trained(trained) if comparison else None
    message = f"{verdict.verdict}: {verdict.message}" if verdict else None
    record.update(run, status="trained", training=trained, facts=facts, verdict=message)


def _prepare(session: Session, plan: Plan, run: RunDir, start: ResumePoint) -> None:
    """Write what LLaMA-Factory is given: always anew, since a killed attempt, or an editor, may have changed it."""
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
    files = {**render_files(session, spec), **render_dataset_info(session, spec)}
    if start.label is not None and spec.model is not None:
        given = train_arguments(spec, base_checkpoint(spec.model, session.workspace.root))
        resumed = {**given, "resume_from_checkpoint": f"output/{start.label}"}
        files[run.train_yaml.name] = session.renderer.train_yaml(resumed)
    for name, content in files.items():
        atomic_write(run.path / name, content)
