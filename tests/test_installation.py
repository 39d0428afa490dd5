"""Finding LLaMA-Factory: which command, which Python, which versions."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from orchestrator.errors import PrerequisiteError
from orchestrator.upstream.installation import VARIABLE, find_installation
from tests.fake_llamafactory import first_lines as our_first_lines


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_python(path: Path) -> Path:
    """A Python of its own name that runs ours: which one was started shows in Installation.python."""
    return executable(path, f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')


def test_the_command_beside_our_python_is_found_with_its_package_and_versions(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    found = find_installation()
    assert found.cli == Path(sys.executable).parent / "llamafactory-cli"
    assert found.package is not None and (found.package / "hparams" / "model_args.py").is_file()
    assert found.versions["llamafactory"] == version("llamafactory")
    assert found.python_version == ".".join(map(str, sys.version_info[:3]))
    assert found.note == ""


@pytest.mark.parametrize("named", ["bin/llamafactory-cli", "bin", "."])
def test_the_variable_names_the_program_its_folder_or_the_environment(named, tmp_path, monkeypatch):
    cli = executable(tmp_path / "bin" / "llamafactory-cli", our_first_lines())
    monkeypatch.setenv(VARIABLE, str(tmp_path / named))
    assert find_installation().cli == cli
    cli.unlink()
    with pytest.raises(PrerequisiteError, match=f"{VARIABLE}=.*: no program"):
        find_installation()


def test_the_command_on_path_is_found_or_else_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none" / "python"))
    with pytest.raises(PrerequisiteError, match="llamafactory-cli not found") as error:
        find_installation()
    assert "pip install" in error.value.remedy and VARIABLE in error.value.remedy
    cli = executable(tmp_path / "llamafactory-cli", our_first_lines())
    assert find_installation().cli == cli


@pytest.mark.parametrize(
    ("folder", "first_lines"),
    [
        ("env", "#!{python}\n"),
        ("env", "#!/usr/bin/env -S {name} -u\n"),
        ("it's my env", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"),  # pip's, where a path has a blank
        ("env", "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\n"),
        ("env", "#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'{name}' \"$0\" \"$@\"\n' '''\n"),
    ],
)
def test_the_python_is_the_one_that_the_command_runs_with(folder, first_lines, tmp_path, monkeypatch):
    python = fake_python(tmp_path / folder / "python3.99")
    text = first_lines.format(python=python, name=python.name)
    cli = executable(tmp_path / folder / "llamafactory-cli", text)
    monkeypatch.setenv(VARIABLE, str(cli))
    monkeypatch.setenv("PATH", str(python.parent), prepend=":")
    found = find_installation()
    assert found.python == python
    assert found.note == ""


def test_a_command_that_hides_its_python_gets_the_one_beside_it_and_a_note(tmp_path, monkeypatch):
    python = fake_python(tmp_path / "python")
    monkeypatch.setenv(VARIABLE, str(executable(tmp_path / "llamafactory-cli", "#!/bin/sh\nexec true\n")))
    found = find_installation()
    assert found.python == python
    assert str(python) in found.note


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        (None, "cannot be started"),
        ("#!/bin/sh\necho broken >&2; exit 3\n", "broken"),
        ("#!/bin/sh\necho hello\n", "not JSON"),
    ],
    ids=["gone", "fails", "talks"],
)
def test_a_python_that_does_not_work_is_named(python, expected, tmp_path, monkeypatch):
    path = tmp_path / "env" / "python3"
    if python is not None:
        executable(path, python)
    monkeypatch.setenv(VARIABLE, str(executable(tmp_path / "llamafactory-cli", f"#!{path}\n")))
    with pytest.raises(PrerequisiteError, match=expected) as error:
        find_installation()
    assert str(path) in error.value.message


def test_looking_around_imports_neither_torch_nor_transformers(tmp_path, monkeypatch):
    for name in ("llamafactory", "transformers", "torch"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv(VARIABLE, str(executable(tmp_path / "llamafactory-cli", our_first_lines())))
    found = find_installation()
    assert found.package == tmp_path / "site" / "llamafactory"
