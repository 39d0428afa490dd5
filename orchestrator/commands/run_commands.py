"""Commands for one run, or a group of runs: start, continue, rerun, follow, stop."""

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from orchestrator.commands import options
from orchestrator.commands.options import app, find_run_or_group, say
from orchestrator.errors import Interrupted, PrerequisiteError, SpecError, did_you_mean
from orchestrator.lifecycle import local, scheduler, slurm_jobs
from orchestrator.lifecycle import stop as stopping
from orchestrator.lifecycle.new_run import Provenance, RunOptions, new_run
from orchestrator.lifecycle.pipeline import carry_out
from orchestrator.lifecycle.rerun import plan_rerun, saved_run
from orchestrator.lifecycle.resume import plan_resume, session_of, take_up
from orchestrator.lifecycle.sweep import make_group, plan_sweep
from orchestrator.planning.plan import Plan, plan_run, render_files
from orchestrator.planning.session import Session
from orchestrator.runs import state
from orchestrator.runs.groups import point_overrides
from orchestrator.runs.owner import OwnedRun
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Request
from orchestrator.runs.rundir import GroupDir, RunDir, find_workspace
from orchestrator.specs.spec import RunSpec
from orchestrator.text import escape_controls
from orchestrator.views.terminal import print_text, score_tables, show, show_group

DetachOption = Annotated[bool, Option("--detach", "-d", help="Run in the background; it outlives the terminal.")]
NoBenchmarkOption = Annotated[bool, Option("--no-benchmark", help="Train only.")]
WaitOption = Annotated[bool, Option("--wait", help="Wait for devices that another run holds.")]
LOOK_S = 0.3


@app.command(epilog="Example: orchestrator launch runs/demo.yaml --sweep train.learning_rate=1e-4,5e-4")
def launch(
    spec: Annotated[Path, Argument(help="A spec file.")],
    overrides: options.Set = None,
    sweep: Annotated[list[str] | None, Option(metavar="KEY=A,B,...", help="One run per value, or combination.")] = None,
    per_device: Annotated[bool, Option("--per-device", help="With --sweep: one run at a time on each device.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Check, show the command, start nothing.")] = False,
    detach: DetachOption = False,
    no_benchmark: NoBenchmarkOption = False,
    wait: WaitOption = False,
    workspace: options.Workspace = None,
    archives: options.Archives = None,
    as_json: options.Json = False,
) -> None:
    """Prepare the data, train, and benchmark, as the spec says."""
    if per_device and not sweep:
        raise SpecError("--per-device is for a sweep", "add --sweep KEY=A,B; or name devices: compute.devices")
    session = Session.open(workspace, archives)
    request = _request(no_benchmark, wait, archives)
    if sweep:
        planned = plan_sweep(session, spec, overrides or (), sweep, per_device=per_device)
        if dry_run:
            changes = [point_overrides(planned.axes, values) for values in planned.values]
            _show_commands(session, changes, [plan.spec for plan in planned.plans], as_json)
        else:
            _run_group(session, make_group(session, planned, request), detach, as_json)
        return
    plan = plan_run(session, session.load_spec(spec, overrides or ()), ask=True)
    if dry_run:
        _show_commands(session, [overrides or []], [plan.spec], as_json)
    else:
        owned = new_run(session, plan, Provenance(str(spec), overrides or ()), request)
        _run(session, owned, plan, detach, as_json)


@app.command(epilog="Example: orchestrator resume demo --from checkpoint-200")
def resume(
    run: options.RunOrGroup,
    label: Annotated[str | None, Option("--from", help="Default: the newest complete checkpoint.")] = None,
    detach: DetachOption = False,
    no_benchmark: NoBenchmarkOption = False,
    wait: WaitOption = False,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Continue a run that was stopped, failed or interrupted, in its own folder; completed stages are skipped.

    Of a group: all its runs that are not done.
    """
    found = find_run_or_group(find_workspace(workspace), run)
    if isinstance(found, GroupDir):
        if label is not None:
            raise SpecError("--from is for a run: each run of a group resumes from its own newest complete checkpoint")
        scheduler.renew_requests(found, with_benchmarks=not no_benchmark)
        _run_group(Session.open(workspace), found, detach, as_json)
    else:
        session = session_of(found, workspace)
        plan, request = plan_resume(session, found, label, no_benchmark=no_benchmark, wait=wait)
        _run(session, take_up(found, request), plan, detach, as_json)


@app.command(epilog="Example: orchestrator rerun demo --strict")
def rerun(
    run: options.Run,
    overrides: options.Set = None,
    strict: Annotated[bool, Option("--strict", help="Refuse if the data or the model differ.")] = False,
    detach: DetachOption = False,
    no_benchmark: NoBenchmarkOption = False,
    wait: WaitOption = False,
    into: Annotated[Path | None, Option("--in", metavar="PATH", help="Workspace to run in; copies entries.")] = None,
    workspace: options.Workspace = None,
    archives: options.Archives = None,
    as_json: options.Json = False,
) -> None:
    """Run a past run's saved spec again, under a new id; first prints what has changed since."""
    session = Session.open(into or workspace, archives)
    try:
        place = find_workspace(workspace)
    except SpecError:  # a run that is named by its path needs none
        place = None
    plan, provenance = plan_rerun(session, saved_run(run, place), overrides or (), strict=strict)
    again = new_run(session, plan, provenance, _request(no_benchmark, wait, archives))
    _run(session, again, plan, detach, as_json)


@app.command(hidden=True)
def supervise(
    folder: Annotated[Path, Argument(help="The folder of a run, or of a group.")],
    workspace: options.Workspace = None,
    lock: Annotated[int | None, Option(help="The open file that makes this process the run's owner.")] = None,
) -> None:
    """Run a run or a group as its owner; `launch --detach` and Slurm jobs start this."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it outlives the terminal
    scheduler.supervise(folder, workspace, lock)


@app.command(epilog="Example: orchestrator logs latest -f")
def logs(
    run: options.Run,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on until the run ends.")] = False,
    lines: Annotated[int | None, Option("--lines", "-n", min=0, help="Only the last N lines.")] = None,
    file: Annotated[str | None, Option(help="train, supervisor, or a benchmark's id. Default: the newest.")] = None,
    workspace: options.Workspace = None,
) -> None:
    """Print what LLaMA-Factory wrote: in training, or as the server of a benchmark.

    Ctrl-C ends the following, not the run.
    """
    found = find_workspace(workspace).find_run(run)
    try:
        _print_logs(found, file, lines, follow)
    except Interrupted as error:
        say(f"the run goes on; orchestrator stop {found.id} ends it")
        raise typer.Exit(error.exit_code) from error


@app.command(epilog="Example: orchestrator stop demo")
def stop(
    run: options.RunOrGroup,
    grace: Annotated[float | None, Option(min=0, help="Seconds to save a checkpoint. Default: 100.")] = None,
    now: Annotated[bool, Option("--now", help="Kill all its processes at once, without a checkpoint.")] = False,
    host_is_gone: Annotated[bool, Option("--host-is-gone", help="Its host is lost: mark it interrupted.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="With --host-is-gone: don't ask.")] = False,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Stop a run: a checkpoint is saved, and none of its processes is left. A run that is not running is not changed.

    Of a group: the runs under way are stopped, and no other begins.
    """
    if sum([now, grace is not None, host_is_gone]) > 1:
        raise SpecError("--now, --grace and --host-is-gone exclude each other", "leave all but one out")
    grace_s = 0 if now else local.STOP_GRACE_S if grace is None else grace
    found = find_run_or_group(find_workspace(workspace), run)
    if isinstance(found, GroupDir):
        if host_is_gone:
            raise SpecError(f"{run} is a group: --host-is-gone is for a run", "orchestrator show GROUP lists them")
        say("\n".join(stopping.stop_group(found, grace_s)))
        if as_json:
            show_group(found, as_json=True)
    else:
        if host_is_gone and not yes and state.current(found).is_active():
            question = f"Is it certain that nothing of {found.id} runs any more on its host? [y/N] "
            say(question)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                raise SpecError("not confirmed: nothing was changed", "--yes confirms it")
        say(stopping.assume_host_lost(found) if host_is_gone else "\n".join(stopping.stop_run(found, grace_s)))
        record = state.current(found)
        if record.status in ("stopped", "interrupted", "failed"):
            say(f"to continue: orchestrator resume {found.id}")
        if as_json:
            show(record.as_json(), as_json=True)


def _request(no_benchmark: bool, wait: bool, archives: Path | None) -> Request:
    return Request(with_benchmarks=not no_benchmark, wait=wait, archives=archives and str(archives.absolute()))


def _run(session: Session, owned: OwnedRun, plan: Plan, detach: bool, as_json: bool) -> None:
    run = owned.run
    if not detach and plan.spec.compute.slurm is None:
        carry_out(session, owned, RunOptions(), plan)
        record = RunRecord.load(run)
        scores = ["", score_tables(record.benchmarks)] if record.benchmarks else []
        show(record.as_json(), *scores, "", f"{record.status}: {run.path}", as_json=as_json)
        return
    if plan.spec.compute.slurm is None:
        local.submit(session, owned)
    else:
        slurm_jobs.submit(session, [owned], plan.spec, run.id)
    record = RunRecord.load(run)
    doing = f"waits for {record.waits_for}" if record.waits_for else "runs in the background"
    job = record.job and f"is Slurm job {record.job.id}"
    _say_under_way(run.id, job or f"{doing}, in process {record.pid}")
    show(record.as_json(), run.id, as_json=as_json)


def _run_group(session: Session, folder: GroupDir, detach: bool, as_json: bool) -> None:
    job = scheduler.submit_group(session, folder)
    if job is None and not detach:
        try:
            scheduler.run_group(session, folder)
        finally:
            show_group(folder, as_json)
        return
    doing = f"Slurm job {job}" if job else f"carried out by process {scheduler.detach_group(session, folder)}"
    _say_under_way(folder.id, f"is {doing}")
    if as_json:
        show_group(folder, as_json)
    else:
        show(None, folder.id)


def _say_under_way(name: str, doing: str) -> None:
    say(f"{name} {doing}\nto see how far it is: orchestrator show {name}\nto stop it: orchestrator stop {name}")


def _show_commands(session: Session, changes: list[list[str]], specs: list[RunSpec], as_json: bool) -> None:
    files = [render_files(session, spec) for spec in specs]
    commands = [each.get("command.txt", each.get("api.yaml", "")) for each in files]
    pairs = list(zip(changes, commands, strict=True))
    if as_json:
        show([{"set": change, "command": command} for change, command in pairs], as_json=True)
        return
    for number, (change, command) in enumerate(pairs, start=1):
        heading = f"# {number} of {len(commands)}: {' '.join(change)}\n" if len(commands) > 1 else ""
        print_text(heading + command)
    say(f"{f'{len(commands)} runs, ' if len(commands) > 1 else ''}no errors; nothing was started")


def _print_logs(run: RunDir, name: str | None, lines: int | None, follow: bool) -> None:
    """Print a log, and what is added until the run has ended; without a name the newest, which may change meanwhile."""
    offsets: dict[Path, int] = {}
    shown: Path | None = None
    waits: list[str] = []
    goes_on = True
    while goes_on:
        record = state.current(run)  # before the logs are read: what is written last is seen
        goes_on = follow and record.is_active()
        newest = _log_of(run, name, is_needed=not goes_on and not waits)
        for path in dict.fromkeys([*offsets, *newest]):  # the rest of what was shown before, then the newest
            with path.open("rb") as file:
                file.seek(offsets.get(path, 0))
                found = file.readlines()
            if goes_on and found and not found[-1].endswith(b"\n"):
                found.pop()  # it is being written
            text = found if lines is None or offsets else found[max(len(found) - lines, 0) :]
            offsets[path] = offsets.get(path, 0) + sum(map(len, found))
            if text and path != shown:
                if shown is not None:
                    typer.echo(f"==> {path.relative_to(run.path)} <==")
                shown = path
            for line in text:  # a bar redraws its line, with a carriage return: what it showed last
                redrawn = line.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2]
                typer.echo(escape_controls(redrawn))
        if record.status == "queued" and (now := state.lines(run, record)) != waits and follow:
            waits = now
            say("\n".join(now))
        time.sleep(LOOK_S if goes_on else 0)


def _log_of(run: RunDir, name: str | None, *, is_needed: bool) -> list[Path]:
    """The log of a name; without one that which was written last; none, where it is not needed and not there yet."""
    found = {"train": run.train_log, "supervisor": run.supervisor_log}
    found |= {path.stem: path for path in sorted(run.train_log.parent.glob("train-node*.log"))}
    found |= {folder.name: folder / "api.log" for folder in sorted(run.benchmarks.glob("*"))}
    files = {each: path for each, path in found.items() if path.is_file()}
    if name in files:
        return [files[name]]
    if name is not None and (is_needed or name not in found):
        raise SpecError(f"run {run.id} has no log {name!r}{did_you_mean(name, files)}; it has: {', '.join(files)}")
    own = [path for key, path in files.items() if key != "supervisor"] or list(files.values())
    if not own and is_needed:
        raise PrerequisiteError(f"run {run.id} has no log yet", f"orchestrator show {run.id} says how far it is")
    return [max(own, key=lambda path: path.stat().st_mtime_ns)] if own and name is None else []
