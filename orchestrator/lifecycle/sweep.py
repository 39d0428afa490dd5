"""A sweep: one spec at every point of some axes, each a plain run of its own, together a group.

    --sweep KEY=A,B ... -> the points' specs, all checked -> run folders with their specs -> group.json -> records

Covered: all that is wrong with any point, at once and before anything is made; points that are the same; a group whose
runs are made and not begun, so that whatever carries them out (turns.py here, a scheduler elsewhere) finds them
complete; making up for what a kill left unmade.
Not covered: carrying the runs out (turns.py).
Leaves runs/<name>-sweep-<YYYYMMDD-HHMMSS>/group.json, and a run folder for each point.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from textwrap import indent

from orchestrator.errors import OrchestratorError, PrerequisiteError, SpecError
from orchestrator.lifecycle.new_run import How, Origin, devices_needed, first_record, reserve_run
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.planning.session import Session
from orchestrator.runs.axes import Axis, point_overrides, points, read_axes
from orchestrator.runs.groups import Group, Point, members
from orchestrator.runs.locks import devices_of, held, is_free
from orchestrator.runs.record import now
from orchestrator.runs.rundir import GroupDir
from orchestrator.specs.spec import RunSpec, spec_sha256

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class Sweep:
    """What a sweep would run: checked, nothing made yet."""

    spec_file: Path
    axes: list[Axis]
    values: list[tuple[str, ...]]
    """Of each point, in the order of the axes."""
    overrides: list[list[str]]
    """Of each point, all of them."""
    plans: list[Plan]
    """Of each point; the texts of its datasets are left out, they would be held as often as there are points."""
    devices: list[str] | None
    """The devices that each take one run at a time."""


def plan_sweep(
    session: Session,
    spec_file: Path,
    overrides: Sequence[str],
    words: Sequence[str],
    *,
    per_device: bool,
) -> Sweep:
    """Check every point of a sweep.

    Args:
        session: the workspace and its tools.
        spec_file: the spec.
        overrides: --set KEY=VALUE, for every point.
        words: --sweep KEY=V1,V2,..., an axis each.
        per_device: one run at a time on each device.

    Raises:
        SpecError, PrerequisiteError: all that is wrong, by point.
    """
    axes = read_axes(words)
    for axis in axes:
        if any(each.partition("=")[0].strip() == axis.key for each in overrides):
            raise SpecError(f"{axis.key} is given to --set and to --sweep", "leave one of them out")
    values = points(axes)
    by_point = [[*overrides, *point_overrides(axes, each)] for each in values]
    log.info("checking %d points", len(values))
    plans: list[Plan] = []
    errors: list[tuple[int, OrchestratorError]] = []
    with _said_once():
        for number, own in enumerate(by_point):
            try:
                plan = plan_run(session, session.load_spec(spec_file, own))
                if plan.spec.train is None and not plan.spec.benchmark:
                    raise SpecError(f"{plan.spec.name} neither trains nor benchmarks")
            except OrchestratorError as error:
                errors.append((number, error))
                continue
            plans.append(replace(plan, texts={}, datasets={}, own={}))
    if errors:
        raise _all_at_once(errors, axes, values)
    _refuse_the_same(plans, axes, values)
    if any(plan.spec.compute.slurm != plans[0].spec.compute.slurm for plan in plans):
        raise SpecError("compute.slurm cannot be swept: the runs are the tasks of one job array")
    devices = _per_device(plans) if per_device else None
    if devices is not None:
        first = f'compute.devices="{devices[0]}"'
        by_point = [[*own, first] for own in by_point]
        plans = [replace(plan, spec=_on_device(plan.spec, devices[0])) for plan in plans]
    return Sweep(spec_file, axes, values, by_point, plans, devices)


def make_group(session: Session, sweep: Sweep, how: How) -> GroupDir:
    """Make a group and its runs, none of them begun: members() gives them, each `queued`.

    What carries them out needs their folders alone. A kill in between leaves either no group, or one that make_missing
    completes.

    Raises:
        PrerequisiteError: the devices are in use, and it would not wait.
    """
    if how.exclusive and not how.wait:
        _refuse_taken(sweep, how)
    folder = session.workspace.new_group(sweep.plans[0].spec.name, datetime.now())
    runs = []
    try:
        for plan in sweep.plans:
            runs.append(reserve_run(session, plan))
        made = [
            Point(run=run.id, values=list(values), overrides=own)
            for run, values, own in zip(runs, sweep.values, sweep.overrides, strict=True)
        ]
        group = Group(
            id=folder.id, created_at=now(), spec_file=str(sweep.spec_file), axes=sweep.axes, points=made,
            with_benchmarks=how.with_benchmarks, devices=sweep.devices,
        )  # fmt: skip
        group.save(folder)
    except BaseException:
        if not folder.file.exists():  # they hold a spec each, and are no runs yet
            for path in (folder.path, *(run.path for run in runs)):
                shutil.rmtree(path)
        raise
    for run, plan, point in zip(runs, sweep.plans, made, strict=True):
        origin = Origin(group.spec_file, point.overrides, group=folder.id)
        first_record(session, run, plan, origin, with_benchmarks=group.with_benchmarks, queued=True)
    log.info("group %s: %d runs", folder.id, len(made))
    return folder


def make_missing(session: Session, folder: GroupDir, group: Group) -> None:
    """Make the runs that a kill left unmade; one that cannot be made is said, and does not stop the others."""
    for point, run, record in members(folder, group):
        if record is not None or run.record.exists() or not run.spec.is_file():
            continue
        try:
            plan = plan_run(session, session.load_spec(run.spec))
        except OrchestratorError as error:
            log.warning("%s cannot be made: %s", run.id, error.message)
            continue
        origin = Origin(group.spec_file, point.overrides, group=folder.id)
        first_record(session, run, plan, origin, with_benchmarks=group.with_benchmarks, queued=True)


def _all_at_once(
    errors: Sequence[tuple[int, OrchestratorError]], axes: Sequence[Axis], values: Sequence[tuple[str, ...]]
) -> OrchestratorError:
    """The points' errors as one; what several have in common is said once."""
    kind = SpecError if any(isinstance(error, SpecError) for _, error in errors) else PrerequisiteError
    alike: dict[tuple[str, str], list[int]] = {}
    for number, error in errors:
        alike.setdefault((error.message, error.remedy), []).append(number)
    blocks = []
    for (message, remedy), numbers in alike.items():
        named = [", ".join(point_overrides(axes, values[number])) for number in numbers[:3]]
        more = [f"... and {len(numbers) - 3} more points"] if len(numbers) > 3 else []
        every = ["every point"] if len(numbers) == len(values) and len(values) > 1 else [*named, *more]
        blocks.append("\n".join([*every, indent(message, "  "), *([f"  try: {remedy}"] if remedy else [])]))
    head = f"{len(errors)} of {len(values)} points of the sweep cannot run; nothing was started"
    return kind("\n\n".join([head, *blocks]), "correct these, or leave these values out")


def _refuse_the_same(plans: Sequence[Plan], axes: Sequence[Axis], values: Sequence[tuple[str, ...]]) -> None:
    seen: dict[str, tuple[str, ...]] = {}
    for plan, own in zip(plans, values, strict=True):
        earlier = seen.setdefault(spec_sha256(plan.spec), own)
        if earlier is not own:
            both = (" ".join(point_overrides(axes, each)) for each in (earlier, own))
            raise SpecError(f"two points are the same run: {' and '.join(both)}", "leave one of the values out")


def _per_device(plans: Sequence[Plan]) -> list[str]:
    """The devices of a sweep that takes one for each run.

    Raises:
        SpecError: a run of it would want more than one device, or one that another has too.
        PrerequisiteError: there is none.
    """
    for spec in (plan.spec for plan in plans):
        compute = spec.compute
        if (compute.nproc_per_node or 1) > 1 or (compute.nnodes or 1) > 1:
            raise SpecError("--per-device is for runs on one device: compute.nproc_per_node and nnodes want more")
        if compute.slurm is not None:
            raise SpecError("--per-device is for this machine: Slurm gives each task of compute.slurm its devices")
        if compute.devices != plans[0].spec.compute.devices:
            raise SpecError("--per-device chooses the device: compute.devices cannot be swept")
        if spec.serve.devices is not None:
            raise SpecError("--per-device chooses the device: leave serve.devices out")
        if spec.serve.port is not None and spec.benchmark:
            raise SpecError(
                f"--per-device starts a server for each run: they cannot all have serve.port {spec.serve.port}",
                "leave it out: --set serve.port=null; then each takes a free one",
            )
    devices = devices_of([plans[0].spec.compute.devices])
    if not devices:
        raise PrerequisiteError(
            "--per-device: there is no device here: nvidia-smi lists none, and none is named",
            """leave --per-device out, or name some: --set 'compute.devices="0,1"'""",
        )
    return devices


def _on_device(spec: RunSpec, device: str) -> RunSpec:
    return spec.model_copy(update={"compute": spec.compute.model_copy(update={"devices": device})})


def _refuse_taken(sweep: Sweep, how: How) -> None:
    if sweep.devices is None or not any(map(is_free, sweep.devices)):
        wanted = sweep.devices or devices_needed(sweep.plans[0].spec, how)
        with held(wanted, None):
            pass


@contextmanager
def _said_once() -> Iterator[None]:
    """What is said of several points alike is said once."""
    said: set[str] = set()

    def is_news(line: logging.LogRecord) -> bool:
        text = line.getMessage()
        is_new = text not in said
        said.add(text)
        return is_new

    log.addFilter(is_news)
    try:
        yield
    finally:
        log.removeFilter(is_news)
