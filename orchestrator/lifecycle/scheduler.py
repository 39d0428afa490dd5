"""The runs of a group on this machine, one after another, or one at a time on each device; each has a supervisor.

If this process is killed, the kernel sends the supervisors SIGTERM.
"""

import logging
import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import Interrupted, OrchestratorError, SpecError, StageError
from orchestrator.files import atomic_write
from orchestrator.lifecycle import slurm_jobs
from orchestrator.lifecycle.local import STOP_GRACE_S, start_supervisor, supervisor_error
from orchestrator.lifecycle.new_run import RunOptions
from orchestrator.lifecycle.pipeline import carry_out
from orchestrator.lifecycle.resume import session_of
from orchestrator.lifecycle.stop import stop_run
from orchestrator.planning.session import Session
from orchestrator.processes.interruptible import defer_signals
from orchestrator.processes.process import Child
from orchestrator.processes.process_tree import wait_until
from orchestrator.runs import slurm
from orchestrator.runs.groups import Group, Member, member, members
from orchestrator.runs.machine import is_free
from orchestrator.runs.owner import OwnedRun, acquire, inherited, is_owned, lock_run
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.specs.render import spec_yaml
from orchestrator.specs.spec import spec_sha256

log = logging.getLogger("orchestrator")

POLL_S = 0.2
EARLY_EXIT_S = 1.0
_Started = tuple[Member, Child]


def supervise(folder: Path, workspace: Path | None, lock: int | None) -> None:
    """Carry a run or a group out. `lock` is the open file that its owner passed on; None: a group, or a Slurm job."""
    if GroupDir(folder).file.is_file():
        run_group(Session.open(workspace), GroupDir(folder))
        return
    run = RunDir(folder)
    job = slurm.own_job() if lock is None else ""
    owned = acquire(run, job) if lock is None else inherited(run, lock)
    if job and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # its own checkpoints are newer
        record = RunRecord.load(run)
        record.update(run, request=record.request.model_copy(update={"checkpoint": None}))
    carry_out(session_of(run, workspace), owned, RunOptions(job=job))


def renew_requests(folder: GroupDir, *, with_benchmarks: bool) -> None:
    """Before a group is resumed: write what is to be done into each run's record; SpecError where nothing is left."""
    group = Group.load(folder)
    found = members(folder, group)
    if not any(each.is_to_do() or is_owned(each.run) for each in found):
        raise _nothing_left(folder, found)
    changes = {"with_benchmarks": with_benchmarks and group.with_benchmarks, "wait": True, "checkpoint": None}
    for each in found:
        if each.is_to_do() and each.record is not None:
            request = each.record.request.model_copy(update=changes)
            each.record.update(each.run, request=request, stop_requested=False)


def run_group(session: Session, folder: GroupDir) -> None:
    """Carry out what is left to do of a group, each run once; what another process carries out is waited for.

    Raises SpecError: nothing is left to do; StageError: a run was not finished; Interrupted: a signal came.
    """
    group = Group.load(folder)
    found = members(folder, group)
    queue = [each for each in found if each.is_to_do() or is_owned(each.run)]
    if not queue:
        raise _nothing_left(folder, found)
    if active := ", ".join(each.run.id for each in queue if not each.is_to_do()):
        log.info("waiting for what is under way: %s", active)
    under_way: dict[str | None, _Started] = {}
    try:
        _run_queue(session, folder, group, queue, under_way)
    except BaseException as error:
        _stop(list(under_way.values()))
        if not isinstance(error, Interrupted | KeyboardInterrupt):
            raise
        done = sum(each.is_finished() for each in members(folder, group))
        message = f"{folder.id} was stopped; {done} of {len(group.points)} runs are done"
        raise Interrupted(message, f"orchestrator resume {folder.id} continues it") from error
    if left := [each for each in members(folder, group) if not each.is_finished()]:
        listed = "\n".join(f"  {each.run.id} ({group.label(each.point)}): {each.line()}" for each in left)
        raise StageError(
            f"{len(left)} of {len(group.points)} runs of {folder.id} are not done:\n{listed}",
            f"orchestrator logs RUN says why; then: orchestrator resume {folder.id}",
        )


def submit_group(session: Session, folder: GroupDir) -> str | None:
    """Submit what is left to do of a group as the tasks of one Slurm job; its id. None: its specs have no such section.

    Raises SpecError: nothing is left to do; and as slurm_jobs.submit.
    """
    found = members(folder, Group.load(folder))
    spec = next((session.load_spec(each.run.spec) for each in found if each.run.spec.is_file()), None)
    if spec is None or spec.compute.slurm is None:
        return None
    todo = [each.run for each in found if each.is_to_do()]
    if not todo:
        raise _nothing_left(folder, found)
    slurm_jobs.submit(session, [acquire(run) for run in todo], spec, folder.id)
    job = RunRecord.load(todo[0]).job
    return job.id.partition("_")[0] if job is not None else None


def detach_group(session: Session, folder: GroupDir) -> int:
    """Start the process that carries a group out in the background; its pid. An error where it ends at once."""
    child = start_supervisor(session, folder, None)
    child.wait(EARLY_EXIT_S)
    if status := child.poll():
        raise supervisor_error(f"group {folder.id}", child, status)
    return child.pid


def _run_queue(
    session: Session, folder: GroupDir, group: Group, queue: list[Member], under_way: dict[str | None, _Started]
) -> None:
    slots: list[str | None] = [None] if group.devices is None else [*group.devices]
    has_warned = False
    while queue or under_way:
        for slot, (begun, child) in list(under_way.items()):
            if child.poll() is not None:
                del under_way[slot]
                ended = member(folder, begun.point)
                level = logging.INFO if ended.is_finished() else logging.WARNING
                log.log(level, "%s: %s: %s", group.label(ended.point), ended.run.id, ended.line())
        for slot in slots:
            is_usable = slot not in under_way and (slot is None or is_free(slot))
            if is_usable and (found := _next(folder, queue, slot)) is not None:
                with defer_signals():
                    under_way[slot] = _begin(session, group, *found, slot)
        if queue and not under_way and group.devices is not None and not has_warned:
            log.info("waiting for one of the devices %s; Ctrl-C gives it up", ", ".join(group.devices))
            has_warned = True
        time.sleep(POLL_S)


def _next(folder: GroupDir, queue: list[Member], slot: str | None) -> tuple[Member, OwnedRun] | None:
    """The next run of the queue that may begin, taken out of it and owned; None where there is none now."""
    for before in list(queue):
        now = member(folder, before.point)
        if is_owned(now.run):  # somebody else's, or still stopping
            if slot is None:
                return None
        elif now.record is None or not now.is_to_do() or now.record.stop_requested:
            log.info("%s is left alone: %s", now.run.id, now.line())
            queue.remove(before)
        elif (owned := lock_run(now.run)) is not None:
            queue.remove(before)
            return now, owned
    return None


def _begin(session: Session, group: Group, now: Member, owned: OwnedRun, slot: str | None) -> _Started:
    where = "" if slot is None else f" on device {slot}"
    number = group.points.index(now.point) + 1
    log.info("%d of %d: %s%s: %s", number, len(group.points), group.label(now.point), where, now.run.id)
    if slot is not None and now.record is not None:  # its spec has the device: it can be run again alone as it ran
        override = f'compute.devices="{slot}"'
        with suppress(OrchestratorError):  # a broken spec.yaml: the run fails by itself, and the others continue
            spec = session.load_spec(now.run.spec, [override])
            atomic_write(now.run.spec, spec_yaml(spec, ""))
            others = [each for each in now.record.overrides if not each.startswith("compute.devices=")]
            now.record.update(now.run, spec_sha256=spec_sha256(spec), overrides=[*others, override])
    return now, start_supervisor(session, now.run, owned, signal.SIGTERM)


def _stop(started: Sequence[_Started]) -> None:
    if started:
        log.warning("stopping: what is under way saves a checkpoint first; Ctrl-C again ends it without")
    try:
        for _, child in started:
            if child.poll() is None:
                child.popen.terminate()
        wait_until(lambda: all(child.poll() is not None for _, child in started), STOP_GRACE_S)
    finally:
        for begun, child in started:
            if child.poll() is None:
                stop_run(begun.run, 0)
                child.stop(0)


def _nothing_left(folder: GroupDir, found: Iterable[Member]) -> SpecError:
    if left := [f"{each.run.id} is {each.line()}" for each in found if not each.is_finished()]:
        return SpecError(f"nothing of {folder.id} can be resumed here: {', '.join(left)}")
    return SpecError(f"group {folder.id} is done: there is nothing to resume", f"orchestrator compare {folder.id}")
