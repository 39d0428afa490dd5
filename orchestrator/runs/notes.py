"""Tags and notes of a run, in notes.json: apart from the record, which the run's owner writes."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write, lock, read_file
from orchestrator.runs.record_parts import damage
from orchestrator.runs.rundir import RunDir

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
        """Those of a run; none where there is no file. PrerequisiteError where it is damaged."""
        try:
            return cls.model_validate_json(read_file(run.notes))
        except FileNotFoundError:
            return cls()
        except (PrerequisiteError, ValidationError) as error:
            reason = f"{run.notes} cannot be read: {damage(error)}"
            raise PrerequisiteError(reason, f"move it away; its tags and notes are text: {run.notes}") from error


def change_tags(run: RunDir, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Notes:
    """Give a run tags and take some from it; SpecError where a word is no tag, or the run has not the one to remove."""
    added, removed = ([unicodedata.normalize("NFC", word) for word in words] for words in (add, remove))
    for tag in added:
        if not _TAG.fullmatch(tag):
            rule = "one word of at most 32 letters, digits, . _ + or -, beginning with a letter or digit"
            raise SpecError(f"{tag!r} is no tag: {rule}", "for a sentence: orchestrator note RUN TEXT")
    with _changing(run) as stored:
        for word in removed:
            if word not in stored.tags:
                have = ", ".join(stored.tags) or "none"
                raise SpecError(f"{run.id} has no tag {word!r}{did_you_mean(word, stored.tags)}; it has: {have}")
        stored.tags = list(dict.fromkeys([*(tag for tag in stored.tags if tag not in removed), *added]))
    return stored


def add_note(run: RunDir, text: str) -> Notes:
    """Append a note with the time; SpecError where it is blank."""
    text = text.strip().encode("utf-8", "replace").decode()  # an argument may be no UTF-8
    if not text:
        raise SpecError("the note is blank")
    with _changing(run) as stored:
        stored.notes.append(Note(at=datetime.now(UTC).replace(microsecond=0), text=text))
    return stored


@contextmanager
def _changing(run: RunDir) -> Iterator[Notes]:
    with lock(run.notes_lock):
        stored = Notes.load(run)
        yield stored
        atomic_write(run.notes, stored.model_dump_json(indent=2) + "\n")
