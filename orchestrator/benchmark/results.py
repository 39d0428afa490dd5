"""scores.json, the one document of a benchmark, and the finished benchmarks that names on the command line mean."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.data.testset import PREFIX
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.files import atomic_write, read_file, read_json
from orchestrator.runs.groups import Group
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import BenchmarkSummary, damage
from orchestrator.runs.rundir import Workspace
from orchestrator.scoring.diagnostics import Flagged
from orchestrator.scoring.metrics import Score
from orchestrator.specs.yamlfile import read_yaml

log = logging.getLogger("orchestrator")

NAME = "scores.json"
SCHEMA_VERSION = 3
_RENAMED = {
    "n_asked": "n_requested", "from_before": "n_resumed", "from_cache": "n_cache_hits", "triage": "diagnostics",
    "in_force": "effective_defaults",
}  # fmt: skip
COMPARABLE = {
    "testset": "test set", "split": "split", "n_segments": "number of segments",
    "text_sha256": "hash of the test set's text", "prompts_sha256": "hash of the prompts",
}  # fmt: skip


class BenchmarkResult(BaseModel):
    """What scores.json holds."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    status: Literal["complete", "incomplete"]
    target: str
    testset: str
    split: str
    n_testset: int | None = None  # sentences that the split has
    sample_seed: int | None = None  # with which the requested ones were drawn. None: they are the first n_requested.
    n_requested: int | None = None
    n_segments: int = 0  # sentences that were answered; these are scored
    failed: int = 0
    errors: dict[str, int] = {}
    scores: list[Score] = []  # empty where a sentence failed, unless scores over a part were wanted
    mean_sentence_bleu: Score | None = None
    llamafactory_bleu4: Score | None = None
    comet: list[Score] = []
    diagnostics: dict[str, Flagged | None] = {}  # by issue the hypotheses with it, scored as they are. None: not known.
    warnings: list[str] = []
    n_resumed: int = 0
    n_cache_hits: int = 0
    prompt_tokens: int | None = None  # over all answers; None where the server counts none
    completion_tokens: int | None = None
    speed: dict[str, int | float | None] | None = None
    text_sha256: str
    prompts_sha256: str  # hash of all messages, in order
    request: dict[str, Any] = {}  # and how: key, languages, instruction, server and model, fields sent, metrics
    identity: dict[str, Any] = {}  # what decides an answer beside the prompt: Identity.parts

    def save(self, folder: Path) -> None:
        atomic_write(folder / NAME, self.model_dump_json(indent=2) + "\n")

    def summary(self, folder: Path, label: str) -> BenchmarkSummary:
        """What the run's record keeps."""
        same = ("status", "scores", "comet", *COMPARABLE)
        return BenchmarkSummary(
            id=folder.name,
            of=label,
            n_asked=self.n_requested,
            mean_sentence_bleu=self.mean_sentence_bleu.score if self.mean_sentence_bleu else None,
            llamafactory_bleu4=self.llamafactory_bleu4.score if self.llamafactory_bleu4 else None,
            faults={issue: flagged and flagged.count for issue, flagged in self.diagnostics.items()},
            **{key: getattr(self, key) for key in same},
        )


def read_result(folder: Path) -> BenchmarkResult:
    """A benchmark's scores.json. Raises PrerequisiteError: it is damaged, or of a later version."""
    path = folder / NAME
    try:
        result = BenchmarkResult.model_validate(_upgraded(read_json(path), folder))
    except (OSError, PrerequisiteError, ValidationError) as error:
        raise PrerequisiteError(f"{path} cannot be read: {damage(error)}", "repeat the benchmark") from error
    if result.schema_version > SCHEMA_VERSION:
        what = f"{path} is of version {result.schema_version}; {SCHEMA_VERSION} is the newest known here"
        raise PrerequisiteError(what, "pip install --upgrade orchestrator")
    return result


def _upgraded(value: Any, folder: Path) -> Any:
    """A scores.json of version 1 or 2, which had what was requested in a benchmark.yaml beside it; others unchanged."""
    if not isinstance(value, dict) or value.get("schema_version", 1) not in (1, 2):
        return value
    value = {_RENAMED.get(key, key): each for key, each in value.items()}
    value["diagnostics"] = {k: v for k, v in (value.get("diagnostics") or {}).items() if k != "numbers_lost"}
    path = folder / "benchmark.yaml"
    request = read_yaml(path).value if path.is_file() else {}
    request = {_RENAMED.get(key, key): each for key, each in request.items()} if isinstance(request, dict) else {}
    sent = request.get("sent") or {name: request[name] for name in ("temperature", "max_tokens") if name in request}
    return {**value, "speed": None, "request": {"effective_defaults": {}, **request, "sent": sent}}


def has_result(folder: Path) -> bool:
    """Whether a path is a benchmark's folder with a result in it."""
    return os.path.isfile(folder / NAME)  # noqa: PTH113 - Path.is_file raises on long names


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark under the name that the user gave it."""

    name: str
    folder: Path
    result: BenchmarkResult

    @property
    def comparable_by(self) -> tuple[Any, ...]:
        """What two benchmarks must have in common."""
        return tuple(getattr(self.result, key) for key in COMPARABLE)

    def score(self, metric: str) -> Score | None:
        return next((score for score in self.result.scores if score.metric == metric), None)

    def lines(self, name: str) -> list[str]:
        """The segments of sources, references or hypotheses, as they were scored."""
        path = self.folder / f"{name}.txt"
        lines = read_file(path).decode().split("\n")[:-1]
        if len(lines) != self.result.n_segments:
            what = f"{path} has {len(lines)} lines, but {self.result.n_segments} segments were scored"
            raise PrerequisiteError(what, "repeat the benchmark")
        return lines


def find_benchmarks(names: Sequence[str], workspace: Workspace, testset: str | None) -> list[Benchmark]:
    """The newest complete benchmark of each run, RUN@LABEL, folder, or run of a group; all of one test set and prompt.

    `testset` is NAME or NAME:SPLIT; None: the newest that all of them have. Raises SpecError: one has no complete
    benchmark, or none that can be compared with the others'; PrerequisiteError: a benchmark's files are damaged.
    """
    groups = {name: folder for name in names if (folder := workspace.lookup_group(name))}
    runs = {name: [point.run for point in Group.load(folder).points] for name, folder in groups.items()}
    of_each = []
    for word, of_group in [(word, name in runs) for name in names for word in runs.get(name, [name])]:
        try:
            of_each.append(candidates(word, workspace, testset))
        except SpecError as error:
            if not of_group:
                raise
            log.warning("left out: %s", error.message)
    if len(of_each) < 2:
        raise SpecError("compare takes two benchmarks or more", "orchestrator compare RUN@base RUN")
    shared = set.intersection(*({each.comparable_by for each in of_one} for of_one in of_each))
    if not shared:
        lines = ["these cannot be compared:", *_differences([of_one[0] for of_one in of_each])]
        raise SpecError("\n".join(lines), "benchmark them alike, then again")
    wanted = next(each.comparable_by for each in of_each[0] if each.comparable_by in shared)
    found = [next(each for each in of_one if each.comparable_by == wanted) for of_one in of_each]
    by_folder: dict[Path, str] = {}
    for each in found:
        if each.folder in by_folder:
            raise SpecError(f"{by_folder[each.folder]} and {each.name} are the same benchmark: {each.folder}")
        by_folder[each.folder] = each.name
    if len(set(by_folder.values())) < len(found):  # folders of the same name in two places
        found = [replace(each, name=str(each.folder)) for each in found]
    return found


def candidates(name: str, workspace: Workspace, testset: str | None) -> list[Benchmark]:
    """The complete benchmarks that a name may mean, newest first."""
    folder = next((path for path in (Path(name), workspace.root / name) if name and has_result(path)), None)
    if folder is not None:
        folder = folder.resolve()
        of_run = folder.parent.name == "benchmarks"
        full_name = f"{folder.parent.parent.name}/{folder.name}" if of_run else folder.name
        found = [Benchmark(full_name, folder, read_result(folder))]
    else:
        found = _of_run(name, workspace)
    known = PREFIX if (testset or "").startswith(PREFIX) else ""  # a name of sacrebleu's has a colon in it
    short, _, split = (testset or "").removeprefix(known).partition(":")
    wanted = known + short

    def is_meant(each: BenchmarkResult) -> bool:
        return each.status == "complete" and wanted in ("", each.testset) and split in ("", each.split)

    if kept := [each for each in found if is_meant(each.result)]:
        return kept
    have = sorted({f"{each.result.testset}:{each.result.split} ({each.result.status})" for each in found})
    what = f"{name} has no complete benchmark{f' of {testset}' if testset else ''}"
    what += did_you_mean(wanted, {each.result.testset for each in found}) if wanted else ""
    options = [f" --testset {wanted}" if wanted else "", f" --split {split}" if split else ""]
    raise SpecError(f"{what}; it has: {', '.join(have) or 'none'}", f"orchestrator benchmark {name}{''.join(options)}")


def _of_run(name: str, workspace: Workspace) -> list[Benchmark]:
    run_name, _, label = name.partition("@")
    run = workspace.find_run(run_name)
    summaries = RunRecord.load(run).benchmarks
    labels = list(dict.fromkeys(summary.of for summary in summaries))
    if not label and labels:
        label = "output" if "output" in labels else labels[0]
        if label != "output" and len(labels) > 1:
            raise SpecError(f"which of {run_name}?", f"one of: {', '.join(f'{run_name}@{each}' for each in labels)}")
    if labels and label not in labels:
        what = f"{run_name} has no benchmark of {label}{did_you_mean(label, labels)}; it has: {', '.join(labels)}"
        raise SpecError(what, f"orchestrator benchmark {name}")
    folders = [run.benchmarks / summary.id for summary in reversed(summaries) if summary.of == label]
    return [Benchmark(name, folder, read_result(folder)) for folder in folders if has_result(folder)]


def _differences(benchmarks: Sequence[Benchmark]) -> list[str]:
    first, lines = benchmarks[0], dict[str, None]()
    for other in benchmarks[1:]:
        for (key, words), a, b in zip(COMPARABLE.items(), first.comparable_by, other.comparable_by, strict=True):
            if a != b:
                shown = [str(each)[:12] if key.endswith("sha256") else str(each) for each in (a, b)]
                lines[f"  {words}: {first.name} {shown[0]}, {other.name} {shown[1]}"] = None
    # Any two may have one in common, but not all together.
    return list(lines) or ["  no test set with the same prompts that all of them have"]
