"""The logs of a run, or of a group's runs, on the screen: once, or for as long as the run goes on."""

import sys
import time
from pathlib import Path

from orchestrator.commands.options import say
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.runs.groups import Group, members
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.state import current
from orchestrator.runs.state import lines as lines_of
from orchestrator.runs.trainer_log import StepBar, TrainerLog, latest, step_of
from orchestrator.text import escape_controls

POLL_S = 0.3
BETWEEN_RUNS_S = 3.0  # from the end of a run of a group until the next one has begun


def tail(of: RunDir | GroupDir, name: str | None, lines: int | None) -> None:
    """Print the last lines of a log, or all of them.

    Raises:
        SpecError: there is none of that name.
        PrerequisiteError: there is none yet.
    """
    _write(_news(_choose(of, name), None, lines, final=True)[0])


def follow(of: RunDir | GroupDir, name: str | None, lines: int | None) -> None:
    """Print a log as it grows until the run has ended; of a group one run after another, until none begins."""
    if isinstance(of, RunDir):
        _follow_run(of, name, lines)
        return
    group = Group.load(of)
    seen: set[str] = set()
    ends_at = time.monotonic() + BETWEEN_RUNS_S
    while time.monotonic() < ends_at:
        active = [each for each in members(of, group) if each.is_active()]
        if following := next((each for each in active if each.run.id not in seen), None):
            seen.add(following.run.id)
            _write([escape_controls(f"==> {following.run.id}: {group.label(following.point)} <==")])
            _follow_run(following.run, None if name == "supervisor" else name, lines)
        if active:
            ends_at = time.monotonic() + BETWEEN_RUNS_S
        time.sleep(POLL_S)
    if not seen:
        tail(of, name, lines)


def _choose(of: RunDir | GroupDir, name: str | None) -> Path:
    """The log of a name; without one, that which was written last. Of a group: of the run under way, or the last."""
    if isinstance(of, GroupDir):
        if name == "supervisor" and of.supervisor_log.is_file():
            return of.supervisor_log
        begun = [each.record for each in members(of, Group.load(of)) if each.record and each.record.attempts]
        if not begun:
            raise PrerequisiteError(f"no run of {of.id} has begun", f"orchestrator resume {of.id} begins them")
        newest = max(begun, key=lambda record: (record.is_active(), record.attempts[-1].started_at))
        of = RunDir(of.path.parent / newest.id)
    files = _log_files(of)
    if name is not None and name not in files:
        raise SpecError(f"run {of.id} has no log {name!r}{did_you_mean(name, files)}; it has: {', '.join(files)}")
    if name is not None:
        return files[name]
    own = [path for key, path in files.items() if key != "supervisor"] or list(files.values())
    if not own:
        raise PrerequisiteError(f"run {of.id} has no log yet", f"orchestrator show {of.id} says how far it is")
    return max(own, key=lambda path: path.stat().st_mtime_ns)


def _log_files(run: RunDir) -> dict[str, Path]:
    found = {"train": run.train_log, "supervisor": run.supervisor_log}
    found |= {path.stem: path for path in sorted(run.train_log.parent.glob("train-node*.log"))}
    found |= {folder.name: run.benchmark_log(folder) for folder in sorted(run.benchmarks.glob("*"))}
    return {name: path for name, path in found.items() if path.is_file()}


def _follow_run(run: RunDir, name: str | None, lines: int | None) -> None:
    """Without a name, each log as it comes to be written to."""
    offsets: dict[Path, int] = {}
    shown: Path | None = None
    bar: StepBar | None = None
    waited: list[str] = []
    is_active = True
    try:
        while is_active:
            record = current(run)  # before the logs are read: what is written last is seen
            is_active = record.is_active()
            wanted = [_choose(run, name)] if name is not None or _log_files(run) else []
            for path in dict.fromkeys([*offsets, *wanted]):  # the rest of what was shown before, then the newest
                text, offsets[path] = _news(path, offsets.get(path), lines, final=not is_active)
                if text and path != shown:
                    text = [f"==> {path.relative_to(run.path)} <==", *text] if shown is not None else text
                    shown = path
                _write(text)
            bar = _updated(bar, run, record)
            if record.status == "queued" and (state := lines_of(run, record)) != waited:
                waited = state
                say("\n".join(state))
            time.sleep(POLL_S if is_active else 0)
    finally:
        if bar is not None:
            bar.close()


def _updated(bar: StepBar | None, run: RunDir, record: RunRecord) -> StepBar | None:
    """The training's bar, on a terminal: elsewhere the log's own lines are enough."""
    if bar is not None:
        bar.update()
        if record.status != "running":
            bar.close()
            return None
    elif record.status == "running" and record.attempts and sys.stderr.isatty():
        log = TrainerLog(run.trainer_log, record.attempts[-1].log_start_bytes)
        event = latest(log.new_events()) or {}
        bar = StepBar(log, step_of(event) or record.attempts[-1].from_step or 0)
        bar.show(event)
    return bar


def _news(path: Path, offset: int | None, lines: int | None, *, final: bool) -> tuple[list[str], int]:
    """Complete lines since the offset, or the last lines of all; in the end also one that was never ended."""
    with path.open("rb") as file:
        file.seek(offset or 0)
        data = file.read()
    if not final:
        data = data[: data.rfind(b"\n") + 1]
    # A bar redraws its line, with a carriage return: what it showed last.
    shown = [
        escape_controls(line.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2])
        for line in (data.removesuffix(b"\n").split(b"\n") if data else [])
    ]
    if offset is None and lines is not None:
        shown = shown[max(len(shown) - lines, 0) :]
    return shown, (offset or 0) + len(data)


def _write(lines: list[str]) -> None:
    if sys.stderr.isatty() and lines:
        from tqdm import tqdm

        tqdm.write("\n".join(lines), file=sys.stdout)  # above the bar
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()
