"""Checkpoints benchmarked as they appear, by a process of its own beside the training.

    the run's owner  training ---------------------------> waits for the process, then chooses (every_checkpoint.py)
    this process     checkpoint-N -> benchmark -> record, the next ... until the training is over

Covered: the process, which ends with the run and with its owner; checkpoints that save_total_limit takes away
meanwhile; a benchmark that fails, which ends neither the training nor the other benchmarks.
Not covered: which devices are whose (check.py); asking (benchmarking.py).
Leaves logs/during.log, and the benchmarks in the run folder and its record.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.benchmark.curve import chosen_words
from orchestrator.benchmark.evaluate import Asking
from orchestrator.benchmark.every_checkpoint import choose, plan_benchmarks, put_to
from orchestrator.errors import OrchestratorError, SpecError, StageError
from orchestrator.models.checkpoints import Inspected, is_saved
from orchestrator.models.model_files import base_checkpoint, trained_checkpoint
from orchestrator.planning.plan import Plan
from orchestrator.planning.session import Session
from orchestrator.processes.process import Child, start
from orchestrator.processes.process_tree import RUN_ENV
from orchestrator.runs.record import RunRecord
from orchestrator.runs.run_checkpoints import usable_checkpoints
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.benchmark_spec import BenchmarkSpec
from orchestrator.specs.spec import RunSpec

log = logging.getLogger("orchestrator")

POLL_S = 0.5
GRACE_S = 15
"""For it to end its server, and to say so."""


def item_during(spec: RunSpec) -> BenchmarkSpec | None:
    """The benchmark of a spec that is put to every checkpoint."""
    return next((item for item in spec.benchmark if item.during), None)


@contextmanager
def benchmarks_beside(
    session: Session, run: RunDir, spec: RunSpec, held: Sequence[int], *, wished: bool
) -> Iterator[Callable[[], None]]:
    """While the block lasts, a process that benchmarks the run's checkpoints, where its spec wishes for that.

    Args:
        session: the workspace and its tools.
        run: this process owns it, and its training begins.
        spec: the run's.
        held: locks of the devices, held until the process is gone too.
        wished: whether the run is benchmarked at all.

    Yields:
        Waits until the process is through with what the training has left.
    """
    if not wished or spec.train is None or item_during(spec) is None:
        yield lambda: None
        return
    child = _start(session, run, held)
    log.info("checkpoints are benchmarked as they appear; what that says: %s", run.during_log)
    try:
        yield lambda: _wait(child)
    finally:
        child.stop(GRACE_S)


def benchmark_as_they_appear(session: Session, run: RunDir) -> None:
    """Benchmark the checkpoints of a run whose training is under way in another process, until it is over."""
    spec = session.load_spec(run.spec)
    item = item_during(spec)
    if item is None or spec.model is None:
        return
    plan = plan_benchmarks(session, spec, [item], spec.serve)
    settled: set[str] = set()
    while True:
        trains = _trains(run)  # before the checkpoints are looked at: those of the end are seen
        saved = [each for each in reversed(usable_checkpoints(run)) if each.label not in settled and is_saved(each)]
        for each in saved[:1]:  # then look again: others may have come, or gone
            settled.add(each.label)
            _benchmark(session, plan, run, each, item)
        if not saved and not trains:
            return
        if not saved:
            time.sleep(POLL_S)


def choose_after(session: Session, run: RunDir, record: RunRecord, spec: RunSpec, how: Asking) -> None:
    """Put the set to what is left of the checkpoints, and choose one; that this fails is said, and no more."""
    item = item_during(spec)
    if item is None or spec.train is None:
        return
    plan = plan_benchmarks(session, spec, [item], spec.serve)
    metric = "bleu" if "bleu" in item.metrics else item.metrics[0]
    try:
        curve = choose(session, plan, run, record, item, how, metric=metric, with_base=item.base_model)
        log.info("%s", chosen_words(curve))
    except StageError as error:
        log.error("%s; then: orchestrator benchmark %s@all", error.message, run.id)


def _start(session: Session, run: RunDir, held: Sequence[int]) -> Child:
    package = Path(__file__).resolve().parent.parent
    given = session.archives.from_folder
    return start(
        [
            sys.executable, "-m", package.name, "benchmark-during", str(run.path),
            "--cwd", str(Path.cwd()), "--workspace", str(session.workspace.root),
            *(["--from", str(given.absolute())] if given is not None else []),
        ],
        log=run.during_log,
        cwd=package.parent,  # elsewhere Python would take the first `orchestrator` that lies there
        env={**os.environ, RUN_ENV: str(run.path)},
        death_signal=signal.SIGTERM,
        watched=True,
        locks=held,
    )  # fmt: skip


def _wait(child: Child) -> None:
    if child.poll() is None:
        log.info("waiting for the benchmarks of checkpoints that are under way")
    while child.poll() is None:
        time.sleep(POLL_S)
    if child.poll() != 0:
        said = "the benchmarks beside the training ended early; last lines of %s:\n%s"
        log.warning(said, child.log, child.log_tail())


def _trains(run: RunDir) -> bool:
    return RunRecord.load(run).status in ("preparing", "running")


def _benchmark(session: Session, plan: Plan, run: RunDir, found: Inspected, item: BenchmarkSpec) -> None:
    record = RunRecord.load(run)
    how = Asking(cached=record.rerun_of is None)
    if plan.spec.model is None:
        raise SpecError(f"{plan.spec.name} has no model")
    base = base_checkpoint(plan.spec.model, session.workspace.root).model
    try:
        checkpoint = trained_checkpoint(found.folder, base)
        _, failed = put_to(session, plan, run, record, [checkpoint], [item], how)
        if failed:
            raise failed[found.label]
    except (OrchestratorError, OSError) as error:
        if not found.folder.is_dir():
            log.warning("%s was removed meanwhile (save_total_limit): it is skipped", found.label)
        else:
            log.error("%s: %s", found.label, error)
