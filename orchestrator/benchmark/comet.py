"""COMET's score of a benchmark that is finished, by `comet-score` in an environment of its own.

Covered: the environment that ORCHESTRATOR_COMET names, for unbabel-comet pins torch, transformers and numpy of its
own; the mean over the segments with a bootstrap interval as sacrebleu's metrics have it, under a signature that names
model and version; whether what was scored is what stands in hypotheses.txt.
Not covered: getting a model (comet-score takes it from the hub's cache, or downloads it); tests between systems
(comet-compare takes the same text files).
Leaves comet-MODEL.json, which is comet-score's own, and comet-MODEL.log in the benchmark's folder, and the score in
its scores.json.
"""

import hashlib
import json
import logging
import math
import re
import signal
import time
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import Interrupted, PrerequisiteError, SpecError, StageError
from orchestrator.files import atomic_write, expanded
from orchestrator.processes.process import child_environment, repro_command, start
from orchestrator.scoring.metrics import Score, resamples, seed
from orchestrator.upstream.comet import COMMAND, Comet

log = logging.getLogger("orchestrator")

_TEXTS = {"-s": "sources.txt", "-t": "hypotheses.txt", "-r": "references.txt"}
_GRACE_S = 5


def is_scored(folder: Path, model: str) -> bool:
    """Whether a benchmark has a score of this model, of whatever version of COMET."""
    wanted = f"|model:{_identity(model)}|"
    return any(wanted in str(score.get("signature")) for score in _stored(folder).get("comet") or [])


def add_comet(folder: Path, model: str, comet: Comet, devices: str | None) -> list[Score]:
    """Score a finished benchmark by a model of COMET, and put that into its scores.json.

    Args:
        folder: the benchmark's.
        model: as located() gives it.
        comet: what computes.
        devices: CUDA_VISIBLE_DEVICES. None: as it is.

    Returns:
        All scores by COMET that the benchmark has now, one for each model and version.

    Raises:
        SpecError: the benchmark has no scores yet.
        StageError: comet-score fails.
    """
    stored = _stored(folder)
    if not stored.get("scores"):
        raise SpecError(f"{folder} is no benchmark with scores", "name one that is complete")
    log.info("COMET by %s, unbabel-comet %s", model, comet.version)
    score = comet_score(folder, model, comet, n_bootstrap=_n_bootstrap(folder), devices=devices)
    others = [Score.model_validate(each) for each in stored.get("comet") or []]
    scores = [*(each for each in others if each.signature != score.signature), score]
    stored["comet"] = [each.model_dump(mode="json") for each in scores]
    atomic_write(folder / "scores.json", json.dumps(stored, indent=2, ensure_ascii=False) + "\n")
    return scores


def comet_score(folder: Path, model: str, comet: Comet, *, n_bootstrap: int, devices: str | None) -> Score:
    """Score a benchmark's texts.

    Args:
        folder: the benchmark's.
        model: COMET's name of it, such as Unbabel/wmt22-comet-da, or the path of a .ckpt file.
        comet: what computes.
        n_bootstrap: resamples of the segments for the 95 % interval.
        devices: CUDA_VISIBLE_DEVICES. None: as it is.

    Returns:
        A score whose scale is the model's: about 0 to 1 for those of 2022 and later. Compare only equal signatures.

    Raises:
        StageError: comet-score fails, or what it leaves is no score of these texts.

    Source: Rei et al. (2020), https://aclanthology.org/2020.emnlp-main.213.
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.")[-80:]
    output, log_file = folder / f"comet-{slug}.json", folder / f"comet-{slug}.log"
    output.unlink(missing_ok=True)  # of an attempt before: what is read afterwards is of this one
    argv = [str(comet.program), *(word for pair in _TEXTS.items() for word in pair)]
    argv += ["--model", model, "--only_system", "--to_json", output.name]
    extra = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    _run(argv, folder, log_file, comet, extra)
    segments = _segments(output, folder / _TEXTS["-t"])
    mean, half = _interval(segments, n_bootstrap)
    return Score(
        metric="comet",
        score=math.fsum(segments) / len(segments),
        ci95=(mean - half, mean + half),
        ci_mean=mean,
        ci_half=half,
        signature=f"nrefs:1|bs:{n_bootstrap}|seed:{str(seed()).lower()}|model:{_identity(model)}|version:{comet.version}",
        n_segments=len(segments),
    )


def _stored(folder: Path) -> dict[str, Any]:
    path = folder / "scores.json"
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PrerequisiteError(f"{path} cannot be read: {error}", "repeat the benchmark") from error
    if not isinstance(value, dict):
        raise PrerequisiteError(f"{path} is no result of a benchmark", "repeat the benchmark")
    return value


def _n_bootstrap(folder: Path) -> int:
    """As the benchmark's other scores were resampled."""
    path = folder / "benchmark.yaml"
    try:
        return int(yaml.safe_load(path.read_text("utf-8")).get("n_bootstrap", 1000))
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise PrerequisiteError(f"{path} cannot be read: {error}", "repeat the benchmark") from error


def _run(argv: list[str], folder: Path, log_file: Path, comet: Comet, extra: dict[str, str]) -> None:
    environment = child_environment(comet.program, extra)
    child = start(argv, log=log_file, cwd=folder, env=environment, death_signal=signal.SIGKILL, watched=True)
    try:
        while child.poll() is None:
            time.sleep(0.1)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(f"{COMMAND} was stopped; the other scores are in {folder / 'scores.json'}") from error
    finally:
        child.stop(_GRACE_S)
    if (status := child.poll()) != 0:
        raise StageError(
            f"{COMMAND} ended with status {status}; the other scores are in {folder / 'scores.json'}. "
            f"Last lines of {log_file}:\n{child.log_tail()}",
            repro_command(folder, argv, extra),
        )


def _segments(output: Path, hypotheses: Path) -> list[float]:
    """The score of each segment, in order."""
    try:
        rows = json.loads(output.read_bytes())[hypotheses.name]
        scored, segments = [row["mt"] for row in rows], [float(row["COMET"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"{COMMAND} left no scores in {output}: {error!r}") from error
    said = hypotheses.read_bytes().decode().split("\n")[:-1]
    if scored != [line.strip() for line in said]:
        raise StageError(f"{output} is not about {hypotheses}: {len(scored)} segments, {len(said)} lines")
    if broken := [number for number, score in enumerate(segments, 1) if not math.isfinite(score)]:
        raise StageError(
            f"{COMMAND} gave {len(broken)} of {len(segments)} segments no score, the first in line {broken[0]}"
        )
    return segments


def _interval(segments: list[float], n_bootstrap: int) -> tuple[float, float]:
    """Mean of the resamples' scores, and half of their 95 % interval, as sacrebleu takes them."""
    import numpy as np
    from sacrebleu.significance import estimate_ci

    scores = np.array(segments)
    mean, half = estimate_ci(np.array([scores[indices].mean() for indices in resamples(len(scores), n_bootstrap)]))
    return float(mean), float(half)


def _identity(model: str) -> str:
    """The model's name; of a file its hash too, for a name is all that its path tells."""
    path = expanded(model)
    if not path.is_file():
        return model
    with path.open("rb") as file:
        return f"{path.name}@{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
