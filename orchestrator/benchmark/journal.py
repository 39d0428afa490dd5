"""hypotheses.jsonl: every answer is in the file before it counts, so that a kill loses none, and on the disk itself
within a second, so that a power cut loses few.
"""

import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.benchmark.cache import json_line, parse_line
from orchestrator.benchmark.requests import FailedSegment, Hypothesis
from orchestrator.errors import StageError
from orchestrator.files import atomic_write

NAME = "hypotheses.jsonl"
SYNC_S = 1.0


class Journal:
    """hypotheses.jsonl while a benchmark runs: a line for every result, as they come; one process at a time."""

    def __init__(self, folder: Path, sources: Sequence[str], references: Sequence[str]) -> None:
        """Open it, lock it, and read what an earlier attempt left.

        Raises:
            StageError: another process is at work there, or the file cannot be opened.
        """
        self.path = folder / NAME
        self.answers: dict[int, Hypothesis] = {}
        """By index. Also those of an earlier attempt; its failures, and what is damaged, are requested again."""
        self._sources, self._references = sources, references
        self._synced_at = time.monotonic()
        self._lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise StageError(f"another process is at work in {folder}", "wait for it, or stop it") from error
            raise self._cannot_write(error) from error
        self._replay()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                with suppress(StageError):
                    self.sync()
        finally:
            os.close(self._file)
            os.close(self._lock)  # and with it the lock

    def add(self, result: Hypothesis | FailedSegment) -> None:
        """Write a result down; an answer counts from then on."""
        line = json_line(self._as_line(result))
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise self._cannot_write(error) from error
        if isinstance(result, Hypothesis):
            self.answers[result.index] = result
        if time.monotonic() - self._synced_at > SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Onto the disk itself."""
        self._synced_at = time.monotonic()
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._cannot_write(error) from error

    def rewrite_sorted(self, failures: Sequence[FailedSegment]) -> None:
        """Write the file anew, atomically: a line for each sentence, in the test set's order."""
        results: dict[int, Hypothesis | FailedSegment] = {each.index: each for each in failures if each.attempts}
        results |= self.answers
        try:
            atomic_write(self.path, b"".join(json_line(self._as_line(results[index])) for index in sorted(results)))
        except OSError as error:
            raise self._cannot_write(error) from error

    def _as_line(self, result: Hypothesis | FailedSegment) -> dict[str, Any]:
        sides = {"source": self._sources[result.index], "reference": self._references[result.index]}
        return {"index": result.index, **sides, **result.model_dump()}

    def _replay(self) -> None:
        content = self.path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.truncate(self._file, complete)  # the next line must not be glued to half of one
        for line in content[:complete].split(b"\n"):
            value, answer = parse_line(line) or ({}, None)
            if answer is not None and 0 <= answer.index < len(self._sources):
                if value.get("source") == self._sources[answer.index]:
                    self.answers[answer.index] = answer

    def _cannot_write(self, error: OSError) -> StageError:
        remedy = "mend that (is the disk full?), then repeat the same command: it goes on with what is missing"
        return StageError(f"{self.path} cannot be written: {error.strerror}", remedy)


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the folder's journal."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
