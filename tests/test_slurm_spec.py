"""The slurm section of a spec and its script, without a Slurm. Run: pytest tests/test_slurm_spec.py."""

import json
import shlex
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.files import shipped
from orchestrator.specs.compute_spec import SlurmSpec, parse_slurm_time
from orchestrator.specs.render import Renderer
from orchestrator.specs.spec_file import load_spec
from tests.reports import flat


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("1:30:00", 5400),
        ("2-12", 216_000),
        ("2-12:30", 217_800),
        ("1-00:00:01", 86_401),
        ("UNLIMITED", None),
        ("one hour", None),
        ("", None),
    ],
)
def test_a_time_is_read_as_slurm_reads_it(text, seconds):
    assert parse_slurm_time(text) == seconds


@pytest.mark.parametrize(
    ("compute", "problem"),
    [
        ({"slurm": {"partiton": "all"}}, "did you mean 'partition'?"),
        ({"slurm": {"time": "soon"}}, "no time limit: minutes, HH:MM:SS or DAYS-HH:MM:SS"),
        ({"slurm": {"time": "4:00", "signal_s": 180}}, "a time limit of 240 s with signal_s 180"),
        ({"slurm": {"options": {"mem": "1G"}}}, "options holds mem: write it as mem"),
        ({"slurm": {"options": {"requeue": True}}}, "options holds requeue: write it as requeue"),
        ({"slurm": {"options": {"array": "0-3"}}}, "options holds array, which is managed by orchestrator"),
        ({"slurm": {}, "devices": "0"}, "devices is set by Slurm"),
    ],
)
def test_what_cannot_be_a_job_is_reported_at_its_place(tmp_path, compute, problem):
    spec = {"name": "a", "model": {"name_or_path": "m"}, "serve": {}, "compute": compute}
    (tmp_path / "a.yaml").write_text(json.dumps(spec))
    with pytest.raises(SpecError) as error:
        load_spec(tmp_path / "a.yaml")
    assert problem in " ".join(flat(error.value.message)).replace("; did you", " did you"), error.value.message


def test_a_time_limit_that_leaves_a_second_after_the_signal_is_enough():
    assert SlurmSpec(time="4:01").time_limit_s == 241
    assert SlurmSpec(time="infinite").time_limit_s is None


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


def test_runs_of_a_group_are_tasks_of_an_array():
    text = script(SlurmSpec(requeue=False), [Path("/a"), Path("/b c")])
    assert "runs=( /a '/b c' )" in text
    assert {"--array=0-1", "--no-requeue"} <= {*options(text)}


def test_a_site_s_own_script_has_to_carry_out_the_run(tmp_path):
    own = tmp_path / "sbatch.sh.j2"
    text = (shipped("templates") / "sbatch.sh.j2").read_text("utf-8")
    own.write_text(text.replace("\nruns=", "\nmodule load cuda\nruns="), "utf-8")
    assert "\nmodule load cuda\n" in script(SlurmSpec(), [Path("/a")], tmp_path)
    own.write_text("#!/bin/bash\nhostname\n")
    with pytest.raises(SpecError, match="does not carry out the run: it lacks"):
        script(SlurmSpec(), [Path("/a")], tmp_path)
    own.write_text(text.replace("#!/bin/bash", "# no shell"))
    with pytest.raises(SpecError, match="does not begin with #!"):
        script(SlurmSpec(), [Path("/a")], tmp_path)


def test_the_script_is_shown_and_without_slurm_there_is_nothing_to_submit_to(workshop):
    spec = workshop.spec(compute={"slurm": {"gpus_per_node": 2}})
    done = workshop.run("show", spec, "--file", "sbatch.sh")
    assert done.code == 0 and "#SBATCH --gpus-per-node=2\n" in done.out and done.out.startswith("#!/bin/bash\n")
    done = workshop.run("launch", spec, PATH=str(workshop.root))
    assert done.code == 3 and "sbatch is not here" in done.err and "--set compute.slurm=null" in done.err
    assert workshop.run_folders() == []
