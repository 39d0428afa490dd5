"""Tags and notes of a run, in notes.json: apart from the record, which the run's owner writes."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write, lock, read_file
from orchestrator.runs.record_parts import damage
from orchestrator.runs.rundir import RunDir

MAX_CHARACTERS = 10_000
"""Of one note."""
_TAG = re.compile(r"[^\W_][\w.+-]{0,31}")


class Note(BaseModel):
    model_config = ConfigDict(extra="allow")  # a later version's field is kept

    at: datetime
    text: str


class Notes(BaseModel):
    """notes.json."""

    model_config = ConfigDict(extra="allow")

    tags: list[str] = []
    notes: list[Note] = []

    @classmethod
    def load(cls, run: RunDir) -> Self:
        """Those of a run; none where there is no file.

        Raises:
            PrerequisiteError: the file is damaged.
        """
        try:
            return cls.model_validate_json(read_file(run.notes))
        except FileNotFoundError:
            return cls()
        except (PrerequisiteError, ValidationError) as error:
            reason = (
                f"{run.notes} cannot be read: {damage(error)}" if isinstance(error, ValidationError) else str(error)
            )
            raise PrerequisiteError(reason, f"move it away; its tags and notes are text: {run.notes}") from error


def change_tags(run: RunDir, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Notes:
    """Give a run tags and take some from it; its tags and notes after that.

    Raises:
        SpecError: something that cannot be a tag, or a tag to remove that the run has not.
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
        SpecError: it is blank, too long, or no UTF-8 text.
    """
    stripped = text.strip()
    if not stripped:
        raise SpecError("the note is blank")
    if len(stripped) > MAX_CHARACTERS:
        raise SpecError(f"the note has {len(stripped)} characters; at most {MAX_CHARACTERS} are kept")
    if any("\ud800" <= char <= "\udfff" for char in stripped):
        raise SpecError("the note is not UTF-8 text")
    moment = datetime.now(UTC).replace(microsecond=0)
    return _change(run, lambda stored: stored.notes.append(Note(at=moment, text=stripped)))


def checked_tag(word: str) -> str:
    """The tag that a word is; SpecError where it cannot be one."""
    tag = _normal(word)
    if not _TAG.fullmatch(tag):
        raise SpecError(
            f"{word!r} is no tag: one word of at most 32 letters, digits, . _ + or -, beginning with a letter or digit",
            "for a sentence: orchestrator note RUN TEXT",
        )
    return tag


def _normal(word: str) -> str:
    return unicodedata.normalize("NFC", word)  # é typed is é pasted


def _change(run: RunDir, change: Callable[[Notes], None]) -> Notes:
    with lock(run.notes_lock):
        stored = Notes.load(run)
        change(stored)
        atomic_write(run.notes, stored.model_dump_json(indent=2) + "\n")
    return stored
