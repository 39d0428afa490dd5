"""What a benchmark asks, and the folder that it is answered in.

Covered: the prompts, from the dataset's entry as in training; one key for all that decides the answers, by which a
benchmark that was cut short is found again; benchmark.yaml.
Not covered: asking (evaluate.py).
Leaves benchmark.yaml.
"""

import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.benchmark.client import Message
from orchestrator.benchmark.decoding import Decoding
from orchestrator.benchmark.identity import Identity, sha256_of
from orchestrator.data.datasets import Dataset, ParallelText, prompt, sample_pairs
from orchestrator.files import atomic_write
from orchestrator.runs.rundir import RunDir
from orchestrator.specs.benchmark_spec import BenchmarkSpec

_WISHES = ("temperature", "max_tokens", "top_p", "repetition_penalty", "stop")


@dataclass(frozen=True)
class Question:
    """A test set put to somebody in one way."""

    target: str
    """What is benchmarked."""
    dataset: Dataset
    """Its instruction makes the prompts, its target language chooses BLEU's tokenizer."""
    text: ParallelText
    """The sentences that are asked."""
    n_testset: int
    """How many the split has."""
    bench: BenchmarkSpec
    identity: Identity
    server: str = ""
    """Address of a server that runs already, and the model's name there; '' for one of ours."""
    at_once: int | None = None
    """Requests that the server works on at once. None: not known."""
    system: str | None = None
    """A system message. None: the server's own, if it has one."""

    def messages(self, index: int) -> list[Message]:
        user = {"role": "user", "content": prompt(self.dataset.entry.instruction, self.text.sources[index])}
        return [user] if self.system is None else [{"role": "system", "content": self.system}, user]

    def prompts(self, indices: Iterable[int]) -> Iterator[tuple[int, list[Message]]]:
        """(index, messages), made as they are needed."""
        return ((index, self.messages(index)) for index in indices)

    def longest_first(self, indices: Collection[int]) -> list[int]:
        """So that no long answer is left to be waited for at the end, by itself."""
        return sorted(indices, key=lambda index: -len(self.text.sources[index]))

    @property
    def prompts_sha256(self) -> str:
        """Hash of all messages, in order."""
        return sha256_of([messages for _, messages in self.prompts(range(len(self.text.sources)))])

    @property
    def key(self) -> str:
        """Hash of all that decides the answers: two benchmarks with the same key ask the same of the same."""
        return sha256_of(
            {
                "target": self.target,
                "server": self.server,
                "testset": self.dataset.name,
                "split": self.bench.split,
                "text": self.text.sha256,
                "prompts": self.prompts_sha256,
                "wishes": {name: getattr(self.bench, name) for name in _WISHES},
                "identity": self.identity.parts(),
            }
        )

    def write(self, folder: Path, decoding: Decoding, base_url: str | None, model: str | None) -> None:
        """benchmark.yaml: what is asked, how, and of whom."""
        entry, bench = self.dataset.entry, self.bench
        asked: dict[str, Any] = {
            "key": self.key,
            "target": self.target,
            "testset": self.dataset.name,
            "split": bench.split,
            "n_asked": len(self.text.sources),
            "n_testset": self.n_testset,
            "sample_seed": bench.sample_seed,
            "source_lang": entry.source_lang,
            "target_lang": entry.target_lang,
            "system": self.system,
            "instruction": entry.instruction,
            "base_url": base_url,
            "model": model,
            "sent": decoding.sent,
            "overridden": decoding.overridden,
            "in_force": decoding.in_force,
            "concurrency": bench.concurrency,
            "request_timeout_s": bench.request_timeout_s,
            "metrics": list(bench.metrics),
            "n_bootstrap": bench.n_bootstrap,
            "identity": self.identity.parts(),
        }
        text: str = yaml.safe_dump(
            json.loads(json.dumps(asked)), allow_unicode=True, sort_keys=False, width=float("inf")
        )
        atomic_write(
            folder / "benchmark.yaml",
            f"# What was asked. The prompt is the instruction, a newline, and the source.\n{text}",
        )


def ask_about(
    target: str,
    dataset: Dataset,
    text: ParallelText,
    bench: BenchmarkSpec,
    *,
    identity: Identity,
    server: str = "",
    at_once: int | None = None,
    system: str | None = None,
) -> Question:
    """The question that a benchmark of the spec is, with the sentences of it that are asked."""
    part = sample_pairs(text, bench.max_samples, bench.sample_seed)
    return Question(target, dataset, part, len(text.sources), bench, identity, server, at_once, system)


def folder_for(run: RunDir, name: str, key: str, *, fresh: bool, taken: Collection[Path] = ()) -> Path:
    """Where a benchmark is answered: the folder where it was cut short, or a new one.

    Args:
        run: the run that it belongs to.
        name: of a new folder.
        key: the question's.
        fresh: always a new one.
        taken: folders that are spoken for.
    """
    if not fresh:
        for path in sorted(run.benchmarks.glob("*/benchmark.yaml"), reverse=True):
            folder = path.parent
            if folder not in taken and _key(path) == key and not _is_complete(folder) and not _is_at_work(folder):
                return folder
    return run.new_benchmark(name)


def whole_folder(run: RunDir, key: str) -> Path | None:
    """The newest folder in which the question of this key was answered and scored; None: it was not."""
    for path in sorted(run.benchmarks.glob("*/benchmark.yaml"), reverse=True):
        if _key(path) == key and _is_complete(path.parent):
            return path.parent
    return None


def _key(path: Path) -> str | None:
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # damaged: it is nobody's to go on with
        return None
    return value.get("key") if isinstance(value, dict) else None


def _is_complete(folder: Path) -> bool:
    try:
        value = json.loads((folder / "scores.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("status") == "complete"


def _is_at_work(folder: Path) -> bool:
    """Whether a living process holds its journal (answers.py)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
