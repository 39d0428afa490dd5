"""A question and a server in, scores out.

Covered: what was answered before, here or in the cache, is not asked again; every answer on disk as it comes; no
score unless every sentence was answered, or it is asked for, and then it says over how many; files that sacrebleu's
command line scores the same; how fast it was and what held it back.
Not covered: starting the server (serve.py), what is asked (question.py).
Leaves in its folder: benchmark.yaml (what was asked), hypotheses.jsonl (a line per sentence, as they come; in the
test set's order at the end), scores.json, and with the scores sources.txt, references.txt and hypotheses.txt.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache as once
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.benchmark.answers import SYNC_S, AnswerCache, Journal
from orchestrator.benchmark.client import Answer, Failure
from orchestrator.benchmark.decoding import Backend, Decoding, decode
from orchestrator.benchmark.question import Question
from orchestrator.benchmark.speed import Speed, speed
from orchestrator.benchmark.translate import Load, translate
from orchestrator.data.testset import describe_subset
from orchestrator.errors import SpecError, StageError
from orchestrator.files import atomic_write
from orchestrator.processes.interruptible import run_interruptible
from orchestrator.processes.progress import Progress
from orchestrator.runs.record_parts import Streaming
from orchestrator.scoring.diagnostics import Triage, triage
from orchestrator.scoring.metrics import NORMALIZATION, Score, check_metrics, normalize_segment, score_system
from orchestrator.serving.endpoint import Endpoint, is_vllm

log = logging.getLogger("orchestrator")

SCHEMA_VERSION = 2


class BenchmarkResult(BaseModel):
    """What scores.json holds."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    status: Literal["complete", "incomplete"]
    target: str
    """What was benchmarked."""
    testset: str
    split: str
    n_testset: int
    """Sentences that the split has."""
    sample_seed: int | None = None
    """With which the asked ones were drawn. None: they are the first n_asked."""
    n_asked: int
    """Sentences of the test set, or of the part of it, that was asked for."""
    n_segments: int
    """Sentences that were answered; these are scored. Fewer than n_asked where the status is incomplete."""
    failed: int
    """Sentences without an answer."""
    errors: dict[str, int] = {}
    """What the failed ones met, and how many of them."""
    scores: list[Score] = []
    """Empty where a sentence failed, unless scores over a part were asked for."""
    normalization: str = NORMALIZATION
    """What was done to an answer before it was scored. It is what the model said, in all else."""
    mean_sentence_bleu: Score | None = None
    llamafactory_bleu4: Score | None = None
    comet: list[Score] = []
    """By COMET's models, where that was asked for: a scale of their own, and none of sacrebleu's numbers."""
    triage: Triage | None = None
    """Answers that are no translation, counted and listed. They are scored: the model did say them."""
    sent: dict[str, Any]
    """Fields of every request, but the prompt."""
    overridden: dict[str, Any]
    """Values of the model's generation_config.json that would have held, had ours not been sent."""
    in_force: dict[str, Any]
    """Values that nobody sent and that hold all the same."""
    from_before: int
    """Answers of an earlier attempt at this benchmark, which was cut short."""
    from_cache: int
    """Answers that an earlier benchmark had from the same model."""
    retried: int
    """Answers that took more than one attempt."""
    prompt_tokens: int | None
    """Over all answers; None where the server counts none."""
    completion_tokens: int | None
    speed: Speed | None = None
    """Of what was asked now. None: nothing was."""
    streaming: Streaming | None = None
    """Time to first token and per output token, where that was asked for."""
    text_sha256: str
    """Hash of the sources and references that were asked."""
    prompts_sha256: str
    """Hash of all messages, in order."""
    model_sha256: str | None = None
    """Of the base model. None: not known here."""
    adapter_sha256: str | None = None


@dataclass(frozen=True)
class Asking:
    """How a benchmark goes about it; nothing of this changes an answer."""

    fresh: bool = False
    """Ask every sentence anew: neither the cache nor an attempt that was cut short is used."""
    cached: bool = True
    """Whether what other benchmarks were answered counts. A rerun asks again: that is what it is for."""
    allow_incomplete: bool = False
    """Score what was answered, where some sentences were not."""
    streamed: bool = False
    """Stream some sentences when all is scored, to take the time to first token."""


@dataclass
class _Outcome:
    """What came of asking."""

    decoding: Decoding
    from_before: int = 0
    from_cache: int = 0
    asked: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    speed: Speed | None = None


def evaluate(
    question: Question, connect: Callable[[], Endpoint], folder: Path, how: Asking = Asking()
) -> BenchmarkResult:
    """Translate a test set and score it.

    Args:
        question: what is asked.
        connect: gives the server, and starts it if need be; not called where all is answered already.
        folder: the benchmark's folder, maybe one where it was cut short.
        how: what may be taken from before, and what becomes of a part.

    Raises:
        SpecError: there is no sentence; the server would drop something that the spec wishes for.
        PrerequisiteError: the server refuses every request alike (key, URL, model); a metric cannot be computed.
        StageError: a sentence got no answer, or the disk is full. What was answered stays: the same again goes on.
    """
    bench, text = question.bench, question.text
    if not text.sources:
        raise SpecError(f"{question.dataset.name} {bench.split} has no sentence to translate")
    check_metrics(bench.metrics, question.dataset.entry.target_lang)
    decoding = _decoding(question, question.identity.backend) if question.identity.backend else None
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder, text.sources, text.references) as journal:
        outcome = _collect(question, connect, folder, journal, decoding, how)
        journal.put_in_order(outcome.failures)
        result = _result(question, journal, outcome)
        if outcome.failures and not (how.allow_incomplete and journal.answers):
            write_result(folder, result)
            raise _incomplete(outcome.failures, len(text.sources), journal.path)
        result = result.model_copy(update=_scores(question, journal, outcome.decoding, folder))
        write_result(folder, result)
    return result


def _collect(
    question: Question,
    connect: Callable[[], Endpoint],
    folder: Path,
    journal: Journal,
    decoding: Decoding | None,
    how: Asking,
) -> _Outcome:
    """Answers from before, from the cache, and from the server; all of them are in the journal then."""
    endpoint, load_s, backend = None, None, question.identity.backend
    if decoding is None or backend is None:  # a server that runs already: it is asked what it is
        endpoint = connect()
        backend = "vllm" if is_vllm(endpoint) else "openai"
        decoding = _decoding(question, backend)
    n_asked, bench = len(question.text.sources), question.bench
    which = describe_subset(n_asked, question.n_testset, bench.sample_seed)
    log.info("%s %s: %s sentences", question.dataset.name, bench.split, which)
    if decoding.in_force:
        log.info("in force, though no request says so: %s", ", ".join(f"{k} {v}" for k, v in decoding.in_force.items()))
    if decoding.overridden:
        log.info(
            "not as the model's generation_config.json has it, but as sent: %s", ", ".join(sorted(decoding.overridden))
        )
    outcome = _Outcome(decoding, from_before=len(journal.answers))
    _write_question(question, folder, decoding, endpoint)
    cache = _cache(question, decoding)
    if cache is not None and how.cached and not how.fresh:
        missing = [index for index in range(n_asked) if index not in journal.answers]
        for answer in cache.look_up(question.prompts(missing)).values():
            journal.add(answer)
            outcome.from_cache += 1
    missing = [index for index in range(n_asked) if index not in journal.answers]
    if outcome.from_before or outcome.from_cache:
        log.info(
            "%d sentences were answered before, %d more are in the cache; %d are asked",
            outcome.from_before, outcome.from_cache, len(missing),
        )  # fmt: skip
    if not missing:
        return outcome
    if endpoint is None:
        began = time.monotonic()
        endpoint = connect()
        load_s = time.monotonic() - began
        _write_question(question, folder, decoding, endpoint)
    load = _ask(question, endpoint, decoding, journal, cache, question.longest_first(missing), outcome)
    outcome.speed = speed(outcome.asked, load, backend, at_once=question.at_once, load_s=load_s)
    if outcome.speed is not None:
        log.info("%s", outcome.speed.line())
        _say_once(outcome.speed.advice)
    return outcome


def _ask(
    question: Question,
    endpoint: Endpoint,
    decoding: Decoding,
    journal: Journal,
    cache: AnswerCache | None,
    missing: Sequence[int],
    outcome: _Outcome,
) -> Load:
    """Put the missing sentences to the server."""
    with Progress(len(missing), "translate", "sentences") as progress:

        def take(result: Answer | Failure) -> None:
            if isinstance(result, Answer):
                journal.add(result)
                outcome.asked.append(result)
                if cache is not None:
                    cache.add(question.messages(result.index), result)
                progress.update()
                return
            if result.attempts:
                journal.add(result)
            outcome.failures.append(result)
            progress.update(failed=len(outcome.failures))

        async def keep() -> None:
            while True:
                await asyncio.sleep(SYNC_S)
                await journal.sync_beside()
                if cache is not None:
                    cache.flush()

        async def ask() -> Load:
            keeping = asyncio.create_task(keep())
            try:
                return await translate(
                    endpoint,
                    question.prompts(missing),
                    decoding.sent,
                    concurrency=question.bench.concurrency,
                    timeout_s=question.bench.request_timeout_s,
                    on_result=take,
                )
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)

        try:
            return run_interruptible(ask())
        finally:
            if cache is not None:
                cache.flush()


def _decoding(question: Question, backend: Backend) -> Decoding:
    identity = question.identity
    return decode(backend, question.bench, model_config=identity.model_config, server_arguments=identity.arguments)


def _cache(question: Question, decoding: Decoding) -> AnswerCache | None:
    """None where another answer may be as right: sampled ones, and those of a model that nobody here has seen."""
    if not decoding.greedy:
        return None
    if not question.identity.known:
        _say_once(
            f"which weights answer as {question.server or question.target} is not known here: no cache of answers"
        )
        return None
    return AnswerCache(question.identity, decoding.sent)


@once
def _say_once(text: str) -> None:
    log.info("%s", text)


def _write_question(question: Question, folder: Path, decoding: Decoding, endpoint: Endpoint | None) -> None:
    question.write(folder, decoding, endpoint.base_url if endpoint else None, endpoint.model if endpoint else None)


def _result(question: Question, journal: Journal, outcome: _Outcome) -> BenchmarkResult:
    """The result without its scores."""
    answers = journal.answers.values()
    errors = Counter(failure.error for failure in outcome.failures)
    return BenchmarkResult(
        status="incomplete" if outcome.failures else "complete",
        target=question.target,
        testset=question.dataset.name,
        split=question.bench.split,
        n_testset=question.n_testset,
        sample_seed=question.bench.sample_seed if len(question.text.sources) < question.n_testset else None,
        n_asked=len(question.text.sources),
        n_segments=len(answers),
        failed=len(outcome.failures),
        errors=dict(errors.most_common(10)),
        sent=outcome.decoding.sent,
        overridden=outcome.decoding.overridden,
        in_force=outcome.decoding.in_force,
        from_before=outcome.from_before,
        from_cache=outcome.from_cache,
        retried=sum(answer.attempts > 1 for answer in answers),
        prompt_tokens=_total([answer.prompt_tokens for answer in answers]),
        completion_tokens=_total([answer.completion_tokens for answer in answers]),
        speed=outcome.speed,
        text_sha256=question.text.sha256,
        prompts_sha256=question.prompts_sha256,
        model_sha256=question.identity.model_sha256,
        adapter_sha256=question.identity.adapter_sha256,
    )


def _incomplete(failures: Sequence[Failure], n_asked: int, path: Path) -> StageError:
    asked = [failure for failure in failures if failure.attempts] or failures
    first = min(asked, key=lambda failure: failure.index)
    return StageError(
        f"{len(failures)} of {n_asked} sentences got no answer, so there is no score; "
        f"the first, sentence {first.index + 1}: {first.error}",
        f"the answers that came are in {path}; when the server is well again, the same command goes on with what is "
        "missing (--allow-incomplete: scores over what was answered)",
    )


def _scores(question: Question, journal: Journal, decoding: Decoding, folder: Path) -> dict[str, object]:
    """The scores, of exactly the segments that are written for sacrebleu's command line."""
    entry, bench = question.dataset.entry, question.bench
    answers = [journal.answers[index] for index in sorted(journal.answers)]
    hypotheses = [normalize_segment(answer.hypothesis) for answer in answers]
    references = [normalize_segment(question.text.references[answer.index]) for answer in answers]
    sources = [normalize_segment(question.text.sources[answer.index]) for answer in answers]
    for name, segments in (("sources", sources), ("references", references), ("hypotheses", hypotheses)):
        atomic_write(folder / f"{name}.txt", "".join(f"{segment}\n" for segment in segments))
    scores = score_system(
        hypotheses, [references], tgt_lang=entry.target_lang, metrics=bench.metrics, n_bootstrap=bench.n_bootstrap
    )
    found = triage(
        sources, references, hypotheses, [answer.completion_tokens for answer in answers],
        decoding.max_tokens, entry.source_lang, entry.target_lang, instruction=entry.instruction,
    )  # fmt: skip
    indices = [answer.index for answer in answers]
    return {**{name: getattr(scores, name) for name in type(scores).model_fields}, "triage": _at(indices, found)}


def _at(indices: Sequence[int], found: Triage) -> Triage:
    """The same, by the test set's indices: those of the answers alone are others where one is missing."""
    findings = {name: finding for name in type(found).model_fields if (finding := getattr(found, name)) is not None}
    return found.model_copy(
        update={
            name: finding.model_copy(update={"indices": [indices[place] for place in finding.indices]})
            for name, finding in findings.items()
        }
    )


def write_result(folder: Path, result: BenchmarkResult) -> None:
    """scores.json."""
    atomic_write(folder / "scores.json", result.model_dump_json(indent=2) + "\n")


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
