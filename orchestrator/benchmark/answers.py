"""Answers on disk: the journal of a benchmark, and the cache across benchmarks.

Covered: every answer is in the journal before it counts, so that a kill loses none, and within a second it is on the
disk itself, so that a power cut loses few; a torn line, or one that a crash has damaged, is asked again; two processes
never share a journal. The cache is keyed by all that decides an answer, never by a name; several processes append.
Not covered: a damaged answer that is still valid JSON.
Leaves hypotheses.jsonl in the benchmark's folder, and answers/ in the cache: $ORCHESTRATOR_CACHE, or the user's.
"""

import asyncio
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.benchmark.client import Answer, Failure, Message
from orchestrator.benchmark.identity import Identity, sha256_of
from orchestrator.errors import StageError
from orchestrator.files import cache_folder

log = logging.getLogger("orchestrator")

SYNC_S = 1.0
_LINE_BREAKS = [(char, f"\\u{ord(char):04x}") for char in "\x85\u2028\u2029"]  # json.dumps escapes the others
_FIELDS = ("hypothesis", "finish_reason", "prompt_tokens", "completion_tokens", "latency_s", "attempts")


class Journal:
    """hypotheses.jsonl while a benchmark runs: a line for every result, as they come."""

    def __init__(self, folder: Path, sources: Sequence[str], references: Sequence[str]) -> None:
        """Open it, lock it, and read what an earlier attempt left.

        Raises:
            StageError: another process is at work there, or the file cannot be opened.
        """
        self.path = folder / "hypotheses.jsonl"
        self.answers: dict[int, Answer] = {}
        """By index. Also those of an earlier attempt."""
        self._sources, self._references = sources, references
        self._written = self._synced = 0
        self._error: OSError | None = None
        self._lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise StageError(f"another process is at work in {folder}", "wait for it, or stop it") from error
            raise self._cannot(error) from error
        self._replay()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sync()
        except StageError:
            if error is None:
                raise
        finally:
            os.close(self._file)
            os.close(self._lock)  # and with it the lock

    def add(self, result: Answer | Failure) -> None:
        """Write a result down; an answer counts from then on."""
        if self._error is not None:
            raise self._cannot(self._error)
        line = _line(self._as_line(result))
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise self._cannot(error) from error
        self._written += 1
        if isinstance(result, Answer):
            self.answers[result.index] = result

    def sync(self) -> None:
        """Onto the disk itself."""
        written = self._written
        if written == self._synced:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            self._error = error
            raise self._cannot(error) from error
        self._synced = written

    async def sync_beside(self) -> None:
        """sync() beside the event loop. Where it fails, the next add() says so."""

        def quietly() -> None:
            with suppress(StageError):  # kept in _error
                self.sync()

        await asyncio.to_thread(quietly)

    def put_in_order(self, failures: Sequence[Failure]) -> None:
        """Write the file anew, whole or not at all: a line for each sentence, in the test set's order."""
        by_index: dict[int, Answer | Failure] = {failure.index: failure for failure in failures if failure.attempts}
        by_index |= self.answers
        fresh = self.path.with_name(f".{self.path.name}.ordered")
        try:
            with fresh.open("wb") as file:
                file.writelines(_line(self._as_line(by_index[index])) for index in sorted(by_index))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise self._cannot(error) from error

    def _as_line(self, result: Answer | Failure) -> dict[str, Any]:
        sides = {"source": self._sources[result.index], "reference": self._references[result.index]}
        return {"index": result.index, **sides, **_plain(result)}

    def _replay(self) -> None:
        """Take over the answers of an earlier attempt. Its failures are asked again, and so is what is damaged."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._file, whole)  # the next line must not be glued to half of one
        for line in content[:whole].split(b"\n"):
            answer = _answer(line)
            if answer is None or not 0 <= answer[0] < len(self._sources):
                continue
            index, source, fields = answer
            if source == self._sources[index]:
                self.answers[index] = Answer(index, **fields)

    def _cannot(self, error: OSError) -> StageError:
        remedy = "see to it (is the disk full?), then repeat the same command: it goes on with what is missing"
        return StageError(f"{self.path} cannot be written: {error.strerror}", remedy)


class AnswerCache:
    """The answers of one identity under one decoding: a file of lines, which several processes may append to."""

    def __init__(self, identity: Identity, sent: Mapping[str, Any], folder: Path | None = None) -> None:
        """Nothing is read or written yet.

        Args:
            identity: who answers; it must be known.
            sent: the fields of every request.
            folder: where the cache is. None: answers/ in $ORCHESTRATOR_CACHE, or in the user's cache folder.
        """
        self._about = {**identity.parts(), "sent": dict(sent)}
        self._key = sha256_of(self._about)
        self.path = (folder or cache_folder() / "answers") / self._key[:2] / f"{self._key}.jsonl"
        self._waiting: list[bytes] = []
        self._known: set[str] = set()
        self._off = False

    def look_up(self, prompts: Iterable[tuple[int, list[Message]]]) -> dict[int, Answer]:
        """The answers that are there, by the prompts' index."""
        wanted: dict[str, list[int]] = {}
        for index, messages in prompts:
            wanted.setdefault(self.key(messages), []).append(index)
        found: dict[int, Answer] = {}
        try:
            with self.path.open("rb") as file:
                for line in file:
                    key = line[9:73].decode("ascii", "replace")  # {"key": "..., so that most lines need no parser
                    fields = _cached(line, key) if key in wanted else None
                    if fields is not None:
                        self._known.add(key)
                        found |= {index: Answer(index, **fields, cached=True) for index in wanted[key]}
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._give_up(error)
        return found

    def add(self, messages: list[Message], answer: Answer) -> None:
        key = self.key(messages)
        if key not in self._known and not self._off:
            self._known.add(key)
            fields = {name: getattr(answer, name) for name in _FIELDS}
            self._waiting.append(_line({"key": key, **fields}))

    def flush(self) -> None:
        """Append what was added: one write, so that the lines of two processes do not mingle."""
        if not self._waiting or self._off:
            return
        data, self._waiting = b"".join(self._waiting), []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self.path.open("ab+", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if end:
                    file.seek(end - 1)
                    data = data if file.read(1) == b"\n" else b"\n" + data  # somebody's last line was torn
                else:
                    data = (json.dumps({"about": self._about}) + "\n").encode() + data
                file.write(data)
        except OSError as error:
            self._give_up(error)

    def key(self, messages: list[Message]) -> str:
        """Of one prompt."""
        return hashlib.sha256(json.dumps(messages).encode()).hexdigest()

    def _give_up(self, error: OSError) -> None:
        self._off = True
        log.warning("the cache of answers is not used: %s: %s", self.path, error.strerror)


def _line(value: Mapping[str, Any]) -> bytes:
    """A line of a .jsonl file; one for every reader, whatever it takes for the end of a line (str.splitlines)."""
    text = json.dumps(value, ensure_ascii=False)
    for char, escaped in _LINE_BREAKS:  # not translate(), which takes 70 microseconds where nothing is to be done
        text = text.replace(char, escaped)
    return f"{text}\n".encode()


def _plain(result: Answer | Failure) -> dict[str, Any]:
    return {each.name: getattr(result, each.name) for each in dataclasses.fields(result)}


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _answer(line: bytes) -> tuple[int, str, dict[str, Any]] | None:
    """Index, source and fields of an answer's line; None for any other."""
    value = _object(line)
    index, source, cached = value.get("index"), value.get("source"), value.get("cached", False)
    fields = _checked(value)
    if type(index) is not int or not isinstance(source, str) or fields is None or not isinstance(cached, bool):
        return None
    return index, source, {**fields, "cached": cached}


def _cached(line: bytes, key: str) -> dict[str, Any] | None:
    value = _object(line)
    return _checked(value) if value.get("key") == key else None


def _checked(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of an answer, each of its type; None where one is not."""
    kinds: dict[str, tuple[type, ...]] = {
        "hypothesis": (str,),
        "finish_reason": (str, type(None)),
        "prompt_tokens": (int, type(None)),
        "completion_tokens": (int, type(None)),
        "latency_s": (float, int),
        "attempts": (int,),
    }
    if any(name not in value or not isinstance(value[name], kind) for name, kind in kinds.items()):
        return None
    return {name: value[name] for name in _FIELDS}
