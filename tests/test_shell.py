"""Shell texts read as a shell reads them, compared with bash itself."""

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.importing.shell import MAX_CHARS, Command, read_commands

BASH = shutil.which("bash")
CASES = yaml.safe_load((Path(__file__).parent / "data" / "shell.yaml").read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    return [list(map(str, command.words)) for command in read_commands(text, "run.sh")]


def only(text: str, folder: Path | None = None) -> Command:
    """The last command of a text."""
    return read_commands(text, "run.sh", folder)[-1]


def unknown(command: Command) -> list[str]:
    return [part for word in [*command.words, *command.environment.values()] for part in word.unknown]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\1\2\3"))))
def test_any_words_survive_the_way_through_a_shell_text(words: list[str]) -> None:
    assert commands(shlex.join(["run", *words])) == [["run", *words]]


SCRIPTS: dict[str, str] = CASES["bash"]  # run by bash too, with a function `run` that prints its arguments
PRINT = """
run() { printf 'run\\0%s\\0' "$#" >&3; [ "$#" = 0 ] || printf '%s\\0' "$@" >&3; }
for text in "$@"; do printf 'text\\0' >&3; (set --; eval "$text") 2>/dev/null; done 3>&1; true
"""


def run_by_bash(texts: list[str]) -> list[list[list[str]]]:
    """The words that each text's commands `run` get from bash."""
    assert BASH is not None
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    argv = [BASH, "-c", PRINT, "bash", *texts]
    done = subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=True)
    found = []
    for printed in done.stdout.decode().split("text\0")[1:]:
        words, calls = printed.split("\0")[:-1], list[list[str]]()
        while words:
            count = int(words[1])
            calls.append(words[2 : count + 2])
            del words[: count + 2]
        found.append(calls)
    return found


def known_runs(text: str) -> list[list[str]] | None:
    """The same as they are read here; None where a part is not known."""
    runs = [command for command in read_commands(text, "x") if command.words[0] == "run"]
    return None if any(map(unknown, runs)) else [list(map(str, command.words[1:])) for command in runs]


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_words_are_those_that_bash_passes() -> None:
    theirs = run_by_bash([text.replace("\r\n", "\n") for text in SCRIPTS.values()])
    assert {name: known_runs(text) for name, text in SCRIPTS.items()} == dict(zip(SCRIPTS, theirs, strict=True))


@pytest.mark.parametrize(("text", "words", "parts"), CASES["unknown"])
def test_what_only_running_the_text_would_show_is_kept_and_marked(text: str, words: Any, parts: list[str]) -> None:
    command = only(text)
    assert (command.words[1:], unknown(command)) == (words, parts)


def test_a_value_is_known_where_every_way_that_the_text_may_run_sets_the_same() -> None:
    for text in CASES["branches_differ"]:
        runs = [each for each in read_commands(text, "x") if each.words[0] == "run"]
        assert [(each.words, unknown(each)) for each in runs] == [(["run", "$A"], ["$A"])], text
    for text in CASES["branches_agree"]:
        assert only(text).words == ["run", "a"], text


@pytest.mark.parametrize(("text", "words"), CASES["common_beginning"])
def test_of_values_that_differ_the_common_beginning_is_kept(text: str, words: list[str]) -> None:
    command = only(text)
    assert command.words[1:] == words
    assert [word for word in command.words if word.is_open] == ["$A"]


def test_an_unknown_word_may_be_several_but_in_quotes_or_beside_text() -> None:
    assert [only(f"run {text}").words[1].is_open for text, _ in CASES["open"]] == [each for _, each in CASES["open"]]


@pytest.mark.parametrize(("text", "path"), CASES["own_folder"])
def test_the_folder_of_the_script_itself_is_known(text: str, path: str) -> None:
    assert only(f"D={text}; run $D", Path("/s/scripts")).words == ["run", path]
    assert unknown(only(f"run {text}")), "a pasted text has no folder"


def test_the_environment_holds_what_is_exported_and_what_stands_before_the_command() -> None:
    text = "A=1\nexport B=2 C='x y'\nexport A\nD=4 B=5 run\nE=6\nrun2"
    first, second = read_commands(text, "x")
    assert (first.environment, first.line) == ({"A": "1", "B": "5", "C": "x y", "D": "4"}, 4)
    assert (second.environment, second.line) == ({"A": "1", "B": "2", "C": "x y"}, 6)
    assert only("%env A=1\n!run x").environment == {"A": "1"}, "a notebook's"


def test_our_own_environment_is_not_read_and_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "hunter2")
    assert only("run $SECRET_OF_OURS ${SECRET_OF_OURS:-d}").words == ["run", "$SECRET_OF_OURS", "d"]
    victim = tmp_path / "victim"
    read_commands(f"run $(touch {victim}); touch {victim}; run `touch {victim}` > {victim}; eval 'x > {victim}'", "x")
    assert not victim.exists()


@pytest.mark.parametrize(("text", "place", "message"), CASES["errors"])
def test_bad_syntax_is_an_error_with_line_and_column(text: str, place: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_commands(text, "run.sh")
    assert caught.value.message == f"{place}: not a shell text that can be read: {message}"


def filled(unit: str, head: str = "", tail: str = "") -> str:
    """As much of something as a text may hold."""
    return head + unit * ((MAX_CHARS - len(head) - len(tail)) // len(unit)) + tail


TOO_MUCH = (
    filled("$(", "run "),
    "A=xxxxxxxx;" + "A=$A$A;" * 60 + "run $A",
    "A=" + "x" * 30_000 + "; run" + " $A" * 9000,
)
LARGE = (filled("a ", "run "), filled("{a", "run "), filled("$(a)", "run "), filled("a -b c -d e\n"))


def test_a_text_is_read_or_refused_within_seconds() -> None:
    """Half a second to one for each on an idle machine; were one of these quadratic, it would be minutes."""
    started = time.process_time()
    for text in ("run " + "a" * 300_000, *TOO_MUCH):
        with pytest.raises(SpecError):
            read_commands(text, "run.sh")
    assert all(read_commands(text, "run.sh") for text in LARGE)
    assert time.process_time() - started < 20
