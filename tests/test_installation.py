"""Finding LLaMA-Factory: which command, which Python, which versions. The real one is used where it is installed."""

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


def test_the_command_beside_our_python_is_found_with_its_package_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    found = find_installation()
    assert found.cli == Path(sys.executable).parent / "llamafactory-cli"
    assert found.package is not None and (found.package / "hparams" / "model_args.py").is_file()
    assert found.versions["llamafactory"] == version("llamafactory")
    assert found.python_version == ".".join(map(str, sys.version_info[:3]))
    assert found.note == ""


@pytest.mark.parametrize("named", ["bin/llamafactory-cli", "bin", "."])
def test_the_variable_names_the_program_its_folder_or_the_environment(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = executable(tmp_path / "bin" / "llamafactory-cli", our_first_lines())
    monkeypatch.setenv(VARIABLE, str(tmp_path / named))
    assert find_installation().cli == cli


def test_a_variable_that_leads_nowhere_is_an_error_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(PrerequisiteError, match="gone") as error:
        find_installation()
    assert VARIABLE in error.value.message


def test_no_command_anywhere_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(PrerequisiteError, match="llamafactory-cli not found") as error:
        find_installation()
    assert "pip install" in error.value.remedy and VARIABLE in error.value.remedy


def test_the_command_on_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = executable(tmp_path / "llamafactory-cli", our_first_lines())
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none" / "python"))
    assert find_installation().cli == cli


@pytest.mark.parametrize(
    "first_lines",
    [
        "#!{python}\n",
        "#!/usr/bin/env {name}\n",
        "#!/usr/bin/env -S {name} -u\n",
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'{name}' \"$0\" \"$@\"\n' '''\n",
    ],
    ids=["shebang", "env", "env -S", "pip's long path", "unquoted", "uv relocatable"],
)
def test_the_python_is_the_one_that_the_command_runs_with(
    first_lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = fake_python(tmp_path / "env" / "python3.99")
    text = first_lines.format(python=python, name=python.name)
    cli = executable(tmp_path / "env" / "llamafactory-cli", text)
    monkeypatch.setenv(VARIABLE, str(cli))
    monkeypatch.setenv("PATH", str(python.parent), prepend=":")
    found = find_installation()
    assert found.python == python
    assert found.note == ""


def test_a_python_in_a_folder_with_a_blank_and_a_quote_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form that pip writes there, since '#!' ends at a blank."""
    python = fake_python(tmp_path / "it's my env" / "python")
    line = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"
    monkeypatch.setenv(VARIABLE, str(executable(tmp_path / "it's my env" / "llamafactory-cli", line)))
    assert find_installation().python == python


def test_a_command_that_hides_its_python_gets_the_one_beside_it_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = fake_python(tmp_path / "python")
    monkeypatch.setenv(VARIABLE, str(executable(tmp_path / "llamafactory-cli", "#!/bin/sh\nexec true\n")))
    found = find_installation()
    assert found.python == python
    assert str(python) in found.note


def test_a_python_without_llamafactory_gives_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = executable(tmp_path / "python", f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    monkeypatch.setenv(VARIABLE, str(executable(tmp_path / "llamafactory-cli", f"#!{bare}\n")))
    found = find_installation()
    assert found.package is None and found.versions == {}


@pytest.mark.parametrize(
    ("python", "said"),
    [
        (None, "cannot be started"),
        ("#!/bin/sh\necho broken >&2; exit 3\n", "broken"),
        ("#!/bin/sh\necho hello\n", "not JSON"),
    ],
    ids=["gone", "fails", "talks"],
)
def test_a_python_that_does_not_work_is_named(
    python: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "env" / "python3"
    if python is not None:
        executable(path, python)
    monkeypatch.setenv(VARIABLE, str(executable(tmp_path / "llamafactory-cli", f"#!{path}\n")))
    with pytest.raises(PrerequisiteError, match=said) as error:
        find_installation()
    assert str(path) in error.value.message


def test_files_of_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llamafactory").mkdir()
    (tmp_path / "llamafactory" / "__init__.py").write_text("")
    (tmp_path / "json.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    found = find_installation()
    assert found.package is not None and not found.package.is_relative_to(tmp_path)


def test_looking_around_imports_neither_torch_nor_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llamafactory", "transformers", "torch"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv(VARIABLE, str(executable(tmp_path / "llamafactory-cli", our_first_lines())))
    found = find_installation()
    assert found.package == tmp_path / "site" / "llamafactory"


def test_the_distribution_with_ktransformers_counts_as_llamafactory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "llamafactory_kt-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llamafactory-kt\nVersion: 9.9\n")
    bare = executable(tmp_path / "python", f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv(VARIABLE, str(executable(tmp_path / "llamafactory-cli", f"#!{bare}\n")))
    assert find_installation().versions == {"llamafactory": "9.9"}
