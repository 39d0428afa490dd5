"""From a command, script, file or folder to a spec, through the program itself. Run: pytest tests/test_sources.py."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.importing.importer import Draft
from orchestrator.importing.sources import read_source
from orchestrator.runs.workspace import Workspace
from orchestrator.specs.render import train_environment
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


@pytest.fixture
def read(arguments, installation) -> Callable[..., Draft]:
    def read_words(*words: str | Path, cwd: Path | None = None, line: int | None = None) -> Draft:
        texts = list(map(str, words))
        return read_source(texts, cwd=cwd, line=line, arguments=arguments, installation=installation)

    return read_words


def run_import(workspace: Workspace, *words: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return imported_once.run("import", "--workspace", str(workspace.root), *map(str, words), stdin=stdin)


def test_a_command_in_one_word_in_several_and_on_stdin_is_the_same(workspace):
    command = f"OMP_NUM_THREADS=2 llamafactory-cli train {LEAST} --learning_rate 1e-5"
    texts = [
        run_import(workspace, "--dry-run", command).stdout,
        run_import(workspace, "--dry-run", "--", *shlex.split(command)).stdout,
        run_import(workspace, "--dry-run", "-", stdin=command.replace(" --", " \\\n  --")).stdout,
    ]
    assert texts[0] == texts[1] == texts[2]
    assert "learning_rate: 1.0e-05" in texts[0] and "OMP_NUM_THREADS" in texts[0]


def test_an_import_is_written_and_checked_and_printed(workspace):
    command = "llamafactory-cli train examples/train_lora/qwen3_lora_dpo.yaml lora_rank=4"
    done = run_import(workspace, "--json", "--cwd", PUBLISHED, command, "--name", "mine")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert Path(printed["spec"]) == workspace.runs / "mine.yaml"
    assert [Path(path).name for path in printed["datasets"]] == ["dpo_en_demo.yaml"]
    assert any("output_dir" in note for note in printed["notes"])
    spec = load_spec(workspace.runs / "mine.yaml")
    assert spec.train is not None and spec.train.arguments()["lora_rank"] == 4
    shown = imported_once.run(
        "show", "--workspace", str(workspace.root), printed["spec"], "--file", "dataset_info.json"
    )
    assert json.loads(shown.stdout)["dpo_en_demo"]["ranking"] is True


def test_a_mistyped_argument_is_kept_and_named_at_its_place(workspace):
    done = run_import(workspace, f"llamafactory-cli train {LEAST} --lora_rnak 8", "--name", "x")
    assert done.returncode == 2
    assert "train.lora_rnak" in done.stderr and "did you mean 'lora_rank'" in done.stderr
    assert "lora_rnak" in (workspace.runs / "x.yaml").read_text()


def test_a_script_with_several_commands_asks_which(read, tmp_path):
    script = tmp_path / "all.sh"
    script.write_text(
        f"llamafactory-cli train {LEAST}\nllamafactory-cli train {LEAST} --seed 7\n"
        "llamafactory-cli export --model_name_or_path org/model --export_dir out\n"
    )
    with pytest.raises(SpecError, match=r"holds 2 such commands:\n  line 1: train\n  line 2: train") as error:
        read(script)
    assert "--line N" in error.value.remedy
    assert read(script, line=2).arguments["seed"] == 7
    exported = read(script, line=3)
    assert exported.command == "export" and "not taken over: train in line 1 (import it" in exported.notes[-2]


def test_a_script_of_accelerate_is_imported_with_what_accelerate_sets(workspace):
    script = PUBLISHED / "examples" / "extras/fsdp_qlora/train.sh"
    done = run_import(workspace, "--cwd", PUBLISHED, script)
    assert done.returncode == 0, done.stderr
    environment = train_environment(load_spec(workspace.runs / "train.yaml"))
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["NPROC_PER_NODE"] == "2"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_what_llama_board_ran_has_its_environment_and_no_secret(workspace, tmp_path):
    given = "model_name_or_path: m/m\ndo_train: true\ndataset: a\ndeepspeed: ds.json\nswanlab_api_key: sw-1234\n"
    for path in (tmp_path / "training_args.yaml", tmp_path):  # the file, and its folder
        (tmp_path / "training_args.yaml").write_text(given)
        done = run_import(workspace, "--dry-run", path)
        assert "swanlab_api_key (a secret by its name" in done.stderr and "sw-1234" not in done.stdout + done.stderr
        assert "FORCE_TORCHRUN" in done.stdout


COMMANDS = {
    "": "there is nothing to import",
    "gone": "is no file, no folder and no command",
    "~nobody-here/x": "is no file, no folder and no command",
    "gone.yaml": "no such file",
    "echo llamafactory-cli train x.yaml": "line 1 names LLaMA-Factory, but is read as words of 'echo'",
    "llamafactory-cli webui": "line 1 starts `webui`",
    "llamafactory-cli train gone.yaml": "line 1 names gone.yaml, which is not there; looked for from",
    "llamafactory-cli train $1": r"line 1 reads \$1, and \$1 cannot be resolved without running the script",
    "for C in a b; do llamafactory-cli train $C.yaml; done": "line 1: train a.yaml\n  line 1: train b.yaml",
}
FILES = {
    "spec.yaml": (b"name: s\nmodel: {name_or_path: org/model}\nserve: {}\n", "is a spec already"),
    "board.yaml": (b"top.model_name: Qwen\ntrain.training_stage: x\n", "a form that LLaMA Board saved"),
    "other.yaml": (b"services: {web: {image: nginx}}\n", "holds none of LLaMA-Factory's arguments"),
    "empty.yaml": (b"", "is empty"),
    "binary.yaml": (bytes(range(256)) * 50, "is not UTF-8 text"),
    "huge.yaml": (b"a: 1\n# " + b"x" * (3 << 20), "it has 3,145,735 bytes, over 1,048,576"),
    "binary.sh": (b"\x7fELF" + bytes(range(256)) * 50, "is not UTF-8 text"),
    "latin.sh": ("llamafactory-cli train --default_system \u00fc".encode("latin-1"), "is not UTF-8 text: byte 40"),
    "open.sh": (b"llamafactory-cli train --default_system 'never closed\n", "' is never closed"),
    "deep.sh": (b"$(" * 5000, "more than 40 constructs within each other"),
    "empty.sh": (b"", "holds no command that trains"),
    "huge.sh": (b"# " + b"x" * (3 << 20), "over 1,048,576"),
}


@pytest.mark.parametrize("words", COMMANDS)
def test_what_is_no_command_is_refused_with_the_reason(words, read, tmp_path):
    with pytest.raises(SpecError, match=COMMANDS[words]):
        read(words, cwd=tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else_is_refused_with_the_reason(name, read, tmp_path):
    (tmp_path / name).write_bytes(FILES[name][0])
    with pytest.raises(OrchestratorError, match=re.escape(FILES[name][1])) as error:
        read(tmp_path / name)
    assert name != "board.yaml" or re.search("training_args.yaml.*Preview command", error.value.remedy)


def test_the_reason_why_nothing_trains_is_in_the_error(workspace):
    done = run_import(workspace, f"llamafactory-cli train --stage sft ^\n  {LEAST}")
    assert done.returncode == 2 and "does not train: do_train is null" in done.stderr
    assert "line 2: --do_train" in done.stderr and "the command before it ended in line 1" in done.stderr
