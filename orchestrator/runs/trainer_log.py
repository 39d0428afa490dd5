"""LLaMA-Factory's trainer_log.jsonl: read as it grows, as one curve over all attempts at a run, and as a bar."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from orchestrator.processes.progress import Progress
from orchestrator.text import escape_controls

FIRST_LOSSES = 10
"""Logged losses that a record keeps, and that a rerun compares."""

Event = dict[str, Any]
"""current_steps, total_steps, loss, lr, remaining_time, ...; any may be missing."""


class TrainerLog:
    """The log as it grows. A line that is being written is read when it has its end."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path, self._offset = path, offset

    def new_events(self) -> list[Event]:
        """Events since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        events = []
        for line in complete.splitlines():
            with suppress(ValueError, RecursionError):  # torn by a kill, and followed by a later attempt's
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict)]


def logged_losses(path: Path) -> list[float]:
    """The first losses of the run; a step that was trained again after a resume counts as it was the last time."""
    losses: dict[int, float] = {}
    last = 0
    for event in TrainerLog(path).new_events():
        step, loss = step_of(event), event.get("loss")
        if step < last:  # a resumed training, back at its checkpoint
            losses = {earlier: value for earlier, value in losses.items() if earlier < step}
        last = step
        if isinstance(loss, int | float):
            losses[step] = float(loss)
    return list(losses.values())[:FIRST_LOSSES]


def latest(events: Sequence[Event]) -> Event | None:
    """The last event with a step, and with it the last loss."""
    steps = [event for event in events if step_of(event)]
    losses = [event for event in steps if "loss" in event]
    return {**losses[-1], **steps[-1]} if losses else steps[-1] if steps else None


def step_of(event: Mapping[str, Any]) -> int:
    step = event.get("current_steps")
    return step if isinstance(step, int) else 0


def close_torn_line(path: Path) -> int:
    """End a line that a killed writer did not finish, so that the next one stands alone; the log's size then."""
    content = path.read_bytes() if path.exists() else b""
    if not content or content.endswith(b"\n"):
        return len(content)
    with path.open("ab") as file:
        file.write(b"\n")
    return len(content) + 1


class StepBar(AbstractContextManager["StepBar"]):
    """A training's bar with loss, rate and time left, drawn from its log."""

    def __init__(self, log: TrainerLog, step: int = 0) -> None:
        self._log = log
        self._progress = Progress(None, "train", "steps", initial=step)

    def update(self) -> None:
        """Show what has been logged since."""
        for event in self._log.new_events():
            step, total = event.get("current_steps"), event.get("total_steps")
            if isinstance(step, int) and isinstance(total, int):
                self._progress.total = total
                self._progress.update(step - self._progress.count, **_figures(event))

    def __exit__(self, *error: object) -> None:
        self._progress.close()


def _figures(event: Event) -> dict[str, str]:
    names = {"loss": "loss", "lr": "lr", "tokens/s": "throughput", "left": "remaining_time"}
    found = {shown: event[name] for shown, name in names.items() if event.get(name) is not None}
    return {shown: f"{v:.4g}" if isinstance(v, float) else escape_controls(str(v)) for shown, v in found.items()}
