"""What people say of a run: tags, and notes with their time, in notes.json of its folder.

Covered: a file apart from the record, so that a run's owner and we never write the same one; one writer at a time;
tags that are single short words.
Not covered: showing them (terminal.py).
"""

import re
import stat
import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write
from orchestrator.runs.record import locked, now
from orchestrator.runs.record_parts import damage
from orchestrator.runs.rundir import RunDir

MAX_BYTES = 1 << 20
"""Of the file."""
MAX_CHARACTERS = 10_000
"""Of one note."""
_TAG = re.compile(r"[^\W_][\w.+-]{0,31}")


class Note(BaseModel):
    model_config = ConfigDict(extra="allow")

    at: datetime
    text: str


class Notes(BaseModel):
    """notes.json."""

    model_config = ConfigDict(extra="allow")  # a later version's field is kept

    schema_version: int = 1
    tags: list[str] = []
    notes: list[Note] = []

    @classmethod
    def load(cls, run: RunDir) -> Self:
        """What is said of a run; nothing where there is no file.

        Raises:
            PrerequisiteError: the file is damaged.
        """
        remedy = f"move it away; its tags and notes are text: {run.notes}"
        try:
            if not stat.S_ISREG(run.notes.stat().st_mode):  # a pipe would be waited for
                raise PrerequisiteError(f"{run.notes} is no file", remedy)
            with run.notes.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise PrerequisiteError(f"{run.notes} cannot be read: {error.strerror}") from error
        if len(data) > MAX_BYTES:
            raise PrerequisiteError(f"{run.notes} is larger than {MAX_BYTES} bytes", remedy)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise PrerequisiteError(f"{run.notes} cannot be read: {damage(error)}", remedy) from error


def change_tags(run: RunDir, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Notes:
    """Give a run tags and take some from it; its notes as they are then.

    Raises:
        SpecError: something that can't be a tag, or a tag to remove that the run has not.
    """
    added = [checked_tag(word) for word in add]
    removed = [_normal(word) for word in remove]

    def change(stored: Notes) -> None:
        for word in removed:
            if word not in stored.tags:
                have = ", ".join(stored.tags) or "none"
                raise SpecError(f"{run.id} has no tag {word!r}{did_you_mean(word, stored.tags)}; it has: {have}")
        kept = [tag for tag in stored.tags if tag not in removed]
        stored.tags = list(dict.fromkeys([*kept, *added]))

    return _change(run, change)


def add_note(run: RunDir, text: str) -> Notes:
    """Append a note with the time.

    Raises:
        SpecError: it is blank, too long, or no text.
    """
    stripped = text.strip()
    if not stripped:
        raise SpecError("the note is blank")
    if len(stripped) > MAX_CHARACTERS:
        raise SpecError(f"the note has {len(stripped)} characters; {MAX_CHARACTERS} are the most")
    if any("\ud800" <= char <= "\udfff" for char in stripped):
        raise SpecError("the note is not UTF-8 text")
    return _change(run, lambda stored: stored.notes.append(Note(at=now(), text=stripped)))


def checked_tag(word: str) -> str:
    """The tag that a word is; SpecError where it can't be one."""
    tag = _normal(word)
    if not _TAG.fullmatch(tag):
        raise SpecError(
            f"{word!r} is no tag: one word of at most 32 letters, digits, . _ + or -, led by a letter or a digit",
            "for a sentence: orchestrator note RUN TEXT",
        )
    return tag


def _normal(word: str) -> str:
    return unicodedata.normalize("NFC", word)  # é typed is é pasted


def _change(run: RunDir, change: Callable[[Notes], None]) -> Notes:
    with locked(run, "notes"):
        stored = Notes.load(run)
        change(stored)
        text = stored.model_dump_json(indent=2) + "\n"
        if len(text.encode()) > MAX_BYTES:
            raise SpecError(
                f"{run.notes} would be larger than {MAX_BYTES} bytes", "keep long texts in files of their own"
            )
        atomic_write(run.notes, text)
    return stored
