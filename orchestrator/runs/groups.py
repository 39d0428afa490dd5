"""A group of runs, a sweep: its axes (`--sweep KEY=V1,V2,...`) and its runs, kept in group.json."""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from math import prod
from typing import Any, NamedTuple, Self

import yaml
from pydantic import BaseModel, Field, ValidationError

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import atomic_write
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import damage
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.state import current

MAX_POINTS = 1000  # more is a slip: each point is a training


class Axis(BaseModel, extra="allow", frozen=True):
    """One key of the spec and the values that it takes."""

    key: str  # dotted, as for --set
    values: list[str]  # YAML, as written on the command line


class Point(BaseModel, extra="allow", frozen=True):
    """One run of a group."""

    run: str = Field(pattern=r"^[^/]*[^/.][^/]*$")
    values: list[str]  # of the axes, in their order, as YAML


class Group(BaseModel, extra="allow", frozen=True):
    """group.json, written once, after the runs were made."""

    schema_version: int = 1
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
        """Read what a group is; PrerequisiteError where its file is damaged."""
        try:
            return cls.model_validate_json(folder.file.read_bytes())
        except (OSError, ValidationError) as error:
            raise PrerequisiteError(f"{folder.file} cannot be read: {damage(error)}") from error

    def save(self, folder: GroupDir) -> None:
        atomic_write(folder.file, self.model_dump_json(indent=2) + "\n")

    def label(self, point: Point) -> str:
        """'learning_rate=1e-5, lora_rank=8'."""
        return ", ".join(f"{key}={value}" for key, value in zip(short_keys(self.axes), point.values, strict=False))


class Member(NamedTuple):
    """A run of a group, read at one moment."""

    point: Point
    run: RunDir
    record: RunRecord | None  # None: the run was taken away, or its record is damaged

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
    return [member(folder, point) for point in group.points]


def member(folder: GroupDir, point: Point) -> Member:
    """A run of a group as it is now."""
    run = RunDir(folder.path.parent / point.run)
    record = None
    with suppress(PrerequisiteError):
        record = current(run)
    return Member(point, run, record if record and record.group == folder.id else None)


def remaining(folder: GroupDir, group: Group) -> str:
    """How many of a group's runs nobody works on that are not done, and the next step; '' where there is none."""
    left = sum(each.is_to_do() for each in members(folder, group))
    of = f"{left} of {len(group.points)} runs are not done"
    return f"{of}; to continue: orchestrator resume {folder.id}" if left else ""


def group_json(folder: GroupDir, group: Group) -> dict[str, Any]:
    """What there is to know of a group, as plain JSON values."""
    found = members(folder, group)
    runs: list[dict[str, Any]] = []
    for each in found:
        values = dict(zip((axis.key for axis in group.axes), each.point.values, strict=False))
        kept = each.record.as_json() if each.record is not None else {}
        about: dict[str, Any] = {key: kept[key] for key in ("error", "training", "benchmarks") if key in kept}
        runs.append({"run": each.run.id, "values": values, "status": each.status, **about})
    state = {"path": str(folder.path), "under_way": any(each.is_active() for each in found), "runs": runs}
    return {**group.model_dump(mode="json", exclude={"points"}), **state}


def read_axes(options: Sequence[str]) -> list[Axis]:
    """The axes of a sweep, of KEY=V1,V2,... each; SpecError: another form, a key twice, or too many points."""
    axes = [_read_axis(option) for option in options]
    keys = [axis.key for axis in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise SpecError(f"--sweep {twice} is there {keys.count(twice)} times", f"give its values in one: {twice}=A,B")
    if (count := prod(len(axis.values) for axis in axes)) > MAX_POINTS:
        raise SpecError(f"--sweep makes {count} runs; at most {MAX_POINTS} are taken", "leave some values out")
    return axes


def points(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """The values of each point, in the order of the axes; the last axis runs fastest."""
    return list(itertools.product(*(axis.values for axis in axes)))


def point_overrides(axes: Sequence[Axis], values: Sequence[str]) -> list[str]:
    """A point as `--set` has it."""
    return [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]


def short_keys(axes: Sequence[Axis]) -> list[str]:
    """The keys for tables: their last part where that tells them apart."""
    last = [axis.key.rpartition(".")[2] for axis in axes]
    return [short if last.count(short) == 1 else axis.key for axis, short in zip(axes, last, strict=True)]


def _read_axis(option: str) -> Axis:
    key, _, text = option.partition("=")
    listed = f"[{text}]"
    try:
        node = yaml.compose(listed, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        node = None
    # "1 #" or "1]" would end the list early
    items = node.value if isinstance(node, yaml.SequenceNode) and node.end_mark.index == len(listed) else []
    values = [listed[item.start_mark.index : item.end_mark.index].strip() for item in items]
    if not key.strip() or not values or not all(values):
        raise SpecError(
            f"--sweep {option}: expected KEY=V1,V2,... with YAML values, none empty",
            "such as --sweep train.lora_rank=8,16; quote text that holds commas: --sweep 'KEY=\"a, b\",c'",
        )
    return Axis(key=key.strip(), values=values)
