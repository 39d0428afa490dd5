"""Tags and notes of a run. Run: pytest tests/test_notes.py."""

import json

import pytest

from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.runs.registry import Notes, add_note, change_tags
from tests.runs_on_disk import new_run, new_workspace


@pytest.fixture
def run(tmp_path):
    return new_run(new_workspace(tmp_path / "it's mine"), "toy-20261124-101500")


def test_tags_come_and_go_and_are_there_once(run):
    before = run.record.read_bytes()
    assert change_tags(run, ["baseline", "lora-16", "baseline"]).tags == ["baseline", "lora-16"]
    assert change_tags(run, ["paper", "基线"], ["baseline"]).tags == ["lora-16", "paper", "基线"]
    assert Notes.load(run).tags == ["lora-16", "paper", "基线"]
    assert run.record.read_bytes() == before


def test_notes_are_appended_with_their_time(run):
    add_note(run, "  first\nof two lines ")
    add_note(run, "退出 \x1b[31m")
    add_note(run, "\udcff")
    notes = Notes.load(run).notes
    assert [note.text for note in notes] == ["first\nof two lines", "退出 \x1b[31m", "?"]
    assert notes[0].at.tzinfo is not None
    with pytest.raises(SpecError, match="blank"):
        add_note(run, " \n")


@pytest.mark.parametrize("word", ["", "two words", "-x", "a" * 33, "a/b", "a\n", "\x1b[31m", "."])
def test_what_is_no_short_word_is_no_tag(word, run):
    with pytest.raises(SpecError, match="is no tag"):
        change_tags(run, [word])
    assert not run.notes.exists()


def test_a_tag_that_is_not_there_can_t_be_removed(run):
    change_tags(run, ["baseline"])
    with pytest.raises(SpecError, match="has no tag 'basline'; did you mean 'baseline'\\?"):
        change_tags(run, ["paper"], ["basline"])
    assert Notes.load(run).tags == ["baseline"]


@pytest.mark.parametrize("content", [b"{", b'{"tags": 1}', b"\xff"])
def test_a_damaged_file_is_named_and_not_written_over(content, run):
    run.notes.write_bytes(content)
    for action in (lambda: Notes.load(run), lambda: change_tags(run, ["a"]), lambda: add_note(run, "b")):
        with pytest.raises(PrerequisiteError, match=r"notes\.json cannot be read: "):
            action()
    assert run.notes.read_bytes() == content


def test_what_a_later_version_wrote_is_kept(run):
    note = '{"at": "2026-11-24T10:15:00Z", "text": "a", "by": "me"}'
    run.notes.write_text(f'{{"colour": "red", "notes": [{note}]}}')
    change_tags(run, ["b"])
    kept = json.loads(run.notes.read_bytes())
    assert (kept["colour"], kept["notes"][0]["by"], kept["tags"]) == ("red", "me", ["b"])
