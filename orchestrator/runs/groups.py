"""A group of runs, a sweep: which runs belong to it, how far each is, and which process carries the group out.

Covered: group.json, written whole before the first run begins and never again; the state of each run, read from its
own record; one owner at a time, by a lock that the kernel frees with it, however it ends.
Not covered: making a group and carrying it out (sweep.py).
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, Self

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write
from orchestrator.processes.family import start_ticks
from orchestrator.runs.axes import Axis, short_keys
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import damage
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.workspace import Workspace

SCHEMA_VERSION = 1
_PATIENCE_S = 2.0  # for one who only looks whether somebody holds the lock
_MAX_OWNER_BYTES = 10_000


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)  # a later version's field


class Point(_Part):
    """One run of a group."""

    run: str
    """Its id. Its folder, with its spec.yaml in it, is there before this is written."""
    values: list[str]
    """Of the axes, in their order, as YAML."""
    overrides: list[str]
    """All that was set in its spec, these values among it."""


class Group(_Part):
    """group.json."""

    schema_version: int = SCHEMA_VERSION
    id: str
    created_at: datetime
    spec_file: str
    axes: list[Axis]
    points: list[Point]
    with_benchmarks: bool
    devices: list[str] | None = None
    """The devices that each take one run at a time. None: one run after another, on the devices of its spec."""

    @classmethod
    def load(cls, folder: GroupDir) -> Self:
        """Read what a group is.

        Raises:
            PrerequisiteError: its file is damaged, or a later version's.
        """
        try:
            group = cls.model_validate_json(folder.file.read_bytes())
        except (OSError, ValidationError) as error:
            raise PrerequisiteError(f"{folder.file} cannot be read: {damage(error)}") from error
        if group.schema_version > SCHEMA_VERSION:
            raise PrerequisiteError(f"{folder.file} is of version {group.schema_version}; {SCHEMA_VERSION} is known")
        for point in group.points:
            if point.run in ("", ".", "..") or "/" in point.run or len(point.values) != len(group.axes):
                raise PrerequisiteError(f"{folder.file} is damaged: no point can be {point.run!r}, {point.values}")
        return group

    def save(self, folder: GroupDir) -> None:
        atomic_write(folder.file, self.model_dump_json(indent=2) + "\n")

    def label(self, point: Point) -> str:
        """'learning_rate=1e-5, lora_rank=8'."""
        return ", ".join(f"{key}={value}" for key, value in zip(short_keys(self.axes), point.values, strict=True))


class Member(NamedTuple):
    """A run of a group as it is now."""

    point: Point
    run: RunDir
    record: RunRecord | None
    """None: the run was not made yet, or was taken away, or its record is damaged."""

    @property
    def status(self) -> str:
        if self.record is not None:
            return self.record.status
        return "damaged" if self.run.record.exists() else "not made" if self.run.spec.exists() else "removed"

    def is_finished(self, with_benchmarks: bool) -> bool:
        """Whether nothing is left to do of it."""
        if self.record is None or self.record.is_active():
            return False
        return self.record.status == "done" or (self.record.status == "trained" and not with_benchmarks)

    def is_to_do(self, with_benchmarks: bool) -> bool:
        """Whether there is something left to do of it that nobody does."""
        return self.record is not None and not self.record.is_active() and not self.is_finished(with_benchmarks)


def members(folder: GroupDir, group: Group) -> list[Member]:
    """The runs of a group, as they are now."""
    return [member(folder, point) for point in group.points]


def member(folder: GroupDir, point: Point) -> Member:
    run = RunDir(folder.path.parent / point.run)
    try:
        record = RunRecord.load(run)
    except PrerequisiteError:
        return Member(point, run, None)
    return Member(point, run, record if record.group == folder.id else None)


def what_is_left(folder: GroupDir, group: Group) -> str:
    """How many of a group's runs nobody works on that are not done, and the next step; '' where there is none."""
    left = sum(each.is_to_do(group.with_benchmarks) for each in members(folder, group))
    if not left:
        return ""
    return f"{left} of {len(group.points)} runs are not done; to go on: orchestrator resume {folder.id}"


def group_json(folder: GroupDir, group: Group) -> dict[str, Any]:
    """What there is to know of a group, as plain JSON values."""
    found = []
    for point, run, record in members(folder, group):
        values = dict(zip([axis.key for axis in group.axes], point.values, strict=True))
        about: dict[str, Any] = {"run": run.id, "values": values, "status": member(folder, point).status}
        if record is not None:
            whole = record.as_json()
            about |= {key: whole[key] for key in ("error", "training", "benchmarks")}
        found.append(about)
    described = group.model_dump(mode="json", exclude={"points"})
    return {
        **described,
        "path": str(folder.path),
        "under_way": owner(folder) is not None,
        "interrupted": killed_owner(folder) is not None,
        "runs": found,
    }


def find_group(workspace: Workspace, word: str) -> GroupDir:
    """The group that a word means; SpecError where there is none."""
    found = workspace.lookup_group(word)
    if found is None:
        known = sorted(path.parent.name for path in workspace.runs.glob("*/group.json"))
        near = {*known, *(name[:-16] for name in known)}  # with the time, and without
        raise SpecError(
            f"no group {word!r} in {workspace.runs}{did_you_mean(word, near)}",
            f"there are: {', '.join(known)}" if known else "orchestrator launch SPEC --sweep KEY=A,B makes one",
        )
    return found


def lookup_group(workspace: Workspace, word: str) -> GroupDir | None:
    """The group that a word means where it means no run.

    Raises:
        SpecError: it may mean either.
    """
    folder = workspace.lookup_group(word)
    if folder is not None and word not in (folder.id, str(folder.path)) and word in workspace.run_words():
        workspace.lookup_run(word)  # says so
    return folder


# Who carries it out


class Owner(NamedTuple):
    """The process that carries a group out."""

    pid: int
    host: str
    start_ticks: int | None

    def process(self) -> psutil.Process | None:
        """The process itself; None where it is gone by now.

        Raises:
            PrerequisiteError: it is on another host.
        """
        if self.host != socket.gethostname():
            raise PrerequisiteError(f"the group is carried out by process {self.pid} on {self.host}", "stop it there")
        try:
            found = psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            return None
        return found if start_ticks(self.pid) == self.start_ticks else None


@contextmanager
def owned(folder: GroupDir) -> Iterator[None]:
    """Own a group for the length of the block.

    Raises:
        PrerequisiteError: another process owns it, or the file system has no locks.
    """
    with folder.owner_lock.open("a+b") as file:
        deadline = time.monotonic() + _PATIENCE_S
        while not _lock(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                found = _said(file.fileno())
                by = f" by process {found.pid}" if found else ""
                raise PrerequisiteError(f"{folder.id} is carried out{by}", f"orchestrator stop {folder.id}")
            time.sleep(0.05)
        said = Owner(os.getpid(), socket.gethostname(), start_ticks(os.getpid()))
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), json.dumps(said._asdict()).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(file.fileno(), 0)  # what stands there when the lock is free, somebody who was killed has left


def owner(folder: GroupDir) -> Owner | None:
    """Who carries a group out now; None: nobody."""
    try:
        file = os.open(folder.owner_lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not _lock(file, fcntl.LOCK_SH):
            found = _said(file)
            if found is not None and start_ticks(found.pid) == found.start_ticks:
                return found
            if time.monotonic() > deadline:  # it is on another host, or in a container of its own
                return found or Owner(0, "an unknown host", None)
            time.sleep(0.05)
        return None
    finally:
        os.close(file)


def killed_owner(folder: GroupDir) -> Owner | None:
    """Who carried a group out and is gone without a word; None: nobody, or it is carried out again."""
    if owner(folder) is not None or not folder.owner_lock.exists():
        return None
    with folder.owner_lock.open("rb") as file:
        return _said(file.fileno())


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise PrerequisiteError(
            f"a group's lock cannot be had: {error.strerror}", "put the workspace on a file system with locks"
        ) from error
    return True


def _said(file: int) -> Owner | None:
    try:
        found = Owner(**json.loads(os.pread(file, _MAX_OWNER_BYTES, 0)))
    except (ValueError, TypeError):  # it is written just now
        return None
    return found if isinstance(found.pid, int) and isinstance(found.host, str) else None
