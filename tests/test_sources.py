"""From a command, script, file or folder to a spec, through the program itself. Run: pytest tests/test_sources.py."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.data.datasets import entry_folders
from orchestrator.errors import SpecError
from orchestrator.importing.importer import import_draft
from orchestrator.importing.sources import read_source
from orchestrator.runs.workspace import Workspace
from orchestrator.specs.render import Checkpoint, Renderer, train_arguments, train_environment
from orchestrator.specs.spec_file import load_spec
from tests import imported_once

PUBLISHED = Path(__file__).parent / "data" / "llamafactory-0.9.5"
LEAST = "--do_train --model_name_or_path org/model --dataset toy --template qwen"


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    place = Workspace(tmp_path / "work space")
    place.runs.mkdir(parents=True)
    place.dataset_info.mkdir()
    return place


def orchestrate(workspace: Workspace, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return imported_once.run(words[0], "--workspace", str(workspace.root), *words[1:], stdin=stdin)


def test_a_command_in_one_word_in_several_and_on_stdin_is_the_same(workspace):
    command = f"OMP_NUM_THREADS=2 llamafactory-cli train {LEAST} --learning_rate 1e-5"
    texts = [
        orchestrate(workspace, "import", "--dry-run", command).stdout,
        orchestrate(workspace, "import", "--dry-run", "--", *shlex.split(command)).stdout,
        orchestrate(workspace, "import", "--dry-run", "-", stdin=command.replace(" --", " \\\n  --")).stdout,
    ]
    assert texts[0] == texts[1] == texts[2]
    assert "learning_rate: 1.0e-05" in texts[0] and "OMP_NUM_THREADS" in texts[0]


def test_an_import_is_written_and_checked_and_said(workspace):
    done = orchestrate(
        workspace, "import", "--json", "--cwd", str(PUBLISHED),
        "llamafactory-cli train examples/train_lora/qwen3_lora_dpo.yaml lora_rank=4", "--name", "mine",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert Path(said["spec"]) == workspace.runs / "mine.yaml"
    assert [Path(path).name for path in said["datasets"]] == ["dpo_en_demo.yaml"]
    assert any("output_dir" in note for note in said["notes"])
    spec = load_spec(workspace.runs / "mine.yaml")
    assert spec.train is not None and spec.train.arguments()["lora_rank"] == 4
    shown = orchestrate(workspace, "show", str(workspace.runs / "mine.yaml"), "--file", "dataset_info.json")
    assert json.loads(shown.stdout)["dpo_en_demo"]["ranking"] is True


def test_a_mistyped_argument_is_kept_and_named_at_its_place(workspace):
    done = orchestrate(workspace, "import", f"llamafactory-cli train {LEAST} --lora_rnak 8", "--name", "x")
    assert done.returncode == 2
    assert "train.lora_rnak" in done.stderr and "did you mean 'lora_rank'" in done.stderr
    assert "lora_rnak" in (workspace.runs / "x.yaml").read_text()


def test_a_script_with_several_commands_asks_which(workspace, tmp_path):
    script = tmp_path / "all.sh"
    script.write_text(
        f"llamafactory-cli train {LEAST}\nllamafactory-cli train {LEAST} --seed 7\n"
        "llamafactory-cli export --model_name_or_path org/model --export_dir out\n"
    )
    done = orchestrate(workspace, "import", str(script))
    assert done.returncode == 2 and "line 1: train" in done.stderr and "--line N" in done.stderr
    assert "seed: 7" in orchestrate(workspace, "import", "--dry-run", "--line", "2", str(script)).stdout
    exported = orchestrate(workspace, "import", "--dry-run", "--line", "3", str(script))
    assert "export_dir:" in exported.stdout and "line 1" in exported.stderr


@pytest.mark.parametrize(
    "name", ["extras/fsdp_qlora/train.sh", "train_lora/qwen3_lora_sft.sh"]
)  # the others of the examples start scripts of their own
def test_published_scripts_are_imported(name, workspace):
    done = orchestrate(workspace, "import", "--cwd", str(PUBLISHED), str(PUBLISHED / "examples" / name))
    assert done.returncode == 0, done.stderr
    (spec,) = [load_spec(path) for path in workspace.runs.glob("*.yaml")]
    if "fsdp" in name:
        environment = train_environment(spec)
        assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["NPROC_PER_NODE"] == "2"
        assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_script_that_starts_something_else_is_refused(workspace):
    done = orchestrate(workspace, "import", str(PUBLISHED / "examples" / "extras/pissa/init.sh"))
    assert done.returncode == 2 and "holds no command that trains" in done.stderr


def test_a_folder_of_our_own_leads_to_rerun(workspace):
    run = workspace.runs / "toy-20261124-101500"
    (run / "output").mkdir(parents=True)
    (run / "record.json").write_text("{}")
    (run / "spec.yaml").write_text("name: toy\n")
    (run / "output" / "adapter_config.json").write_text("{}")
    done = orchestrate(workspace, "import", str(run / "output"))
    assert done.returncode == 2 and f"orchestrator rerun {run.name}" in done.stderr


def test_a_spec_is_a_spec_already(workspace):
    path = workspace.runs / "s.yaml"
    path.write_text("name: s\nmodel: {name_or_path: org/model}\nserve: {}\n")
    assert "is a spec already" in orchestrate(workspace, "import", str(path)).stderr


RUBBISH = {
    "empty.yaml": b"",
    "list.yaml": b"- a\n",
    "tabs.yaml": b"a:\n\t- b\n",
    "binary.yaml": bytes(range(256)) * 50,
    "null.yaml": b'"a\\0b": 1\n',
    "twice.yaml": b"a: 1\na: 2\n",
    "bomb.yaml": b"a0: &a0 [x]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)
    ),
    "other.yaml": b"services: {web: {image: nginx}}\n",
    "binary.sh": bytes(range(256)) * 50,
    "latin.sh": "llamafactory-cli train --default_system \u00fc".encode("latin-1"),
    "open.sh": b"llamafactory-cli train --default_system 'never closed\n",
    "deep.sh": b"$(" * 5000,
    "empty.sh": b"",
    "huge.yaml": b"a: 1\n# " + b"x" * (100 << 20),
    "huge.sh": b"# " + b"x" * (100 << 20),
}  # fmt: skip


CHILD = """
import contextlib, io, json, resource, sys

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from orchestrator.__main__ import main

said = {}
_, root, *paths = sys.argv
for path in paths:
    sys.argv = ["orchestrator", "import", "--workspace", root, path]
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            said[path] = end.code, err.getvalue()
print(json.dumps(said))
"""


def test_rubbish_is_refused_with_a_reason_in_bounded_memory(workspace, tmp_path):
    """All of it by one process, so that what one file takes is not kept either."""
    for name, content in RUBBISH.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in RUBBISH]
    argv = [sys.executable, "-c", CHILD, str(workspace.root), *paths]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert list(said) == paths
    for path, (code, text) in said.items():
        assert code == 2 and text.startswith("error: ") and "Traceback" not in text, (path, text)
    assert list(workspace.runs.glob("*.yaml")) == [] and list(workspace.dataset_info.iterdir()) == []


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40).filter(lambda each: "${" not in each)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=text, run_name=text, variable=text)
def test_any_text_survives_from_command_line_to_spec_to_command_line(
    system, run_name, variable, workspace, arguments, installation
):
    renderer = Renderer()
    given_arguments = {
        "model_name_or_path": "org/model", "default_system": system, "template": "qwen", "do_train": True,
        "dataset": "toy", "run_name": run_name,
    }  # fmt: skip
    command = renderer.command("train", given_arguments, {"SOME_TEXT": variable})
    draft = read_source([command + " "], cwd=workspace.root, line=None, arguments=arguments, installation=installation)
    folders = entry_folders(workspace.dataset_info)
    imported = import_draft(draft, "x", workspace=workspace, folders=folders, renderer=renderer)
    path = workspace.runs / "x.yaml"
    path.write_text(imported.spec, encoding="utf-8")
    spec = load_spec(path, (), arguments)
    assert spec.model is not None
    rendered = train_arguments(spec, Checkpoint("base", spec.model))
    assert {key: rendered[key] for key in given_arguments} == given_arguments
    assert (
        renderer.command("train", {key: rendered[key] for key in given_arguments}, train_environment(spec)) == command
    )


def test_a_word_that_is_nothing_is_refused(arguments, installation, tmp_path):
    with pytest.raises(SpecError, match="is no file, no folder and no command"):
        read_source(["gone"], cwd=tmp_path, line=None, arguments=arguments, installation=installation)


@pytest.mark.parametrize("words", [[""], [" "], ["", "\t"]])
def test_nothing_at_all_is_refused_and_is_not_the_current_folder(words, arguments, installation):
    with pytest.raises(SpecError, match="there is nothing to import"):
        read_source(words, cwd=None, line=None, arguments=arguments, installation=installation)


def test_a_home_of_nobody_is_no_file(arguments, installation, tmp_path):
    with pytest.raises(SpecError, match="is no file, no folder and no command"):
        read_source(["~nobody-here/x"], cwd=tmp_path, line=None, arguments=arguments, installation=installation)
