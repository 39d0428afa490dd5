"""From a command, script, file or folder to a spec, through the program itself."""

import json
import os
import pickle
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.importing import sources
from orchestrator.importing.importer import Draft
from orchestrator.importing.sources import read_config, read_source
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.spec_file import load_spec
from tests import imported_once

PUBLISHED = Path(__file__).parent / "data" / "llamafactory-0.9.5"
LEAST = "--do_train --model_name_or_path org/model --dataset toy --template qwen"


@pytest.fixture
def read(arguments, installation) -> Callable[..., Draft]:
    def read_words(*words: str | Path, cwd: Path | None = None, line: int | None = None) -> Draft:
        texts = list(map(str, words))
        return read_source(texts, cwd=cwd, line=line, arguments=arguments, installation=installation)

    return read_words


def run_import(workspace: Workspace, *words: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return imported_once.run("import", "--workspace", str(workspace.root), *map(str, words), stdin=stdin)


def test_a_command_in_one_word_in_several_and_on_stdin_is_the_same(workspace, read):
    command = f"OMP_NUM_THREADS=2 llamafactory-cli train {LEAST} --learning_rate 1e-5"
    one, several = read(command), read(*shlex.split(command))
    assert one == several and one.arguments["learning_rate"] == 1e-5 and one.environment == {"OMP_NUM_THREADS": "2"}
    done = run_import(workspace, "--dry-run", "-", stdin=command.replace(" --", " \\\n  --"))
    assert "learning_rate: 1.0e-05" in done.stdout and "OMP_NUM_THREADS" in done.stdout


def test_an_import_is_written_and_checked_and_printed(workspace):
    command = "llamafactory-cli train examples/train_lora/qwen3_lora_dpo.yaml lora_rank=4"
    done = run_import(workspace, "--json", "--cwd", PUBLISHED, command, "--name", "mine")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert [Path(path).name for path in printed["datasets"]] == ["dpo_en_demo.yaml"]
    assert any("output_dir" in note for note in printed["notes"])
    spec = load_spec(workspace.runs / "mine.yaml")
    assert spec.train is not None and spec.train.arguments()["lora_rank"] == 4


def test_a_mistyped_argument_is_kept_and_named_at_its_place(workspace):
    done = run_import(workspace, f"llamafactory-cli train --stage sft ^\n  {LEAST}")
    assert done.returncode == 2 and "does not train: do_train is null" in done.stderr
    assert "line 2: --do_train" in done.stderr and "the command before it ends" in done.stderr, "why it does not train"
    done = run_import(workspace, f"llamafactory-cli train {LEAST} --lora_rnak 8", "--name", "x")
    assert done.returncode == 2
    assert "train.lora_rnak" in done.stderr and "did you mean 'lora_rank'" in done.stderr
    assert "lora_rnak" in (workspace.runs / "x.yaml").read_text()


def test_a_script_with_several_commands_asks_which(read, tmp_path):
    script, train = tmp_path / "all.sh", f"llamafactory-cli train {LEAST}"
    script.write_text(f"{train}\n{train} --seed 7\nllamafactory-cli export --model_name_or_path org/model\n")
    with pytest.raises(SpecError, match=r"holds 2 such commands:\n  line 1: train\n  line 2: train") as error:
        read(script)
    assert "--line N" in error.value.remedy
    chosen = read(script, line=2)
    assert chosen.arguments["seed"] == 7
    assert [note[16:31] for note in chosen.notes] == ["train in line 1", "export in line "]
    with pytest.raises(SpecError, match="holds 2 such commands"):
        read(script, line=3)


def test_a_script_of_accelerate_is_imported_with_what_accelerate_sets(read, monkeypatch):
    questions: list[Any] = []
    answer = [{"environment": {"FORCE_TORCHRUN": "1", "CUDA_VISIBLE_DEVICES": "7"}, "notes": ["a note"]}]
    monkeypatch.setattr(sources, "ask", lambda _python, _script, question: questions.append(question[0]) or answer)
    found = read(PUBLISHED / "examples" / "extras/fsdp_qlora/train.sh", cwd=PUBLISHED)
    assert questions[0]["options"] == [] and questions[0]["config"]["distributed_type"] == "FSDP"
    assert found.environment == {"FORCE_TORCHRUN": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, "the command's own counts"
    assert found.notes == ["accelerate launch: a note"] and found.arguments["do_train"] is True


def write(folder: Path, **files: Any) -> Path:
    """Files by stem, `__` for `.`; what is no text is written as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, str | bytes) else json.dumps(content)
        (folder / name.replace("__", ".")).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def test_what_llama_board_ran_is_complete_has_its_environment_and_no_secret(read, workspace, tmp_path):
    given = "model_name_or_path: m/m\ndo_train: true\ndataset: a\ndeepspeed: ds.json\nswanlab_api_key: sw-1234\n"
    folder = write(tmp_path / "out", training_args__yaml=given, adapter_config__json={}, other__yaml=given)
    assert read(folder / "other.yaml").environment == {}
    for path in (folder, folder / "training_args.yaml"):
        assert read(path).environment == {"FORCE_TORCHRUN": "1"} and "lora_rank" not in read(path).arguments
    done = run_import(workspace, "--dry-run", folder)
    assert "swanlab_api_key (a secret by its name" in done.stderr and "sw-1234" not in done.stdout + done.stderr


ADAPTER = {
    "base_model_name_or_path": "owner/base", "peft_type": "LORA", "r": 4, "lora_alpha": {}, "lora_dropout": 0.05,
    "target_modules": ["v_proj", "q_proj"], "modules_to_save": None, "use_dora": False,
}  # fmt: skip
STATE = {"global_step": 10, "logging_steps": 2, "save_steps": 5, "train_batch_size": 2, "log_history": []}


def test_an_output_folder_shows_what_its_files_have_and_lists_what_none_has(read, tmp_path):
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    files = {"adapter_config__json": ADAPTER, "trainer_state__json": STATE, "training_args__bin": pickle.dumps(Trap())}
    found = read(write(tmp_path / "out", **files))
    assert found.arguments == {
        "model_name_or_path": "owner/base", "finetuning_type": "lora", "lora_rank": 4,
        "lora_dropout": 0.05, "use_dora": False, "lora_target": ["v_proj", "q_proj"],
        "logging_steps": 2, "save_steps": 5, "per_device_train_batch_size": 2, "do_train": True,
    }  # fmt: skip
    assert "not taken over: lora_alpha of adapter_config.json: expected an integer" in found.notes[0]
    assert found.comments["lora_rank"] == ["# from adapter_config.json"]
    assert "training_args.bin" in found.comments[""][1]
    assert not (tmp_path / "sprung").exists(), "a pickled file is never opened"


COMMENTED = """\
# what this is

### model
model_name_or_path: a/b  # or a folder
# why 8
lora_rank: 8
text: "a # not a comment" # beside
block: |
  line # no comment
flow: {a: 1,  # within
  b: 2}

### eval
# val_size: 0.1
"""


def test_a_comment_goes_with_the_argument_that_it_is_above_or_beside(tmp_path):
    found = read_config(write(tmp_path, c__yaml=COMMENTED) / "c.yaml")[1]
    assert {key: comments for key, comments in found.items() if comments} == {
        "model_name_or_path": ["# what this is", "### model", "# or a folder"], "lora_rank": ["# why 8"],
        "text": ["# beside"], "flow": ["# within"], "": ["### eval", "# val_size: 0.1"],
    }  # fmt: skip


def test_values_are_read_as_omegaconf_reads_them(tmp_path):
    text = "a: no\nb: 1e-5\nc: 'no'\nd: on\nf: 2024-01-01\ng: null\nh: 1_000\ni: ${a}\n"
    values = read_config(write(tmp_path, c__yaml=text) / "c.yaml")[0]
    assert list(values.values()) == [False, 1e-5, "no", True, "2024-01-01", None, 1000, False]


def test_a_folder_of_our_own_run_leads_to_rerun(read, tmp_path):
    run = write(tmp_path / "demo-20261124-101500", record__json={}, spec__yaml="")
    write(run / "output" / "checkpoint-5", trainer_state__json={})
    for folder in (run, run / "output", run / "output" / "checkpoint-5"):
        with pytest.raises(SpecError, match="belongs to the run demo-20261124-101500") as error:
            read(folder)
        assert "orchestrator rerun demo-20261124-101500" in error.value.remedy


COMMANDS = {
    "": "there is nothing to import",
    "~nobody-here/x": "is no file, no folder and no command",
    "gone.yaml": "no such file",
    "echo llamafactory-cli train x.yaml": "the command holds no command that trains",
    "llamafactory-cli export x.yaml": "line 1 starts `export`",
    "llamafactory-cli train gone.yaml": "line 1 names gone.yaml, which is not there; looked for from",
    "llamafactory-cli train $1": r"line 1 reads \$1, and \$1 cannot be resolved without running the script",
}
LEVELS = (b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 10))
BOMB = b"a0: &a0 [x]\n" + b"".join(LEVELS)
FILES = {
    "spec.yaml": (b"name: s\nmodel: {name_or_path: org/model}\nserve: {}\n", "is a spec already"),
    "board.yaml": (b"top.model_name: Qwen\ntrain.training_stage: x\n", "holds none of LLaMA-Factory's arguments"),
    "bomb.yaml": (BOMB, "stand for more than 100,000 values"),
    "huge.yaml": (b"a: 1\n# " + b"x" * (3 << 20), "it has 3,145,735 bytes, over 1,048,576"),
    "binary.sh": (b"\x7fELF" + bytes(range(256)) * 50, "holds a control character"),
    "open.sh": (b"llamafactory-cli train --default_system 'never closed\n", "' is never closed"),
    "nowhere.yaml": (b"a: ${b}\n", "Interpolation key 'b' not found"),
    "code.yaml": (b"a: !!python/object/apply:os.system [ls]\n", "cannot be read as LLaMA-Factory reads it"),
    "huge.sh": (b"# " + b"x" * (3 << 20), "over 1,048,576"),
    "folder": (None, "tells of no training by training_args.yaml, adapter_config.json"),
}


def test_what_is_no_command_and_no_file_of_one_is_refused_with_the_reason(read, tmp_path):
    for words, reason in COMMANDS.items():
        with pytest.raises(SpecError, match=reason):
            read(words, cwd=tmp_path)
    write(tmp_path / "folder")
    for name, (content, reason) in FILES.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(OrchestratorError, match=re.escape(reason)):
            read(tmp_path / name)
