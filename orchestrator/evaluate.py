"""A served model and a test set in, scores out.

Covered: the prompts, from the dataset's entry as in training; every answer on disk as it comes; no score unless every
sentence was answered; files that sacrebleu's command line scores the same.
Not covered: starting the server (serve.py), taking up an interrupted benchmark again.
Leaves in its folder: benchmark.yaml (what was asked), hypotheses.jsonl (a line per sentence, as they come),
scores.json, and, when every sentence was answered, sources.txt, references.txt and hypotheses.txt.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from orchestrator.client import Answer, Decoding, Endpoint, Failure, Message, translate
from orchestrator.datasets import Dataset, ParallelText, first, prompt
from orchestrator.errors import SpecError, StageError
from orchestrator.interruptible import run_interruptible
from orchestrator.progress import Progress
from orchestrator.rundir import atomic_write
from orchestrator.score import Score, mean_sentence_bleu, normalize_segment, score_corpus
from orchestrator.spec import BenchmarkSpec

SCHEMA_VERSION = 1


class BenchmarkResult(BaseModel):
    """What scores.json holds."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    schema_version: int = SCHEMA_VERSION
    status: Literal["complete", "incomplete"]
    target: str
    """What was benchmarked."""
    testset: str
    split: str
    n_asked: int
    """Sentences of the test set, or of the part of it, that was asked for."""
    n_segments: int
    """Sentences that were answered; these are scored. Fewer than n_asked where the status is incomplete."""
    failed: int
    """Sentences without an answer."""
    scores: list[Score] = []
    """Empty where a sentence failed: a part of a test set has no score."""
    mean_sentence_bleu: Score | None = None
    reached_max_tokens: int
    """Answers as long as max_tokens allows: probably cut."""
    empty: int
    """Answers of nothing but white space. They are scored: the model did answer."""
    retried: int
    """Answers that took more than one attempt."""
    prompt_tokens: int | None
    """Over all answers; None where the server counts none."""
    completion_tokens: int | None
    wall_s: float
    """From the first request to the last answer."""
    sentences_per_s: float
    """Answered sentences over wall_s."""
    text_sha256: str
    """Hash of the sources and references that were used."""
    prompts_sha256: str
    """Hash of all messages sent, in order."""


def evaluate(
    endpoint: Endpoint,
    dataset: Dataset,
    text: ParallelText,
    bench: BenchmarkSpec,
    folder: Path,
    *,
    target: str,
    system: str | None = None,
) -> BenchmarkResult:
    """Translate a test set and score it.

    Args:
        endpoint: the server and the model to ask there.
        dataset: its instruction makes the prompts, its target language chooses BLEU's tokenizer.
        text: the split `bench.split` of it; the first `bench.max_samples` pairs are used.
        bench: how to ask, and which metrics.
        folder: a new folder for the benchmark's files.
        target: what is benchmarked, for the result.
        system: a system message; None: the server's own, if it has one.

    Raises:
        SpecError: the text has no sentence.
        PrerequisiteError: the server refuses every request alike (key, URL, model).
        StageError: a sentence got no answer, or the disk is full. What was answered stays in hypotheses.jsonl.
    """
    text = first(text, bench.max_samples)
    if not text.sources:
        raise SpecError(f"{dataset.name} {bench.split} has no sentence to translate")
    prompts = list(enumerate(_messages(dataset.entry.instruction, source, system) for source in text.sources))
    folder.mkdir(parents=True, exist_ok=True)
    _write_question(folder / "benchmark.yaml", endpoint, dataset, bench, len(prompts), target, system)

    path = folder / "hypotheses.jsonl"
    answers, failures, wall_s = _ask(endpoint, prompts, bench, text, path)

    hypotheses = [normalize_segment(answer.hypothesis) for answer in answers]
    result = BenchmarkResult(
        status="incomplete" if failures else "complete",
        target=target,
        testset=dataset.name,
        split=bench.split,
        n_asked=len(prompts),
        n_segments=len(answers),
        failed=len(failures),
        reached_max_tokens=sum((answer.completion_tokens or 0) >= bench.max_tokens for answer in answers),
        empty=hypotheses.count(""),
        retried=sum(answer.attempts > 1 for answer in answers),
        prompt_tokens=_total([answer.prompt_tokens for answer in answers]),
        completion_tokens=_total([answer.completion_tokens for answer in answers]),
        wall_s=round(wall_s, 3),
        sentences_per_s=round(len(answers) / wall_s, 3),
        text_sha256=text.sha256,
        prompts_sha256=_sha256([messages for _, messages in prompts]),
    )
    if failures:
        _write_result(folder, result)
        asked = [failure for failure in failures if failure.attempts] or failures
        raise StageError(
            f"{len(failures)} of {len(prompts)} sentences got no answer, so there is no score; "
            f"the first, sentence {asked[0].index + 1}: {asked[0].error}",
            f"the answers that came are in {path}; when the server is well again, repeat the benchmark",
        )
    result = result.model_copy(update=_scores(hypotheses, text, dataset, bench, folder))
    _write_result(folder, result)
    return result


def _messages(instruction: str, source: str, system: str | None) -> list[Message]:
    user = {"role": "user", "content": prompt(instruction, source)}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def _ask(
    endpoint: Endpoint,
    prompts: Sequence[tuple[int, list[Message]]],
    bench: BenchmarkSpec,
    text: ParallelText,
    path: Path,
) -> tuple[list[Answer], list[Failure], float]:
    """Answers and failures by index, each in the file as soon as it is known; the seconds that it took."""
    results: dict[int, Answer | Failure] = {}
    failed = 0
    try:
        with path.open("x", encoding="utf-8") as file, Progress(len(prompts), "translate", "sentences") as progress:

            def take(result: Answer | Failure) -> None:
                nonlocal failed
                sides = {"source": text.sources[result.index], "reference": text.references[result.index]}
                line = {"index": result.index, **sides, **dataclasses.asdict(result)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()  # a kill loses no sentence that was answered
                results[result.index] = result
                failed += isinstance(result, Failure)
                progress.update(**({"failed": failed} if failed else {}))

            wall_s = run_interruptible(
                translate(
                    endpoint,
                    prompts,
                    Decoding(bench.temperature, bench.max_tokens),
                    concurrency=bench.concurrency,
                    timeout_s=bench.request_timeout_s,
                    on_result=take,
                )
            )
    except OSError as error:
        remedy = "see to it (is the disk full?), then repeat the benchmark"
        raise StageError(f"{path} cannot be written: {error.strerror}", remedy) from error
    in_order = [results[index] for index, _ in prompts]
    answers = [result for result in in_order if isinstance(result, Answer)]
    return answers, [result for result in in_order if isinstance(result, Failure)], wall_s


def _scores(
    hypotheses: list[str], text: ParallelText, dataset: Dataset, bench: BenchmarkSpec, folder: Path
) -> dict[str, object]:
    """The scores, of exactly the segments that are written for sacrebleu's command line."""
    references = [normalize_segment(reference) for reference in text.references]
    sources = [normalize_segment(source) for source in text.sources]
    for name, segments in (("sources", sources), ("references", references), ("hypotheses", hypotheses)):
        atomic_write(folder / f"{name}.txt", "".join(f"{segment}\n" for segment in segments))
    language = dataset.entry.target_lang
    return {
        "scores": score_corpus(
            hypotheses, [references], tgt_lang=language, metrics=bench.metrics, n_bootstrap=bench.n_bootstrap
        ),
        "mean_sentence_bleu": mean_sentence_bleu(hypotheses, [references], tgt_lang=language),
    }


def _write_question(
    path: Path,
    endpoint: Endpoint,
    dataset: Dataset,
    bench: BenchmarkSpec,
    n_segments: int,
    target: str,
    system: str | None,
) -> None:
    asked = {
        "target": target,
        "testset": dataset.name,
        "split": bench.split,
        "n_segments": n_segments,
        "source_lang": dataset.entry.source_lang,
        "target_lang": dataset.entry.target_lang,
        "system": system,
        "instruction": dataset.entry.instruction,
        "base_url": endpoint.base_url,
        "model": endpoint.model,
        "temperature": bench.temperature,
        "max_tokens": bench.max_tokens,
        "concurrency": bench.concurrency,
        "request_timeout_s": bench.request_timeout_s,
        "metrics": list(bench.metrics),
        "n_bootstrap": bench.n_bootstrap,
    }
    text: str = yaml.safe_dump(asked, allow_unicode=True, sort_keys=False, width=float("inf"))
    atomic_write(path, f"# What was asked. The prompt is the instruction, a newline, and the source.\n{text}")


def _write_result(folder: Path, result: BenchmarkResult) -> None:
    atomic_write(folder / "scores.json", result.model_dump_json(indent=2) + "\n")


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
