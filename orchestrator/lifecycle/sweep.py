"""A sweep: one spec at every point of some axes, all checked first, each a plain run of its own, together a group."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from textwrap import indent

from orchestrator.errors import OrchestratorError, PrerequisiteError, SpecError
from orchestrator.lifecycle.new_run import Provenance, devices_needed, make_run
from orchestrator.planning.ask_llamafactory import ask_llamafactory
from orchestrator.planning.plan import Plan, plan_run, raise_or_log
from orchestrator.planning.session import Session
from orchestrator.runs.groups import Axis, Group, Point, point_overrides, points, read_axes
from orchestrator.runs.machine import devices_of, hold_devices, is_free
from orchestrator.runs.record import now
from orchestrator.runs.record_parts import Request
from orchestrator.runs.rundir import GroupDir
from orchestrator.specs.spec import RunSpec, spec_sha256

log = logging.getLogger("orchestrator")


@dataclass(frozen=True)
class Sweep:
    """What a sweep would run: checked, nothing made yet."""

    spec_file: Path
    axes: list[Axis]
    values: list[tuple[str, ...]]  # of each point, in the order of the axes
    overrides: list[list[str]]  # of each point, all of them
    plans: list[Plan]  # of each point, without the texts of its datasets: they would be held once for each
    devices: list[str] | None  # the devices that each take one run at a time


def plan_sweep(
    session: Session, spec_file: Path, overrides: Sequence[str], sweep: Sequence[str], *, per_device: bool
) -> Sweep:
    """Check every point of a sweep: the spec with --set `overrides`, and an axis KEY=V1,V2,... for each of `sweep`.

    Raises SpecError, PrerequisiteError: all that is wrong, by point.
    """
    axes = read_axes(sweep)
    for axis in axes:
        if any(each.partition("=")[0].strip() == axis.key for each in overrides):
            raise SpecError(f"{axis.key} is given to --set and to --sweep", "leave one of them out")
    values = points(axes)
    by_point = [[*overrides, *point_overrides(axes, each)] for each in values]
    log.info("checking %d points", len(values))
    plans: list[Plan] = []
    errors: dict[str, list[int]] = {}
    kinds: set[type[OrchestratorError]] = set()

    @contextmanager
    def collected(number: int) -> Iterator[None]:
        try:
            yield
        except OrchestratorError as error:
            text = indent(error.message, "  ") + (f"\n  try: {error.remedy}" if error.remedy else "")
            errors.setdefault(text, []).append(number)
            kinds.add(type(error))

    for number, own in enumerate(by_point):
        with collected(number):
            plan = plan_run(session, session.load_spec(spec_file, own))
            if plan.spec.train is None and not plan.spec.benchmark:
                raise SpecError(f"{plan.spec.name} neither trains nor benchmarks")
            plans.append(replace(plan, texts={}, datasets={}, own={}))
    for number, answer in enumerate(ask_llamafactory(session, [plan.spec for plan in plans]) if not errors else ()):
        with collected(number):
            raise_or_log(answer.findings)
    if errors:
        kind = SpecError if SpecError in kinds else PrerequisiteError
        message = _by_point(errors, [", ".join(point_overrides(axes, each)) for each in values])
        raise kind(message, "correct these, or leave these values out")
    if len({spec_sha256(plan.spec) for plan in plans}) < len(plans):
        raise SpecError("two points are the same run", "leave one of the values out")
    if any(plan.spec.compute.slurm != plans[0].spec.compute.slurm for plan in plans):
        raise SpecError("compute.slurm cannot be swept: the runs are the tasks of one job array")
    devices = _per_device([plan.spec for plan in plans]) if per_device else None
    if devices is not None:  # one that is resumed alone takes one device too
        by_point = [[*own, f'compute.devices="{devices[0]}"'] for own in by_point]
        compute = {"compute": plans[0].spec.compute.model_copy(update={"devices": devices[0]})}
        plans = [replace(plan, spec=plan.spec.model_copy(update=compute)) for plan in plans]
    return Sweep(spec_file, axes, values, by_point, plans, devices)


def make_group(session: Session, sweep: Sweep, request: Request) -> GroupDir:
    """Make a group and its runs, each `planned`. If it is killed the runs made so far stay, as planned ones.

    Raises PrerequisiteError: the devices are in use, and it would not wait.
    """
    if not request.wait and (sweep.devices is None or not any(map(is_free, sweep.devices))):
        with hold_devices(sweep.devices or devices_needed(sweep.plans[0].spec, request), None):
            pass
    folder = session.workspace.new_group(sweep.plans[0].spec.name, datetime.now())
    own = request.model_copy(update={"wait": True})  # for the run before it
    made: list[Point] = []
    try:
        for plan, values, overrides in zip(sweep.plans, sweep.values, sweep.overrides, strict=True):
            origin = Provenance(str(sweep.spec_file), overrides, group=folder.id, values=values)
            with make_run(session, plan, origin, own, status="planned") as owned:
                made.append(Point(run=owned.run.id, values=list(values)))
        group = Group(
            id=folder.id, created_at=now(), spec_file=str(sweep.spec_file), axes=sweep.axes, points=made,
            with_benchmarks=request.with_benchmarks, devices=sweep.devices,
        )  # fmt: skip
        group.save(folder)
    except BaseException:
        for path in (folder.path, *(session.workspace.runs / point.run for point in made)):
            shutil.rmtree(path, ignore_errors=True)
        raise
    log.info("group %s: %d runs", folder.id, len(made))
    return folder


def _by_point(errors: dict[str, list[int]], labels: Sequence[str]) -> str:
    blocks = []
    for text, numbers in errors.items():
        more = f", and {len(numbers) - 1} more points" if len(numbers) > 1 else ""
        blocks.append(f"{labels[numbers[0]]}{more}\n{text}")
    count = len({number for numbers in errors.values() for number in numbers})
    return "\n\n".join([f"{count} of {len(labels)} points of the sweep cannot run; nothing was started", *blocks])


def _per_device(specs: Sequence[RunSpec]) -> list[str]:
    for spec in specs:
        compute, serve = spec.compute, spec.serve
        refused = {
            "compute.nproc_per_node or nnodes": max(compute.nproc_per_node or 1, compute.nnodes or 1) > 1,
            "compute.slurm": compute.slurm is not None,
            "a sweep of compute.devices": compute.devices != specs[0].compute.devices,
            "serve.devices": serve.devices is not None,
            "serve.port": serve.port is not None and bool(spec.benchmark),
        }
        if found := [what for what, is_so in refused.items() if is_so]:
            raise SpecError(f"--per-device does not go with {found[0]}", "leave one of the two out")
    devices = devices_of([specs[0].compute.devices])
    if not devices:
        raise PrerequisiteError(
            "--per-device: there is no device here: nvidia-smi lists none, and none is named",
            """leave --per-device out, or name some: --set 'compute.devices="0,1"'""",
        )
    return devices
