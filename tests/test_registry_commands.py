"""list, tag, note, rm and gc as a user meets them. Run: pytest tests/test_registry_commands.py."""

import re

import pytest

from orchestrator.runs.rundir import Workspace
from tests.runs_on_disk import benchmark, new_run, running
from tests.workshop import Workshop


@pytest.fixture
def three(workshop: Workshop) -> Workshop:
    """A workspace with three finished runs, a, b and c, of 1, 3 and 2 BLEU."""
    workspace = Workspace(workshop.root)
    for name, bleu in (("a", 1), ("b", 3), ("c", 2)):
        made = {"name": name, "created_at": f"2026-11-2{bleu}T10:15:00Z"}
        made |= {"benchmarks": [benchmark(bleu, "base"), benchmark(bleu)]}
        new_run(workspace, f"{name}-2026112{bleu}-101500", **made)
    return workshop


def listed(done) -> list[str]:
    assert done.code == 0, done.err
    return [line.partition("-")[0] for line in done.out.splitlines()[1:]]


def test_list_filters_sorts_and_limits(three):
    three.run("tag", "c", "good")
    words = [(), ("--sort", "name"), ("--limit", "2"), ("--name", "[ab]"), ("--tag", "good"), ("--since", "2026-11-22"),
             ("--status", "failed")]  # fmt: skip
    *some, none = three.run_together([("list", *each) for each in words])
    assert list(map("".join, map(listed, some))) == ["acb", "abc", "cb", "ab", "c", "cb"]
    assert none.code == 0 and none.out == "" and "none of 3 runs" in none.err
    wrong = three.run("list", "--status", "runing")
    assert wrong.code == 2 and "did you mean 'running'" in wrong.err and wrong.out == ""


def test_tags_and_notes_are_printed_listed_and_shown(three):
    assert three.run("tag", "b", "x", "y").out == "x y\n"
    assert three.run("tag", "b", "--remove", "y").out == "x\n"
    assert three.run("note", "b", "of", "two words").code == 0
    assert three.run("note", "b", "second\nline \x1b[31m").code == 0
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d)  of two words\n\1  second\n +line \\x1b\[31m\n",
                        three.run("note", "b").out)  # fmt: skip
    other, found = three.run("list", "--json", "--limit", "2").json()
    assert (found["tags"], found["notes"][0]["text"], other["notes"]) == (["x"], "of two words", [])
    assert three.run("show", "b", "--json").json() == found
    assert three.run("tag", "b", "--json").json() == {"run": "b-20261123-101500", "tags": ["x"]}
    assert three.run("note", "b", "--json").json()["notes"] == found["notes"]
    wrong = [("tag", "a", "two words"), ("tag", "a", "--remove", "z"), ("note", "a", " "), ("tag", "nothing", "x")]
    for done in three.run_together(wrong):
        assert done.code == 2 and done.err.startswith("error: ") and done.out == "", done


def test_rm_prints_what_it_moved_and_restore_what_came_back(three):
    dry = three.run("rm", "a", "c", "--dry-run")
    assert dry.out.startswith("a-20261121-101500: data, logs, output would go to the trash, 2.7 KiB\n"), dry.out
    assert dry.out.endswith("\nin all: 5.4 KiB of 2 runs would go to the trash\n"), dry.out
    done = three.run("rm", "a", "c")
    assert done.out == dry.out.replace("would go to the trash", "to the trash")
    assert "rm --restore" in done.err and "gc --trash" in done.err
    shown = three.run("show", "a").out
    assert "removed: weights and logs, back with: orchestrator rm --restore a-20261121-101500" in shown
    assert three.run("rm", "--restore", "a").out.startswith("a-20261121-101500: ")
    assert (three.runs / "a-20261121-101500" / "output" / "checkpoint-5").is_dir()
    (entire,) = three.run("rm", "--all", "a", "--json").json()
    assert (entire["run"], entire["what"]) == ("a-20261121-101500", ["."])
    assert listed(three.run("list")) == ["c", "b"]
    assert three.run("rm", "--all", "--restore", "a").code == 2
    assert "all of it back from the trash" in three.run("rm", "--restore", "a").out


def test_rm_and_gc_leave_a_run_at_work_alone(three):
    running(Workspace(three.root).find_run("b"))
    done = three.run("rm", "a", "b")
    assert done.code == 3 and "run b-20261123-101500 is running: process" in done.err
    assert "orchestrator stop" in done.err and (three.runs / "a-20261121-101500" / "output").is_dir()
    two = three.run("gc", "a", "--keep-last", "2")
    assert re.match(r"a-20261121-101500: output/checkpoint-5 to the trash, \d+ bytes\n$", two.out), two.out
    every = three.run("gc")
    assert "left as it is: run b-20261123-101500 is running" in every.err
    assert " of 2 runs to the trash" in every.out
    assert three.run("gc", "b").code == 3


def test_gc_empties_the_trash_on_request(three):
    three.run("rm", "a", "b")
    assert "would be deleted" in three.run("gc", "--trash", "--dry-run").out
    assert three.run("gc", "--trash", "a").out.startswith("a-20261121-101500: data, logs, output deleted, ")
    three.run("gc", "--trash")
    assert list((three.runs / ".trash").iterdir()) == []
    assert "removed: weights and logs, for good" in three.run("show", "b").out
    wrong = [("gc", "--trash", "--keep-last", "2"), ("rm", "--restore", "b")]
    assert [done.code for done in three.run_together(wrong)] == [2, 2]


def test_show_says_what_a_run_took_and_one_that_was_removed_can_be_run_again(toy):
    assert re.search(r"\ntook .*: prepare .*, train .*, benchmark ", toy.run("show", "toy").out)
    first = toy.only_run().name
    assert toy.run("rm", "toy").code == 0
    missing = toy.run("benchmark", first)
    assert missing.code == 3 and "has no checkpoint" in missing.err
    again = toy.run("rerun", first, "--no-benchmark", "--json")
    assert again.code == 0 and again.json()["rerun_of"] == first, again.err


def test_names_of_strangers_are_shown_not_obeyed(three):
    folder = three.runs / "evil\x1b[31m-20261124-101500"
    (three.runs / "a-20261121-101500").rename(folder)
    (folder / "notes.json").write_text('{"tags": ["\\u001b[2J"]}')
    broken = three.runs / "broken\x1b[2J"
    broken.mkdir()
    (broken / "record.json").write_text("{")
    words = [("list",), ("show", folder.name), ("rm", folder.name, "--dry-run"), ("tag", folder.name)]
    results = three.run_together(words)
    for done in results:
        assert done.code == 0 and "\x1b" not in done.out + done.err and "\\x1b[" in done.out, done
    assert "broken\\x1b[2J/record.json cannot be read" in results[0].err
