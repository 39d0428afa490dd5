"""Folders are layers, and some things are never imported. Run: pytest tests/test_layers.py."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "orchestrator"
# A file imports only from its own layer and from those before it.
LAYERS = (
    "errors", "files", "text", "processes", "specs", "models", "upstream", "data", "scoring", "runs", "planning",
    "serving", "benchmark", "lifecycle", "importing", "views", "commands", "__main__",
)  # fmt: skip
# What llamafactory-cli runs with: seconds to import, and another version than the one in use, maybe.
NEVER = {"llamafactory", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "vllm", "deepspeed"}
# scripts/ runs in LLaMA-Factory's or vLLM's own Python.
FILES = [path for path in PACKAGE.rglob("*.py") if "scripts" not in path.parts and path != PACKAGE / "__init__.py"]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{each.name}" for each in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_from_its_layer_and_those_before_and_only_process_starts_processes(path):
    own = LAYERS.index(path.relative_to(PACKAGE).with_suffix("").parts[0])
    found = {name.split(".")[1] for name in imports(path) if name.startswith("orchestrator.")} - {"__version__"}
    assert {name for name in found if LAYERS.index(name) > own} == set()
    roots = {name.split(".")[0] for name in imports(path)}
    starters = {"subprocess", "multiprocessing", "pty"}
    assert roots & NEVER == set()
    assert roots & starters == ({"subprocess"} if path == PACKAGE / "processes" / "process.py" else set())


def loaded(*argv: str) -> tuple[int, set[str]]:
    """The exit code of a command in a process of its own, and the packages that it imported."""
    code = f"""
import atexit, sys
atexit.register(lambda: print("\\n", *{{name.partition('.')[0] for name in sys.modules}}))
sys.argv = ["orchestrator", *{list(argv)!r}]
from orchestrator.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, set(done.stdout.rpartition("\n ")[2].split())


def test_a_check_imports_nothing_of_llamafactory():
    code, packages = loaded("check", "runs/demo.yaml", "--fast")
    assert code in (0, 2)  # 2: the demo's model, a folder, is not there yet
    assert {"orchestrator", "pydantic", "ruamel"} <= packages
    assert packages & NEVER == set()


def test_help_answers_without_the_slow_imports():
    code, packages = loaded("--help")
    assert code == 0 and "typer" in packages
    assert packages & {"openai", "aiohttp", "sacrebleu", "numpy", *NEVER} == set()
