"""The README and the help agree with the program. Run: pytest tests/test_docs.py."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from orchestrator import cli
from orchestrator.planning.spec_file import load_spec

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
ALL = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
COMMANDS = {name: command for name, command in ALL.items() if not command.hidden}
UsageError = typer.BadParameter.__base__  # newer Typers bring their own Click
SEPARATORS = {"|", "||", "&&", ";", ">", ">>", "<", "&", "2>"}


def parse(words: list[str]) -> None:
    """Read a command line as the program would, without running it; UsageError where it could not."""
    name, *rest = words
    COMMANDS[name].make_context(name, rest)


def split(text: str) -> tuple[list[str], list[str]]:
    """A document's lines outside and inside of code blocks."""
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


def links(text: str) -> list[str]:
    """Targets of a document's links and images, code left out."""
    prose = re.sub(r"`[^`\n]*`", "", "\n".join(split(text)[0]))
    inline = re.findall(r"\]\(<?([^)>\s]+)", prose)
    return inline + re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, re.M)


def anchors(text: str) -> set[str]:
    """The headings as GitHub names them."""
    titles = [line.lstrip("#").strip() for line in split(text)[0] if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example_that_the_program_takes(name):
    command = COMMANDS[name]
    assert command.help
    assert command.epilog
    example = command.epilog.removeprefix("Example: ")
    program, *words = shlex.split(example)
    assert (program, words[0]) == ("orchestrator", name)
    parse(words)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_says_what_it_does(name):
    silent = [parameter.name for parameter in COMMANDS[name].params if parameter.name != "help" and not parameter.help]
    assert silent == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_stands_in_the_readme(name):
    assert re.search(rf"orchestrator {name}\b", README.read_text(encoding="utf-8"))


def test_the_readme_s_examples_are_commands_that_the_program_takes():
    found = list(examples(README.read_text(encoding="utf-8")))
    assert found
    for words in found:
        assert words[0] in COMMANDS, f"orchestrator {shlex.join(words)}"
        try:
            parse(words)
        except UsageError as error:
            pytest.fail(f"orchestrator {shlex.join(words)}: {error.format_message()}")


def test_the_readme_s_specs_are_right(tmp_path):
    blocks = re.findall(r"^```yaml\n(# runs/([\w.-]+)\.yaml\n.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    for text, name in blocks:
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        assert load_spec(tmp_path / f"{name}.yaml").name == name


def test_every_part_of_the_package_stands_in_the_readme_s_map_and_none_that_is_gone():
    code = "\n".join(split(README.read_text(encoding="utf-8"))[1])
    map_of = code[code.index("orchestrator/ ") : code.index("templates/ ")]
    modules = {path.name for path in (ROOT / "orchestrator").glob("*.py") if path.stem != "__init__"}
    folders = {f"{path.parent.name}/" for path in (ROOT / "orchestrator").glob("*/__init__.py")}
    assert set(re.findall(r"\b\w+\.py\b|\b\w+/(?= )", map_of)) - {"orchestrator/"} == modules | folders


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md"])
def test_every_relative_link_leads_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for link in links(text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = ROOT / path if path else ROOT / document
        assert target.exists(), f"{document}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{document}: {link}"


def test_the_tests_of_documents_see_what_is_wrong():
    """A dead link, a heading's anchor, a mistyped option."""
    text = "# A b's\n[x](gone.md) ![y](<a.png>)\n`[z](code)`\n```\norchestrator list --jsn  # x\n```\n[r]: ref.md\n"
    assert links(text) == ["gone.md", "a.png", "ref.md"]
    assert anchors(text) == {"a-bs"}
    (words,) = examples(text)
    with pytest.raises(UsageError):
        parse(words)
