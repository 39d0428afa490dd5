"""Commands that start LLaMA-Factory, in all their forms; compared with OmegaConf and accelerate."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.importing.launchers import Invocation, read_invocations
from orchestrator.specs.arguments import Argument
from orchestrator.upstream.installation import Installation, ask

DATA = Path(__file__).parent / "data"
EXAMPLES = DATA / "llamafactory-0.9.5" / "examples"
CASES = yaml.safe_load((DATA / "launchers.yaml").read_text(encoding="utf-8"))
SCRIPTS: dict[str, dict[str, Any]] = yaml.safe_load((DATA / "scripts.yaml").read_text(encoding="utf-8"))
DEFAULTS: dict[str, Any] = {"command": "train", "config": None, "arguments": {}, "environment": {}, "accelerate": None}
Arguments = dict[str, Argument]


def only(text: str, arguments: Arguments) -> Invocation:
    [found] = read_invocations(text, "run.sh", arguments)
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_real_scripts(name: str, arguments: Arguments) -> None:
    found = read_invocations(SCRIPTS[name]["script"], "run.sh", arguments, Path("/home/me/scripts"))
    expected = [{**DEFAULTS, **each} for each in SCRIPTS[name]["found"]]
    notes = [each.pop("notes", []) for each in expected]
    got = [{key: getattr(each, key) for key in DEFAULTS} for each in found]
    assert json.dumps(got, sort_keys=True) == json.dumps(expected, sort_keys=True)
    for each, parts in zip(found, notes, strict=True):
        assert [part for note, part in zip(each.notes, parts, strict=True) if part not in note] == [], each.notes


@pytest.mark.parametrize(("text", "environment"), CASES["forms"].items())
def test_forms_of_one_command(text: str, environment: dict[str, str]) -> None:
    found = only(text, {})
    assert (found.command, found.config, found.arguments, found.notes) == ("train", "x.yaml", {}, [])
    assert found.environment == environment


@pytest.mark.parametrize(("text", "note"), CASES["notes"])
def test_what_has_no_place_in_the_result_is_noted_with_its_reason(text: str, note: str) -> None:
    found = only(text, {})
    assert (found.command, found.config) == ("train", "x.yaml")
    assert len(found.notes) == 1 and note in found.notes[0]


def test_what_does_not_start_llamafactory_is_passed_over() -> None:
    assert [text for text in CASES["passed_over"] if read_invocations(text, "x", {})] == []


def test_other_commands() -> None:
    got = [(text, only(text, {}).command, only(text, {}).config) for text, _, _ in CASES["commands"]]
    assert got == [tuple(case) for case in CASES["commands"]]


def test_variables_of_options_know_what_is_not_known() -> None:
    text = "torchrun --nnodes=2 --master_addr=$M --master_port $P src/train.py x.yaml"
    unknown = {name for name, value in only(text, {}).environment.items() if getattr(value, "unknown", [])}
    assert unknown == {"MASTER_ADDR", "MASTER_PORT"}


@pytest.mark.parametrize(("words", "expected", "notes"), CASES["flags"])
def test_flags_and_their_forms(words: str, expected: dict[str, Any], notes: list[str], arguments: Arguments) -> None:
    found = only(f"llamafactory-cli train {words}", arguments)
    assert repr(dict(sorted(found.arguments.items()))) == repr(dict(sorted(expected.items())))
    assert [note.startswith(part) for note, part in zip(found.notes, notes, strict=True)] == [True] * len(notes)


@pytest.mark.parametrize(("words", "message"), CASES["refused"])
def test_words_with_which_llamafactory_would_not_start_are_refused(words: str, message: str, arguments: Any) -> None:
    with pytest.raises(SpecError, match=r"^run\.sh, line 2: ") as caught:
        only(f"x\nllamafactory-cli train {words}", arguments)
    assert message in caught.value.message


def test_overrides_after_a_yaml_file_are_typed_as_omegaconf_types_them() -> None:
    from omegaconf import OmegaConf

    for value in CASES["overrides"]:
        words = [f"a={value}", f"b.c={value}", "b.d=x"]
        found = only(shlex.join(["llamafactory-cli", "train", "x.yaml", *words]), {})
        assert repr(found.arguments) == repr(OmegaConf.to_container(OmegaConf.from_cli(words)))
        assert found.notes == []


def test_the_scripts_of_llamafactorys_examples_but_two_start_it(arguments: Arguments) -> None:
    """The other two start Python scripts of its repository that prepare a model."""
    sft = only((EXAMPLES / "train_lora" / "qwen3_lora_sft.sh").read_text(), arguments)
    assert len(sft.arguments) == 28 and sft.arguments["logging_steps"] == 10.0 and sft.notes == []
    others = [path for path in EXAMPLES.rglob("*.sh") if not read_invocations(path.read_text(), "x", arguments)]
    assert sorted(path.name for path in others) == ["expand.sh", "init.sh"]


def test_what_accelerate_sets_for_configurations_and_options(installation: Installation) -> None:
    """Golden values: accelerate 1.11's own, and the same that a table of its rules gave."""
    if not installation.versions["accelerate"].startswith("1.11."):
        pytest.skip("another accelerate may set other variables")
    cases = json.loads((DATA / "accelerate_launch.json").read_text())
    for case in cases:
        if case["config"] is not None and set(case["config"]) == {"example"}:
            case["config"] = yaml.safe_load((EXAMPLES / case["config"]["example"]).read_text())
    answers = ask(installation.python, "accelerate_launch", [{**case, "environment": None} for case in cases])
    for case, answer in zip(cases, answers, strict=True):
        assert answer["environment"] == case["environment"], (case["config"], case["options"])
        assert [note[: len(part)] for note, part in zip(answer["notes"], case["notes"], strict=True)] == case["notes"]
