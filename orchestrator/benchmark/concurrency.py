"""How many requests are under way at once: as many as the server turns into answers.

Covered: the limit doubles while that brings answers per second, settles where it no longer does, is tried a little
higher now and then, and falls where the server says that it is busy or lets a request wait too long.
Not covered: the requests (translate.py).
Pure: it is told what happened, and holds a number.
"""

from dataclasses import dataclass, field
from typing import Literal

START, MAXIMUM = 16, 256
LEAST_SAMPLES = 8
GROWING_GAIN = 1.15  # answers per second that twice the requests must bring, to go on doubling
PROBE_GAIN = 1.05  # and a quarter more of them, to stay there
PATIENCE, MOST_PATIENCE = 4, 64  # rounds between two probes; doubled by each that brought nothing
BACK_OFF = 0.7
NEARLY_FULL = 0.75  # of the limit: a request with fewer others under way tells little of what the limit brings


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that starts."""

    generation: int
    """Under which limit, counted."""
    place: int
    """How many are under way with it, itself included."""


@dataclass
class Limit:
    """The most requests that may be under way now."""

    fixed: int | None = None
    """Always this many. None: adapt."""
    now: int = 0
    phase: Literal["fixed", "growing", "settled", "probing"] = "growing"
    generation: int = 0
    pushed_back: int = 0
    """How often the limit fell because the server was busy or late."""
    _count: int = 0
    _places: int = 0
    _time_s: float = 0.0
    _before: tuple[int, float] | None = None
    """The limit that was left, and the answers per second that it brought."""
    _patience: int = field(default=PATIENCE)

    def __post_init__(self) -> None:
        if self.fixed is not None:
            self.phase = "fixed"
        self.now = self.fixed or START

    @property
    def most(self) -> int:
        """More than this many there will never be."""
        return self.fixed or MAXIMUM

    def answered(self, ticket: Ticket, latency_s: float) -> None:
        """A request was answered. One that began under another limit, or far below it, says nothing about this one."""
        if self.phase == "fixed" or ticket.generation != self.generation or ticket.place < NEARLY_FULL * self.now:
            return
        self._count += 1
        self._places += ticket.place
        self._time_s += latency_s
        rounds = self._patience if self.phase == "settled" else 0.5 if self.phase == "growing" else 1
        if self._count >= max(rounds * self.now, LEAST_SAMPLES):
            # Little's law, each request with the place that it had: a server that answers one at a time lets the n-th
            # wait n times as long, and gives the same sum whether or not the queue was full yet.
            self._decide(self._places / self._time_s if self._time_s else float("inf"))

    def push_back(self, ticket: Ticket) -> None:
        """The server was busy, or late. Of the many that say so at once, one counts."""
        if self.phase == "fixed" or ticket.generation != self.generation:
            return
        self.pushed_back += 1
        self._before = None
        self._patience = PATIENCE
        self._move(max(1, int(self.now * BACK_OFF)), "settled")

    def _decide(self, rate_per_s: float) -> None:
        if self.phase == "settled":
            self._before = (self.now, rate_per_s)
            self._move(min(self.now + max(1, self.now // 4), MAXIMUM), "probing")
            return
        before = self._before
        gain = rate_per_s / before[1] if before else float("inf")
        if self.phase == "growing" and gain >= GROWING_GAIN and self.now < MAXIMUM:
            self._before = (self.now, rate_per_s)
            self._move(min(2 * self.now, MAXIMUM), "growing")
        elif gain >= PROBE_GAIN or before is None:
            self._patience = PATIENCE
            self._move(self.now, "settled")
        else:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
            self._move(before[0], "settled")

    def _move(self, limit: int, phase: Literal["growing", "settled", "probing"]) -> None:
        self.now, self.phase = limit, phase
        self.generation += 1
        self._count = self._places = 0
        self._time_s = 0.0
