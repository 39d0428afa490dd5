"""LLaMA-Factory's trainer_log.jsonl: read as it grows, as one curve over all attempts at a run, and as a bar.

Covered: lines that stand there by half, or that a killed writer tore; steps that a resumed training went through again.
Not covered: what the rest of the log says (train.log).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.processes.progress import Progress
from orchestrator.text import escape_controls

# llamafactory/hparams/parser.py, of a checkpoint that was not named: ours is, but where torchrun starts it again.
_RESUMING = re.compile(
    rb"\[INFO\|[-0-9 :]+\] llamafactory\.hparams\.parser:\d+ >> Resuming training from output/checkpoint-(\d+)\.$"
)
Event = dict[str, Any]
"""current_steps, total_steps, loss, lr, remaining_time, ...; any may be missing."""


class TrainerLog:
    """The log as it grows. A torn last line is read when it is whole."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self._offset = offset

    def new_events(self) -> list[Event]:
        """Events since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line that a killed writer tore, and a later one went on from
            if isinstance(event, dict):
                events.append(event)
        return events


def curve(path: Path) -> list[Event]:
    """The events of a log as one curve: a step that was trained again counts as it was the last time."""
    kept: dict[tuple[int, str], Event] = {}
    last = 0
    for event in TrainerLog(path).new_events():
        step = step_of(event)
        if step < last:  # a resumed training, back at its checkpoint
            kept = {key: value for key, value in kept.items() if key[0] < step}
        kind = next((name for name in ("loss", "eval_loss", "predict_loss") if name in event), "")
        kept[step, kind] = event
        last = step
    return list(kept.values())


def logged_losses(path: Path, first: int = 10) -> list[float]:
    """The first losses of the curve."""
    losses = [event.get("loss") for event in curve(path)]
    return [float(loss) for loss in losses if isinstance(loss, int | float)][:first]


def latest(events: Sequence[Event]) -> Event | None:
    """The last event that says at which step of how many a training is, with the last loss."""
    steps = [event for event in events if step_of(event)]
    losses = [event for event in steps if "loss" in event]
    return {**losses[-1], **steps[-1]} if losses else steps[-1] if steps else None


def step_of(event: Mapping[str, Any]) -> int:
    step = event.get("current_steps")
    return step if isinstance(step, int) else 0


def close_torn_line(path: Path) -> int:
    """End a line that a killed writer left by half, so that the next one's is whole; the log's size then."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        size = file.seek(0, 2)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
                size += 1
    return size


class StepBar:
    """A training's bar with loss, rate and time left, drawn from its log."""

    def __init__(self, log: TrainerLog, step: int = 0, on_event: Callable[[Event], None] | None = None) -> None:
        """Begin with the events that the log gives from now on, at a step; on_event is told each of them too."""
        self._log = log
        self._on_event = on_event
        self._progress = Progress(None, "train", "steps", initial=step)

    def update(self) -> None:
        """Show what has been logged since."""
        for event in self._log.new_events():
            self.show(event)
            if self._on_event is not None:
                self._on_event(event)

    def show(self, event: Event) -> None:
        step, total = event.get("current_steps"), event.get("total_steps")
        if isinstance(step, int) and isinstance(total, int):
            if total != self._progress.total:
                self._progress.total = total
            self._progress.update(step - self._progress.count, **figures(event))

    def close(self) -> None:
        self._progress.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def figures(event: Event) -> dict[str, str]:
    """Loss, rate and time left of an event, as they are shown."""
    shown = {
        "loss": event.get("loss"),
        "lr": event.get("lr"),
        "tokens/s": event.get("throughput"),
        "left": event.get("remaining_time"),
    }
    return {
        key: f"{value:.4g}" if isinstance(value, float) else escape_controls(str(value))
        for key, value in shown.items()
        if value is not None
    }
