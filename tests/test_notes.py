"""Tags and notes of a run. Run: pytest tests/test_notes.py."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.notes import Notes, add_note, change_tags, checked_tag
from tests.runs_on_disk import new_run, new_workspace


@pytest.fixture
def run(tmp_path):
    return new_run(new_workspace(tmp_path / "it's mine"), "toy-20261124-101500")


def test_tags_come_and_go_and_are_there_once(run):
    before = run.record.read_bytes()
    assert change_tags(run, ["baseline", "lora-16", "baseline"]).tags == ["baseline", "lora-16"]
    assert change_tags(run, ["paper"], ["baseline"]).tags == ["lora-16", "paper"]
    assert Notes.load(run).tags == ["lora-16", "paper"]
    assert run.record.read_bytes() == before


def test_notes_are_appended_with_their_time(run):
    add_note(run, "  first\nof two lines ")
    add_note(run, "退出 \x1b[31m")
    notes = Notes.load(run).notes
    assert [note.text for note in notes] == ["first\nof two lines", "退出 \x1b[31m"]
    assert notes[0].at.tzinfo is not None


@pytest.mark.parametrize("word", ["", "two words", "-x", "a" * 33, "a/b", "a\n", "a,b", "\x1b[31m", "#x", "."])
def test_what_is_no_short_word_is_no_tag(word, run):
    with pytest.raises(SpecError, match="is no tag"):
        change_tags(run, [word])
    assert not run.notes.exists()


@pytest.mark.parametrize("word", ["a", "a" * 32, "v1.2", "lr5e-5", "基线", "größer", "a+b", "2026"])
def test_words_of_any_language_are_tags(word):
    assert checked_tag(word) == word


def test_a_tag_is_the_same_however_its_accents_are_written(run):
    change_tags(run, ["caf\u00e9"])
    assert change_tags(run, ["cafe\u0301"]).tags == ["caf\u00e9"]
    assert change_tags(run, remove=["cafe\u0301"]).tags == []


def test_a_tag_that_is_not_there_can_t_be_removed(run):
    change_tags(run, ["baseline"])
    with pytest.raises(SpecError, match="has no tag 'basline'; did you mean 'baseline'\\?"):
        change_tags(run, ["paper"], ["basline"])
    assert Notes.load(run).tags == ["baseline"]


@pytest.mark.parametrize(("text", "said"), [(" \n", "blank"), ("x" * 10_001, "10001 characters"), ("\udcff", "UTF-8")])
def test_what_is_no_note_is_refused(text, said, run):
    with pytest.raises(SpecError, match=said):
        add_note(run, text)
    assert not run.notes.exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"tags": 1}', b"\xff", None])
def test_a_damaged_file_is_named_and_not_written_over(content, run):
    os.mkfifo(run.notes) if content is None else run.notes.write_bytes(content)
    for action in (lambda: Notes.load(run), lambda: change_tags(run, ["a"]), lambda: add_note(run, "b")):
        with pytest.raises(PrerequisiteError, match=r"notes\.json cannot be read: "):
            action()
    assert content is None or run.notes.read_bytes() == content


def test_what_a_later_version_wrote_is_kept(run):
    note = '{"at": "2026-11-24T10:15:00Z", "text": "a", "by": "me"}'
    run.notes.write_text(f'{{"schema_version": 2, "colour": "red", "notes": [{note}]}}')
    change_tags(run, ["b"])
    kept = json.loads(run.notes.read_bytes())
    assert (kept["schema_version"], kept["colour"], kept["notes"][0]["by"], kept["tags"]) == (2, "red", "me", ["b"])


def test_of_writers_at_the_same_time_none_is_lost(run):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: change_tags(run, [f"t{number}"]), range(40)))
    assert set(Notes.load(run).tags) == {f"t{number}" for number in range(40)}
