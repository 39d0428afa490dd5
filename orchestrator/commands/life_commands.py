"""Commands that carry a run out: start it, continue it, start it again.

Flags in, one call, results on stdout, everything else on stderr.
"""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.app import app
from orchestrator.commands.options import (
    DetachOption,
    FromOption,
    JsonOption,
    NoBenchmarkOption,
    RunArgument,
    RunOrGroupArgument,
    SetOption,
    WaitOption,
    WorkspaceOption,
    given_folder,
    open_session,
    say,
)
from orchestrator.errors import SpecError

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan
    from orchestrator.planning.session import Session
    from orchestrator.runs.owner import OwnedRun
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.record_parts import Request

# The modules of the stages are imported within the commands: --help and a mistyped flag answer at once.


@app.command(epilog="Example: orchestrator launch runs/demo.yaml --sweep train.learning_rate=1e-4,5e-4")
def launch(
    spec: Annotated[Path, typer.Argument(help="A spec file.")],
    overrides: SetOption = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,...", help="A run for each value, and for all combinations where repeated."),
    ] = None,
    per_device: Annotated[
        bool, typer.Option("--per-device", help="With --sweep: one run at a time on each device, not one in all.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, show the command, start nothing.")] = False,
    detach: DetachOption = False,
    no_benchmark: NoBenchmarkOption = False,
    wait: WaitOption = False,
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prepare the data, train, and benchmark, as the spec says."""
    from orchestrator.commands import sweeps
    from orchestrator.lifecycle.new_run import Provenance, new_run
    from orchestrator.lifecycle.sweep import make_group, plan_sweep
    from orchestrator.planning.plan import plan_run, render_files
    from orchestrator.views import terminal

    if dry_run and detach:
        raise SpecError("--dry-run starts nothing, so there is nothing to detach", "leave one of them out")
    if per_device and not sweep:
        raise SpecError("--per-device is for a sweep", "add --sweep KEY=A,B; or name devices: compute.devices")
    session = open_session(workspace, archives)
    request = _request(no_benchmark, wait, archives)
    if sweep:
        planned = plan_sweep(session, spec, overrides or (), sweep, per_device=per_device)
        if dry_run:
            sweeps.print_points(session, planned, as_json)
            return
        group = make_group(session, planned, request)
        sweeps.carry_out_group(session, group, detach=detach, as_json=as_json)
        return
    checked = session.load_spec(spec, overrides or ())
    plan = plan_run(session, checked, ask=True)
    if dry_run:
        files = render_files(session, plan.spec)
        if files:
            terminal.print_file(files, "command.txt" if "command.txt" in files else "api.yaml", str(spec))
        else:
            say(f"nothing would be started: {checked.serve.url} is asked")
        return
    owned = new_run(session, plan, Provenance(str(spec), overrides or ()), request)
    _carry_out(session, owned, plan, detach=detach, as_json=as_json)


@app.command(epilog="Example: orchestrator resume demo --from checkpoint-200")
def resume(
    run: RunOrGroupArgument,
    label: Annotated[
        str | None, typer.Option("--from", help="The checkpoint to resume from. Default: the newest complete one.")
    ] = None,
    detach: DetachOption = False,
    no_benchmark: NoBenchmarkOption = False,
    wait: WaitOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a run that was stopped, failed or interrupted, in its own folder; completed stages are skipped.

    Of a group, all its runs that are not done.
    """
    from orchestrator.commands import sweeps
    from orchestrator.lifecycle.resume import plan_resume, take_up
    from orchestrator.lifecycle.scheduler import renew_requests
    from orchestrator.runs.groups import lookup_group

    session = open_session(workspace, None)
    if (group := lookup_group(session.workspace, run)) is not None:
        if label is not None:
            raise SpecError("--from is for a run: each run of a group resumes from its own newest complete checkpoint")
        renew_requests(group, with_benchmarks=not no_benchmark)
        sweeps.carry_out_group(session, group, detach=detach, as_json=as_json)
        return
    found = session.workspace.find_run(run)
    plan, request = plan_resume(session, found, label, no_benchmark=no_benchmark, wait=wait)
    _carry_out(session, take_up(found, request), plan, detach=detach, as_json=as_json)


@app.command(epilog="Example: orchestrator rerun demo --strict")
def rerun(
    run: RunArgument,
    overrides: SetOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse when the data or the model differ.")] = False,
    detach: DetachOption = False,
    no_benchmark: NoBenchmarkOption = False,
    wait: WaitOption = False,
    into: Annotated[
        Path | None,
        typer.Option(
            "--in",
            metavar="PATH",
            parser=given_folder,
            help="Run it in this other workspace; datasets that it lacks are copied.",
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a past run's saved spec again, under a new id; what differs now is said first."""
    from orchestrator.lifecycle.cross_workspace import saved_run
    from orchestrator.lifecycle.new_run import new_run
    from orchestrator.lifecycle.pipeline import plan_rerun
    from orchestrator.runs.workspace import find_workspace

    session = open_session(into or workspace, archives)
    try:
        place = find_workspace(workspace)
    except SpecError:  # a run that is named by its path needs none
        place = None
    past = saved_run(run, place)
    plan, provenance = plan_rerun(session, past, overrides or (), strict=strict)
    again = new_run(session, plan, provenance, _request(no_benchmark, wait, archives))
    _carry_out(session, again, plan, detach=detach, as_json=as_json)


@app.command(hidden=True)
def supervise(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, or of a group.")],
    lock: Annotated[int | None, typer.Option(help="The open file that makes this process the run's owner.")] = None,
) -> None:
    """Carry a run or a group out, as its owner; `launch --detach` and a job of Slurm start this."""
    from orchestrator.lifecycle import supervise as supervising

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it outlives the terminal
    supervising.supervise(folder, lock)


def _request(no_benchmark: bool, wait: bool, archives: Path | None) -> "Request":
    from orchestrator.runs.record_parts import Request

    kept = str(archives.absolute()) if archives is not None else None
    return Request(with_benchmarks=not no_benchmark, wait=wait, archives=kept)


def _carry_out(session: "Session", owned: "OwnedRun", plan: "Plan", *, detach: bool, as_json: bool) -> None:
    """Here, or in the background."""
    from orchestrator.lifecycle.executors import local, slurm
    from orchestrator.lifecycle.new_run import RunOptions
    from orchestrator.lifecycle.pipeline import carry_out
    from orchestrator.runs.record import RunRecord
    from orchestrator.views import terminal

    run = owned.run
    if detach or plan.spec.compute.slurm is not None:
        executor = local if plan.spec.compute.slurm is None else slurm
        executor.submit(session, [owned], plan.spec, run.id)
        _say_under_way(RunRecord.load(run), as_json)
        return
    carry_out(session, owned, RunOptions(), plan)
    record = RunRecord.load(run)
    if as_json:
        terminal.print_json(record.as_json())
        return
    terminal.print_scores(record.benchmarks)
    typer.echo(f"\n{record.status}: {run.path}")


def _say_under_way(record: "RunRecord", as_json: bool) -> None:
    from orchestrator.views import terminal

    doing = f"waits for {record.waits_for}" if record.waits_for else "runs in the background"
    if record.job is not None:
        then = f", its benchmarks job {record.benchmark_job.id} after that" if record.benchmark_job else ""
        say(f"{record.id} is Slurm job {record.job.id}{then}")
    else:
        say(f"{record.id} {doing}, in process {record.pid}")
    say(f"to follow it: orchestrator logs {record.id} -f")
    say(f"to stop it:   orchestrator stop {record.id}")
    if as_json:
        terminal.print_json(record.as_json())
    else:
        typer.echo(record.id)
