"""What LLaMA-Factory and its servers wrote for a run, on the screen: once, or for as long as the run goes on.

Covered: runs, and groups run by run; control characters made visible; of a progress bar what it showed last; the file
that is written to now, where none is named; the bar of the training, on a terminal.
Not covered: the logs of `export`, and of servers that belong to no run.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.runs.groups import Group, Member, members
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import Attempt
from orchestrator.runs.rundir import GroupDir, RunDir
from orchestrator.runs.state import current
from orchestrator.runs.state import lines as lines_of
from orchestrator.runs.trainer_log import StepBar, TrainerLog, latest, step_of
from orchestrator.text import escape_controls

POLL_S = 0.3
BETWEEN_RUNS_S = 3.0  # from the end of a run of a group until the next one has begun


def log_files(run: RunDir) -> dict[str, Path]:
    """The logs of a run by the names that they are asked for with."""
    found = {"train": run.train_log, "supervisor": run.supervisor_log, "during": run.during_log}
    found |= {path.stem: path for path in sorted(run.train_log.parent.glob("train-node*.log"))}
    folders = sorted(run.benchmarks.iterdir()) if run.benchmarks.is_dir() else []
    return {
        name: path
        for name, path in (found | {each.name: run.benchmark_log(each) for each in folders}).items()
        if path.is_file()
    }


def choose_log(of: RunDir | GroupDir, name: str | None) -> Path:
    """The log of a run, or of a group, by its name.

    Raises:
        SpecError: there is none of that name.
        PrerequisiteError: there is none yet.
    """
    return _choose_of_group(of, name) if isinstance(of, GroupDir) else _choose_of_run(of, name)


def _choose_of_run(run: RunDir, name: str | None) -> Path:
    """The log of a name; without one, the one that was written to last, but the supervisor's only if it is alone."""
    files = log_files(run)
    if name is not None:
        if name not in files:
            have = f"it has: {', '.join(files)}" if files else "it has none yet"
            raise SpecError(f"run {run.id} has no log {name!r}{did_you_mean(name, files)}; {have}")
        return files[name]
    own = [path for key, path in files.items() if key not in ("supervisor", "during")] or list(files.values())
    if not own:
        raise PrerequisiteError(f"run {run.id} has no log yet", f"orchestrator show {run.id} says how far it is")
    return max(own, key=lambda path: path.stat().st_mtime_ns)


def tail(path: Path, lines: int | None) -> list[str] | Iterator[str]:
    """The last lines of a log, or all of them, as they are shown."""
    shown = _shown(path, path.stat().st_size)
    return shown if lines is None else list(deque(shown, maxlen=lines))


def follow(of: RunDir | GroupDir, name: str | None, lines: int | None) -> None:
    """Print the log of a run, or of a group, as it grows until that has ended."""
    if isinstance(of, GroupDir):
        _follow_group(of, name, lines)
    else:
        _follow_run(of, name, lines)


def _follow_run(run: RunDir, name: str | None, lines: int | None) -> None:
    """Without a name, each log as it comes to be written to."""
    offsets: dict[Path, int] = {}
    shown: Path | None = None
    bar = _TrainingBar(run)
    waited: list[str] = []
    try:
        while True:
            record = current(run)  # before the logs are read: what is written last is seen
            goes_on = record.is_active()
            wanted = [_choose_of_run(run, name)] if name is not None or log_files(run) else []
            for path in dict.fromkeys([*offsets, *wanted]):  # the rest of what was shown before, then the newest
                text, offsets[path] = _news(path, offsets.get(path), lines, final=not goes_on)
                if text and path != shown:
                    text = [f"==> {path.relative_to(run.path)} <==", *text] if shown is not None else text
                    shown = path
                _write(text)
            bar.update(record)
            if record.status == "queued" and (state := lines_of(run, record)) != waited:
                waited = state
                sys.stderr.writelines(f"{escape_controls(line)}\n" for line in state)
            if not goes_on:
                return
            time.sleep(POLL_S)
    finally:
        bar.close()


def _choose_of_group(folder: GroupDir, name: str | None) -> Path:
    """Of the run that is under way, or was last; `supervisor`: of the process that carries the group out."""
    if name == "supervisor" and folder.supervisor_log.is_file():
        return folder.supervisor_log
    begun = [each for each in members(folder, Group.load(folder)) if each.record is not None and each.record.attempts]
    if not begun:
        raise PrerequisiteError(f"no run of {folder.id} has begun", f"orchestrator resume {folder.id} begins them")
    return _choose_of_run(max(begun, key=_activity).run, name)


def _follow_group(folder: GroupDir, name: str | None, lines: int | None) -> None:
    """One run after another, until none is under way for a moment."""
    group = Group.load(folder)
    seen: set[str] = set()
    ends_at = time.monotonic() + BETWEEN_RUNS_S
    while time.monotonic() < ends_at:
        active = [each for each in members(folder, group) if each.is_active()]
        following = next((each for each in active if each.run.id not in seen), None)
        if following is not None:
            seen.add(following.run.id)
            _write([escape_controls(f"==> {following.run.id}: {group.label(following.point)} <==")])
            _follow_run(following.run, None if name == "supervisor" else name, lines)
        if active:
            ends_at = time.monotonic() + BETWEEN_RUNS_S
        time.sleep(POLL_S)
    if not seen:
        _write(list(tail(_choose_of_group(folder, name), lines)))


def _activity(each: Member) -> tuple[bool, float]:
    """What is under way comes last, then what began last."""
    assert each.record is not None
    return each.record.is_active(), each.record.attempts[-1].started_at.timestamp()


class _TrainingBar:
    """The bar of the training, while one goes on and this is a terminal: elsewhere the log's own lines are enough."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._bar: StepBar | None = None

    def update(self, record: RunRecord) -> None:
        if record.status != "running" or not sys.stderr.isatty():
            self.close()
        elif self._bar is None and record.attempts:
            self._bar = self._open(record.attempts[-1])
        elif self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.update()
            self._bar.close()
            self._bar = None

    def _open(self, attempt: Attempt) -> StepBar:
        log = TrainerLog(self._run.trainer_log, attempt.log_start_bytes)
        event = latest(log.new_events())
        bar = StepBar(log, step_of(event) if event else attempt.from_step or 0)
        if event:
            bar.show(event)
        return bar


def _shown(path: Path, end: int) -> Iterator[str]:
    with path.open("rb") as file:
        while (position := file.tell()) < end:
            yield _as_shown(file.readline(end - position))


def _news(path: Path, offset: int | None, lines: int | None, *, final: bool) -> tuple[list[str], int]:
    """Whole lines since the offset, or the last lines of all; in the end also one that was never ended."""
    with path.open("rb") as file:
        file.seek(offset or 0)
        data = file.read()
    if not final:
        data = data[: data.rfind(b"\n") + 1]
    shown = [_as_shown(line) for line in data.removesuffix(b"\n").split(b"\n")] if data else []
    last = shown[-lines:] if lines else [] if lines == 0 else shown
    return shown if offset is not None else last, (offset or 0) + len(data)


def _as_shown(line: bytes) -> str:
    """A bar redraws its line, with a carriage return: what it showed last."""
    return escape_controls(line.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2])


def _write(lines: list[str]) -> None:
    if sys.stderr.isatty() and lines:
        from tqdm import tqdm

        tqdm.write("\n".join(lines), file=sys.stdout)  # above the bar
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()
