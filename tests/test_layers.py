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
    "paths",
    "benchmark.metrics",
    "findings",
    "processes.family",
    "processes.interruptible",
    "processes.process",
    "processes.watch",
    "processes.node",
    "processes.progress",
    "runs.trainer_log",
    "specs.excerpt",
    "importing.shell_tokens",
    "importing.shell_words",
    "importing.shell_grammar",
    "importing.shell",
    "specs.yamlfile",
    "specs.axes",
    "models.tensorfile",
    "runs.rundir",
    "runs.locks",
    "runs.storage",
    "benchmark.score",
    "benchmark.significance",
    "benchmark.triage",
    "data.archives",
    "upstream.installation",
    "upstream.arguments",
    "upstream.argument_check",
    "upstream.vllm",
    "upstream.vllm_arguments",
    "upstream.chat_prompt",
    "importing.command_line",
    "importing.accelerate_config",
    "importing.launch_options",
    "importing.launchers",
    "upstream.rules",
    "upstream.ranges",
    "specs.benchmark_spec",
    "specs.slurm_spec",
    "specs.compute_spec",
    "specs.machines",
    "specs.spec",
    "specs.spec_file",
    "data.llamafactory_data",
    "data.data_files",
    "data.data_records",
    "data.datasets",
    "data.sacrebleu_sets",
    "models.model_files",
    "models.full_hash",
    "upstream.chat_templates",
    "importing.board_form",
    "importing.board",
    "specs.schema",
    "benchmark.client",
    "runs.slurm",
    "runs.record_parts",
    "benchmark.streaming",
    "runs.record",
    "runs.costs",
    "runs.groups",
    "runs.environment",
    "runs.machine",
    "runs.worktree",
    "runs.left_over",
    "runs.metering",
    "runs.state",
    "specs.cloud",
    "specs.render",
    "specs.sbatch",
    "benchmark.decoding",
    "benchmark.identity",
    "benchmark.answers",
    "benchmark.concurrency",
    "benchmark.translate",
    "benchmark.speed",
    "data.testset",
    "benchmark.question",
    "specs.new",
    "importing.config_file",
    "importing.model_card",
    "importing.output_files",
    "importing.output_folder",
    "importing.importer",
    "importing.sources",
    "runs.facts",
    "runs.drift",
    "models.checkpoints",
    "runs.verdict",
    "runs.notes",
    "runs.in_use",
    "runs.trash",
    "runs.index",
    "runs.registry",
    "runs.ranking",
    "specs.diff",
    "benchmark.finished",
    "benchmark.comet",
    "benchmark.compare",
    "benchmark.curve",
    "benchmark.ranked",
    "models.target",
    # the stages
    "data.data_check",
    "upstream.compute_check",
    "upstream.cpu_ranks",
    "runs.slurm_check",
    "check",
    "train",
    "serve",
    "upstream.llamafactory_server",
    "upstream.vllm_server",
    "benchmark.evaluate",
    "export",
    # what shows and asks
    "commands.talk",
    "commands.terminal",
    "commands.compare_output",
    # the order of the stages, and the command line
    "runs.doctor",
    "plan",
    "runs.elsewhere",
    "runs.repeat",
    "serving",
    "runs.new_run",
    "runs.resume",
    "runs.join",
    "runs.jobs",
    "benchmark.afterwards",
    "benchmark.benchmarking",
    "benchmark.every_checkpoint",
    "benchmark.during",
    "training",
    "pipeline",
    "targets",
    "runs.supervise",
    "runs.stopping",
    "runs.sweep",
    "runs.turns",
    "commands.logs",
    "commands.options",
    "commands.sweeps",
    "commands.app",
    "commands.spec_commands",
    "commands.life_commands",
    "commands.follow_commands",
    "commands.run_commands",
    "commands.registry_commands",
    "commands.benchmark_commands",
    "commands.model_commands",
    "commands.compare_commands",
    "commands.doctor_commands",
    "cli",
    "__main__",
]
STAGES = {"check", "train", "serve", "benchmark.evaluate", "export"}
# What llamafactory-cli runs with; seconds to import, and another version than the one in use, maybe.
NEVER = {"llamafactory", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "vllm", "deepspeed"}


def path_of(name: str) -> Path:
    return PACKAGE / f"{name.replace('.', '/')}.py"


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            if module.split(".")[0] == "orchestrator" and (ROOT / module.replace(".", "/")).is_dir():
                yield from (f"{module}.{each.name}" for each in node.names)
            else:
                yield module


def ours(name: str) -> set[str]:
    """The modules of the package that one of them imports."""
    found = {each.partition(".")[2] for each in imports(path_of(name)) if each.startswith("orchestrator.")}
    return found - {"__version__"}


def test_the_order_names_every_module_once():
    found = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
    assert sorted(ORDER) == sorted(".".join(path.parts) for path in found)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_above(name):
    assert ours(name) <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize("name", sorted(STAGES))
def test_stages_do_not_know_each_other(name):
    assert ours(name) & STAGES == set()


def test_the_packages_themselves_import_nothing():
    assert [name for path in PACKAGE.rglob("__init__.py") for name in imports(path)] == []


@pytest.mark.parametrize("name", ORDER)
def test_no_module_imports_what_llamafactory_runs_with_and_only_process_starts_processes(name):
    roots = {each.split(".")[0] for each in imports(path_of(name))}
    assert roots & NEVER == set()
    starters = {"subprocess", "multiprocessing", "pty"}
    assert roots & starters == ({"subprocess"} if name == "processes.process" else set())


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
