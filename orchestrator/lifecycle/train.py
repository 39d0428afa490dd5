"""The training stage of a run. Success is judged by LLaMA-Factory's files: its exit status is 0 after SIGTERM too."""

import json
import logging
import math
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.data.datasets import EVALUATED, write_training_file
from orchestrator.errors import Interrupted, StageError
from orchestrator.files import atomic_write
from orchestrator.lifecycle.resume import ResumePoint, prepare_output
from orchestrator.lifecycle.slurm_jobs import across_nodes
from orchestrator.lifecycle.training_results import completed_training, problems, training_of
from orchestrator.models.checkpoints import SENTINEL
from orchestrator.models.hashes import weights_sha256
from orchestrator.models.model_files import base_checkpoint
from orchestrator.planning.plan import Plan, render_dataset_info, render_files
from orchestrator.planning.session import Session
from orchestrator.processes.interruptible import defer_signals
from orchestrator.processes.process import Child, child_environment, repro_command, start
from orchestrator.processes.process_tree import GRACE_S, RUN_ENV
from orchestrator.runs.facts import complete_facts
from orchestrator.runs.machine import Machine, peak_memory, this_machine
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import PeakMemory
from orchestrator.runs.rundir import RunDir, prepared_file
from orchestrator.runs.state import timed
from orchestrator.runs.trainer_log import StepBar, TrainerLog, close_torn_line
from orchestrator.specs.arguments import COMPUTED
from orchestrator.specs.render import train_arguments, train_environment

log = logging.getLogger("orchestrator")

QUIET_S = 15  # a stopped training that has saved, and has written nothing since, waits for a process that is gone
POLL_S = 0.3
MEASURE_S = 5
_ARGV = ("train", "train.yaml")  # relative: under torchrun LLaMA-Factory splits its arguments at spaces


def train_run(session: Session, plan: Plan, run: RunDir, record: RunRecord, locks: Sequence[int], job: str) -> None:
    """Train what is left to train of a run that this process owns; `locks` stay held until its last process is gone.

    Raises StageError: LLaMA-Factory ended without a complete result; Interrupted: names the checkpoint that is kept.
    """
    spec, label = plan.spec, record.request.checkpoint
    if spec.train is None:
        return
    trained = completed_training(run, spec.train, label, resumed=record.is_resumed())
    if trained is not None:
        log.info("the training is complete: %d of %d steps", trained.steps, trained.total_steps)
        trained.weights_sha256 = weights_sha256(run.output)
        record.update(run, status="trained", training=trained)
        return
    begin = prepare_output(run, spec, record, plan.facts, label)
    with timed(run, record, "prepare"):
        _prepare(session, plan, run, begin)
    cli, environment = session.llamafactory().cli, train_environment(spec)
    machine = this_machine(spec.compute, os.environ)
    if machine is not None:
        environment |= {} if machine.rank is None else {"NODE_RANK": str(machine.rank)}
        log.info("this machine is %s; they meet at %s", machine.name, machine.rendezvous)
    prefix, variables = across_nodes(spec, run) if job else ([], {})
    argv, environment = [*prefix, str(cli), *_ARGV], environment | variables
    offset = close_torn_line(run.trainer_log)
    record.note_attempt(run, from_checkpoint=begin.label, from_step=begin.step, log_start_bytes=offset)
    record.add_command(run, "train", argv, environment)
    record.update(run, status="running")
    log.info("training with %s; its output: %s", cli, run.train_log)
    bar = StepBar(TrainerLog(run.trainer_log, offset), begin.step)
    with timed(run, record, "train"):
        env = child_environment(cli, {**environment, RUN_ENV: str(run.path)})
        child = _run(run, record, argv, env, locks, machine, bar)
    found = [f"llamafactory-cli ended with status {child.poll()}"] if child.poll() != 0 else []
    is_elsewhere = machine is not None and machine.rank != 0 and not (run.output / "train_results.json").is_file()
    if is_elsewhere and not found and child.log_holds("Saving JIT checkpoint at step"):  # nothing else tells here
        message = "the training was stopped from outside, before its last step"
        raise StageError(message, repro_command(run.path, argv, environment))
    found += [] if is_elsewhere else problems(run)
    if found:
        if machine is not None:
            found.append(f"this machine is {machine.name}, and the cause may be in the log of another one")
        why = f"{'; '.join(found)}. Last lines of {run.train_log}:\n{child.log_tail()}"
        raise StageError(f"the training failed: {why}", repro_command(run.path, argv, environment))
    if machine is not None and is_elsewhere:
        where = f"this machine is {machine.name}: the results are on the one with rank 0, {machine.rendezvous}"
        log.info("the training is at its end; %s", where)
        record.update(run, status="trained", results_elsewhere=where)
        return
    trained = training_of(run, resumed=begin.step > 0)
    trained.weights_sha256 = weights_sha256(run.output)
    facts = complete_facts(record.facts, spec, session.workspace.root)
    record.update(run, status="trained", training=trained, facts=facts)


def _prepare(session: Session, plan: Plan, run: RunDir, begin: ResumePoint) -> None:
    """Write what LLaMA-Factory is given: always anew, since a killed attempt, or an editor, may have changed it."""
    spec, datasets = plan.spec, plan.datasets
    prepared = [(name, name, "train") for name in spec.datasets if name in datasets]
    prepared += [(n, called, EVALUATED) for n, called in spec.eval_names.items() if n in datasets]
    for name, called, split in prepared:
        text = plan.texts[name, split]
        write_training_file(text, datasets[name].entry.instruction, run.path / prepared_file(called))
        if text.blank_pairs:
            log.info("%s: %d blank pairs dropped, %d left", text.origin, text.blank_pairs, len(text.sources))
    files = {**render_files(session, spec), **render_dataset_info(session, spec)}
    if not run.defaults.exists():
        known = [each for each in (session.arguments or {}).values() if "train" in each.commands]
        defaults = {each.name: each.default for each in known if each.default is not COMPUTED}
        files[run.defaults.name] = json.dumps(defaults, indent=1, sort_keys=True) + "\n"
    if begin.label is not None and spec.model is not None:
        given = train_arguments(spec, base_checkpoint(spec.model, session.workspace.root))
        resumed = {**given, "resume_from_checkpoint": f"output/{begin.label}"}
        files[run.train_yaml.name] = session.renderer.train_yaml(resumed)
    for name, content in files.items():
        atomic_write(run.path / name, content)


def _run(
    run: RunDir, record: RunRecord, argv: list[str], env: dict[str, str], locks: Sequence[int],
    machine: Machine | None, bar: StepBar,
) -> Child:  # fmt: skip
    child = None
    measured_at = -math.inf
    peak = PeakMemory()
    try:
        with defer_signals():
            child = start(
                argv, log=run.train_log, cwd=run.path, env=env, death_signal=signal.SIGTERM, watched=True, locks=locks
            )
        with bar:
            while child.poll() is None:
                bar.update()
                child.wait(POLL_S)  # first: what has only just been started has no memory yet
                if time.monotonic() - measured_at >= MEASURE_S:
                    measured_at = time.monotonic()
                    peak = peak_memory(peak, child.pid, env)
            bar.update()
        child.stop(GRACE_S)  # where the launcher was killed, what it had started is still running
        return child
    except BaseException as error:
        if child is not None:
            log.warning("stopping: the training saves a checkpoint first; Ctrl-C again ends it without")
            try:
                child.stop(GRACE_S, CheckpointWait(run))
            except BaseException:
                child.stop(0)
                raise
        if isinstance(error, KeyboardInterrupt | Interrupted):
            raise _interrupted(run, machine) from error
        raise
    finally:
        with suppress(OSError):  # a full disk, say: a training must not fail for its figures
            record.note_attempt(run, usage=peak)


class CheckpointWait:
    """Whether a training that is being stopped has saved its checkpoint, and writes nothing more.

    Processes stop by their own clocks: one whose partner has left a step, or got no signal, never comes to its end.
    """

    def __init__(self, run: RunDir, quiet_s: float = QUIET_S) -> None:
        self._run, self._quiet_s = run, quiet_s
        self._before = self._saved()
        self._newest = 0
        self._since = time.monotonic()

    def __call__(self) -> bool:
        newest = self._newest
        for path in (each for folder in (self._run.output, *self._run.checkpoints()) for each in folder.glob("*")):
            with suppress(OSError):  # gone by now: save_total_limit
                newest = max(newest, path.stat().st_mtime_ns)
        if newest != self._newest:
            self._newest, self._since = newest, time.monotonic()
        return time.monotonic() - self._since >= self._quiet_s and bool(self._saved() - self._before)

    def _saved(self) -> set[Path]:
        """The checkpoints that hold the state of a process of this machine, which is saved after all else."""
        folders = self._run.checkpoints()
        return {each for each in folders if any(each.glob("rng_state*")) and not (each / SENTINEL).exists()}


def _interrupted(run: RunDir, machine: Machine | None) -> Interrupted:
    saved = [path.name for path in run.checkpoints() if (path / "trainer_state.json").is_file()]
    if saved:
        remedy = f"orchestrator resume {run.id} continues it; orchestrator benchmark {run.id} takes it as it is"
        return Interrupted(f"the training was stopped; kept: {saved[-1]}", remedy)
    if machine is not None and machine.rank != 0:
        message = f"the training was stopped here, on the machine that is {machine.name}; checkpoints are at rank 0"
        return Interrupted(message, "the others' parts end too: resume each with resume RUN --from checkpoint-N")
    message = "the training was stopped; it had not come to a checkpoint"
    return Interrupted(message, f"to begin again: orchestrator resume {run.id}")
