"""How far a long stage is: a tqdm bar on a terminal, a plain line now and then elsewhere. All on stderr.

Covered: known and unknown totals; values shown beside the count; at most one plain line in 15 s, and one at the end.
Not covered: what the stage prints itself (that goes to its log).
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

PLAIN_INTERVAL_S = 15.0


class Progress:
    """Counts up to a total and shows it; a context manager that closes itself."""

    def __init__(
        self,
        total: int | None,
        desc: str,
        unit: str,
        *,
        initial: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet but an empty bar, if it is a terminal.

        Args:
            total: the count at the end; None where it is not known yet (set `total` later).
            desc: what is being done.
            unit: what is counted, in the plural.
            initial: the count that is there already; the rate is that of what comes on top.
            stream: where to show it; None: stderr.
            clock: seconds.
        """
        self.count = self._initial = initial
        self._total = total
        self._desc, self._unit = desc, unit
        self._stream = stream or sys.stderr
        self._clock = clock
        self._started = self._shown_at = clock()
        self._postfix: dict[str, object] = {}
        self._bar: Any = None
        self._closed = False
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                desc=desc,
                unit=f" {unit}",
                initial=initial,
                file=self._stream,
                disable=None,
                dynamic_ncols=True,
            )

    @property
    def total(self) -> int | None:
        return self._total

    @total.setter
    def total(self, total: int | None) -> None:
        self._total = total
        if self._bar is not None:
            self._bar.total = total
            self._bar.refresh()

    def update(self, n: int = 1, **postfix: object) -> None:
        """Count n more; keyword arguments are shown beside the count until they are given anew, or None."""
        self.count += n
        self._postfix = {name: value for name, value in (self._postfix | postfix).items() if value is not None}
        if self._bar is not None:
            if postfix:
                self._bar.set_postfix(self._postfix, refresh=False)
            self._bar.update(n)
        elif self._clock() - self._shown_at >= PLAIN_INTERVAL_S:
            self._plain_line()

    def close(self) -> None:
        """Show the last state and end; more calls do nothing."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
        else:
            self._plain_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plain_line(self) -> None:
        self._shown_at = self._clock()
        elapsed_s = self._shown_at - self._started
        of = f"/{self._total}" if self._total is not None else ""
        parts = [f"{self.count}{of} {self._unit} in {elapsed_s:.0f} s"]
        counted = self.count - self._initial
        if elapsed_s > 0 and counted > 0:
            slow = counted < elapsed_s / 10
            parts.append(f"{elapsed_s / counted:.3g} s each" if slow else f"{counted / elapsed_s:.3g}/s")
        parts += [f"{name} {value}" for name, value in self._postfix.items()]
        self._stream.write(f"{self._desc}: {', '.join(parts)}\n")
        self._stream.flush()
