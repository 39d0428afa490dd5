"""The README, the pages of docs/ and the help agree with the program. Run: pytest tests/test_docs.py."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from orchestrator import __main__ as program
from orchestrator.specs.spec_file import load_spec
from tests.reference import HOUSE, PAGE, house, reference

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "orchestrator" / "docs").glob("*.md"))]
ALL = typer.main.get_command(program.app).commands  # type: ignore[attr-defined]
COMMANDS = {name: command for name, command in ALL.items() if not command.hidden}
UsageError = typer.BadParameter.__base__  # newer Typers bring their own Click
SEPARATORS = {"|", "||", "&&", ";", ">", ">>", "<", "&", "2>"}


def parse(words: list[str]) -> None:
    """Read a command line as the program would, without running it; UsageError where it could not."""
    name, *rest = words
    COMMANDS[name].make_context(name, rest)


def split(text: str) -> tuple[list[str], list[str]]:
    prose: list[str] = []
    code: list[str] = []
    inside = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            inside = not inside
        else:
            (code if inside else prose).append(line)
    return prose, code


def examples(text: str) -> Iterator[list[str]]:
    """The words after `orchestrator` of each command line in a document's code blocks."""
    for line in split(text)[1]:
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:
            continue  # output, with an apostrophe
        if words[:1] == ["orchestrator"]:
            end = next((index for index, word in enumerate(words) if word in SEPARATORS), len(words))
            yield words[1:end]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example_that_the_program_takes(name):
    command = COMMANDS[name]
    assert command.help and command.epilog
    (words,) = examples(f"```\n{command.epilog.removeprefix('Example: ')}\n```")
    assert words[0] == name
    parse(words)
    assert [parameter.name for parameter in command.params if parameter.name != "help" and not parameter.help] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_s_examples_are_commands_that_the_program_takes_and_its_specs_are_right(page, tmp_path):
    for words in examples(page.read_text(encoding="utf-8")):
        assert words[0] in COMMANDS, f"orchestrator {shlex.join(words)}"
        try:
            parse(words)
        except UsageError as error:
            pytest.fail(f"orchestrator {shlex.join(words)}: {error.format_message()}")
    for text in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        if (name := re.search(r"^name: (\S+)", text, re.M)) is not None:
            (tmp_path / "spec.yaml").write_text(text, encoding="utf-8")
            assert load_spec(tmp_path / "spec.yaml").name == name[1]


def test_the_readme_s_spec_is_the_one_in_runs():
    (block,) = re.findall(r"^```yaml\n# runs/captions.yaml\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert (ROOT / "runs" / "captions.yaml").read_text(encoding="utf-8").endswith(block)


def test_the_reference_and_the_map_are_current_and_have_every_variable():
    text = PAGE.read_text(encoding="utf-8")
    assert text == reference(), "run: python -m tests.reference"
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "orchestrator").rglob("*.py"))
    internal = {"ORCHESTRATOR_RUN", "ORCHESTRATOR_CHILD", "ORCHESTRATOR_FOLDERS"}
    variables = set(re.findall(r"\bORCHESTRATOR_[A-Z_]+\b", sources)) - internal
    assert {each for each in variables if f"| `{each}` |" not in text} == set()
    assert HOUSE.read_text(encoding="utf-8") == house(), "run: python -m tests.reference"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    prose = re.sub(r"`[^`\n]*`", "", "\n".join(split(page.read_text(encoding="utf-8"))[0]))
    for link in re.findall(r"\]\(<?([^)>#\s]+)", prose):
        assert re.match(r"[a-z]+:", link) or (page.parent / link).exists(), f"{page.name}: {link}"
