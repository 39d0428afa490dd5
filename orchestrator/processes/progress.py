"""How far a long stage is, on stderr: a tqdm bar on a terminal, elsewhere a plain line now and then.

Where nobody reads it any more (`launch | head`, a terminal that hung up) it goes quiet: the stage itself is well.
"""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TextIO

PLAIN_INTERVAL_S = 15.0


class Progress(AbstractContextManager["Progress"]):
    """Counts up to a total, which may be set later, and shows it; the rate is of what comes on top of `initial`."""

    def __init__(
        self, total: int | None, desc: str, unit: str, *, initial: int = 0,
        stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.total, self.count = total, initial
        self._initial, self._desc, self._unit = initial, desc, unit
        self._stream, self._clock = stream or sys.stderr, clock
        self._started = self._shown_at = clock()
        self._postfix: dict[str, object] = {}
        self._bar: Any = None
        self._closed = False
        if self._stream.isatty():
            from tqdm import tqdm

            try:
                self._bar = tqdm(
                    total=total, desc=desc, unit=f" {unit}", initial=initial, file=self._stream, dynamic_ncols=True
                )
            except OSError:
                self._closed = True

    def update(self, n: int = 1, **postfix: object) -> None:
        """Count n more; keyword arguments are shown beside the count until they are given anew, or None."""
        self.count += n
        self._postfix = {name: value for name, value in (self._postfix | postfix).items() if value is not None}
        if self._bar is not None:
            self._unless_unread(lambda: self._update_bar(n))
        elif self._clock() - self._shown_at >= PLAIN_INTERVAL_S:
            self._unless_unread(self._plain_line)

    def close(self) -> None:
        """Show the last state and end; more calls do nothing."""
        self._unless_unread(self._plain_line if self._bar is None else self._bar.close)
        self._closed = True

    def __exit__(self, *error: object) -> None:
        self.close()

    def _unless_unread(self, show: Callable[[], None]) -> None:
        if self._closed:
            return
        try:
            show()
        except OSError:  # EPIPE, or EIO of a terminal that is gone
            self._closed = True

    def _update_bar(self, n: int) -> None:
        self._bar.total = self.total
        self._bar.set_postfix(self._postfix, refresh=False)
        self._bar.update(n)

    def _plain_line(self) -> None:
        self._shown_at = self._clock()
        elapsed_s = self._shown_at - self._started
        of = f"/{self.total}" if self.total is not None else ""
        parts = [f"{self.count}{of} {self._unit} in {elapsed_s:.0f} s"]
        counted = self.count - self._initial
        if elapsed_s > 0 and counted > 0:
            parts.append(f"{counted / elapsed_s:.3g}/s")
        parts += [f"{name} {value}" for name, value in self._postfix.items()]
        self._stream.write(f"{self._desc}: {', '.join(parts)}\n")
        self._stream.flush()
