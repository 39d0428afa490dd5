"""Workspaces for the tests of the command line, with a fake llamafactory-cli, and the tiny model of the real ones."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai_stub
import pytest

from orchestrator.runs.rundir import RunDir, Workspace
from orchestrator.specs.arguments import Argument
from orchestrator.upstream.arguments import read_arguments
from orchestrator.upstream.installation import VARIABLE, Installation, find_installation
from tests.fake_llamafactory import install
from tests.imported_once import Imported
from tests.runs_on_disk import new_workspace
from tests.workshop import PATIENT_S, Done, Workshop, new_workshop, real_environment

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of many starts would compile the package anew


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with real trainings first: each file is one worker's, and begun last, one would be waited for."""
    real = {item.path for item in items if item.get_closest_marker("integration")}
    items.sort(key=lambda item: item.path not in real)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return new_workspace(tmp_path / 'it\'s my "work"; space')


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    folder = workspace.runs / "toy-20261124-101500"
    folder.mkdir()
    return RunDir(folder)


@pytest.fixture
def server() -> Iterator[openai_stub.StubServer]:
    with openai_stub.serving() as running:
        yield running


@pytest.fixture(scope="session")
def fake_cli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("llamafactory") / "it's bin")


@pytest.fixture
def workshop(tmp_path: Path, fake_cli: Path) -> Iterator[Workshop]:
    """An empty workspace with a model; whatever a test leaves running is killed."""
    made = new_workshop(tmp_path, fake_cli)
    yield made
    made.kill_all()


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory, fake_cli: Path) -> tuple[Workshop, Done]:
    """A finished run, `toy`, with benchmarks of the base model and of the adapter. To be read, not changed."""
    made = new_workshop(tmp_path_factory.mktemp("launched"), fake_cli, {"HF_TOKEN": "hf_secret"})
    benchmark = [{"testset": "captions_en_de", "max_samples": 6, "n_bootstrap": 10, "base_model": True}]
    done = made.run("launch", made.spec(benchmark=benchmark), fresh=True, FAKE_TORN_S="0.4")  # longer than a look at it
    assert done.code == 0, done.err
    return made, done


@pytest.fixture
def toy(launched: tuple[Workshop, Done], tmp_path: Path) -> Iterator[Workshop]:
    made = launched[0].copy(tmp_path)
    yield made
    made.kill_all()


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The real LLaMA-Factory beside our Python, whatever the environment names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        return find_installation()


@pytest.fixture(scope="session")
def arguments(installation: Installation) -> dict[str, Argument]:
    return read_arguments(installation)


@pytest.fixture(scope="session")
def llamafactory(tmp_path_factory: pytest.TempPathFactory, installation: Installation) -> Iterator[Imported]:
    """The Python of the real LLaMA-Factory, with it imported, for whatever asks it something."""
    made = Imported(installation.python, tmp_path_factory.mktemp("imported"))
    yield made
    made.end()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 2 layers that the real llamafactory-cli trains and serves: one for all workers."""
    base = tmp_path_factory.getbasetemp()
    parent = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    parent.mkdir(exist_ok=True)
    script, folder = Path(__file__).parent / "tiny_model.py", parent / "tiny"
    with (parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            command = [sys.executable, str(script), str(parent / "unfinished")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            (parent / "unfinished").rename(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Callable[[], Workshop]]:
    made: list[Workshop] = []

    def make() -> Workshop:
        parent = tmp_path_factory.mktemp("real")
        made.append(new_workshop(parent, None, real_environment(parent), model=tiny_model))
        made[-1].deadline_s = PATIENT_S
        return made[-1]

    yield make
    for workshop in made:
        workshop.kill_all()
