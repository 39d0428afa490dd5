"""COMET of a finished benchmark, by `comet-score` on the texts that lie in its folder. Tried with a stand-in only."""

import json
import math
import re
import signal
import statistics
from pathlib import Path

from orchestrator.benchmark.results import read_result
from orchestrator.errors import SpecError, StageError
from orchestrator.files import sha256_file
from orchestrator.processes.process import child_environment, repro_command, start
from orchestrator.runs.record import RunRecord
from orchestrator.runs.rundir import RunDir
from orchestrator.scoring.metrics import Score, interval, resamples, seed
from orchestrator.upstream.comet import find_comet, locate_comet_model


def add_comet(folder: Path, model: str, root: Path, devices: str | None, record: RunRecord | None, run: RunDir) -> None:
    """Score a finished benchmark by a model of COMET, and put that into its scores.json and the run's record.

    A model called kiwi or qe takes no references, which the signature says. `devices` is CUDA_VISIBLE_DEVICES.

    Source: Rei et al. (2020), https://aclanthology.org/2020.emnlp-main.213.
    """
    result, model, (program, version) = read_result(folder), locate_comet_model(model, root), find_comet()
    if not result.scores:
        raise SpecError(f"{folder} is no benchmark with scores", "name one that is complete")
    name = f"{Path(model).name}@{sha256_file(Path(model))[:12]}" if Path(model).is_absolute() else model
    n_refs = 0 if re.search(r"kiwi|\bqe\b", name, re.IGNORECASE) else 1
    if any(f"|model:{name}|version:{version}" in score.signature for score in result.comet):
        return
    output = folder / f"comet-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[-80:]}.json"
    output.unlink(missing_ok=True)  # of an attempt before
    argv = [str(program), "-s", "sources.txt", "-t", "hypotheses.txt", *["-r", "references.txt"][: 2 * n_refs]]
    argv += ["--model", model, "--only_system", "--to_json", output.name]
    extra = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    environment = child_environment(program, extra)
    log = output.with_suffix(".log")
    child = start(argv, log=log, cwd=folder, env=environment, death_signal=signal.SIGKILL, watched=True)
    try:
        while child.poll() is None:
            child.wait(0.2)
        segments = [float(row["COMET"]) for row in json.loads(output.read_bytes())["hypotheses.txt"]]
    except (OSError, ValueError, KeyError, TypeError):
        segments = []
    finally:
        child.stop(5)
    if child.poll() != 0 or len(segments) != result.n_segments or not all(map(math.isfinite, segments)):
        what = (
            f"comet-score ended with status {child.poll()} and {len(segments)} of {result.n_segments} segments scored"
        )
        raise StageError(f"{what}; last lines of {log}:\n{child.log_tail()}", repro_command(folder, argv, extra))
    n_bootstrap = int(result.request.get("n_bootstrap", 1000))
    means = [statistics.fmean(segments[i] for i in draw) for draw in resamples(len(segments), n_bootstrap, seed())]
    mean, half = interval(means)
    score = Score(
        metric="comet",
        score=statistics.fmean(segments),
        ci95=(mean - half, mean + half),
        ci_mean=mean,
        ci_half=half,
        signature=f"nrefs:{n_refs}|bs:{n_bootstrap}|seed:{seed()}|model:{name}|version:{version}",
        n_segments=len(segments),
    )
    result = result.model_copy(update={"comet": [*result.comet, score]})
    result.save(folder)
    for item in record.benchmarks if record else []:
        if record is not None and item.id == folder.name:
            record.add_benchmark(run, item.model_copy(update={"comet": result.comet}))
