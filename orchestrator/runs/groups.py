"""A group of runs, a sweep: group.json has its axes and its runs; how far it is stands in the runs' own records."""

from datetime import datetime
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write
from orchestrator.runs.axes import Axis, short_keys
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import damage
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.state import current
from orchestrator.runs.workspace import Workspace

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)  # another version's field


class Point(_Part):
    """One run of a group."""

    run: str
    """Its id."""
    values: list[str]
    """Of the axes, in their order, as YAML."""


class Group(_Part):
    """group.json, written once, after the runs were made."""

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
    """None: the run was taken away, or its record is damaged."""

    @property
    def status(self) -> str:
        if self.record is not None:
            return self.record.status
        return "damaged" if self.run.record.exists() else "removed"

    def is_active(self) -> bool:
        return self.record is not None and self.record.is_active()

    def is_finished(self) -> bool:
        return self.status == "done"

    def is_to_do(self) -> bool:
        """Whether there is something left to do of it that nobody does."""
        return self.record is not None and not self.is_active() and not self.is_finished()

    def line(self) -> str:
        """'failed: CUDA out of memory', or 'done'."""
        error = self.record.error if self.record is not None else None
        return f"{self.status}: {error.splitlines()[0]}" if error else self.status


def members(folder: GroupDir, group: Group) -> list[Member]:
    """The runs of a group, as they are now."""
    return [member(folder, point) for point in group.points]


def member(folder: GroupDir, point: Point) -> Member:
    run = RunDir(folder.path.parent / point.run)
    try:
        record = current(run)
    except PrerequisiteError:
        return Member(point, run, None)
    return Member(point, run, record if record.group == folder.id else None)


def remaining(folder: GroupDir, group: Group) -> str:
    """How many of a group's runs nobody works on that are not done, and the next step; '' where there is none."""
    left = sum(each.is_to_do() for each in members(folder, group))
    if not left:
        return ""
    return f"{left} of {len(group.points)} runs are not done; to continue: orchestrator resume {folder.id}"


def group_json(folder: GroupDir, group: Group) -> dict[str, Any]:
    """What there is to know of a group, as plain JSON values."""
    found = members(folder, group)
    runs = []
    for each in found:
        values = dict(zip([axis.key for axis in group.axes], each.point.values, strict=True))
        about: dict[str, Any] = {"run": each.run.id, "values": values, "status": each.status}
        if each.record is not None:
            kept = each.record.as_json()
            about |= {key: kept[key] for key in ("error", "training", "benchmarks")}
        runs.append(about)
    described = group.model_dump(mode="json", exclude={"points"})
    under_way = any(each.is_active() for each in found)
    return {**described, "path": str(folder.path), "under_way": under_way, "runs": runs}


def find_group(workspace: Workspace, selector: str) -> GroupDir:
    """The group of an id or a name; SpecError where there is none."""
    found = workspace.lookup_group(selector)
    if found is None:
        known = sorted(path.parent.name for path in workspace.runs.glob("*/group.json"))
        near = {*known, *(name[:-16] for name in known)}  # with the time, and without
        raise SpecError(
            f"no group {selector!r} in {workspace.runs}{did_you_mean(selector, near)}",
            f"there are: {', '.join(known)}" if known else "orchestrator launch SPEC --sweep KEY=A,B makes one",
        )
    return found


def lookup_group(workspace: Workspace, selector: str) -> GroupDir | None:
    """The group that a selector means where it means no run.

    Raises:
        SpecError: it may mean either.
    """
    folder = workspace.lookup_group(selector)
    if folder is not None and selector not in (folder.id, str(folder.path)) and selector in workspace.run_words():
        workspace.lookup_run(selector)  # raises
    return folder
