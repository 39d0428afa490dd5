"""The runs of a group, carried out on this machine: one after another, or one at a time on each device.

Covered: a process of its own for each run (`supervise`), so that stopping one stops no other; the next as soon as a
device is free; a failure, which does not end the rest; stopping, which stops what is under way with its checkpoints
and begins no other; what is finished is left alone. If this process is killed, so that it stops nothing, the kernel
tells the runs, which stop as well.
Not covered: making the group (sweep.py); other schedulers.
Leaves logs/supervisor.log in each run folder; in the group's, where it is carried out in the background.
"""

import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from orchestrator.errors import Interrupted, OrchestratorError, SpecError, StageError
from orchestrator.files import atomic_write
from orchestrator.lifecycle.jobs import submit_array
from orchestrator.lifecycle.new_run import How
from orchestrator.lifecycle.stop import DEFAULT_GRACE_S, FAREWELL_S, stop_run
from orchestrator.lifecycle.supervise import start_supervisor, why_not
from orchestrator.lifecycle.sweep import make_missing
from orchestrator.planning.session import Session
from orchestrator.processes.family import RUN_ENV, send, wait_until_gone
from orchestrator.processes.interruptible import uninterrupted
from orchestrator.processes.process import Child
from orchestrator.processes.progress import Progress
from orchestrator.runs.groups import Group, Member, killed_owner, member, members, owned, owner, what_is_left
from orchestrator.runs.locks import is_free
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.state import progress
from orchestrator.specs.render import spec_yaml
from orchestrator.specs.spec import spec_sha256

log = logging.getLogger("orchestrator")

POLL_S = 0.2


class _Turn(NamedTuple):
    """A run that is under way."""

    member: Member
    child: Child


def take_turns(session: Session, folder: GroupDir, how: How, words: Sequence[str]) -> None:
    """Carry out what is left to do of a group, as its owner.

    Args:
        session: the workspace and its tools.
        folder: the group's.
        how: whether benchmarks follow; a run waits for its devices in any case.
        words: the options that each run's `supervise` is given.

    Raises:
        SpecError: nothing is left to do.
        PrerequisiteError: another process carries the group out.
        StageError: a run was not finished.
        Interrupted: asked to stop; what was under way was stopped.
    """
    group = Group.load(folder)
    with_benchmarks = how.with_benchmarks and group.with_benchmarks
    words = [*words, *["--no-benchmark"] * (not with_benchmarks and "--no-benchmark" not in words)]
    killed = killed_owner(folder)
    with owned(folder):
        make_missing(session, folder, group)
        if killed is not None:
            _wait_for_farewells(folder, group)
        found = members(folder, group)
        todo = deque(each for each in found if each.is_to_do(with_benchmarks))
        if not todo:
            raise _nothing_left(folder, found, with_benchmarks)
        try:
            _all_turns(session, folder, group, todo, [*words, *["--wait"] * ("--wait" not in words)])
        except (Interrupted, KeyboardInterrupt) as error:
            done = sum(each.is_finished(with_benchmarks) for each in members(folder, group))
            raise Interrupted(
                f"{folder.id} was stopped; {done} of {len(group.points)} runs are done",
                f"orchestrator resume {folder.id} goes on",
            ) from error
    left = [each for each in members(folder, group) if not each.is_finished(with_benchmarks)]
    if left:
        listed = "\n".join(f"  {each.run.id} ({group.label(each.point)}): {_how_it_is(each)}" for each in left)
        raise StageError(
            f"{len(left)} of {len(group.points)} runs of {folder.id} did not come to their end:\n{listed}",
            f"orchestrator logs RUN says why; then: orchestrator resume {folder.id}",
        )


def submit_group(session: Session, folder: GroupDir, how: How, words: Sequence[str]) -> str | None:
    """Submit what is left to do of a group as the tasks of one job of Slurm; the job's id.

    None where its specs have no compute.slurm: then take_turns carries it out.

    Raises:
        SpecError: nothing is left to do.
        PrerequisiteError: another process carries the group out, or there is no sbatch.
        StageError: Slurm refuses it.
    """
    group = Group.load(folder)
    with_benchmarks = how.with_benchmarks and group.with_benchmarks
    found = members(folder, group)
    first = next((each for each in found if each.run.spec.is_file()), None)
    spec = session.load_spec(first.run.spec) if first is not None else None
    if spec is None or spec.compute.slurm is None:
        return None
    with owned(folder):
        make_missing(session, folder, group)
        found = members(folder, group)
        runs = [each.run for each in found if each.is_to_do(with_benchmarks)]
        if not runs:
            raise _nothing_left(folder, found, with_benchmarks)
        own = [*words, *["--no-benchmark"] * (not with_benchmarks and "--no-benchmark" not in words)]
        return submit_array(session, runs, spec, own, name=folder.id, at_once=None)


def detach_group(folder: GroupDir, words: Sequence[str]) -> int:
    """Start the process that carries a group out in the background; its pid, once it owns the group.

    Raises:
        SpecError, PrerequisiteError, StageError: it ended before, and why.
    """
    child = start_supervisor(folder.path, folder.supervisor_log, words, {})
    try:
        while True:
            status = child.poll()
            found = owner(folder)
            if (found is not None and found.pid == child.pid) or status == 0:
                return child.pid
            if status is not None:
                raise why_not(f"group {folder.id}", child, None, status)
            time.sleep(POLL_S)
    except BaseException:
        if child.poll() is None:  # we were told to stop before it had begun
            child.stop(5)
        raise


def stop_group(folder: GroupDir, grace_s: float) -> list[str]:
    """Stop what is under way of a group, and begin no other of its runs; what came of it, in lines.

    Args:
        folder: the group's.
        grace_s: how long its runs may take to save a checkpoint.

    Raises:
        PrerequisiteError: it is carried out on another host, or is another user's.
        StageError: a process of a run cannot be ended.
    """
    group = Group.load(folder)
    active = [each.run for each in members(folder, group) if each.record is not None and each.record.is_active()]
    found = owner(folder)
    process = found.process() if found is not None else None
    if process is not None:
        send(process, signal.SIGTERM)  # it asks its runs
        deadline = time.monotonic() + grace_s
        while owner(folder) is not None and time.monotonic() < deadline:
            time.sleep(POLL_S)
    lines = [] if process is not None or active else [f"{folder.id} is not under way"]
    for each in members(folder, group):
        if each.record is not None and each.record.is_active():  # by itself, or not stopped in time
            lines += stop_run(each.run, 0 if process is not None else grace_s)
        elif each.run in active and each.record is not None:
            lines.append(f"{each.run.id} is {_how_it_is(each)}")
    if process is not None:
        wait_until_gone([process], FAREWELL_S)
        send(process, signal.SIGKILL)
        wait_until_gone([process])
    return [*lines, *filter(None, [what_is_left(folder, group)])]


def _all_turns(session: Session, folder: GroupDir, group: Group, todo: deque[Member], words: Sequence[str]) -> None:
    slots: list[str | None] = [None] if group.devices is None else list(group.devices)
    under_way: dict[str | None, _Turn] = {}
    total, said_waiting = len(todo), False
    with _progress(total) as bar:
        try:
            while todo or under_way:
                for slot, turn in list(under_way.items()):
                    if turn.child.poll() is not None:
                        del under_way[slot]
                        _after(folder, group, turn)
                        bar.update()
                for slot in slots:
                    if todo and slot not in under_way and (slot is None or is_free(slot)):
                        before = todo.popleft()
                        now = member(folder, before.point)
                        if not _is_as_it_was(before, now):  # stopped, removed or begun by hand meanwhile
                            log.info("%s is left alone: %s", now.run.id, _how_it_is(now))
                            bar.update()
                            continue
                        _begin(session, group, now, slot, words, under_way)
                if not under_way and todo and not said_waiting and group.devices is not None:
                    log.info("waiting for one of the devices %s; Ctrl-C gives it up", ", ".join(group.devices))
                    said_waiting = True
                bar.update(0, **_at_work(group, under_way))
                time.sleep(POLL_S)
        except BaseException:
            _stop(list(under_way.values()))
            raise


def _wait_for_farewells(folder: GroupDir, group: Group) -> None:
    """What was under way when the owner was killed is stopping: once it has, it is to be gone on with."""
    said, deadline = False, time.monotonic() + DEFAULT_GRACE_S
    while time.monotonic() < deadline:
        active = [each for each in members(folder, group) if each.record is not None and each.record.is_active()]
        if not active:
            return
        if not said:
            log.info("waiting for what is under way: %s", ", ".join(each.run.id for each in active))
            said = True
        time.sleep(POLL_S)


def _begin(
    session: Session, group: Group, now: Member, slot: str | None, words: Sequence[str],
    under_way: dict[str | None, _Turn],
) -> None:  # fmt: skip
    if slot is not None:
        try:
            _put_on_device(session, now, slot)
        except OrchestratorError as error:  # its spec was edited since
            if now.record is not None and not now.record.withdraw(now.run, "failed", error.message):
                log.warning("%s: %s", now.run.id, error.message)
            return
    number = group.points.index(now.point) + 1
    where = "" if slot is None else f" on device {slot}"
    log.info("%d of %d: %s%s: %s", number, len(group.points), group.label(now.point), where, now.run.id)
    with uninterrupted():
        child = start_supervisor(
            now.run.path, now.run.supervisor_log, words, {RUN_ENV: str(now.run.path)}, signal.SIGTERM
        )
        under_way[slot] = _Turn(now, child)


def _put_on_device(session: Session, now: Member, device: str) -> None:
    """Write the device into the run's spec, so that it can be run again alone as it ran."""
    override = f'compute.devices="{device}"'
    spec = session.load_spec(now.run.spec)
    if spec.compute.devices == device or now.record is None:
        return
    spec = session.load_spec(now.run.spec, [override])
    atomic_write(now.run.spec, spec_yaml(spec, ""))
    others = [each for each in now.record.overrides if not each.startswith("compute.devices=")]
    now.record.update(now.run, spec_sha256=spec_sha256(spec), overrides=[*others, override])


def _after(folder: GroupDir, group: Group, turn: _Turn) -> None:
    """Say how a run ended; one that did not even begin has failed."""
    found = member(folder, turn.member.point)
    if found.record is not None and found.record.awaits_turn:
        found.record.withdraw(found.run, "failed", f"it did not begin; last lines of its log:\n{turn.child.log_tail()}")
        found = member(folder, turn.member.point)
    level = logging.INFO if found.is_finished(with_benchmarks=False) else logging.WARNING
    log.log(level, "%s: %s: %s", group.label(found.point), found.run.id, _how_it_is(found))


def _stop(turns: Sequence[_Turn]) -> None:
    """Stop what is under way, all at once: each run is asked, saves a checkpoint, and says so in its record."""
    if turns:
        log.warning("stopping: what is under way saves a checkpoint first; Ctrl-C again ends it without")
    try:
        for turn in turns:
            if turn.child.poll() is None:
                turn.child.popen.terminate()
        deadline = time.monotonic() + DEFAULT_GRACE_S
        while any(turn.child.poll() is None for turn in turns) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    finally:
        for turn in turns:
            if turn.child.poll() is None:
                _end_at_once(turn)


def _end_at_once(turn: _Turn) -> None:
    record = RunRecord.load(turn.member.run)
    if record.is_active() and record.pid == turn.child.pid:
        stop_run(turn.member.run, 0)
    turn.child.stop(0)


def _is_as_it_was(before: Member, now: Member) -> bool:
    if before.record is None or now.record is None:
        return False
    then, since = (
        (each.awaits_turn, each.status, each.ended_at, len(each.attempts)) for each in (before.record, now.record)
    )
    return then == since


def _nothing_left(folder: GroupDir, found: Sequence[Member], with_benchmarks: bool) -> OrchestratorError:
    left = [each for each in found if not each.is_finished(with_benchmarks)]
    if not left:
        return SpecError(
            f"group {folder.id} is done: there is nothing to go on with", f"orchestrator compare {folder.id}"
        )
    listed = ", ".join(f"{each.run.id} is {_how_it_is(each)}" for each in left)
    return SpecError(f"nothing of {folder.id} can be gone on with here: {listed}")


def _how_it_is(each: Member) -> str:
    """'failed: CUDA out of memory', or 'done'."""
    error = each.record.error if each.record is not None else None
    return f"{each.status}: {error.splitlines()[0]}" if error else each.status


def _at_work(group: Group, under_way: dict[str | None, _Turn]) -> dict[str, str | None]:
    """What is shown beside the count: each run that is under way, and how far its training is."""
    found = []
    for turn in under_way.values():
        run: RunDir = turn.member.run
        try:
            record = RunRecord.load(run)
        except OrchestratorError:
            continue
        found.append(f"{group.label(turn.member.point)}: {progress(run, record) or record.status}")
    return {"now": "; ".join(found) or None}


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    with Progress(total, "sweep", "runs") as bar:
        if not sys.stderr.isatty():
            yield bar
            return
        from tqdm.contrib.logging import logging_redirect_tqdm

        with logging_redirect_tqdm():  # lines go above the bar
            yield bar
