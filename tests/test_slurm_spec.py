"""The slurm section of a spec and its script, without a Slurm. Run: pytest tests/test_slurm_spec.py."""

import shlex
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.specs.render import Renderer
from orchestrator.specs.sbatch import sbatch_script
from orchestrator.specs.slurm_spec import OWNED_OPTIONS, SlurmSpec, seconds_of


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
        ("1:", None),
        ("", None),
    ],
)
def test_a_time_is_read_as_slurm_reads_it(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        ({"slurm": {"partiton": "all"}}, "did you mean 'partition'?"),
        ({"slurm": {"benchmark": {"tme": 5}}}, "did you mean 'time'?"),
        ({"slurm": {"time": "soon"}}, "no time limit: minutes, HH:MM:SS or DAYS-HH:MM:SS"),
        ({"slurm": {"time": 3, "signal_s": 180}}, "a time limit of 180 s with signal_s 180"),
        ({"slurm": {"benchmark": {"time": "0:30"}}}, "a time limit of 30 s with signal_s 180"),
        ({"slurm": {"mem": "64 GB"}}, "compute.slurm.mem"),
        ({"slurm": {"partition": "a\nb"}}, "compute.slurm.partition"),
        ({"slurm": {"options": {"mem": "1G"}}}, "options holds mem: write it as mem"),
        ({"slurm": {"options": {"requeue": True}}}, "options holds requeue: write it as requeue"),
        ({"slurm": {"options": {"array": "0-3"}}}, "options holds array: a sweep makes one"),
        ({"slurm": {"options": {"Mail-Type": "END"}}}, "compute.slurm.options"),
        ({"slurm": {}, "devices": "0"}, "devices is Slurm's to say"),
        ({"slurm": {}, "nnodes": 2}, "nnodes is Slurm's to say"),
    ],
)
def test_what_cannot_be_a_job_is_said_at_its_place(workshop, compute, said):
    done = workshop.run("show", workshop.spec(compute=compute))
    assert done.code == 2 and said in done.err, done.err


def script(slurm: SlurmSpec, runs: list[Path], templates: Path | None = None, **keywords) -> str:
    return sbatch_script(Renderer(templates), slurm, runs, workspace=Path("/a b"), name="toy", **keywords)


def options(text: str) -> list[str]:
    return [word for line in text.splitlines() if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]


def test_the_script_says_what_the_spec_says():
    slurm = SlurmSpec.model_validate(
        {
            "partition": "gpu",
            "gpus_per_node": "a100:4",
            "mem": "64G",
            "time": "1-00:00:00",
            "options": {"exclusive": True},
        }
    )
    text = script(slurm, [Path("/work space/50%/run")])
    assert options(text) == [
        "--partition=gpu", "--nodes=1", "--gpus-per-node=a100:4", "--mem=64G", "--time=1-00:00:00",
        "--ntasks-per-node=1", "--signal=B:TERM@180", "--open-mode=append", "--requeue", "--exclusive",
        "--job-name=toy", "--output=/work space/50%%/run/logs/supervisor.log",
    ]  # fmt: skip
    assert "runs=( '/work space/50%/run' )" in text and "supervise --workspace '/a b' " in text


def test_runs_of_a_group_are_tasks_of_an_array():
    text = script(SlurmSpec(requeue=False), [Path("/a"), Path("/b c")], after="7")
    assert "runs=( /a '/b c' )" in text
    assert {"--array=0-1", "--no-requeue", "--dependency=aftercorr:7", "--kill-on-invalid-dep=yes"} <= {*options(text)}


def test_the_benchmarks_job_asks_for_what_the_training_does_but_for_what_is_said():
    slurm = SlurmSpec.model_validate(
        {"partition": "gpu", "nodes": 4, "gpus_per_node": 8, "options": {"x": 1, "y": 2},
         "benchmark": {"gpus_per_node": 1, "options": {"y": 3}}}
    )  # fmt: skip
    asked = slurm.for_benchmark()
    assert (asked.partition, asked.nodes, asked.gpus_per_node, asked.benchmark) == ("gpu", 1, 1, None)
    assert asked.options == {"x": 1, "y": 3}


def test_a_site_has_a_script_of_its_own_and_one_that_carries_no_run_out_is_refused(tmp_path):
    own = tmp_path / "sbatch.sh.j2"
    shipped = (Path(__file__).parent.parent / "templates" / "sbatch.sh.j2").read_text("utf-8")
    own.write_text(shipped.replace("\nruns=", "\nmodule load cuda\nruns="), "utf-8")
    assert "\nmodule load cuda\n" in script(SlurmSpec(), [Path("/a")], tmp_path)
    own.write_text("#!/bin/bash\nhostname\n")
    with pytest.raises(SpecError, match="carries no run out: it lacks"):
        script(SlurmSpec(), [Path("/a")], tmp_path)


def test_the_script_can_be_seen_before(workshop):
    done = workshop.run("show", workshop.spec(compute={"slurm": {"gpus_per_node": 2}}), "--file", "sbatch.sh")
    assert done.code == 0 and "#SBATCH --gpus-per-node=2\n" in done.out and done.out.startswith("#!/bin/bash\n")


@pytest.mark.parametrize("name", sorted(OWNED_OPTIONS))
def test_options_that_are_ours_are_refused(name):
    with pytest.raises(ValueError, match=f"options holds {name}: "):
        SlurmSpec(options={name: "x"})


def test_without_slurm_there_is_nothing_to_submit_to(workshop):
    done = workshop.run("launch", workshop.spec(compute={"slurm": {}}), PATH=str(workshop.root))
    assert done.code == 3 and "sbatch is not here" in done.err and "--set compute.slurm=null" in done.err
    assert workshop.run_folders() == []
