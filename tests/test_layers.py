"""The order of the modules, and what none of them imports. Run: pytest tests/test_layers.py."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "orchestrator"

# A module imports only from modules above it.
ORDER = [
    "errors",
    "metrics",
    "findings",
    "family",
    "interruptible",
    "process",
    "watch",
    "progress",
    "trainer_log",
    "excerpt",
    "shell_tokens",
    "shell_words",
    "shell_grammar",
    "shell",
    "yamlfile",
    "tensorfile",
    "rundir",
    "locks",
    "score",
    "significance",
    "triage",
    "archives",
    "installation",
    "arguments",
    "argument_check",
    "command_line",
    "accelerate_config",
    "launch_options",
    "launchers",
    "rules",
    "benchmark_spec",
    "spec",
    "llamafactory_data",
    "data_files",
    "data_records",
    "datasets",
    "model_files",
    "chat_templates",
    "board_form",
    "board",
    "schema",
    "client",
    "record",
    "state",
    "render",
    "decoding",
    "identity",
    "answers",
    "concurrency",
    "translate",
    "speed",
    "testset",
    "question",
    "new",
    "config_file",
    "model_card",
    "output_files",
    "output_folder",
    "importer",
    "sources",
    "facts",
    "drift",
    "checkpoints",
    "verdict",
    "notes",
    "in_use",
    "trash",
    "index",
    "registry",
    "ranking",
    "diff",
    "finished",
    "compare",
    "target",
    # the stages
    "data_check",
    "check",
    "train",
    "serve",
    "evaluate",
    "export",
    # what shows and asks
    "talk",
    "terminal",
    "compare_output",
    # the order of the stages, and the command line
    "plan",
    "repeat",
    "serving",
    "resume",
    "benchmarking",
    "pipeline",
    "supervise",
    "stopping",
    "logs",
    "options",
    "app",
    "spec_commands",
    "life_commands",
    "run_commands",
    "registry_commands",
    "model_commands",
    "compare_commands",
    "cli",
    "__main__",
]
STAGES = {"check", "train", "serve", "evaluate", "export"}
# What llamafactory-cli runs with; seconds to import, and another version than the one in use, maybe.
NEVER = {"llamafactory", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "vllm", "deepspeed"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "orchestrator":
                yield from (f"orchestrator.{each.name}" for each in node.names)
            else:
                yield node.module or ""


def ours(name: str) -> set[str]:
    """The modules of the package that one of them imports."""
    found = {each.split(".")[1] for each in imports(PACKAGE / f"{name}.py") if each.startswith("orchestrator.")}
    return found - {"__version__"}


def test_the_order_names_every_module_once():
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_above(name):
    assert ours(name) <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize("name", sorted(STAGES))
def test_stages_do_not_know_each_other(name):
    assert ours(name) & STAGES == set()


def test_the_package_itself_imports_nothing():
    assert list(imports(PACKAGE / "__init__.py")) == []


@pytest.mark.parametrize("name", ORDER)
def test_no_module_imports_what_llamafactory_runs_with_and_only_process_starts_processes(name):
    roots = {each.split(".")[0] for each in imports(PACKAGE / f"{name}.py")}
    assert roots & NEVER == set()
    starters = {"subprocess", "multiprocessing", "pty"}
    assert roots & starters == ({"subprocess"} if name == "process" else set())


CHILD = """
import contextlib, importlib, io, json, sys

for name in json.loads(sys.argv[1]):
    importlib.import_module(f"orchestrator.{name}")
import openai, sacrebleu  # imported late, within functions
from orchestrator.__main__ import main

codes = []
for words in json.loads(sys.argv[2]):
    sys.argv = ["orchestrator", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        try:
            main()
        except SystemExit as end:
            codes.append(end.code)
            raise
print(json.dumps({"codes": codes, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def test_a_real_check_of_the_demo_imports_nothing_of_llamafactory():
    """In a process of its own, with every module loaded and LLaMA-Factory's arguments and templates read."""
    commands = [
        ["check", "runs/demo.yaml"],
        ["show", "runs/multi30k-en-de.yaml", "--command"],
        ["launch", "runs/demo.yaml", "--set", "no.such=1"],
        ["list"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(ORDER), json.dumps(commands)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"][0] in (0, 2), done.stderr  # 2: the demo's model, a folder, is not there yet
    assert found["codes"][1:] == [0, 2, 0], done.stderr
    assert {"orchestrator", "openai", "sacrebleu", "pydantic"} <= set(found["modules"])
    assert set(found["modules"]) & NEVER == set()


def test_help_answers_without_the_slow_imports():
    """openai, sacrebleu and Jinja wait until they are used."""
    code = "import sys; from orchestrator import cli; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(ast.literal_eval(done.stdout)) & {"openai", "sacrebleu", "jinja2", "pydantic", "ruamel", *NEVER} == set()
