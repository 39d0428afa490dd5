"""Finished benchmarks, as their folders have them, and the ones that words on the command line mean.

Covered: RUN, RUN@LABEL and benchmark folders; scores.json of every version so far; of several systems, the newest
benchmarks of one test set with one prompt, or what differs where there are none.
Not covered: benchmarks under way, or with sentences that failed: they have no score.
Writes nothing.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.data.testset import PREFIX, is_sacrebleu
from orchestrator.errors import PrerequisiteError, SpecError, did_you_mean
from orchestrator.runs.record import RunRecord
from orchestrator.runs.record_parts import damage
from orchestrator.runs.rundir import Workspace
from orchestrator.scoring.diagnostics import Triage
from orchestrator.scoring.metrics import Score
from orchestrator.specs.yamlfile import read_yaml

SCORES_VERSION = 2
"""The newest scores.json that is understood; older ones are too."""


class Stored(BaseModel):
    """What a comparison needs of a scores.json, of any version."""

    model_config = ConfigDict(frozen=True)

    schema_version: int
    status: str
    target: str
    testset: str
    split: str
    n_segments: int
    scores: list[Score]
    text_sha256: str
    prompts_sha256: str
    triage: Triage | None = None
    """None: a file of version 1."""


class Identity(NamedTuple):
    """What two benchmarks must have in common, in words that say what differs."""

    testset: str
    split: str
    n_segments: int
    text_sha256: str
    prompts_sha256: str


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark, as its folder has it."""

    name: str
    """As the user said it."""
    folder: Path
    stored: Stored

    @property
    def identity(self) -> Identity:
        return Identity(*(getattr(self.stored, name) for name in Identity._fields))

    def lines(self, name: str) -> list[str]:
        """The segments of sources, references or hypotheses."""
        path = self.folder / f"{name}.txt"
        try:
            lines = path.read_bytes().decode().split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise PrerequisiteError(f"{path} cannot be read: {error}", "repeat the benchmark") from error
        if len(lines) != self.stored.n_segments:
            what = f"{path} has {len(lines)} lines, but {self.stored.n_segments} segments were scored"
            raise PrerequisiteError(what, "repeat the benchmark")
        return lines

    def asked(self) -> dict[str, Any]:
        """What benchmark.yaml says."""
        path = self.folder / "benchmark.yaml"
        if not path.is_file():  # a pipe of that name would be waited for
            raise PrerequisiteError(f"{path} is not there, or no file", "repeat the benchmark")
        value = read_yaml(path).value
        if not isinstance(value, dict) or not {"source_lang", "target_lang"} <= value.keys():
            raise PrerequisiteError(f"{path} says no source_lang and target_lang")
        return value


def find_benchmarks(words: Sequence[str], workspace: Workspace, testset: str | None) -> list[Benchmark]:
    """The newest complete benchmark of each, all of the same test set and prompt.

    Args:
        words: runs, RUN@LABEL, or benchmark folders.
        workspace: where the runs are.
        testset: NAME or NAME:SPLIT; None: the newest that all of them have.

    Raises:
        SpecError: one of them has no such benchmark, or nothing that could be compared with the others.
        PrerequisiteError: a benchmark's files are damaged.
    """
    if len(words) < 2:
        raise SpecError("compare takes two benchmarks or more", "orchestrator compare RUN@base RUN")
    of_each = [candidates(word, workspace, testset) for word in words]
    shared = set.intersection(*({each.identity for each in of_one} for of_one in of_each))
    if not shared:
        newest = [of_one[0] for of_one in of_each]
        raise SpecError("these cannot be compared:\n" + "\n".join(_why_not(newest)), "benchmark them alike, then again")
    wanted = next(each.identity for each in of_each[0] if each.identity in shared)
    found = [next(each for each in of_one if each.identity == wanted) for of_one in of_each]
    for number, one in enumerate(found):
        for other in found[:number]:
            if one.folder == other.folder:
                raise SpecError(f"{other.name} and {one.name} are the same benchmark: {one.folder}")
    return found


def is_finished(path: Path) -> bool:
    """Whether a path is a benchmark's folder that holds a result."""
    return os.path.isfile(path / "scores.json")  # noqa: PTH113 - Path.is_file raises on long names


def read_benchmark(name: str, folder: Path) -> Benchmark:
    """A benchmark by its folder.

    Raises:
        PrerequisiteError: its scores.json is damaged, or of a later version.
    """
    return Benchmark(name, folder, _read(folder))


def candidates(word: str, workspace: Workspace, testset: str | None) -> list[Benchmark]:
    """The complete benchmarks that a word may mean, newest first."""
    for folder in (Path(word), workspace.root / word):
        if word and is_finished(folder):
            folder = folder.resolve()
            found = [Benchmark(_folder_name(folder), folder, _read(folder))]
            break
    else:
        found = _of_run(word, workspace)
    wanted, split = _testset_and_split(testset or "")
    kept = [
        each
        for each in found
        if each.stored.status == "complete" and wanted in ("", each.stored.testset) and split in ("", each.stored.split)
    ]
    if kept:
        return kept
    have = sorted({f"{each.stored.testset}:{each.stored.split} ({each.stored.status})" for each in found})
    of = f" of {testset}" if testset else ""
    hint = did_you_mean(wanted, {each.stored.testset for each in found}) if wanted else ""
    other = f"; it has: {', '.join(have)}" if have else ""
    option = f" --testset {wanted}" + (f" --split {split}" if split else "") if wanted else ""
    raise SpecError(f"{word} has no complete benchmark{of}{hint}{other}", f"orchestrator benchmark {word}{option}")


def _testset_and_split(word: str) -> tuple[str, str]:
    """Of NAME or NAME:SPLIT; a name of sacrebleu's has a colon in it."""
    known = PREFIX if is_sacrebleu(word) else ""
    name, _, split = word.removeprefix(known).partition(":")
    return known + name, split


def _of_run(word: str, workspace: Workspace) -> list[Benchmark]:
    """A run's benchmarks of one label, newest first."""
    name, _, label = word.partition("@")
    run = workspace.find_run(name)
    summaries = RunRecord.load(run).benchmarks
    labels = list(dict.fromkeys(summary.of for summary in summaries))
    if not label:
        label = "output" if "output" in labels else labels[0] if len(labels) == 1 else ""
        if labels and not label:
            raise SpecError(f"which of {name}?", f"one of: {', '.join(f'{name}@{each}' for each in labels)}")
    elif labels and label not in labels:
        have = ", ".join(labels)
        raise SpecError(f"{name} has no benchmark of {label}{did_you_mean(label, labels)}; it has: {have}",
                        f"orchestrator benchmark {word}")  # fmt: skip
    folders = [run.benchmarks / summary.id for summary in reversed(summaries) if summary.of == label]
    return [Benchmark(word, folder, _read(folder)) for folder in folders if (folder / "scores.json").is_file()]


def _folder_name(folder: Path) -> str:
    """RUN/BENCHMARK of a run's benchmark; else the folder's own name."""
    return f"{folder.parent.parent.name}/{folder.name}" if folder.parent.name == "benchmarks" else folder.name


def _read(folder: Path) -> Stored:
    path = folder / "scores.json"
    try:
        stored = Stored.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise PrerequisiteError(f"{path} cannot be read: {damage(error)}", "repeat the benchmark") from error
    if stored.schema_version > SCORES_VERSION:
        raise PrerequisiteError(
            f"{path} is of version {stored.schema_version}; {SCORES_VERSION} is the newest known here",
            "pip install --upgrade orchestrator",
        )
    return stored


def _why_not(benchmarks: Sequence[Benchmark]) -> list[str]:
    """What differs from the first, a line each."""
    first, lines = benchmarks[0], []
    said = {
        "testset": "test set", "split": "split", "n_segments": "number of segments",
        "text_sha256": "hash of the test set's text", "prompts_sha256": "hash of the prompts",
    }  # fmt: skip
    for other in benchmarks[1:]:
        for name, mine, yours in zip(Identity._fields, first.identity, other.identity, strict=True):
            if mine != yours:
                values = (str(each)[:12] if name.endswith("sha256") else str(each) for each in (mine, yours))
                lines.append(f"  {said[name]}: {first.name} {next(values)}, {other.name} {next(values)}")
    # Any two may have one in common, but not all together.
    return list(dict.fromkeys(lines)) or ["  no test set with the same prompts that all of them have"]
