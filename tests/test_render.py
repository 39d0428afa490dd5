"""A spec as LLaMA-Factory's files: nothing changes on the way. Run: pytest tests/test_render.py."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from orchestrator.data.datasets import ArchiveStore
from orchestrator.errors import PrerequisiteError, SpecError
from orchestrator.files import shipped
from orchestrator.planning.plan import render_dataset_info, render_files, render_job
from orchestrator.planning.session import Session
from orchestrator.runs.rundir import Workspace
from orchestrator.specs.compute_spec import SlurmSpec
from orchestrator.specs.render import Renderer, command_words, spec_yaml, train_environment
from orchestrator.specs.spec import RunSpec
from orchestrator.specs.spec_file import load_spec

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden"
REFERENCE = ROOT / "runs" / "multi30k-en-de.yaml"

TRAPS = [
    "no", "yes", "on", "off", "y", "n", "true", "false", "null", "~", "", "1e-4", "1e5", "5.0e-05", "1", "1.0", "-1",
    "012", "0o17", "0x1f", "1_000", ".5", ".inf", ".nan", "12:30:45", "2024-01-01", "a: b # c", "# c", "a #b", "a:b",
    "- a", "-", "--", "-x", "--do_train", "---", "...", "[a, b]", "{a: b}", "a,b", "?", "? a", "!!int 3", "!x", "&a",
    "*a", "%YAML 1.1", "@a", "`a`", "|", ">", "<<", "=", "???", "it's", '"q"', "l'été \"q\"", "'", '"', "\\", "\\n",
    "line\nbreak", "\n", "a\n\nb\n", "\r", "a\r\nb", "\t", "a\tb", " leading", "trailing ", "  ", "a  b", "{{ x }}",
    "{% if %}", "{# c #}", "$HOME", "$(id)", "`id`", "; echo", "a && b", "a | b", "> f", "*", "~/x", "!!", "a\\\nb",
    "日本語 😀", "👨‍👩‍👧", "ä", "a\u0301", "\x85", "a\x85b", "\u2028", "\u2029", "\xa0", "\ufeff", "\ufeffa", "\ufffe",
    "\uffff", "\U0010ffff", "\x07", "\x1b[31m", "\x7f", "\x80", "x" * 300, "word " * 60, "$", "$ {", "$}", "%(a)s",
]  # fmt: skip


def as_llamafactory_reads(text: str, folder: Path):
    path = folder / "read.yaml"
    path.write_bytes(text.encode())
    return OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_cli([])))


RENDERER = Renderer()
EVERYWHERE = {
    "model_name_or_path": TRAPS[0],
    "stage": "sft",
    "learning_rate": 1e-05,
    "plot_loss": False,
    "nothing": None,
    "count": 1,
    **{f"trap_{number}": value for number, value in enumerate(TRAPS)},
    "items": [TRAPS, [TRAPS]],
    "mapping": {"nested": {value: value for value in TRAPS}},
}


def test_every_string_reaches_llamafactory_unchanged(tmp_path):
    for render in (RENDERER.train_yaml, RENDERER.api_yaml):
        read = as_llamafactory_reads(render(EVERYWHERE), tmp_path)
        assert {key: repr(value) for key, value in read.items()} == {k: repr(v) for k, v in EVERYWHERE.items()}


def test_every_string_reaches_a_program_unchanged_by_way_of_a_real_shell(tmp_path):
    program = tmp_path / "llamafactory-cli"
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$CUDA_VISIBLE_DEVICES" "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    text = "".join(RENDERER.command("train", {"run_name": value}, {"CUDA_VISIBLE_DEVICES": value}) for value in TRAPS)
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True)
    assert done.stderr == b""
    expected = []
    for value in TRAPS:
        words = [f"--run_name={value}"] if value.startswith("-") else ["--run_name", value]
        expected += [value, "train", *words]
    assert done.stdout.decode().split("\0")[:-1] == expected


def test_the_saved_spec_is_the_spec(tmp_path):
    path = tmp_path / "spec.yaml"
    for value in ("no", "1e-4", "", "line\nbreak", "{{ x }}", "日本語"):
        model = {name: value for name in ("template", "adapter_name_or_path", "default_system", "revision")}
        spec = RunSpec(
            name="toy",
            model={"name_or_path": value or "m", **model},
            dataset=value,
            train={"lora_target": [value, "x"], "run_name": value, "kwargs": {value: TRAPS}},
            serve={"host": value, "model_name": value, "devices": value, "vllm_config": {"a": value}},
            benchmark=[{"testset": value, "split": value}],
            compute={"devices": value},
        )
        path.write_bytes(spec_yaml(spec).encode())
        assert load_spec(path) == spec


def test_a_dataset_s_name_and_file_reach_dataset_info_json_unchanged_in_ascii():
    infos = {value: {"file_name": value, "columns": {"prompt": value}, "ranking": True} for value in TRAPS}
    text = RENDERER.dataset_info(infos)
    assert text.isascii() and json.loads(text) == infos


def test_an_argument_as_words():
    for value, words in (
        (None, []),
        (True, ["--key", "True"]),
        (-1, ["--key=-1"]),
        ("", ["--key", ""]),
        ("-x", ["--key=-x"]),
        (["a", "b"], ["--key", "a,b"]),
        ({"a": [1, None, "ä"]}, ["--key", '{"a": [1, null, "\\u00e4"]}']),
    ):
        assert command_words("key", value) == words
    # label_names, say, is declared as a list: argparse splits no comma.
    assert command_words("key", ["a,b", "c"], several=True) == ["--key", "a,b", "c"]


@pytest.mark.parametrize("key", ["a b", "", "a-b", "a\nb", "1a", "ä"])
def test_what_is_no_name_is_refused(key):
    for render in (RENDERER.train_yaml, lambda values: RENDERER.command("train", values, {})):
        with pytest.raises(SpecError, match="is no name of an argument"):
            render({key: 1})


def test_the_launcher_s_variables_stand_before_the_command():
    compute = {
        "devices": "0, 1", "nproc_per_node": 2, "nnodes": 2, "node_rank": 1, "master_addr": "10.0.0.1",
        "master_port": 29500, "env": {"OMP_NUM_THREADS": "4"},
    }  # fmt: skip
    spec = RunSpec(name="toy", model={"name_or_path": "m"}, dataset="d", train={}, compute=compute)
    assert RENDERER.command("train", {}, train_environment(spec)) == (
        "OMP_NUM_THREADS=4 CUDA_VISIBLE_DEVICES='0, 1' FORCE_TORCHRUN=1 NPROC_PER_NODE=2 NNODES=2 NODE_RANK=1 "
        "MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 llamafactory-cli train\n"
    )
    assert train_environment(RunSpec(name="toy", model={"name_or_path": "m"}, dataset="d", train={})) == {}


def overridden(folder: Path, file: str, text: str) -> Renderer:
    (folder / f"{file}.j2").write_text(text, "utf-8")
    return Renderer(folder)


GOOD = {"model_name_or_path": "m n", "stage": "sft", "dataset": "d", "learning_rate": 1e-4, "plot_loss": True, "n": 1}


@pytest.mark.parametrize(
    ("file", "methods"),
    [("train.yaml", ["train_yaml"]), ("export.yaml", ["export_yaml"]), ("arguments.yaml", ["api_yaml", "export_yaml"])],
)
def test_a_workspace_may_add_comments_to_a_template(file, methods, tmp_path):
    original = shipped("templates") / f"{file}.j2"
    text = (original if original.exists() else original.with_name("arguments.yaml.j2")).read_text()
    renderer = overridden(tmp_path, file, "# ours\n" + text + "# the end: {{ 'x' }}\n")
    for method in ("train_yaml", "api_yaml", "export_yaml"):
        rendered = getattr(renderer, method)(GOOD)
        assert rendered.startswith("# ours\n") == rendered.endswith('# the end: "x"\n') == (method in methods)
        assert yaml.safe_load(rendered) == GOOD


LOOP = "{% for key, value in arguments %}\n{{ key }}: {{ value }}\n{% endfor %}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LOOP + "extra: 1\n", "does not say what the spec says: extra"),
        (LOOP.replace("{{ value }}", "'{{ value }}'"), "does not say what the spec says: dataset, learning_rate"),
        (LOOP.replace("{{ value }}", "{{ value }}/x"), "renders no api.yaml"),
        (LOOP.replace("arguments", "arguments[1:]"), "does not say what the spec says: model_name_or_path"),
        ("n: 1.0\n" + LOOP.replace("arguments %}", "arguments if key != 'n' %}"), "what the spec says: n"),
        ("a: [\n", "renders no api.yaml"),
        ("{{ nothing }}", "UndefinedError: 'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ],
)  # fmt: skip
def test_a_template_that_changes_loses_adds_or_breaks_something_is_refused_with_its_name(text, message, tmp_path):
    with pytest.raises(SpecError) as error:
        overridden(tmp_path, "api.yaml", text).api_yaml(GOOD)
    assert str(error.value).startswith("templates/api.yaml.j2")
    assert message in str(error.value)
    assert "one complete value per {{ }}" in error.value.remedy


def test_the_same_for_the_other_files(tmp_path):
    for text in ("", "llamafactory-cli train '", "llamafactory-cli {{ command }} --more"):
        with pytest.raises(SpecError, match=r"^templates/command\.txt\.j2 "):
            overridden(tmp_path, "command.txt", text).command("train", {"a": "b c"}, {})
    for text in ("{", "[]"):
        with pytest.raises(SpecError, match=r"^templates/dataset_info\.json\.j2 "):
            overridden(tmp_path, "dataset_info.json", text).dataset_info({"d": {"file_name": "f"}})


def script(slurm: SlurmSpec, runs: list[Path], templates: Path | None = None) -> str:
    return Renderer(templates).sbatch(slurm, runs, workspace=Path("/a b"), name="toy")


def options(text: str) -> list[str]:
    return [word for line in text.splitlines() if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]


def test_the_script_has_what_the_spec_has():
    slurm = SlurmSpec(
        partition="gpu", gpus_per_node="a100:4", mem="64G", time="1-00:00:00", options={"exclusive": True}
    )
    text = script(slurm, [Path("/work space/50%/run")])
    assert options(text) == [
        "--nodes=1", "--partition=gpu", "--gpus-per-node=a100:4", "--mem=64G", "--time=1-00:00:00",
        "--ntasks-per-node=1", "--signal=B:TERM@180", "--open-mode=append", "--requeue", "--exclusive",
        "--job-name=toy", "--output=/work space/50%%/run/logs/supervisor.log",
    ]  # fmt: skip
    assert "runs=( '/work space/50%/run' )" in text and "supervise --workspace '/a b' \"$run\" >>" in text
    text = script(SlurmSpec(requeue=False), [Path("/a"), Path("/b c")])  # the runs of a group are tasks of an array
    assert "runs=( /a '/b c' )" in text and {"--array=0-1", "--no-requeue"} <= {*options(text)}


def test_a_site_s_own_script_has_to_carry_out_the_run(tmp_path):
    own = tmp_path / "sbatch.sh.j2"
    text = (shipped("templates") / "sbatch.sh.j2").read_text("utf-8")
    own.write_text(text.replace("\nruns=", "\nmodule load cuda\nruns="), "utf-8")
    assert "\nmodule load cuda\n" in script(SlurmSpec(), [Path("/a")], tmp_path)
    own.write_text("#!/bin/bash\nhostname\n")
    with pytest.raises(SpecError, match="does not carry out the run: it lacks"):
        script(SlurmSpec(), [Path("/a")], tmp_path)


def render(spec: RunSpec) -> dict[str, str]:
    archives = ArchiveStore.from_environment(None)
    session = Session(Workspace(ROOT), PrerequisiteError("none"), Renderer(), archives, [ROOT / "dataset_info"])
    return {**render_files(session, spec), **render_dataset_info(session, spec), **render_job(session, spec)}


def test_the_reference_job_renders_byte_for_byte(monkeypatch, tmp_path):
    """golden/multi30k/spec.yaml is runs/multi30k-en-de.yaml as resolved; the files beside it are what it becomes."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = GOLDEN / "multi30k"
    spec = load_spec(REFERENCE)
    files = {"spec.yaml": spec_yaml(spec), **render(spec)}
    assert sorted(files) == sorted(path.name for path in folder.iterdir())
    for name, text in files.items():
        assert text.encode() == (folder / name).read_bytes(), name
    assert render(load_spec(folder / "spec.yaml")) == render(spec)
    job = render(spec.model_copy(update={"compute": spec.compute.model_copy(update={"slurm": SlurmSpec(nodes=2)})}))
    assert "#SBATCH --nodes=2\n" in job["sbatch.sh"] and job.keys() - files.keys() == {"sbatch.sh"}
