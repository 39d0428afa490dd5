"""Commands that carry a run out: start it, go on with it, start it again.

Flags in, one call, results on stdout, everything else on stderr.
"""

import os
import signal
from dataclasses import replace
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
from orchestrator.errors import PrerequisiteError, SpecError

if TYPE_CHECKING:
    from orchestrator.lifecycle.new_run import How
    from orchestrator.planning.plan import Plan
    from orchestrator.planning.session import Session
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.rundir import RunDir

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
    from orchestrator.lifecycle.new_run import How, Origin, new_run
    from orchestrator.lifecycle.sweep import make_group, plan_sweep
    from orchestrator.planning.plan import plan_run, render_files
    from orchestrator.views import terminal

    if dry_run and detach:
        raise SpecError("--dry-run starts nothing, so there is nothing to detach", "leave one of them out")
    if per_device and not sweep:
        raise SpecError("--per-device is for a sweep", "add --sweep KEY=A,B; or name devices: compute.devices")
    session = open_session(workspace, archives)
    how = How(with_benchmarks=not no_benchmark, wait=wait)
    if sweep:
        planned = plan_sweep(session, spec, overrides or (), sweep, per_device=per_device)
        if dry_run:
            sweeps.print_points(session, planned, as_json)
            return
        group, words = make_group(session, planned, how), _supervisor_words(session, archives, how)
        sweeps.carry_out_group(session, group, how, words, detach=detach, as_json=as_json)
        return
    checked = session.load_spec(spec, overrides or ())
    plan = plan_run(session, checked)
    if dry_run:
        files = render_files(session, plan.spec)
        if files:
            terminal.print_file(files, "command.txt" if "command.txt" in files else "api.yaml", str(spec))
        else:
            say(f"nothing would be started: {checked.serve.url} is asked")
        return
    run = new_run(session, plan, Origin(str(spec), overrides or ()), how)
    _carry_out(session, run, how, plan, archives=archives, detach=detach, as_json=as_json)


@app.command(epilog="Example: orchestrator resume demo --from checkpoint-200")
def resume(
    run: RunOrGroupArgument,
    label: Annotated[
        str | None, typer.Option("--from", help="The checkpoint to go on from. Default: the newest whole one.")
    ] = None,
    detach: DetachOption = False,
    no_benchmark: NoBenchmarkOption = False,
    wait: WaitOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was stopped, failed or interrupted, in its own folder; what is whole is not done again.

    Of a group, with all its runs that are not done.
    """
    from orchestrator.commands import sweeps
    from orchestrator.lifecycle.new_run import How
    from orchestrator.lifecycle.resume import plan_resume
    from orchestrator.runs.groups import lookup_group

    session = open_session(workspace, None)
    if (group := lookup_group(session.workspace, run)) is not None:
        if label is not None:
            raise SpecError("--from is for a run: each run of a group goes on from its own newest whole checkpoint")
        how = How(with_benchmarks=not no_benchmark, wait=True)
        words = _supervisor_words(session, None, how)
        sweeps.carry_out_group(session, group, how, words, detach=detach, as_json=as_json)
        return
    found = session.workspace.find_run(run)
    plan, with_benchmarks = plan_resume(session, found, label, no_benchmark=no_benchmark)
    how = How(with_benchmarks=with_benchmarks, wait=wait, checkpoint=label)
    _carry_out(session, found, how, plan, archives=None, detach=detach, as_json=as_json)


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
    from orchestrator.lifecycle.new_run import How, new_run
    from orchestrator.lifecycle.pipeline import plan_rerun
    from orchestrator.runs.rundir import find_workspace

    session = open_session(into or workspace, archives)
    try:
        place = find_workspace(workspace)
    except SpecError:  # a run that is named by its path needs none
        place = None
    past = saved_run(run, place)
    plan, origin = plan_rerun(session, past, overrides or (), strict=strict)
    how = How(with_benchmarks=not no_benchmark, wait=wait)
    again = new_run(session, plan, origin, how)
    _carry_out(session, again, how, plan, archives=archives, detach=detach, as_json=as_json)


@app.command(hidden=True)
def supervise(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, or of a group.")],
    cwd: Annotated[Path, typer.Option(help="The folder that relative paths are meant from.")],
    workspace: WorkspaceOption = None,
    archives: FromOption = None,
    no_benchmark: NoBenchmarkOption = False,
    wait: WaitOption = False,
    label: Annotated[str | None, typer.Option("--checkpoint", help="As resume's --from.")] = None,
    in_job: Annotated[bool, typer.Option("--slurm", help="As the job of Slurm that this process is in.")] = False,
) -> None:
    """Carry a run or a group out, as its owner; `launch --detach` and a job of Slurm start this."""
    from orchestrator.lifecycle.new_run import How
    from orchestrator.lifecycle.pipeline import carry_out
    from orchestrator.lifecycle.scheduler import take_turns
    from orchestrator.runs import slurm
    from orchestrator.runs.rundir import GroupDir, RunDir

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal's end is none of its business
    try:
        os.chdir(cwd)
    except OSError as error:
        raise PrerequisiteError(f"{cwd} cannot be gone to: {error.strerror}") from error
    how = How(with_benchmarks=not no_benchmark, wait=wait, checkpoint=label)
    session = open_session(workspace, archives)
    if GroupDir(folder).file.is_file():
        take_turns(session, GroupDir(folder), how, _supervisor_words(session, archives, how))
        return
    if in_job:
        again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # it goes on from its own checkpoint, then
        how = replace(how, job=slurm.own_job(), checkpoint=None if again else label)
    carry_out(session, RunDir(folder), how)


def _carry_out(
    session: "Session", run: "RunDir", how: "How", plan: "Plan", *, archives: Path | None, detach: bool, as_json: bool
) -> None:
    """Here, or in a supervisor, or by a job of Slurm."""
    from orchestrator.lifecycle import jobs, supervise
    from orchestrator.lifecycle.pipeline import carry_out
    from orchestrator.runs.record import RunRecord
    from orchestrator.views import terminal

    if plan.spec.compute.slurm is not None:
        words = [*_supervisor_words(session, archives, how), "--slurm", "--cwd", str(Path.cwd())]
        _say_under_way(jobs.submit(session, run, plan.spec, words, with_benchmarks=how.with_benchmarks), as_json)
        return
    if detach:
        _say_under_way(supervise.detach(run, _supervisor_words(session, archives, how)), as_json)
        return
    carry_out(session, run, how, plan)
    record = RunRecord.load(run)
    if as_json:
        terminal.print_json(record.as_json())
        return
    terminal.print_scores(record.benchmarks)
    typer.echo(f"\n{record.status}: {run.path}")


def _supervisor_words(session: "Session", archives: Path | None, how: "How") -> list[str]:
    """What `supervise` is told."""
    words = ["--workspace", str(session.workspace.root)]
    words += ["--from", str(archives.absolute())] if archives is not None else []
    words += ["--no-benchmark"] * (not how.with_benchmarks) + ["--wait"] * how.wait
    return [*words, *(["--checkpoint", how.checkpoint] if how.checkpoint is not None else [])]


def _say_under_way(record: "RunRecord", as_json: bool) -> None:
    from orchestrator.views import terminal

    said = f"waits for {record.waits_for}" if record.waits_for else "goes on in the background"
    if record.job is not None:
        then = f", its benchmarks job {record.benchmark_job.id} after that" if record.benchmark_job else ""
        say(f"{record.id} is Slurm job {record.job.id}{then}")
    else:
        say(f"{record.id} {said}, in process {record.pid}")
    say(f"to follow it: orchestrator logs {record.id} -f")
    say(f"to stop it:   orchestrator stop {record.id}")
    if as_json:
        terminal.print_json(record.as_json())
    else:
        typer.echo(record.id)
